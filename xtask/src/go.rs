//! Tools that only Go builds, and a Go that can build them. Nothing of the agent depends on them; the tests that need them
//! say that they are skipped where they are missing, and fail where every test is wanted.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    apt::{self, Package, Proof},
    process,
    workspace::Workspace,
};

/// The oldest Go that fetches a newer one by itself where a module asks for it.
const OLDEST: Version = Version(1, 21);

/// What is used where Go is missing or older. The modules' proxy has it like any module, so that an older Go is enough to
/// fetch it, and to check it against the modules' database of checksums.
const FETCHED: &str = "go1.26.8";

/// Debian's, whatever its age.
const DEBIAN: Package = Package {
    name: "golang-go",
    proof: Proof::Program("go"),
    why: "building h2spec and the suite of gRPC, which test HTTP/2 and gRPC",
};

/// A program, and how the tests find it.
struct Tool {
    /// The variable that names the program to the tests.
    variable: &'static str,
    package: &'static str,
    version: &'static str,
}

const TOOLS: [Tool; 3] = [
    // The HTTP/2 conformance suite that somebody else wrote; older than modules, hence the suffix.
    Tool {
        variable: "SLUICE_H2SPEC",
        package: "github.com/summerwind/h2spec/cmd/h2spec",
        version: "v2.2.1+incompatible",
    },
    // Both ends of what implementations of gRPC prove to each other.
    Tool {
        variable: "SLUICE_GRPC_CLIENT",
        package: "google.golang.org/grpc/interop/client",
        version: "v1.83.2",
    },
    Tool {
        variable: "SLUICE_GRPC_SERVER",
        package: "google.golang.org/grpc/interop/server",
        version: "v1.83.2",
    },
];

/// Installs the programs into the target folder; their names in the environment of tests, and where they are.
pub(crate) fn ensure(workspace: &Workspace) -> Result<Vec<(&'static str, PathBuf)>> {
    let folder = workspace.target.join("go");
    let mut compiler = None;
    let mut programs = Vec::new();
    for tool in &TOOLS {
        let (bin, program) = place(&folder, tool);
        if !program.exists() {
            let go = match compiler.take() {
                Some(go) => go,
                None => go(&folder)?,
            };
            install(&go, &folder, &bin, tool)?;
            compiler = Some(go);
        }
        programs.push((tool.variable, program));
    }
    Ok(programs)
}

/// The folder of a tool, and its program. Each version has a folder of its own, so that a new one is not taken for the old.
fn place(folder: &Path, tool: &Tool) -> (PathBuf, PathBuf) {
    let name = tool.package.rsplit('/').next().unwrap_or(tool.package);
    let bin = folder.join(format!("{}@{}", tool.variable.to_lowercase(), tool.version));
    let program = bin.join(name);
    (bin, program)
}

fn install(go: &Path, folder: &Path, bin: &Path, tool: &Tool) -> Result<()> {
    let what = format!("{}@{}", tool.package, tool.version);
    eprintln!("setup: go install {what}");
    process::run(command(go, folder).args(["install", &what]).env("GOBIN", bin))
}

/// A command of Go that keeps its modules in `folder`.
fn command(go: &Path, folder: &Path) -> Command {
    let mut command = Command::new(go);
    command
        .env("GOPATH", folder)
        // Else nobody but Go can remove its folder.
        .env("GOFLAGS", "-modcacherw")
        // h2spec is older than modules and takes the newest of what it needs, which may want a newer Go.
        .env("GOTOOLCHAIN", "auto");
    command
}

/// A Go that is new enough: one that is here, also where nobody put it on the path, or one that an older one fetches.
fn go(folder: &Path) -> Result<PathBuf> {
    let fetched = folder.join("pkg/mod").join(format!("golang.org/toolchain@{}", toolchain()?));
    let candidates = ["go".into(), "/usr/local/go/bin/go".into(), fetched.join("bin/go")];
    let known = |go: PathBuf| version(&go).map(|version| (go, version));
    let mut found: Vec<(PathBuf, Version)> = candidates.into_iter().filter_map(known).collect();
    found.sort_by_key(|(_, version)| *version);
    match found.pop() {
        Some((go, version)) if version >= OLDEST => return Ok(go),
        Some((go, _)) => fetch(&go, folder)?,
        None => {
            apt::install(&[DEBIAN])?;
            fetch(Path::new("go"), folder)?;
        }
    }
    executable(&fetched.join("bin"))?;
    for tools in entries(&fetched.join("pkg/tool"))? {
        executable(&tools)?;
    }
    let go = fetched.join("bin/go");
    if version(&go).is_none_or(|version| version < OLDEST) {
        bail!("{} is not the {FETCHED} that was asked for", go.display());
    }
    Ok(go)
}

fn fetch(go: &Path, folder: &Path) -> Result<()> {
    let what = format!("golang.org/toolchain@{}", toolchain()?);
    eprintln!("setup: go mod download {what}");
    process::run(command(go, folder).args(["mod", "download", &what]))
}

/// The version of the module that is Go for this machine.
fn toolchain() -> Result<String> {
    let arch = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("install Go {OLDEST} or newer: it is not known what it is called for {other}"),
    };
    Ok(format!("v0.0.1-{FETCHED}.linux-{arch}"))
}

/// Lets the files of a folder be run: a module says nothing about that.
fn executable(folder: &Path) -> Result<()> {
    for file in entries(folder)? {
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} executable", file.display()))?;
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = || format!("cannot read {}", folder.display());
    let entries = fs::read_dir(folder).with_context(unreadable)?;
    entries.map(|entry| Ok(entry.with_context(unreadable)?.path())).collect()
}

/// The first two numbers of a version.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Version(u32, u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Version {
    /// From what `go version` prints, as in `go version go1.19.8 linux/amd64`.
    fn parse(said: &str) -> Option<Self> {
        let mut numbers = said.split_whitespace().nth(2)?.strip_prefix("go")?.split(['.', 'r', 'b']);
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

fn version(go: &Path) -> Option<Version> {
    let said = process::output(Command::new(go).arg("version").env("GOTOOLCHAIN", "local"))?;
    Version::parse(&said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_go_says() {
        for (said, expected) in [
            ("go version go1.19.8 linux/amd64", Some(Version(1, 19))),
            ("go version go1.26rc2 linux/arm64", Some(Version(1, 26))),
            ("go version go1.21 X:nocoverageredesign linux/amd64", Some(Version(1, 21))),
            ("go version devel +a1b2c3 linux/amd64", None),
            ("", None),
        ] {
            assert_eq!(Version::parse(said), expected, "{said}");
        }
        assert!(Version(1, 9) < OLDEST && Version(1, 21) >= OLDEST && Version(2, 0) > OLDEST);
    }
}
