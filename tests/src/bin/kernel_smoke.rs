//! Proves that a kernel takes the object: loads every program, attaches each to a real hook, and sends something
//! through it. Then the agent's own side attaches at TC, takes over from itself, and cleans up. Run inside the small
//! machines of `cargo xtask kernel-matrix`; one line for each program, and one for the agent.
#![allow(clippy::disallowed_methods, reason = "reads its command line")]

use std::{
    env,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions, TestRunResult,
    programs::{
        CgroupAttachMode, CgroupSockAddr, SchedClassifier, SkLookup, TcAttachType, Xdp, XdpMode,
        links::LinkOrder,
        tc::{self, NlOptions, TcAttachOptions},
    },
    sys::{Stats, enable_stats},
};
use gateway_common::{
    aside::{Aside, SWEEP},
    counter::Hook,
    receive::Receive,
};
use gateway_tests::cgroup::Cgroup;
use gateway_userspace::kernel::{AttachMode, Beside, Kernel, Settings, cleanup};

/// `XDP_PASS` of `linux/bpf.h`.
const XDP_PASS: u32 = 2;

/// `TC_ACT_UNSPEC` of `linux/pkt_cls.h`, which is also `TCX_NEXT`: the next program decides.
const TC_NEXT: u32 = u32::MAX;

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let (Some(object), Some(interface)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: sluice-kernel-smoke OBJECT INTERFACE");
        return ExitCode::from(2);
    };
    let mut ebpf = match load(&object) {
        Ok(ebpf) => ebpf,
        Err(error) => {
            println!("FAILED load: {}", ends(&format!("{error:#}")));
            return ExitCode::FAILURE;
        }
    };
    let mut failed = false;
    for hook in Hook::ALL {
        match smoke(&mut ebpf, hook, &interface) {
            Ok(how) => {
                println!("ok {}: {how}", hook.name());
                match verified(&mut ebpf, hook.name()) {
                    Ok(n) => println!("verified {} {n}", hook.name()),
                    Err(error) => {
                        println!("FAILED verified {}: {error:#}", hook.name());
                        failed = true;
                    }
                }
            }
            Err(error) => {
                println!("FAILED {}: {}", hook.name(), ends(&format!("{error:#}")));
                failed = true;
            }
        }
    }
    for name in Aside::ALL.map(Aside::name).into_iter().chain([SWEEP]) {
        match load_aside(&mut ebpf, name).and_then(|()| verified(&mut ebpf, name)) {
            Ok(n) => println!("ok {name}: loads\nverified {name} {n}"),
            Err(error) => {
                println!("FAILED {name}: {}", ends(&format!("{error:#}")));
                failed = true;
            }
        }
    }
    // What was attached above must not stand in the way.
    drop(ebpf);
    match takeover(&interface) {
        Ok(how) => println!("ok agent: {how}"),
        Err(error) => {
            println!("FAILED agent: {}", ends(&format!("{error:#}")));
            failed = true;
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The first line and the last ones: between them the verifier tells its whole way to the fault.
fn ends(text: &str) -> String {
    const LAST: usize = 12;
    let lines: Vec<&str> = text.lines().collect();
    let skipped = lines.len().saturating_sub(LAST + 1);
    let kept = lines.iter().take(1).chain(lines.iter().skip(1 + skipped));
    kept.copied().collect::<Vec<_>>().join("\n    ")
}

fn load(object: &str) -> Result<Ebpf> {
    let bytes = fs::read(object).with_context(|| format!("cannot read {object}"))?;
    EbpfLoader::new().load(&bytes).context("the kernel refuses a map")
}

/// Loads a program that others end in.
fn load_aside(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let program = ebpf.program_mut(name).context("the object has no such program")?;
    if let Ok(program) = <&mut Xdp>::try_from(&mut *program) {
        return program.load().context("the verifier refuses it");
    }
    let program: &mut SchedClassifier = program.try_into()?;
    program.load().context("the verifier refuses it")
}

/// Instructions that the verifier went through for a program that is loaded.
fn verified(ebpf: &mut Ebpf, name: &str) -> Result<u32> {
    let program = ebpf.program_mut(name).context("the object has no such program")?;
    let info = program.info()?;
    info.verified_instruction_count().context("this kernel does not tell (Linux 5.16)")
}

/// Loads and attaches the program of one hook and sends something through it; returns how it was attached.
fn smoke(ebpf: &mut Ebpf, hook: Hook, interface: &str) -> Result<&'static str> {
    let program = ebpf.program_mut(hook.name()).context("the object has no such program")?;
    match hook {
        Hook::XdpBalance => {
            let program: &mut Xdp = program.try_into()?;
            program.load().context("the verifier refuses it")?;
            program.attach(interface, XdpMode::Driver).context("cannot attach")?;
            passes(&*program, XDP_PASS)?;
            Ok("native XDP, a packet passes unchanged")
        }
        Hook::TcIngress | Hook::TcReceive | Hook::TcProbeIn => {
            classifier(program.try_into()?, interface, TcAttachType::Ingress)
        }
        Hook::TcEgress | Hook::TcProbeOut => classifier(program.try_into()?, interface, TcAttachType::Egress),
        Hook::SkLookup => lookup(program.try_into()?),
        Hook::Connect4
        | Hook::Connect6
        | Hook::SendMsg4
        | Hook::SendMsg6
        | Hook::RecvMsg4
        | Hook::RecvMsg6
        | Hook::GetPeerName4
        | Hook::GetPeerName6 => socket(program.try_into()?),
    }
}

fn classifier(program: &mut SchedClassifier, interface: &str, side: TcAttachType) -> Result<&'static str> {
    program.load().context("the verifier refuses it")?;
    let tcx = TcAttachOptions::TcxOrder(LinkOrder::default());
    let how = if program.attach_with_options(interface, side, tcx).is_ok() {
        "TCX, a packet passes unchanged"
    } else {
        // It fails where the other side was attached first, which made it; where it is really missing, the next step
        // says so.
        drop(tc::qdisc_add_clsact(interface));
        let options = TcAttachOptions::Netlink(NlOptions::default());
        program.attach_with_options(interface, side, options).context("cannot attach by netlink")?;
        "TC filter, a packet passes unchanged"
    };
    passes(&*program, TC_NEXT)?;
    Ok(how)
}

/// Attaches at TC as the agent does, once more as its successor, and cleans up: links where the kernel has them at TC,
/// filters elsewhere, and in the end neither.
fn takeover(interface: &str) -> Result<String> {
    let bpffs = PathBuf::from("/sys/fs/bpf");
    let settings = Settings {
        bpffs: bpffs.clone(),
        attach: AttachMode::Tc,
        ports: 61_000..=65_535,
        seed: Some([7; 16]),
        flows: 1_024,
        change_window: Duration::from_hours(1),
        echo: true,
        tunnel: gateway_common::settings::Tunnel::DEFAULT,
        tcx: true,
        events: 0,
        fail_open_after: Duration::from_secs(3),
        connect: None,
        receive: Receive::default(),
    };
    for _ in 0..2 {
        let mut kernel = Kernel::start(&settings).context("the agent cannot start its kernel side")?;
        let hook = kernel.attach(interface, None).context("the agent cannot attach")?.ingress;
        ensure!(hook == "TC", "attached at {hook}");
        for beside in [Beside::Receive, Beside::Probe] {
            kernel
                .attach_beside(beside, interface)
                .context("the agent cannot attach what does not balance")?;
        }
    }
    let removed = cleanup(&bpffs).context("cleanup failed")?;
    let is_there = |name: &str| removed.iter().any(|path| path.ends_with(format!("{name}-{interface}")));
    let how = ["link", "filter"]
        .into_iter()
        .find(|how| is_there(&format!("{how}-tc_ingress")) && is_there(&format!("{how}-tc_egress")));
    let how = how.with_context(|| format!("cleanup removed only {removed:?}"))?;
    for (name, side) in [("tc_ingress", TcAttachType::Ingress), ("tc_egress", TcAttachType::Egress)] {
        ensure!(tc::qdisc_detach_program(interface, side, name).is_err(), "cleanup left a filter {name}");
    }
    Ok(format!("a {how} on each side at TC, taken over and removed"))
}

/// Runs one packet that is not ours, and compares the code and every byte.
fn passes<P>(program: &P, code: u32) -> Result<()>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let packet = foreign_packet();
    let mut out = vec![0; packet.len() + 64];
    let options =
        TestRunOptions { data_in: Some(&packet), data_out: Some(&mut out), ..TestRunOptions::default() };
    let result = program.test_run(options).context("the kernel cannot run it")?;
    ensure!(result.return_value == code, "returned {} instead of {code}", result.return_value);
    out.truncate(usize::try_from(result.data_size_out)?);
    ensure!(out == packet, "changed a packet that is not ours");
    Ok(())
}

/// A TCP segment to an address that no service has.
fn foreign_packet() -> Vec<u8> {
    let mut packet = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x08, 0x00];
    packet.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    packet.extend([0x80, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0x20, 0, 0, 0, 0, 0]);
    packet
}

/// Attaches a program at sockets to a control group. What it does there, the suite shows.
fn socket(program: &mut CgroupSockAddr) -> Result<&'static str> {
    program.load().context("the verifier refuses it")?;
    let group = Cgroup::enter()?;
    program.attach(File::open(group.path())?, CgroupAttachMode::Single).context("cannot attach")?;
    Ok("control group")
}

/// Attaches the socket lookup to this namespace and makes a connection that is not ours through it. Whether the program
/// ran is the kernel's word, not a guess from the connection, which works without it too.
fn lookup(program: &mut SkLookup) -> Result<&'static str> {
    program.load().context("the verifier refuses it")?;
    let _statistics = enable_stats(Stats::RunTime).context("cannot switch statistics on")?;
    program.attach(File::open("/proc/self/ns/net")?).context("cannot attach")?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client =
        TcpStream::connect(listener.local_addr()?).context("a connection that is not ours failed")?;
    let (mut accepted, _) = listener.accept()?;
    client.write_all(b"x")?;
    let mut byte = [0];
    accepted.read_exact(&mut byte)?;
    let runs = program.info()?.run_count();
    if runs == 0 {
        bail!("the kernel did not run it for a connection");
    }
    Ok("network namespace, a connection passes")
}
