//! Endpoints that clients do not get through to, in every way of serving: out within the time that is documented, and back.

use std::{
    collections::BTreeSet,
    io, thread,
    time::{Duration, Instant},
};

use gateway_tests::{
    agent::get,
    client::{self, Load},
    node::{HTTP, Node},
    privilege,
};

use super::{L4, ROUTES, WEB, addr, alone, config, dump, until};

/// A whole window, a look, and three seconds for a machine with other things to do.
const NOTICED: Duration = Duration::from_secs(4 + 1 + 3);

/// Longer than a client takes to send its SYN once more, and once more again.
fn ask_patiently() -> io::Result<String> {
    client::get(addr(L4, HTTP), "l4", "/", Duration::from_secs(5)).map(|(_, body)| body)
}

fn ask_web() -> io::Result<String> {
    client::get(addr(WEB, 80), "www.example.org", "/", Duration::from_secs(5)).map(|(_, body)| body)
}

/// Endpoints of a service that clients' attempts took out, by index.
fn out(node: &Node, service: &str) -> BTreeSet<u8> {
    let dump = dump(node);
    let endpoints = dump["served"]["endpoints"].as_array().unwrap().iter();
    let because = serde_json::json!(["attempts"]);
    let out = endpoints.filter(|one| one["service"] == service && one["because"] == because);
    let index = |idx: &u8, address: &str| address == format!("{}:{HTTP}", Node::v4(*idx));
    out.map(|one| (0..3).find(|idx| index(idx, one["address"].as_str().unwrap())).unwrap()).collect()
}

fn passive(mode: &str) {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(3).unwrap();
    let terms =
        "passiveHealth: { window: 4s, minimumAttempts: 5, outTime: 6s, maxOutTime: 6s, maxOutPercent: 70 }";
    let text = config(&node, mode, &[0, 1, 2], ROUTES).replace("health: { http: { path: /healthz } }", terms);
    assert_eq!(text.matches(terms).count(), 2);
    if mode == "off" {
        // Without the kernel side addresses are the operator's.
        for ip in [WEB, L4] {
            node.node.ip(&format!("addr add {ip}/32 dev lo")).unwrap();
        }
    }
    node.start_agent(&text).unwrap();
    let l4 = Load::start(&node.client, 8, 100, ask_patiently);
    let web = Load::start(&node.client, 2, 50, ask_web);
    thread::sleep(Duration::from_secs(2));
    assert_eq!((out(&node, "l4"), out(&node, "web")), Default::default(), "{}", node.agent().log());

    // One refuses, and one says nothing at all.
    let lost = Instant::now();
    node.origins[2] = None;
    let silent = "add table ip hole; add chain ip hole in { type filter hook input priority 0; }; add rule ip hole in meta l4proto tcp drop";
    let output = node.endpoints[1].command("nft").arg(silent).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let both = BTreeSet::from([1, 2]);
    until("both are out", NOTICED, &node, || out(&node, "l4") == both);
    println!("{mode}: noticed after {} ms", lost.elapsed().as_millis());
    let text = node.node.run(|| get("/metrics")).unwrap().1;
    let gone = format!("sluice_endpoint_out{{service=\"l4\",endpoint=\"{}:{HTTP}\"}} 1", Node::v4(1));
    assert!(text.contains(&gone), "{text}");
    until("so do the agent's own connections", NOTICED, &node, || out(&node, "web").contains(&2));

    // They come back, and are used again.
    node.endpoints[1].tool("nft", "delete table ip hole").unwrap();
    node.start_origin(2).unwrap();
    until("all are trusted again", Duration::from_secs(20), &node, || {
        out(&node, "l4").is_empty() && out(&node, "web").is_empty()
    });
    thread::sleep(Duration::from_secs(2));
    let (l4, _web) = (l4.stop(), web.stop());
    for name in ["e2", "e3"] {
        assert!(client::was_used(&l4, lost, name));
        let of_it = |answer: &&client::Answer| answer.from.as_deref() == Ok(name);
        let again = l4.iter().rfind(of_it).map(|answer| answer.asked).unwrap();
        assert!(again > lost + NOTICED, "{name} was never used again\n{}", node.agent().log());
    }
    assert!(!node.agent().log().contains("cannot read what clients' attempts"), "{}", node.agent().log());
}

#[test]
fn who_is_not_reached_by_packets_goes_out_and_comes_back() {
    passive("required");
}

#[test]
fn who_is_not_reached_without_the_kernel_goes_out_and_comes_back() {
    passive("off");
}
