//! Certificates of the listeners of one address.

use crate::{
    compile::{Fault, Faults, state::Shared},
    snapshot::listener::{Hostname, Listener},
    tls::{
        accept::Acceptor,
        certificate::Certificate,
        resolver::{Names, Resolver},
    },
};

/// What accepts TLS for these listeners; faults name every certificate that cannot be served.
pub(super) fn acceptor(listeners: &[&Listener], shared: &Shared, faults: &mut Faults) -> Option<Acceptor> {
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
    match Acceptor::new(&shared.tls, resolver) {
        Ok(acceptor) => Some(acceptor),
        Err(cause) => {
            let place = listeners.first().map_or_else(String::new, |l| format!("listener `{}`", l.name));
            faults.0.push(Fault { place, message: format!("TLS cannot be set up: {cause}") });
            None
        }
    }
}
