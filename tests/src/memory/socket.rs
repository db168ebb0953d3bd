//! Calls of processes at their sockets, in memory.

use std::rc::Rc;

use gateway_common::{
    addr::{Addr, Port, Protocol},
    counter::{Hook, Reason},
    socket::{AskedFor, SocketPeer, SocketScope},
};
use gateway_ebpf::{
    env::Maps as _,
    socket::{Call, Sockets, restore, translate},
};

use super::{MemoryMaps, Run};
use crate::tables::Tables;

/// A process's call at a hook of its socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SocketCall {
    /// The address and port that it names, or would answer with; afterwards, what it became.
    pub peer: (Addr, Port),
    /// The protocol of the socket.
    pub protocol: Protocol,
    /// The kernel's number of the socket.
    pub cookie: u64,
    /// The mark of the socket.
    pub mark: u32,
    /// The kernel's number of its network namespace.
    pub network: u64,
}

impl Run {
    /// Runs a call over the tables, and leaves in them and in the call what changed. Returns the code of the program.
    ///
    /// # Panics
    /// When the hook is none of a socket.
    pub fn call(&self, tables: &mut Tables, call: &mut SocketCall) -> u32 {
        let maps = MemoryMaps::new(std::mem::take(tables), self.now);
        let mut at = At { call, hook: self.hook };
        let verdict = match self.hook {
            Hook::Connect4 | Hook::Connect6 | Hook::SendMsg4 | Hook::SendMsg6 => translate(&maps, &mut at),
            Hook::RecvMsg4 | Hook::RecvMsg6 | Hook::GetPeerName4 | Hook::GetPeerName6 => {
                restore(&maps, &mut at)
            }
            Hook::XdpBalance
            | Hook::TcIngress
            | Hook::TcEgress
            | Hook::SkLookup
            | Hook::TcReceive
            | Hook::TcProbeOut
            | Hook::TcProbeIn => panic!("no hook of a socket"),
        };
        *tables = maps.into_tables();
        verdict.sk_code()
    }
}

struct At<'a> {
    call: &'a mut SocketCall,
    hook: Hook,
}

impl Call for At<'_> {
    fn hook(&self) -> Hook {
        self.hook
    }

    fn peer(&self) -> (Addr, Port) {
        self.call.peer
    }

    fn protocol(&self) -> Protocol {
        self.call.protocol
    }

    fn cookie(&self) -> u64 {
        self.call.cookie
    }

    fn mark(&self) -> u32 {
        self.call.mark
    }

    fn network(&self) -> u64 {
        self.call.network
    }

    fn name(&mut self, addr: Addr, port: Port) {
        self.call.peer = (addr, port);
    }
}

impl Sockets for MemoryMaps {
    fn socket_scope(&self) -> Option<Rc<SocketScope>> {
        Some(Rc::new(self.tables.borrow().socket_scope))
    }

    fn asked_for(&self, peer: &SocketPeer) -> Option<AskedFor> {
        self.tables.borrow().asked.get(peer).copied()
    }

    fn note_asked(&self, peer: &SocketPeer, asked: &AskedFor) -> bool {
        let mut tables = self.tables.borrow_mut();
        let has_room = !tables.is_asked_full;
        if has_room {
            tables.asked.insert(*peer, *asked);
        }
        has_room
    }

    fn random(&self) -> u32 {
        self.tables.borrow().random
    }

    fn count_call(&self, hook: Hook, reason: Reason) {
        self.count_packet(hook, reason, 0);
    }

    fn count_flow(&self, service: u32, row: u32) {
        self.count_service(service, |count| count.new_flows += 1);
        self.count_endpoint(row, |count| count.new_flows += 1);
    }

    fn count_refused(&self, service: u32, reason: Reason) {
        self.count_service(service, |count| count.dropped += 1);
        self.count_service_drop(service, reason);
    }
}
