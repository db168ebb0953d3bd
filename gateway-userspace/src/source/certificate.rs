//! PEM files, looked at as closely as they will be when they are used, so that a file that is taken can be served.

use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

use crate::{
    config::read::Wrong,
    ocsp::{self, ask::Question},
};

/// Bytes of a PEM file. A chain of ten certificates has some 20 KiB.
pub const MAX_BYTES: u64 = 1024 * 1024;

/// Checks that `pem` holds a certificate.
pub fn check_chain(pem: &[u8]) -> Result<(), Wrong> {
    let labels = labels(pem)?;
    if labels.iter().any(|label| label == "CERTIFICATE") {
        return leaf(pem).map(drop);
    }
    let remedy = "write a file with a `-----BEGIN CERTIFICATE-----` block, leaf first";
    Err(Wrong::new(format!("it holds {}, no certificate", found(&labels)), remedy))
}

/// Checks that `pem` holds certificates, and nothing that should be kept secret.
pub fn check_trust(pem: &[u8]) -> Result<(), Wrong> {
    let labels = labels(pem)?;
    if let Some(other) = labels.iter().find(|label| *label != "CERTIFICATE") {
        let message = format!("it holds a block \"{other}\" beside certificates");
        return Err(Wrong::new(message, "write the certificates of the authorities alone"));
    }
    let roots = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let roots = roots.map_err(|cause| unreadable(&cause))?;
    if roots.is_empty() {
        let remedy = "write a file with a `-----BEGIN CERTIFICATE-----` block for each authority";
        return Err(Wrong::new("it holds no certificate", remedy));
    }
    for root in roots {
        rustls::RootCertStore::empty().add(root).map_err(|cause| unreadable(&cause))?;
    }
    Ok(())
}

fn unreadable(cause: &dyn std::fmt::Display) -> Wrong {
    let remedy = "write X.509 certificates of authorities";
    Wrong::new(format!("a certificate of it cannot be read: {cause}"), remedy)
}

fn leaf(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Wrong> {
    let remedy = "write a chain of X.509 certificates, leaf first";
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let chain =
        chain.map_err(|cause| Wrong::new(format!("its certificate cannot be read: {cause}"), remedy))?;
    let first = chain.first().ok_or_else(|| Wrong::new("it holds no certificate", remedy))?;
    webpki::EndEntityCert::try_from(first)
        .map_err(|cause| Wrong::new(format!("its certificate cannot be read: {cause}"), remedy))?;
    Ok(chain)
}

/// Checks that an OCSP response is about the certificate of a chain that was found sound, and says that it is good.
pub fn check_response(chain_pem: &[u8], response: &[u8]) -> Result<(), Wrong> {
    let chain = leaf(chain_pem)?;
    ocsp::good_until(response, &chain)
        .map(drop)
        .map_err(|error| Wrong::new(error.to_string(), error.remedy()))
}

/// Checks that the authority of a chain that was found sound can be asked about it.
pub fn check_question(chain_pem: &[u8]) -> Result<(), Wrong> {
    let asked = Question::about(&leaf(chain_pem)?);
    asked.map(drop).map_err(|unasked| Wrong::new(unasked.to_string(), unasked.remedy()))
}

/// Checks that a key can be used, and belongs to the certificate of a chain that was found sound.
pub fn check_pair(chain_pem: &[u8], key_pem: &[u8]) -> Result<(), Wrong> {
    // What the parsers say about a key is not shown: it could quote it.
    let unusable = || Wrong::new("its key cannot be used", "write an RSA, ECDSA or Ed25519 key");
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| unusable())?;
    let key = any_supported_type(&key).map_err(|_| unusable())?;
    match CertifiedKey::new(leaf(chain_pem)?, key).keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(()),
        Err(_) => Err(Wrong::new(
            "its key does not belong to the certificate",
            "write the key that the certificate was issued for",
        )),
    }
}

/// Checks that `pem` holds one key that can be read without a password.
pub fn check_key(pem: &[u8]) -> Result<(), Wrong> {
    let labels = labels(pem)?;
    let n_keys = labels
        .iter()
        .filter(|label| matches!(label.as_str(), "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY"))
        .count();
    let legacy = pem.windows(MARK_OF_LEGACY.len()).any(|window| window == MARK_OF_LEGACY);
    if legacy || labels.iter().any(|label| label == "ENCRYPTED PRIVATE KEY") {
        return Err(Wrong::new(
            "its key is encrypted",
            "write it without a password: `openssl pkey -in KEY -out NEW`",
        ));
    }
    match n_keys {
        1 => Ok(()),
        0 => {
            let remedy = "write a file with a `-----BEGIN PRIVATE KEY-----` block";
            Err(Wrong::new(format!("it holds {}, no key", found(&labels)), remedy))
        }
        _ => Err(Wrong::new(format!("it holds {n_keys} keys"), "write one key to a file")),
    }
}

/// A header of encrypted keys from before PKCS#8.
const MARK_OF_LEGACY: &[u8] = b"Proc-Type: 4,ENCRYPTED";

fn found(labels: &[String]) -> String {
    match labels.first() {
        Some(label) => format!("a block \"{label}\""),
        None => "no PEM block".to_owned(),
    }
}

/// The labels of the blocks, each of which has to be closed and to hold base64.
fn labels(pem: &[u8]) -> Result<Vec<String>, Wrong> {
    let text = String::from_utf8_lossy(pem);
    let mut labels = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) else {
            continue;
        };
        let end = format!("-----END {label}-----");
        let mut n_letters = 0_usize;
        loop {
            let Some(line) = lines.next() else {
                let message = format!("its block \"{label}\" does not end");
                return Err(Wrong::new(message, "copy the whole file again"));
            };
            if line == end {
                break;
            }
            // Keys from before PKCS#8 carry header lines, which have a colon.
            let letters = line.contains(':')
                || line.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
            if !letters {
                return Err(Wrong::new(
                    format!("its block \"{label}\" is not base64"),
                    "copy the whole file again",
                ));
            }
            n_letters += line.len();
        }
        if n_letters == 0 {
            return Err(Wrong::new(format!("its block \"{label}\" is empty"), "copy the whole file again"));
        }
        labels.push(label.to_owned());
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n";

    fn made() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn the_right_files_pass() {
        let (chain, key) = made();
        let chain = format!("subject=x\n{chain}");
        assert_eq!(check_chain(chain.as_bytes()), Ok(()));
        assert_eq!(check_key(key.as_bytes()), Ok(()));
        assert_eq!(check_key(format!("{chain}{key}").as_bytes()), Ok(()));
        assert_eq!(check_pair(chain.as_bytes(), key.as_bytes()), Ok(()));
    }

    #[test]
    fn a_key_that_cannot_serve_its_certificate_is_refused() {
        let ((chain, _), (_, other)) = (made(), made());
        let message = |key: &[u8]| check_pair(chain.as_bytes(), key).unwrap_err().message;
        assert!(message(other.as_bytes()).contains("does not belong"), "{}", message(other.as_bytes()));
        assert!(message(KEY).contains("cannot be used"));
        let garbage = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(check_chain(garbage).unwrap_err().message.contains("cannot be read"));
    }

    #[test]
    fn wrong_files_are_told_apart() {
        let check = |result: Result<(), Wrong>, part: &str| {
            let message = result.unwrap_err().message;
            assert!(message.contains(part), "{message}");
        };
        check(check_chain(KEY), "EC PRIVATE KEY");
        check(check_chain(b""), "no PEM block");
        check(check_key(made().0.as_bytes()), "no key");
        check(check_key(&[KEY, KEY].concat()), "2 keys");
        check(
            check_key(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA\n-----END ENCRYPTED PRIVATE KEY-----"),
            "encrypted",
        );
        check(check_chain(b"-----BEGIN CERTIFICATE-----\nAAAA\n"), "does not end");
        check(check_chain(b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"), "not base64");
        check(check_chain(b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"), "is empty");
    }
}
