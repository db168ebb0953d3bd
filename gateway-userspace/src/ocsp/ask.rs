//! Questions to an authority about a certificate: where to ask, and what (RFC 6960, section 4.1; RFC 5019).

use std::fmt;

use aws_lc_rs::digest;
use http::{Uri, uri::Scheme};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer as _,
};

use super::{INTEGER, OBJECT, OCTETS, SEQUENCE, SHA1};

/// `id-ad-ocsp`, by which a certificate names its responder.
const RESPONDER: &str = "1.3.6.1.5.5.7.48.1";

/// The one parameter that SHA-1 has: none.
const NULL: [u8; 2] = [0x05, 0];

/// What is asked about a certificate, and whom.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Question {
    /// Who answers.
    pub responder: Responder,
    /// The request, as DER. Without a nonce: responders that make answers ahead of time know none (RFC 5019).
    pub request: Vec<u8>,
}

/// Somebody who answers over HTTP.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Responder {
    /// Host name or address, with its port.
    pub host: String,
    /// Without brackets, as names are resolved.
    pub name: String,
    /// Its port.
    pub port: u16,
    /// Path and query there.
    pub path: String,
}

impl Responder {
    fn at(uri: &Uri) -> Option<Self> {
        let name = uri.host().filter(|host| !host.is_empty() && uri.scheme() == Some(&Scheme::HTTP))?;
        Some(Self {
            host: uri.authority()?.as_str().to_owned(),
            name: name.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16().unwrap_or(80),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }

    /// Whom it sends us to (RFC 9110, section 10.2.2): an address of HTTP, or a path of its own.
    pub fn elsewhere(&self, location: &str) -> Option<Self> {
        if location.starts_with("//") {
            return Self::at(&format!("http:{location}").parse().ok()?);
        }
        let uri: Uri = location.parse().ok()?;
        if location.starts_with('/') {
            return Some(Self { path: uri.path_and_query()?.as_str().to_owned(), ..self.clone() });
        }
        Self::at(&uri)
    }
}

/// Why nobody can be asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unasked {
    /// The chain does not say who issued its certificate.
    NoIssuer,
    /// The certificate names no responder that has an address of the web.
    NoResponder,
    /// The certificate names responders by `https` alone.
    Secured,
}

impl Unasked {
    /// What to do about it.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::NoIssuer => "append the issuer's certificate to the chain, or leave `ocsp` out",
            Self::NoResponder => "leave `ocsp` out, or write `ocspFile`",
            Self::Secured => {
                "fetch its answers by other means, and write `ocspFile` instead of `ocsp: fetch`"
            }
        }
    }
}

impl fmt::Display for Unasked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoIssuer => "its chain lacks the certificate of the issuer, whose key a question names",
            Self::NoResponder => "it names no OCSP responder with an `http` address",
            Self::Secured => {
                "it names an OCSP responder with an `https` address alone, and responders are asked over `http` only"
            }
        })
    }
}

impl std::error::Error for Unasked {}

impl Question {
    /// About the first certificate of a chain, whose issuer comes second.
    pub fn about<C: AsRef<[u8]>>(chain: &[C]) -> Result<Self, Unasked> {
        let mut chain = chain.iter().filter_map(|one| X509Certificate::from_der(one.as_ref()).ok());
        let (_, leaf) = chain.next().ok_or(Unasked::NoIssuer)?;
        let (_, issuer) = chain.next().ok_or(Unasked::NoIssuer)?;
        if issuer.subject().as_raw() != leaf.issuer().as_raw() {
            return Err(Unasked::NoIssuer);
        }
        let responder = responder(&uris(&leaf))?;
        Ok(Self { responder, request: request(&leaf, &issuer) })
    }
}

/// The addresses that a certificate names for its responder.
fn uris(leaf: &X509Certificate<'_>) -> Vec<Uri> {
    let mut described = leaf.extensions().iter().filter_map(|extension| {
        let ParsedExtension::AuthorityInfoAccess(access) = extension.parsed_extension() else { return None };
        Some(&access.accessdescs)
    });
    let responders =
        described.next().into_iter().flatten().filter(|one| one.access_method.to_id_string() == RESPONDER);
    let uris = responders.filter_map(|one| {
        let GeneralName::URI(uri) = &one.access_location else { return None };
        uri.parse::<Uri>().ok()
    });
    uris.collect()
}

/// The first address that is HTTP: over TLS one would have to ask who vouches for the responder, and what it says is signed
/// anyway.
fn responder(uris: &[Uri]) -> Result<Responder, Unasked> {
    let is_secured = |uri: &Uri| uri.scheme() == Some(&Scheme::HTTPS);
    let none = if uris.iter().any(is_secured) { Unasked::Secured } else { Unasked::NoResponder };
    uris.iter().find_map(Responder::at).ok_or(none)
}

/// The certificate by SHA-1, which every responder understands: it tells names and keys apart, and proves nothing.
fn request(leaf: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> Vec<u8> {
    let hash = |bytes: &[u8]| {
        let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, bytes);
        element(OCTETS, &[digest.as_ref()])
    };
    let algorithm = element(SEQUENCE, &[&element(OBJECT, &[&SHA1]), &NULL]);
    let id = element(
        SEQUENCE,
        &[
            &algorithm,
            &hash(leaf.issuer().as_raw()),
            &hash(&issuer.public_key().subject_public_key.data),
            &element(INTEGER, &[leaf.raw_serial()]),
        ],
    );
    let list = element(SEQUENCE, &[&element(SEQUENCE, &[&id])]);
    element(SEQUENCE, &[&element(SEQUENCE, &[&list])])
}

/// An element of DER.
fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut element = vec![tag];
    match u8::try_from(content.len()) {
        Ok(len) if len < 0x80 => element.push(len),
        _ => {
            let digits: Vec<u8> =
                content.len().to_be_bytes().into_iter().skip_while(|digit| *digit == 0).collect();
            // At most eight digits.
            element.push(0x80 | u8::try_from(digits.len()).unwrap_or(0));
            element.extend(digits);
        }
    }
    element.extend(content);
    element
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAF: &[u8] = include_bytes!("../../../tests/testdata/ocsp/leaf.der");
    const AUTHORITY: &[u8] = include_bytes!("../../../tests/testdata/ocsp/authority.der");

    #[test]
    fn lengths_take_as_many_bytes_as_they_need() {
        assert_eq!(element(4, &[b"ab", b"c"]), [4, 3, b'a', b'b', b'c']);
        assert_eq!(element(4, &[&[7; 127]])[..2], [4, 127]);
        assert_eq!(element(4, &[&[7; 128]])[..3], [4, 0x81, 128]);
        assert_eq!(element(4, &[&[7; 300]])[..4], [4, 0x82, 1, 44]);
    }

    #[test]
    fn responders_may_send_us_elsewhere_over_http() {
        let first = Responder::at(&"http://ocsp.test/a?b".parse().unwrap()).unwrap();
        let place = |location: &str| {
            let next = first.elsewhere(location)?;
            Some(format!("{} {} {}", next.host, next.port, next.path))
        };
        for (location, expected) in [
            ("/c?d=e", Some("ocsp.test 80 /c?d=e")),
            ("http://other.test", Some("other.test 80 /")),
            ("http://[::1]:8080/x", Some("[::1]:8080 8080 /x")),
            ("https://other.test/", None),
            ("//other.test/x", Some("other.test 80 /x")),
            ("/a#b", Some("ocsp.test 80 /a")),
            ("c", None),
            ("", None),
            ("file:///etc/passwd", None),
        ] {
            assert_eq!(place(location).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn a_responder_behind_tls_is_not_asked_and_the_message_says_so() {
        let found = |uris: &[&str]| {
            let uris: Vec<Uri> = uris.iter().map(|uri| uri.parse().unwrap()).collect();
            responder(&uris).map(|responder| responder.host)
        };
        assert_eq!(found(&["ldap://a.test/", "https://b.test/", "http://c.test/"]), Ok("c.test".to_owned()));
        assert_eq!(found(&["ldap://a.test/", "https://b.test/"]), Err(Unasked::Secured));
        assert_eq!(found(&["ldap://a.test/"]), Err(Unasked::NoResponder));
        assert_eq!(found(&[]), Err(Unasked::NoResponder));
        let said = format!("{}; {}", Unasked::Secured, Unasked::Secured.remedy());
        for word in ["`https`", "over `http` only", "`ocspFile`"] {
            assert!(said.contains(word), "{said}");
        }
    }

    #[test]
    fn who_cannot_be_asked_is_told() {
        assert_eq!(Question::about(&[LEAF]), Err(Unasked::NoIssuer));
        assert_eq!(Question::about(&[LEAF, LEAF]), Err(Unasked::NoIssuer));
        // It was made without.
        assert_eq!(Question::about(&[LEAF, AUTHORITY]), Err(Unasked::NoResponder));
    }
}
