//! The file from end to end: what good files come to, whether schema, tables and readers agree, and whether anything
//! at all can make a reader panic.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};

use crate::{
    config::{
        AccessField, AccessOutput, AccessSettings, AttachMode, ClientSettings, ClientTimeouts,
        InterfacePattern, Interfaces, KernelMode, LogFormat, LogLevel, OverloadSettings, SeedSource,
        TraceSettings,
        fault::Collector,
        keys, read,
        schema::json_schema,
        shape::{Shape, Table},
        yaml::{Document, Value},
    },
    field::Underscores,
    limits,
    pattern::Text,
    place::Place,
    retry,
    snapshot::{
        Snapshot,
        listener::{Forwarding, Hostname, Protocol},
        route::PathMatch,
        service::{CheckKind, HealthCheck, Policy, UpstreamProtocol},
    },
    source::file::{Loaded, load, parse},
    target::{Delimiters, Escaped, Repeated, Rules},
};

const LATER: Duration = Duration::from_millis(100);
const CALLS: retry::Calls = retry::Calls::NONE.with(14).with(1);
const KEEPING: Rules =
    Rules { repeated: Repeated::Keep, escaped: Escaped::Keep, delimiters: Delimiters::Reject };

fn good(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/testdata/good").join(name)
}

#[track_caller]
fn sound(name: &str) -> Loaded {
    load(&good(name)).unwrap_or_else(|faults| panic!("{faults}"))
}

#[track_caller]
fn faults(text: &str) -> Vec<String> {
    let faults = parse(Path::new("f.yaml"), text).expect_err("a fault");
    faults.iter().map(ToString::to_string).collect()
}

#[test]
fn the_full_file_says_how_long_clients_are_waited_for() {
    let agent = sound("full.yaml").config.agent;
    let seconds = Duration::from_secs;
    let timeouts = ClientTimeouts {
        proxy_header: seconds(1),
        hello: seconds(2),
        handshake: seconds(3),
        head: seconds(4),
        idle: seconds(5),
        answer: seconds(7),
        stall: seconds(6),
        bytes_per_second: 500,
    };
    assert_eq!(agent.client_timeouts, timeouts);
}

#[test]
fn the_full_file_comes_to_what_it_says() {
    let Loaded { config, snapshot, warnings } = sound("full.yaml");
    assert!(warnings.is_empty(), "{warnings}");
    let agent = config.agent;
    assert_eq!((agent.workers.get(), agent.drain_deadline), (2, Duration::from_secs(45)));
    assert_eq!(agent.admin.to_string(), "[::1]:9902");
    assert_eq!((agent.log.level, agent.log.format), (LogLevel::Debug, LogFormat::Json));
    let fields = vec![AccessField::Time, AccessField::Status, AccessField::Duration];
    let output = AccessOutput::File(PathBuf::from("/var/log/sluice/access.log"));
    assert_eq!(agent.access_log, Some(AccessSettings { output, fields, sample_percent: 10 }));
    let (delay, memory_bytes) = (Duration::from_millis(500), Some(2 << 30));
    assert_eq!(agent.overload, OverloadSettings { requests: 5_000, delay, memory_bytes });
    assert_eq!(agent.per_client, ClientSettings { connections: 200, streams: 1_000 });
    assert_eq!(agent.trace, TraceSettings { is_created: false, sampled_percent: 1 });
    assert_eq!((agent.kernel.mode, agent.kernel.attach), (KernelMode::Required, AttachMode::Generic));
    let Interfaces::Matching(patterns) = &agent.kernel.interfaces else { panic!("interfaces are written") };
    assert_eq!(patterns.iter().map(InterfacePattern::as_str).collect::<Vec<_>>(), ["eth0", "veth*"]);
    assert_eq!(agent.kernel.translation_ports, 50_000..=60_000);
    let SeedSource::Given(seed) = &agent.kernel.seed else { panic!("a seed is written") };
    assert_eq!(seed.expose(), (0..16).collect::<Vec<u8>>());
    let kernel = (agent.kernel.flows, agent.kernel.events, agent.kernel.pods);
    assert_eq!(kernel, (Some(65_536), 20, vec![InterfacePattern::new("lxc*")]));
    let receive = agent.kernel.receive.unwrap();
    assert_eq!((receive.peers.len(), receive.peers[1].prefix_bits, receive.port), (2, 96, 6_081));
    let Interfaces::Matching(patterns) = &receive.interfaces else { panic!("interfaces are written") };
    assert_eq!(patterns.iter().map(InterfacePattern::as_str).collect::<Vec<_>>(), ["eth1"]);

    let [web, secure, dns, dns_tcp] = snapshot.listeners.as_slice() else { panic!("four listeners") };
    assert_eq!((web.addr.to_string().as_str(), web.protocol), ("10.0.0.10:80", Protocol::Http));
    let rules = [web, secure].map(|one| (one.paths, one.underscores, one.trusted_hops));
    assert_eq!(rules, [(KEEPING, Underscores::Drop, 2), (Rules::DEFAULT, Underscores::DEFAULT, 0)]);
    assert_eq!(secure.hostname, Some(Hostname::Wildcard("example.org".to_owned())));
    assert!(secure.certificates[0].chain_pem.starts_with(b"-----BEGIN CERTIFICATE-----"));
    assert!(secure.certificates[0].key_pem.expose().starts_with(b"-----BEGIN PRIVATE KEY-----"));
    assert_eq!((dns.addr, dns.protocol), (dns_tcp.addr, Protocol::Udp));

    let rule = &snapshot.routes[0].rules[0];
    assert_eq!(rule.matches[0].path, PathMatch::Prefix("/api".to_owned()));
    assert_eq!(rule.matches[0].method, Some(http::Method::GET));
    assert_eq!(rule.matches[0].headers[0].0.as_str(), "x-canary");
    assert_eq!(rule.matches[0].query, [("v".to_owned(), Text::Exact("2".to_owned()))]);
    assert_eq!((rule.backends[0].weight, rule.backends[1].weight), (3, 1));
    assert_eq!(rule.request_timeout, Some(Duration::from_secs(10)));
    assert_eq!((rule.retry.attempts, rule.retry.backoff, rule.retry.calls), (3, LATER, CALLS));
    assert!(rule.retry.includes(503) && rule.retry.includes(500) && !rule.retry.includes(501));
    assert_eq!(snapshot.routes[0].rules[1].retry, retry::Policy::DEFAULT);
    let tunnels = rule.tunnels;
    assert_eq!((tunnels.websocket, tunnels.connect, tunnels.idle_timeout.as_secs()), (false, false, 600));
    let budgets: Vec<_> = snapshot.services.iter().map(|service| service.retries).collect();
    assert_eq!(
        budgets,
        [retry::Limits { percent: 50, per_second: 100 }, retry::Limits::DEFAULT, retry::Limits::DEFAULT]
    );
    let expressions = &snapshot.routes[0].rules[3].matches[0];
    assert!(matches!(&expressions.path, PathMatch::Pattern(pattern) if pattern.as_str() == "/v[0-9]+/.*"));
    assert!(matches!(&expressions.headers[0].1, Text::Pattern(pattern) if pattern.as_str() == "b+"));
    assert!(matches!(&expressions.query[0].1, Text::Pattern(pattern) if pattern.as_str() == "[a-z]*"));
    let [everything] = snapshot.routes[0].rules[4].matches.as_slice() else {
        panic!("one match stands for none")
    };
    assert_eq!(everything.path, PathMatch::Prefix("/".to_owned()));

    let [api, canary, dns] = snapshot.services.as_slice() else { panic!("three services") };
    assert_eq!((api.protocol, api.balance), (UpstreamProtocol::H2c, Policy::LeastRequest));
    let health = api.health.as_ref().unwrap();
    assert_eq!((health.unhealthy_threshold, health.healthy_threshold), (3, 2));
    let CheckKind::Http { statuses, .. } = &health.kind else { panic!("an HTTP check") };
    assert_eq!(*statuses, 200..=299);
    assert_eq!(canary.health.as_ref().unwrap().kind, CheckKind::Tcp);
    assert_eq!(dns.health, None);
    let tls = canary.tls.as_ref().unwrap();
    assert_eq!((canary.protocol, tls.server_name.as_str()), (UpstreamProtocol::H2, "canary.internal"));
    assert!(tls.trust.origin.ends_with("web.pem") && !tls.trust.is_of_system && tls.certificate.is_some());
    assert!(api.tls.is_none());
}

#[test]
fn defaults_are_those_of_the_limits() {
    let agent = sound("nothing.yaml").config.agent;
    assert_eq!(agent.drain_deadline, limits::DRAIN_DEADLINE);
    assert_eq!((agent.log.level, agent.log.format), (LogLevel::Info, LogFormat::Text));
    assert_eq!(agent.access_log, None);
    assert_eq!(agent.trace, TraceSettings { is_created: true, sampled_percent: 100 });
    assert_eq!((agent.kernel.mode, agent.kernel.attach), (KernelMode::Auto, AttachMode::Auto));
    assert_eq!(agent.kernel.interfaces, Interfaces::DefaultRoute);
    assert_eq!(agent.kernel.seed, SeedSource::Node);
    assert_eq!(agent.kernel.translation_ports, 61_000..=65_535);
    let service = sound("json.yaml").snapshot.services.remove(0);
    assert_eq!(service.connect_timeout, limits::CONNECT_TIMEOUT);
    assert_eq!((service.protocol, service.balance), (UpstreamProtocol::Http1, Policy::RoundRobin));
    assert_eq!(service.endpoints[0].weight, 1);
    let health = service.health.unwrap();
    assert_eq!((health.interval, health.timeout), (HealthCheck::INTERVAL, HealthCheck::TIMEOUT));
    assert_eq!(health.unhealthy_threshold, HealthCheck::UNHEALTHY);
    assert_eq!(health.healthy_threshold, HealthCheck::HEALTHY);
}

#[test]
fn a_prefix_ends_without_a_slash_and_zero_is_no_timeout() {
    let snapshot = sound("matches.yaml").snapshot;
    let rule = &snapshot.routes[0].rules[0];
    assert_eq!(rule.matches[1].path, PathMatch::Prefix("/api".to_owned()));
    assert_eq!(rule.matches[4].path, PathMatch::Prefix("/".to_owned()));
    assert_eq!(rule.request_timeout, None);
    assert_eq!(rule.backend_timeout, Some(Duration::from_mins(90)));
}

#[test]
fn warnings_are_located_like_faults() {
    let warnings = sound("warning-loose-ends.yaml").warnings;
    let found: Vec<(u32, &str)> =
        warnings.iter().map(|warning| (warning.line, warning.path.as_str())).collect();
    let expected = [
        (5, "listeners[1]"),
        (10, "routes[0].rules[0].backends[0].service"),
        (11, "routes[0].rules[1]"),
        (13, "services[0]"),
        (14, "services[1]"),
    ];
    assert_eq!(found, expected);
}

#[test]
fn faults_of_every_layer_come_together() {
    let found = faults(
        "agent: {log: {level: loud}}\n\
         listeners: [{name: a, address: 10.0.0.1, port: 1, protocol: TCP, x: 1}]\n\
         routes: [{name: r, listeners: [b], rules: [{backends: [{service: s}]}]}]\n",
    );
    let paths: Vec<&str> = found.iter().map(|fault| fault.split(": ").nth(1).unwrap()).collect();
    assert_eq!(paths, ["agent.log.level", "listeners[0]", "listeners[0].x", "routes[0].listeners[0]"]);
}

#[test]
fn a_fault_inside_an_alias_names_its_use_and_points_at_its_source() {
    let found = faults(
        "listeners: []\nservices:\n  - name: a\n    endpoints: &e\n      - {address: 10.0.0.1, port: 0}\n  - name: b\n    endpoints: *e\n",
    );
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("f.yaml:5:35: services[0].endpoints[0].port: "), "{}", found[0]);
    assert!(found[1].starts_with("f.yaml:5:35: services[1].endpoints[0].port: "), "{}", found[1]);
}

#[test]
fn faults_never_show_a_key() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("k"),
        "-----BEGIN PRIVATE KEY-----\nU0VDUkVU!\n-----END PRIVATE KEY-----\n",
    )
    .unwrap();
    let text = "agent: {kernel: {seedFile: k}}\nlisteners: [{name: a, address: 10.0.0.1, port: 1, protocol: HTTPS, \
                tls: {certificates: [{certificateFile: k, keyFile: k}], clientCertificates: {trustFile: k}, ticketKeysFile: k}}]\n";
    let faults = parse(&dir.path().join("f.yaml"), text).unwrap_err();
    assert_eq!(faults.count(), 5, "{faults}");
    assert!(!faults.to_string().contains("U0VDUkVU"));
}

#[test]
fn the_authorities_of_the_system_are_a_file_like_others() {
    let text =
        "listeners: []\nservices: [{name: a, endpoints: [], tls: {serverName: 192.0.2.1, trust: system}}]\n";
    match parse(Path::new("f.yaml"), text) {
        Ok(loaded) => {
            let trust = &loaded.snapshot.services[0].tls.as_ref().unwrap().trust;
            assert!(trust.is_of_system && trust.origin.starts_with("/etc/"), "{}", trust.origin);
            assert!(trust.pem.starts_with(&std::fs::read(&trust.origin).unwrap()));
        }
        // A machine without them is told what to do.
        Err(faults) => {
            assert!(faults.to_string().contains("install the package `ca-certificates`"), "{faults}");
        }
    }
}

/// Every table and its keys, as the readers should ask for them.
fn all_keys(table: &'static Table, keys: &mut BTreeSet<(&'static str, String)>) {
    fn inner(shape: &Shape) -> Option<&'static Table> {
        match shape {
            Shape::Table(table) => Some(table),
            Shape::List(list) => inner(&list.item),
            Shape::Text(_) | Shape::Integer { .. } | Shape::Word(_) | Shape::Duration { .. } => None,
        }
    }
    for field in table.fields {
        keys.insert((table.name, field.key.to_owned()));
        if let Some(table) = inner(&field.shape) {
            all_keys(table, keys);
        }
    }
}

#[test]
fn the_readers_read_every_key_of_the_tables_and_no_other() {
    sound("full.yaml");
    sound("forwarded.yaml");
    let mut keys = BTreeSet::new();
    all_keys(&keys::ROOT, &mut keys);
    assert_eq!(read::tests::noted(), keys);
}

#[test]
fn forwarded_connections_come_to_what_they_say() {
    let Snapshot { listeners, services, .. } = sound("forwarded.yaml").snapshot;
    let [names, database] = listeners.as_slice() else { panic!("two listeners") };
    assert_eq!((names.protocol, names.idle_timeout), (Protocol::Tls, Duration::from_mins(5)));
    assert_eq!((database.forwarding, database.idle_timeout), (Forwarding::Agent, Duration::from_hours(1)));
    assert!(names.is_by_agent() && database.is_by_agent());
    let believed = |addr: &str| database.proxies.iter().any(|one| one.contains(addr.parse().unwrap()));
    let addrs = ["10.9.255.1", "10.8.0.1", "10.8.0.2", "10.10.0.1"];
    assert_eq!(addrs.map(believed), [true, true, false, false]);
    assert!(services[0].is_announced);
}

fn tree(name: &str) -> Option<Json> {
    let text = std::fs::read_to_string(name).ok()?;
    let collector = Collector::default();
    let document = Document::parse(&Arc::from(Path::new(name)), &text, &collector)?;
    collector.is_empty().then(|| to_json(&document, document.root()))
}

/// As YAML 1.2 has it, for the scalars that occur.
fn to_json(document: &Document, place: Place) -> Json {
    match document.value(place) {
        Value::Null => Json::Null,
        Value::Plain(text) => match (text.parse::<i64>(), text.parse::<f64>(), text.as_str()) {
            (Ok(n), ..) => json!(n),
            (_, Ok(n), _) => json!(n),
            (_, _, "true") => json!(true),
            _ => json!(text),
        },
        Value::Quoted(text) => json!(text),
        Value::List(items) => items.iter().map(|item| to_json(document, *item)).collect(),
        Value::Map(entries) => {
            let entry =
                |entry: &crate::config::yaml::Entry| (entry.key.clone(), to_json(document, entry.value));
            Json::Object(entries.iter().map(entry).collect::<Map<_, _>>())
        }
    }
}

/// The part of JSON schema that ours uses, but for patterns.
fn validates(value: &Json, schema: &Json, root: &Json) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        return validates(value, root.pointer(reference.strip_prefix('#').unwrap()).unwrap(), root);
    }
    let is = |word: &str| match word {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        other => panic!("unknown type {other}"),
    };
    let fits = match &schema["type"] {
        Json::String(word) => is(word),
        Json::Array(words) => words.iter().any(|word| is(word.as_str().unwrap())),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::Object(_) => true,
    };
    let bound = |key: &str| schema[key].as_u64();
    let length = value.as_array().map_or(0, |items| u64::try_from(items.len()).unwrap());
    let integer = value.as_i64().unwrap_or(0);
    let below =
        |key: &str| bound(key).is_some_and(|bound| value.is_i64() && integer < i64::try_from(bound).unwrap());
    let above =
        |key: &str| bound(key).is_some_and(|bound| value.is_i64() && integer > i64::try_from(bound).unwrap());
    let counted = value.is_array()
        && (bound("minItems").is_some_and(|min| length < min)
            || bound("maxItems").is_some_and(|max| length > max));
    let word = schema["enum"].as_array().is_some_and(|words| !words.contains(value));
    if !fits || counted || below("minimum") || above("maximum") || word {
        return Err(format!("{value} does not fit {schema}"));
    }
    for item in value.as_array().into_iter().flatten() {
        validates(item, &schema["items"], root)?;
    }
    let Some(object) = value.as_object() else { return Ok(()) };
    let has = |key: &Json| object.contains_key(key.as_str().unwrap());
    if let Some(missing) = schema["required"].as_array().into_iter().flatten().find(|key| !has(key)) {
        return Err(format!("{missing} is missing in {value}"));
    }
    if let Some(cases) = schema["oneOf"].as_array()
        && cases.iter().filter(|case| case["required"].as_array().unwrap().iter().all(has)).count() != 1
    {
        return Err(format!("{value} is not one of {cases:?}"));
    }
    for (key, value) in object {
        let property = schema["properties"].get(key).ok_or_else(|| format!("unknown key {key}"))?;
        validates(value, property, root)?;
    }
    Ok(())
}

#[test]
fn the_schema_takes_what_the_reader_takes() {
    let schema = json_schema();
    let folder = good("");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut n_files = 0;
    for file in files.filter(|file| file.extension().is_some_and(|extension| extension == "yaml")) {
        let json = tree(file.to_str().unwrap()).expect("a good file has a tree");
        assert_eq!(validates(&json, &schema, &schema), Ok(()), "{}", file.display());
        n_files += 1;
    }
    assert!(n_files >= 5, "only {n_files} files");
}

#[test]
fn the_schema_refuses_what_the_reader_refuses_by_shape() {
    let schema = json_schema();
    let names = [
        "unknown-key-no-guess",
        "misspelled-key",
        "missing-keys",
        "listener-is-text",
        "listeners-is-mapping",
        "null-value",
        "name-is-number",
        "name-is-boolean",
        "empty-required-list",
        "port-zero",
        "port-too-large",
        "port-quoted",
        "protocol-lower-case",
        "path-type",
        "method-lower-case",
        "header-value-number",
        "backend-weight-large",
        "backend-weight-fraction",
        "timeout-without-unit",
        "health-no-kind",
        "health-two-kinds",
        "health-threshold-zero",
        "balance-unknown",
        "no-listeners",
        "top-level-list",
    ];
    for name in names {
        let json = tree(good(&format!("../bad/{name}.yaml")).to_str().unwrap()).expect("a tree");
        assert!(validates(&json, &schema, &schema).is_err(), "{name}");
    }
}

#[test]
fn a_large_file_is_read_and_bounded() {
    let n_services = 25;
    let service = |idx: usize, n: usize| {
        let endpoint = |n: usize| format!("{{address: 10.{}.{}.{}, port: 80}}", idx, n / 256, n % 256);
        let endpoints: Vec<String> = (0..n).map(endpoint).collect();
        format!("  - {{name: s{idx}, endpoints: [{}]}}\n", endpoints.join(", "))
    };
    let file = |n: usize| -> String {
        let services: String = (0..n_services).map(|idx| service(idx, n)).collect();
        format!("listeners: []\nservices:\n{services}")
    };
    let loaded = parse(Path::new("f.yaml"), &file(4_000)).unwrap();
    let n_endpoints: usize = loaded.snapshot.services.iter().map(|service| service.endpoints.len()).sum();
    assert_eq!(n_endpoints, limits::ENDPOINTS);
    let found = faults(&file(4_001));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("more than 100000 endpoints"), "{}", found[0]);
    assert!(faults(&file(4_097))[0].contains("4097 items, more than the bound of 4096"));
}

#[test]
fn keys_from_outside_stay_short_and_on_one_line() {
    let found = faults(&format!("listeners: []\n\"a\\nb\": 1\n{}: 1\n\"a\\nb\": 2\n", "k".repeat(900)));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.iter().all(|fault| fault.len() < 900 && !fault.contains('\n')), "{found:?}");
}

/// Reads anything; whatever comes of it, a refusal says why.
fn survives(text: &str) {
    match parse(&good("any.yaml"), text) {
        Ok(loaded) => assert!(loaded.warnings.iter().all(|warning| !warning.remedy.is_empty())),
        Err(faults) => {
            assert!(!faults.is_empty());
            for fault in &faults {
                assert!(fault.line > 0 && fault.column > 0, "{fault}");
                assert!(!fault.message.is_empty() && !fault.remedy.is_empty(), "{fault}");
                assert!(!fault.to_string().contains('\n'), "{fault}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_survived(text in "\\PC{0,200}") {
        survives(&text);
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        survives(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_yaml_signs_are_survived(text in "[-a-z:{}\\[\\],&*!?|>'\"%@`#<~ \t\n0-9.]{0,160}") {
        survives(&text);
    }

    /// A good file with one piece cut out or replaced, which gets deep into every reader.
    #[test]
    fn any_edit_of_a_good_file_is_survived(
        at in 0.0..1.0_f64,
        cut in 0_usize..40,
        put in prop::sample::select(vec!["", "null", "[]", "{}", "-1", "x", "\"", ": ", "\n", "*a", "99999999999", "é"]),
    ) {
        let text = std::fs::read_to_string(good("full.yaml")).unwrap();
        let letters: Vec<char> = text.chars().collect();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
            clippy::as_conversions, reason = "a share of a short file")]
        let first = (at * letters.len() as f64) as usize;
        let last = (first + cut).min(letters.len());
        let edited: String = letters[..first].iter().copied().chain(put.chars()).chain(letters[last..].iter().copied()).collect();
        survives(&edited);
    }
}
