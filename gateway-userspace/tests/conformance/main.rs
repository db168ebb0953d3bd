//! A conformance suite of HTTP/2, frame by frame: what the agent makes of each case is allowed by the specification and
//! recorded, and so is what nginx and nghttpd make of it. Where it is installed, h2spec is asked as well.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]

mod cases;
#[path = "../support/mod.rs"]
mod support;

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use cases::Case;
use gateway_userspace::snapshot::listener::Protocol;
use support::{
    built,
    frames::{ACK, COMPRESSION, GOAWAY, HEADERS, NO_ERROR, PING, PREFACE, Peer, RST_STREAM, frame, settings},
    free_addr,
    origin::Origin,
    others::{self, Other, start, version},
    proxy::Proxy,
    wanted::{certificate, simple},
};

/// What the specification allows.
#[derive(Clone, Copy, Debug)]
enum Allowed {
    /// The connection goes on, and nothing else happens.
    Alive,
    /// A response with status 200.
    Served,
    /// An error of the stream, or of the whole connection (RFC 9113, section 5.4.2).
    Stream(u32),
    /// An error of the connection; one may close without saying why (section 5.4.1).
    Connection(u32),
    /// A malformed request: an error of the stream, or a response that says so (section 8.1.1).
    Malformed,
    /// One of these.
    Any(&'static [&'static str]),
}

impl Allowed {
    fn includes(self, outcome: &str) -> bool {
        let is = |kind: &str, code: u32| outcome == format!("{kind}:{code}");
        match self {
            Self::Alive => outcome == "alive",
            Self::Served => outcome == "status:200",
            Self::Stream(code) => is("reset", code) || is("goaway", code) || outcome == "closed",
            Self::Connection(code) => is("goaway", code) || outcome == "closed",
            Self::Malformed => is("reset", 1) || is("goaway", 1) || is("status", 400) || outcome == "closed",
            Self::Any(outcomes) => outcomes.contains(&outcome),
        }
    }
}

const MARK: [u8; 8] = *b"the end.";

/// The one kind of malformed trailers that is served.
const STORED: &str = "trailers with a pseudo-field that the head has stored";

/// Where the agent deviates, and why that is borne.
fn known(case: &Case, outcome: &str) -> Option<&'static str> {
    // RFC 7541 is about the decoder, RFC 9113, section 4.3 about what is said of its errors.
    match (case.allowed, outcome.as_bytes()) {
        (Allowed::Connection(COMPRESSION), b"goaway:1") => Some(
            "the codec decodes heads, ends the connection by itself, and says PROTOCOL_ERROR of whatever it cannot decode",
        ),
        (Allowed::Malformed, b"status:200") if case.name == STORED => Some(
            "the codec drops the pseudo-field, so that nobody sees it; whoever wants to know what was stored has to decode every head",
        ),
        _ => None,
    }
}

/// What a server makes of a case: the error of the connection, else of a stream, else the response, else nothing.
async fn outcome(addr: SocketAddr, case: &Case) -> String {
    let mut peer = Peer::silent(addr).await;
    let begin = if case.is_raw { Vec::new() } else { settings(&[]) };
    peer.send(&[PREFACE, &begin, &case.bytes, &frame(PING, 0, 0, MARK)].concat()).await;
    let (mut is_answered, mut found) = (false, None);
    loop {
        let patience = if is_answered { Duration::from_millis(400) } else { Duration::from_secs(5) };
        let Some(read) = peer.read(patience).await else {
            let is_closed = peer.is_closed().await;
            return found
                .unwrap_or_else(|| if is_closed && !is_answered { "closed" } else { "alive" }.to_owned());
        };
        match read.kind {
            GOAWAY if read.code() != Some(NO_ERROR) => return format!("goaway:{}", read.code().unwrap()),
            // A server that wants no more of the request, and has answered (RFC 9113, section 8.1).
            RST_STREAM if read.code() == Some(NO_ERROR) => continue,
            RST_STREAM => found = Some(format!("reset:{}", read.code().unwrap())),
            HEADERS if found.is_none() => found = read.status().map(|status| format!("status:{status}")),
            PING if read.flags & ACK != 0 && read.payload == MARK => is_answered = true,
            _ => continue,
        }
        if is_answered && let Some(found) = found {
            return found;
        }
    }
}

/// Some at a time: each waits for a while.
async fn outcomes(addr: SocketAddr) -> Vec<String> {
    use futures_util::StreamExt as _;
    let cases = cases::all();
    futures_util::stream::iter(&cases).map(|case| outcome(addr, case)).buffered(24).collect().await
}

async fn nginx(folder: &Path) -> Option<Other> {
    let version = version("nginx", "-v")?;
    let addr = free_addr();
    let command = others::nginx(folder, &format!("listen {addr} http2; location / {{ return 200 ok; }}"));
    let _running = start(command, addr).await;
    Some(Other { name: "nginx", version, outcomes: outcomes(addr).await })
}

async fn nghttpd(folder: &Path) -> Option<Other> {
    let version = version("nghttpd", "--version")?;
    let addr = free_addr();
    for name in ["index.html", "a"] {
        fs::write(folder.join(name), "ok").unwrap();
    }
    let mut command = Command::new("nghttpd");
    command.args(["--no-tls", "--address=127.0.0.1", "--htdocs"]).arg(folder).arg(addr.port().to_string());
    let _running = start(command, addr).await;
    Some(Other { name: "nghttpd", version, outcomes: outcomes(addr).await })
}

fn table() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/http2.md")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_is_answered_as_the_specification_allows() {
    let cases = cases::all();
    assert!(cases.len() >= 140, "{}", cases.len());
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let _proxy = Proxy::with_workers(&simple(addr, &[origin.addr]), 1);
    let ours = outcomes(addr).await;
    let wrong: Vec<String> = cases
        .iter()
        .zip(&ours)
        .filter(|(case, outcome)| !case.allowed.includes(outcome) && known(case, outcome).is_none())
        .map(|(case, outcome)| format!("{} {}: {outcome}, not {:?}", case.section, case.name, case.allowed))
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    compare(&cases, &ours).await;
}

/// Compares with the table that is committed; what others do is looked at when it is made.
async fn compare(cases: &[Case], ours: &[String]) {
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let folder = tempfile::tempdir().unwrap();
        let others = [nginx(folder.path()).await, nghttpd(folder.path()).await];
        let others: Vec<Other> = others.into_iter().flatten().collect();
        assert_eq!(others.len(), 2, "the table needs both nginx and nghttpd");
        fs::write(table(), text(cases, ours, &others)).unwrap();
        return;
    }
    let written = fs::read_to_string(table()).unwrap_or_default();
    for (case, outcome) in cases.iter().zip(ours) {
        let row = format!("| {} | {} | {outcome} |", case.section, case.name);
        assert!(written.contains(&row), "{row} is not in {}: run with UPDATE_EXPECT=1", table().display());
    }
}

fn text(cases: &[Case], ours: &[String], others: &[Other]) -> String {
    let mut text = String::from("# HTTP/2, case by case\n\n");
    let versions: Vec<String> = others.iter().map(|other| format!("`{}`", other.version)).collect();
    writeln!(
        text,
        "Made by `gateway-userspace/tests/conformance`, which also holds it; `{}` cases of RFC 9113 (sections without a number in front), RFC 7541 and RFC 8441.\nWhat the agent does is an error of the connection (`goaway:` and its code, or `closed` without one), an error of the stream (`reset:`), a response (`status:`), or nothing (`alive`); codes are those of RFC 9113, section 7.\nThe last column says where {} differ, and why that may be: *a choice* is left to servers by the specification, a *deviation* is not.\n",
        cases.len(),
        versions.join(" and "),
    )
    .unwrap();
    text.push_str("| section | case | the agent | differences |\n|---|---|---|---|\n");
    for (idx, (case, outcome)) in cases.iter().zip(ours).enumerate() {
        let own = known(case, outcome).filter(|_| !case.allowed.includes(outcome));
        let own = own.map(|reason| format!("the agent: {reason}"));
        let differences = others.iter().filter(|other| other.outcomes[idx] != *outcome).map(|other| {
            format!(
                "{}: {} ({})",
                other.name,
                other.outcomes[idx],
                reason(case, outcome, &other.outcomes[idx])
            )
        });
        let differences: Vec<String> = own.into_iter().chain(differences).collect();
        let differences = differences.join("; ");
        writeln!(text, "| {} | {} | {outcome} | {differences} |", case.section, case.name).unwrap();
    }
    text
}

/// Why another outcome than ours may be.
fn reason(case: &Case, ours: &str, outcome: &str) -> &'static str {
    match case.allowed {
        allowed if allowed.includes(outcome) && !allowed.includes(ours) => "as specified",
        allowed if allowed.includes(outcome) => match (allowed, outcome) {
            (Allowed::Malformed, "status:400") => "a choice, 8.1.1: a response instead of an error",
            (Allowed::Malformed | Allowed::Stream(_), _) if outcome.starts_with("goaway") => {
                "a choice, 5.4.2: the connection instead of the stream"
            }
            (_, "closed") => "a choice, 5.4.1: closes without a word",
            _ => "a choice",
        },
        Allowed::Connection(_) | Allowed::Stream(_) | Allowed::Malformed if outcome == "alive" => {
            "a deviation: it is ignored"
        }
        Allowed::Malformed | Allowed::Stream(_) if outcome.starts_with("status:2") => {
            "a deviation: it is served"
        }
        Allowed::Connection(_) | Allowed::Stream(_) | Allowed::Malformed if outcome.starts_with("status") => {
            "a deviation: a response instead of an error"
        }
        Allowed::Served if outcome.starts_with("status") => "its own files and methods, not the protocol",
        Allowed::Connection(_) if outcome.starts_with("reset") => {
            "a deviation: the stream instead of the connection"
        }
        Allowed::Connection(_) | Allowed::Stream(_) | Allowed::Malformed => "a deviation: another code",
        Allowed::Alive | Allowed::Served => "a deviation: it is refused",
        Allowed::Any(_) => "a deviation",
    }
}

/// h2spec (`go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible`) over TLS; `SLUICE_H2SPEC` names it.
#[tokio::test(flavor = "multi_thread")]
async fn h2spec_finds_nothing() {
    let module = "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible";
    let Some(program) = built("SLUICE_H2SPEC", module) else { return };
    let origin = Origin::serve("127.0.0.1:0".parse().unwrap(), |_| async {
        http::Response::new(http_body_util::Full::new(bytes::Bytes::from_static(&[b'a'; 256])))
    })
    .await;
    let addr = free_addr();
    let mut snapshot = simple(addr, &[origin.addr]);
    snapshot.listeners[0].protocol = Protocol::Https;
    snapshot.listeners[0].certificates = vec![certificate("localhost")];
    let _proxy = Proxy::with_workers(&snapshot, 1);
    let mut command = Command::new(program);
    command.args(["-t", "-k", "-S", "-o", "5", "-h", "127.0.0.1", "-p"]).arg(addr.port().to_string());
    let output = tokio::task::block_in_place(|| command.output()).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains(", 0 failed"), "{text}");
}
