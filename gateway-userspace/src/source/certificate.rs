//! PEM files, looked at closely enough to tell a wrong file at once; whether key and certificate belong together is
//! found when they are used.

use crate::config::read::Wrong;

/// Bytes of a PEM file. A chain of ten certificates has some 20 KiB.
pub const MAX_BYTES: u64 = 1024 * 1024;

/// Checks that `pem` holds a certificate.
pub fn check_chain(pem: &[u8]) -> Result<(), Wrong> {
    let labels = labels(pem)?;
    if labels.iter().any(|label| label == "CERTIFICATE") {
        return Ok(());
    }
    let remedy = "write a file with a `-----BEGIN CERTIFICATE-----` block, leaf first";
    Err(Wrong::new(format!("it holds {}, no certificate", found(&labels)), remedy))
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

    const CHAIN: &[u8] = b"subject=x\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    const KEY: &[u8] = b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n";

    #[test]
    fn the_right_files_pass() {
        assert_eq!(check_chain(CHAIN), Ok(()));
        assert_eq!(check_key(KEY), Ok(()));
        assert_eq!(check_key(&[CHAIN, KEY].concat()), Ok(()));
    }

    #[test]
    fn wrong_files_are_told_apart() {
        let check = |result: Result<(), Wrong>, part: &str| {
            let message = result.unwrap_err().message;
            assert!(message.contains(part), "{message}");
        };
        check(check_chain(KEY), "EC PRIVATE KEY");
        check(check_chain(b""), "no PEM block");
        check(check_key(CHAIN), "no key");
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
