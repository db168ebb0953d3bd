//! The access log and trace context, over loopback: a line for each request, and a trace that passes through.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by failing; the harness shares its modules"
)]

mod support;

use std::{collections::BTreeSet, path::Path, time::Duration};

use gateway_userspace::{
    config::{AccessField, AccessOutput, AccessSettings},
    snapshot::{listener::Protocol, service::UpstreamProtocol},
};
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use serde_json::Value;
use support::{
    client::{self, Client},
    eventually, free_addr,
    origin::Origin,
    proxy::Proxy,
    wanted::{self, listener, prefix, rule, service, simple},
};

fn settings(path: &Path, fields: &[AccessField]) -> AccessSettings {
    AccessSettings {
        output: AccessOutput::File(path.to_owned()),
        fields: fields.to_vec(),
        sample_percent: 100,
    }
}

/// The lines, once there are so many.
async fn lines(path: &Path, n: usize) -> Vec<Value> {
    let read = || std::fs::read_to_string(path).unwrap_or_default();
    eventually("the lines are written", Duration::from_secs(5), || read().lines().count() >= n).await;
    let text = read();
    assert_eq!(text.lines().count(), n, "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_has_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let origin = Origin::named("a").await;
    let (plain, secure) = (free_addr(), free_addr());
    let mut snapshot = simple(plain, &[origin.addr]);
    let mut https = listener("secure", secure, Protocol::Https);
    https.certificates = vec![wanted::certificate("a.test")];
    snapshot.listeners.push(https);
    snapshot.routes[0].listeners.push(snapshot.listeners[1].name.clone());
    snapshot.routes[0].rules =
        vec![rule(prefix("/app"), &[("api", 1)]), rule(prefix("/down"), &[("none", 1)])];
    snapshot.services.push(service("none", &[free_addr()]));
    let _proxy = Proxy::logged(&snapshot, &settings(&path, AccessField::ALL));
    let request = Request::post("/app/%61?q='1'")
        .header("host", "A.test:80")
        .header("user-agent", HeaderValue::from_bytes("te\"st\u{e4}".as_bytes()).unwrap())
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .body(Full::from("hello"))
        .unwrap();
    let answer = Client::http1(plain).await.send(request).await.unwrap();
    assert_eq!(answer.header("seen-traceparent"), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let mut one = lines(&path, 1).await.remove(0);
    let (head, whole) = (one["headTime"].as_u64().unwrap(), one["duration"].as_u64().unwrap());
    assert!(head > 0 && head <= whole && whole < 5_000_000, "{one}");
    let time = one["time"].as_str().unwrap();
    assert!(time.len() == 24 && time.starts_with("20") && time.ends_with('Z'), "{time}");
    for key in ["headTime", "duration", "time"] {
        one.as_object_mut().unwrap().remove(key);
    }
    let expected = serde_json::json!({
        "listener": "web", "route": "all", "client": "127.0.0.1", "method": "POST", "host": "A.test:80",
        "target": "/app/%61?q='1'", "protocol": "HTTP/1.1", "userAgent": "te\"st\u{c3}\u{a4}",
        "trace": "4bf92f3577b34da6a3ce929d0e0e4736", "status": 200, "service": "api",
        "endpoint": origin.addr.to_string(), "retries": 0, "bytesSent": 5, "complete": true,
    });
    assert_eq!(one, expected);

    assert_eq!(client::get(plain, "a.test", "/nowhere").await.status, 404);
    assert_eq!(client::get(plain, "a.test", "/down").await.status, 503);
    let stream = client::tls(secure, "a.test", &["h2"]).await.unwrap();
    assert_eq!(Client::over_http2(stream).await.get("a.test", "/app").await.unwrap().status, 200);
    let lines = lines(&path, 4).await;
    let find = |target: &str| lines.iter().find(|line| line["target"] == target).unwrap();
    let (nowhere, down, secure) = (find("/nowhere"), find("/down"), find("/app"));
    assert_eq!((&nowhere["fault"], &nowhere["status"]), (&"no_route".into(), &404.into()));
    assert_eq!((nowhere.get("service"), nowhere.get("endpoint")), (None, None));
    assert_eq!(
        (&down["fault"], &down["service"], &down["route"]),
        (&"connect".into(), &"none".into(), &"all".into())
    );
    assert_eq!((&secure["protocol"], &secure["serverName"]), (&"HTTP/2.0".into(), &"a.test".into()));
    let traces: BTreeSet<&str> = lines.iter().map(|line| line["trace"].as_str().unwrap()).collect();
    assert_eq!(traces.len(), 4, "requests without a trace begin one");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_has_a_line_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let origin = Origin::named("a").await;
    let addr = free_addr();
    let _proxy = Proxy::logged(&simple(addr, &[origin.addr]), &settings(&path, AccessField::ALL));
    let answer = client::raw(addr, b"GET / HTTP/1.1\r\n\r\n").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    let mut client = Client::http2(addr).await;
    let expecting = Request::get("http://a.test/e").header("expect", "more").body(Full::default()).unwrap();
    assert_eq!(client.send(expecting).await.unwrap().status, 417);
    let two_hosts = Request::get("http://a.test/h").header("host", "b.test").body(Full::default()).unwrap();
    client.send(two_hosts).await.unwrap_err();
    let mut lines = lines(&path, 3).await;
    // Each worker writes its own.
    lines.sort_by_key(|line| line["target"].as_str().map(str::to_owned));
    for line in &mut lines {
        assert!(line["time"].is_string() && line["duration"].is_u64(), "{line}");
        for key in ["time", "duration"] {
            line.as_object_mut().unwrap().remove(key);
        }
    }
    let over_http2 = |target: &str, refusal: &str| {
        serde_json::json!({
            "client": "127.0.0.1", "method": "GET", "host": "a.test", "target": target,
            "protocol": "HTTP/2.0", "refusal": refusal, "bytesSent": 0, "complete": false,
        })
    };
    let mut answered = over_http2("/e", "expect");
    (answered["status"], answered["complete"]) = (417.into(), true.into());
    let unread = serde_json::json!({
        "client": "127.0.0.1", "refusal": "host", "status": 400, "bytesSent": body.len(), "complete": true,
    });
    assert_eq!(lines, [unread, answered, over_http2("/h", "host")]);
    assert_eq!(origin.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_breaks_off_is_told_from_one_that_ended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let origin = Origin::raw(|mut stream| async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut head = [0; 1_024];
        drop(stream.read(&mut head).await);
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789").await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    })
    .await;
    let addr = free_addr();
    let fields = [AccessField::Status, AccessField::BytesSent, AccessField::Complete];
    let _proxy = Proxy::logged(&simple(addr, &[origin.addr]), &settings(&path, &fields));
    assert!(Client::http1(addr).await.get("a.test", "/").await.is_err());
    let line = lines(&path, 1).await.remove(0);
    assert_eq!(line, serde_json::json!({ "status": 200, "bytesSent": 10, "complete": false }));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_listener_that_is_gone_are_told_to_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let (origin, addr) = (Origin::named("a").await, free_addr());
    let snapshot = simple(addr, &[origin.addr]);
    let fields = [AccessField::Target, AccessField::Status, AccessField::Fault];
    let proxy = Proxy::logged(&snapshot, &settings(&path, &fields));
    let mut old = Client::http1(addr).await;
    let mut new = Client::http2(addr).await;
    for client in [&mut old, &mut new] {
        assert_eq!(client.get("a.test", "/before").await.unwrap().status, 200);
    }
    let mut without = snapshot.clone();
    without.listeners.clear();
    without.routes.clear();
    // As between the publication and the end of its connections.
    proxy.publish(&without);
    let answer = old.get("a.test", "/old").await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.header("connection")), (421, "close"));
    let refused = new.get("a.test", "/new").await.unwrap_err();
    let reason = std::error::Error::source(&refused).and_then(|cause| cause.downcast_ref::<h2::Error>());
    assert_eq!(reason.and_then(h2::Error::reason), Some(h2::Reason::REFUSED_STREAM), "{refused:?}");
    let lines = lines(&path, 4).await;
    for target in ["/old", "/new"] {
        let line = lines.iter().find(|line| line["target"] == target).unwrap();
        assert_eq!((&line["status"], &line["fault"]), (&421.into(), &"stale".into()), "{line}");
    }
    let stale = "sluice_request_faults_total{listener=\"web\",route=\"\",kind=\"stale\"}";
    assert!((proxy.metric(stale) - 2.0).abs() < 0.5);
}

/// An endpoint of HTTP/2 that says that a body is over some time after its last byte, or never.
async fn late(is_ever: bool) -> Origin {
    Origin::raw(move |stream| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                let head = Response::builder().header("content-length", 5).body(()).unwrap();
                let mut stream = respond.send_response(head, false).unwrap();
                stream.send_data("hello".into(), false).unwrap();
                tokio::time::sleep(Duration::from_millis(if is_ever { 20 } else { 2_000 })).await;
                drop(stream.send_data(bytes::Bytes::new(), true));
            });
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_is_complete_when_its_client_has_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let (soon, never) = (late(true).await, late(false).await);
    let (addr, fields) = (free_addr(), [AccessField::Target, AccessField::BytesSent, AccessField::Complete]);
    let mut snapshot = simple(addr, &[soon.addr]);
    snapshot.services.push(service("never", &[never.addr]));
    for service in &mut snapshot.services {
        service.protocol = UpstreamProtocol::H2c;
    }
    snapshot.routes[0].rules =
        vec![rule(prefix("/soon"), &[("api", 1)]), rule(prefix("/never"), &[("never", 1)])];
    let _proxy = Proxy::logged(&snapshot, &settings(&path, &fields));
    let mut client = Client::http1(addr).await;
    for target in ["/soon", "/never", "/soon"] {
        assert_eq!(client.get("a.test", target).await.unwrap().status, 200, "{target}");
    }
    let head = Request::head("/nowhere").header("host", "a.test").body(Full::default()).unwrap();
    assert_eq!(client.send(head).await.unwrap().status, 404);
    let head = Request::head("http://a.test/nowhere").body(Full::default()).unwrap();
    assert_eq!(Client::http2(addr).await.send(head).await.unwrap().status, 404);
    let expected = [("/soon", 5), ("/never", 5), ("/soon", 5), ("/nowhere", 0), ("/nowhere", 0)]
        .map(|(target, bytes)| serde_json::json!({ "target": target, "bytesSent": bytes, "complete": true }));
    // Each worker hands its lines over by itself.
    let in_order = |lines: &[Value]| {
        let mut lines: Vec<String> = lines.iter().map(Value::to_string).collect();
        lines.sort();
        lines
    };
    assert_eq!(in_order(&lines(&path, 5).await), in_order(&expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_before_the_answer_has_a_line_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let origin = Origin::serve("127.0.0.1:0".parse().unwrap(), |_| async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        Response::new(Full::default())
    })
    .await;
    let addr = free_addr();
    let fields = [AccessField::Target, AccessField::Complete, AccessField::Status];
    let _proxy = Proxy::logged(&simple(addr, &[origin.addr]), &settings(&path, &fields));
    let asked = tokio::time::timeout(Duration::from_millis(200), client::get(addr, "a.test", "/slow"));
    assert!(asked.await.is_err());
    let line = lines(&path, 1).await.remove(0);
    assert_eq!(line, serde_json::json!({ "target": "/slow", "complete": false }));
}
