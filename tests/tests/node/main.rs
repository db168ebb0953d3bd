//! Hooks, sockets and proxy together, in network namespaces, with real clients: losing endpoints, reloading, stopping.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a suite fails loudly"
)]

mod announce;
mod beside;
mod connect;
mod cookies;
mod crowded;
mod direct;
mod links;
mod passive;
mod pods;
mod ports;
mod proxied;
mod receive;
mod signals;
mod sizes;
mod sources;
mod standby;
mod takeover;
mod upgrade;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use gateway_tests::{
    agent::{self, get, metric},
    client::{self, Answer, Load},
    expect,
    netns::Ns,
    node::{HTTP, Node, TCP},
    privilege,
};
use nix::sys::signal::Signal;

const WEB: &str = "10.8.0.1";
const L4: &str = "10.8.0.2";
const PATIENCE: Duration = Duration::from_secs(1);
/// An agent that starts beside others: the verifier goes through a million instructions before it says anything.
const STARTING: Duration = Duration::from_secs(30);

/// Tests that measure time do not share two cores with each other.
static ALONE: Mutex<()> = Mutex::new(());

fn addr(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(text.parse().unwrap(), port)
}

fn ask_web() -> io::Result<String> {
    // Two health checks, a timeout, and a retry elsewhere fit in it.
    let (status, body) = client::get(addr(WEB, 80), "www.example.org", "/", Duration::from_secs(5))?;
    if status == 200 { Ok(body) } else { Err(io::Error::other(format!("status {status}"))) }
}

fn ask_l4() -> io::Result<String> {
    client::get(addr(L4, HTTP), "l4", "/", Duration::from_millis(300)).map(|(_, body)| body)
}

/// One web listener and one balanced one over the same endpoints, given by index.
fn config(node: &Node, mode: &str, endpoints: &[u8], rest: &str) -> String {
    let list: Vec<String> =
        endpoints.iter().map(|idx| format!("{{ address: {}, port: {HTTP} }}", Node::v4(*idx))).collect();
    let ends = list.join(", ");
    node.agent_part(mode)
        + &format!(
            "listeners:
  - {{ name: web, address: {WEB}, port: 80, protocol: HTTP }}
  - {{ name: l4, address: {L4}, port: {HTTP}, protocol: TCP }}
{rest}services:
  - {{ name: web, endpoints: [ {ends} ], health: {{ http: {{ path: /healthz }} }} }}
  - {{ name: l4, endpoints: [ {ends} ], health: {{ http: {{ path: /healthz }} }} }}
"
        )
}

const ROUTES: &str = "routes:
  - { name: web, listeners: [web], rules: [ { backends: [ { service: web } ] } ] }
  - { name: l4, listeners: [l4], rules: [ { backends: [ { service: l4 } ] } ] }
";

/// A node with three endpoints, an agent, and time for the first health checks.
fn started(mode: &str) -> Node {
    let mut node = Node::new(3).unwrap();
    let text = config(&node, mode, &[0, 1, 2], ROUTES);
    node.start_agent(&text).unwrap();
    thread::sleep(Duration::from_millis(1_200));
    node
}

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What a lost endpoint does to whoever asks for it.
#[derive(Clone, Copy)]
enum Loss {
    /// Says no: noticed by the next check.
    Refuses,
    /// Says nothing: noticed by two checks in a row.
    Silent,
}

impl Loss {
    /// Interval 1 s, threshold 2, timeout 500 ms, and 100 ms for everything else.
    const fn limit(self) -> Duration {
        match self {
            Self::Refuses => Duration::from_millis(1_100),
            Self::Silent => Duration::from_millis(2_600),
        }
    }
}

/// Takes the third endpoint away while both paths are used.
fn lose(kind: Loss, take: impl FnOnce(&mut Node)) {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = started("required");
    let web = Load::start(&node.client, 4, 200, ask_web);
    let l4 = Load::start(&node.client, 4, 100, ask_l4);
    thread::sleep(Duration::from_millis(500));
    let lost = Instant::now();
    take(&mut node);
    thread::sleep(kind.limit() + Duration::from_millis(1_500));
    let (web, l4) = (web.stop(), l4.stop());
    let failed: Vec<&Answer> = web.iter().filter(|answer| answer.from.is_err()).collect();
    assert!(
        failed.is_empty(),
        "{} of {} requests failed, first {:?}\n{}",
        failed.len(),
        web.len(),
        failed[0],
        node.agent().log()
    );
    assert!(web.len() > 200, "only {} requests were made", web.len());
    for (path, answers) in [("layer 7", &web), ("layer 4", &l4)] {
        assert!(client::was_used(answers, lost, "e3"), "{path} never used the endpoint");
        let used = client::last_use(answers, lost, "e3");
        println!("{path}: {} answers, last use {} ms after the loss", answers.len(), used.as_millis());
        assert!(
            used <= kind.limit(),
            "{path} used the endpoint {used:?} after its loss\n{}",
            node.agent().log()
        );
    }
}

#[test]
fn an_endpoint_whose_process_is_killed_is_left_at_the_next_check() {
    lose(Loss::Refuses, |node| node.origins[2] = None);
}

#[test]
fn an_endpoint_that_is_stopped_is_left_after_two_silent_checks() {
    lose(Loss::Silent, |node| node.origins[2].as_ref().unwrap().signal(Signal::SIGSTOP).unwrap());
}

#[test]
fn an_endpoint_whose_link_is_down_is_left_after_two_silent_checks() {
    lose(Loss::Silent, |node| node.endpoints[2].ip("link set uplink down").unwrap());
}

#[test]
fn an_endpoint_whose_port_is_refused_is_left_at_the_next_check() {
    lose(Loss::Refuses, |node| {
        let rule = format!("add rule ip t c tcp dport {HTTP} reject with tcp reset");
        for line in ["add table ip t", "add chain ip t c { type filter hook input priority 0; }", &rule] {
            let output = node.endpoints[2].command("nft").arg(line).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    });
}

/// How many packets ended with a reason, at all hooks.
fn reason(node: &Node, name: &str) -> f64 {
    let text = node.node.run(|| get("/metrics")).map_or(String::new(), |(_, text)| text);
    let lines = text.lines().filter(|line| line.starts_with("sluice_packets_total"));
    let ours = lines.filter(|line| line.contains(&format!("reason=\"{name}\"")));
    ours.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// What the agent says of itself.
fn dump(node: &Node) -> serde_json::Value {
    let (_, text) = node.node.run(|| get("/dump")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn generation(node: &Node) -> f64 {
    let text = node.node.run(|| get("/metrics")).map_or(String::new(), |(_, text)| text);
    metric(&text, "sluice_config_generation").unwrap_or(0.0)
}

fn until(what: &str, deadline: Duration, node: &Node, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < deadline, "not in {deadline:?}: {what}\n{}", node.agent().log());
        thread::sleep(Duration::from_millis(5));
    }
}

/// A connection over the balanced listener that stays open.
struct Held {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    name: String,
}

impl Held {
    fn open(node: &Ns) -> Self {
        // An endpoint that heard nothing within some milliseconds, as on a busy machine, says its name and closes.
        let opened = (0..10).find_map(|_| Self::try_open(node).ok());
        opened.expect("an endpoint hears what it is asked")
    }

    fn try_open(node: &Ns) -> io::Result<Self> {
        node.run(|| {
            let stream = TcpStream::connect_timeout(&addr(L4, TCP), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let reader = BufReader::new(stream.try_clone()?);
            let mut held = Self { stream, reader, name: String::new() };
            held.stream.write_all(b"h")?;
            held.name = held.ask()?;
            let is_open = held.ask()? == held.name;
            if is_open { Ok(held) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        })
    }

    fn ask(&mut self) -> io::Result<String> {
        self.stream.write_all(b"old\n")?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

#[test]
fn a_hundred_reloads_under_load_fail_no_request_and_move_no_flow() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(3).unwrap();
    let write = |node: &Node, round: u32| {
        let made = rcgen::generate_simple_self_signed(vec![format!("r{round}.example.org")]).unwrap();
        fs::write(node.folder.join("web.pem.new"), made.cert.pem()).unwrap();
        let key = made.signing_key.serialize_pem();
        fs::write(node.folder.join(format!("web{}.key", round % 2)), key).unwrap();
        fs::rename(node.folder.join("web.pem.new"), node.folder.join(format!("web{}.pem", round % 2)))
            .unwrap();
        // The third endpoint comes and goes; a listener, a route and a certificate change each time.
        let ends: Vec<u8> = if round.is_multiple_of(2) { vec![0, 1, 2] } else { vec![0, 1] };
        let mut more = String::new();
        writeln!(
            more,
            "  - {{ name: hold, address: {L4}, port: {TCP}, protocol: TCP }}
  - {{ name: secure, address: {WEB}, port: {}, protocol: HTTPS, tls: {{ certificates: [ {{ certificateFile: web{}.pem, keyFile: web{}.key }} ] }} }}",
            8_000 + round % 3,
            round % 2,
            round % 2
        )
        .unwrap();
        more += ROUTES;
        writeln!(
            more,
            "  - {{ name: hold, listeners: [hold], rules: [ {{ backends: [ {{ service: hold }} ] }} ] }}
  - {{ name: secure, listeners: [secure], rules: [ {{ matches: [ {{ path: {{ value: /r{round} }} }} ], backends: [ {{ service: web }} ] }} ] }}"
        )
        .unwrap();
        let text = config(node, "required", &ends, &more);
        let held: Vec<String> =
            ends.iter().map(|idx| format!("{{ address: {}, port: {TCP} }}", Node::v4(*idx))).collect();
        text + &format!("  - {{ name: hold, endpoints: [ {} ] }}\n", held.join(", "))
    };
    let first = write(&node, 0);
    node.start_agent(&first).unwrap();
    let mut held: Vec<Held> = (0..60).map(|_| Held::open(&node.client)).collect();
    let load = Load::start(&node.client, 8, 1_000, ask_web);
    for round in 1..=100 {
        let text = write(&node, round);
        node.write_config(&text).unwrap();
        let wanted = f64::from(round) + 1.0;
        until("the new configuration is taken", Duration::from_secs(5), &node, || {
            generation(&node) >= wanted
        });
    }
    let answers = load.stop();
    let failed: Vec<&Answer> = answers.iter().filter(|answer| answer.from.is_err()).collect();
    println!("{} requests, {} failed", answers.len(), failed.len());
    assert!(
        failed.is_empty(),
        "{} of {} requests failed, first {:?}\n{}",
        failed.len(),
        answers.len(),
        failed[0],
        node.agent().log()
    );
    assert!(answers.len() > 2_000, "only {} requests were made", answers.len());
    let mut by_endpoint: BTreeMap<String, u32> = BTreeMap::new();
    for held in &mut held {
        let now = held.ask().unwrap_or_else(|error| format!("{error}"));
        assert_eq!(held.name, now, "a flow moved");
        *by_endpoint.entry(now).or_default() += 1;
    }
    assert!(by_endpoint.len() > 1, "{by_endpoint:?}");
}

#[test]
fn a_refused_configuration_changes_nothing() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let node = started("required");
    let dump = |node: &Node| -> serde_json::Value {
        let (_, text) = node.node.run(|| get("/dump")).unwrap();
        let mut dump: serde_json::Value = serde_json::from_str(&text).unwrap();
        // What is in flight changes by itself.
        dump["served"].as_object_mut().unwrap().remove("endpoints");
        for service in dump["kernel"]["services"].as_array_mut().unwrap() {
            for endpoint in service["endpoints"].as_array_mut().unwrap() {
                endpoint.as_object_mut().unwrap().remove("packets");
            }
        }
        dump
    };
    let before = dump(&node);
    let good = fs::read_to_string(node.config()).unwrap();
    let mut n_refused = 0.0;
    let mut refuse = |name: &str, content: &[u8]| {
        let new = node.folder.join("sluice.yaml.new");
        fs::write(&new, content).unwrap();
        fs::rename(&new, node.config()).unwrap();
        n_refused += 1.0;
        until(name, Duration::from_secs(5), &node, || {
            let text = node.node.run(|| get("/metrics")).map_or(String::new(), |(_, text)| text);
            metric(&text, "sluice_config_reloads_total{outcome=\"refused\"}") == Some(n_refused)
        });
        assert_eq!(before, dump(&node), "{name}");
    };
    let mut corpus: Vec<_> = fs::read_dir(expect::root().join("tests/testdata/bad"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    corpus.sort();
    assert!(corpus.len() >= 40, "{} malformed files", corpus.len());
    for path in &corpus {
        refuse(&path.display().to_string(), &fs::read(path).unwrap());
    }
    refuse("a misspelled key in what is served", good.replace("port: 80,", "prot: 80,").as_bytes());
    assert!(node.agent().log().contains("prot"), "{}", node.agent().log());
    assert!(node.client.run(ask_web).is_ok());
    let (code, text) = agent::sluice(&node.node, &["check", node.config().to_str().unwrap()]).unwrap();
    assert_eq!(code, Some(2), "{text}");
}

#[test]
fn layer_4_goes_on_while_the_agent_restarts_and_cleanup_puts_the_host_back() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = started("required");
    let ids = |node: &Node| {
        let (_, text) = node.node.run(|| get("/dump")).unwrap();
        let dump: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut services = dump["kernel"]["services"].as_array().unwrap().clone();
        for endpoint in services.iter_mut().flat_map(|service| service["endpoints"].as_array_mut().unwrap()) {
            // It counts on while we look.
            endpoint.as_object_mut().unwrap().remove("packets");
        }
        services
            .iter()
            .map(|s| (s["address"].to_string(), s["id"].to_string(), s["endpoints"].to_string()))
            .collect::<Vec<_>>()
    };
    let before = ids(&node);
    let load = Load::start(&node.client, 4, 200, ask_l4);
    thread::sleep(Duration::from_millis(200));
    // SIGTERM drains and ends with success; SIGKILL gives no chance to do anything.
    node.agent().signal(Signal::SIGTERM).unwrap();
    let status = node.agent.as_mut().unwrap().wait(Duration::from_secs(10)).unwrap();
    assert!(status.success(), "{status}\n{}", node.agent().log());
    thread::sleep(Duration::from_millis(300));
    let text = fs::read_to_string(node.config()).unwrap();
    node.start_agent(&text).unwrap();
    node.agent().signal(Signal::SIGKILL).unwrap();
    thread::sleep(Duration::from_millis(300));
    node.start_agent(&text).unwrap();
    let answers = load.stop();
    let failed: Vec<&Answer> = answers.iter().filter(|answer| answer.from.is_err()).collect();
    assert!(failed.is_empty(), "{} of {} failed, first {:?}", failed.len(), answers.len(), failed[0]);
    assert_eq!(before, ids(&node));

    // Nothing is left of the agent but what it pinned; cleanup removes that and the local routes.
    node.agent = None;
    let bpffs = node.bpffs().to_str().unwrap().to_owned();
    let (code, text) = agent::sluice(&node.node, &["cleanup", "--bpffs", &bpffs]).unwrap();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("link-") && text.contains(WEB), "{text}");
    assert!(!node.pins().exists());
    assert!(!node.node.tool("ip", "route show table local").unwrap().contains("10.8.0."));
    let links = node.node.tool("ip", "-details link show").unwrap();
    assert!(!links.contains("xdp"), "{links}");
    let (code, text) = agent::sluice(&node.node, &["cleanup", "--bpffs", &bpffs]).unwrap();
    assert_eq!((code, text.as_str()), (Some(0), "nothing to remove\n"));
}

#[test]
fn userspace_picks_the_same_endpoint_for_the_same_flow() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(3).unwrap();
    fs::write(node.folder.join("seed"), "000102030405060708090a0b0c0d0e0f\n").unwrap();
    let ask = |node: &Node| -> Vec<String> {
        node.client.run(|| {
            (20_000..20_040u16)
                .map(|port| {
                    let socket =
                        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                    socket.set_reuse_address(true).unwrap();
                    // The connection leaves no state behind, so that its port can be used again.
                    socket.set_linger(Some(Duration::ZERO)).unwrap();
                    socket.bind(&addr("0.0.0.0", port).into()).unwrap();
                    socket.connect_timeout(&addr(L4, HTTP).into(), PATIENCE).unwrap();
                    let mut stream: TcpStream = socket.into();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    stream.write_all(b"GET / HTTP/1.1\r\nHost: l4\r\nConnection: close\r\n\r\n").unwrap();
                    let mut text = String::new();
                    io::Read::read_to_string(&mut stream, &mut text).unwrap();
                    text.lines().last().unwrap().to_owned()
                })
                .collect()
        })
    };
    let text = |node: &Node, mode: &str| {
        config(node, mode, &[0, 1, 2], ROUTES).replace("    bpffs:", "    seedFile: seed\n    bpffs:")
    };
    let kernel = text(&node, "required");
    node.start_agent(&kernel).unwrap();
    let by_kernel = ask(&node);
    node.agent = None;
    let bpffs = node.bpffs().to_str().unwrap().to_owned();
    let (code, said) = agent::sluice(&node.node, &["cleanup", "--bpffs", &bpffs]).unwrap();
    assert_eq!(code, Some(0), "{said}");
    node.node.ip(&format!("addr add {WEB}/32 dev lo")).unwrap();
    node.node.ip(&format!("addr add {L4}/32 dev lo")).unwrap();
    let userspace = text(&node, "off");
    node.start_agent(&userspace).unwrap();
    let by_userspace = ask(&node);
    assert_eq!(by_kernel, by_userspace);
    let (_, metrics) = node.node.run(|| get("/metrics")).unwrap();
    assert_eq!(metric(&metrics, "sluice_kernel_mode{mode=\"userspace\"}"), Some(1.0));
}
