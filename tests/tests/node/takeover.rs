//! One agent after another, and surroundings that are not as the harness would like them.

use gateway_tests::{frame, packet};

use super::*;

/// Stops the agent as an operator does.
fn stop(node: &mut Node) {
    node.agent().signal(Signal::SIGTERM).unwrap();
    node.agent.as_mut().unwrap().wait(Duration::from_secs(10)).unwrap();
    node.agent = None;
}

pub(super) fn restart(node: &mut Node) {
    stop(node);
    let text = fs::read_to_string(node.config()).unwrap();
    node.start_agent(&text).unwrap();
}

/// A balanced listener for connections that stay, over one of two services.
fn held_config(node: &Node, blue: &[u8], service: &str) -> String {
    let list = |endpoints: &[u8]| {
        let one = |idx: &u8| format!("{{ address: {}, port: {TCP} }}", Node::v4(*idx));
        endpoints.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let (blue, green) = (list(blue), list(&[2]));
    node.agent_part("required")
        + &format!(
            "listeners:
  - {{ name: held, address: {L4}, port: {TCP}, protocol: TCP }}
routes:
  - {{ name: held, listeners: [held], rules: [ {{ backends: [ {{ service: {service} }} ] }} ] }}
services:
  - {{ name: blue, endpoints: [ {blue} ] }}
  - {{ name: green, endpoints: [ {green} ] }}
"
        )
}

fn take(node: &Node, text: &str) {
    let before = generation(node);
    node.write_config(text).unwrap();
    until("the new configuration is taken", Duration::from_secs(5), node, || generation(node) > before);
}

#[test]
fn connections_never_reach_the_socket_of_another_address() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(2).unwrap();
    let mut text = node.agent_part("required") + "listeners:\n";
    for number in 0..8 {
        writeln!(text, "  - {{ name: a{number}, address: {WEB}, port: {}, protocol: HTTP }}", 80 + number)
            .unwrap();
    }
    text += "routes:\n";
    for number in 0..8 {
        let service = number % 2;
        writeln!(text, "  - {{ name: a{number}, listeners: [a{number}], rules: [ {{ backends: [ {{ service: s{service} }} ] }} ] }}").unwrap();
    }
    text += "services:\n";
    for number in 0..2 {
        writeln!(
            text,
            "  - {{ name: s{number}, endpoints: [ {{ address: {}, port: {HTTP} }} ] }}",
            Node::v4(number)
        )
        .unwrap();
    }
    node.start_agent(&text).unwrap();
    let mut n_answers = 0;
    for _ in 0..3 {
        let ask = |number: u16| {
            move || {
                let answer = client::get(addr(WEB, 80 + number), "h", "/", Duration::from_millis(200));
                answer.map(|(_, body)| format!("{}:{body}", number % 2))
            }
        };
        let loads: Vec<Load> = (0..4).map(|number| Load::start(&node.client, 2, 300, ask(number))).collect();
        node.agent = None;
        node.node.ip("neigh flush all").unwrap();
        node.start_agent(&text).unwrap();
        thread::sleep(Duration::from_millis(300));
        let answers: Vec<String> =
            loads.into_iter().flat_map(Load::stop).filter_map(|answer| answer.from.ok()).collect();
        let wrong: Vec<&String> =
            answers.iter().filter(|answer| !["0:e1", "1:e2"].contains(&answer.as_str())).collect();
        assert!(wrong.is_empty(), "{} of {} went elsewhere: {}", wrong.len(), answers.len(), wrong[0]);
        n_answers += answers.len();
    }
    assert!(n_answers > 100, "only {n_answers} answers");
}

#[test]
fn an_agent_in_userspace_ends_what_an_earlier_one_left() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    for is_of_another_layout in [false, true] {
        let mut node = started("required");
        node.client.run(ask_web).unwrap();
        node.client.run(ask_l4).unwrap();
        stop(&mut node);
        if is_of_another_layout {
            fs::rename(node.pins(), node.pins().with_file_name("v1")).unwrap();
        }
        let text = config(&node, "off", &[0, 1, 2], ROUTES);
        node.start_agent(&text).unwrap();
        node.client.run(ask_web).unwrap();
        node.client.run(ask_l4).unwrap();
        let links = node.node.tool("ip", "-details link show").unwrap();
        assert!(!links.contains("prog/xdp"), "{links}");
        assert!(node.agent().log().contains("removed the hook of an earlier agent"));
    }
}

#[test]
fn links_as_the_kernel_makes_them_are_balanced_at_tc() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(3).unwrap();
    // Checksums left to hardware that is not there, and ends that take no frames: the defaults of a veth.
    for ns in node.endpoints.iter().chain([&node.client]) {
        ns.tool("ethtool", "-K uplink tx on gro off").unwrap();
    }
    let text = config(&node, "required", &[0, 1, 2], ROUTES).replace("attach: native", "attach: auto");
    node.start_agent(&text).unwrap();
    for _ in 0..10 {
        node.client.run(ask_l4).unwrap();
    }
    let (_, dump) = node.node.run(|| get("/dump")).unwrap();
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    assert_eq!(dump["kernel"]["attachments"]["sl-client"]["ingress"], "TC");
}

#[test]
fn endpoints_behind_a_bridge_are_reached() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(1).unwrap();
    for line in [
        "link add sl-br type bridge",
        "addr flush dev sl-e1",
        "link set sl-e1 master sl-br",
        "link set sl-br up",
        "addr add 10.7.1.1/24 dev sl-br",
    ] {
        node.node.ip(line).unwrap();
    }
    let text = config(&node, "required", &[0], ROUTES)
        .replace("attach: native", "attach: auto")
        .replace("[\"sl-*\"]", "[sl-client, sl-br]");
    node.start_agent(&text).unwrap();
    for _ in 0..10 {
        node.client.run(ask_l4).unwrap();
    }
}

#[test]
fn by_default_hooks_sit_where_packets_come_and_go() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(3).unwrap();
    node.node.ip("route add default via 10.7.0.2").unwrap();
    let text = config(&node, "required", &[0, 1, 2], ROUTES).replace("    interfaces: [\"sl-*\"]\n", "");
    node.start_agent(&text).unwrap();
    node.client.run(ask_web).unwrap();
    for _ in 0..10 {
        node.client.run(ask_l4).unwrap();
    }
}

#[test]
fn frames_of_a_vlan_are_left_alone_at_tc() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(1).unwrap();
    let text = config(&node, "required", &[0], ROUTES).replace("attach: native", "attach: tc");
    node.start_agent(&text).unwrap();
    let syn = |tag: Option<u16>| {
        let packet = packet::tcp("10.7.0.2:40000", &format!("{L4}:{HTTP}")).syn();
        let packet = if let Some(tag) = tag { packet.vlan(tag) } else { packet };
        let mut frame = packet.bytes();
        frame[..6].copy_from_slice(&frame::mac(&node.node, "sl-client").unwrap());
        frame[6..12].copy_from_slice(&frame::mac(&node.client, "uplink").unwrap());
        frame
    };
    let before = (reason(&node, "vlan"), reason(&node, "forwarded"));
    frame::send(&node.client, "uplink", &syn(None)).unwrap();
    until("a packet without a tag is balanced", Duration::from_secs(2), &node, || {
        reason(&node, "forwarded") > before.1
    });
    let before = (reason(&node, "vlan"), reason(&node, "forwarded"));
    frame::send(&node.client, "uplink", &syn(Some(100))).unwrap();
    until("the tag is seen", Duration::from_secs(2), &node, || reason(&node, "vlan") > before.0);
    let after = reason(&node, "forwarded");
    assert!((after - before.1).abs() < 0.5, "{} were forwarded", after - before.1);
}

#[test]
fn flows_of_an_endpoint_that_left_outlive_a_restart() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(3).unwrap();
    let text = held_config(&node, &[0, 1], "blue");
    node.start_agent(&text).unwrap();
    let mut held: Vec<Held> = (0..10).map(|_| Held::open(&node.client)).collect();
    assert!(held.iter().any(|held| held.name == "e1"));
    take(&node, &held_config(&node, &[1], "blue"));
    restart(&mut node);
    for held in &mut held {
        assert_eq!(held.ask().unwrap(), held.name);
    }
}

#[test]
fn flows_stay_when_a_route_changes_its_service() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = Node::new(3).unwrap();
    let text = held_config(&node, &[0, 1], "blue");
    node.start_agent(&text).unwrap();
    let mut held: Vec<Held> = (0..10).map(|_| Held::open(&node.client)).collect();
    take(&node, &held_config(&node, &[0, 1], "green"));
    for held in &mut held {
        assert_eq!(held.ask().unwrap(), held.name);
    }
    assert_eq!(Held::open(&node.client).name, "e3");
}

#[test]
fn an_endpoint_that_was_down_stays_down_over_a_restart() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = started("required");
    node.origins[2] = None;
    until("the loss is noticed", STARTING, &node, || {
        let text = node.node.run(|| get("/metrics")).map_or(String::new(), |(_, text)| text);
        let name = |service: &str| {
            format!("sluice_endpoint_up{{service=\"{service}\",endpoint=\"{}:{HTTP}\"", Node::v4(2))
        };
        ["web", "l4"].iter().all(|service| metric(&text, &name(service)) == Some(0.0))
    });
    stop(&mut node);
    // Whoever is sent to the endpoint is refused at once; a machine with other things to do is only slow.
    let ask = || client::get(addr(L4, HTTP), "l4", "/", Duration::from_secs(5)).map(|(_, body)| body);
    let load = Load::start(&node.client, 4, 200, ask);
    thread::sleep(Duration::from_millis(300));
    let text = fs::read_to_string(node.config()).unwrap();
    node.start_agent(&text).unwrap();
    thread::sleep(Duration::from_millis(2_500));
    let answers = load.stop();
    let failed: Vec<&Answer> = answers.iter().filter(|answer| answer.from.is_err()).collect();
    assert!(failed.is_empty(), "{} of {} failed, first {:?}", failed.len(), answers.len(), failed[0]);
    assert!(answers.len() > 200, "only {} were asked", answers.len());
}

#[test]
fn cleanup_beside_an_agent_is_refused_and_routes_come_back() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let node = started("required");
    let elsewhere = node.folder.join("nowhere");
    fs::create_dir_all(&elsewhere).unwrap();
    let (status, text) =
        agent::sluice(&node.node, &["cleanup", "--bpffs", elsewhere.to_str().unwrap()]).unwrap();
    assert_ne!(status, Some(0), "{text}");
    assert!(text.contains("another agent runs in this network namespace"), "{text}");
    node.client.run(ask_web).unwrap();
    // Somebody else takes the address away.
    node.node.ip(&format!("route del local {WEB} dev lo table local")).unwrap();
    until("the address is local again", Duration::from_secs(3), &node, || {
        let routes = node.node.tool("ip", "route show table local").unwrap();
        routes.contains(&format!("local {WEB} "))
    });
    node.client.run(ask_web).unwrap();
}

#[test]
fn an_agent_that_balances_nothing_is_not_ready() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = started("required");
    stop(&mut node);
    let text = config(&node, "required", &[0, 1, 2], ROUTES).replace("sl-*", "wan*");
    node.write_config(&text).unwrap();
    let mut unready =
        agent::Agent::spawn(&node.node, &node.config(), &node.folder.join("agent.log")).unwrap();
    let ready = || node.node.run(|| get("/ready"));
    let started = Instant::now();
    while ready().is_none() {
        assert!(started.elapsed() < STARTING, "{}", unready.log());
        thread::sleep(Duration::from_millis(20));
    }
    let why = "no interface with Ethernet frames is there to balance packets on";
    let started = Instant::now();
    while ready().is_none_or(|(status, text)| status != 503 || !text.contains(why)) {
        assert!(started.elapsed() < STARTING, "{:?}\n{}", ready(), unready.log());
        thread::sleep(Duration::from_millis(20));
    }
    // Nothing has to be told: the interface is found when it comes.
    node.node.ip("link add wan0 type veth peer name wan1").unwrap();
    node.node.ip("link set wan0 up").unwrap();
    let started = Instant::now();
    while ready().is_none_or(|(status, _)| status != 200) {
        assert!(started.elapsed() < STARTING, "{:?}\n{}", ready(), unready.log());
        thread::sleep(Duration::from_millis(20));
    }
    unready.signal(Signal::SIGTERM).unwrap();
    unready.wait(Duration::from_secs(10)).unwrap();
}
