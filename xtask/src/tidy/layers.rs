//! The layer table of the agent, and the fences beside it, as data: who may import whom.

use super::{Fault, source::Source};

/// Modules of `gateway-userspace/src`, lowest layer first. A module imports only from strictly lower layers.
const LAYERS: [&[&str]; 9] = [
    &[
        "name", "limits", "clock", "timer", "taken", "drain", "secret", "metrics", "place", "duration",
        "network", "pattern", "target", "field", "filter", "retry", "tunnel", "ocsp",
    ],
    &["config", "snapshot", "endpoint", "maglev", "image", "h1"],
    &[
        "source", "kernel", "address", "net", "tls", "health", "balance", "pool", "route", "client",
        "access", "guard",
    ],
    &["upstream", "prober", "observer", "stapler", "memory"],
    &["state"],
    &["compile", "http", "tcp", "udp"],
    &["listener", "admin"],
    &["control"],
    &["app"],
];

/// Imports within a layer, each with its reason. They must not form a circle.
const SIDEWAYS: [(&str, &str, &str); 3] = [
    (
        "image",
        "endpoint",
        "the image holds live endpoints, whose health reaches the kernel without a new image",
    ),
    ("retry", "limits", "where nothing is written about retries, the bounds of the agent hold"),
    ("tunnel", "limits", "where nothing is written about tunnels, the bounds of the agent hold"),
];

/// Something that only some modules may name.
struct Fence {
    /// The module of ours or the crate.
    thing: &'static str,
    /// Whether it is a module of ours, named through `crate::`.
    is_ours: bool,
    /// Where it may be named: paths below `gateway-userspace/src/`.
    only_in: &'static [&'static str],
    /// Why, to end the message.
    why: &'static str,
}

const FENCES: [Fence; 10] = [
    Fence {
        thing: "snapshot",
        is_ours: true,
        only_in: &["snapshot", "config/", "source/", "compile/", "control", "admin/", "app"],
        why: "the data path cannot even name what is wanted",
    },
    Fence {
        thing: "image",
        is_ours: true,
        only_in: &["image", "address", "compile/", "kernel/", "control", "admin/", "app"],
        why: "only what compiles or writes the kernel's maps knows their contents",
    },
    Fence {
        thing: "aya",
        is_ours: false,
        only_in: &["kernel/"],
        why: "only `kernel` talks to the kernel's programs",
    },
    Fence {
        thing: "kube",
        is_ours: false,
        only_in: &["source/kubernetes/"],
        why: "one source knows Kubernetes",
    },
    Fence {
        thing: "k8s_openapi",
        is_ours: false,
        only_in: &["source/kubernetes/"],
        why: "one source knows Kubernetes",
    },
    Fence { thing: "tonic", is_ours: false, only_in: &["source/xds/"], why: "one source knows xDS" },
    Fence { thing: "prost", is_ours: false, only_in: &["source/xds/"], why: "one source knows xDS" },
    Fence {
        thing: "rustls",
        is_ours: false,
        only_in: &["tls/", "source/certificate"],
        why: "`tls` hides which library it is; a source asks it what can be served",
    },
    Fence {
        thing: "hyper",
        is_ours: false,
        only_in: &["http/", "pool/", "client", "admin/serve"],
        why: "the rest speaks `http` and `http-body`, so that the codec can change",
    },
    Fence { thing: "h2", is_ours: false, only_in: &["http/", "pool/"], why: "the codec can change" },
];

/// Where `unsafe` may stand, by crate. A crate that is not listed may have none.
const UNSAFE_ROOMS: [(&str, &[&str]); 4] = [
    ("gateway-userspace/src/", &["kernel/map.rs", "kernel/sys.rs", "net/sys.rs"]),
    // The reference of the benchmarks is plain on purpose, and no part of the product.
    ("gateway-ebpf/src/", &["packet/", "hook/", "map.rs", "bin/reference.rs"]),
    ("gateway-common/src/", &[]),
    ("xtask/src/", &[]),
];

const AGENT: &str = "gateway-userspace/src/";

/// Checks imports, fences and rooms of one file.
pub(crate) fn check(source: &Source, faults: &mut Vec<Fault>) {
    rooms(source, faults);
    let Some(path) = source.path.strip_prefix(AGENT) else { return };
    let module = path.split(['/', '.']).next().unwrap_or_default();
    if !matches!(module, "lib" | "main") {
        layers(source, path, module, faults);
    }
    for fence in &FENCES {
        crossings(source, path, fence, faults);
    }
}

/// Compares the table of the architecture, which people read, with the one that is checked.
pub(crate) fn check_document(path: &str, text: &str, faults: &mut Vec<Fault>) {
    if path != "ARCHITECTURE.md" {
        return;
    }
    for (layer, modules) in LAYERS.iter().enumerate() {
        let row = format!(
            "| {layer} | {} |",
            modules.iter().map(|m| format!("`{m}`")).collect::<Vec<_>>().join(" ")
        );
        if !text.lines().any(|line| line == row) {
            let line = text
                .lines()
                .position(|line| line.starts_with(&format!("| {layer} | `")))
                .map_or(1, |at| at + 1);
            let what = format!("layer {layer} is not as LAYERS has it");
            faults.push(Fault::new(path, line, what, &format!("write: {row}")));
        }
    }
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

fn layers(source: &Source, path: &str, module: &str, faults: &mut Vec<Fault>) {
    let Some(own) = layer_of(module) else {
        let what = format!("`{module}` has no layer");
        faults.push(Fault::new(&source.path, 1, what, "add it to LAYERS in xtask/src/tidy/layers.rs"));
        return;
    };
    for (line, other) in imports(source, path) {
        if other == module {
            continue;
        }
        match layer_of(&other) {
            Some(layer) if layer < own => {}
            Some(_) if SIDEWAYS.iter().any(|(from, to, _)| *from == module && *to == other) => {}
            Some(layer) => {
                let what = format!("`{module}` (layer {own}) imports `{other}` (layer {layer})");
                let remedy =
                    "import from lower layers only: move what both need down, or pass it in from above";
                faults.push(Fault::new(&source.path, line, what, remedy));
            }
            None => {
                let what = format!("`crate::{other}` is no module of the layer table");
                faults.push(Fault::new(
                    &source.path,
                    line,
                    what,
                    "add it to LAYERS in xtask/src/tidy/layers.rs",
                ));
            }
        }
    }
}

/// The modules of the crate's root that a file names, with the line.
fn imports(source: &Source, path: &str) -> Vec<(usize, String)> {
    let mut found = names_after(source, "crate::");
    // In a module of the root, `super` is the root; one folder deeper it takes two.
    let deeper = path.matches('/').count() - usize::from(path.ends_with("/mod.rs"));
    let above = "super::".repeat(deeper + 1);
    found.extend(names_after(source, &above));
    // Items of the root itself, as in `crate::OBJECT`, are no modules; they begin with a capital letter.
    found.retain(|(_, name)| name.starts_with(|c: char| c.is_ascii_lowercase()));
    found
}

fn names_after(source: &Source, prefix: &str) -> Vec<(usize, String)> {
    let word = prefix.trim_end_matches("::");
    let mut found = Vec::new();
    for at in source.words(word) {
        let rest = source.code.get(at + word.len()..).unwrap_or_default();
        // `pub(crate)` and `super::super::` of a deeper path do not name a module here.
        let Some(rest) = rest.strip_prefix("::") else { continue };
        if source.code.get(..at).is_some_and(|before| before.ends_with("::") || before.ends_with('$')) {
            continue;
        }
        let line = source.line_of(at);
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_heads(group).into_iter().map(|name| (line, name))),
            None => found.push((line, identifier(rest))),
        }
    }
    found.retain(|(_, name)| !matches!(name.as_str(), "" | "super" | "self"));
    found
}

/// The first identifiers of the parts of a `{a::b, c::{d, e}}`, of which `text` is what follows the bracket.
fn group_heads(text: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b',' if depth == 0 => {
                heads.push(identifier(text.get(start..at).unwrap_or_default()));
                start = at + 1;
            }
            b'}' if depth == 0 => {
                heads.push(identifier(text.get(start..at).unwrap_or_default()));
                return heads;
            }
            b'}' => depth -= 1,
            _ => {}
        }
    }
    heads
}

fn identifier(text: &str) -> String {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    text.get(..end).unwrap_or_default().to_owned()
}

fn crossings(source: &Source, path: &str, fence: &Fence, faults: &mut Vec<Fault>) {
    if fence.only_in.iter().any(|allowed| is_in(path, allowed)) || path == "lib.rs" || path == "main.rs" {
        return;
    }
    let lines: Vec<usize> = if fence.is_ours {
        imports(source, path)
            .into_iter()
            .filter(|(_, name)| name == fence.thing)
            .map(|(line, _)| line)
            .collect()
    } else {
        let named = source.words(fence.thing).filter(|at| {
            let rest = source.code.get(at + fence.thing.len()..).unwrap_or_default();
            let before = source.code.get(..*at).unwrap_or_default();
            rest.starts_with("::") && !before.ends_with("::") || before.trim_end().ends_with("extern crate")
        });
        named.map(|at| source.line_of(at)).collect()
    };
    for line in lines {
        let what = format!("`{}` is named outside {}", fence.thing, fence.only_in.join(", "));
        faults.push(Fault::new(&source.path, line, what, fence.why));
    }
}

/// Whether a path is a module, or one of its files.
fn is_in(path: &str, module: &str) -> bool {
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    let folder = module.trim_end_matches('/');
    stem == folder || stem.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

fn rooms(source: &Source, faults: &mut Vec<Fault>) {
    let Some((path, rooms)) =
        UNSAFE_ROOMS.iter().find_map(|(base, rooms)| Some((source.path.strip_prefix(base)?, rooms)))
    else {
        return;
    };
    if rooms.iter().any(|room| path == *room || (room.ends_with('/') && path.starts_with(room))) {
        return;
    }
    for at in source.words("unsafe") {
        // `#[unsafe(no_mangle)]` names a section or a symbol; it runs nothing.
        if source.code.get(at..).is_some_and(|rest| rest.starts_with("unsafe(")) {
            continue;
        }
        let remedy = "move it into one of the rooms of UNSAFE_ROOMS in xtask/src/tidy/layers.rs";
        faults.push(Fault::new(
            &source.path,
            source.line_of(at),
            "`unsafe` outside its rooms".to_owned(),
            remedy,
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_file(path: &str, text: &str, expected: &[&str]) {
        let mut faults = Vec::new();
        check(&Source::new(path, text), &mut faults);
        let found: Vec<String> =
            faults.iter().map(|fault| format!("{}: {}", fault.line, fault.what)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn lower_layers_may_be_imported() {
        check_file(
            "gateway-userspace/src/http/serve.rs",
            "use crate::{clock::Clock, route, tls::{a, b}};",
            &[],
        );
        check_file("gateway-userspace/src/tcp.rs", "use super::state::State;", &[]);
    }

    #[test]
    fn equal_and_higher_layers_may_not() {
        check_file(
            "gateway-userspace/src/route/mod.rs",
            "use crate::{\n    tls::A,\n};\nuse super::control::B;\n",
            &[
                "1: `route` (layer 2) imports `tls` (layer 2)",
                "4: `route` (layer 2) imports `control` (layer 7)",
            ],
        );
        check_file(
            "gateway-userspace/src/clock.rs",
            "fn f() { crate::app::run(); }",
            &["1: `clock` (layer 0) imports `app` (layer 8)"],
        );
    }

    #[test]
    fn a_new_module_needs_a_layer() {
        check_file("gateway-userspace/src/shiny.rs", "", &["1: `shiny` has no layer"]);
    }

    #[test]
    fn a_module_of_its_own_and_its_children_are_free() {
        check_file("gateway-userspace/src/pool/mod.rs", "use crate::pool::body; pub(crate) fn a() {}", &[]);
        check_file("gateway-userspace/src/pool/body.rs", "use super::registry::Registry;", &[]);
    }

    #[test]
    fn tests_comments_and_strings_do_not_import() {
        check_file(
            "gateway-userspace/src/route/mod.rs",
            "// crate::app\nconst A: &str = \"crate::app\";\n#[cfg(test)]\nmod tests {\n    use crate::app;\n}\n",
            &[],
        );
    }

    #[test]
    fn the_document_shows_the_same_table() {
        let mut faults = Vec::new();
        check_document("ARCHITECTURE.md", "| 0 | `name` |\n| 4 | `state` |\n", &mut faults);
        let lines: Vec<usize> = faults.iter().map(|fault| fault.line).collect();
        assert_eq!(lines.len(), LAYERS.len() - 1, "layer 4 is right");
        check_document("README.md", "", &mut faults);
        assert_eq!(lines.len(), faults.len());
    }

    #[test]
    fn fences_hold() {
        check_file(
            "gateway-userspace/src/tcp.rs",
            "use aya::Ebpf;\nuse crate::snapshot::Snapshot;\n",
            &[
                "2: `snapshot` is named outside snapshot, config/, source/, compile/, control, admin/, app",
                "1: `aya` is named outside kernel/",
            ],
        );
        check_file("gateway-userspace/src/kernel/map.rs", "use aya::Ebpf;", &[]);
    }

    #[test]
    fn unsafe_has_its_rooms() {
        check_file(
            "gateway-ebpf/src/verdict.rs",
            "fn a() { unsafe { b() } }",
            &["1: `unsafe` outside its rooms"],
        );
        check_file("gateway-ebpf/src/packet/mod.rs", "fn a() { unsafe { b() } }", &[]);
        check_file("gateway-ebpf/src/main.rs", "#[unsafe(no_mangle)] fn a() {}", &[]);
    }
}
