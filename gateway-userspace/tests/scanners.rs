//! What scanners of TLS find at a listener with the settings that everybody gets. What they complain about stands with its
//! reason in `docs/decisions/scanners.md`, or is a fault.

#![cfg(test)]
#![expect(clippy::disallowed_methods, reason = "the tasks of a test end with it")]

mod support;

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use gateway_userspace::{
    secret::Secret,
    snapshot::listener::{Certificate, Protocol},
};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
use support::{free_addr, has, proxy::Proxy, wanted::simple};

const REASONS: &str = include_str!("../../docs/decisions/scanners.md");

fn certificate(algorithm: &'static rcgen::SignatureAlgorithm) -> Certificate {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    Certificate {
        origin: "web.pem".to_owned(),
        chain_pem: params.self_signed(&key).unwrap().pem().into_bytes(),
        key_pem: Secret::new(key.serialize_pem().as_bytes()),
        ocsp: None,
        fetches_ocsp: false,
    }
}

/// What a program prints about a listener with a certificate of both kinds.
async fn scan(command: impl Fn(&str) -> Command) -> String {
    let addr = free_addr();
    let mut snapshot = simple(addr, &[]);
    snapshot.listeners[0].protocol = Protocol::Https;
    snapshot.listeners[0].certificates =
        vec![certificate(&PKCS_ECDSA_P256_SHA256), certificate(&PKCS_RSA_SHA256)];
    let _proxy = Proxy::start(&snapshot);
    let mut command = command(&addr.to_string());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn sslscan_finds_new_protocols_and_ciphers_alone() {
    if !has("sslscan", "sslscan") {
        return;
    }
    let said = scan(|addr| {
        let mut command = Command::new("timeout");
        command.args(["120", "sslscan", "--no-colour", addr]);
        command
    })
    .await;
    for protocol in ["SSLv2", "SSLv3", "TLSv1.0", "TLSv1.1"] {
        let line = said.lines().find(|line| line.starts_with(protocol)).unwrap_or_default();
        assert!(line.ends_with("disabled"), "{said}");
    }
    let ciphers: Vec<&str> =
        said.lines().filter(|line| line.starts_with("Preferred") || line.starts_with("Accepted")).collect();
    let name = |line: &&str| line.split_whitespace().nth(4).unwrap_or_default().to_owned();
    let names: BTreeSet<String> = ciphers.iter().map(name).collect();
    for kind in ["ECDHE-ECDSA-", "ECDHE-RSA-", "TLS_"] {
        assert!(names.iter().any(|name| name.starts_with(kind)), "{said}");
    }
    let is_good = |name: &String| {
        let is_ephemeral = name.starts_with("TLS_") || name.starts_with("ECDHE-");
        is_ephemeral && (name.contains("GCM") || name.contains("CHACHA20"))
    };
    assert!(names.iter().all(is_good), "{said}");
    assert!(said.contains("Session renegotiation not supported"), "{said}");
    assert!(!said.replace("not vulnerable", "").contains("vulnerable"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn testssl_finds_nothing_above_low_that_has_no_reason() {
    if !has("testssl", "testssl.sh") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("found.json");
    let said = scan(|addr| {
        let mut command = Command::new("timeout");
        command.args(["580", "testssl", "--quiet", "--color", "0", "--warnings", "off", "--openssl"]);
        command.args(["/usr/bin/openssl", "--protocols", "--server-preference", "--server-defaults"]);
        command.args(["--fs", "--vulnerable", "--jsonfile"]).arg(&file).arg(addr);
        command
    })
    .await;
    let found = findings(&file);
    let is_bad = |severity: &str| matches!(severity, "MEDIUM" | "HIGH" | "CRITICAL" | "FATAL");
    let unexplained: Vec<_> = found
        .iter()
        .filter(|(_, severity, _)| is_bad(severity))
        .filter(|(id, _, _)| !REASONS.contains(&format!("`{id}`")))
        .collect();
    assert!(unexplained.is_empty(), "{unexplained:#?}\n{said}");
    for id in ["TLS1_3", "heartbleed", "ROBOT", "LUCKY13", "secure_renego"] {
        assert!(found.iter().any(|(found, _, _)| found == id), "{id} was not looked at\n{said}");
    }
}

/// Name, severity and text of everything in a file of testssl.sh.
fn findings(file: &Path) -> Vec<(String, String, String)> {
    let found: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let text = |found: &serde_json::Value, key: &str| found[key].as_str().unwrap_or_default().to_owned();
    let whole = |found| (text(found, "id"), text(found, "severity"), text(found, "finding"));
    let named = |(id, severity, finding): (String, String, String)| {
        // What it says about one of several certificates carries a number.
        (id.split(' ').next().unwrap_or_default().to_owned(), severity, finding)
    };
    found.as_array().unwrap().iter().map(whole).map(named).collect()
}
