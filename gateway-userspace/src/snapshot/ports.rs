//! Checks of listeners with several ports: no port has two of them, and the kernel has room for all.

use std::{collections::HashMap, net::IpAddr, ops::RangeInclusive};

use crate::{
    limits,
    snapshot::{build::Problems, draft::DraftListener, listener::Protocol},
};

/// A range that a listener has.
type Taken<'d> = (&'d DraftListener, &'d RangeInclusive<u16>);

/// Checks all listeners. One that has every port shares them with those that have some.
pub(super) fn check(listeners: &[DraftListener], problems: &mut Problems) {
    let mut by_addr: HashMap<(IpAddr, bool), Vec<Taken<'_>>> = HashMap::new();
    let mut total = 0_usize;
    for listener in listeners {
        let (Some(addr), Some(protocol), Some(ports)) = (&listener.addr, &listener.protocol, &listener.ports)
        else {
            continue;
        };
        if addr.value.port() == 0 {
            continue;
        }
        let here = by_addr.entry((addr.value.ip(), protocol.value == Protocol::Udp)).or_default();
        let before = here.len();
        for range in &ports.value {
            let overlaps =
                |(_, taken): &&Taken<'_>| taken.start() <= range.end() && range.start() <= taken.end();
            if let Some((other, taken)) = here.iter().take(before).find(overlaps) {
                let name = other.name.as_ref().map_or("another listener", |name| name.value.as_str());
                let message = format!(
                    "{name} has ports {}-{} of {} already",
                    taken.start(),
                    taken.end(),
                    addr.value.ip()
                );
                problems.fault(ports.place, message, "write ports that no other listener has");
            }
            here.push((listener, range));
        }
        if before <= limits::PORT_RANGES && here.len() > limits::PORT_RANGES {
            let message = format!(
                "{} has more than {} ranges of ports for this protocol",
                addr.value.ip(),
                limits::PORT_RANGES
            );
            problems.fault(ports.place, message, "write fewer and wider ones, or another address");
        }
        let before = total;
        total = total.saturating_add(ports.value.len());
        if before <= limits::ALL_PORT_RANGES && total > limits::ALL_PORT_RANGES {
            let message = format!("more than {} ranges of ports in the file", limits::ALL_PORT_RANGES);
            problems.fault(ports.place, message, "write fewer and wider ones");
        }
    }
}
