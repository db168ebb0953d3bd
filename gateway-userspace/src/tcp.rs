//! Balanced TCP without the kernel's help: the endpoint that the kernel would pick, and bytes copied both ways.

use std::{net::SocketAddr, time::Duration};

use gateway_common::{addr::Protocol, flow::FlowKey};
use tokio::net::TcpStream;

use crate::{
    balance::{self, Tried},
    endpoint::Active,
    limits,
    net::connect,
    state::{Balanced, Bind, BindKey, Published},
};

/// Bytes that wait in each direction of one connection.
const COPY_BYTES: usize = 16 * 1024;

/// Forwards one connection until both sides have ended it, or its endpoint goes down.
pub async fn forward(published: &Published, bind: BindKey, mut client: TcpStream, peer: SocketAddr) {
    let state = published.load();
    let Some(Bind::Balanced(balanced)) = state.binds.get(&bind) else { return };
    let flow = balance::flow(peer, bind.addr, Protocol::TCP);
    let Some((mut stream, active)) = open(balanced, &flow).await else {
        refuse(&client);
        return;
    };
    // The connection must not hold the state that it began with.
    drop(state);
    let copied = tokio::select! {
        copied = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut stream, COPY_BYTES, COPY_BYTES) => {
            copied.map(drop)
        }
        () = active.endpoint().until_down() => Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
    };
    if let Err(cause) = copied {
        tracing::debug!(%cause, %bind, "a forwarded connection broke off");
        refuse(&client);
        refuse(&stream);
    }
}

/// A connection to the endpoint of the flow; to the next one when it cannot be opened.
async fn open(balanced: &Balanced, flow: &FlowKey) -> Option<(TcpStream, Active)> {
    let mut tried = Tried::default();
    for _ in 0..limits::TRIES {
        let picked = balanced.balancer.pick(flow, &tried)?;
        let endpoint = &balanced.balancer.members().get(picked)?.endpoint;
        match connect::tcp(endpoint.addr(), balanced.connect_timeout, balanced.options).await {
            Ok(stream) => return Some((stream, endpoint.begin())),
            Err(cause) => {
                tracing::debug!(%cause, endpoint = %endpoint.addr(), "no connection to an endpoint");
                tried.push(picked);
            }
        }
    }
    None
}

/// Makes the end of a socket a reset, so that the peer does not take it for the end of the data.
fn refuse(stream: &TcpStream) {
    if let Err(cause) = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%cause, "a connection ends without a reset");
    }
}
