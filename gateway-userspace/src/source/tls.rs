//! TLS of a listener and towards endpoints: certificates, whom to trust, and the keys of session tickets.

use std::{cell::RefCell, collections::HashMap, net::IpAddr, path::Path, sync::Arc};

use crate::{
    config::{
        files::Files,
        read::{View, Wrong},
    },
    limits, ocsp,
    place::Located,
    secret::Secret,
    snapshot::{
        draft::DraftTls,
        listener::{Certificate, ClientCertificates, Hostname},
        service::{EndpointTls, Trust},
    },
    source::{certificate, text},
};

/// Bytes of a key of session tickets.
const TICKET_KEY_BYTES: usize = 32;

/// Reads `tls` of a listener; faults go to the reader of `view`.
pub(super) fn read(view: &View<'_>, files: &Files) -> DraftTls {
    let ticket_keys = view.text("ticketKeysFile", |name| ticket_keys(&files.read(name, MAX_BYTES)?));
    DraftTls {
        certificates: view
            .tables("certificates")
            .iter()
            .filter_map(|one| certificate(one, files, true))
            .collect(),
        ticket_keys: ticket_keys.map(|keys| keys.value).unwrap_or_default(),
        clients: view.table("clientCertificates").and_then(|view| clients(&view, files)),
    }
}

/// Bytes of a file of keys.
const MAX_BYTES: u64 = 64 * 1024;

fn certificate(view: &View<'_>, files: &Files, has_staple: bool) -> Option<Certificate> {
    let chain = view.text("certificateFile", |name| {
        let pem = files.read(name, certificate::MAX_BYTES)?;
        certificate::check_chain(&pem)?;
        Ok((files.path(name).display().to_string(), pem))
    });
    let key = view.text("keyFile", |name| {
        let pem = files.read(name, certificate::MAX_BYTES)?;
        certificate::check_key(&pem)?;
        // A chain that is wrong has a fault of its own.
        if let Some(chain) = &chain {
            certificate::check_pair(&chain.value.1, &pem)?;
        }
        Ok(Secret::new(&pem))
    });
    let staple = if has_staple && view.has("ocspFile") {
        let read = view.text("ocspFile", |name| {
            let response = files.read(name, ocsp::MAX_BYTES)?;
            if let Some(chain) = &chain {
                certificate::check_response(&chain.value.1, &response)?;
            }
            Ok(response)
        });
        Some(read?.value)
    } else {
        None
    };
    let fetches_ocsp = has_staple && fetches(view, chain.as_ref().map(|chain| &*chain.value.1));
    let ((origin, chain_pem), key_pem) = (chain?.value, key?.value);
    Some(Certificate { origin, chain_pem, key_pem, ocsp: staple, fetches_ocsp })
}

/// Whether the authority is asked, which has to be possible.
fn fetches(view: &View<'_>, chain_pem: Option<&[u8]>) -> bool {
    let word = view.word("ocsp", |word| (word == "fetch").then_some(()));
    let Some(Located { place, .. }) = word else { return false };
    let reader = view.reader();
    if view.has("ocspFile") {
        reader.fault(place, "`ocspFile` says what clients are sent", "write `ocspFile` or `ocsp: fetch`");
    }
    if let Some(Err(wrong)) = chain_pem.map(certificate::check_question) {
        reader.fault(place, wrong.message, wrong.remedy);
    }
    true
}

fn clients(view: &View<'_>, files: &Files) -> Option<ClientCertificates> {
    let trust = view.text("trustFile", |name| {
        let pem = files.read(name, certificate::MAX_BYTES)?;
        certificate::check_trust(&pem)?;
        Ok((files.path(name).display().to_string(), pem))
    });
    let is_required = view.word("mode", |word| match word {
        "required" => Some(true),
        "optional" => Some(false),
        _ => None,
    });
    let header = view.text("identityHeader", text::own_header_name);
    let ((origin, trust_pem), is_required) = (trust?.value, is_required?.value);
    Some(ClientCertificates { is_required, origin, trust_pem, identity_header: header?.value })
}

/// Where distributions keep the authorities that they trust: Debian, Ubuntu, Arch and Alpine; Fedora and its kin; openSUSE;
/// BSDs and images without a distribution.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Bundles of one reading: services share them, and the system's has 200 KiB.
#[derive(Debug, Default)]
pub(super) struct Bundles(RefCell<HashMap<String, Arc<[u8]>>>);

impl Bundles {
    fn read(&self, name: &str, files: &Files, is_of_system: bool) -> Result<Trust, Wrong> {
        let origin = files.path(name).display().to_string();
        let known = self.0.borrow().get(&origin).map(Arc::clone);
        if let Some(pem) = known {
            return Ok(Trust { origin, pem, is_of_system });
        }
        let pem: Arc<[u8]> = files.read(name, certificate::MAX_BYTES)?.into();
        if !is_of_system {
            certificate::check_trust(&pem)?;
        }
        self.0.borrow_mut().insert(origin.clone(), Arc::clone(&pem));
        Ok(Trust { origin, pem, is_of_system })
    }

    fn of_system(&self, files: &Files) -> Result<Trust, Wrong> {
        let found = SYSTEM_AUTHORITIES.iter().find(|path| Path::new(path).is_file());
        let remedy = "install the package `ca-certificates`, or write `trustFile`";
        let path = found.ok_or_else(|| Wrong::new("the system has no file of authorities", remedy))?;
        self.read(path, files, true)
    }
}

/// Reads `tls` of a service.
pub(super) fn endpoint(view: &View<'_>, files: &Files, bundles: &Bundles) -> Option<EndpointTls> {
    let server_name = view.text("serverName", server_name);
    let of_file = view.text("trustFile", |name| bundles.read(name, files, false));
    let of_system = view.word("trust", |word| (word == "system").then_some(())).and_then(|word| {
        let wrong = |wrong: Wrong| view.reader().fault(word.place, wrong.message, wrong.remedy);
        bundles.of_system(files).map_err(wrong).ok()
    });
    let certificate = view.table("clientCertificate").map(|view| certificate(&view, files, false));
    let certificate = match certificate {
        Some(None) => return None,
        certificate => certificate.flatten(),
    };
    let trust = of_file.map(|trust| trust.value).or(of_system)?;
    Some(EndpointTls { server_name: server_name?.value, trust, certificate })
}

/// A name or an address that a certificate can be good for.
fn server_name(name: &str) -> Result<String, Wrong> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    match text::hostname(name)? {
        Hostname::Exact(name) => Ok(name),
        Hostname::Wildcard(_) => {
            Err(Wrong::new("it stands for many names", "write one name that the certificates are good for"))
        }
    }
}

/// The keys of a file, one a line.
fn ticket_keys(content: &[u8]) -> Result<Vec<Secret>, Wrong> {
    let remedy = "write 64 hexadecimal digits a line, such as `openssl rand -hex 32` prints";
    let mut keys = Vec::new();
    // Lines are named by their number and never shown: they are secret.
    for (line, number) in content.split(|byte| *byte == b'\n').zip(1..) {
        let digits = line.split(|byte| *byte == b'#').next().unwrap_or_default().trim_ascii();
        if digits.is_empty() {
            continue;
        }
        let wrong = |what: &str| Wrong::new(format!("its line {number} {what}"), remedy);
        let bytes = hexadecimal(digits).ok_or_else(|| wrong("holds something else than digits"))?;
        if bytes.len() != TICKET_KEY_BYTES {
            return Err(wrong(&format!("holds {} digits instead of 64", digits.len())));
        }
        let key = Secret::new(&bytes);
        if keys.contains(&key) {
            return Err(wrong("holds a key that stands above"));
        }
        keys.push(key);
    }
    match keys.len() {
        0 => Err(Wrong::new("it holds no key", remedy)),
        n if n > limits::TICKET_KEYS => {
            Err(Wrong::new(format!("it holds {n} keys"), format!("write at most {}", limits::TICKET_KEYS)))
        }
        _ => Ok(keys),
    }
}

fn hexadecimal(digits: &[u8]) -> Option<Vec<u8>> {
    let nibble = |digit: &u8| char::from(*digit).to_digit(16).and_then(|nibble| u8::try_from(nibble).ok());
    let nibbles: Vec<u8> = digits.iter().map(nibble).collect::<Option<_>>()?;
    Some(nibbles.chunks(2).map(|pair| pair.iter().fold(0, |byte, half| byte << 4 | half)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_their_order() {
        let (a, b) = ("0a".repeat(32), "FF".repeat(32));
        let keys = ticket_keys(format!("# new\n{a}\r\n\n {b} # old\n").as_bytes()).unwrap();
        assert_eq!(keys.iter().map(|key| key.expose()[0]).collect::<Vec<_>>(), [10, 255]);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line_and_not_shown() {
        let key = "0a".repeat(32);
        for (content, part) in [
            (String::new(), "no key"),
            (format!("{key}\n{key}\n"), "line 2 holds a key that stands above"),
            (format!("{key}\nsecret\n"), "line 2 holds something else"),
            (format!("{key}0\n"), "line 1 holds 65 digits"),
            ((0..17).map(|n| format!("{n:064x}")).collect::<Vec<_>>().join("\n"), "17 keys"),
        ] {
            let message = ticket_keys(content.as_bytes()).unwrap_err().message;
            assert!(message.contains(part) && !message.contains("secret"), "{message}");
        }
    }
}
