//! The certificate for a name: of its most specific listener, the one with that name, then the one with a wildcard for it,
//! then whatever the listener has.

use std::{collections::HashMap, sync::Arc};

use rustls::{
    SignatureAlgorithm,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::tls::certificate::Certificate;

/// Certificates of one address: those of the most specific listener for a name, as it is for requests. Immutable: a reload
/// makes a new one.
#[derive(Debug, Default)]
pub struct Resolver {
    exact: HashMap<String, Served>,
    /// By the suffix of a listener's host name; matches any number of labels, as listeners do.
    suffix: HashMap<String, Served>,
    any: Served,
}

/// What is served to clients of a listener, or of several with the same names.
#[derive(Debug, Default)]
struct Served {
    /// By the names of the certificates.
    exact: HashMap<String, Vec<Certificate>>,
    /// By the suffix without `*.`; matches one label, as certificates do.
    wildcard: HashMap<String, Vec<Certificate>>,
    all: Vec<Certificate>,
}

/// Names that a certificate is served for.
#[derive(Clone, Copy, Debug)]
pub enum Names<'a> {
    /// Any name, and clients that send none.
    Any,
    /// This name.
    Exact(&'a str),
    /// One label or more in front of this suffix.
    Suffix(&'a str),
}

impl Resolver {
    /// Adds a certificate of a listener that serves `names`. Of several for a name the first wins whose key the client can
    /// use, RSA last: signing with it costs ten times as much as with ECDSA.
    pub fn add(&mut self, names: Names<'_>, certificate: &Certificate) {
        match names {
            Names::Any => &mut self.any,
            Names::Exact(name) => self.exact.entry(name.to_owned()).or_default(),
            Names::Suffix(suffix) => self.suffix.entry(suffix.to_owned()).or_default(),
        }
        .add(certificate);
    }

    /// Certificates for a name, best first.
    fn candidates(&self, name: Option<&str>) -> impl Iterator<Item = &Certificate> {
        let exact = name.and_then(|name| self.exact.get(name));
        let suffix = || name.into_iter().flat_map(parents).find_map(|parent| self.suffix.get(parent));
        exact.or_else(suffix).unwrap_or(&self.any).candidates(name)
    }
}

impl Served {
    fn add(&mut self, certificate: &Certificate) {
        let put = |others: &mut Vec<Certificate>| {
            let is_rsa = |one: &Certificate| one.key.key.algorithm() == SignatureAlgorithm::RSA;
            let n_before = others.iter().take_while(|other| !is_rsa(other)).count();
            let at = if is_rsa(certificate) { others.len() } else { n_before };
            others.insert(at, certificate.clone());
        };
        for name in certificate.names() {
            match name.strip_prefix("*.") {
                Some(suffix) => put(self.wildcard.entry(suffix.to_owned()).or_default()),
                None => put(self.exact.entry(name.clone()).or_default()),
            }
        }
        put(&mut self.all);
    }

    fn candidates(&self, name: Option<&str>) -> impl Iterator<Item = &Certificate> {
        let exact = name.and_then(|name| self.exact.get(name));
        let parent = name.and_then(|name| name.split_once('.')).map(|(_, parent)| parent);
        let wildcard = parent.and_then(|parent| self.wildcard.get(parent));
        exact.into_iter().chain(wildcard).chain([&self.all]).flatten()
    }
}

/// Every suffix of a name that begins after a dot, longest first. Names are at most 253 bytes long.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').filter_map(|(at, _)| name.get(at + 1..))
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // Rustls has checked the name and made it lower case.
        let schemes = hello.signature_schemes();
        let usable = |one: &&Certificate| one.key.key.choose_scheme(schemes).is_some();
        self.candidates(hello.server_name()).find(usable).map(Certificate::now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Context;

    fn certificate(context: &Context, name: &str) -> Certificate {
        let pair = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let (chain, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
        Certificate::from_pem(context, chain.as_bytes(), key.as_bytes()).unwrap()
    }

    #[test]
    fn the_most_specific_certificate_is_served() {
        let context = Context::new().unwrap();
        let [exact, wildcard, fallback, deep] = ["a.example.org", "*.example.org", "other.test", "x.test"]
            .map(|name| certificate(&context, name));
        let mut resolver = Resolver::default();
        resolver.add(Names::Any, &fallback);
        resolver.add(Names::Suffix("example.org"), &wildcard);
        resolver.add(Names::Exact("a.example.org"), &exact);
        resolver.add(Names::Suffix("deep.example.org"), &deep);
        let check = |name: Option<&str>, expected: &Certificate| {
            let found = resolver.candidates(name).next().unwrap();
            assert!(Arc::ptr_eq(&found.key, &expected.key), "{name:?}");
        };
        check(Some("a.example.org"), &exact);
        check(Some("b.example.org"), &wildcard);
        check(Some("c.b.example.org"), &wildcard);
        check(Some("a.deep.example.org"), &deep);
        check(Some("example.org"), &fallback);
        check(None, &fallback);
    }

    #[test]
    fn a_listener_has_the_certificates_that_it_names() {
        let context = Context::new().unwrap();
        let names = ["example.org", "admin.example.org", "*.example.org", "a.deep.example.org"];
        let pair = rcgen::generate_simple_self_signed(names.map(str::to_owned)).unwrap();
        let (chain, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
        let all = Certificate::from_pem(&context, chain.as_bytes(), key.as_bytes()).unwrap();
        let [admin, below, deep] =
            ["admin.test", "below.test", "deep.test"].map(|name| certificate(&context, name));
        let added = [
            (Names::Any, &all),
            (Names::Suffix("example.org"), &below),
            (Names::Suffix("deep.example.org"), &deep),
            (Names::Exact("admin.example.org"), &admin),
        ];
        for is_reversed in [false, true] {
            let mut resolver = Resolver::default();
            let mut order = added.to_vec();
            if is_reversed {
                order.reverse();
            }
            for (names, certificate) in order {
                resolver.add(names, certificate);
            }
            for (name, expected) in [
                ("example.org", &all),
                ("admin.example.org", &admin),
                ("b.example.org", &below),
                ("a.deep.example.org", &deep),
                ("other.test", &all),
            ] {
                let found: Vec<_> = resolver.candidates(Some(name)).collect();
                assert!(found.iter().all(|one| Arc::ptr_eq(&one.key, &expected.key)), "{name}");
                assert!(!found.is_empty(), "{name}");
            }
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let context = Context::new().unwrap();
        let [one, other] =
            [(); 2].map(|()| rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap());
        let key = other.signing_key.serialize_pem();
        let refused = Certificate::from_pem(&context, one.cert.pem().as_bytes(), key.as_bytes());
        assert!(matches!(refused, Err(crate::tls::certificate::Error::Mismatch)), "{refused:?}");
        let refused = Certificate::from_pem(&context, b"nothing", key.as_bytes());
        assert!(matches!(refused, Err(crate::tls::certificate::Error::Empty)), "{refused:?}");
        let refused = Certificate::from_pem(&context, one.cert.pem().as_bytes(), b"nothing");
        assert!(matches!(refused, Err(crate::tls::certificate::Error::Key(_))), "{refused:?}");
    }
}
