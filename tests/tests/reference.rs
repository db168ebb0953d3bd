//! The generated references are what the code says.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a suite fails loudly"
)]

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use gateway_common::{
    counter::{Class, Hook, Reason},
    layout,
    map::{self, Kind},
};
use gateway_tests::expect;
use gateway_userspace::{
    guard::Refused,
    health::{Outcome, passive::Verdict},
    http::fault::TABLE,
    metrics::{
        Metrics,
        datagram::Loss,
        forwarded::ForwardOutcome,
        kernel::EndpointSample as KernelEndpoint,
        misuse::Misuse,
        names::{
            BindLabels, EndpointSample, FaultKind, Limit, ModeLabels, OutcomeLabels, PacketSample,
            PoolSample, ProbeLabels, Samples, ServiceSample,
        },
        refusal::Refusal,
        shard::RouteLabels,
        timeout::ClientTimeout,
        tunnel::{TunnelKind, TunnelOutcome},
    },
};

#[test]
fn maps() {
    let mut text =
        String::from("# Maps and reasons\n\nGenerated from `gateway-common`; a test compares.\n\n");
    let version = layout::LAYOUT_VERSION;
    let flow_version = layout::FLOW_LAYOUT_VERSION;
    writeln!(
        text,
        "Everything is pinned under `/sys/fs/bpf/{root}/v{version}/`, the flow tables under `/sys/fs/bpf/{root}/flow-v{flow_version}/`; a pin has the map's name in lower case.\nCapacities are defaults: the agent sets them when it makes a map.\n",
        root = layout::PIN_ROOT,
    )
    .unwrap();
    text.push_str("| map | kind | capacity | key | value | what for |\n|---|---|---|---|---|---|\n");
    for map in map::ALL {
        writeln!(
            text,
            "| `{}` | {} | {} | {} bytes | {} bytes |{} |",
            map.name,
            kind(map.kind),
            map.capacity,
            map.key_size,
            map.value_size,
            map.help
        )
        .unwrap();
    }
    text.push_str("\n`bpftool map dump pinned PATH` prints field names for all but the sockmap, the program arrays and the ring, which cannot carry them.\n");
    text.push_str("\n## Reasons\n\nEach packet is counted as received and under one other reason, at the hook that saw it.\n");
    let hooks: Vec<String> =
        Hook::ALL.iter().map(|hook| format!("`{}` {}", hook.name(), hook.number())).collect();
    writeln!(
        text,
        "The key in `REASONS` is the hook, and its value has a count for each number; hooks: {}.\n",
        hooks.join(", ")
    )
    .unwrap();
    text.push_str("| number | reason | packet | meaning |\n|---|---|---|---|\n");
    for reason in Reason::ALL {
        let class = match reason.class() {
            Class::Received => "arrives",
            Class::Passed => "passes untouched",
            Class::Forwarded => "forwarded",
            Class::Dropped => "dropped",
            Class::Answered => "answered",
        };
        writeln!(text, "| {} | `{}` | {class} |{} |", reason.number(), reason.name(), reason.help()).unwrap();
    }
    expect::file(&expect::root().join("docs/reference/maps.md"), &text);
}

const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Array => "array",
        Kind::MappedArray => "array, mapped",
        Kind::PerCpuArray => "per-CPU array",
        Kind::LpmTrie => "trie of prefixes",
        Kind::SockMap => "sockmap",
        Kind::ProgArray => "program array",
        Kind::RingBuf => "ring buffer",
        Kind::LruHash => "LRU hash",
    }
}

#[test]
fn documents_name_pins_that_exist() {
    let root = layout::PIN_ROOT;
    let tables = format!("{root}/v{}/", layout::LAYOUT_VERSION);
    let flows = format!("flow-v{}", layout::FLOW_LAYOUT_VERSION);
    let mut n_named = 0;
    for page in std::fs::read_dir(expect::root().join("docs")).unwrap() {
        let page = page.unwrap().path();
        if page.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = std::fs::read_to_string(&page).unwrap();
        for (named, present) in [(format!("{root}/v"), &tables), ("flow-v".to_owned(), &flows)] {
            for (at, _) in text.match_indices(&named) {
                let rest = &text[at..];
                let number = rest[named.len()..].bytes().take_while(u8::is_ascii_digit).count();
                let is_present = rest.starts_with(present.as_str())
                    && present.trim_end_matches('/').len() == named.len() + number;
                assert!(is_present, "{}: `{}`", page.display(), &rest[..named.len() + number]);
                n_named += 1;
            }
        }
    }
    assert!(n_named >= 3, "{n_named}");
}

#[test]
fn faults() {
    let mut text = String::from(
        "# Faults\n\nGenerated from the table that answers come from (`http::fault`); a test compares.\n\n\
         A request that cannot be served is answered by the gateway: with a status and one line of text, or, when its \
         `content-type` is that of gRPC, with `grpc-status` and `grpc-message` and status 200.\n\
         Each is counted in `sluice_request_faults_total` under its kind.\n\
         *Again* says whether the request may be sent to another endpoint: `yes` when no endpoint can have begun with it, \
         `if idempotent` when it may have, and sending it twice has the effect of once (RFC 9110, section 9.2.2), and its \
         body is short enough to be remembered.\n\n\
         | kind | side | again | status | gRPC | `retry-after` | meaning | remedy |\n|---|---|---|---|---|---|---|---|\n",
    );
    for row in &TABLE {
        writeln!(
            text,
            "| `{}` | {} | {} | {} | {} `{}` | {} | {} | {} |",
            row.kind.as_str(),
            row.side.as_str(),
            row.retry.as_str(),
            row.status.as_u16(),
            row.grpc.number(),
            row.grpc.name(),
            row.retry_after_s.map_or_else(String::new, |seconds| format!("{seconds} s")),
            row.meaning,
            row.remedy
        )
        .unwrap();
    }
    expect::file(&expect::root().join("docs/reference/faults.md"), &text);
}

#[test]
fn metrics() {
    let mut text = String::from(
        "# Metrics\n\nGenerated from what `/metrics` of the admin endpoint prints; a test compares.\nLabels come from the configuration or from closed sets, never from requests, so that the number of series is bounded.\n\n",
    );
    text.push_str("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for (name, family) in families(&everything().encode().unwrap()) {
        writeln!(text, "| `{name}` | {} | {} | {} |", family.kind, family.labels.join(", "), family.help)
            .unwrap();
    }
    text.push_str("\n## Closed sets\n\n");
    let list = |words: Vec<&str>| words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    let kinds = FaultKind::ALL.iter().map(|kind| kind.as_str()).collect();
    writeln!(text, "- `kind` of a fault: {}", list(kinds)).unwrap();
    writeln!(text, "- `limit`: {}", list(Limit::ALL.iter().map(|limit| limit.as_str()).collect())).unwrap();
    let reasons = Refusal::ALL.iter().map(|reason| reason.as_str()).collect();
    writeln!(text, "- `reason` of a refused request: {}", list(reasons)).unwrap();
    let reasons = Misuse::ALL.iter().map(|reason| reason.as_str()).collect();
    writeln!(text, "- `reason` of a misuse of HTTP/2: {}", list(reasons)).unwrap();
    let reasons = Loss::ALL.iter().map(|reason| reason.as_str()).collect();
    writeln!(text, "- `reason` of a lost datagram: {}", list(reasons)).unwrap();
    let timeouts = ClientTimeout::ALL.iter().map(|timeout| timeout.as_str()).collect();
    writeln!(text, "- `timeout` of a client: {}", list(timeouts)).unwrap();
    let outcomes = Outcome::ALL.iter().map(|outcome| outcome.as_str()).collect();
    writeln!(text, "- `outcome` of a health check: {}", list(outcomes)).unwrap();
    let outcomes = ForwardOutcome::ALL.iter().map(|outcome| outcome.as_str()).collect();
    writeln!(text, "- `outcome` of a forwarded connection: {}", list(outcomes)).unwrap();
    let outcomes = TunnelOutcome::ALL.iter().map(|outcome| outcome.as_str()).collect();
    writeln!(text, "- `outcome` of a tunnel: {}", list(outcomes)).unwrap();
    let kinds = TunnelKind::ALL.iter().map(|kind| kind.as_str()).collect();
    writeln!(text, "- `kind` of a tunnel: {}", list(kinds)).unwrap();
    writeln!(text, "- `verdict`: {}", list(Verdict::WORDS.to_vec())).unwrap();
    let reasons = Refused::ALL.iter().map(|reason| reason.as_str()).collect();
    writeln!(text, "- `reason` of what the agent refused: {}", list(reasons)).unwrap();
    writeln!(text, "- `hook`: {}", list(Hook::ALL.iter().map(|hook| hook.name()).collect())).unwrap();
    text.push_str("- `reason` of packets: [maps.md](maps.md)\n");
    expect::file(&expect::root().join("docs/reference/metrics.md"), &text);
}

/// One series of every metric.
fn everything() -> Metrics {
    let metrics = Metrics::new(1);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    metrics.watch_tasks("t", runtime.handle());
    let route = metrics.route(&RouteLabels { listener: "l".to_owned(), route: "r".to_owned() });
    route.record(0, 200, Duration::from_millis(1));
    route.fault(0, FaultKind::NoRoute);
    let service = metrics.service("s");
    service.tried(0);
    service.retried(0);
    service.connected(0);
    service.connect_failed(0);
    // What counts lives as long as somebody holds it; here until the text is made.
    std::mem::forget((route, service));
    let bind = BindLabels { address: "a".to_owned(), protocol: "tcp" };
    let families = &metrics.families;
    families.accepted.get_or_create(&bind).inc();
    families.open.get_or_create(&bind).inc();
    families.misdirected.get_or_create(&bind).inc();
    families.handshake_failures.get_or_create(&bind).inc();
    families.datagrams.at(&bind).count(Loss::NoEndpoint);
    families.misuse(Misuse::Control);
    families.client_timeout(ClientTimeout::Head);
    families.guarded.count(&bind, Refused::Denied.as_str());
    families.verdicts.count("s", "out");
    families.announced.note(std::net::Ipv4Addr::LOCALHOST.into(), true);
    families.forwarded.ended(std::net::SocketAddr::from(([10, 0, 0, 1], 443)), ForwardOutcome::Ended);
    families.forwarded.moved(std::net::SocketAddr::from(([10, 0, 0, 1], 443)), [1, 1]);
    let mut tunnel = families
        .tunnels
        .begin(std::net::SocketAddr::from(([10, 0, 0, 1], 443)), TunnelKind::Connect, 1)
        .unwrap();
    tunnel.open();
    drop(tunnel);
    families.forwarded.no_header(std::net::SocketAddr::from(([10, 0, 0, 1], 443)));
    families.handshakes.expires("l", "c", 1, Some(1));
    families.handshakes.shown_expires("s", "c", 1);
    families.handshakes.asked("c", true);
    families.handshakes.count(std::net::SocketAddr::from(([10, 0, 0, 1], 443)), false);
    families.probes.get_or_create(&ProbeLabels { service: "s".to_owned(), outcome: "passed" }).inc();
    families.limit(Limit::Connections);
    families.refuse(Refusal::Host);
    families.config_reloads.get_or_create(&OutcomeLabels { outcome: "applied" }).inc();
    families.kernel_mode.get_or_create(&ModeLabels { mode: "ebpf" }).set(1);
    metrics.sample_with(|| Samples {
        flow_room: 1,
        flows: vec![("listener".to_owned(), 1)],
        pools: vec![PoolSample { service: "s".to_owned(), open: 1, idle: 1, stolen: 1 }],
        endpoints: vec![EndpointSample {
            service: "s".to_owned(),
            endpoint: "e".to_owned(),
            up: true,
            is_out: true,
        }],
        packets: vec![PacketSample { hook: "h", reason: "r", packets: 1, bytes: 1 }],
        services: vec![ServiceSample { listener: "l".to_owned(), what: "w", count: 1 }],
        kernel: gateway_userspace::metrics::kernel::Samples {
            drops: vec![("l".to_owned(), "r", 1)],
            endpoints: vec![KernelEndpoint {
                listener: "l".to_owned(),
                endpoint: "e".to_owned(),
                what: "w",
                count: 1,
            }],
            open: vec![("l".to_owned(), "e".to_owned(), 1)],
            events: vec![("r", "o", 1)],
            networks: [1, 1],
            socket_pairs: Some([0, 0]),
            cookies: vec![("l".to_owned(), true, 1)],
        },
    });
    metrics
}

/// What the text says about one metric.
#[derive(Default)]
struct Family {
    kind: String,
    help: String,
    labels: Vec<String>,
}

fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            let family = families.entry(name.to_owned()).or_default();
            help.trim_end_matches('.').clone_into(&mut family.help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            kind.clone_into(&mut families.entry(name.to_owned()).or_default().kind);
        } else if let Some((name, labels)) = line.split_once('{') {
            let owner = families.iter_mut().rev().find(|(family, _)| name.starts_with(family.as_str()));
            let (_, family) = owner.unwrap_or_else(|| panic!("{name} belongs to no metric"));
            let names = labels.split(',').filter_map(|label| label.split_once("=\"")).map(|(name, _)| name);
            family.labels = names.filter(|name| *name != "le").map(|name| format!("`{name}`")).collect();
        }
    }
    families
}

#[test]
fn documents_name_metrics_that_exist() {
    let known = families(&everything().encode().unwrap());
    let root = expect::root();
    let mut n_names = 0;
    for document in ["README.md", "ARCHITECTURE.md", "docs/operations.md", "deploy/sluice.yaml"] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for word in words.filter(|word| word.starts_with("sluice_")) {
            n_names += 1;
            let name = word.trim_end_matches("_total");
            assert!(known.contains_key(name), "{document} names {word}, which no agent exports");
        }
    }
    assert!(n_names >= 4, "the documents tell what to look at");
}
