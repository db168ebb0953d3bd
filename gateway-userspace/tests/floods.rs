//! Clients of HTTP/2 that try to make work out of nothing, or to hold what others need: each is answered, counted under its
//! reason, and leaves the agent as it was.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]

mod support;

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use gateway_userspace::limits;
use http::Response;
use http_body_util::Full;
use support::{
    client, eventually,
    frames::{
        CALM, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, POST, PREFACE, PRIORITY,
        PROTOCOL, Peer, RST_STREAM, SETTINGS, block, field, frame, get, ping, post, reset, settings, window,
    },
    free_addr,
    origin::Origin,
    proxy::Proxy,
    wanted::simple,
};

const SOON: Duration = Duration::from_secs(5);

struct Bench {
    addr: SocketAddr,
    proxy: Proxy,
    origin: Origin,
}

async fn bench() -> Bench {
    with(Origin::named("a").await)
}

fn with(origin: Origin) -> Bench {
    let addr = free_addr();
    let proxy = Proxy::with_workers(&simple(addr, &[origin.addr]), 1);
    Bench { addr, proxy, origin }
}

/// Answers after a while.
async fn slow() -> Bench {
    let handler = |_| async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        Response::new(Full::new(Bytes::from_static(b"late")))
    };
    with(Origin::serve("127.0.0.1:0".parse().unwrap(), handler).await)
}

impl Bench {
    fn misuses(&self, reason: &str) -> u32 {
        let count = self.proxy.metric(&format!("sluice_http2_misuse_total{{reason=\"{reason}\"}} "));
        (0..1_000).find(|n| f64::from(*n) >= count).unwrap()
    }

    /// Sends again and again what `bytes` makes, until the connection ends: it must, with this code and reason, and other
    /// clients must not notice.
    async fn ends(&self, bytes: impl Fn(u32) -> Vec<u8>, code: u32, reason: &str) {
        let mut peer = Peer::connect(self.addr).await;
        for n in 0..5_000 {
            peer.send(&bytes(2 * n + 1)).await;
        }
        let frames = peer.all(SOON).await;
        let last = frames.last().map(|frame| (frame.kind, frame.code()));
        assert_eq!(last, Some((GOAWAY, Some(code))), "{reason}");
        assert!(peer.is_closed().await, "{reason}");
        eventually(reason, SOON, || self.misuses(reason) == 1).await;
        assert_eq!(client::get(self.addr, "a", "/").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_carry_nothing() {
    let bench = bench().await;
    for flood in [
        ping(),
        settings(&[]),
        settings(&[(4, 65_535)]),
        frame(PRIORITY, 0, 1, [0, 0, 0, 3, 1]),
        window(0, 1),
        // An unknown type.
        frame(99, 0, 0, [0; 4]),
        frame(PING, 1, 0, [0; 8]),
    ] {
        let before = bench.misuses("control");
        let mut peer = Peer::connect(bench.addr).await;
        peer.send(&flood.repeat(20_000)).await;
        let frames = peer.all(SOON).await;
        let last = frames.last().map(|frame| (frame.kind, frame.code()));
        assert_eq!(last, Some((GOAWAY, Some(CALM))), "type {}", flood[3]);
        assert!(peer.is_closed().await);
        eventually("it counts", SOON, || bench.misuses("control") == before + 1).await;
    }
    assert_eq!(client::get(bench.addr, "a", "/").await.status, 200);
    assert_eq!(bench.origin.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_data() {
    let bench = bench().await;
    let mut peer = Peer::connect(bench.addr).await;
    peer.send(&post(1)).await;
    peer.send(&frame(DATA, 0, 1, []).repeat(20_000)).await;
    let frames = peer.all(SOON).await;
    assert_eq!(frames.last().unwrap().code(), Some(CALM), "{frames:?}");
    eventually("it counts", SOON, || bench.misuses("control") + bench.misuses("excess") == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_taken_back_at_once() {
    // CVE-2023-44487.
    let bench = bench().await;
    bench.ends(|stream| [get(stream), reset(stream)].concat(), CALM, "excess").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_taken_back_when_they_are_under_way() {
    let bench = slow().await;
    let mut peer = Peer::connect(bench.addr).await;
    let mut n = 0;
    let mut last = None;
    'rounds: for _ in 0..100 {
        let streams: Vec<u32> = (0..50).map(|k| 2 * (n + k) + 1).collect();
        n += 50;
        peer.send(&streams.iter().flat_map(|stream| get(*stream)).collect::<Vec<_>>()).await;
        // All of them have to be under way; after the farewell none is.
        let all_there = || bench.origin.requests() >= usize::try_from(n).unwrap();
        let waiting = eventually("requests are at the endpoint", SOON, all_there);
        let was_ended = bench.misuses("resets") > 0;
        if !was_ended {
            tokio::select! {
                _ = waiting => {}
                () = tokio::time::sleep(Duration::from_secs(2)) => {}
            }
        }
        while let Some(frame) = peer.read(Duration::from_millis(20)).await {
            if frame.kind == GOAWAY {
                last = frame.code();
                break 'rounds;
            }
        }
        peer.send(&streams.iter().flat_map(|stream| reset(*stream)).collect::<Vec<_>>()).await;
    }
    assert_eq!(last, Some(CALM));
    assert!((limits::TAKEN_BACK..limits::TAKEN_BACK + 200).contains(&n), "{n}");
    eventually("it counts", SOON, || bench.misuses("resets") == 1).await;
    assert!(bench.origin.requests() <= n.try_into().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn some_requests_may_be_taken_back() {
    let bench = slow().await;
    let mut peer = Peer::connect(bench.addr).await;
    for round in 0..20 {
        let streams = |range: std::ops::Range<u32>| range.map(move |k| 2 * (round * 40 + k) + 1);
        peer.send(&streams(0..40).flat_map(get).collect::<Vec<_>>()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        peer.send(&streams(0..15).flat_map(reset).collect::<Vec<_>>()).await;
        let mut n_ended = 0;
        while n_ended < 25 {
            let frame = peer.read(SOON).await.unwrap();
            assert_ne!(frame.kind, GOAWAY, "{:?}", frame.code());
            n_ended += usize::from(frame.flags & END_STREAM != 0 && matches!(frame.kind, DATA | HEADERS));
        }
    }
    assert_eq!(bench.misuses("resets"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_have_to_be_reset_here() {
    // CVE-2025-8671: mistakes that are answered with a reset, so that the client needs none of its own.
    type Mistake = fn(u32) -> Vec<u8>;
    let mistakes: [(Mistake, u32, &str); 4] = [
        (|stream| window(stream, 0), PROTOCOL, "protocol"),
        (|stream| window(stream, 0x7fff_ffff).repeat(2), CALM, "excess"),
        (|stream| frame(PRIORITY, 0, stream, [&stream.to_be_bytes()[..], &[0]].concat()), CALM, "excess"),
        (|stream| frame(DATA, END_STREAM, stream, b"more than was said"), CALM, "excess"),
    ];
    for (mistake, code, reason) in mistakes {
        let bench = slow().await;
        let begin = |stream| {
            frame(HEADERS, END_HEADERS, stream, block(&[&POST[..], &[("content-length", "1")]].concat()))
        };
        bench.ends(|stream| [begin(stream), mistake(stream)].concat(), code, reason).await;
        assert!(bench.origin.requests() <= limits::FAULTY_STREAMS + 100, "{}", bench.origin.requests());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_without_end() {
    // CVE-2024-27316 and its like.
    let bench = bench().await;
    for (fill, reasons) in [
        (frame(CONTINUATION, 0, 1, field(b"x", &[b'a'; 1_000])), ["excess", "protocol"]),
        (frame(CONTINUATION, 0, 1, []), ["control", "excess"]),
    ] {
        let before: u32 = reasons.iter().map(|reason| bench.misuses(reason)).sum();
        let mut peer = Peer::connect(bench.addr).await;
        peer.send(&frame(HEADERS, END_STREAM, 1, block(&POST))).await;
        peer.send(&fill.repeat(5_000)).await;
        let frames = peer.all(SOON).await;
        assert_eq!(frames.last().map(|frame| frame.kind), Some(GOAWAY), "{reasons:?}");
        assert!(peer.is_closed().await);
        eventually("it counts", SOON, || {
            reasons.iter().map(|reason| bench.misuses(reason)).sum::<u32>() == before + 1
        })
        .await;
    }
    assert_eq!(bench.origin.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_large_is_refused_and_the_connection_goes_on() {
    let bench = bench().await;
    let mut peer = Peer::connect(bench.addr).await;
    let large: Vec<u8> = (0..40).flat_map(|_| field(b"x", &[b'a'; 1_000])).collect();
    let head = [block(&POST), large].concat();
    let (first, rest) = head.split_at(16_000);
    peer.send(&frame(HEADERS, END_STREAM, 1, first)).await;
    for (n, piece) in rest.chunks(16_000).enumerate() {
        let flags = if (n + 1) * 16_000 >= rest.len() { END_HEADERS } else { 0 };
        peer.send(&frame(CONTINUATION, flags, 1, piece)).await;
    }
    peer.send(&get(3)).await;
    let frames = peer.all(Duration::from_millis(500)).await;
    let statuses: Vec<_> = frames.iter().filter_map(|frame| Some((frame.stream, frame.status()?))).collect();
    assert_eq!(statuses, [(1, 431), (3, 200)]);
    assert_eq!(bench.origin.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_streams_than_allowed() {
    let bench = slow().await;
    let mut peer = Peer::connect(bench.addr).await;
    let all: Vec<u8> = (0..limits::STREAMS + 20).flat_map(|n| get(2 * n + 1)).collect();
    peer.send(&all).await;
    let frames = peer.all(Duration::from_millis(800)).await;
    let refused = frames.iter().filter(|frame| frame.kind == RST_STREAM && frame.code() == Some(7)).count();
    let answered = frames.iter().filter(|frame| frame.status() == Some(200)).count();
    assert_eq!((refused, answered), (20, 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_opens_no_window_holds_little() {
    const BODY: usize = 1024 * 1024;
    let handler = |_| async { Response::new(Full::new(Bytes::from(vec![0; BODY]))) };
    let bench = with(Origin::serve("127.0.0.1:0".parse().unwrap(), handler).await);
    let mut peer = Peer::silent(bench.addr).await;
    peer.send(&[PREFACE, &settings(&[(4, 0)])].concat()).await;
    peer.send(&(0..limits::STREAMS).flat_map(|n| get(2 * n + 1)).collect::<Vec<_>>()).await;
    let frames = peer.all(Duration::from_millis(500)).await;
    assert_eq!(frames.iter().filter(|frame| frame.status() == Some(200)).count(), 100);
    assert!(frames.iter().all(|frame| frame.kind != DATA), "no window was opened");
    // One that is opened goes on, whatever the others do.
    peer.send(&[window(1, 0x10_0000), window(0, 0x10_0000)].concat()).await;
    let mut n_bytes = 0;
    while let Some(frame) = peer.read(Duration::from_millis(500)).await {
        assert!(frame.kind != DATA || frame.stream == 1);
        n_bytes += if frame.kind == DATA { frame.payload.len() } else { 0 };
    }
    assert_eq!(n_bytes, BODY);
    assert_eq!(client::get(bench.addr, "a", "/").await.body.len(), BODY);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_nobody_takes_stops_at_the_window() {
    let origin = Origin::raw(|stream| async move {
        // Takes nothing.
        tokio::time::sleep(Duration::from_secs(30)).await;
        drop(stream);
    });
    let bench = with(origin.await);
    let mut peer = Peer::connect(bench.addr).await;
    peer.send(&(0..20).flat_map(|n| post(2 * n + 1)).collect::<Vec<_>>()).await;
    let (mut connection, mut streams) = (65_535_i64, vec![65_535_i64; 20]);
    let mut n_sent = 0_i64;
    let piece = 16_000_i64;
    // As a client that keeps to the windows.
    loop {
        for (n, left) in streams.iter_mut().enumerate() {
            while *left >= piece && connection >= piece {
                let stream = 2 * u32::try_from(n).unwrap() + 1;
                peer.send(&frame(DATA, 0, stream, vec![0; 16_000])).await;
                (*left, connection, n_sent) = (*left - piece, connection - piece, n_sent + piece);
            }
        }
        match peer.read(Duration::from_millis(500)).await {
            Some(frame) if frame.kind == 8 => {
                let by = i64::from(u32::from_be_bytes(frame.payload[..].try_into().unwrap()));
                match frame.stream {
                    0 => connection += by,
                    stream => streams[usize::try_from(stream / 2).unwrap()] += by,
                }
            }
            Some(frame) if frame.kind == SETTINGS && frame.flags == 0 => {
                for value in frame.payload.chunks(6).filter(|value| value[..2] == [0, 4]) {
                    let window = i64::from(u32::from_be_bytes(value[2..].try_into().unwrap()));
                    for left in &mut streams {
                        *left += window - 65_535;
                    }
                }
            }
            Some(_) => {}
            None => break,
        }
    }
    // Windows, and what sockets and upstream connections hold of each stream.
    let bound = i64::from(limits::CONNECTION_WINDOW_BYTES) + 20 * 6 * 1024 * 1024;
    assert!(n_sent < bound, "{n_sent}");
    assert!(streams.iter().all(|left| *left < piece) || connection < piece);
}
