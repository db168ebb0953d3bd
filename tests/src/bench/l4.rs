//! What a packet costs in the kernel: our program beside a bare drop and the classic design, each behind a link of its
//! own, measured in turns by the kernel's own statistics.

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, TestRun as _, TestRunOptions,
    maps::PerCpuArray,
    sys::{Stats, enable_stats},
};
use gateway_common::{
    counter::{Count, Hook, Reason},
    map::{self, MapDef as _},
};

use super::{
    Options,
    frames::{self, Cost, Generator},
    tables::{self, PORT},
};
use crate::{
    kernel_run,
    netns::Ns,
    packet,
    report::{Report, Series, What, machine},
};

/// Whom ratios compare with.
const BASELINE: &str = "classic design";
const DROP: &str = "bare drop";
const OURS: &str = "sluice";

/// One kind of traffic.
#[derive(Clone, Copy, Debug)]
struct Traffic {
    name: &'static str,
    v6: bool,
    n_flows: u32,
    /// Whether the packets are for a service.
    is_ours: bool,
}

const TRAFFIC: [Traffic; 7] = [
    Traffic { name: "IPv4, 1 flow", v6: false, n_flows: 1, is_ours: true },
    Traffic { name: "IPv4, 1,024 flows", v6: false, n_flows: 1_024, is_ours: true },
    Traffic { name: "IPv4, 100,000 flows", v6: false, n_flows: 100_000, is_ours: true },
    Traffic { name: "IPv6, 1,024 flows", v6: true, n_flows: 1_024, is_ours: true },
    Traffic { name: "IPv6, 100,000 flows", v6: true, n_flows: 100_000, is_ours: true },
    Traffic { name: "IPv4, not for a service", v6: false, n_flows: 1_024, is_ours: false },
    Traffic { name: "IPv6, not for a service", v6: true, n_flows: 1_024, is_ours: false },
];

impl Traffic {
    /// The packet of the first flow: TCP in the middle of a connection, from addresses for benchmarks.
    fn packet(self) -> Vec<u8> {
        let (source, destination) = match (self.v6, self.is_ours) {
            (false, true) => ("198.18.64.0:20000", format!("198.18.0.1:{PORT}")),
            (false, false) => ("198.18.64.0:20000", format!("198.18.0.77:{PORT}")),
            (true, true) => ("[2001:2:0:40::]:20000", format!("[2001:2::1]:{PORT}")),
            (true, false) => ("[2001:2:0:40::]:20000", format!("[2001:2::77]:{PORT}")),
        };
        packet::tcp(source, &destination).bytes()
    }
}

/// A program under test, at its own link.
#[derive(Debug)]
struct Subject {
    name: &'static str,
    program: &'static str,
    ebpf: Ebpf,
    /// Interface that frames are sent from.
    sender: u32,
}

/// All of it; the link of each subject is in one namespace, so that nothing else sees its frames.
#[derive(Debug)]
struct Bench {
    generator: Generator,
    subjects: Vec<Subject>,
    ns: Ns,
}

/// Runs the benchmark.
///
/// # Errors
/// When something is missing, or when a program did not do what its time is taken for.
pub fn run(options: Options) -> Result<Report> {
    ensure!(nix::unistd::geteuid().is_root(), "l4 loads kernel programs: run it as root");
    let _statistics = enable_stats(Stats::RunTime).context("cannot switch the kernel's statistics on")?;
    let mut bench = Bench::new()?;
    let mut series = Series::default();
    let n_packets = if options.is_quick { 20_000 } else { 300_000 };
    for round in 0..options.n_rounds {
        eprintln!("l4: round {} of {}", round + 1, options.n_rounds);
        for traffic in TRAFFIC {
            bench.measure(traffic, n_packets, &mut series)?;
        }
        bench.repeat(n_packets * 4, &mut series)?;
    }
    let mut conditions = machine();
    conditions.push(format!(
        "{} rounds, subjects in turns; {n_packets} live frames for each value, sent by BPF_PROG_TEST_RUN over a veth pair; time from the kernel's BPF statistics, above that of a bare XDP_DROP in the same round",
        options.n_rounds
    ));
    conditions.push(format!(
        "sluice: everything on (filter, {} endpoints, flow table and translations, counts by reason, service and endpoint); {BASELINE}: service hash, LRU flow table for every packet, one ring of 65,537 slots, array of endpoints, IPIP, two counters",
        tables::ENDPOINTS
    ));
    Ok(Report { bench: "l4", conditions, figures: series.figures(BASELINE) })
}

impl Bench {
    fn new() -> Result<Self> {
        let ns = Ns::new("bench")?;
        let mut generator = Generator::load()?;
        let mut subjects = Vec::new();
        let reference = frames::reference_path()?;
        for (number, (name, program)) in
            [(DROP, "ref_drop"), (BASELINE, "ref_classic"), (OURS, Hook::XdpBalance.name())]
                .into_iter()
                .enumerate()
        {
            let (near, far) = (format!("near{number}"), format!("far{number}"));
            ns.ip(&format!("link add {near} type veth peer name {far}"))?;
            for end in [&near, &far] {
                // Nothing of the stack's own may come in between.
                ns.ip(&format!("link set {end} addrgenmode none up"))?;
            }
            generator.absorb(&ns, &near)?;
            let interface = frames::index(&ns, &far)?;
            let mut ebpf = if name == OURS {
                let mut ebpf = frames::load(&kernel_run::object_path()?)?;
                tables::fill(&mut ebpf, interface)?;
                ebpf
            } else {
                frames::load(&reference)?
            };
            frames::attach(&ns, &mut ebpf, program, &far)?;
            if name == BASELINE {
                tables::fill_reference(&mut ebpf, interface)?;
            }
            subjects.push(Subject { name, program, ebpf, sender: frames::index(&ns, &near)? });
        }
        Ok(Self { generator, subjects, ns })
    }

    /// One value of each subject for one kind of traffic.
    fn measure(&mut self, traffic: Traffic, n_packets: u32, series: &mut Series) -> Result<()> {
        let packet = traffic.packet();
        let mut floor = 0.0;
        for subject in &mut self.subjects {
            self.generator.prepare(&packet, traffic.n_flows)?;
            // First all flows once: what is measured is a flow that is known.
            self.generator.send(&self.ns, subject.sender, packet.len(), traffic.n_flows.max(1_000))?;
            let counted = subject.counted(traffic)?;
            let before = Cost::of(&mut subject.ebpf, subject.program)?;
            self.generator.send(&self.ns, subject.sender, packet.len(), n_packets)?;
            let cost = Cost::of(&mut subject.ebpf, subject.program)?.since(before);
            let counted = subject.counted(traffic)? - counted;
            ensure!(
                cost.packets * 100 >= u64::from(n_packets) * 95,
                "{}: only {} of {n_packets} frames arrived",
                subject.name,
                cost.packets
            );
            ensure!(
                subject.name == DROP || counted == cost.packets,
                "{}, {}: {counted} of {} packets went the way that is measured: {}",
                subject.name,
                traffic.name,
                cost.packets,
                subject.reasons()?
            );
            let what = |metric| What {
                case: traffic.name.to_owned(),
                subject: subject.name.to_owned(),
                metric,
                unit: "ns",
            };
            if subject.name == DROP {
                floor = cost.per_packet();
                series.add(what("time of a packet, all of it"), floor);
            } else {
                series.add(what("time of a packet above a bare drop"), cost.per_packet() - floor);
            }
        }
        Ok(())
    }

    /// The other way to measure, which needs no link: one packet again and again. Programs that change the packet
    /// cannot be measured so, because the second run would see what the first one made of it.
    fn repeat(&mut self, n_packets: u32, series: &mut Series) -> Result<()> {
        let packet =
            TRAFFIC.iter().find(|traffic| !traffic.is_ours).context("traffic that is not ours")?.packet();
        let mut floor = 0.0;
        for subject in &mut self.subjects {
            let program = frames::program(&mut subject.ebpf, subject.program)?;
            let options =
                TestRunOptions { data_in: Some(&packet), repeat: n_packets, ..TestRunOptions::default() };
            let ns =
                program.test_run(options).context("cannot repeat a packet")?.duration.as_secs_f64() * 1e9;
            let what = |metric| What {
                case: "IPv4, not for a service, one packet repeated".to_owned(),
                subject: subject.name.to_owned(),
                metric,
                unit: "ns",
            };
            if subject.name == DROP {
                floor = ns;
                series.add(what("time of a packet, all of it"), ns);
            } else {
                series.add(what("time of a packet above a bare drop"), ns - floor);
            }
        }
        Ok(())
    }
}

impl Subject {
    /// How many packets have gone the way that is measured, by the program's own account. A passed packet is not
    /// counted by the classic design, so there its kernel count is taken for it.
    fn counted(&mut self, traffic: Traffic) -> Result<u64> {
        match self.name {
            OURS => {
                let reason = if traffic.is_ours { Reason::Forwarded } else { Reason::NotOurs };
                Ok(self.count(map::Reasons::NAME, Hook::XdpBalance.index(reason))?.packets)
            }
            BASELINE if traffic.is_ours => {
                let row = if traffic.v6 { u32::from(tables::ENDPOINTS) } else { 0 };
                Ok(self.count("REF_SERVED", row)?.packets)
            }
            _ => Ok(Cost::of(&mut self.ebpf, self.program)?.packets),
        }
    }

    fn count(&self, name: &str, index: u32) -> Result<Count> {
        let map = self.ebpf.map(name).with_context(|| format!("the object has no map {name}"))?;
        let map: PerCpuArray<_, [u8; size_of::<Count>()]> = PerCpuArray::try_from(map)?;
        let mut sum = Count::default();
        for one in map.get(&index, 0)?.iter() {
            let one: Count = bytemuck::pod_read_unaligned(one);
            sum.packets += one.packets;
            sum.bytes += one.bytes;
        }
        Ok(sum)
    }

    /// What our program counted, for the error message.
    fn reasons(&self) -> Result<String> {
        if self.name != OURS {
            return Ok("it counts no reasons".to_owned());
        }
        let mut words = Vec::new();
        for reason in Reason::ALL {
            let count = self.count(map::Reasons::NAME, Hook::XdpBalance.index(*reason))?;
            if count.packets > 0 {
                words.push(format!("{} {}", reason.name(), count.packets));
            }
        }
        Ok(words.join(", "))
    }
}
