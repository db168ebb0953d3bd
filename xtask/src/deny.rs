//! What may be among the dependencies: the rules of `deny.toml`, held without a tool that would have to be built first,
//! and which of our crates may depend on what. `cargo deny` reads the same file; it also knows advisories.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{license, process, workspace::Workspace};

/// All that our crates may depend on where that is a rule. What is not listed is free.
const CRATES: [(&str, &[&str]); 3] = [
    // Every byte that crosses the kernel line is plain data.
    ("gateway-common", &["bytemuck"]),
    // It is built for the kernel.
    ("gateway-ebpf", &["gateway-common", "bytemuck", "aya-ebpf", "aya-log-ebpf"]),
    // It builds what the other crates embed, so it cannot need them.
    ("xtask", &["anyhow", "clap", "serde", "serde_json", "toml"]),
];

/// The part of `deny.toml` that is held here.
#[derive(Debug, Deserialize)]
struct Rules {
    bans: Bans,
    licenses: Licenses,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Ban>,
    skip: Vec<Ban>,
}

/// A crate, with `@` and the beginning of a version where one is meant, and why.
#[derive(Debug, Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

/// One package of the graph that is built.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Package {
    name: String,
    version: String,
    /// What cargo shows when it does not come from the public registry: a folder or an address.
    origin: Option<String>,
    license: String,
}

/// Checks the graph and prints every fault.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let path = workspace.root.join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let rules: Rules =
        toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))?;
    let packages = packages(workspace)?;
    let mut faults = Vec::new();
    bans(&rules.bans, &packages, &mut faults);
    duplicates(&rules.bans.skip, &packages, &mut faults);
    licenses(&rules.licenses.allow, &packages, &mut faults);
    sources(workspace, &packages, &mut faults);
    edges(workspace, &mut faults)?;
    for fault in &faults {
        println!("deny: {fault}");
    }
    if !faults.is_empty() {
        bail!("deny: {} faults in {} packages", faults.len(), packages.len());
    }
    println!("deny: {} packages, no faults", packages.len());
    Ok(())
}

/// The packages that any of our crates is built from, on any platform. From `cargo tree`, because the lock file and
/// `cargo metadata` also list what an optional feature that nobody turns on would need.
fn packages(workspace: &Workspace) -> Result<BTreeSet<Package>> {
    let mut command = process::cargo();
    command.current_dir(&workspace.root).args([
        "tree",
        "--workspace",
        "--all-features",
        "--target",
        "all",
        "--locked",
    ]);
    command.args(["--edges", "normal,build,dev", "--prefix", "none", "--no-dedupe", "--format", "{p}|{l}"]);
    let text =
        process::output(&mut command).context("`cargo tree --locked` failed: is Cargo.lock up to date?")?;
    Ok(text.lines().filter_map(package).collect())
}

/// Reads `name v1.2.3 (origin)|license`.
fn package(line: &str) -> Option<Package> {
    let (package, license) = line.split_once('|')?;
    let mut words = package.split(' ');
    let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
    let brackets = words.map(|word| word.trim_matches(['(', ')'])).filter(|word| *word != "proc-macro");
    Some(Package {
        name: name.to_owned(),
        version: version.to_owned(),
        origin: brackets.map(str::to_owned).next(),
        license: license.to_owned(),
    })
}

/// Whether `spec`, as in `syn` or `syn@2`, means this package.
fn means(spec: &str, package: &Package) -> bool {
    let (name, version) = spec.split_once('@').unwrap_or((spec, ""));
    let version_fits = package.version == version || package.version.starts_with(&format!("{version}."));
    name == package.name && (version.is_empty() || version_fits)
}

fn bans(bans: &Bans, packages: &BTreeSet<Package>, faults: &mut Vec<String>) {
    for ban in &bans.deny {
        for package in packages.iter().filter(|package| means(&ban.name, package)) {
            faults.push(format!(
                "{} {} is banned: {}; see who brings it with `cargo tree -i {} --target all`",
                package.name, package.version, ban.reason, package.name
            ));
        }
    }
}

fn duplicates(skips: &[Ban], packages: &BTreeSet<Package>, faults: &mut Vec<String>) {
    for skip in skips.iter().filter(|skip| !packages.iter().any(|package| means(&skip.name, package))) {
        faults.push(format!("{} is skipped in deny.toml, but it is not there: remove the line", skip.name));
    }
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages.iter().filter(|package| !skips.iter().any(|skip| means(&skip.name, package))) {
        versions.entry(&package.name).or_default().push(&package.version);
    }
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        faults.push(format!(
            "{name} is there more than once: {}; bring them together, or list one in `skip` of deny.toml with a reason",
            versions.join(", ")
        ));
    }
}

fn licenses(allowed: &BTreeSet<String>, packages: &BTreeSet<Package>, faults: &mut Vec<String>) {
    for package in packages {
        if !license::is_allowed(&package.license, allowed) {
            faults.push(format!(
                "{} {}: the license `{}` is not among those that deny.toml allows",
                package.name, package.version, package.license
            ));
        }
    }
}

fn sources(workspace: &Workspace, packages: &BTreeSet<Package>, faults: &mut Vec<String>) {
    for package in packages {
        let Some(origin) = &package.origin else { continue };
        if !std::path::Path::new(origin).starts_with(&workspace.root) {
            faults.push(format!(
                "{} {} comes from {origin}: only the public registry and this workspace are allowed",
                package.name, package.version
            ));
        }
    }
}

/// Checks what our own crates depend on, by their manifests.
fn edges(workspace: &Workspace, faults: &mut Vec<String>) -> Result<()> {
    for (name, allowed) in CRATES {
        let path = workspace.root.join(name).join("Cargo.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let manifest: toml::Table =
            toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))?;
        let dependencies = manifest.get("dependencies").and_then(toml::Value::as_table);
        for dependency in dependencies.into_iter().flat_map(toml::Table::keys) {
            if !allowed.contains(&dependency.as_str()) {
                faults.push(format!(
                    "{name} depends on {dependency}: it may depend on {} only",
                    allowed.join(", ")
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(lines: &[&str]) -> BTreeSet<Package> {
        lines.iter().filter_map(|line| package(line)).collect()
    }

    fn ban(name: &str) -> Ban {
        Ban { name: name.to_owned(), reason: "it is so".to_owned() }
    }

    #[test]
    fn a_second_version_needs_a_reason() {
        let packages = graph(&["syn v2.0.1 (proc-macro)|MIT", "syn v3.0.0|MIT", "serde v1.0.0|MIT"]);
        let mut faults = Vec::new();
        duplicates(&[ban("syn@2")], &packages, &mut faults);
        assert!(faults.is_empty(), "{faults:?}");
        duplicates(&[], &packages, &mut faults);
        assert!(faults[0].starts_with("syn is there more than once: 2.0.1, 3.0.0"), "{faults:?}");
        faults.clear();
        duplicates(&[ban("syn@2"), ban("gone")], &packages, &mut faults);
        assert!(faults[0].starts_with("gone is skipped"), "{faults:?}");
    }

    #[test]
    fn versions_are_compared_by_their_parts() {
        let package = package("syn v20.1.0|MIT").expect("a package");
        assert!(!means("syn@2", &package));
        assert!(means("syn@20", &package));
        assert!(means("syn", &package));
    }

    #[test]
    fn banned_crates_and_foreign_sources_are_found() {
        let packages = graph(&["ring v0.17.0|MIT", "odd v1.0.0 (https://example.com/odd#1)|MIT"]);
        let mut faults = Vec::new();
        bans(&Bans { deny: vec![ban("ring")], skip: Vec::new() }, &packages, &mut faults);
        let workspace = Workspace { root: "/sluice".into(), target: "/sluice/target".into() };
        sources(&workspace, &packages, &mut faults);
        assert_eq!(faults.len(), 2, "{faults:?}");
    }
}
