//! A flood of connections that nobody means to a service that is translated, and clients who mean theirs: the endpoint is
//! asked only for these, and whatever they carry arrives.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use gateway_tests::{
    agent::{get, metric},
    frame,
    netns::Ns,
    node::Node,
    packet::tcp,
    privilege,
};

use super::{addr, alone, until};

const VIP4: &str = "10.8.0.1";
const VIP6: &str = "fd08::1";

/// The endpoint sends back what it gets.
const ECHO: u16 = 9_100;
/// It speaks first.
const BANNER: u16 = 9_101;
/// Nobody listens.
const CLOSED: u16 = 9_102;

const GREETING: &[u8] = b"220 at your service\r\n";

/// Bytes that go both ways over one connection.
const BULK: usize = 4 << 20;

/// Short connections while the flood lasts, of each family.
const CONNECTIONS: usize = 20;

fn config(node: &Node, attach: &str) -> String {
    let text = node.agent_part("required").replace("attach: native", &format!("attach: {attach}"));
    let (mut listeners, mut routes, mut services) = (Vec::new(), Vec::new(), Vec::new());
    for (family, vip, endpoint) in [(4, VIP4, Node::v4(0)), (6, VIP6, Node::v6(0))] {
        for port in [ECHO, BANNER, CLOSED] {
            let name = format!("l{family}-{port}");
            listeners.push(format!(
                "  - {{ name: {name}, address: \"{vip}\", port: {port}, protocol: TCP, synCookies: {{ perSecond: 20 }} }}\n"
));
            routes.push(format!(
                "  - {{ name: {name}, listeners: [{name}], rules: [ {{ backends: [ {{ service: {name} }} ] }} ] }}\n"
));
            services.push(format!(
                "  - {{ name: {name}, endpoints: [ {{ address: \"{endpoint}\", port: {port} }} ] }}\n"
            ));
        }
    }
    let [listeners, routes, services] = [listeners, routes, services].map(|lines| lines.concat());
    format!("{text}listeners:\n{listeners}routes:\n{routes}services:\n{services}")
}

/// Serves every connection to a port of a namespace.
fn serve(ns: &Ns, port: u16, with: fn(&TcpStream) -> io::Result<()>) {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = ns.run(|| TcpListener::bind(any)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A connection that breaks off is the client's business.
            thread::spawn(move || drop(with(&stream)));
        }
    });
}

fn echo(stream: &TcpStream) -> io::Result<()> {
    let (mut from, mut to) = (stream, stream);
    io::copy(&mut from, &mut to)?;
    stream.shutdown(Shutdown::Write)
}

fn banner(mut stream: &TcpStream) -> io::Result<()> {
    stream.write_all(GREETING)?;
    echo(stream)
}

fn connect(client: &Ns, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = client.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(3)))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// Sends bytes and says whether the same came back, and nothing else.
fn carries(stream: &TcpStream, bytes: &[u8]) -> io::Result<bool> {
    let mut back = Vec::new();
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut to = stream;
            to.write_all(bytes)?;
            stream.shutdown(Shutdown::Write)
        });
        let mut from = stream;
        from.read_to_end(&mut back)?;
        sender.join().expect("it does not panic")
    })?;
    Ok(back == bytes)
}

fn greeted(mut stream: &TcpStream) -> io::Result<bool> {
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting)?;
    Ok(greeting == GREETING && carries(stream, b"QUIT\r\n")?)
}

/// SYNs to each port from addresses where nobody is.
fn syns(macs: ([u8; 6], [u8; 6]), turn: u32) -> impl Iterator<Item = Vec<u8>> {
    (0..600_u32).map(move |idx| {
        let (number, to) = (turn * 600 + idx, [ECHO, BANNER, CLOSED][usize::try_from(idx % 3).unwrap()]);
        let port = 1_024 + number % 60_000;
        let (source, to) = if idx % 2 == 0 {
            let from = Ipv6Addr::from((0xfd09_u128 << 112) + u128::from(number));
            (format!("[{from}]:{port}"), format!("[{VIP6}]:{to}"))
        } else {
            let from = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + number);
            (format!("{from}:{port}"), format!("{VIP4}:{to}"))
        };
        tcp(&source, &to).payload(b"").syn().tcp_option_bytes(&[2, 4, 5, 0xb4]).macs(macs.0, macs.1).bytes()
    })
}

/// Whether the endpoint lets connections in.
fn admits(ns: &Ns, yes: bool) {
    let command = if yes {
        "delete table inet sluice-test"
    } else {
        ns.tool("nft", "add table inet sluice-test").unwrap();
        ns.tool("nft", "add chain inet sluice-test input { type filter hook input priority 0 ; }").unwrap();
        "add rule inet sluice-test input tcp flags & syn == syn drop"
    };
    ns.tool("nft", command).unwrap();
}

/// What the clients of one family see while the flood lasts.
fn clients(node: &Node, vip: &str) {
    let to = |port| addr(vip, port);
    for turn in 0..CONNECTIONS {
        let stream = connect(&node.client, to(ECHO)).unwrap();
        assert!(carries(&stream, format!("request {turn}").as_bytes()).unwrap(), "{vip}: {turn}");
    }
    let stream = connect(&node.client, to(BANNER)).unwrap();
    assert!(greeted(&stream).unwrap(), "{vip}: the endpoint speaks first");
    let bulk: Vec<u8> =
        (0_u32..).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).take(BULK).collect();
    let stream = connect(&node.client, to(ECHO)).unwrap();
    assert!(carries(&stream, &bulk).unwrap(), "{vip}: bulk both ways");
    // The client hears of an endpoint that says no when it takes itself for connected, or just before.
    let answer = connect(&node.client, to(CLOSED)).and_then(|mut stream| stream.read(&mut [0; 1]));
    let refused = answer.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionReset, "{vip}: {refused}");
    // What is lost on the way to the endpoint is asked for again by the client's own probes.
    admits(&node.endpoints[0], false);
    let stream = connect(&node.client, to(ECHO)).unwrap();
    (&stream).write_all(b"patience").unwrap();
    thread::sleep(Duration::from_millis(700));
    admits(&node.endpoints[0], true);
    assert!(carries(&stream, b"").is_ok_and(|is_empty| !is_empty), "{vip}: nothing came back");
}

/// Makes the way to the client narrower than what the client claims to take.
fn narrow(node: &Node) {
    for (ns, link) in [(&node.client, "uplink"), (&node.node, "sl-client")] {
        ns.ip(&format!("link set {link} mtu 1400")).unwrap();
    }
    node.client.ip("route change default via 10.7.0.1 advmss 1460").unwrap();
    node.client.ip("-6 route change default via fd07::1 advmss 1440").unwrap();
}

fn flooded(attach: &str) {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(1).unwrap();
    serve(&node.endpoints[0], ECHO, echo);
    serve(&node.endpoints[0], BANNER, banner);
    if attach == "tc" {
        narrow(&node);
    }
    let text = config(&node, attach);
    node.start_agent(&text).unwrap();
    let macs = (frame::mac(&node.client, "uplink").unwrap(), frame::mac(&node.node, "sl-client").unwrap());
    let metrics = || node.node.run(|| get("/metrics")).map_or(String::new(), |(_, text)| text);
    let ended = |reason: &str| {
        let of = format!("reason=\"{reason}\"");
        let text = metrics();
        let lines =
            text.lines().filter(|line| line.contains(&of) && line.starts_with("sluice_packets_total"));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    for vip in [VIP4, VIP6] {
        until("the endpoint", Duration::from_secs(3), &node, || {
            connect(&node.client, addr(vip, ECHO)).and_then(|it| carries(&it, b"hello")).unwrap_or(false)
        });
    }
    assert_eq!((ended("cookie_sent"), ended("cookie_taken")), (0.0, 0.0), "nothing in calm times");
    let (is_over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            // Bounded, should the clients take for ever.
            for turn in 0..100 {
                frame::send_all(&node.client, "uplink", syns(macs, turn)).unwrap();
                sent.fetch_add(600, Ordering::Relaxed);
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                thread::sleep(Duration::from_millis(100));
            }
        });
        thread::sleep(Duration::from_millis(500));
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            clients(&node, VIP4);
            clients(&node, VIP6);
        }));
        is_over.store(true, Ordering::Relaxed);
        if let Err(why) = seen {
            eprintln!("{}\n{}", metrics(), node.agent().log());
            std::panic::resume_unwind(why);
        }
    });
    let text = metrics();
    eprintln!(
        "{attach}: {} SYNs of a flood; cookies sent {}, taken back {}, endpoints that answered {}",
        sent.load(Ordering::Relaxed),
        ended("cookie_sent"),
        ended("cookie_taken"),
        ended("handshake_joined"),
    );
    for listener in ["l4-9100", "l6-9100"] {
        let armed = format!("sluice_kernel_syn_cookies_armed{{listener=\"{listener}\"}}");
        assert_eq!(metric(&text, &armed), Some(1.0), "{text}");
    }
    // All but those who slipped through before it was noticed.
    assert!(ended("cookie_sent") > 1_000.0, "{text}");
    let wanted = 2.0 * (f64::from(u32::try_from(CONNECTIONS).unwrap()) + 4.0);
    assert!(ended("cookie_taken") >= wanted && ended("handshake_joined") >= wanted - 2.0, "{text}");
    assert!(ended("cookie_refused") == 0.0, "{text}");
    if attach == "tc" {
        assert!(ended("too_big_answered") > 0.0, "the endpoint was told what fits: {text}");
    }
}

#[test]
fn a_flood_does_not_reach_the_endpoint_and_clients_come_through() {
    // What native XDP sends back to a veth stays there unless its other end has an XDP program, too.
    flooded("generic");
}

#[test]
fn the_same_at_tc() {
    flooded("tc");
}
