//! One paragraph about a snapshot: what would be served.

use crate::{
    config::{Config, InterfacePattern, Interfaces, KernelMode},
    snapshot::{Snapshot, listener::Protocol},
};

/// The paragraph.
pub fn of(config: &Config, snapshot: &Snapshot) -> String {
    let count = |protocol: Protocol| snapshot.listeners.iter().filter(|it| it.protocol == protocol).count();
    let protocols: Vec<String> =
        [Protocol::Http, Protocol::Https, Protocol::Tls, Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .map(|protocol| (count(protocol), protocol.as_str()))
            .filter(|(n, _)| *n > 0)
            .map(|(n, word)| format!("{n} {word}"))
            .collect();
    let protocols = if protocols.is_empty() { String::new() } else { format!(" ({})", protocols.join(", ")) };
    let n_certificates: usize = snapshot.listeners.iter().map(|it| it.certificates.len()).sum();
    let n_rules: usize = snapshot.routes.iter().map(|it| it.rules.len()).sum();
    let n_endpoints: usize = snapshot.services.iter().map(|it| it.endpoints.len()).sum();
    let n_checked = snapshot.services.iter().filter(|it| it.health.is_some()).count();
    let kernel = match (config.agent.kernel.mode, &config.agent.kernel.interfaces) {
        (KernelMode::Off, _) => "in userspace only".to_owned(),
        (KernelMode::Auto, interfaces) => format!("in the kernel where it can, on {}", names(interfaces)),
        (KernelMode::Required, interfaces) => format!("in the kernel, on {}", names(interfaces)),
    };
    format!(
        "{} is sound: it serves {}{protocols} with {}, routes by {} in {} to {} with {} ({n_checked} with health \
         checks), with {}, {kernel}.",
        config.file.display(),
        plural(snapshot.listeners.len(), "listener"),
        plural(n_certificates, "certificate"),
        plural(n_rules, "rule"),
        plural(snapshot.routes.len(), "route"),
        plural(snapshot.services.len(), "service"),
        plural(n_endpoints, "endpoint"),
        plural(config.agent.workers.get(), "worker"),
    )
}

fn names(interfaces: &Interfaces) -> String {
    match interfaces {
        Interfaces::DefaultRoute => "the interfaces with a default route".to_owned(),
        Interfaces::Matching(patterns) => {
            patterns.iter().map(InterfacePattern::as_str).collect::<Vec<_>>().join(", ")
        }
    }
}

fn plural(n: usize, word: &str) -> String {
    format!("{n} {word}{}", if n == 1 { "" } else { "s" })
}
