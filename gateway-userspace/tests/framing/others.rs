//! What nginx and `HAProxy` make of the same bytes, and why it differs: `docs/reference/http1.md`, made with `UPDATE_EXPECT`.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    Seen,
    corpus::{Case, Expected, SENTINEL, chunked, corpus, malformed},
    endpoint,
    support::{
        free_addr,
        others::{self, Other, start, version},
    },
};

/// All bytes that the table is about.
fn cases() -> Vec<Case> {
    let body = |(body, reason): (&str, &'static str)| Case {
        bytes: chunked(body).into_bytes(),
        expected: Expected::Refused(400, reason),
    };
    corpus().into_iter().chain(malformed().into_iter().map(body)).collect()
}

/// The number alone.
fn number(program: &str) -> String {
    let line = version(program, "-v").unwrap();
    let mut words = line.split([' ', '/', '-']).map(str::trim);
    words.find(|word| word.starts_with(|char: char| char.is_ascii_digit())).unwrap().to_owned()
}

async fn outcomes(command: Command, addr: SocketAddr, seen: &Seen) -> Vec<String> {
    let _running = start(command, addr).await;
    let mut outcomes = Vec::new();
    for case in cases() {
        seen.lock().unwrap().clear();
        let bytes = [&case.bytes[..], SENTINEL.as_bytes()].concat();
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let _sent = stream.write_all(&bytes).await;
        let mut answer = Vec::new();
        let ended =
            tokio::time::timeout(Duration::from_millis(700), stream.read_to_end(&mut answer)).await.is_ok();
        let text = String::from_utf8_lossy(&answer).into_owned();
        let statuses: Vec<&str> = text
            .split("HTTP/1.1 ")
            .skip(1)
            .filter_map(|rest| rest.get(..3))
            .filter(|s| *s != "100")
            .collect();
        let got = seen.lock().unwrap().clone();
        outcomes.push(outcome(&case, got, &statuses, ended));
    }
    outcomes
}

/// One word or two: `taken` when the endpoint got what the case means, the status when it got nothing, else what it got.
fn outcome(case: &Case, mut got: Vec<(String, String, String)>, statuses: &[&str], ended: bool) -> String {
    let has_sentinel = got.last().is_some_and(|(_, target, _)| target == "/sentinel");
    if has_sentinel {
        got.pop();
    }
    if let Expected::Taken(wanted) = &case.expected
        && has_sentinel
        && wanted.len() == got.len()
        && wanted.iter().zip(&got).all(|(a, b)| a.0 == b.0 && a.2 == b.2 && (a.1.is_empty() || a.1 == b.1))
    {
        return "taken".to_owned();
    }
    if matches!(case.expected, Expected::Answered(..)) && has_sentinel && got.is_empty() {
        return statuses.first().map_or_else(|| "closed".to_owned(), |status| (*status).to_owned());
    }
    let last = statuses.last().copied().unwrap_or(if ended { "closed" } else { "waits" });
    if got.is_empty() && !has_sentinel {
        return last.to_owned();
    }
    let mut text = String::from("passed on:");
    for (method, target, body) in &got {
        write!(text, " {method} {target}").unwrap();
        if !body.is_empty() {
            write!(text, " with {} bytes", body.len()).unwrap();
        }
        text.push(',');
    }
    text.push_str(if has_sentinel { " and what follows" } else { " then " });
    if !has_sentinel {
        text.push_str(last);
    }
    text.replace(", and", " and").replace("on: and", "on:")
}

async fn nginx(folder: &Path) -> Other {
    let (addr, seen) = (free_addr(), Seen::default());
    let origin = endpoint(Seen::clone(&seen)).await;
    let server = format!(
        "listen {addr}; location / {{ proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_pass http://{}; }}",
        origin.addr
    );
    let command = others::nginx(folder, &server);
    Other { name: "nginx", version: number("nginx"), outcomes: outcomes(command, addr, &seen).await }
}

async fn haproxy(folder: &Path) -> Other {
    let (addr, seen) = (free_addr(), Seen::default());
    let origin = endpoint(Seen::clone(&seen)).await;
    let text = format!(
        "defaults\n mode http\n timeout connect 1s\n timeout client 3s\n timeout server 3s\nlisten all\n bind {addr}\n server one {}\n",
        origin.addr
    );
    fs::write(folder.join("haproxy.cfg"), text).unwrap();
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(folder.join("haproxy.cfg"));
    Other { name: "HAProxy", version: number("haproxy"), outcomes: outcomes(command, addr, &seen).await }
}

fn table() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/http1.md")
}

/// What the agent makes of a case; another test proves it.
fn ours(case: &Case) -> String {
    match &case.expected {
        Expected::Taken(_) => "taken".to_owned(),
        Expected::Refused(status, _) | Expected::Answered(status, _) => status.to_string(),
    }
}

/// The bytes as they stand in a cell.
fn shown(bytes: &[u8]) -> String {
    let text: String = bytes.escape_ascii().map(char::from).collect();
    let short: String = text.chars().take(100).collect();
    let rest = if short.len() < text.len() { "..." } else { "" };
    format!("`{}{rest}`", short.replace('|', "\\|").replace('`', "\\x60"))
}

fn row(case: &Case) -> String {
    format!("| {} | {} |", shown(&case.bytes), ours(case))
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_from_others_are_written_down() {
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let folder = tempfile::tempdir().unwrap();
        let others = [nginx(folder.path()).await, haproxy(folder.path()).await];
        fs::write(table(), text(&others)).unwrap();
    }
    let written = fs::read_to_string(table()).unwrap_or_default();
    assert!(!written.contains("(not known)"), "a difference without a reason");
    for case in cases() {
        let row = row(&case);
        assert!(written.contains(&row), "{row} is not in {}: run with UPDATE_EXPECT=1", table().display());
    }
}

fn text(others: &[Other]) -> String {
    let cases = cases();
    let versions: Vec<String> =
        others.iter().map(|other| format!("{} {}", other.name, other.version)).collect();
    let mut text = format!(
        "# HTTP/1, case by case\n\nMade by `gateway-userspace/tests/framing`, which also holds it; {} requests as bytes. Each is followed by one more request, `what follows`.\n*taken* means that the endpoint got what the bytes mean; a number is the status of an answer without any endpoint.\nThe last column says where {} differ, as they come, and why that may be: *a choice* is left to recipients by the specification, a *deviation* is not. Sections are those of RFC 9112.\n\n| bytes | the agent | differences |\n|---|---|---|\n",
        cases.len(),
        versions.join(" and "),
    );
    for (idx, case) in cases.iter().enumerate() {
        let differing = others.iter().filter(|other| !is_same(case, &other.outcomes[idx]));
        let differences: Vec<String> = differing
            .map(|other| {
                format!("{}: {} ({})", other.name, other.outcomes[idx], reason(case, &other.outcomes[idx]))
            })
            .collect();
        writeln!(text, "{} {} |", row(case), differences.join("; ")).unwrap();
    }
    text
}

fn is_same(case: &Case, outcome: &str) -> bool {
    outcome == ours(case)
}

fn is_refusal(outcome: &str) -> bool {
    outcome == "closed" || outcome.starts_with(['4', '5'])
}

/// Why another outcome than ours may be.
fn reason(case: &Case, outcome: &str) -> &'static str {
    let (Expected::Refused(_, reason) | Expected::Answered(_, reason)) = &case.expected else {
        if !is_refusal(outcome) {
            return "another form of the target; a deviation for one without a path, 3.2.4";
        }
        return "stricter than the specification asks for";
    };
    if is_refusal(outcome) {
        return "another status";
    }
    let has = |part: &str| case.bytes.windows(part.len()).any(|window| window == part.as_bytes());
    let mut pairs = case.bytes.windows(2);
    let line_feed =
        case.bytes.first() == Some(&b'\n') || pairs.any(|pair| pair[1] == b'\n' && pair[0] != b'\r');
    match *reason {
        _ if line_feed => "a choice, 2.2: a line feed alone may end a line",
        "chunk" => "a choice, 7.1.2: what stands behind a body may be dropped",
        "coding" if has("HTTP/1.0") => "a choice, 6.1: taken, and the connection is closed",
        "coding" => "a choice, RFC 9110, 5.6.1: empty members of a list count for nothing",
        "expect" => "a choice, RFC 9110, 10.1.1: what is not known may be ignored",
        "field" if has("\r\n ") || has("\r\n\t") => "a choice, 5.2: folded lines may be joined",
        "field" if has("\0") && has("X: a") => "a deviation, RFC 9110, 5.5: a zero byte goes on",
        "field" if has("X: a") => "a choice, RFC 9110, 5.5: control characters may be kept",
        "field" => "a choice: the field is dropped",
        "head_too_large" => "bounds of its own",
        "host" if matches!(case.expected, Expected::Answered(..)) => {
            "a deviation, 3.2: a host is a name or an address, and perhaps a port"
        }
        "host" => "a deviation, 3.2: a request has exactly one host",
        "length" if has("Transfer-Encoding") => {
            "a choice, 6.3: the coding counts, and the connection is closed"
        }
        "length" if outcome.ends_with("on: what follows") => {
            "a deviation, 6.3: the length goes on as it is, and no endpoint can hold it"
        }
        "length" => "a choice, 6.3: equal lengths count once",
        "line" if has("HTTP/1.1 ") || has(" HTTP/1.1\r") => {
            "a choice, 3: white space in the first line is read leniently"
        }
        "line" => "a choice, 2.3: a version is read leniently",
        "line_end" => "a deviation, 2.2: a carriage return alone ends a line",
        "path" => "a choice: what a path means is left to the endpoint",
        "target" => "a deviation, 3.2: no target has that form",
        "underscore" => "a choice: such a field goes on, or is dropped",
        "version" => "a choice, RFC 9110, 2.5: taken for a version that is known",
        _ => "not known",
    }
}
