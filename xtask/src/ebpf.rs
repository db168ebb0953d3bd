//! Builds the kernel object for the BPF target, and puts it where the agent's build script looks.

use std::{env, fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{setup, shell, source_hash};

/// Builds the object; with `reference`, the programs that the benchmark compares with as well.
pub(crate) fn build(reference: bool) -> Result<()> {
    setup::ensure(&[setup::Set::Build])?;
    let compiler = setup::compiler()?;
    let linker = setup::linker()?;
    // One folder for each compiler: cargo does not notice that another one made the cached artifacts.
    let folder = shell::target().join("ebpf").join(&compiler.release);
    let mut binaries = vec!["sluice-kernel"];
    if reference {
        binaries.push("sluice-reference");
    }
    let mut cargo = Command::new("cargo");
    clean_environment(&mut cargo);
    cargo
        .current_dir(shell::root())
        .args([
            "build",
            "--quiet",
            "--release",
            "--locked",
            "--package",
            "gateway-ebpf",
            "--features",
            "kernel",
        ])
        .args(["--target", setup::TARGET, "--target-dir"])
        .arg(&folder)
        .args(binaries.iter().flat_map(|binary| ["--bin", binary]))
        .env("RUSTC", &compiler.rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&linker).join("\u{1f}"))
        // For this cargo alone: build scripts of other crates would see it and change what they detect.
        .env("RUSTC_BOOTSTRAP", "1");
    if compiler.build_core {
        cargo.args(["-Z", "build-std=core"]);
    }
    shell::run(&mut cargo)?;
    for binary in binaries {
        publish(&folder.join(setup::TARGET).join("release").join(binary), binary)?;
    }
    let hash =
        source_hash::of_sources(&shell::root()).context("cannot read the sources of the kernel object")?;
    let record = shell::target().join("bpf/sluice-kernel.hash");
    if fs::read_to_string(&record).ok().as_deref() != Some(&hash) {
        fs::write(&record, hash).with_context(|| format!("cannot write {}", record.display()))?;
    }
    Ok(())
}

fn flags(linker: &Path) -> Vec<String> {
    vec![
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
        format!("-Clinker={}", linker.display()),
        // Debug info and `--btf` together name the fields in bpftool.
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        // Version 3 of the instruction set: Linux 5.12 and later. rustc tells the linker.
        "-Ctarget-cpu=v3".into(),
        // A header field is one load: the kernel allows unaligned packet access where the machine does.
        "-Ctarget-feature=+allows-misaligned-mem-access".into(),
    ]
}

fn clean_environment(cargo: &mut Command) {
    let fixed = [
        "RUSTUP_TOOLCHAIN",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
    ];
    for name in fixed {
        cargo.env_remove(name);
    }
    for (name, _) in env::vars() {
        if name.starts_with("CARGO_CFG_") || name.starts_with("CARGO_PKG_") {
            cargo.env_remove(name);
        }
    }
}

/// Copies an object only when it changed, so that the agent is not rebuilt for nothing.
fn publish(built: &Path, name: &str) -> Result<()> {
    let folder = shell::target().join("bpf");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let object = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    let published = folder.join(name);
    if fs::read(&published).ok().as_deref() != Some(&object) {
        fs::write(&published, object).with_context(|| format!("cannot write {}", published.display()))?;
    }
    Ok(())
}
