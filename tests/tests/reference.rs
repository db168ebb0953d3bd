//! The generated references are what the code says.

use std::fmt::Write as _;

use gateway_common::{
    counter::{Class, Hook, Reason},
    layout,
    map::{self, Kind},
};
use gateway_tests::expect;

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
    text.push_str("\n`bpftool map dump pinned PATH` prints field names for all but the sockmap, which cannot carry them.\n");
    text.push_str("\n## Reasons\n\nEach packet is counted as received and under one other reason, at the hook that saw it.\n");
    let hooks: Vec<String> =
        Hook::ALL.iter().map(|hook| format!("`{}` {}", hook.name(), hook.number())).collect();
    writeln!(
        text,
        "The index in `REASONS` is `hook * {} + number`; hooks: {}.\n",
        Reason::LIMIT,
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
        };
        writeln!(text, "| {} | `{}` | {class} |{} |", reason.number(), reason.name(), reason.help()).unwrap();
    }
    expect::file(&expect::root().join("docs/reference/maps.md"), &text);
}

const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Array => "array",
        Kind::MappedArray => "array, mapped",
        Kind::Hash => "hash",
        Kind::LruHash => "LRU hash",
        Kind::PerCpuArray => "per-CPU array",
        Kind::SockMap => "sockmap",
    }
}
