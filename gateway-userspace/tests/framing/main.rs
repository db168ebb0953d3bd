//! Requests of HTTP/1 as bytes, judged by what the endpoint receives: each is either taken, and then means to the endpoint
//! what it meant to us, or refused with its status, counted under its reason, and nothing behind it is looked at. Every
//! case is followed by one more request, so that bytes that count for one message here and for two there show.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]

mod corpus;
mod others;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use corpus::{Expected, SENTINEL, chunked, corpus, malformed};
use gateway_userspace::metrics::refusal::Refusal;
use support::{free_addr, origin::Origin, proxy::Proxy, wanted::simple};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

type Seen = Arc<Mutex<Vec<(String, String, String)>>>;

/// An endpoint that reads bytes by rules of its own, and remembers what they said.
async fn endpoint(seen: Seen) -> Origin {
    Origin::raw(move |mut stream| {
        let seen = Arc::clone(&seen);
        async move {
            let mut bytes = Vec::new();
            let mut room = [0; 4096];
            loop {
                while let Some((request, len)) = understand(&bytes) {
                    bytes.drain(..len);
                    seen.lock().unwrap().push(request);
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
                match stream.read(&mut room).await {
                    Ok(n @ 1..) => bytes.extend_from_slice(&room[..n]),
                    _ => return,
                }
            }
        }
    })
    .await
}

/// The first request of `bytes` once it is whole, and its length.
fn understand(bytes: &[u8]) -> Option<((String, String, String), usize)> {
    let text: String =
        bytes.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { '?' }).collect();
    let (head, rest) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let fields: Vec<(String, &str)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value))
        .collect();
    let field = |name: &str| fields.iter().find(|(present, _)| present == name).map(|(_, value)| *value);
    assert!(!(field("content-length").is_some() && field("transfer-encoding").is_some()), "{head}");
    let begin = head.len() + 4;
    if let Some(length) = field("content-length") {
        let length: usize = length.parse().unwrap();
        let body = rest.get(..length)?.to_owned();
        return Some(((method, target, body), begin + length));
    }
    if field("transfer-encoding").is_none() {
        return Some(((method, target, String::new()), begin));
    }
    let (mut body, mut at) = (String::new(), 0);
    loop {
        let (size, _) = rest.get(at..)?.split_once("\r\n")?;
        assert!(!size.contains(';'), "an extension was passed on");
        at += size.len() + 2;
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            let end = rest.get(at..)?.find("\r\n\r\n").map(|end| end + 4);
            let end = if rest.get(at..)?.starts_with("\r\n") { 2 } else { end? };
            return Some(((method, target, body), begin + at + end));
        }
        body.push_str(rest.get(at..at + size)?);
        assert_eq!(rest.get(at + size..at + size + 2)?, "\r\n");
        at += size + 2;
    }
}

/// Statuses of the responses to `bytes`, and whether the connection ended.
async fn send(addr: SocketAddr, bytes: &[u8]) -> (Vec<u16>, bool) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // Whoever refuses early may have closed by then.
    let _sent = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let ended = tokio::time::timeout(Duration::from_secs(5), read).await.is_ok();
    let text = String::from_utf8_lossy(&answer);
    let statuses = text.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok());
    (statuses.filter(|status| *status != 100).collect(), ended)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_mean_to_the_endpoint_what_they_mean_to_us() {
    let seen = Seen::default();
    let (origin, addr) = (endpoint(Arc::clone(&seen)).await, free_addr());
    let proxy = Proxy::start(&simple(addr, &[origin.addr]));
    let cases = corpus();
    assert!(cases.len() >= 200, "{} cases", cases.len());
    println!("{} cases", cases.len());
    for case in cases {
        seen.lock().unwrap().clear();
        let text = String::from_utf8_lossy(&case.bytes).into_owned();
        let text = text.get(..120).unwrap_or(&text);
        let before = refusals(&proxy);
        let (statuses, ended) = send(addr, &[&case.bytes[..], SENTINEL.as_bytes()].concat()).await;
        assert!(ended, "{text:?}: the connection was left open");
        let got = seen.lock().unwrap().clone();
        match case.expected {
            Expected::Taken(mut requests) => {
                requests.push(("GET".to_owned(), "/sentinel".to_owned(), String::new()));
                let blank = |(mut got, wanted): ((String, String, String), &(String, String, String))| {
                    if wanted.1.is_empty() {
                        got.1.clear();
                    }
                    got
                };
                assert_eq!(got.len(), requests.len(), "{text:?}: the endpoint got {got:?}");
                let got: Vec<_> = got.into_iter().zip(&requests).map(blank).collect();
                assert_eq!(got, requests, "{text:?}");
                assert!(statuses.iter().all(|status| *status == 200), "{text:?}: {statuses:?}");
                assert_eq!(refusals(&proxy), before, "{text:?} counts as refused");
            }
            Expected::Refused(status, reason) => {
                assert!(got.is_empty(), "{text:?}: the endpoint got {got:?}");
                assert_eq!(statuses, [status], "{text:?}");
                assert_eq!(refusals(&proxy), and_one(before, reason), "{text:?}");
            }
            Expected::Answered(status, reason) => {
                let next = ("GET".to_owned(), "/sentinel".to_owned(), String::new());
                assert_eq!(got, [next], "{text:?}");
                assert_eq!(statuses, [status, 200], "{text:?}");
                assert_eq!(refusals(&proxy), and_one(before, reason), "{text:?}");
            }
        }
    }
}

/// Requests refused so far, by reason.
fn refusals(proxy: &Proxy) -> BTreeMap<&'static str, u64> {
    let text = proxy.metrics.encode().unwrap();
    let count = |reason: &str| {
        let series = format!("sluice_requests_refused_total{{reason=\"{reason}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
    };
    Refusal::ALL.map(|refusal| (refusal.as_str(), count(refusal.as_str()))).into()
}

fn and_one(mut refusals: BTreeMap<&'static str, u64>, reason: &'static str) -> BTreeMap<&'static str, u64> {
    *refusals.entry(reason).or_default() += 1;
    refusals
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_body_ends_the_connection_and_no_request_of_it_is_whole() {
    let seen = Seen::default();
    let (origin, addr) = (endpoint(Arc::clone(&seen)).await, free_addr());
    let proxy = Proxy::start(&simple(addr, &[origin.addr]));
    for (body, reason) in malformed() {
        seen.lock().unwrap().clear();
        let before = refusals(&proxy);
        let (statuses, ended) = send(addr, [chunked(body), SENTINEL.to_owned()].concat().as_bytes()).await;
        assert!(ended, "{body:?}: the connection was left open");
        assert_eq!(statuses, [400], "{body:?}");
        assert_eq!(*seen.lock().unwrap(), [], "{body:?}");
        assert_eq!(refusals(&proxy), and_one(before, reason), "{body:?}");
    }
}
