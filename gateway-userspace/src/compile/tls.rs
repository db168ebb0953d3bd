//! Certificates of the listeners of one address, and TLS towards endpoints.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use http::HeaderName;

use crate::{
    compile::{Fault, Faults, state::Shared},
    name::{ListenerName, ServiceName},
    secret::Secret,
    snapshot::{
        Snapshot,
        listener::{Hostname, Listener},
        service::{self, EndpointTls, Service, UpstreamProtocol},
    },
    state::Expiry,
    tls::{
        Context,
        accept::{Acceptor, Spoken, Terms},
        certificate::Certificate,
        client::Demand,
        connect::{self, Connector, Trust},
        resolver::{Names, Resolver},
        ticket::Ring,
    },
};

/// What accepts TLS for these listeners; faults name every certificate that cannot be served.
pub(super) fn acceptor(
    listeners: &[&Listener],
    shared: &Shared,
    expiries: &mut BTreeMap<(ListenerName, String), Expiry>,
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
            let read = Certificate::from_pem(&shared.tls, &wanted.chain_pem, wanted.key_pem.expose());
            match read.and_then(|read| match &wanted.ocsp {
                Some(response) => read.stapled(response),
                None if wanted.fetches_ocsp => read.fetching(&shared.tls, &wanted.origin),
                None => Ok(read),
            }) {
                Ok(certificate) => {
                    resolver.add(names, &certificate);
                    let key = (listener.name.clone(), wanted.origin.clone());
                    let expiry = Expiry {
                        certificate_s: certificate.not_after_s(),
                        staple_s: certificate.stapled_until_s(),
                        fetched: certificate.fetched().map(Arc::clone),
                    };
                    expiries.insert(key, expiry);
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

/// Makes connectors of the services of one snapshot. Bundles that services share are parsed once.
#[derive(Default)]
pub(super) struct Connectors<'s> {
    trusts: HashMap<&'s str, (&'s Arc<[u8]>, Trust)>,
    /// When certificates that the agent shows to endpoints expire, by service and origin, in seconds since 1970.
    pub(super) expiries: BTreeMap<(ServiceName, String), i64>,
}

impl<'s> Connectors<'s> {
    /// How connections of a service are secured; `None` in plain text.
    pub(super) fn connector(
        &mut self,
        wanted: &'s Service,
        context: &Context,
        faults: &mut Faults,
    ) -> Option<Connector> {
        let tls = wanted.tls.as_ref()?;
        self.make(wanted, tls, context)
            .map_err(|message| {
                faults.0.push(Fault { place: format!("service `{}`, `tls`", wanted.name), message });
            })
            .ok()
    }

    fn make(
        &mut self,
        wanted: &'s Service,
        tls: &'s EndpointTls,
        context: &Context,
    ) -> Result<Connector, String> {
        let trust = self.trust(&tls.trust).map_err(|cause| cause.to_string())?;
        let certificate = match &tls.certificate {
            None => None,
            Some(written) => {
                let key = written.key_pem.expose();
                let read = Certificate::from_pem(context, &written.chain_pem, key);
                let read = read.map_err(|cause| format!("{}: {cause}", written.origin))?;
                let name = (wanted.name.clone(), written.origin.clone());
                self.expiries.insert(name, read.not_after_s());
                Some(read)
            }
        };
        let terms = connect::Terms {
            trust: &trust,
            name: &tls.server_name,
            certificate: certificate.as_ref(),
            spoken: match wanted.protocol {
                UpstreamProtocol::Http1 => Spoken::Http1,
                UpstreamProtocol::H2c | UpstreamProtocol::H2 => Spoken::Http2,
            },
        };
        Connector::new(context, &terms).map_err(|cause| cause.to_string())
    }

    fn trust(&mut self, wanted: &'s service::Trust) -> Result<Trust, connect::Error> {
        if let Some((pem, trust)) = self.trusts.get(wanted.origin.as_str())
            && Arc::ptr_eq(pem, &wanted.pem)
        {
            return Ok(trust.clone());
        }
        let trust = Trust::from_pem(&wanted.pem, wanted.is_of_system)?;
        self.trusts.insert(&wanted.origin, (&wanted.pem, trust.clone()));
        Ok(trust)
    }
}

/// Names of all header fields that say who a client is; the usual one also where nobody asks for certificates, because
/// endpoints may believe it.
pub(super) fn identity_headers(snapshot: &Snapshot) -> Arc<[HeaderName]> {
    let mut names = vec![HeaderName::from_static("x-forwarded-client-cert")];
    for clients in snapshot.listeners.iter().filter_map(|listener| listener.clients.as_ref()) {
        if !names.contains(&clients.identity_header) {
            names.push(clients.identity_header.clone());
        }
    }
    names.into()
}
