//! The demo: one node, one client, three endpoints, and a report of what was measured beside what was expected.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use gateway_common::map::{self, MapDef};

use crate::{
    agent::{get, metric},
    client::{self, Load, Shares, percent},
    node::{HTTP, Node, TCP, UDP},
};

/// Flows for a share. With 400 of them the standard deviation of a share of three quarters is 2.2 percentage points.
const FLOWS: u32 = 400;
/// Three standard deviations, and the half point by which slots may differ from weights.
const TOLERANCE: f64 = 7.0;
const PATIENCE: Duration = Duration::from_secs(1);

/// Virtual addresses of the demo.
const WEB: &str = "10.8.0.1";
const L4: &str = "10.8.0.2";
const L4_V6: &str = "fd08::2";

/// Runs the demo; false when something was not as it should be.
pub fn run(keep: bool) -> Result<bool> {
    let started = Instant::now();
    let mut report = Report::default();
    let mut node = Node::new(3)?;
    let certificate = certificate(&node)?;
    node.start_agent(&config(&node, [3, 1]))?;
    Report::say("a client, a node and three endpoints are up; the agent is ready");
    attachments(&node, &mut report)?;
    balanced(&node, &mut report, "layer 4, TCP over IPv4, weights 3:1", [75.0, 25.0], ask_tcp(L4));
    balanced(&node, &mut report, "layer 4, TCP over IPv6, weights 3:1", [75.0, 25.0], ask_tcp(L4_V6));
    balanced(&node, &mut report, "layer 4, UDP over IPv4, weights 3:1", [75.0, 25.0], ask_udp(L4));
    balanced(&node, &mut report, "layer 4, UDP over IPv6, weights 3:1", [75.0, 25.0], ask_udp(L4_V6));
    https(&node, &mut report, &certificate)?;
    node.write_config(&config(&node, [1, 1]))?;
    until_generation(&node, 2)?;
    balanced(&node, &mut report, "the weights in the file changed to 1:1", [50.0, 50.0], ask_tcp(L4));
    loss(&mut node, &mut report)?;
    maps(&node, &mut report)?;
    metrics(&node, &mut report)?;
    println!(
        "\n{} checks, {} failed, {:.1} s",
        report.checks,
        report.failed,
        started.elapsed().as_secs_f64()
    );
    if keep {
        look_around(&mut node)?;
    }
    Ok(report.failed == 0)
}

#[derive(Debug, Default)]
struct Report {
    checks: u32,
    failed: u32,
}

impl Report {
    fn say(text: &str) {
        println!("  {text}");
    }

    fn check(&mut self, what: &str, measured: &str, is_right: bool) {
        self.checks += 1;
        self.failed += u32::from(!is_right);
        println!("{} {what}: {measured}", if is_right { "ok    " } else { "FAILED" });
    }
}

fn config(node: &Node, weights: [u32; 2]) -> String {
    let [first, second] = weights;
    let service = |name: &str, port: u16, check: &str, family: fn(u8) -> String, ends: &[(u8, u32)]| {
        let endpoints: Vec<String> = ends
            .iter()
            .map(|(idx, weight)| {
                format!("{{ address: \"{}\", port: {port}, weight: {weight} }}", family(*idx))
            })
            .collect();
        format!("  - name: {name}\n    endpoints: [ {} ]\n    health: {{ {check} }}\n", endpoints.join(", "))
    };
    let pair = [(0, first), (1, second)];
    let mut text = node.agent_part("required");
    write!(
        text,
        "listeners:
  - {{ name: web, address: {WEB}, port: 443, protocol: HTTPS, tls: {{ certificates: [ {{ certificateFile: web.pem, keyFile: web.key }} ] }} }}
  - {{ name: plain, address: {WEB}, port: 80, protocol: HTTP }}
  - {{ name: tcp4, address: {L4}, port: {TCP}, protocol: TCP }}
  - {{ name: tcp6, address: \"{L4_V6}\", port: {TCP}, protocol: TCP }}
  - {{ name: udp4, address: {L4}, port: {UDP}, protocol: UDP }}
  - {{ name: udp6, address: \"{L4_V6}\", port: {UDP}, protocol: UDP }}
  - {{ name: all, address: {L4}, port: {HTTP}, protocol: TCP }}
routes:
  - {{ name: web, listeners: [web, plain], rules: [ {{ backends: [ {{ service: web }} ] }} ] }}
"
    )
    .expect("a string takes everything");
    for name in ["tcp4", "tcp6", "udp4", "udp6", "all"] {
        writeln!(
            text,
            "  - {{ name: {name}, listeners: [{name}], rules: [ {{ backends: [ {{ service: {name} }} ] }} ] }}"
        )
        .expect("a string takes everything");
    }
    text += "services:\n";
    let three = [(0, 1), (1, 1), (2, 1)];
    text += &service("web", HTTP, "http: { path: /healthz }", Node::v4, &three);
    text += &service("tcp4", TCP, "tcp: {}", Node::v4, &pair);
    text += &service("tcp6", TCP, "tcp: {}", Node::v6, &pair);
    text += &service("all", HTTP, "tcp: {}", Node::v4, &three);
    // A UDP port cannot be asked whether it lives.
    let families: [fn(u8) -> String; 2] = [Node::v4, Node::v6];
    for (name, family) in ["udp4", "udp6"].into_iter().zip(families) {
        text += &service(name, UDP, "", family, &pair).replace("    health: {  }\n", "");
    }
    text
}

/// Makes a certificate for the demo; the text of what a client has to trust.
fn certificate(node: &Node) -> Result<std::path::PathBuf> {
    let made = rcgen::generate_simple_self_signed(vec!["www.example.org".to_owned()])?;
    let chain = node.folder.join("web.pem");
    fs::write(&chain, made.cert.pem())?;
    fs::write(node.folder.join("web.key"), made.signing_key.serialize_pem())?;
    Ok(chain)
}

fn attachments(node: &Node, report: &mut Report) -> Result<()> {
    let (_, dump) = node.node.run(|| get("/dump")).context("no dump")?;
    let dump: serde_json::Value = serde_json::from_str(&dump)?;
    let attached = dump["kernel"]["attachments"].as_object().context("no attachments")?;
    let shown: Vec<String> = attached
        .iter()
        .map(|(name, one)| {
            format!(
                "{name} {} ({})",
                one["ingress"].as_str().unwrap_or("?"),
                one["why"].as_str().unwrap_or("?")
            )
        })
        .collect();
    let native = attached.values().all(|one| one["ingress"] == "native XDP");
    report.check("attached", &shown.join("; "), native && attached.len() == 4);
    Ok(())
}

fn ask_tcp(addr: &str) -> impl Fn() -> std::io::Result<String> + Send + use<> {
    let addr = SocketAddr::new(addr.parse().expect("an address"), TCP);
    move || client::who_tcp(addr, PATIENCE)
}

fn ask_udp(addr: &str) -> impl Fn() -> std::io::Result<String> + Send + use<> {
    let addr = SocketAddr::new(addr.parse().expect("an address"), UDP);
    move || client::who_udp(addr, PATIENCE)
}

fn balanced(
    node: &Node,
    report: &mut Report,
    what: &str,
    wanted: [f64; 2],
    ask: impl Fn() -> std::io::Result<String> + Send,
) {
    let shares: Shares = node.client.run(|| client::shares(FLOWS, ask));
    let measured = [percent(&shares, "e1"), percent(&shares, "e2")];
    let is_right =
        measured.iter().zip(wanted).all(|(measured, wanted)| (measured - wanted).abs() <= TOLERANCE)
            && !shares.contains_key("error");
    let text = format!(
        "{FLOWS} flows, e1 {:.1} %, e2 {:.1} % (wanted {:.0} and {:.0}, ± {TOLERANCE:.0}){}",
        measured[0],
        measured[1],
        wanted[0],
        wanted[1],
        shares.get("error").map_or(String::new(), |n| format!(", {n} failed"))
    );
    report.check(what, &text, is_right);
}

fn https(node: &Node, report: &mut Report, certificate: &std::path::Path) -> Result<()> {
    let output = node
        .client
        .command("curl")
        .args(["--silent", "--show-error", "--http2", "--max-time", "5", "--cacert"])
        .arg(certificate)
        .args(["--resolve", &format!("www.example.org:443:{WEB}"), "https://www.example.org/headers"])
        .args(["--write-out", "\nversion=%{http_version} status=%{http_code}"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let forwarded =
        text.lines().find(|line| line.to_lowercase().starts_with("x-forwarded-for")).unwrap_or("none").trim();
    let last = text.lines().last().unwrap_or("");
    let is_right = last == "version=2 status=200" && forwarded.ends_with("10.7.0.2");
    let error = String::from_utf8_lossy(&output.stderr);
    report.check("HTTPS over HTTP/2 by curl", &format!("{last}; {forwarded} {}", error.trim()), is_right);
    Ok(())
}

/// Kills an endpoint while both paths are used, and measures how long they go on using it.
fn loss(node: &mut Node, report: &mut Report) -> Result<()> {
    let l7: SocketAddr = format!("{WEB}:80").parse()?;
    let l4: SocketAddr = format!("{L4}:{HTTP}").parse()?;
    let ask =
        |addr: SocketAddr| move || client::get(addr, "www.example.org", "/", PATIENCE).map(|(_, body)| body);
    let requests = Load::start(&node.client, 2, 200, ask(l7));
    let flows = Load::start(&node.client, 2, 200, ask(l4));
    thread::sleep(Duration::from_millis(500));
    let lost = Instant::now();
    node.origins[2] = None;
    thread::sleep(Duration::from_millis(1_800));
    let (requests, flows) = (requests.stop(), flows.stop());
    let failed = requests.iter().filter(|answer| answer.from.is_err()).count();
    // A killed server refuses: one health interval and 100 ms.
    let limit = Duration::from_millis(1_100);
    let l7_last = client::last_use(&requests, lost, "e3");
    let l4_last = client::last_use(&flows, lost, "e3");
    report.check(
        "e3 killed under load, layer 7",
        &format!("{} requests, {failed} failed, last use after {} ms", requests.len(), l7_last.as_millis()),
        client::was_used(&requests, lost, "e3") && failed == 0 && l7_last <= limit,
    );
    report.check(
        "e3 killed under load, layer 4",
        &format!(
            "{} connections, last use after {} ms (limit {} ms)",
            flows.len(),
            l4_last.as_millis(),
            limit.as_millis()
        ),
        client::was_used(&flows, lost, "e3") && l4_last <= limit,
    );
    node.start_origin(2)
}

fn until_generation(node: &Node, generation: u32) -> Result<()> {
    let started = Instant::now();
    loop {
        let text = node.node.run(|| get("/metrics")).map_or(String::new(), |(_, text)| text);
        if metric(&text, "sluice_config_generation").is_some_and(|at| at >= f64::from(generation)) {
            return Ok(());
        }
        ensure!(
            started.elapsed() < Duration::from_secs(5),
            "the new configuration was not taken:\n{}",
            node.agent().log()
        );
        thread::sleep(Duration::from_millis(10));
    }
}

/// Field names in the dump of bpftool.
fn maps(node: &Node, report: &mut Report) -> Result<()> {
    for (name, field) in [(map::Services::NAME, "first_endpoint"), (map::Endpoints::NAME, "next_hop")] {
        let pin = node.pins().join(name.to_lowercase());
        let output = Command::new("bpftool").args(["map", "dump", "pinned"]).arg(&pin).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<&str> =
            text.lines().filter(|line| line.contains('"')).take(8).map(str::trim).collect();
        report.check(
            &format!("bpftool map dump pinned {}", pin.display()),
            &lines.join(" "),
            text.contains(field),
        );
    }
    Ok(())
}

fn metrics(node: &Node, report: &mut Report) -> Result<()> {
    let (_, text) = node.node.run(|| get("/metrics")).context("no metrics")?;
    let names = [
        "sluice_packets_total{hook=\"xdp_balance\",reason=\"forwarded\"}",
        "sluice_packets_total{hook=\"xdp_balance\",reason=\"replied\"}",
        "sluice_packets_total{hook=\"sk_lookup\",reason=\"steered\"}",
        "sluice_kernel_mode{mode=\"ebpf\"}",
    ];
    for name in names {
        let value = metric(&text, name).unwrap_or(0.0);
        report.check(name, &format!("{value}"), value > 0.0);
    }
    Ok(())
}

/// Leaves everything running until a key or Ctrl-C.
fn look_around(node: &mut Node) -> Result<()> {
    let (name, client) = (node.node.name().to_owned(), node.client.name().to_owned());
    println!("\nEverything goes on until you press Enter. Look around:");
    println!("  nsenter --net=/run/netns/{client} curl -k https://{WEB}/headers");
    println!("  nsenter --net=/run/netns/{client} curl http://{L4}:{HTTP}/");
    println!("  nsenter --net=/run/netns/{name} curl -s http://127.0.0.1:9901/dump");
    println!("  bpftool map dump pinned {}", node.pins().join("services").display());
    println!("  edit {} and watch {}", node.config().display(), node.folder.join("agent.log").display());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("cannot read from the terminal")?;
    Ok(())
}
