//! What this kernel and this process can do, in the words of an operator.

use std::path::Path;

use aya::{maps::MapType, programs::ProgramType, sys};

use crate::kernel::sys::has_atomics;

/// `CAP_NET_ADMIN` and `CAP_BPF`, by their numbers in `capabilities(7)`.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// What is missing for the kernel side, each with its remedy; empty when nothing is.
pub fn missing() -> Vec<String> {
    let mut missing = Vec::new();
    let capabilities = effective_capabilities();
    let has = |capability: u32| capabilities & (1 << capability) != 0;
    if !has(CAP_NET_ADMIN) || !(has(CAP_BPF) || has(CAP_SYS_ADMIN)) {
        missing.push(
            "capabilities CAP_BPF and CAP_NET_ADMIN (run as root, or see deploy/sluice.service)".to_owned(),
        );
        // Without them every other question is answered by the same refusal.
        return missing;
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        missing.push("type information of the kernel (a kernel with CONFIG_DEBUG_INFO_BTF)".to_owned());
    }
    let programs = [
        (ProgramType::Xdp, "XDP programs"),
        (ProgramType::SchedClassifier, "TC programs"),
        (ProgramType::SkLookup, "socket lookup programs (Linux 5.9)"),
    ];
    for (program, name) in programs {
        if !matches!(sys::is_program_supported(program), Ok(true)) {
            missing.push(format!("{name} (Linux 5.15 or later has all that is needed)"));
        }
    }
    if !has_atomics() {
        missing.push(
            "atomic operations of kernel programs (Linux 5.15 or later has all that is needed)".to_owned(),
        );
    }
    let maps = [
        (MapType::LruHash, "LRU hash maps"),
        (MapType::SockMap, "socket maps"),
        (MapType::PerCpuArray, "per-CPU maps"),
        (MapType::ProgramArray, "program arrays"),
    ];
    for (map, name) in maps {
        if !matches!(sys::is_map_supported(map), Ok(true)) {
            missing.push(format!("{name} (Linux 5.15 or later has all that is needed)"));
        }
    }
    missing
}

/// What `net.ipv4.tcp_syncookies` is in this network namespace: whether the stack takes cookies back, and when it gives some.
/// None when it does not say.
pub fn tcp_syncookies() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies").ok()?.trim().parse().ok()
}

fn effective_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}
