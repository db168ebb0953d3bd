//! Certificates of the listeners of one address.

use std::collections::BTreeMap;

use http::HeaderName;

use crate::{
    compile::{Fault, Faults, state::Shared},
    name::ListenerName,
    secret::Secret,
    snapshot::{
        Snapshot,
        listener::{Hostname, Listener},
    },
    tls::{
        accept::{Acceptor, Terms},
        certificate::Certificate,
        client::Demand,
        resolver::{Names, Resolver},
        ticket::Ring,
    },
};

/// What accepts TLS for these listeners; faults name every certificate that cannot be served.
pub(super) fn acceptor(
    listeners: &[&Listener],
    shared: &Shared,
    expiries: &mut BTreeMap<(ListenerName, String), i64>,
    faults: &mut Faults,
) -> Option<Acceptor> {
    let mut resolver = Resolver::default();
    let mut served = 0usize;
    for listener in listeners {
        let names = match &listener.hostname {
            None => Names::Any,
            Some(Hostname::Exact(name)) => Names::Exact(name),
            Some(Hostname::Wildcard(suffix)) => Names::Suffix(suffix),
        };
        for wanted in &listener.certificates {
            match Certificate::from_pem(&shared.tls, &wanted.chain_pem, wanted.key_pem.expose()) {
                Ok(certificate) => {
                    resolver.add(names, &certificate);
                    let key = (listener.name.clone(), wanted.origin.clone());
                    expiries.insert(key, certificate.not_after_s());
                    served += 1;
                }
                Err(cause) => faults.0.push(Fault {
                    place: format!("listener `{}`, certificate {}", listener.name, wanted.origin),
                    message: cause.to_string(),
                }),
            }
        }
    }
    if served == 0 {
        return None;
    }
    // Listeners of one address agree on the rest.
    let first = listeners.first()?;
    let tickets = Ring::given(first.ticket_keys.iter().map(Secret::expose));
    let clients = first.clients.as_ref().map(|clients| {
        let demand = if clients.is_required { Demand::Required } else { Demand::Optional };
        (demand, clients.trust_pem.clone())
    });
    match Acceptor::new(&shared.tls, Terms { resolver, tickets, clients }) {
        Ok(acceptor) => Some(acceptor),
        Err(cause) => {
            let place = format!("listener `{}`", first.name);
            faults.0.push(Fault { place, message: cause.to_string() });
            None
        }
    }
}

/// Names of all header fields that say who a client is; the usual one also where nobody asks for certificates, because
/// endpoints may believe it.
pub(super) fn identity_headers(snapshot: &Snapshot) -> Vec<HeaderName> {
    let mut names = vec![HeaderName::from_static("x-forwarded-client-cert")];
    for clients in snapshot.listeners.iter().filter_map(|listener| listener.clients.as_ref()) {
        if !names.contains(&clients.identity_header) {
            names.push(clients.identity_header.clone());
        }
    }
    names
}
