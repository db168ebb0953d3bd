//! Connections that the agent forwards byte by byte: balanced TCP without the kernel's help, to the endpoint that the kernel
//! would pick, and TLS that ends at the endpoint, by the name that the client asks for.

mod copy;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use gateway_common::addr::Protocol;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    balance::Tried,
    endpoint::Active,
    limits,
    metrics::{forwarded::ForwardOutcome, names::Families, timeout::ClientTimeout},
    net::{
        connect,
        proxy_protocol::{self, Ends},
    },
    state::{Balanced, Bind, BindKey, Published},
    tcp::copy::{Broken, Copied},
    tls::hello::{Peek, Seen},
};

/// Bytes that are read at once while a `ClientHello` is waited for.
const READ_BYTES: usize = 4 * 1024;

/// Answers a name that nobody serves (RFC 6066, section 3): fatal, `unrecognized_name`.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What connections are forwarded with.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The state that is served now.
    pub published: &'a Published,
    /// Numbers.
    pub families: &'a Families,
    /// Time for a client's `ClientHello`, where TLS ends at the endpoint.
    pub hello_timeout: Duration,
    /// The worker that forwards.
    pub worker: usize,
}

/// Forwards one connection with these ends until both sides have ended it, it is idle for too long, or its endpoint goes down.
pub async fn forward(terms: Terms<'_>, bind: BindKey, client: TcpStream, ends: Ends) {
    let outcome = run(terms, bind, client, &ends).await;
    terms.families.forwarded.ended(bind.addr, outcome);
}

async fn run(terms: Terms<'_>, bind: BindKey, mut client: TcpStream, ends: &Ends) -> ForwardOutcome {
    let Terms { published, families, hello_timeout, worker } = terms;
    let is_passthrough = match published.load().binds.get(&bind) {
        Some(Bind::Passthrough(_)) => true,
        Some(Bind::Balanced(_)) => false,
        Some(Bind::Http(_)) | None => return ForwardOutcome::NoRoute,
    };
    let mut hello = Vec::new();
    let mut name = None;
    if is_passthrough {
        match tokio::time::timeout(hello_timeout, read_hello(&mut client)).await {
            Ok(Ok(seen)) => (hello, name) = seen,
            Ok(Err(_)) => return ForwardOutcome::NoHello,
            Err(_) => {
                families.client_timeout(ClientTimeout::Hello);
                return ForwardOutcome::NoHello;
            }
        }
    }
    // The state of now: the hello may have taken its time.
    let Some(balanced) = find(published, bind, name.as_deref()) else {
        if is_passthrough {
            // Whoever does not read it is gone.
            drop(client.write_all(&UNRECOGNIZED_NAME).await);
        } else {
            refuse(&client);
        }
        return ForwardOutcome::NoRoute;
    };
    let Ok(_place) = balanced.pools.place(worker).await else {
        refuse(&client);
        return ForwardOutcome::NoDescriptor;
    };
    let Some((mut stream, active)) = open(&balanced, bind, ends, &hello).await else {
        refuse(&client);
        return ForwardOutcome::NoEndpoint;
    };
    let idle = balanced.idle_timeout;
    // The connection must not hold the state that it began with.
    drop(balanced);
    let moved = copy::Moved::default();
    let copied = tokio::select! {
        copied = copy::both_ways(&mut client, &mut stream, idle, &moved) => copied,
        () = active.endpoint().until_down() => {
            tracing::debug!(%bind, "the endpoint of a forwarded connection is down");
            Err(Broken::Client)
        }
    };
    families.forwarded.moved(bind.addr, moved.counts());
    match copied {
        Ok(Copied::Ended) => {
            copy::delivered(&client).await;
            ForwardOutcome::Ended
        }
        Ok(Copied::Idle) => {
            refuse(&client);
            refuse(&stream);
            ForwardOutcome::Idle
        }
        Err(broken) => {
            if broken == Broken::Endpoint {
                copy::delivered(&client).await;
            }
            refuse(&client);
            refuse(&stream);
            ForwardOutcome::Broken
        }
    }
}

/// Everything that a client sent until its `ClientHello` was whole, and the name in it.
async fn read_hello(client: &mut TcpStream) -> io::Result<(Vec<u8>, Option<String>)> {
    let mut peek = Peek::default();
    let mut buffer = [0; READ_BYTES];
    loop {
        let n = client.read(&mut buffer).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match peek.push(buffer.get(..n).unwrap_or_default()) {
            Ok(Seen::Part) => {}
            Ok(Seen::Whole(name)) => return Ok((peek.into_raw(), name)),
            Err(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Where connections of an address go, for TLS those that ask for `name`.
fn find(published: &Published, bind: BindKey, name: Option<&str>) -> Option<Arc<Balanced>> {
    match published.load().binds.get(&bind)? {
        Bind::Balanced(balanced) => Some(Arc::clone(balanced)),
        Bind::Passthrough(listeners) => {
            let name = name.unwrap_or_default();
            listeners.lookup(name).next()?.lookup(name).next().map(Arc::clone)
        }
        Bind::Http(_) => None,
    }
}

/// A connection to the endpoint of the flow, to the next one when it cannot be opened; with what has to stand at its
/// beginning, and counted by its endpoint as long as it is open.
async fn open(balanced: &Balanced, bind: BindKey, ends: &Ends, hello: &[u8]) -> Option<(TcpStream, Active)> {
    let flow = balanced.flow(ends.source, bind.addr, Protocol::TCP);
    let mut tried = Tried::default();
    for _ in 0..limits::TRIES {
        let picked = balanced.balancer.pick(&flow, &tried)?;
        let endpoint = &balanced.balancer.members().get(picked)?.endpoint;
        let mut start = Vec::new();
        if balanced.announced.get(picked) == Some(&true) {
            start = proxy_protocol::write_v2(ends);
        }
        start.extend_from_slice(hello);
        match begin(endpoint.addr(), balanced, &start).await {
            Ok(stream) => {
                endpoint.attempted(false);
                return Some((stream, endpoint.begin()));
            }
            Err(cause) => {
                if connect::is_of_peer(&cause) {
                    endpoint.attempted(true);
                }
                tracing::debug!(%cause, endpoint = %endpoint.addr(), "no connection to an endpoint");
                tried.push(picked);
            }
        }
    }
    None
}

async fn begin(addr: SocketAddr, balanced: &Balanced, start: &[u8]) -> io::Result<TcpStream> {
    let mut stream = connect::tcp(addr, balanced.connect_timeout, balanced.options).await?;
    if !start.is_empty() {
        // It fits into the buffer of a new socket; nothing of it is answered before all of it is there.
        tokio::time::timeout(balanced.connect_timeout, stream.write_all(start)).await??;
    }
    Ok(stream)
}

/// Makes the end of a socket a reset, so that the peer does not take it for the end of the data.
fn refuse(stream: &TcpStream) {
    if let Err(cause) = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%cause, "a connection ends without a reset");
    }
}
