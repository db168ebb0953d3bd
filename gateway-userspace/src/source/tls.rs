//! TLS of a listener: certificates, whom to trust, and the keys of session tickets.

use crate::{
    config::{
        files::Files,
        read::{View, Wrong},
    },
    limits,
    secret::Secret,
    snapshot::{
        draft::DraftTls,
        listener::{Certificate, ClientCertificates},
    },
    source::{certificate, text},
};

/// Bytes of a key of session tickets.
const TICKET_KEY_BYTES: usize = 32;

/// Reads `tls` of a listener; faults go to the reader of `view`.
pub(super) fn read(view: &View<'_>, files: &Files) -> DraftTls {
    let ticket_keys = view.text("ticketKeysFile", |name| ticket_keys(&files.read(name, MAX_BYTES)?));
    DraftTls {
        certificates: view.tables("certificates").iter().filter_map(|one| certificate(one, files)).collect(),
        ticket_keys: ticket_keys.map(|keys| keys.value).unwrap_or_default(),
        clients: view.table("clientCertificates").and_then(|view| clients(&view, files)),
    }
}

/// Bytes of a file of keys.
const MAX_BYTES: u64 = 64 * 1024;

fn certificate(view: &View<'_>, files: &Files) -> Option<Certificate> {
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
    let ((origin, chain_pem), key_pem) = (chain?.value, key?.value);
    Some(Certificate { origin, chain_pem, key_pem })
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
