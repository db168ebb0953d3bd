//! What stands before everything else on a connection: who it is for, and the first message of TLS.

use std::{io, sync::LazyLock, time::Duration};

use gateway_userspace::{
    net::proxy_protocol,
    tls::hello::{Peek, Refused, Seen},
};
use rustls::server::Acceptor;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    runtime::Runtime,
};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime can be made")
});

/// What is told, and how many bytes are left behind it.
type Told = (Result<Option<proxy_protocol::Ends>, io::ErrorKind>, usize);

/// Judges what a load balancer sends before everything else.
///
/// # Panics
/// When something does not hold.
pub fn announced(data: &[u8]) {
    let at = data.len() / 2;
    let at_once = told(data);
    let (front, back) = data.split_at(at);
    let in_pieces = told(front.chain(back));
    assert_eq!(at_once.0, in_pieces.0, "pieces change what is told");
    let (Ok(ends), n_left) = at_once else { return };
    assert_eq!(n_left, in_pieces.1, "pieces change where it ends");
    let header = &data[..data.len() - n_left];
    assert!(is_one_header(header), "{header:?}");
    assert_eq!(told(header), (Ok(ends), 0), "what follows changes what is told");
    let Some(ends) = ends else { return };
    let again = proxy_protocol::write_v2(&ends);
    assert_eq!(told(&again[..]), (Ok(Some(ends)), 0), "what is told is told on");
}

fn told(mut stream: impl AsyncRead + Unpin) -> Told {
    RUNTIME.block_on(async {
        let read = proxy_protocol::read(&mut stream, Duration::from_mins(1)).await;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("a slice can be read");
        (read.map_err(|error| error.kind()), rest.len())
    })
}

/// Whether these bytes are one header and nothing else, by where it has to end.
fn is_one_header(bytes: &[u8]) -> bool {
    if bytes.starts_with(b"PROXY ") {
        let line = bytes.strip_suffix(b"\r\n").unwrap_or(b"\n");
        return bytes.len() <= 107 && !line.contains(&b'\n');
    }
    let Some([high, low]) = bytes.get(14..16) else { return false };
    bytes.starts_with(b"\r\n\r\n\0\r\nQUIT\n")
        && bytes.len() == 16 + usize::from(u16::from_be_bytes([*high, *low]))
}

/// Judges the first bytes of a connection that says it is TLS, beside an implementation of it.
///
/// # Panics
/// When something does not hold.
pub fn hello(data: &[u8]) {
    let at_once = seen(data, data.len().max(1));
    assert_eq!(at_once, seen(data, 1 + data.len() % 7), "pieces change what is read");
    let Ok(Seen::Whole(name)) = at_once else { return };
    if let Some(name) = &name {
        let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
        assert!(!name.is_empty() && name.len() <= 253 && name.bytes().all(is_good), "{name:?}");
        assert!(!name.ends_with('.'), "{name:?}");
    }
    let other = match other(data) {
        Other::Refused => return,
        Other::Nameless => None,
        Other::Named(name) => Some(name.to_ascii_lowercase()),
    };
    // An address is no name to the other one.
    let name = name.filter(|name| name.parse::<std::net::IpAddr>().is_err());
    assert_eq!(name, other, "two readers, two names");
}

/// What is read when `step` bytes arrive at a time, and everything that arrived goes on.
fn seen(data: &[u8], step: usize) -> Result<Seen, Refused> {
    let (mut peek, mut last, mut n_pushed) = (Peek::default(), Ok(Seen::Part), 0);
    for piece in data.chunks(step) {
        last = peek.push(piece);
        n_pushed += piece.len();
        if last != Ok(Seen::Part) {
            break;
        }
    }
    assert_eq!(peek.into_raw(), &data[..n_pushed], "everything that arrived goes on");
    last
}

/// What another reader takes the message for.
enum Other {
    Refused,
    Nameless,
    Named(String),
}

/// The name as rustls reads it.
fn other(data: &[u8]) -> Other {
    let (mut acceptor, mut rest) = (Acceptor::default(), data);
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).is_err() {
            return Other::Refused;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(str::to_owned);
                return name.map_or(Other::Nameless, Other::Named);
            }
            Err(_) => return Other::Refused,
        }
    }
    Other::Refused
}
