//! A node with many routes, whose neighbours and routes change all the time.

use std::{net::Ipv4Addr, process::Child};

use super::*;

/// Routes besides those of the node itself.
const ROUTES_OF_OTHERS: u32 = 20_000;
/// Times that an endpoint goes and comes back.
const ROUNDS: usize = 5;
/// From a decision to the maps, beside dumps for this test and whatever else the machine does.
const LIMIT: Duration = Duration::from_millis(250);

/// Changes of routes and neighbours without an end, until it is dropped: of the way to an endpoint, and of others.
struct Unrest(Child);

impl Unrest {
    fn start(node: &Node) -> Self {
        let mut lines = String::new();
        for n in 0..4 {
            for change in [
                format!("route replace 203.0.113.{n}/32 via 10.7.0.2"),
                format!("route del 203.0.113.{n}/32"),
                "route replace 10.7.2.2/32 dev sl-e2".to_owned(),
                "route del 10.7.2.2/32 dev sl-e2".to_owned(),
                format!("neigh replace 10.7.2.5{n} lladdr 02:00:00:00:00:0{n} dev sl-e2"),
                format!("neigh del 10.7.2.5{n} dev sl-e2"),
            ] {
                writeln!(lines, "{change}").unwrap();
            }
        }
        let file = node.folder.join("unrest");
        fs::write(&file, lines).unwrap();
        let line = format!("while :; do ip -batch {}; sleep 0.01; done", file.display());
        Self(node.node.command("sh").args(["-c", &line]).spawn().unwrap())
    }
}

impl Drop for Unrest {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// How long the maps said something else of the third endpoint than its checks, once both say that it is down, or not.
fn gap(node: &Node, is_down: bool) -> Duration {
    let addr = format!("{}:{HTTP}", Node::v4(2));
    let says = |list: &serde_json::Value, service: &str| {
        let list = list.as_array().unwrap().iter();
        let mut rows = list.filter(|row| row["service"].as_str().is_none_or(|name| name == service));
        rows.any(|row| row["address"] == addr.as_str() && (row["state"] == "down") == is_down)
    };
    let mut decided = None;
    let started = Instant::now();
    while started.elapsed() < STARTING {
        let asked = Instant::now();
        if let Some((_, text)) = node.node.run(|| get("/dump")) {
            let dump: serde_json::Value = serde_json::from_str(&text).unwrap();
            if says(&dump["served"]["endpoints"], "l4") {
                decided.get_or_insert(asked);
            }
            let mut services = dump["kernel"]["services"].as_array().unwrap().iter();
            let l4 = services.find(|service| service["address"].as_str().is_some_and(|at| at.contains(L4)));
            if let (Some(decided), true) = (decided, says(&l4.unwrap()["endpoints"], "l4")) {
                return decided.elapsed();
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("nothing is known of it\n{}", node.agent().log());
}

#[test]
fn a_loss_is_in_the_maps_at_once_whatever_routes_do() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(3).unwrap();
    let mut routes = String::from("route add default via 10.7.0.2\n");
    for n in 0..ROUTES_OF_OTHERS {
        let addr = Ipv4Addr::from(0x0a40_0000 + n);
        writeln!(routes, "route add {addr}/32 via 10.7.0.2").unwrap();
    }
    let file = node.folder.join("routes");
    fs::write(&file, routes).unwrap();
    node.node.ip(&format!("-batch {}", file.display())).unwrap();
    // Hooks where default routes lead: the agent has to know them.
    let text = config(&node, "required", &[0, 1, 2], ROUTES).replace("    interfaces: [\"sl-*\"]\n", "");
    node.start_agent(&text).unwrap();
    gap(&node, false);
    let _unrest = Unrest::start(&node);
    let mut gaps = Vec::new();
    for _ in 0..ROUNDS {
        node.origins[2] = None;
        gaps.push(gap(&node, true));
        node.start_origin(2).unwrap();
        gaps.push(gap(&node, false));
    }
    gaps.sort_unstable();
    let (median, longest) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    println!("{ROUTES_OF_OTHERS} routes: in the maps after {median:?}, {longest:?} at the longest");
    assert!(longest < LIMIT, "{gaps:?}");
}
