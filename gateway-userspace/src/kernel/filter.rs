//! Filters: how programs hang at TC on kernels before 6.6, which have no links there.
//!
//! A filter stays by itself, and its name is anybody's. The pin of its program says that it is ours: it is the filter of
//! that interface and side which runs that very program.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use aya::programs::{
    ProgramInfo, TcAttachType,
    links::Link as _,
    tc::{SchedClassifierLink, TcHandle},
};
use rtnetlink::{
    packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        tc::{self, TcAttribute, TcFilterBpfOption, TcMessage, TcOption},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// A part of the kernel's list is at most half of this.
const PART: usize = 64 << 10;

/// Where a filter of ours stands: what its pin is named after.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Place {
    /// Name of the program.
    pub(super) hook: &'static str,
    /// Name of the interface.
    pub(super) interface: String,
    /// Whether it is on ingress or on egress.
    pub(super) is_ingress: bool,
}

impl Place {
    /// The side, as programs are attached to it.
    pub(super) const fn side(&self) -> TcAttachType {
        side(self.is_ingress)
    }
}

const fn side(is_ingress: bool) -> TcAttachType {
    if is_ingress { TcAttachType::Ingress } else { TcAttachType::Egress }
}

fn is_there(interface: &str) -> bool {
    nix::net::if_::if_nametoindex(interface).is_ok()
}

/// The filter that runs the program of a pin; none when there is no pin, or when the filter is gone, alone or with its
/// interface.
///
/// Dropping it would remove the filter: it must be detached, attached to, or forgotten.
pub(super) fn of_pin(pin: &Path, place: &Place) -> io::Result<Option<SchedClassifierLink>> {
    if !pin.exists() {
        return Ok(None);
    }
    let program = program_of(pin)?;
    let Ok(interface) = nix::net::if_::if_nametoindex(place.interface.as_str()) else { return Ok(None) };
    let mut filters = list(interface, place.is_ingress)?;
    filters.retain(|filter| filter.program == program);
    let Some(Filter { priority, handle, .. }) = filters.pop() else { return Ok(None) };
    match SchedClassifierLink::attached(&place.interface, place.side(), priority, handle, None) {
        Err(_) if !is_there(&place.interface) => Ok(None),
        found => found.map(Some),
    }
}

/// A filter that runs a program.
#[derive(Debug)]
struct Filter {
    program: u32,
    priority: u16,
    handle: TcHandle,
}

/// Filters that no pin names, for their interface has another name by now: listed once for all that is asked in one pass.
/// Nobody else may hang or remove filters of ours meanwhile.
#[derive(Debug, Default)]
pub(super) struct Strays {
    listed: Option<Vec<Stray>>,
}

#[derive(Debug)]
struct Stray {
    interface: String,
    is_ingress: bool,
    filter: Filter,
}

impl Strays {
    /// The filter that runs the program of a pin whose own interface has none, and the interface where it hangs; on any side
    /// where the pin does not say which. It is found once.
    ///
    /// Dropping it would remove the filter.
    pub(super) fn find(
        &mut self,
        pin: &Path,
        is_ingress: Option<bool>,
        pins: impl FnOnce() -> io::Result<Vec<(PathBuf, Place)>>,
    ) -> io::Result<Option<(SchedClassifierLink, String)>> {
        let program = program_of(pin)?;
        let strays = match &mut self.listed {
            Some(strays) => strays,
            unknown => unknown.insert(strays(pins()?)?),
        };
        let is_it = |stray: &Stray| {
            is_ingress.is_none_or(|is_ingress| stray.is_ingress == is_ingress)
                && stray.filter.program == program
        };
        while let Some(at) = strays.iter().position(is_it) {
            let Stray { interface, is_ingress, filter } = strays.swap_remove(at);
            let Filter { priority, handle, .. } = filter;
            match SchedClassifierLink::attached(&interface, side(is_ingress), priority, handle, None) {
                // It went away meanwhile, and its filters with it.
                Err(_) if !is_there(&interface) => {}
                found => return found.map(|filter| Some((filter, interface))),
            }
        }
        Ok(None)
    }
}

/// The filters that none of these pins names.
fn strays(pins: Vec<(PathBuf, Place)>) -> io::Result<Vec<Stray>> {
    let named = |(pin, place): (PathBuf, Place)| {
        program_of(&pin).ok().map(|program| (place.interface, place.is_ingress, program))
    };
    let mut named: BTreeSet<(String, bool, u32)> = pins.into_iter().filter_map(named).collect();
    let mut strays = Vec::new();
    for interface in &nix::net::if_::if_nameindex()? {
        let Ok(name) = interface.name().to_str() else { continue };
        for is_ingress in [true, false] {
            // Of several the last is the one that is named, as `of_pin` has it.
            for filter in list(interface.index(), is_ingress)?.into_iter().rev() {
                if !named.remove(&(name.to_owned(), is_ingress, filter.program)) {
                    strays.push(Stray { interface: name.to_owned(), is_ingress, filter });
                }
            }
        }
    }
    Ok(strays)
}

/// The number of a pinned program.
fn program_of(pin: &Path) -> io::Result<u32> {
    ProgramInfo::from_pin(pin).map(|program| program.id()).map_err(io::Error::other)
}

/// Removes a filter from an interface; one that went away with its interface is as good.
pub(super) fn detach(filter: SchedClassifierLink, interface: &str) -> io::Result<()> {
    match filter.detach() {
        Err(_) if !is_there(interface) => Ok(()),
        detached => detached.map_err(io::Error::other),
    }
}

/// What hangs at one side of an interface.
fn list(interface: u32, is_ingress: bool) -> io::Result<Vec<Filter>> {
    let interface = i32::try_from(interface).map_err(io::Error::other)?;
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = TcMessage::with_index(interface);
    let minor = if is_ingress { tc::TcHandle::MIN_INGRESS } else { tc::TcHandle::MIN_EGRESS };
    request.header.parent = tc::TcHandle { major: tc::TcHandle::CLSACT.major, minor };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut request = NetlinkMessage::new(header, RouteNetlinkMessage::GetTrafficFilter(request).into());
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut found = Vec::new();
    let mut part = Vec::with_capacity(PART);
    loop {
        part.clear();
        if socket.recv(&mut part, 0)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Listed::Last = read(&part, &mut found)? {
            return Ok(found);
        }
    }
}

/// Whether more of the list follows.
enum Listed {
    More,
    Last,
}

/// Reads one part of the list.
fn read(mut part: &[u8], found: &mut Vec<Filter>) -> io::Result<Listed> {
    while let Ok(message) = NetlinkBuffer::new_checked(part) {
        let length = usize::try_from(message.length()).map_err(io::Error::other)?;
        // Filters of others may be of kinds that cannot be parsed; ours can.
        if let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(part) {
            if let NetlinkPayload::Done(_) = message.payload {
                return Ok(Listed::Last);
            }
            if let NetlinkPayload::Error(error) = &message.payload
                && error.code.is_some()
            {
                return Err(error.to_io());
            }
            if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(filter)) =
                message.payload
                && let Some(program) = program(&filter)
            {
                // The upper half is the priority, the lower the protocol.
                let priority = u16::try_from(filter.header.info >> 16).map_err(io::Error::other)?;
                let handle = filter.header.handle;
                let handle = TcHandle::new(handle.major, handle.minor);
                found.push(Filter { program, priority, handle });
            }
        }
        // Messages begin at multiples of four bytes.
        let Some(rest) = part.get(length.next_multiple_of(4)..) else { break };
        part = rest;
    }
    Ok(Listed::More)
}

/// The number of the program that a filter runs; none of a filter of another kind.
fn program(filter: &TcMessage) -> Option<u32> {
    let options = filter.attributes.iter().filter_map(|attribute| {
        if let TcAttribute::Options(options) = attribute { Some(options) } else { None }
    });
    options.flatten().find_map(|option| {
        if let TcOption::Bpf(TcFilterBpfOption::ProgId(id)) = option { Some(*id) } else { None }
    })
}
