//! Endpoints that die and return.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use super::agent::free_addr;

/// Bytes of a short and of a long response.
pub(super) const RESPONSES: [usize; 2] = [1_024, 256 * 1_024];

/// What it speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Protocol {
    /// HTTP/1.1; it dies with everything but what it is writing.
    Http1,
    /// HTTP/2 by prior knowledge; it ends what it has begun, as a program does that is told to end.
    H2c,
}

impl Protocol {
    /// As the configuration has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::H2c => "h2c",
        }
    }
}

/// One endpoint.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) addr: SocketAddr,
    pub(super) protocol: Protocol,
    is_dead: Arc<AtomicBool>,
}

impl Endpoint {
    /// Serves as one of `tasks`.
    pub(super) fn start(protocol: Protocol, tasks: &mut JoinSet<()>) -> Result<Self> {
        let (addr, is_dead) = (free_addr()?, Arc::new(AtomicBool::new(false)));
        tasks.spawn(serve(addr, protocol, Arc::clone(&is_dead)));
        Ok(Self { addr, protocol, is_dead })
    }

    /// Lets it die, or return.
    pub(super) fn set_dead(&self, is_dead: bool) {
        self.is_dead.store(is_dead, Ordering::Relaxed);
    }
}

const TICK: Duration = Duration::from_millis(10);

async fn serve(addr: SocketAddr, protocol: Protocol, is_dead: Arc<AtomicBool>) {
    loop {
        while is_dead.load(Ordering::Relaxed) {
            tokio::time::sleep(TICK).await;
        }
        let Ok(listener) = TcpListener::bind(addr).await else {
            tokio::time::sleep(TICK).await;
            continue;
        };
        let (death, dying) = watch::channel(());
        let mut connections = JoinSet::new();
        while !is_dead.load(Ordering::Relaxed) {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    match protocol {
                        Protocol::Http1 => connections.spawn(http1(stream, dying.clone())),
                        Protocol::H2c => connections.spawn(h2c(stream, dying.clone())),
                    };
                }
                _ = connections.join_next(), if !connections.is_empty() => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
        drop((listener, death));
        connections.join_all().await;
    }
}

/// What is asked for at a path.
fn body(path: &str) -> Bytes {
    let [short, long] = RESPONSES;
    Bytes::from(vec![b'a'; if path.ends_with("/long") { long } else { short }])
}

/// Requests one after the other. Death ends it between two writes: what was answered was answered whole, and a response
/// that never began can be asked for again.
async fn http1(mut stream: TcpStream, mut dying: watch::Receiver<()>) {
    let (mut room, mut seen) = (vec![0; 16 * 1_024], Vec::new());
    loop {
        let n = tokio::select! {
            read = stream.read(&mut room) => read.unwrap_or(0),
            _ = dying.changed() => 0,
        };
        if n == 0 {
            return;
        }
        seen.extend_from_slice(&room[..n]);
        while let Some((path, len)) = request(&seen) {
            seen.drain(..len);
            let body = body(&path);
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            if stream.write_all(&[head.as_bytes(), &body].concat()).await.is_err() {
                return;
            }
        }
    }
}

/// The path of the first request, and its length with its body; nothing while it is not whole.
fn request(bytes: &[u8]) -> Option<(String, usize)> {
    let head_len = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..head_len]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let len = head_len + length.map_or(0, |value| value.trim().parse().unwrap_or(0));
    (bytes.len() >= len).then(|| (head.split(' ').nth(1).unwrap_or_default().to_owned(), len))
}

async fn h2c(stream: TcpStream, mut dying: watch::Receiver<()>) {
    let service = service_fn(|request: Request<Incoming>| async move {
        let (head, sent) = request.into_parts();
        // A body that breaks off is the agent's fault, and shows there.
        drop(sent.collect().await);
        Ok::<_, Infallible>(Response::new(Full::new(body(head.uri.path()))))
    });
    let connection =
        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let is_over = tokio::select! {
        // It ended by itself, or by the agent.
        _ = connection.as_mut() => true,
        _ = dying.changed() => false,
    };
    if !is_over {
        connection.as_mut().graceful_shutdown();
        drop(tokio::time::timeout(Duration::from_secs(1), connection).await);
    }
}
