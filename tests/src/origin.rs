//! An endpoint: a small server over HTTP, TCP and UDP that answers with its own name. It is a process of its own, so
//! that a test can kill or stop it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::{Child, Stdio},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{netns::Ns, node};

/// A running origin.
#[derive(Debug)]
pub struct Origin {
    child: Child,
}

impl Origin {
    /// Starts one inside a namespace and waits until it listens.
    pub fn start(ns: &Ns, name: &str) -> Result<Self> {
        let program = program()?;
        let mut command = ns.command(program.to_str().context("the path of the origin is not text")?);
        let mut child = command
            .args(["origin", name])
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start an origin")?;
        let output = child.stdout.take().context("the origin has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line.trim() == "ready", "the origin {name} says {line:?}");
        Ok(Self { child })
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("a process id")?;
        kill(Pid::from_raw(pid), signal).context("cannot send a signal")
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        // A stopped process dies of SIGKILL all the same.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The demo's binary, which is an origin when it is asked to be.
fn program() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let beside = |folder: &std::path::Path| folder.join("sluice-demo");
    let found = here.ancestors().skip(1).map(beside).find(|path| path.is_file());
    found.context("no sluice-demo binary; run `cargo build -p gateway-tests --bins`")
}

/// Serves until the process is killed.
pub fn serve(name: &str) -> Result<()> {
    let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let http = TcpListener::bind(any(node::HTTP))?;
    let tcp = TcpListener::bind(any(node::TCP))?;
    let udp = UdpSocket::bind(any(node::UDP))?;
    println!("ready");
    std::io::stdout().flush()?;
    let own = name.to_owned();
    thread::spawn(move || {
        let mut packet = [0; 2_048];
        while let Ok((_, from)) = udp.recv_from(&mut packet) {
            // A client that went away is no fault.
            drop(udp.send_to(own.as_bytes(), from));
        }
    });
    let own = name.to_owned();
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            let own = own.clone();
            thread::spawn(move || line_server(stream, &own));
        }
    });
    for stream in http.incoming().flatten() {
        let own = name.to_owned();
        thread::spawn(move || {
            // A connection that breaks off is the client's business.
            drop(requests(&stream, &own));
        });
    }
    Ok(())
}

/// Says the name and closes, unless the client first sends a line that asks to hold: then each line is answered.
fn line_server(mut stream: TcpStream, name: &str) {
    let mut first = [0; 1];
    drop(stream.set_read_timeout(Some(std::time::Duration::from_millis(2))));
    if let Ok(1) = stream.read(&mut first) {
        drop(stream.set_read_timeout(None));
        let Ok(mut writer) = stream.try_clone() else { return };
        for line in BufReader::new(stream).lines() {
            if line.is_err() || writeln!(writer, "{name}").is_err() {
                return;
            }
        }
        return;
    }
    drop(stream.write_all(name.as_bytes()));
}

/// Answers requests with the name, and with what was received at `/headers`.
fn requests(stream: &TcpStream, name: &str) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream.try_clone()?;
    loop {
        let mut head = String::new();
        loop {
            let before = head.len();
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
            if &head[before..] == "\r\n" {
                break;
            }
        }
        let closes = head.to_lowercase().contains("\nconnection: close");
        let body = if head.starts_with("GET /headers ") { head } else { name.to_owned() };
        let response =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-endpoint: {name}\r\n\r\n{body}", body.len());
        writer.write_all(response.as_bytes())?;
        if closes {
            return Ok(());
        }
    }
}
