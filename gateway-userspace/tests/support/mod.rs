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

/// Whether every test must run here: then one that lacks what it needs fails.
pub fn is_all_wanted() -> bool {
    std::env::var("SLUICE_TESTS").is_ok_and(|value| value == "all")
}

/// Says that a test is skipped, or fails where all tests are wanted.
#[track_caller]
#[expect(clippy::print_stdout, reason = "a test says why it was skipped")]
fn lacks(what: &str, remedy: &str) {
    assert!(!is_all_wanted(), "{what} is not here, and all tests are wanted: {remedy}");
    println!("skipped: needs {what}: {remedy}");
}

/// Whether a program is there, which a package of Debian brings.
#[track_caller]
pub fn has(program: &str, package: &str) -> bool {
    let found = std::process::Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    let is_there = found.is_ok_and(|found| found.status.success());
    if !is_there {
        lacks(program, &format!("install the package {package}"));
    }
    is_there
}

/// The program that a variable names, which `cargo xtask test` builds from a module of Go.
#[track_caller]
pub fn built(variable: &str, module: &str) -> Option<std::ffi::OsString> {
    let program = std::env::var_os(variable);
    if program.is_none() {
        lacks(variable, &format!("`cargo xtask test` sets it; `go install {module}` makes the program"));
    }
    program
}

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
