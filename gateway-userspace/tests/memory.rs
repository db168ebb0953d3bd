//! Too little memory, in a process of its own: what is refused at which step, and that everything is served again.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]

mod support;

use std::{fs, net::SocketAddr, time::Duration};

use gateway_userspace::{config::OverloadSettings, snapshot::listener::Protocol};
use support::{
    client::{self, Client},
    eventually, free_addr,
    origin::Origin,
    proxy::{CALM, Proxy},
    wanted::{certificate, simple},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};

const SOON: Duration = Duration::from_secs(10);

/// Memory that the test takes: so much that what the suite itself takes and gives back is less than a hundredth of it.
const WEIGHT: u64 = 256 << 20;

fn weight(n_bytes: u64) -> Vec<u8> {
    vec![1; usize::try_from(n_bytes).unwrap()]
}

fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1_024
}

/// The head of the answer to one request on a new connection; none when it is reset.
async fn asked(addr: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(addr).await.ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.ok()?;
    let mut answer = vec![0; 1_024];
    let n = stream.read(&mut answer).await.ok().filter(|n| *n > 0)?;
    Some(String::from_utf8_lossy(&answer[..n]).into_owned())
}

async fn until(what: &str, addr: SocketAddr, begins: Option<&str>) {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let answer = asked(addr).await;
        if answer.as_deref().map(|answer| &answer[9..12]) == begins {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: {answer:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn refused(proxy: &Proxy, limit: &str) -> f64 {
    proxy.metric(&format!("sluice_limit_reached_total{{limit=\"{limit}\"}} "))
}

#[tokio::test(flavor = "multi_thread")]
async fn with_little_memory_first_those_are_refused_who_can_be_told_and_then_all() {
    let origin = Origin::named("a").await;
    let (plain, tls) = (free_addr(), free_addr());
    let bound = resident() + WEIGHT;
    let overload = OverloadSettings { memory_bytes: Some(bound), ..CALM };
    let proxy = Proxy::bounded(&simple(plain, &[origin.addr]), overload);
    let mut snapshot = simple(tls, &[origin.addr]);
    snapshot.listeners[0].protocol = Protocol::Https;
    snapshot.listeners[0].certificates = vec![certificate("a.test")];
    let secured = Proxy::bounded(&snapshot, overload);

    // Datagrams come back from wherever they are sent to.
    let echo = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let endpoint = echo.local_addr().unwrap();
    tokio::spawn(async move {
        let mut datagram = [0; 64];
        while let Ok((n, from)) = echo.recv_from(&mut datagram).await {
            echo.send_to(&datagram[..n], from).await.unwrap();
        }
    });
    let datagrams = free_addr();
    let mut snapshot = simple(datagrams, &[endpoint]);
    snapshot.listeners[0].protocol = Protocol::Udp;
    let forwarder = Proxy::bounded(&snapshot, overload);
    let ask = async |socket: &UdpSocket| {
        socket.send_to(b"who", datagrams).await.unwrap();
        tokio::time::timeout(Duration::from_millis(500), socket.recv(&mut [0; 64])).await.is_ok()
    };
    let open = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    assert!(ask(&open).await);

    let connect = || async { client::tls(tls, "a.test", &["http/1.1"]).await };
    let mut kept = Client::over_http1(connect().await.unwrap()).await;
    assert_eq!(kept.get("a.test", "/").await.unwrap().status, 200);
    until("all is well", plain, Some("200")).await;
    assert!(refused(&proxy, "memory") + refused(&proxy, "memory_connections") < 0.5);

    // Two hundredths above the bound, where the next step begins at five.
    let first = weight(bound / 100 * 102 - resident());
    until("the bound is passed", plain, Some("503")).await;
    let answer = asked(plain).await.unwrap();
    assert!(
        answer.contains("\r\nretry-after: 1\r\n") && answer.contains("\r\nconnection: close\r\n"),
        "{answer}"
    );
    assert!(refused(&proxy, "memory") > 0.5 && refused(&proxy, "memory_connections") < 0.5);
    eventually("the other one has seen it", SOON, || {
        secured.metric("sluice_memory_resident_bytes ") > secured.metric("sluice_memory_bound_bytes ")
    })
    .await;
    assert!(connect().await.is_err(), "nobody shakes hands any more");
    assert!(refused(&secured, "memory_connections") > 0.5);
    let answer = kept.get("a.test", "/").await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "1"));

    eventually("and so has the third", SOON, || {
        forwarder.metric("sluice_memory_resident_bytes ") > forwarder.metric("sluice_memory_bound_bytes ")
    })
    .await;
    assert!(!ask(&UdpSocket::bind("127.0.0.1:0").await.unwrap()).await, "no flow begins any more");
    assert!(refused(&forwarder, "memory_connections") > 0.5);
    assert!(ask(&open).await, "one that is open goes on");

    let second = weight(WEIGHT / 8);
    until("so is a twentieth more", plain, None).await;
    assert!(refused(&proxy, "memory_connections") > 0.5);

    drop((first, second));
    until("all is well again", plain, Some("200")).await;
    eventually("there is room", SOON, || {
        secured.metric("sluice_memory_resident_bytes ") < secured.metric("sluice_memory_bound_bytes ")
    })
    .await;
    let mut client = Client::over_http1(connect().await.unwrap()).await;
    assert_eq!(client.get("a.test", "/").await.unwrap().status, 200);
}
