//! Single packets that the kernel programs tell of: the last ones for the operator's window, and some of them in the log.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use gateway_common::{
    addr::{Addr, Port, Protocol},
    counter::{Class, Hook, Reason},
    event::Event,
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::{
    access::rfc3339,
    clock,
    kernel::{Events, Kernel},
    limits,
    metrics::{Metrics, names::Limit},
};

/// Between two looks. The ring holds thousands of events.
const PAUSE: Duration = Duration::from_millis(100);

/// Looks in a second.
const LOOKS: usize = 10;

/// The last events.
#[derive(Debug, Default)]
pub struct Journal(Mutex<VecDeque<Value>>);

impl Journal {
    /// The last events, the oldest first.
    pub fn shown(&self) -> Value {
        self.0.lock().iter().cloned().collect()
    }

    fn note(&self, event: Value) {
        let mut last = self.0.lock();
        if last.len() >= limits::EVENTS {
            last.pop_front();
        }
        last.push_back(event);
    }
}

/// Reads events as they come, and never ends.
pub async fn follow(
    mut events: Events,
    kernel: Arc<Mutex<Kernel>>,
    journal: Arc<Journal>,
    metrics: Arc<Metrics>,
) {
    let mut turns = tokio::time::interval(PAUSE);
    let mut room = limits::EVENTS_LOGGED;
    for look in (0..LOOKS).cycle() {
        turns.tick().await;
        if look == 0 {
            room = limits::EVENTS_LOGGED;
        }
        let read = events.read(limits::EVENTS_AT_ONCE);
        if read.is_empty() {
            continue;
        }
        let names: Vec<_> = {
            let kernel = kernel.lock();
            read.iter().map(|event| kernel.names(event)).collect()
        };
        for (event, (listener, endpoint)) in read.iter().zip(names) {
            let said = said(event, listener, endpoint);
            if room > 0 {
                room -= 1;
                tracing::info!(event = %said, "a packet ended early");
            } else {
                metrics.families.limit(Limit::Events);
            }
            journal.note(said);
        }
    }
}

/// An event in the words of the configuration.
fn said(event: &Event, listener: Option<String>, endpoint: Option<SocketAddr>) -> Value {
    let reason = event.reason();
    let verdict = reason.map(|reason| match reason.class() {
        Class::Answered => "answered",
        Class::Received | Class::Passed | Class::Forwarded | Class::Dropped => "dropped",
    });
    let mut said = json!({
        "time": rfc3339(clock::wall_at(event.time_ns)),
        "hook": event.hook().map(Hook::name),
        "verdict": verdict,
        "reason": reason.map(Reason::name),
        "bytes": event.len_bytes,
        "skipped": event.skipped,
    });
    let Some(parts) = said.as_object_mut() else { return said };
    if event.known().packet {
        let protocol = if event.protocol == Protocol::UDP { "udp" } else { "tcp" };
        parts.insert("protocol".to_owned(), json!(protocol));
        parts.insert("icmp".to_owned(), json!(event.is_icmp != 0));
        parts.insert("source".to_owned(), json!(at(event.source, event.source_port)));
        parts.insert("destination".to_owned(), json!(at(event.destination, event.destination_port)));
    }
    if let Some(listener) = listener {
        parts.insert("listener".to_owned(), json!(listener));
    }
    if let Some(endpoint) = endpoint {
        parts.insert("endpoint".to_owned(), json!(endpoint.to_string()));
    }
    said
}

fn at(addr: Addr, port: Port) -> String {
    SocketAddr::new(IpAddr::from(addr), port.number()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(reason: Reason) -> Event {
        Event {
            source: Addr::v4([192, 0, 2, 9]),
            source_port: Port::new(4_000),
            destination: Addr::v4([198, 51, 100, 1]),
            destination_port: Port::new(443),
            protocol: Protocol::TCP,
            reason: reason.number().to_le_bytes()[0],
            len_bytes: 54,
            ..Event::default()
        }
    }

    #[test]
    fn an_event_says_what_is_known() {
        let endpoint = Some(SocketAddr::from(([10, 0, 0, 1], 80)));
        let whole = said(&event(Reason::TtlExpired), Some("web".to_owned()), endpoint);
        assert_eq!(whole["hook"], "xdp_balance");
        let time = whole["time"].as_str().unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
        assert_eq!((&whole["reason"], &whole["verdict"]), (&json!("ttl_expired"), &json!("dropped")));
        assert_eq!(
            (&whole["source"], &whole["destination"]),
            (&json!("192.0.2.9:4000"), &json!("198.51.100.1:443"))
        );
        assert_eq!((&whole["listener"], &whole["endpoint"]), (&json!("web"), &json!("10.0.0.1:80")));
        let unread = said(&event(Reason::Truncated).without_rest(), None, None);
        assert_eq!((unread.get("source"), unread.get("listener")), (None, None));
        assert_eq!(said(&event(Reason::ResetSent), None, None)["verdict"], "answered");
    }

    #[test]
    fn the_journal_is_bounded() {
        let journal = Journal::default();
        for number in 0..limits::EVENTS + 3 {
            journal.note(json!(number));
        }
        let shown = journal.shown();
        assert_eq!(shown.as_array().map(Vec::len), Some(limits::EVENTS));
        assert_eq!(shown[0], json!(3));
    }
}
