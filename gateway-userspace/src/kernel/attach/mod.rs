//! Attaching: which program sits on which interface, and why.
//!
//! Links are pinned, so that packets are balanced while the agent restarts, and a new agent replaces the program of a
//! link in place. Programs of others stay where they are: an interface whose XDP hook is taken gets TC instead.

mod connect;
mod hang;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::{self, File},
    os::{fd::AsFd, unix::fs::MetadataExt as _},
};

use aya::{
    Ebpf,
    maps::ProgramArray,
    programs::{
        ProgramError, SchedClassifier, SkLookup, TcAttachType, Xdp, XdpMode,
        links::{FdLink, LinkOrder},
        tc::TcAttachOptions,
    },
    sys::SyscallError,
};
use gateway_common::aside::Aside;

pub use crate::kernel::attach::connect::Connect;
use crate::kernel::{
    Error,
    attach::connect::Sockets,
    filter::Strays,
    object::Pins,
    pin::{self, Failed, Target},
};

/// How packets of an interface reach the pipeline.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AttachMode {
    /// The best that works: native XDP, then TC, then generic XDP.
    #[default]
    Auto,
    /// XDP in the driver, or an error.
    Native,
    /// XDP after the kernel made a buffer, or an error.
    Generic,
    /// TC, or an error.
    Tc,
}

/// What sits on an interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attachment {
    /// Index of the interface: another one of the same name is another interface.
    pub interface: u32,
    /// The hook that balances: `native XDP`, `generic XDP` or `TC`.
    pub ingress: &'static str,
    /// Why this one.
    pub why: String,
    /// Why XDP was not tried first, where the agent chooses.
    pub avoided: Option<String>,
}

/// A hook on ingress.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ingress {
    Native,
    Generic,
    Tc,
}

impl Ingress {
    const ALL: [Self; 3] = [Self::Native, Self::Generic, Self::Tc];

    /// What an operator reads.
    const fn name(self) -> &'static str {
        match self {
            Self::Native => "native XDP",
            Self::Generic => "generic XDP",
            Self::Tc => "TC",
        }
    }

    /// Begins the name of the pinned link. The modes of XDP have one each: a link cannot change its mode.
    const fn pin(self) -> &'static str {
        match self {
            Self::Native => XDP,
            Self::Generic => "xdp_generic",
            Self::Tc => TC_INGRESS,
        }
    }
}

/// What an interface may have beside the programs that balance.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Beside {
    /// Opens the tunnels of peers.
    Receive,
    /// Takes health checks through tunnels, and their answers back.
    Probe,
}

impl Beside {
    /// All of them.
    const ALL: [Self; 2] = [Self::Receive, Self::Probe];

    /// The programs.
    const fn hooks(self) -> &'static [&'static str] {
        match self {
            Self::Receive => &[TC_RECEIVE],
            Self::Probe => &[TC_PROBE_OUT, TC_PROBE_IN],
        }
    }

    /// What an operator reads.
    const fn purpose(self) -> &'static str {
        match self {
            Self::Receive => "tunnels of peers end here",
            Self::Probe => "health checks go through tunnels here",
        }
    }
}

/// The side of TC where a program hangs.
fn side_of(hook: &str) -> TcAttachType {
    if [TC_EGRESS, TC_PROBE_OUT].contains(&hook) { TcAttachType::Egress } else { TcAttachType::Ingress }
}

/// Names of the interfaces that keep what they have.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// What balances.
    pub balanced: BTreeSet<String>,
    /// What opens tunnels.
    pub receiving: BTreeSet<String>,
    /// What takes health checks through tunnels.
    pub probing: BTreeSet<String>,
}

impl Kept {
    const fn beside(&self, beside: Beside) -> &BTreeSet<String> {
        match beside {
            Beside::Receive => &self.receiving,
            Beside::Probe => &self.probing,
        }
    }
}

/// Programs and links of one loaded object.
pub(super) struct Attacher {
    object: Ebpf,
    pins: Pins,
    attached: BTreeMap<String, Attachment>,
    /// Interfaces with what does not balance, and their indices.
    beside: BTreeMap<(Beside, String), u32>,
    /// Links at TC, where the kernel has them.
    tcx: bool,
    /// What sits at sockets.
    sockets: Sockets,
}

const XDP: &str = "xdp_balance";
pub(super) const TC_INGRESS: &str = "tc_ingress";
pub(super) const TC_EGRESS: &str = "tc_egress";
pub(super) const TC_RECEIVE: &str = "tc_receive";
pub(super) const TC_PROBE_OUT: &str = "tc_probe_out";
pub(super) const TC_PROBE_IN: &str = "tc_probe_in";
/// Programs that do not balance.
const BESIDE: [&str; 3] = [TC_RECEIVE, TC_PROBE_OUT, TC_PROBE_IN];
const SK_LOOKUP: &str = "sk_lookup";

impl Attacher {
    /// For an object whose programs are loaded.
    pub(super) const fn new(object: Ebpf, pins: Pins, tcx: bool) -> Self {
        Self {
            object,
            pins,
            attached: BTreeMap::new(),
            beside: BTreeMap::new(),
            tcx,
            sockets: Sockets::Unused,
        }
    }

    /// What sits where.
    pub(super) const fn attached(&self) -> &BTreeMap<String, Attachment> {
        &self.attached
    }

    /// Interfaces where one of the programs sits that do not balance, and their indices.
    pub(super) fn beside(&self, beside: Beside) -> impl Iterator<Item = (&str, u32)> {
        let at = self.beside.iter().filter(move |((which, _), _)| *which == beside);
        at.map(|((_, name), index)| (name.as_str(), *index))
    }

    /// Attaches socket lookup to this process's network namespace, or replaces the program of the pinned link.
    pub(super) fn steer(&mut self) -> Result<(), Error> {
        let path = self.pins.link(SK_LOOKUP);
        let namespace =
            File::open("/proc/thread-self/ns/net").map_err(|source| Error::Namespace { source })?;
        let inode = namespace.metadata().map_err(|source| Error::Namespace { source })?.ino();
        let program = program::<SkLookup>(&mut self.object, SK_LOOKUP)?;
        let fd = program.fd().map_err(failed(SK_LOOKUP))?;
        let target = Target(inode);
        if pin::replace(&path, target, fd.as_fd())? {
            return Ok(());
        }
        let id = program.attach(namespace).map_err(failed(SK_LOOKUP))?;
        let link = program.take_link(id).map_err(failed(SK_LOOKUP))?;
        pin::keep(link.into(), &path)
    }

    /// Attaches to an interface, or takes over what an earlier agent left there. What is there and not wanted any more is
    /// removed only afterwards.
    pub(super) fn attach(
        &mut self,
        interface: &str,
        mode: AttachMode,
        avoid: Option<&str>,
    ) -> Result<&Attachment, Error> {
        let index = index_of(interface)?;
        let (ingress, why) = self.ingress(interface, Target(u64::from(index)), mode, avoid)?;
        self.classifier(interface, Target(u64::from(index)), TC_EGRESS, TcAttachType::Egress)?;
        for other in Ingress::ALL.into_iter().filter(|other| *other != ingress) {
            pin::remove(&self.pins.link(&format!("{}-{interface}", other.pin())))?;
            pin::remove(&self.pins.filter(&format!("{}-{interface}", other.pin())))?;
            pin::remove(&self.pins.next_filter(&format!("{}-{interface}", other.pin())))?;
        }
        let avoided = avoid.map(str::to_owned);
        let attachment = Attachment { interface: index, ingress: ingress.name(), why, avoided };
        tracing::info!(interface, hook = attachment.ingress, why = attachment.why, "attached");
        let place = self.attached.entry(interface.to_owned()).insert_entry(attachment);
        Ok(place.into_mut())
    }

    /// Attaches a program that does not balance, or takes over what an earlier agent left there.
    ///
    /// Behind what balances: a node that is an endpoint too must not balance a packet again that was sent to it.
    pub(super) fn attach_beside(&mut self, beside: Beside, interface: &str) -> Result<(), Error> {
        let index = index_of(interface)?;
        for hook in beside.hooks() {
            self.classifier(interface, Target(u64::from(index)), hook, side_of(hook))?;
        }
        tracing::info!(interface, "attached: {}", beside.purpose());
        self.beside.insert((beside, interface.to_owned()), index);
        Ok(())
    }

    /// Removes what this agent, or one before it, attached to any other interface. Interfaces that are gone have lost
    /// their programs already; what cannot be removed from one keeps nothing on the others.
    pub(super) fn keep_only(&mut self, kept: &Kept) -> Result<(), Error> {
        let tables = self.pins.tables();
        let failed = |source| Error::PinFolder { path: tables.to_owned(), source };
        let mut strays = Strays::default();
        let mut not_removed = Failed::default();
        for entry in fs::read_dir(tables).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some((hook, interface)) = hook_of(&name.to_string_lossy()) else { continue };
            let beside = Beside::ALL.into_iter().find(|beside| beside.hooks().contains(&hook));
            let stay = beside.map_or(&kept.balanced, |beside| kept.beside(beside));
            if stay.contains(&interface) {
                continue;
            }
            let index = match beside {
                Some(beside) => self.beside.get(&(beside, interface.clone())).copied(),
                None => self.attached.get(&interface).map(|attachment| attachment.interface),
            };
            if not_removed.note(pin::remove_one_of(&entry.path(), index, &mut strays)) == Some(true) {
                tracing::info!(interface, pin = %name.to_string_lossy(), "detached");
            }
        }
        self.attached.retain(|name, _| kept.balanced.contains(name));
        self.beside.retain(|(beside, name), _| kept.beside(*beside).contains(name));
        not_removed.outcome()
    }

    /// The hook that works, and why it is this one.
    fn ingress(
        &mut self,
        interface: &str,
        target: Target,
        mode: AttachMode,
        avoid: Option<&str>,
    ) -> Result<(Ingress, String), Error> {
        let chosen = match mode {
            AttachMode::Auto => return self.best(interface, target, avoid),
            AttachMode::Native => Ingress::Native,
            AttachMode::Generic => Ingress::Generic,
            AttachMode::Tc => Ingress::Tc,
        };
        // An interface has one mode of XDP at a time, and the setting says which.
        let rival = match chosen {
            Ingress::Native => Some(Ingress::Generic),
            Ingress::Generic => Some(Ingress::Native),
            Ingress::Tc => None,
        };
        if let Some(rival) = rival {
            pin::remove(&self.pins.link(&format!("{}-{interface}", rival.pin())))?;
        }
        self.hook(interface, target, chosen)?;
        let why = match avoid.filter(|_| chosen == Ingress::Native) {
            Some(avoid) => format!("the configuration says so, although {avoid}"),
            None => "the configuration says so".to_owned(),
        };
        Ok((chosen, why))
    }

    fn best(
        &mut self,
        interface: &str,
        target: Target,
        avoid: Option<&str>,
    ) -> Result<(Ingress, String), Error> {
        if let Some(why) = avoid
            && self.hook(interface, target, Ingress::Tc).is_ok()
        {
            return Ok((Ingress::Tc, why.to_owned()));
        }
        let Err(native) = self.hook(interface, target, Ingress::Native) else {
            return Ok((Ingress::Native, "the driver supports it".to_owned()));
        };
        // Generic XDP copies each packet into a buffer of its own, so TC is the better second.
        let Err(tc) = self.hook(interface, target, Ingress::Tc) else {
            return Ok((Ingress::Tc, format!("native XDP was refused: {}", Cause(&native))));
        };
        self.hook(interface, target, Ingress::Generic)?;
        let why = format!("native XDP was refused: {}; TC was refused: {}", Cause(&native), Cause(&tc));
        Ok((Ingress::Generic, why))
    }

    fn hook(&mut self, interface: &str, target: Target, ingress: Ingress) -> Result<(), Error> {
        match ingress {
            Ingress::Native => self.xdp(interface, target, ingress, XdpMode::Driver),
            Ingress::Generic => self.xdp(interface, target, ingress, XdpMode::Skb),
            Ingress::Tc => self.classifier(interface, target, TC_INGRESS, TcAttachType::Ingress),
        }
    }

    fn xdp(&mut self, interface: &str, target: Target, ingress: Ingress, mode: XdpMode) -> Result<(), Error> {
        let path = self.pins.link(&format!("{}-{interface}", ingress.pin()));
        let program = program::<Xdp>(&mut self.object, XDP)?;
        let fd = program.fd().map_err(failed(XDP))?;
        if pin::replace(&path, target, fd.as_fd())? {
            return Ok(());
        }
        let id = program.attach_to_if_index(target.index(), mode).map_err(failed(XDP))?;
        let link = program.take_link(id).map_err(failed(XDP))?;
        let link: FdLink = link.try_into().map_err(|source| Error::Link { what: XDP, source })?;
        pin::keep(link, &path)
    }

    fn classifier(
        &mut self,
        interface: &str,
        target: Target,
        name: &'static str,
        side: TcAttachType,
    ) -> Result<(), Error> {
        let path = self.pins.link(&format!("{name}-{interface}"));
        let program = program::<SchedClassifier>(&mut self.object, name)?;
        let fd = program.fd().map_err(failed(name))?;
        if pin::replace(&path, target, fd.as_fd())? {
            return Ok(());
        }
        if self.tcx {
            let order = if BESIDE.contains(&name) { LinkOrder::last() } else { LinkOrder::first() };
            let order = TcAttachOptions::TcxOrder(order);
            if let Ok(id) = program.attach_with_options(interface, side, order) {
                let link = program.take_link(id).map_err(failed(name))?;
                let link: FdLink = link.try_into().map_err(|source| Error::Link { what: name, source })?;
                return pin::keep(link, &path);
            }
        }
        let name_of_pin = format!("{name}-{interface}");
        hang::hang(program, &self.pins.filter(&name_of_pin), &self.pins.next_filter(&name_of_pin))
    }
}

fn index_of(interface: &str) -> Result<u32, Error> {
    nix::net::if_::if_nametoindex(interface)
        .map_err(|errno| Error::Interface { name: interface.to_owned(), source: errno.into() })
}

/// Loads every program into the kernel. The maps must still be open: afterwards the programs hold them.
pub(super) fn load_programs(object: &mut Ebpf) -> Result<(), Error> {
    let refused = |what| move |source| Error::Verifier { what, source };
    program::<Xdp>(object, XDP)?.load().map_err(refused(XDP))?;
    for name in [TC_INGRESS, TC_EGRESS].into_iter().chain(BESIDE) {
        program::<SchedClassifier>(object, name)?.load().map_err(refused(name))?;
    }
    for aside in Aside::ALL {
        let name = aside.name();
        let what = object.program_mut(name).ok_or(Error::NoMap { name })?;
        if let Ok(program) = <&mut Xdp>::try_from(&mut *what) {
            program.load().map_err(refused(name))?;
        } else {
            program::<SchedClassifier>(object, name)?.load().map_err(refused(name))?;
        }
        join(object, aside)?;
    }
    program::<SkLookup>(object, SK_LOOKUP)?.load().map_err(refused(SK_LOOKUP))
}

/// Puts a program that others end in into its place; the programs of an earlier agent end in it too from then on.
fn join(object: &mut Ebpf, aside: Aside) -> Result<(), Error> {
    let name = aside.name();
    let program = object.program(name).ok_or(Error::NoMap { name })?;
    let fd = program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(failed(name))?;
    let refused = |source| Error::Map { name: aside.map(), source };
    let map = object.map_mut(aside.map()).ok_or(Error::NoMap { name: aside.map() })?;
    let mut programs = ProgramArray::try_from(map).map_err(refused)?;
    programs.set(aside.index(), &fd, 0).map_err(refused)
}

fn program<'a, P>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = object.program_mut(name).ok_or(Error::NoMap { name })?;
    program.try_into().map_err(failed(name))
}

fn failed(what: &'static str) -> impl Fn(ProgramError) -> Error {
    move |source| Error::Attach { what, source }
}

/// Whether a pin is that of a link or a filter of this version.
pub(super) fn is_known(pin: &str) -> bool {
    hook_of(pin).is_some()
        || pin.strip_prefix(pin::PREFIX).is_some_and(|name| name == SK_LOOKUP || connect::is_link(name))
}

/// The hook and the interface of a link's pin; none for the socket lookup, which has no interface, and for maps.
fn hook_of(pin: &str) -> Option<(&'static str, String)> {
    let prefixes = [pin::PREFIX, pin::NEXT_FILTER, pin::FILTER];
    let hook = prefixes.into_iter().find_map(|prefix| pin.strip_prefix(prefix))?;
    let names = Ingress::ALL.map(Ingress::pin).into_iter().chain([TC_EGRESS]).chain(BESIDE);
    names.into_iter().find_map(|name| {
        let interface = hook.strip_prefix(name)?.strip_prefix('-')?;
        Some((name, pin::decoded(interface)))
    })
}

/// An error as the reason for another choice.
struct Cause<'a>(&'a Error);

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Error::Attach { source: ProgramError::SyscallError(SyscallError { io_error, .. }), .. } =
            self.0
        {
            return match io_error.raw_os_error() {
                Some(libc::EBUSY | libc::EEXIST) => f.write_str("another XDP program holds the interface"),
                Some(libc::EOPNOTSUPP) => f.write_str("the driver does not support it"),
                _ => write!(f, "{io_error}"),
            };
        }
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_stands_in_the_name_of_the_pin() {
        let check = |pin: &str, expected: Option<&str>| {
            let seen = hook_of(pin).map(|(_, interface)| interface);
            assert_eq!(seen.as_deref(), expected, "{pin}");
        };
        check("link-xdp_balance-eth0", Some("eth0"));
        check("link-xdp_generic-veth-a", Some("veth-a"));
        check("link-tc_ingress-tc_ingress", Some("tc_ingress"));
        check("link-tc_egress-eth0:100", Some("eth0.100"));
        check("filter-tc_egress-eth0", Some("eth0"));
        check("link-tc_receive-eth0", Some("eth0"));
        check("filter-next-tc_egress-eth0", Some("eth0"));
        check("link-sk_lookup", None);
        check("services", None);
        check("link-xdp_other-eth0", None);
        assert!(is_known("link-sk_lookup") && is_known("filter-next-tc_ingress-eth0"));
        assert!(is_known("link-connect4") && is_known("link-getpeername6"));
        assert!(!is_known("link-xdp_other-eth0") && !is_known("services"));
    }
}
