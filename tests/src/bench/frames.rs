//! The packet generator: live frames that one end of a link sends and the program at the other end takes, and the
//! kernel's own account of what that program cost.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunAttrs, TestRunOptions,
    maps::Array,
    programs::{Xdp, XdpMode},
};
use bytemuck::Zeroable as _;
use gateway_common::generator::{TEMPLATE_BYTES, Template};
use gateway_common::map::{self, MapDef as _};

use super::{l4::Traffic, tables};
use crate::{kernel_run, netns::Ns, tables::raw};

/// Room in every table of flows. The kernel's LRU tables begin to forget long before they are full, and a flow that is
/// made again costs another thing than one that is found.
const FLOWS: u32 = 1 << 20;

/// Frames that the kernel makes at once.
const BATCH: u32 = 64;

/// Path of the object with the reference and the generator.
///
/// # Errors
/// When it was not built.
pub fn reference_path() -> Result<PathBuf> {
    let path = kernel_run::object_path()?.with_file_name("sluice-reference");
    ensure!(path.is_file(), "{} is missing: run cargo xtask build-ebpf --reference", path.display());
    Ok(path)
}

/// Loads an object.
///
/// # Errors
/// When the kernel refuses it.
pub fn load(path: &std::path::Path) -> Result<Ebpf> {
    let object = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut loader = EbpfLoader::new();
    loader.map_max_entries("REF_FLOWS", FLOWS);
    loader.map_max_entries(map::Flows::NAME, tables::FLOW_BUCKETS);
    loader.map_max_entries(map::Slots::NAME, tables::CHUNKS);
    loader.map_max_entries(map::Displaced::NAME, tables::FLOW_BUCKETS / 8);
    loader.map_max_entries(map::Replies::NAME, tables::REPLY_BUCKETS);
    loader.load(&object).with_context(|| format!("cannot load {}", path.display()))
}

/// A program of an object, loaded if it was not.
///
/// # Errors
/// When there is none of that name, or the kernel refuses it.
pub fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    let program: &mut Xdp = program.try_into()?;
    if program.fd().is_err() {
        program.load().with_context(|| format!("the kernel refuses {name}"))?;
    }
    Ok(program)
}

/// Attaches a program to an interface of a namespace, in the driver.
///
/// # Errors
/// When the kernel refuses it.
pub fn attach(ns: &Ns, ebpf: &mut Ebpf, name: &str, interface: &str) -> Result<()> {
    let program = program(ebpf, name)?;
    ns.run(|| program.attach(interface, XdpMode::Driver))
        .with_context(|| format!("cannot attach {name} to {interface}"))?;
    Ok(())
}

/// Runs a program on one packet again and again, without a link; returns nanoseconds for each run.
///
/// # Errors
/// When the kernel cannot.
pub fn repeat(ebpf: &mut Ebpf, name: &str, packet: &[u8], n: u32) -> Result<f64> {
    let options = TestRunOptions { data_in: Some(packet), repeat: n, ..TestRunOptions::default() };
    let outcome = program(ebpf, name)?.test_run(options).context("cannot repeat a packet")?;
    Ok(outcome.duration.as_secs_f64() * 1e9)
}

/// Index of an interface of a namespace.
///
/// # Errors
/// When there is none of that name.
pub fn index(ns: &Ns, interface: &str) -> Result<u32> {
    ns.run(|| nix::net::if_::if_nametoindex(interface)).with_context(|| format!("no interface {interface}"))
}

/// What a program has cost so far.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cost {
    /// Packets it has seen.
    pub packets: u64,
    /// Nanoseconds it has run.
    pub ns: u64,
}

impl Cost {
    /// What the kernel counts for a program while its statistics are on.
    ///
    /// # Errors
    /// When the program was not loaded.
    pub fn of(ebpf: &mut Ebpf, name: &str) -> Result<Self> {
        let info = program(ebpf, name)?.info()?;
        Ok(Self { packets: info.run_count(), ns: u64::try_from(info.run_time().as_nanos())? })
    }

    /// What came since.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self { packets: self.packets - earlier.packets, ns: self.ns - earlier.ns }
    }

    /// Nanoseconds for each packet.
    #[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub fn per_packet(self) -> f64 {
        self.ns as f64 / self.packets.max(1) as f64
    }
}

/// Which flow comes after which.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// By number: flows are recorded in this order.
    Ascending,
    /// Far apart, so that no cache has seen the neighbor of an entry just before.
    Mixed,
}

impl Order {
    const fn stride(self) -> u32 {
        match self {
            Self::Ascending => 1,
            // Neither even nor a multiple of five: no common divisor with powers of two and of ten.
            Self::Mixed => 61_803,
        }
    }
}

/// Sends frames out of one interface after another.
#[derive(Debug)]
pub struct Generator {
    ebpf: Ebpf,
}

/// `struct xdp_md` of `linux/bpf.h`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress: u32,
    queue: u32,
    egress: u32,
}

impl Generator {
    /// Loads it.
    ///
    /// # Errors
    /// When the object is missing or refused.
    pub fn load() -> Result<Self> {
        let mut ebpf = load(&reference_path()?)?;
        program(&mut ebpf, "ref_generate")?;
        Ok(Self { ebpf })
    }

    /// Stays among the programs that the kernel calls without a detour, on an interface that no packet comes to. One that
    /// is attached nowhere is let in and out by every call that sends, and the kernel waits for all processors twice.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn stay(&mut self, ns: &Ns, interface: &str) -> Result<()> {
        attach(ns, &mut self.ebpf, "ref_generate", interface)
    }

    /// Takes what comes back to an interface that frames are sent from. Without it, the link would not deliver them.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn absorb(&mut self, ns: &Ns, interface: &str) -> Result<()> {
        attach(ns, &mut self.ebpf, "ref_drop", interface)
    }

    /// Says what to send from now on: a packet, of `n_flows` clients in turn.
    ///
    /// # Errors
    /// When the packet does not fit.
    pub fn prepare(&mut self, packet: &[u8], traffic: Traffic, order: Order) -> Result<()> {
        let Traffic { n_flows, n_services, .. } = traffic;
        let mut template = Template { n_flows, n_services, stride: order.stride(), ..Template::zeroed() };
        ensure!(packet.len() <= TEMPLATE_BYTES, "a packet of {} bytes does not fit", packet.len());
        template.bytes[..packet.len()].copy_from_slice(packet);
        template.v6 = u32::from(packet.get(12..14) == Some(&[0x86, 0xdd]));
        let map = self.ebpf.map_mut("REF_TEMPLATE").context("the object has no map REF_TEMPLATE")?;
        let mut map: Array<_, [u8; size_of::<Template>()]> = Array::try_from(map)?;
        Ok(map.set(0, raw(&template), 0)?)
    }

    /// Sends `n` frames of `len` bytes out of an interface.
    ///
    /// # Errors
    /// When the kernel cannot: live frames need Linux 5.18.
    pub fn send(&mut self, ns: &Ns, interface: u32, len: usize, n: u32) -> Result<()> {
        let frame = vec![0; len];
        let context = Context { data_end: u32::try_from(len)?, ingress: interface, ..Context::zeroed() };
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(bytemuck::bytes_of(&context)),
            repeat: n,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        let program = program(&mut self.ebpf, "ref_generate")?;
        // The index of the interface means the one of the caller's namespace.
        ns.run(|| program.test_run(options)).context("cannot send live frames; they need Linux 5.18")?;
        Ok(())
    }
}
