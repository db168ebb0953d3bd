//! Servers and proxies that somebody else wrote, to compare with.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// What one of them made of each case.
pub struct Other {
    pub name: &'static str,
    pub version: String,
    pub outcomes: Vec<String>,
}

/// Ends with the test.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The line in which a program says its version; nothing where it is not installed.
pub fn version(program: &str, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&text).lines().next()?.trim().to_owned())
}

/// Starts one, and waits until it listens.
pub async fn start(mut command: Command, addr: SocketAddr) -> Running {
    let running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    for _ in 0..200 {
        if tokio::net::TcpStream::connect(addr).await.is_ok() {
            return running;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert!(tokio::net::TcpStream::connect(addr).await.is_ok(), "{command:?} does not listen");
    running
}

/// An nginx with one server, which keeps what it writes in `folder`.
pub fn nginx(folder: &Path, server: &str) -> Command {
    let shown = folder.display();
    let temp: String =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].iter().fold(String::new(), |mut text, kind| {
            write!(text, "{kind}_temp_path {shown}/{kind};").unwrap();
            text
        });
    let text = format!(
        "daemon off; master_process off; pid {shown}/pid; error_log stderr crit; events {{}} http {{ access_log off; {temp} server {{ {server} }} }}"
    );
    fs::write(folder.join("nginx.conf"), text).unwrap();
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-c"]).arg(folder.join("nginx.conf"));
    command
}
