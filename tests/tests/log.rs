//! The build for debugging: each dropped packet leaves a record, with the hook and the reason.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a suite fails loudly"
)]

use std::sync::{Arc, Mutex};

use aya_log::EbpfLogger;
use gateway_common::{
    counter::{Hook, Reason},
    flow::Tick,
};
use gateway_tests::{
    kernel_run::{Kernel, object_path},
    packet::tcp,
    privilege,
    world::World,
};
use log::{Log, Metadata, Record};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[test]
fn dropped_packets_leave_a_record_and_others_do_not() {
    if !privilege::require("running kernel programs") {
        return;
    }
    let path = object_path().unwrap().with_file_name("sluice-kernel-log");
    let mut kernel = Kernel::load_from(&path).expect("cargo xtask test builds it");
    let lines = Lines::default();
    let mut logger = EbpfLogger::init_with_logger(kernel.object(), lines.clone()).unwrap();
    kernel.fill(&World::new(Tick::default()).tables).unwrap();
    let ours = tcp("192.0.2.9:40000", "198.51.100.1:443").bytes();
    let cut = &ours[..40];
    let stranger = tcp("192.0.2.9:40000", "203.0.113.77:443").bytes();
    for (hook, packet) in [
        (Hook::XdpBalance, cut),
        (Hook::TcIngress, cut),
        (Hook::XdpBalance, stranger.as_slice()),
        (Hook::TcIngress, stranger.as_slice()),
    ] {
        drop(kernel.run(hook, packet).unwrap());
    }
    logger.flush();
    let told =
        |hook: Hook| format!("{} dropped a packet: reason {}", hook.name(), Reason::BadIpHeader.number());
    assert_eq!(*lines.0.lock().unwrap(), [told(Hook::XdpBalance), told(Hook::TcIngress)]);
}
