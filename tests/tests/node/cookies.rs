//! A flood of connections that nobody means, and clients who mean it.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use gateway_tests::{
    agent::{get, metric},
    client, frame,
    netns::Ns,
    node::{HTTP, Node},
    packet::{icmp, tcp},
    privilege,
};

use super::{addr, alone, until};

const WEB6: &str = "fd08::1";
const WEB4: &str = "10.8.0.1";

/// Requests while the flood lasts, of each family.
const REQUESTS: usize = 40;

fn config(node: &Node, attach: &str) -> String {
    node.agent_part("required").replace("attach: native", &format!("attach: {attach}"))
        + &format!(
            "listeners:
  - {{ name: web, address: {WEB4}, port: 80, protocol: HTTP, synCookies: {{ perSecond: 200 }} }}
  - {{ name: web6, address: \"{WEB6}\", port: 80, protocol: HTTP, synCookies: {{ perSecond: 200 }} }}
routes:
  - {{ name: web, listeners: [web, web6], rules: [ {{ backends: [ {{ service: web }} ] }} ] }}
services:
  - {{ name: web, endpoints: [ {{ address: {}, port: {HTTP} }} ] }}
",
            Node::v4(0)
        )
}

/// SYNs from addresses that the node would answer, and where nobody is.
fn syns(macs: ([u8; 6], [u8; 6]), n: u32, v6: bool) -> impl Iterator<Item = Vec<u8>> {
    (0..n).map(move |idx| {
        let port = 1_024 + idx % 60_000;
        let (source, to) = if v6 {
            let addr = Ipv6Addr::from((0xfd09_u128 << 112) + u128::from(idx));
            (format!("[{addr}]:{port}"), format!("[{WEB6}]:80"))
        } else {
            let addr = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + idx % 100_000);
            (format!("{addr}:{port}"), format!("{WEB4}:80"))
        };
        tcp(&source, &to).payload(b"").syn().tcp_option_bytes(&[2, 4, 5, 0xb4]).macs(macs.0, macs.1).bytes()
    })
}

fn metrics(node: &Node) -> String {
    node.node.run(|| get("/metrics")).map_or(String::new(), |(_, text)| text)
}

/// A counter of a stack's, by its names in a file of `/proc/net`.
fn stack_counter(ns: &Ns, (file, group, name): (&str, &str, &str)) -> u64 {
    let text = ns.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|one| one == name).unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

fn flooded(attach: &str) {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(1).unwrap();
    // A short queue is full early.
    node.node.tool("sysctl", "-w net.core.somaxconn=16").unwrap();
    node.node.ip("route add 198.18.0.0/15 via 10.7.0.2").unwrap();
    node.node.ip("-6 route add fd09::/16 via fd07::2").unwrap();
    let text = config(&node, attach);
    node.start_agent(&text).unwrap();
    let macs = (frame::mac(&node.client, "uplink").unwrap(), frame::mac(&node.node, "sl-client").unwrap());
    let ask = |web: &str| {
        node.client
            .run(|| client::get(addr(web, 80), "www", "/", Duration::from_secs(3)))
            .map(|(status, _)| status)
    };
    assert_eq!((ask(WEB4).unwrap(), ask(WEB6).unwrap()), (200, 200));
    // Neither stack sends the one or wants the other, but the client's counts what it gets.
    let ping = icmp("10.7.0.2:0", &format!("{WEB4}:0")).macs(macs.0, macs.1).bytes();
    frame::send(&node.client, "uplink", &ping).unwrap();
    let replies = || stack_counter(&node.client, ("snmp", "Icmp:", "InEchoReps"));
    until("an echo reply", Duration::from_secs(2), &node, || replies() == 1);
    assert!(metrics(&node).contains("reason=\"echo_answered\"} 1"), "{}", metrics(&node));
    let armed = |listener: &str| {
        metric(&metrics(&node), &format!("sluice_kernel_syn_cookies_armed{{listener=\"{listener}\"}}"))
            .unwrap()
    };
    assert_eq!((armed("web"), armed("web6")), (0.0, 0.0));
    let (is_over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut answers = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            // Bounded, should the requests take for ever: 60 turns of a tenth of a second or more.
            for _ in 0..60 {
                for v6 in [false, true] {
                    frame::send_all(&node.client, "uplink", syns(macs, 1_000, v6)).unwrap();
                    sent.fetch_add(1_000, Ordering::Relaxed);
                }
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                thread::sleep(Duration::from_millis(100));
            }
        });
        thread::sleep(Duration::from_millis(500));
        for _ in 0..REQUESTS {
            answers.push((ask(WEB4).unwrap_or(0), ask(WEB6).unwrap_or(0)));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let bad = answers.iter().filter(|answer| **answer != (200, 200)).count();
    let text = metrics(&node);
    let count = |listener: &str| {
        metric(&text, &format!("sluice_kernel_syn_cookies_total{{listener=\"{listener}\"}}")).unwrap()
    };
    let taken = stack_counter(&node.node, ("netstat", "TcpExt:", "SyncookiesRecv"));
    eprintln!(
        "{attach}: {} SYNs of a flood, {} + {} answered with cookies, {taken} taken back, {bad} of {REQUESTS} requests failed",
        sent.load(Ordering::Relaxed),
        count("web"),
        count("web6"),
    );
    assert_eq!(bad, 0, "clients who mean it: {answers:?}\n{}", node.agent().log());
    assert_eq!((armed("web"), armed("web6")), (1.0, 1.0));
    assert!(count("web") > 1_000.0 && count("web6") > 1_000.0, "{text}");
    assert!(taken > 0, "no connection began with a cookie");
    until("the end of it", Duration::from_secs(16), &node, || armed("web") == 0.0 && armed("web6") == 0.0);
    assert_eq!((ask(WEB4).unwrap(), ask(WEB6).unwrap()), (200, 200));
}

#[test]
fn a_flood_is_answered_with_cookies_and_clients_come_through() {
    // What native XDP sends back to a veth stays there unless its other end has an XDP program, too.
    flooded("generic");
}

#[test]
fn the_same_at_tc() {
    flooded("tc");
}
