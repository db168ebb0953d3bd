//! Interfaces, as far as they matter for balancing.

use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};

/// An interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its link-layer address, when it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// What it is.
    pub kind: LinkKind,
    /// Bytes of an IP packet that it takes; zero when it does not tell, or takes more than a packet can have.
    pub mtu: u16,
    /// The interface that it lies over.
    pub parent: Option<u32>,
}

/// Kinds of interfaces, as far as they differ for us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LinkKind {
    /// The node itself.
    Loopback,
    /// A network card.
    Hardware,
    /// One end of a veth pair.
    Veth,
    /// A VLAN of another interface.
    Vlan,
    /// Several network cards as one.
    Bond,
    /// A bridge, a tunnel, or something else that software makes.
    Other,
    /// Something whose packets have no Ethernet header: the programs cannot read them.
    Headless,
}

impl Link {
    /// Bytes of an IP packet that a route over it takes; of both, zero means that there is no bound.
    pub(super) fn narrower(&self, route_mtu: u32) -> u16 {
        match u16::try_from(route_mtu) {
            Ok(route) if route != 0 && (self.mtu == 0 || route < self.mtu) => route,
            Ok(_) | Err(_) => self.mtu,
        }
    }
}

impl LinkKind {
    /// Whether it takes the frames that XDP sends, whatever else is set up.
    pub const fn takes_frames(self) -> bool {
        matches!(self, Self::Hardware)
    }

    /// Whether it may take them: that depends on the other end of a veth, and on the cards of a bond (Linux 5.15).
    pub const fn may_take_frames(self) -> bool {
        matches!(self, Self::Hardware | Self::Veth | Self::Bond)
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "of some sixty attributes four matter here")]
pub(super) fn read(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        kind: LinkKind::Hardware,
        mtu: 0,
        parent: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = u16::try_from(*mtu).unwrap_or(0),
            LinkAttribute::Link(parent) => link.parent = Some(*parent),
            LinkAttribute::Address(bytes) => link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Veth) => link.kind = LinkKind::Veth,
                        LinkInfo::Kind(InfoKind::Vlan) => link.kind = LinkKind::Vlan,
                        LinkInfo::Kind(InfoKind::Bond) => link.kind = LinkKind::Bond,
                        LinkInfo::Kind(_) => link.kind = LinkKind::Other,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // What a link is made of says less than what its packets look like.
    if message.header.flags.contains(LinkFlags::Loopback) {
        link.kind = LinkKind::Loopback;
    } else if message.header.link_layer_type != LinkLayerType::Ether {
        link.kind = LinkKind::Headless;
    }
    link
}
