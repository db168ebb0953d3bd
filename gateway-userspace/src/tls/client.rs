//! Certificates of clients: whom to trust, and who somebody proved to be.

use std::{fmt, fmt::Write as _, sync::Arc};

use aws_lc_rs::digest;
use http::HeaderValue;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use crate::{limits, tls::Context};

/// Whether a client has to have a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Demand {
    /// A client without one gets no connection.
    Required,
    /// A client may come without one; one that it has must be good.
    Optional,
}

/// Why clients cannot be checked.
#[derive(Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the trust bundle cannot be used: {}; give PEM blocks `CERTIFICATE` of certificate authorities",
            self.0
        )
    }
}

impl std::error::Error for Error {}

/// Checks that clients have a certificate that leads to one of the bundle.
pub(super) fn verifier(
    context: &Context,
    demand: Demand,
    trust_pem: &[u8],
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(trust_pem) {
        let certificate = certificate.map_err(|cause| Error(cause.to_string()))?;
        roots.add(certificate).map_err(|cause| Error(cause.to_string()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&context.provider));
    let builder = match demand {
        Demand::Required => builder,
        Demand::Optional => builder.allow_unauthenticated(),
    };
    builder.build().map_err(|cause| Error(cause.to_string()))
}

/// Who a client proved to be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// SHA-256 of its certificate, in lower-case hexadecimal digits.
    pub fingerprint: String,
    /// The distinguished name of its certificate, as RFC 4514 writes it.
    pub subject: String,
    /// Its DNS names.
    pub dns_names: Vec<String>,
    /// Its URIs, such as SPIFFE IDs.
    pub uris: Vec<String>,
    /// All of it as the value of a header field: `Hash=...;Subject="...";URI=...;DNS=...`.
    pub header: HeaderValue,
}

impl Identity {
    /// From a certificate that was verified; none when it has no form that can be read.
    pub(super) fn of(certificate: &[u8]) -> Option<Self> {
        let (_, parsed) = parse_x509_certificate(certificate).ok()?;
        let mut fingerprint = String::with_capacity(64);
        for byte in digest::digest(&digest::SHA256, certificate).as_ref() {
            write!(fingerprint, "{byte:02x}").ok()?;
        }
        let subject = parsed.subject().to_string();
        let (mut dns_names, mut uris) = (Vec::new(), Vec::new());
        let names = parsed.subject_alternative_name().ok().flatten();
        // The issuer is trusted, its patience with long lists is not.
        for name in names.iter().flat_map(|names| &names.value.general_names).take(limits::IDENTITY_NAMES) {
            match name {
                GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                GeneralName::URI(uri) => uris.push((*uri).to_owned()),
                GeneralName::OtherName(..)
                | GeneralName::RFC822Name(_)
                | GeneralName::X400Address(_)
                | GeneralName::DirectoryName(_)
                | GeneralName::EDIPartyName(_)
                | GeneralName::IPAddress(_)
                | GeneralName::RegisteredID(_)
                | GeneralName::Invalid(..) => {}
            }
        }
        let header = header(&fingerprint, &subject, &dns_names, &uris);
        Some(Self { fingerprint, subject, dns_names, uris, header })
    }
}

/// Whether the time of a certificate that was good once is over, at this second since 1970; also where it cannot be read.
pub(super) fn is_over(certificate: &[u8], now_s: i64) -> bool {
    let until_s =
        parse_x509_certificate(certificate).map(|(_, parsed)| parsed.validity().not_after.timestamp());
    !until_s.is_ok_and(|until_s| now_s <= until_s)
}

fn header(fingerprint: &str, subject: &str, dns_names: &[String], uris: &[String]) -> HeaderValue {
    let mut text = format!("Hash={fingerprint};Subject={}", quoted(subject));
    let names = uris.iter().map(|uri| ("URI", uri)).chain(dns_names.iter().map(|name| ("DNS", name)));
    for (key, value) in names {
        let part = format!(";{key}={}", quoted(value));
        if text.len() + part.len() <= limits::IDENTITY_BYTES {
            text.push_str(&part);
        }
    }
    // Everything else was quoted away, and the fingerprint alone says who it is.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("Hash=unknown"))
}

/// A quoted string (RFC 9110, section 5.6.4) of visible ASCII: what else a certificate holds becomes `?`, so that no name can
/// end the field or pretend to be another part of it.
fn quoted(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 2);
    text.push('"');
    for letter in value.chars().take(limits::IDENTITY_BYTES / 2) {
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            ' '..='~' => text.push(letter),
            _ => text.push('?'),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn an_identity_says_who_and_cannot_be_made_to_say_more() {
        let mut params = CertificateParams::new(vec!["app.test".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "a\";DNS=\"admin.test\r\nx: y\u{e9}");
        params.subject_alt_names.push(SanType::URI("spiffe://test/app".try_into().unwrap()));
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let identity = Identity::of(certificate.der()).unwrap();
        assert_eq!(identity.dns_names, ["app.test"]);
        assert_eq!(identity.uris, ["spiffe://test/app"]);
        assert_eq!(identity.fingerprint.len(), 64);
        let header = identity.header.to_str().unwrap();
        assert!(header.starts_with(&format!("Hash={};Subject=\"CN=", identity.fingerprint)), "{header}");
        assert!(header.ends_with(";URI=\"spiffe://test/app\";DNS=\"app.test\""), "{header}");
        assert_eq!(header.matches(";DNS=\"").count(), 1, "{header}");
    }

    #[test]
    fn what_is_no_certificate_is_nobody() {
        assert_eq!(Identity::of(b"nothing"), None);
    }

    #[test]
    fn bundles_need_a_certificate() {
        let context = Context::new().unwrap();
        for bundle in [&b""[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let refused = verifier(&context, Demand::Required, bundle).unwrap_err();
            assert!(refused.to_string().contains("trust bundle"), "{refused}");
        }
    }
}
