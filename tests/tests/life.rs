//! What `docs/life-of-a-packet.md` shows is what bpftool says: a packet and its answer go through the kernel programs, and
//! the blocks of the document are dumped again. `UPDATE_EXPECT=1` writes them.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::format_push_string,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a suite fails loudly"
)]

use std::{collections::BTreeMap, process::Command};

use aya::maps::Map;
use gateway_common::{
    addr::Addr,
    counter::Hook,
    filter,
    flow::Tick,
    map::{self, MapDef as _},
};
use gateway_tests::{
    expect,
    kernel_run::Kernel,
    packet::{ACK, SYN, tcp},
    privilege, ticks,
    world::{ENDPOINT_MAC, INNER_MAC, TCP4, TICK_SHIFT, World},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde_json::Value;

const CLIENT: &str = "192.0.2.9:40000";
const VIRTUAL: &str = "198.51.100.1:443";
const ENDPOINT: &str = "10.0.0.10:8443";

#[test]
fn the_document_shows_what_bpftool_says() {
    if !privilege::require("dumping maps with bpftool") {
        return;
    }
    // The counts of both packets stand together only where both went through the same processor.
    let mut one = CpuSet::new();
    one.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
    let mut kernel = Kernel::load().unwrap();
    // A run that a tick of the clock falls into is run again.
    let blocks = std::iter::repeat_with(|| blocks(&mut kernel)).take(10).flatten().next();
    let blocks = blocks.expect("the clock stands still for as long as bpftool takes");
    let path = expect::root().join("docs/life-of-a-packet.md");
    let text = std::fs::read_to_string(&path).unwrap();
    expect::file(&path, &told(&text, &blocks));
}

/// The document with each block as it should be; a line `<!-- dump: NAME -->` stands before each.
fn told(text: &str, blocks: &BTreeMap<&'static str, String>) -> String {
    let mut told = String::new();
    let mut unused = blocks.clone();
    let mut rest = text;
    while let Some(at) = rest.find("<!-- dump: ") {
        let (before, marked) = rest.split_at(at);
        let (title, after) = marked.split_once('\n').expect("a marker has a line of its own");
        let name = title.trim_start_matches("<!-- dump: ").trim_end_matches(" -->");
        let block = blocks.get(name).unwrap_or_else(|| panic!("nobody knows what `{name}` should show"));
        unused.remove(name);
        let (_, behind) = after.split_once("```text\n").expect("a block follows");
        let (_, behind) = behind.split_once("```\n").expect("a block ends");
        told += &format!("{before}{title}\n\n```text\n{block}```\n");
        rest = behind;
    }
    assert!(unused.is_empty(), "the document does not show {:?}", unused.keys());
    told + rest
}

/// What bpftool says before, between and after; none when the clock moved on meanwhile.
fn blocks(kernel: &mut Kernel) -> Option<BTreeMap<&'static str, String>> {
    let now = ticks::now(TICK_SHIFT).unwrap();
    let mut world = World::new(now);
    world.slots_in_turns(TCP4);
    kernel.fill(&world.tables).unwrap();
    let mut blocks = BTreeMap::new();
    let mut dump = |kernel: &mut Kernel, title, name, row| {
        blocks.insert(title, shown(&lookup(kernel, name, row), now));
    };
    let bit = filter::bit(Addr::v4([198, 51, 100, 1]));
    dump(kernel, "filter", map::Filter::NAME, bit >> 6);
    let key = *world.tables.services.iter().find(|(_, service)| service.id == TCP4.0).unwrap().0;
    let wanted = |bucket: &gateway_common::service::ServiceBucket| {
        bucket.entries.iter().any(|entry| entry.is_taken() && entry.key() == key)
    };
    let index = world.tables.index();
    let bucket = index.iter().find(|(_, bucket)| wanted(bucket)).unwrap().0;
    dump(kernel, "service index", map::ServiceIndex::NAME, *bucket);
    dump(kernel, "service", map::Services::NAME, TCP4.0);
    let first_chunk = world.tables.services[&key].table().first_chunk;
    dump(kernel, "slots", map::Slots::NAME, first_chunk);

    let syn = tcp(CLIENT, VIRTUAL).flags(SYN);
    let sent = kernel.run(Hook::XdpBalance, &syn.bytes()).unwrap().bytes;
    let port = u16::from_be_bytes(sent[34..36].try_into().unwrap());
    let after = kernel.read(&world.tables).unwrap();
    let (flow, reply) = (*after.flows.keys().next().unwrap(), *after.replies.keys().next().unwrap());
    let row = after.live().next().unwrap().endpoint;
    dump(kernel, "endpoint", map::Endpoints::NAME, row);
    dump(kernel, "flow", map::Flows::NAME, flow);
    dump(kernel, "reply", map::Replies::NAME, reply);
    dump(kernel, "held", map::ServiceFlows::NAME, TCP4.0);

    let endpoint = world.tables.endpoints[&row];
    let from = ENDPOINT.replace("10.0.0.10", &std::net::IpAddr::from(endpoint.addr).to_string());
    let answer = tcp(&from, &format!("10.0.0.1:{port}")).flags(SYN | ACK).macs(ENDPOINT_MAC, INNER_MAC);
    kernel.run(Hook::XdpBalance, &answer.bytes()).unwrap();
    dump(kernel, "flow, answered", map::Flows::NAME, flow);
    dump(kernel, "reasons", map::Reasons::NAME, Hook::XdpBalance.number());
    dump(kernel, "counts of the service", map::ServiceCounts::NAME, TCP4.0);
    dump(kernel, "counts of the endpoint", map::EndpointCounts::NAME, row);
    (ticks::now(TICK_SHIFT).unwrap() == now).then_some(blocks)
}

/// A row as bpftool has it.
fn lookup(kernel: &mut Kernel, name: &str, row: u32) -> Value {
    let id = match kernel.object().map(name).expect("a map of the object") {
        Map::Array(data) | Map::PerCpuArray(data) => data.info().unwrap().id(),
        other => panic!("{name} is {other:?}"),
    };
    let mut command = Command::new("bpftool");
    command.args(["map", "lookup", "id", &id.to_string(), "key"]);
    command.args(row.to_le_bytes().map(|byte| byte.to_string()));
    let output = command.output().expect("bpftool runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A row for the document: a line for each field, without padding; of a row for each processor the one that counted.
fn shown(row: &Value, now: Tick) -> String {
    let value = match row.get("values") {
        Some(values) => {
            let of_cpus = values.as_array().unwrap().iter().map(|one| &one["value"]);
            of_cpus.max_by_key(|value| numbers(value)).unwrap()
        }
        None => &row["value"],
    };
    let mut text = format!("key {}\n", row["key"]);
    lines(value, 1, now, &mut text);
    text
}

/// All numbers of a value together.
fn numbers(value: &Value) -> u64 {
    match value {
        Value::Number(number) => number.as_u64().unwrap_or(0),
        Value::Array(values) => values.iter().map(numbers).sum(),
        Value::Object(fields) => fields.values().map(numbers).sum(),
        Value::Null | Value::Bool(_) | Value::String(_) => 0,
    }
}

fn lines(value: &Value, depth: usize, now: Tick, text: &mut String) {
    let indent = "  ".repeat(depth);
    // In the order of names, whatever order the reader keeps.
    let fields: BTreeMap<&String, &Value> = value.as_object().unwrap().iter().collect();
    for (name, field) in fields {
        if name.starts_with("pad") || name == "spare" {
            continue;
        }
        match field {
            Value::Object(_) if name == "expires" => {
                let left = field["count"].as_u64().unwrap() - u64::from(now.count());
                *text += &format!("{indent}{name}: now + {left}\n");
            }
            Value::Array(rows) if rows.first().is_some_and(Value::is_object) => {
                for (at, row) in rows.iter().enumerate().filter(|(_, row)| numbers(row) > 0) {
                    *text += &format!("{indent}{name}[{at}]:\n");
                    lines(row, depth + 1, now, text);
                }
            }
            Value::Object(fields) if fields.len() > 1 => {
                *text += &format!("{indent}{name}:\n");
                lines(field, depth + 1, now, text);
            }
            Value::Object(fields) => {
                let inner: Vec<String> = fields.values().map(short).collect();
                *text += &format!("{indent}{name}: {}\n", inner.join(" "));
            }
            other => *text += &format!("{indent}{name}: {}\n", short(other)),
        }
    }
}

/// A value on one line, as bpftool writes it.
fn short(value: &Value) -> String {
    match value {
        Value::Array(values) => format!("[{}]", values.iter().map(short).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}
