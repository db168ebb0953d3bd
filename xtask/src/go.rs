//! Tools that only Go builds. Where Go is missing, or cannot install them, the tests that need them are left out and say so:
//! nothing of the agent depends on them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{process, workspace::Workspace};

/// The HTTP/2 conformance suite that somebody else wrote; older than modules, hence the suffix.
const H2SPEC: &str = "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible";

/// Where h2spec is, installed into the target folder if need be.
pub(crate) fn h2spec(workspace: &Workspace) -> Option<PathBuf> {
    let folder = workspace.target.join("go");
    let program = folder.join("bin/h2spec");
    if program.exists() {
        return Some(program);
    }
    let Some(go) = go() else {
        eprintln!("xtask: no Go here: h2spec is not run");
        return None;
    };
    eprintln!("xtask: go install {H2SPEC}");
    let installed = process::run(
        Command::new(go)
            .args(["install", H2SPEC])
            .env("GOPATH", &folder)
            .env("GOBIN", folder.join("bin"))
            // Else nobody but Go can remove its folder.
            .env("GOFLAGS", "-modcacherw"),
    );
    if let Err(error) = installed {
        eprintln!("xtask: h2spec is not run: {error:#}");
        return None;
    }
    Some(program)
}

/// Go, also where it is installed and nobody put it on the path.
fn go() -> Option<PathBuf> {
    let candidates = [PathBuf::from("go"), PathBuf::from("/usr/local/go/bin/go")];
    candidates.into_iter().find(|go| answers(go))
}

fn answers(go: &Path) -> bool {
    Command::new(go).arg("version").output().is_ok_and(|output| output.status.success())
}
