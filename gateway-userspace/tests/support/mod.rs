//! What the process-level tests share: a proxy over loopback, endpoints that answer as told, clients, snapshots.

#![allow(dead_code, unreachable_pub, reason = "each suite uses its part of these modules")]

pub mod authority;
pub mod client;
pub mod frames;
pub mod origin;
pub mod others;
pub mod proxy;
pub mod wanted;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// An address on loopback that nobody uses.
pub fn free_addr() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Waits until something holds; fails with `what` when it does not in time.
#[track_caller]
pub fn eventually(
    what: &str,
    deadline: Duration,
    mut holds: impl FnMut() -> bool,
) -> impl Future<Output = Duration> {
    let place = std::panic::Location::caller();
    let what = what.to_owned();
    async move {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < deadline, "{place}: not in {deadline:?}: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        started.elapsed()
    }
}
