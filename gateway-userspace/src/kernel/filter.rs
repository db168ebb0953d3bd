//! Filters: how programs hang at TC on kernels before 6.6, which have no links there.
//!
//! A filter stays by itself, and its name is anybody's. The pin of its program says that it is ours: it is the filter of
//! that interface and side which runs that very program.

use std::{
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
        if self.is_ingress { TcAttachType::Ingress } else { TcAttachType::Egress }
    }

    const fn parent(&self) -> tc::TcHandle {
        let minor = if self.is_ingress { tc::TcHandle::MIN_INGRESS } else { tc::TcHandle::MIN_EGRESS };
        tc::TcHandle { major: tc::TcHandle::CLSACT.major, minor }
    }
}

/// The filter that runs the program of a pin; none when there is no pin, or when the filter is gone, alone or with its
/// interface.
///
/// Dropping it would remove the filter: it must be detached, attached to, or forgotten.
pub(super) fn of_pin(pin: &Path, place: &Place) -> io::Result<Option<SchedClassifierLink>> {
    if !pin.exists() {
        return Ok(None);
    }
    let program = ProgramInfo::from_pin(pin).map_err(io::Error::other)?.id();
    let Ok(interface) = nix::net::if_::if_nametoindex(place.interface.as_str()) else { return Ok(None) };
    let Some((priority, handle)) = find(interface, place.parent(), program)?.pop() else { return Ok(None) };
    SchedClassifierLink::attached(&place.interface, place.side(), priority, handle, None).map(Some)
}

/// The filter that runs the program of a pin on an interface that has another name by now: one beyond what `pins_of` says is
/// that interface's own, hung or about to.
///
/// Dropping it would remove the filter.
pub(super) fn renamed(
    pin: &Path,
    place: &Place,
    pins_of: impl Fn(&str) -> [PathBuf; 2],
) -> io::Result<Option<SchedClassifierLink>> {
    let program = ProgramInfo::from_pin(pin).map_err(io::Error::other)?.id();
    for interface in &nix::net::if_::if_nameindex()? {
        let Ok(name) = interface.name().to_str() else { continue };
        let is_own =
            |own: &PathBuf| own != pin && ProgramInfo::from_pin(own).is_ok_and(|own| own.id() == program);
        let has_own = pins_of(name).iter().any(is_own);
        let mut filters = find(interface.index(), place.parent(), program)?;
        if filters.len() > usize::from(has_own)
            && let Some((priority, handle)) = filters.pop()
        {
            match SchedClassifierLink::attached(name, place.side(), priority, handle, None) {
                // It went away meanwhile, and its filters with it.
                Err(_) if nix::net::if_::if_nametoindex(name).is_err() => {}
                found => return found.map(Some),
            }
        }
    }
    Ok(None)
}

/// Removes a filter.
pub(super) fn detach(filter: SchedClassifierLink) -> io::Result<()> {
    filter.detach().map_err(io::Error::other)
}

/// Priority and handle of the filters that run a program.
fn find(interface: u32, parent: tc::TcHandle, program: u32) -> io::Result<Vec<(u16, TcHandle)>> {
    let interface = i32::try_from(interface).map_err(io::Error::other)?;
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = TcMessage::with_index(interface);
    request.header.parent = parent;
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
        if let Listed::Last = read(&part, program, &mut found)? {
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
fn read(mut part: &[u8], program: u32, found: &mut Vec<(u16, TcHandle)>) -> io::Result<Listed> {
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
                && runs(&filter, program)
            {
                // The upper half is the priority, the lower the protocol.
                let priority = u16::try_from(filter.header.info >> 16).map_err(io::Error::other)?;
                let handle = filter.header.handle;
                found.push((priority, TcHandle::new(handle.major, handle.minor)));
            }
        }
        // Messages begin at multiples of four bytes.
        let Some(rest) = part.get(length.next_multiple_of(4)..) else { break };
        part = rest;
    }
    Ok(Listed::More)
}

fn runs(filter: &TcMessage, program: u32) -> bool {
    let is_it =
        |option: &TcOption| matches!(option, TcOption::Bpf(TcFilterBpfOption::ProgId(id)) if *id == program);
    filter
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, TcAttribute::Options(options) if options.iter().any(is_it)))
}
