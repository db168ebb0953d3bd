//! Listeners that fail open: clients of an agent that was killed, or that hangs, reach endpoints without it.

use super::*;

const WEB6: &str = "fd08::1";

/// The silence after which workers are taken for gone.
const SILENCE: Duration = Duration::from_millis(600);

fn config(node: &Node) -> String {
    let ends = |port: u16, v6: bool| {
        let host = |idx| if v6 { format!("\"{}\"", Node::v6(idx)) } else { Node::v4(idx) };
        [0, 1].map(|idx| format!("{{ address: {}, port: {port} }}", host(idx))).join(", ")
    };
    node.agent_part("required")
        + &format!(
            "    failOpenAfter: {}ms
listeners:
  - {{ name: web, address: {WEB}, port: 80, protocol: HTTP, failMode: open }}
  - {{ name: web6, address: \"{WEB6}\", port: 80, protocol: HTTP, failMode: open }}
  - {{ name: closed, address: {WEB}, port: 81, protocol: HTTP }}
  - {{ name: held, address: {L4}, port: {TCP}, protocol: TCP, forwarding: agent, failMode: open }}
routes:
  - {{ name: web, listeners: [web, closed], rules: [ {{ backends: [ {{ service: web }} ] }} ] }}
  - {{ name: web6, listeners: [web6], rules: [ {{ backends: [ {{ service: web6 }} ] }} ] }}
  - {{ name: held, listeners: [held], rules: [ {{ backends: [ {{ service: held }} ] }} ] }}
services:
  - {{ name: web, endpoints: [ {} ] }}
  - {{ name: web6, endpoints: [ {} ] }}
  - {{ name: held, endpoints: [ {} ] }}
",
            SILENCE.as_millis(),
            ends(HTTP, false),
            ends(HTTP, true),
            ends(TCP, false),
        )
}

fn started() -> Node {
    let mut node = Node::new(2).unwrap();
    let text = config(&node);
    node.start_agent(&text).unwrap();
    // While the agent is silent, nobody asks for neighbours that are not known yet.
    until("every way is known", PATIENCE * 5, &node, || {
        let dump = dump(&node);
        let services = dump["kernel"]["services"].as_array().unwrap();
        let endpoints = services.iter().flat_map(|service| service["endpoints"].as_array().unwrap());
        endpoints.into_iter().all(|endpoint| endpoint["nextHop"] == true)
    });
    node
}

fn ask(to: &str) -> io::Result<String> {
    let (status, body) = client::get(addr(to, 80), "www", "/", PATIENCE)?;
    if status == 200 { Ok(body) } else { Err(io::Error::other(format!("status {status}"))) }
}

/// Packets that ended with a reason, at all hooks.
fn count(node: &Node, reason: &str) -> f64 {
    let text = node.node.run(|| get("/metrics")).map_or(String::new(), |(_, text)| text);
    let lines = text.lines().filter(|line| line.starts_with("sluice_packets_total"));
    let ours = lines.filter(|line| line.contains(&format!("reason=\"{reason}\"")));
    ours.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Connections of a listener that went to its endpoints past the agent.
fn past_the_agent(node: &Node, listener: &str) -> f64 {
    let text = node.node.run(|| get("/metrics")).map_or(String::new(), |(_, text)| text);
    let begin = format!("sluice_kernel_endpoint_total{{listener=\"{listener}\",");
    let lines = text.lines().filter(|line| line.starts_with(&begin) && line.contains("what=\"new_flows\""));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Clients of the agent reach the agent, both families.
fn is_served(node: &Node) {
    let (past, steered) = (count(node, "failed_open"), count(node, "steered"));
    assert!(node.client.run(|| ask(WEB)).is_ok() && node.client.run(|| ask(WEB6)).is_ok());
    // The metrics themselves are read over a connection that no hook steers.
    assert!(count(node, "steered") >= steered + 2.0, "the agent has none of them");
    assert!(count(node, "failed_open") <= past, "they went past the agent");
}

#[test]
fn clients_of_an_agent_that_is_killed_reach_endpoints_at_once_and_the_next_agent_again() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let mut node = started();
    is_served(&node);
    assert!(count(&node, "failed_open") < 1.0);
    let loads = [WEB, WEB6].map(|to| Load::start(&node.client, 2, 100, move || ask(to)));
    thread::sleep(Duration::from_millis(500));
    node.agent().signal(Signal::SIGKILL).unwrap();
    node.agent.as_mut().unwrap().wait(PATIENCE * 5).unwrap();
    let gone = Instant::now();
    thread::sleep(SILENCE * 2);
    let refused = node.client.run(|| client::get(addr(WEB, 81), "www", "/", PATIENCE));
    assert!(refused.is_err(), "what fails closed was answered: {refused:?}");
    let mut held = Held::open(&node.client);
    let text = fs::read_to_string(node.config()).unwrap();
    node.start_agent(&text).unwrap();
    thread::sleep(SILENCE);
    let answers: Vec<Answer> = loads.into_iter().flat_map(Load::stop).collect();
    let later: Vec<&Answer> = answers.iter().filter(|answer| answer.asked >= gone).collect();
    let failed: Vec<&&Answer> = later.iter().filter(|answer| answer.from.is_err()).collect();
    let in_between = answers.iter().filter(|answer| answer.asked < gone && answer.from.is_err()).count();
    println!(
        "{} connections after the agent was gone, {} failed; {in_between} of those before; {} packets past the agent",
        later.len(),
        failed.len(),
        count(&node, "failed_open"),
    );
    assert!(failed.is_empty(), "first {:?} of {}\n{}", failed[0], failed.len(), node.agent().log());
    assert!(later.len() > 100, "only {} connections", later.len());
    assert!(count(&node, "failed_open") > 0.0);
    is_served(&node);
    // A connection that began past the agent goes on so, beside those of the agent.
    assert_eq!(held.ask().unwrap(), held.name);
}

#[test]
fn clients_of_an_agent_that_hangs_reach_endpoints_until_it_goes_on() {
    if !privilege::require("network namespaces") {
        return;
    }
    let _alone = alone();
    let node = started();
    is_served(&node);
    assert!(past_the_agent(&node, "web") < 0.5);
    let mut through = Held::open(&node.client);
    node.agent().signal(Signal::SIGSTOP).unwrap();
    thread::sleep(SILENCE + Duration::from_millis(100));
    for to in [WEB, WEB6] {
        for _ in 0..20 {
            let answer = node.client.run(|| ask(to));
            assert!(answer.is_ok(), "{to}: {answer:?}");
        }
    }
    let mut past = Held::open(&node.client);
    node.agent().signal(Signal::SIGCONT).unwrap();
    thread::sleep(SILENCE);
    is_served(&node);
    assert!(count(&node, "failed_open") > 0.0);
    for listener in ["web", "web6"] {
        let past = past_the_agent(&node, listener);
        assert!((past - 20.0).abs() < 0.5, "{listener}: {past}");
    }
    // Both go on where they began.
    assert_eq!(through.ask().unwrap(), through.name);
    assert_eq!(past.ask().unwrap(), past.name);
    let dump = dump(&node);
    let services = dump["kernel"]["services"].as_array().unwrap();
    let open: Vec<_> = services.iter().filter(|service| !service["failOpen"].is_null()).collect();
    assert_eq!(open.len(), 3, "{services:?}");
    assert!(open.iter().all(|one| one["failOpen"]["silentWorkers"] == 0), "{open:?}");
    assert!(open.iter().any(|one| one["failOpen"]["connectionsPastTheAgent"] != 0), "{open:?}");
}
