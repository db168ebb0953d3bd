//! Endpoints that answer as told, and count.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

pub struct Origin {
    pub addr: SocketAddr,
    pub requests: Arc<AtomicUsize>,
    pub connections: Arc<AtomicUsize>,
    resumed: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Origin {
    /// Answers 200 with its name, what it got in headers `seen-*`, and the request's body.
    pub async fn named(name: &'static str) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), name).await
    }

    pub async fn at(addr: SocketAddr, name: &'static str) -> Self {
        Self::serve(addr, move |request| async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let mut response = Response::builder().header("origin", name);
            for (key, value) in &parts.headers {
                response = response.header(format!("seen-{key}"), value);
            }
            let version = format!("{:?}", parts.version);
            response
                .header("seen-method", parts.method.as_str())
                .header("seen-target", parts.uri.path_and_query().unwrap().as_str())
                .header("seen-version", version)
                .body(Full::new(body))
                .unwrap()
        })
        .await
    }

    /// Answers at once with so many bytes, and goes on reading.
    pub async fn both_ways(n_bytes: usize) -> Self {
        let answer = Bytes::from(vec![b'a'; n_bytes]);
        let handler = move |request: Request<Incoming>| {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut body = request.into_body();
                while let Some(Ok(_)) = body.frame().await {}
            });
            async move { Response::new(Full::new(answer)) }
        };
        Self::serve("127.0.0.1:0".parse().unwrap(), handler).await
    }

    /// Answers each request when there is a permit for it.
    pub async fn held() -> (Self, Arc<Semaphore>) {
        let permits = Arc::new(Semaphore::new(0));
        let shared = Arc::clone(&permits);
        let handler = move |_| {
            let shared = Arc::clone(&shared);
            async move {
                shared.acquire().await.unwrap().forget();
                Response::new(Full::new(Bytes::from_static(b"ok")))
            }
        };
        (Self::serve("127.0.0.1:0".parse().unwrap(), handler).await, permits)
    }

    /// Answers with `handler`, over HTTP/1.1 or HTTP/2.
    pub async fn serve<H, F>(addr: SocketAddr, handler: H) -> Self
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let listener = listen(addr).await;
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        Self::run(listener, requests, move |stream| {
            let (handler, counter) = (handler.clone(), Arc::clone(&counter));
            async move {
                let service = service_fn(move |request| {
                    counter.fetch_add(1, Ordering::SeqCst);
                    let answer = handler(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                drop(builder.serve_connection(TokioIo::new(stream), service).await);
            }
        })
    }

    /// Answers over TLS like [`Origin::named`], with the name that was asked for (`tls-name`), what was agreed on (`tls-alpn`),
    /// and how many certificates the client showed (`tls-client`). Refuses what says over HTTP/2 that it came in plain text, as
    /// strict servers do.
    pub async fn secured(terms: rustls::ServerConfig) -> Self {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(terms));
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        let listener = listen("127.0.0.1:0".parse().unwrap()).await;
        let resumed = Arc::new(AtomicUsize::new(0));
        let n_resumed = Arc::clone(&resumed);
        let mut origin = Self::run(listener, requests, move |stream| {
            let (acceptor, counter) = (acceptor.clone(), Arc::clone(&counter));
            let n_resumed = Arc::clone(&n_resumed);
            async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let tls = stream.get_ref().1;
                let is_resumed = tls.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
                n_resumed.fetch_add(usize::from(is_resumed), Ordering::SeqCst);
                let name = tls.server_name().unwrap_or("none").to_owned();
                let alpn = String::from_utf8(tls.alpn_protocol().unwrap_or(b"none").to_vec()).unwrap();
                let n_certificates = tls.peer_certificates().map_or(0, <[_]>::len);
                let service = service_fn(move |request: Request<Incoming>| {
                    counter.fetch_add(1, Ordering::SeqCst);
                    let response = Response::builder()
                        .header("tls-name", &name)
                        .header("tls-alpn", &alpn)
                        .header("tls-client", n_certificates)
                        .header("seen-version", format!("{:?}", request.version()))
                        .header("seen-scheme", request.uri().scheme_str().unwrap_or_default())
                        .status(if request.uri().scheme_str() == Some("http") { 421 } else { 200 });
                    async move {
                        if request.uri().path() == "/slow" {
                            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
                        }
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        Ok::<_, Infallible>(response.body(Full::new(body)).unwrap())
                    }
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                drop(builder.serve_connection(TokioIo::new(stream), service).await);
            }
        });
        origin.resumed = resumed;
        origin
    }

    /// Does anything with its connections.
    pub async fn raw<H, F>(handler: H) -> Self
    where
        H: Fn(TcpStream) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::run(listener, Arc::default(), handler)
    }

    fn run<H, F>(listener: TcpListener, requests: Arc<AtomicUsize>, handler: H) -> Self
    where
        H: Fn(TcpStream) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let addr = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut served = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                served.spawn(handler(stream));
            }
        });
        Self { addr, requests, connections, resumed: Arc::default(), task }
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// Connections over TLS that went on from an earlier session.
    pub fn resumed(&self) -> usize {
        self.resumed.load(Ordering::SeqCst)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// An address that a dropped origin has just left may be taken for a moment more.
async fn listen(addr: SocketAddr) -> TcpListener {
    for _retry in 0..200 {
        if let Ok(listener) = TcpListener::bind(addr).await {
            return listener;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    TcpListener::bind(addr).await.unwrap()
}
