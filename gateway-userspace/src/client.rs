//! A small client for requests of the agent's own: checks, whose bodies nobody wants, and questions with a short answer.

use std::{future::Future, io};

use bytes::Bytes;
use http::uri::Scheme;
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::AbortHandle,
};

use crate::drain::Tasks;

/// The status of a response over HTTP/2, whose scheme is that of the stream; none when HTTP/2 is not what is spoken.
///
/// # Errors
/// When the connection is closed or reset.
pub async fn status_over_http2<S>(
    stream: S,
    scheme: Scheme,
    (host, path): (&str, &str),
    tasks: &Tasks,
) -> io::Result<Option<u16>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let not_spoken = |cause: hyper::Error| {
        // A connection that was closed or reset says no; anything else is another protocol.
        let io =
            std::error::Error::source(&cause).and_then(<dyn std::error::Error>::downcast_ref::<io::Error>);
        io.map_or(Ok(None), |io| Err(io.kind().into()))
    };
    let uri = http::Uri::builder().scheme(scheme).authority(host).path_and_query(path).build();
    let request = http::Request::get(uri.unwrap_or_default())
        .version(http::Version::HTTP_2)
        .header(http::header::USER_AGENT, "sluice")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let opened = http2::Builder::new(Executor(tasks.clone())).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = match opened {
        Ok(opened) => opened,
        Err(cause) => return not_spoken(cause),
    };
    // Ends with this check, also when its time is over.
    let driver = tasks.spawn("health check connection", async move {
        // How it ends says nothing that the answer does not.
        drop(connection.await);
    });
    let _driver = Aborted(driver.abort_handle());
    match sender.send_request(request).await {
        Ok(response) => Ok(Some(response.status().as_u16())),
        Err(cause) => not_spoken(cause),
    }
}

/// What is asked by POST.
#[derive(Clone, Debug)]
pub struct Posted<'a> {
    /// Path and query.
    pub path: &'a str,
    /// Value of `host`.
    pub host: &'a str,
    /// What the body is.
    pub content_type: &'static str,
    /// The body.
    pub body: Bytes,
}

/// What is said to a POST request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Said {
    /// The body of an answer with status 200.
    Body(Bytes),
    /// Where to ask instead.
    Elsewhere(String),
}

/// The answer to a POST request over HTTP/1.1, of at most so many bytes. Without a deadline of its own.
///
/// # Errors
/// When the connection fails, the status is neither 200 nor that of a redirect, or the body is longer.
pub async fn post<S>(stream: S, posted: Posted<'_>, most: usize, tasks: &Tasks) -> io::Result<Said>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let request = http::Request::post(posted.path)
        .header(http::header::HOST, posted.host)
        .header(http::header::USER_AGENT, "sluice")
        .header(http::header::CONTENT_TYPE, posted.content_type)
        .header(http::header::CONNECTION, "close")
        .body(Full::new(posted.body))
        .map_err(io::Error::other)?;
    let opened = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let (mut sender, connection) = opened;
    let driver = tasks.spawn("question", async move {
        // How it ends says nothing that the answer does not.
        drop(connection.await);
    });
    let _driver = Aborted(driver.abort_handle());
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let location = response.headers().get(http::header::LOCATION).and_then(|value| value.to_str().ok());
    // Whatever the number, the question is asked there as it was here: its answer is signed.
    if let (301 | 302 | 307 | 308, Some(location)) = (response.status().as_u16(), location) {
        return Ok(Said::Elsewhere(location.to_owned()));
    }
    if response.status() != http::StatusCode::OK {
        return Err(io::Error::other(format!("status {}", response.status().as_u16())));
    }
    let body = Limited::new(response.into_body(), most).collect().await.map_err(io::Error::other)?;
    Ok(Said::Body(body.to_bytes()))
}

/// A task that ends with this value.
struct Aborted(AbortHandle);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs the tasks that HTTP/2 needs.
#[derive(Clone, Debug)]
struct Executor(Tasks);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        drop(self.0.spawn("health check stream", future));
    }
}
