//! Virtual addresses on interfaces: the stack answers ARP and neighbor solicitations for what is there.
//!
//! A local route is enough for ARP as long as `arp_ignore` is 0, and never for neighbor discovery. What the agent assigned
//! is marked like its routes, and no connection of this node takes it as its source unless asked to: it has the scope of
//! the host (IPv4) or is deprecated (IPv6).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo,
};

use super::{Error, Netlink, ROUTE_PROTOCOL, refused};

/// An interface by its index, and an address there.
pub type Assignment = (u32, IpAddr);

impl Netlink {
    /// Assigns addresses to interfaces, and takes back what this agent assigned and nobody wants any more. Says what is new;
    /// an address that somebody else assigned is left as it is.
    ///
    /// # Errors
    /// When the kernel refuses, or does not keep the mark (before Linux 5.18): nothing is left there then.
    pub async fn set_assigned(&self, wanted: &BTreeSet<Assignment>) -> Result<Vec<Assignment>, Error> {
        let mine = self.assigned_messages().await?;
        let mut added = Vec::new();
        for (index, addr) in wanted.iter().filter(|at| !mine.contains_key(at)) {
            match self.assign(*index, *addr).await {
                Ok(()) => added.push((*index, *addr)),
                Err(rtnetlink::Error::NetlinkError(error)) if is_there(&error) => {}
                Err(error) => {
                    return Err(refused(&format!("assign {addr} to interface {index}"))(error));
                }
            }
        }
        if !added.is_empty() {
            self.check_marks(&added).await?;
        }
        for (at, message) in mine {
            if !wanted.contains(&at) {
                self.unassign(at, message).await?;
                tracing::info!(addr = %at.1, interface = at.0, "took a virtual address from an interface");
            }
        }
        for (index, addr) in &added {
            tracing::info!(%addr, interface = index, "assigned a virtual address to an interface");
        }
        Ok(added)
    }

    /// What this agent, or one before it, assigned.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn assigned(&self) -> Result<Vec<Assignment>, Error> {
        Ok(self.assigned_messages().await?.into_keys().collect())
    }

    async fn assign(&self, index: u32, addr: IpAddr) -> Result<(), rtnetlink::Error> {
        let prefix_bits = if addr.is_ipv4() { 32 } else { 128 };
        let mut request = self.handle.address().add(index, addr, prefix_bits);
        let message = request.message_mut();
        if addr.is_ipv4() {
            message.header.scope = AddressScope::Host;
        } else {
            // Whoever had the address before is leaving: to look for it first would only take time.
            let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
            message.attributes.push(AddressAttribute::Flags(flags));
            let mut life = CacheInfo::default();
            (life.ifa_preferred, life.ifa_valid) = (0, u32::MAX);
            message.attributes.push(AddressAttribute::CacheInfo(life));
        }
        message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(ROUTE_PROTOCOL)));
        request.execute().await
    }

    async fn unassign(&self, (index, addr): Assignment, message: AddressMessage) -> Result<(), Error> {
        let what = format!("take {addr} from interface {index}");
        self.handle.address().del(message).execute().await.map_err(refused(&what))
    }

    /// An older kernel takes the address and drops the mark by which it is found again.
    async fn check_marks(&self, added: &[Assignment]) -> Result<(), Error> {
        let mine = self.assigned_messages().await?;
        let Some((index, addr)) = added.iter().find(|at| !mine.contains_key(at)) else { return Ok(()) };
        for (at, message) in self.addresses().await? {
            if added.contains(&at) {
                self.unassign(at, message).await?;
            }
        }
        Err(Error::Unmarked { index: *index, addr: *addr })
    }

    async fn assigned_messages(&self) -> Result<BTreeMap<Assignment, AddressMessage>, Error> {
        let mark = AddressAttribute::Protocol(AddressProtocol::Other(ROUTE_PROTOCOL));
        let all = self.addresses().await?.into_iter();
        Ok(all.filter(|(_, message)| message.attributes.contains(&mark)).collect())
    }

    async fn addresses(&self) -> Result<Vec<(Assignment, AddressMessage)>, Error> {
        let mut found = Vec::new();
        let mut addresses = Box::pin(self.handle.address().get().execute());
        while let Some(message) = addresses.try_next().await.map_err(refused("list addresses"))? {
            if let Some(addr) = address(&message) {
                found.push(((message.header.index, addr), message));
            }
        }
        Ok(found)
    }
}

/// The address itself; of IPv4 the local one, which the other end of a link may differ from.
#[expect(clippy::wildcard_enum_match_arm, reason = "of a dozen attributes two matter here")]
fn address(message: &AddressMessage) -> Option<IpAddr> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(addr) => return Some(*addr),
            AddressAttribute::Address(addr) => found = Some(*addr),
            _ => {}
        }
    }
    found
}

fn is_there(error: &rtnetlink::packet_core::ErrorMessage) -> bool {
    error.to_io().kind() == std::io::ErrorKind::AlreadyExists
}
