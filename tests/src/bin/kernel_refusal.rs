//! Proves that the agent serves on a kernel that lacks what it needs: it says what is missing, stays in userspace, and
//! forwards a connection all the same. Run inside the machine of `cargo xtask kernel-matrix` with the old kernel.
#![allow(clippy::disallowed_methods, reason = "reads its command line and the clock, and waits")]

use std::{
    env,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Child, Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use gateway_tests::agent;

const CONFIG: &str = r#"
agent:
  admin: { address: "127.0.0.1:9901" }
listeners:
  - { name: echo, address: 127.0.0.1, port: 7, protocol: TCP }
routes:
  - name: echo
    listeners: [echo]
    rules: [ { backends: [ { service: echo } ] } ]
services:
  - name: echo
    endpoints: [ { address: 127.0.0.1, port: 7007 } ]
"#;

/// An emulated machine is slow.
const PATIENCE: Duration = Duration::from_mins(2);

fn main() -> ExitCode {
    let Some(sluice) = env::args().nth(1) else {
        eprintln!("usage: sluice-kernel-refusal AGENT");
        return ExitCode::from(2);
    };
    let log = env::temp_dir().join("sluice.log");
    match run(&sluice, &log) {
        Ok(said) => {
            println!("ok refusal: {said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("FAILED refusal: {error:#}\n{}", fs::read_to_string(&log).unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}

fn run(sluice: &str, log: &std::path::Path) -> Result<String> {
    let config = env::temp_dir().join("sluice.yaml");
    fs::write(&config, CONFIG)?;
    let listener = TcpListener::bind("127.0.0.1:7007").context("no place for the endpoint")?;
    thread::spawn(move || echo(&listener));
    let file = File::create(log)?;
    let mut command = Command::new(sluice);
    command.args(["agent", "--config"]).arg(&config).stdout(file.try_clone()?).stderr(file);
    let child = command.spawn().with_context(|| format!("cannot start {sluice}"))?;
    let mut child = Ended(child);
    wait_until_ready(&mut child)?;
    let (_, metrics) = agent::get("/metrics").context("no metrics")?;
    let mode = |name: &str| agent::metric(&metrics, &format!("sluice_kernel_mode{{mode=\"{name}\"}}"));
    ensure!(mode("userspace") == Some(1.0), "the mode is not userspace: {metrics}");
    ensure!(mode("ebpf") == Some(0.0), "the mode is eBPF too");
    let said = fs::read_to_string(log)?;
    let line =
        said.lines().find(|line| line.contains("missing: ")).context("it names nothing that is missing")?;
    ensure!(line.contains("atomic operations"), "it names something else: {line}");
    let mut client = TcpStream::connect("127.0.0.1:7").context("the listener does not answer")?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.write_all(b"sluice")?;
    let mut answer = [0; 6];
    client.read_exact(&mut answer).context("no answer through the agent")?;
    ensure!(&answer == b"sluice", "another answer: {answer:?}");
    let (_, what) = line.split_once("missing: ").unwrap_or_default();
    Ok(format!("serves in userspace, missing: {}", what.trim_end_matches('"')))
}

fn wait_until_ready(child: &mut Ended) -> Result<()> {
    let started = Instant::now();
    while agent::get("/ready").is_none_or(|(status, _)| status != 200) {
        if let Some(status) = child.0.try_wait()? {
            bail!("the agent ended with {status}");
        }
        ensure!(started.elapsed() < PATIENCE, "the agent is not ready after {PATIENCE:?}");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Answers every connection with what it says, until the process ends.
fn echo(listener: &TcpListener) {
    for mut client in listener.incoming().flatten() {
        let mut bytes = [0; 6];
        if client.read_exact(&mut bytes).is_ok() {
            drop(client.write_all(&bytes));
        }
    }
}

/// A process that ends with this value.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
