//! Copies the kernel object that `cargo xtask build-ebpf` built into the output folder, where the library embeds it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::exit,
};

#[path = "../xtask/src/source_hash.rs"]
mod source_hash;

fn main() {
    println!("cargo:rerun-if-env-changed=SLUICE_BPF_OBJECT");
    println!("cargo:rerun-if-env-changed=CARGO_TARGET_DIR");
    if let Err(message) = embed() {
        eprintln!("{message}\nrun `cargo xtask build-ebpf`, then build again");
        exit(1);
    }
}

fn embed() -> Result<(), String> {
    let out = env::var_os("OUT_DIR").map(PathBuf::from).ok_or("OUT_DIR is not set")?;
    let root = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).ok_or("CARGO_MANIFEST_DIR is not set")?;
    let root = root.parent().ok_or("the package has no parent folder")?;
    let object = match env::var_os("SLUICE_BPF_OBJECT") {
        Some(chosen) => PathBuf::from(chosen),
        None => published(root, &out)?,
    };
    println!("cargo:rerun-if-changed={}", object.display());
    fs::copy(&object, out.join("sluice-kernel"))
        .map_err(|error| format!("the kernel object {} cannot be read: {error}", object.display()))?;
    Ok(())
}

/// The object in the target folder, if it was built from the sources as they are now.
fn published(root: &Path, out: &Path) -> Result<PathBuf, String> {
    for file in
        source_hash::files(root).map_err(|error| format!("cannot list the kernel's sources: {error}"))?
    {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let folder = bpf_folder(root, out);
    let record = folder.join("sluice-kernel.hash");
    println!("cargo:rerun-if-changed={}", record.display());
    let recorded = fs::read_to_string(&record)
        .map_err(|_| format!("there is no kernel object in {}", folder.display()))?;
    let present = source_hash::of_sources(root)
        .map_err(|error| format!("cannot read the kernel's sources: {error}"))?;
    if recorded != present {
        return Err(format!("the kernel object in {} is older than its sources", folder.display()));
    }
    Ok(folder.join("sluice-kernel"))
}

/// `bpf` in the target folder: as cargo was told, or the ancestor of the output folder that has one.
fn bpf_folder(root: &Path, out: &Path) -> PathBuf {
    if let Some(target) = env::var_os("CARGO_TARGET_DIR") {
        return PathBuf::from(target).join("bpf");
    }
    out.ancestors()
        .map(|folder| folder.join("bpf"))
        .find(|folder| folder.is_dir())
        .unwrap_or_else(|| root.join("target/bpf"))
}
