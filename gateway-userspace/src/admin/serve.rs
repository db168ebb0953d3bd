//! The HTTP server of the operator's window: `/metrics`, `/ready`, `/live`, `/dump`, `/events`.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::{
    admin::{View, ready::Readiness},
    drain::{Drain, Tasks},
    limits,
};

/// Connections at the same time: a scraper, a probe of the orchestrator, and people.
const CONNECTIONS: usize = 64;

/// Pause after accept(2) fails, which is for lack of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves the window until the drain begins.
pub async fn serve(listener: TcpListener, view: Arc<dyn View>, tasks: Tasks, drain: Drain) {
    serve_within((CONNECTIONS, limits::ADMIN_STALL), listener, view, tasks, drain).await;
}

/// The same for so many connections, where a page has to be taken so fast.
async fn serve_within(
    (n_connections, stall): (usize, Duration),
    listener: TcpListener,
    view: Arc<dyn View>,
    tasks: Tasks,
    mut drain: Drain,
) {
    let permits = Arc::new(Semaphore::new(n_connections));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = drain.begun() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                bound(&stream, stall);
                let (view, drain) = (Arc::clone(&view), drain.clone());
                drop(tasks.spawn("admin connection", async move {
                    connection(stream, view, drain).await;
                    drop(permit);
                }));
            }
            Err(cause) => {
                tracing::warn!(%cause, "cannot accept admin connections");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Whoever takes nothing of a page, or is gone, is given up by the kernel: its place is for others.
fn bound(stream: &TcpStream, stall: Duration) {
    let reference = SockRef::from(stream);
    let bounded = reference
        .set_tcp_user_timeout(Some(stall))
        .and_then(|()| reference.set_tcp_keepalive(&limits::keepalive()));
    if let Err(cause) = bounded {
        tracing::debug!(%cause, "an admin connection has no bound");
    }
}

async fn connection(stream: TcpStream, view: Arc<dyn View>, mut drain: Drain) {
    let service = service_fn(|request: Request<Incoming>| {
        let view = Arc::clone(&view);
        async move {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            // A page about a hundred thousand endpoints takes a while; changes of the kernel's maps do not wait for it.
            let answered = tokio::task::spawn_blocking(move || answer(&*view, &method, &path)).await;
            Ok::<_, Infallible>(answered.unwrap_or_else(|_| {
                response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "the page could not be made\n".to_owned())
            }))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::ADMIN_HEAD_TIMEOUT)
        .max_headers(limits::HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.begun() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(cause) = ended {
        tracing::debug!(%cause, "an admin connection broke off");
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

fn answer(view: &dyn View, method: &Method, path: &str) -> Response<Full<Bytes>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "use GET\n".to_owned());
    }
    match path {
        "/metrics" => response(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            view.metrics(),
        ),
        "/live" => response(StatusCode::OK, TEXT, "live\n".to_owned()),
        "/ready" => match view.readiness() {
            Readiness::Ready => response(StatusCode::OK, TEXT, "ready\n".to_owned()),
            Readiness::NotReady(reasons) => {
                response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{}\n", reasons.join("\n")))
            }
        },
        "/dump" => response(StatusCode::OK, "application/json", format!("{:#}\n", view.dump())),
        "/events" => response(StatusCode::OK, "application/json", format!("{:#}\n", view.events())),
        _ => {
            let all = "there are /metrics, /ready, /live, /dump and /events\n";
            response(StatusCode::NOT_FOUND, TEXT, all.to_owned())
        }
    }
}

fn response(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    struct Told(Readiness);

    impl View for Told {
        fn metrics(&self) -> String {
            "sluice_x 1\n# EOF\n".to_owned()
        }

        fn readiness(&self) -> Readiness {
            self.0.clone()
        }

        fn dump(&self) -> serde_json::Value {
            serde_json::json!({ "listeners": [] })
        }

        fn events(&self) -> serde_json::Value {
            serde_json::json!([{ "reason": "denied" }])
        }
    }

    /// A page that no buffer takes whole.
    struct Large;

    impl View for Large {
        fn metrics(&self) -> String {
            "#".repeat(16 << 20)
        }

        fn readiness(&self) -> Readiness {
            Readiness::Ready
        }

        fn dump(&self) -> serde_json::Value {
            serde_json::Value::Null
        }

        fn events(&self) -> serde_json::Value {
            serde_json::Value::Null
        }
    }

    #[tokio::test]
    async fn whoever_takes_nothing_of_a_page_gives_its_place_up() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        const SOON: Duration = Duration::from_secs(20);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (_drain, drain) = crate::drain::channel();
        let bounds = (2, Duration::from_secs(1));
        let tasks = Tasks::default();
        let serving = serve_within(bounds, listener, Arc::new(Large), tasks.clone(), drain);
        let serving = tasks.spawn("admin", serving);
        let mut still = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            stream.readable().await.unwrap();
            still.push(stream);
        }
        let mut probe = TcpStream::connect(addr).await.unwrap();
        probe.write_all(b"GET /live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(SOON, probe.read_to_string(&mut answer)).await;
        read.expect("there is a place for it").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        serving.abort();
    }

    async fn check(view: &Told, method: Method, path: &str, status: u16, text: &str) {
        let response = answer(view, &method, path);
        assert_eq!(response.status(), status, "{path}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&body).contains(text), "{path}: {body:?}");
    }

    #[tokio::test]
    async fn every_window_opens() {
        let view = Told(Readiness::NotReady(vec!["configuration: not read yet".to_owned()]));
        check(&view, Method::GET, "/live", 200, "live").await;
        check(&view, Method::GET, "/ready", 503, "configuration: not read yet").await;
        check(&Told(Readiness::Ready), Method::GET, "/ready", 200, "ready").await;
        check(&view, Method::GET, "/metrics", 200, "sluice_x 1").await;
        check(&view, Method::GET, "/dump", 200, "listeners").await;
        check(&view, Method::GET, "/events", 200, "denied").await;
        check(&view, Method::GET, "/else", 404, "/metrics").await;
        check(&view, Method::POST, "/metrics", 405, "GET").await;
    }
}
