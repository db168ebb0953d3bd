//! Connections that the agent forwards byte by byte, over loopback: TLS by the name that clients ask for, TCP, and what a
//! load balancer in front and the endpoints behind say and learn of the client.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::float_cmp,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing, and its tasks end with it"
)]

mod support;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use gateway_userspace::{
    name::ListenerName,
    net::proxy_protocol::{self, Ends},
    network::Network,
    snapshot::{
        Snapshot,
        listener::{Forwarding, Protocol},
    },
};
use support::{
    client::{self, Client},
    eventually, free_addr,
    origin::Origin,
    proxy::Proxy,
    wanted::{self, hostname, prefix, route, rule, service, simple},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;

/// An endpoint that ends TLS with a certificate for `name`, and says its name.
async fn secure_origin(name: &'static str) -> Origin {
    let pair = wanted::certificate(name);
    let chain =
        rustls::pki_types::pem::PemObject::pem_slice_iter(&pair.chain_pem).collect::<Result<_, _>>().unwrap();
    let key = rustls::pki_types::pem::PemObject::from_pem_slice(pair.key_pem.expose()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Origin::raw(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            drop(stream.write_all(name.as_bytes()).await);
            drop(stream.shutdown().await);
        }
    })
    .await
}

/// A TLS listener with a route to each origin by its names; none is every name.
fn passthrough(addr: SocketAddr, routes: &[(&str, SocketAddr)]) -> Snapshot {
    let mut snapshot = simple(addr, &[]);
    snapshot.listeners[0].protocol = Protocol::Tls;
    snapshot.routes.clear();
    snapshot.services.clear();
    for (n, (name, origin)) in routes.iter().enumerate() {
        let (service_name, route_name) = (format!("s{n}"), format!("r{n}"));
        snapshot.services.push(service(&service_name, &[*origin]));
        let mut to = route(&route_name, "web", vec![rule(prefix("/"), &[(service_name.as_str(), 1)])]);
        to.hostnames = if name.is_empty() { Vec::new() } else { vec![hostname(name)] };
        snapshot.routes.push(to);
    }
    snapshot
}

async fn name_behind(addr: SocketAddr, server_name: &str) -> std::io::Result<String> {
    let mut stream = client::tls(addr, server_name, &[]).await?;
    let mut said = String::new();
    stream.read_to_string(&mut said).await?;
    Ok(said)
}

/// Connections that ended so.
fn outcomes(proxy: &Proxy, addr: SocketAddr, outcome: &str) -> f64 {
    proxy.metric(&format!("sluice_forwarded_connections_total{{address=\"{addr}\",outcome=\"{outcome}\"}}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_goes_by_name_to_the_endpoint_that_ends_it() {
    let (a, wild, any) =
        (secure_origin("a.test").await, secure_origin("w.wild.test").await, secure_origin("any.test").await);
    let addr = free_addr();
    let mut snapshot = passthrough(addr, &[("a.test", a.addr), ("*.wild.test", wild.addr), ("", any.addr)]);
    let proxy = Proxy::start(&snapshot);
    for (asked, expected) in [
        ("a.test", "a.test"),
        ("A.Test", "a.test"),
        ("x.wild.test", "w.wild.test"),
        ("y.x.wild.test", "w.wild.test"),
        ("wild.test", "any.test"),
        ("other.test", "any.test"),
        // An address is no server name.
        ("127.0.0.1", "any.test"),
    ] {
        assert_eq!(name_behind(addr, asked).await.unwrap(), expected, "{asked}");
    }
    eventually("all are counted", Duration::from_secs(5), || outcomes(&proxy, addr, "ended") == 7.0).await;
    snapshot.routes.pop();
    proxy.apply(&snapshot).unwrap();
    let refused = name_behind(addr, "other.test").await.unwrap_err();
    assert!(refused.to_string().contains("UnrecognisedName"), "{refused}");
    assert_eq!(name_behind(addr, "a.test").await.unwrap(), "a.test");
    assert_eq!(outcomes(&proxy, addr, "no_route"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_most_specific_listener_comes_before_its_routes_however_they_are_written() {
    let (of_name, of_any) = (secure_origin("name.test").await, secure_origin("any.test").await);
    for is_turned in [false, true] {
        let addr = free_addr();
        // The listener of every name has the more specific routes.
        let mut snapshot =
            passthrough(addr, &[("x.a.test", of_any.addr), ("b.test", of_any.addr), ("", of_name.addr)]);
        let mut narrow = snapshot.listeners[0].clone();
        (narrow.name, narrow.hostname) = (ListenerName::new("narrow"), Some(hostname("*.a.test")));
        snapshot.listeners.push(narrow);
        snapshot.routes[2].listeners = vec![ListenerName::new("narrow")];
        if is_turned {
            snapshot.listeners.reverse();
        }
        let _proxy = Proxy::start(&snapshot);
        assert_eq!(name_behind(addr, "x.a.test").await.unwrap(), "name.test");
        assert_eq!(name_behind(addr, "b.test").await.unwrap(), "any.test");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_in_small_pieces_is_forwarded_whole_and_other_things_are_not() {
    let origin = secure_origin("a.test").await;
    let addr = free_addr();
    let proxy = Proxy::start(&passthrough(addr, &[("a.test", origin.addr)]));
    // A relay that hands on what the client says byte by byte.
    let relay = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay_addr = relay.local_addr().unwrap();
    let relayed = tokio::spawn(async move {
        let (client, _) = relay.accept().await.unwrap();
        let server = TcpStream::connect(addr).await.unwrap();
        server.set_nodelay(true).unwrap();
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
            (client.into_split(), server.into_split());
        let back = tokio::spawn(async move { drop(tokio::io::copy(&mut from_server, &mut to_client).await) });
        while let Ok(byte) = from_client.read_u8().await {
            to_server.write_u8(byte).await.unwrap();
        }
        back.await.unwrap();
    });
    assert_eq!(name_behind(relay_addr, "a.test").await.unwrap(), "a.test");
    relayed.abort();
    let connections = origin.connections();
    assert_eq!(client::raw(addr, b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n").await, "");
    eventually("it is counted", Duration::from_secs(5), || outcomes(&proxy, addr, "no_hello") == 1.0).await;
    assert_eq!(origin.connections(), connections, "nothing of it reached the endpoint");
}

/// The simple snapshot with bytes forwarded by the agent.
fn by_agent(addr: SocketAddr, endpoints: &[SocketAddr]) -> Snapshot {
    let mut snapshot = simple(addr, endpoints);
    snapshot.listeners[0].protocol = Protocol::Tcp;
    snapshot.listeners[0].forwarding = Forwarding::Agent;
    snapshot
}

/// Answers with everything it got, after the client's end.
async fn echo_at_end() -> Origin {
    Origin::raw(|mut stream| async move {
        let mut got = Vec::new();
        drop(stream.read_to_end(&mut got).await);
        drop(stream.write_all(&got).await);
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_direction_ends_by_itself_and_a_silent_connection_does() {
    let (origin, addr) = (echo_at_end().await, free_addr());
    let mut snapshot = by_agent(addr, &[origin.addr]);
    snapshot.listeners[0].idle_timeout = Duration::from_secs(1);
    let proxy = Proxy::start(&snapshot);
    let sent: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(&sent).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    assert!(got == sent, "{} of {} bytes came back", got.len(), sent.len());
    let bytes = |from: &str| {
        proxy.metric(&format!("sluice_forwarded_bytes_total{{address=\"{addr}\",from=\"{from}\"}}"))
    };
    eventually("bytes are counted", Duration::from_secs(5), || {
        [bytes("client"), bytes("endpoint")] == [12_000_000.0; 2]
    })
    .await;
    let mut silent = TcpStream::connect(addr).await.unwrap();
    let mut active = TcpStream::connect(addr).await.unwrap();
    let kept = tokio::spawn(async move {
        for _ in 0..30 {
            active.write_all(b"x").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        active.shutdown().await.unwrap();
        let mut got = Vec::new();
        active.read_to_end(&mut got).await.unwrap();
        got.len()
    });
    let ended = tokio::time::timeout(Duration::from_secs(5), silent.read_u8()).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    // The client may see its end before it is counted.
    let counted = || outcomes(&proxy, addr, "idle") == 1.0;
    eventually("the end is counted", Duration::from_secs(5), counted).await;
    assert_eq!(kept.await.unwrap(), 30, "a connection on which something moves goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_side_that_reads_slowly_is_not_idle_however_much_is_on_the_way() {
    // Sockets hold megabytes, and take more when a third of that is free: nothing is written in all that time.
    const IDLE: Duration = Duration::from_secs(1);
    let large = || vec![7; 32 << 20];
    let talker = Origin::raw(move |mut stream| async move {
        drop(stream.write_all(&large()).await);
    });
    let (held, mut holders) = tokio::sync::mpsc::channel(1);
    let listener = Origin::raw(move |stream| {
        let held = held.clone();
        async move { drop(held.send(stream).await) }
    });
    let [talker, listener] = [talker.await, listener.await];
    let addrs = [free_addr(), free_addr()];
    let [proxy, other] = [(addrs[0], talker.addr), (addrs[1], listener.addr)].map(|(addr, endpoint)| {
        let mut snapshot = by_agent(addr, &[endpoint]);
        snapshot.listeners[0].idle_timeout = IDLE;
        Proxy::start(&snapshot)
    });
    let download = async { client::slowly(client::narrow(addrs[0]).await, IDLE * 3).await };
    let mut client = TcpStream::connect(addrs[1]).await.unwrap();
    let sending = tokio::spawn(async move { client.write_all(&large()).await });
    let upload = async { client::slowly(holders.recv().await.unwrap(), IDLE * 3).await };
    let streams = tokio::join!(download, upload);
    let counts = || [outcomes(&proxy, addrs[0], "idle"), outcomes(&other, addrs[1], "idle")];
    assert_eq!(counts(), [0.0; 2]);
    // Now nothing is read.
    eventually("both ends are counted", Duration::from_secs(5), || counts() == [1.0; 2]).await;
    drop((streams, sending.await));
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_refuse_are_passed_over_and_without_any_the_client_is_reset() {
    let (origin, gone, addr) = (echo_at_end().await, free_addr(), free_addr());
    let mut snapshot = by_agent(addr, &[gone, origin.addr]);
    let proxy = Proxy::start(&snapshot);
    for _ in 0..20 {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "ping");
    }
    snapshot.services = vec![service("api", &[gone])];
    proxy.apply(&snapshot).unwrap();
    // The reset may come before connecting has returned.
    if let Ok(mut stream) = TcpStream::connect(addr).await {
        assert!(stream.read_u8().await.is_err());
    }
    eventually("it is counted", Duration::from_secs(5), || outcomes(&proxy, addr, "no_endpoint") == 1.0)
        .await;
}

/// Only machines of this node.
fn loopback() -> Vec<Network> {
    vec![Network { addr: "127.0.0.0".parse().unwrap(), prefix_bits: 8 }]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_load_balancer_says_who_the_client_is() {
    let origin = Origin::named("a").await;
    let (plain, secure, wary) = (free_addr(), free_addr(), free_addr());
    let mut snapshot = simple(plain, &[origin.addr]);
    let mut tls = wanted::listener("secure", secure, Protocol::Https);
    tls.certificates = vec![wanted::certificate("a.test")];
    snapshot.listeners.push(tls);
    for listener in &mut snapshot.listeners {
        listener.proxies = loopback();
    }
    let mut other = wanted::listener("wary", wary, Protocol::Http);
    other.proxies = vec![Network { addr: "192.0.2.0".parse().unwrap(), prefix_bits: 24 }];
    snapshot.listeners.push(other);
    snapshot.routes.push(route("secure", "secure", vec![rule(prefix("/"), &[("api", 1)])]));
    snapshot.routes.push(route("wary", "wary", vec![rule(prefix("/"), &[("api", 1)])]));
    let proxy = Proxy::start(&snapshot);
    let ends = Ends { source: "192.0.2.7:1234".parse().unwrap(), destination: plain };
    let line = b"PROXY TCP4 192.0.2.7 127.0.0.1 1234 80\r\n".to_vec();
    for header in [proxy_protocol::write_v2(&ends), line.clone()] {
        let mut stream = TcpStream::connect(plain).await.unwrap();
        stream.write_all(&header).await.unwrap();
        let answer = Client::over_http1(stream).await.get("a.test", "/").await.unwrap();
        assert_eq!(answer.header("seen-x-forwarded-for"), "192.0.2.7");
        let mut stream = TcpStream::connect(secure).await.unwrap();
        stream.write_all(&header).await.unwrap();
        let config = Arc::new(client::builder(rustls::ALL_VERSIONS).with_no_client_auth());
        let name = rustls::pki_types::ServerName::try_from("a.test").unwrap();
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap();
        let answer = Client::over_http1(stream).await.get("a.test", "/").await.unwrap();
        assert_eq!(answer.header("seen-x-forwarded-for"), "192.0.2.7");
    }
    let request = b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n";
    assert_eq!(client::raw(plain, request).await, "", "a trusted source has to say");
    let failures = format!("sluice_proxy_protocol_failures_total{{address=\"{plain}\"}}");
    eventually("it is counted", Duration::from_secs(5), || proxy.metric(&failures) == 1.0).await;
    let requests = origin.requests();
    let answer = client::raw(wary, &[&line[..], request].concat()).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "nobody believes this source: {answer}");
    assert_eq!(origin.requests(), requests);
    assert!(client::raw(wary, request).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_want_it_learn_who_the_client_is() {
    let told = Origin::raw(|mut stream| async move {
        let ends = proxy_protocol::read(&mut stream, Duration::from_secs(5)).await.unwrap().unwrap();
        let mut first = [0; 4];
        stream.read_exact(&mut first).await.unwrap();
        let said = format!("{} {} {:?}", ends.source, ends.destination, first);
        drop(stream.write_all(said.as_bytes()).await);
        // What is left unread would turn the end into a reset.
        drop(stream.shutdown().await);
        drop(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await);
    })
    .await;
    let (tcp, tls) = (free_addr(), free_addr());
    let mut snapshot = by_agent(tcp, &[told.addr]);
    snapshot.listeners[0].proxies = loopback();
    snapshot.services[0].is_announced = true;
    snapshot.listeners.push(wanted::listener("tls", tls, Protocol::Tls));
    snapshot.routes.push(route("tls", "tls", vec![rule(prefix("/"), &[("api", 1)])]));
    let _proxy = Proxy::start(&snapshot);
    let mut stream = TcpStream::connect(tcp).await.unwrap();
    stream.write_all(b"PROXY TCP4 192.0.2.7 127.0.0.1 1234 80\r\nping").await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "192.0.2.7:1234 127.0.0.1:80 [112, 105, 110, 103]", "word by word through both");
    let stream = TcpStream::connect(tls).await.unwrap();
    let own = stream.local_addr().unwrap();
    let config = Arc::new(client::builder(rustls::ALL_VERSIONS).with_no_client_auth());
    let name = rustls::pki_types::ServerName::try_from("a.test").unwrap();
    let mut seen = Vec::new();
    let (mut raw, mut connection) = (stream, rustls::ClientConnection::new(config, name).unwrap());
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    raw.write_all(&hello).await.unwrap();
    raw.read_to_end(&mut seen).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&seen), format!("{own} {tls} {:?}", &hello[..4]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_of_an_address_ends_with_its_last_connection() {
    let origin = echo_at_end().await;
    let (before, after) = (free_addr(), free_addr());
    let proxy = Proxy::start(&by_agent(before, &[origin.addr]));
    let mut stream = TcpStream::connect(before).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let is_named = || proxy.metrics.encode().unwrap().contains(&before.to_string());
    eventually("it is served", Duration::from_secs(5), || origin.connections() == 1 && is_named()).await;
    proxy.apply(&by_agent(after, &[origin.addr])).unwrap();
    proxy.keep_house();
    let open = format!("sluice_connections_open{{address=\"{before}\",protocol=\"tcp\"}} 1");
    assert!(proxy.metrics.encode().unwrap().contains(&open), "it is still counted");
    stream.shutdown().await.unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"hello", "a forwarded connection goes on");
    // The connection counts its end after the client has heard of it.
    eventually("its end is counted", Duration::from_secs(5), || {
        proxy.metrics.encode().unwrap().contains(&format!("address=\"{before}\",outcome=\"ended\""))
    })
    .await;
    eventually("nothing names it", Duration::from_secs(5), || {
        proxy.keep_house();
        !is_named()
    })
    .await;
    // One that comes back is counted again.
    proxy.apply(&by_agent(before, &[origin.addr])).unwrap();
    drop(TcpStream::connect(before).await.unwrap());
    eventually("it is counted", Duration::from_secs(5), is_named).await;
    proxy.keep_house();
    assert!(is_named());
}
