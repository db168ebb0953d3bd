//! When connections are accepted: where clients speak first, with what they say; else at once.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::float_cmp,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]

mod support;

use std::{net::SocketAddr, time::Duration};

use gateway_userspace::snapshot::{
    Snapshot,
    listener::{Forwarding, Protocol},
};
use support::{eventually, free_addr, origin::Origin, proxy::Proxy, wanted::simple};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const SOON: Duration = Duration::from_secs(5);
/// Less than the kernel keeps a connection whose client says nothing.
const A_WHILE: Duration = Duration::from_millis(300);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// How many connections there were.
fn accepted(proxy: &Proxy, addr: SocketAddr) -> f64 {
    proxy.metric(&format!("sluice_connections_accepted_total{{address=\"{addr}\",protocol=\"tcp\"}} "))
}

async fn answer(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_speak_first_are_accepted_when_they_do() {
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let proxy = Proxy::start(&simple(addr, &[origin.addr]));
    let mut late = TcpStream::connect(addr).await.unwrap();
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(accepted(&proxy, addr), 0.0, "it said nothing yet");
    late.write_all(REQUEST).await.unwrap();
    assert!(answer(late).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(accepted(&proxy, addr), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_says_nothing_is_accepted_all_the_same() {
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let proxy = Proxy::start(&simple(addr, &[origin.addr]));
    let mut silent = TcpStream::connect(addr).await.unwrap();
    // From here on it is bounded like every other.
    eventually("it is accepted", SOON, || accepted(&proxy, addr) == 1.0).await;
    silent.write_all(REQUEST).await.unwrap();
    assert!(answer(silent).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_whose_endpoints_may_speak_first_waits_for_nobody() {
    let origin = Origin::raw(|mut stream| async move {
        drop(stream.write_all(b"hello").await);
    })
    .await;
    let addr = free_addr();
    let requests = simple(addr, &[origin.addr]);
    let mut bytes: Snapshot = requests.clone();
    bytes.listeners[0].protocol = Protocol::Tcp;
    bytes.listeners[0].forwarding = Forwarding::Agent;
    // Both ways over one socket: a change of the listener's protocol keeps it.
    let proxy = Proxy::start(&requests);
    // Whoever leaves without a word is accepted, too: the one of the first turn before the second.
    for n in [1.0, 3.0] {
        proxy.apply(&bytes).unwrap();
        let greeted = answer(TcpStream::connect(addr).await.unwrap());
        assert_eq!(tokio::time::timeout(A_WHILE, greeted).await.unwrap(), "hello");
        proxy.apply(&requests).unwrap();
        let _silent = TcpStream::connect(addr).await.unwrap();
        tokio::time::sleep(A_WHILE).await;
        assert_eq!(accepted(&proxy, addr), n, "its client is waited for");
    }
}
