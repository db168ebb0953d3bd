//! Health checks that take the way of clients' packets: what the programs at TC have to know of each of them.

use std::{io, net::IpAddr, sync::Arc};

use aya::Ebpf;
use gateway_common::{addr::Port, map, probe::Probe, service::Mode};
use parking_lot::Mutex;

use crate::kernel::{Error, map::mapped, sys::MappedRows};

/// Words of a row in the order in which they are written: the one with the port last, where a check begins.
const BEGIN: [usize; 5] = [0, 1, 2, 3, 4];
/// The other way round, where it ends.
const END: [usize; 5] = [4, 0, 1, 2, 3];

/// Where a check goes instead of straight to its endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Detour {
    /// What the packet in the tunnel is addressed to.
    pub destination: IpAddr,
    /// The kind of tunnel.
    pub mode: Mode,
}

/// The checks that are on their way.
#[derive(Debug)]
pub struct Tunnelled(Mutex<MappedRows<Probe>>);

/// One check, on its way until it is dropped.
#[derive(Debug)]
pub struct Passage {
    all: Arc<Tunnelled>,
    row: u32,
}

impl Tunnelled {
    /// Over the map of a loaded object; what an earlier agent left in it is cleared.
    pub(super) fn take(object: &Ebpf) -> Result<Self, Error> {
        let rows = mapped::<map::Probes>(object)?;
        for row in 0..rows.len() {
            clear(&rows, row);
        }
        Ok(Self(Mutex::new(rows)))
    }

    /// Says that a socket with this port is about to speak with an endpoint through its tunnel.
    ///
    /// # Errors
    /// `AddrInUse` when another socket has the row of this port; another port may be free.
    pub fn begin(self: &Arc<Self>, endpoint: IpAddr, port: u16, detour: Detour) -> io::Result<Passage> {
        let port = Port::new(port);
        let row = Probe::row(port);
        let rows = self.0.lock();
        if rows.get(row).is_none_or(|present| present.port != Port::NONE) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let probe = Probe::new(endpoint.into(), detour.destination.into(), port, detour.mode);
        rows.put(row, &probe, &BEGIN)?;
        drop(rows);
        Ok(Passage { all: Arc::clone(self), row })
    }
}

impl Passage {
    /// Whether a packet of the check went into the tunnel.
    pub fn is_used(&self) -> bool {
        self.all.0.lock().get(self.row).is_some_and(|probe| probe.sent != 0)
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        clear(&self.all.0.lock(), self.row);
    }
}

fn clear(rows: &MappedRows<Probe>, row: u32) {
    // The row is in the map: it was found there.
    drop(rows.put(row, &Probe::default(), &END));
}
