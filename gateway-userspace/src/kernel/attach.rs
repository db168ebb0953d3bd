//! Attaching: which program sits on which interface, and why.
//!
//! Links are pinned, so that packets are balanced while the agent restarts, and a new agent replaces the program of a
//! link in place. Programs of others stay where they are: an interface whose XDP hook is taken gets TC instead.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::fd::AsFd,
    path::Path,
};

use aya::{
    Ebpf,
    programs::{
        SchedClassifier, SkLookup, TcAttachType, Xdp, XdpMode,
        links::{FdLink, LinkOrder, PinnedLink},
        tc::{self, TcAttachOptions},
    },
};

use crate::kernel::{Error, object::Pins, sys};

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
    /// The hook that balances: `native XDP`, `generic XDP` or `TC`.
    pub ingress: &'static str,
    /// Why this one.
    pub why: String,
}

/// Programs and links of one loaded object.
pub(super) struct Attacher {
    object: Ebpf,
    pins: Pins,
    attached: BTreeMap<String, Attachment>,
}

const XDP: &str = "xdp_balance";
const TC_INGRESS: &str = "tc_ingress";
const TC_EGRESS: &str = "tc_egress";
const SK_LOOKUP: &str = "sk_lookup";

impl Attacher {
    /// For an object whose programs are loaded.
    pub(super) const fn new(object: Ebpf, pins: Pins) -> Self {
        Self { object, pins, attached: BTreeMap::new() }
    }

    /// What sits where.
    pub(super) const fn attached(&self) -> &BTreeMap<String, Attachment> {
        &self.attached
    }

    /// Attaches socket lookup to this process's network namespace, or replaces the program of the pinned link.
    pub(super) fn steer(&mut self) -> Result<(), Error> {
        let path = self.pins.link(SK_LOOKUP);
        let program = program::<SkLookup>(&mut self.object, SK_LOOKUP)?;
        if path.exists() {
            let fd = program.fd().map_err(|source| Error::Attach { what: SK_LOOKUP, source })?;
            let replaced = sys::open_pin(&path).and_then(|link| sys::update_link(link.as_fd(), fd.as_fd()));
            match replaced {
                Ok(()) => return Ok(()),
                // The namespace that the link belonged to is gone.
                Err(error) => {
                    tracing::info!(%error, "the pinned socket lookup is severed; attaching anew");
                    remove(&path)?;
                }
            }
        }
        let namespace =
            File::open("/proc/thread-self/ns/net").map_err(|source| Error::Namespace { source })?;
        let id = program.attach(namespace).map_err(|source| Error::Attach { what: SK_LOOKUP, source })?;
        let link = program.take_link(id).map_err(|source| Error::Attach { what: SK_LOOKUP, source })?;
        pin(link.into(), &path)
    }

    /// Attaches to an interface.
    pub(super) fn attach(&mut self, interface: &str, mode: AttachMode) -> Result<&Attachment, Error> {
        let ingress = self.ingress(interface, mode)?;
        self.classifier(interface, TC_EGRESS, TcAttachType::Egress)?;
        tracing::info!(interface, hook = ingress.ingress, why = ingress.why, "attached");
        self.attached.insert(interface.to_owned(), ingress);
        self.attached.get(interface).ok_or(Error::NoMap { name: XDP })
    }

    /// Forgets an interface that is gone; the kernel has removed the programs with it.
    pub(super) fn forget(&mut self, interface: &str) {
        if self.attached.remove(interface).is_some() {
            for name in [XDP, TC_INGRESS, TC_EGRESS] {
                drop(fs::remove_file(self.pins.link(&format!("{name}-{interface}"))));
            }
            tracing::info!(interface, "the interface is gone");
        }
    }

    fn ingress(&mut self, interface: &str, mode: AttachMode) -> Result<Attachment, Error> {
        let set = |why: &str| format!("`attach: {why}`");
        match mode {
            AttachMode::Native => {
                self.xdp(interface, XdpMode::Driver)?;
                Ok(Attachment { ingress: "native XDP", why: set("native") })
            }
            AttachMode::Generic => {
                self.xdp(interface, XdpMode::Skb)?;
                Ok(Attachment { ingress: "generic XDP", why: set("generic") })
            }
            AttachMode::Tc => {
                self.classifier(interface, TC_INGRESS, TcAttachType::Ingress)?;
                Ok(Attachment { ingress: "TC", why: set("tc") })
            }
            AttachMode::Auto => self.best(interface),
        }
    }

    fn best(&mut self, interface: &str) -> Result<Attachment, Error> {
        let native = match self.xdp(interface, XdpMode::Driver) {
            Ok(()) => return Ok(Attachment { ingress: "native XDP", why: "the driver supports it".into() }),
            Err(error) => error,
        };
        // Generic XDP copies each packet into a buffer of its own, so TC is the better second.
        let tc = match self.classifier(interface, TC_INGRESS, TcAttachType::Ingress) {
            Ok(()) => {
                return Ok(Attachment { ingress: "TC", why: format!("native XDP was refused: {native}") });
            }
            Err(error) => error,
        };
        self.xdp(interface, XdpMode::Skb)?;
        Ok(Attachment {
            ingress: "generic XDP",
            why: format!("native XDP was refused: {native}; TC was refused: {tc}"),
        })
    }

    fn xdp(&mut self, interface: &str, mode: XdpMode) -> Result<(), Error> {
        let path = self.pins.link(&format!("{XDP}-{interface}"));
        let program = program::<Xdp>(&mut self.object, XDP)?;
        let failed = |source| Error::Attach { what: XDP, source };
        if let Ok(pinned) = PinnedLink::from_pin(&path) {
            let fd = program.fd().map_err(failed)?;
            if replace(&path, fd.as_fd())? {
                drop(pinned);
                return Ok(());
            }
        }
        let id = program.attach(interface, mode).map_err(failed)?;
        let link = program.take_link(id).map_err(failed)?;
        let link: FdLink = link.try_into().map_err(|source| Error::Link { what: XDP, source })?;
        pin(link, &path)
    }

    fn classifier(&mut self, interface: &str, name: &'static str, side: TcAttachType) -> Result<(), Error> {
        let path = self.pins.link(&format!("{name}-{interface}"));
        let program = program::<SchedClassifier>(&mut self.object, name)?;
        let failed = |source| Error::Attach { what: name, source };
        if path.exists() {
            let fd = program.fd().map_err(failed)?;
            if replace(&path, fd.as_fd())? {
                return Ok(());
            }
        }
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        if let Ok(id) = program.attach_with_options(interface, side, first) {
            let link = program.take_link(id).map_err(failed)?;
            let link: FdLink = link.try_into().map_err(|source| Error::Link { what: name, source })?;
            return pin(link, &path);
        }
        // Before Linux 6.6: a filter of the clsact queueing discipline, which has no link and stays by itself.
        drop(tc::qdisc_add_clsact(interface));
        drop(tc::qdisc_detach_program(interface, side, name));
        let id = program
            .attach_with_options(interface, side, TcAttachOptions::Netlink(tc::NlOptions::default()))
            .map_err(failed)?;
        let link = program.take_link(id).map_err(failed)?;
        // Without a pin to keep it, the filter must outlive this value.
        std::mem::forget(link);
        Ok(())
    }
}

/// Loads every program into the kernel. The maps must still be open: afterwards the programs hold them.
pub(super) fn load_programs(object: &mut Ebpf) -> Result<(), Error> {
    program::<Xdp>(object, XDP)?.load().map_err(|source| verifier(XDP, source))?;
    for name in [TC_INGRESS, TC_EGRESS] {
        program::<SchedClassifier>(object, name)?.load().map_err(|source| verifier(name, source))?;
    }
    program::<SkLookup>(object, SK_LOOKUP)?.load().map_err(|source| verifier(SK_LOOKUP, source))
}

fn program<'a, P>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = object.program_mut(name).ok_or(Error::NoMap { name })?;
    program.try_into().map_err(|source| Error::Attach { what: name, source })
}

fn verifier(what: &'static str, source: aya::programs::ProgramError) -> Error {
    Error::Verifier { what, source }
}

/// Replaces the program of a pinned link; false, and the pin removed, when the link is severed.
fn replace(path: &Path, program: std::os::fd::BorrowedFd<'_>) -> Result<bool, Error> {
    let replaced = sys::open_pin(path).and_then(|link| sys::update_link(link.as_fd(), program));
    if let Err(error) = replaced {
        tracing::info!(pin = %path.display(), %error, "a pinned link is severed; attaching anew");
        remove(path)?;
        return Ok(false);
    }
    Ok(true)
}

fn pin(link: FdLink, path: &Path) -> Result<(), Error> {
    link.pin(path).map(drop).map_err(|source| Error::Pin { path: path.to_owned(), source })
}

fn remove(path: &Path) -> Result<(), Error> {
    fs::remove_file(path).map_err(|source| Error::PinFolder { path: path.to_owned(), source })
}
