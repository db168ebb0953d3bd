//! Tools that only Go builds. Where Go is missing, or cannot install them, the tests that need them are left out and say so:
//! nothing of the agent depends on them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{process, workspace::Workspace};

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

/// Names the programs in the environment of a command, after they were installed into the target folder if need be.
pub(crate) fn provide(workspace: &Workspace, command: &mut Command) {
    let Some(go) = go() else {
        eprintln!("xtask: no Go here: h2spec and the suites of gRPC are not run");
        return;
    };
    for tool in &TOOLS {
        match installed(&go, &workspace.target.join("go"), tool) {
            Ok(program) => drop(command.env(tool.variable, program)),
            Err(error) => eprintln!("xtask: {} is not run: {error:#}", tool.package),
        }
    }
}

/// Where a tool is. Each version has a folder of its own, so that a new one is not taken for the old.
fn installed(go: &Path, folder: &Path, tool: &Tool) -> Result<PathBuf> {
    let name = tool.package.rsplit('/').next().unwrap_or(tool.package);
    let bin = folder.join(format!("{}@{}", tool.variable.to_lowercase(), tool.version));
    let program = bin.join(name);
    if program.exists() {
        return Ok(program);
    }
    let what = format!("{}@{}", tool.package, tool.version);
    eprintln!("xtask: go install {what}");
    process::run(
        Command::new(go)
            .args(["install", &what])
            .env("GOPATH", folder)
            .env("GOBIN", &bin)
            // Else nobody but Go can remove its folder.
            .env("GOFLAGS", "-modcacherw"),
    )?;
    Ok(program)
}

/// Go, also where it is installed and nobody put it on the path.
fn go() -> Option<PathBuf> {
    let candidates = [PathBuf::from("go"), PathBuf::from("/usr/local/go/bin/go")];
    candidates.into_iter().find(|go| answers(go))
}

fn answers(go: &Path) -> bool {
    Command::new(go).arg("version").output().is_ok_and(|output| output.status.success())
}
