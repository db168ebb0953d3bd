//! Puts the kernel object where the agent embeds it. It only copies: building it is `cargo xtask build-ebpf`, because a
//! second cargo inside this one would need another compiler and would wait for the lock that this one holds.
#![allow(clippy::disallowed_methods, reason = "a build script is told everything by its environment")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

#[path = "../xtask/src/source_hash.rs"]
mod source_hash;

/// Names an object to embed instead of the one that xtask built, whatever its age.
const OBJECT_VARIABLE: &str = "SLUICE_BPF_OBJECT";

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("cargo:warning={reason}");
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<(), String> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed={OBJECT_VARIABLE}");
    println!("cargo:rerun-if-env-changed=CARGO_TARGET_DIR");
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let object = match env::var_os(OBJECT_VARIABLE) {
        Some(named) => PathBuf::from(named),
        None => built_object(&out_dir)?,
    };
    println!("cargo:rerun-if-changed={}", object.display());
    let copy = out_dir.join("sluice-kernel");
    fs::copy(&object, &copy).map_err(|e| {
        format!("cannot copy the kernel object {} to {}: {e}", object.display(), copy.display())
    })?;
    Ok(())
}

/// The object that xtask built, after proof that it was built from the sources as they are now.
fn built_object(out_dir: &Path) -> Result<PathBuf, String> {
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let root = package.parent().ok_or("the agent's crate has no parent folder")?;
    for source in source_hash::SOURCES {
        println!("cargo:rerun-if-changed={}", root.join(source).display());
    }
    println!("cargo:rerun-if-changed={}", root.join("xtask/src/source_hash.rs").display());

    let objects: Vec<PathBuf> =
        target_dirs(out_dir, root).iter().map(|dir| dir.join("bpf/sluice-kernel")).collect();
    let Some(object) = objects.iter().find(|object| object.is_file()) else {
        let expected = objects.first().map(|object| object.display().to_string()).unwrap_or_default();
        return Err(format!("the kernel object is missing at {expected}: run `cargo xtask build-ebpf`"));
    };
    let record = object.with_extension("hash");
    println!("cargo:rerun-if-changed={}", record.display());
    let recorded = fs::read_to_string(&record)
        .map_err(|e| format!("cannot read {} ({e}): run `cargo xtask build-ebpf`", record.display()))?;
    let current =
        source_hash::of(root).map_err(|e| format!("cannot read the kernel object's sources: {e}"))?;
    if recorded.trim() != current {
        return Err(format!(
            "the kernel object {} is older than its sources: run `cargo xtask build-ebpf`",
            object.display()
        ));
    }
    Ok(object.clone())
}

/// Where xtask may have put the object, the likeliest first. `OUT_DIR` is `<target>/[<triple>/]<profile>/build/<package>/out`
/// and is right however the target folder was chosen; the others serve a build that was given a folder of its own.
fn target_dirs(out_dir: &Path, root: &Path) -> Vec<PathBuf> {
    let above_profile = out_dir.ancestors().skip(4).take(2).map(Path::to_path_buf);
    let named = env::var_os("CARGO_TARGET_DIR").map(|dir| root.join(dir));
    above_profile.chain(named).chain([root.join("target")]).collect()
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("cargo did not set {name}: {e}"))
}
