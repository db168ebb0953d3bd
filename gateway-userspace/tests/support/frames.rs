//! HTTP/2 as frames: written byte by byte, read as they come.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const PRIORITIZED: u8 = 32;

/// Codes of errors (RFC 9113, section 7).
pub const NO_ERROR: u32 = 0;
pub const PROTOCOL: u32 = 1;
pub const FLOW_CONTROL: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE: u32 = 6;
pub const REFUSED: u32 = 7;
pub const COMPRESSION: u32 = 9;
pub const CALM: u32 = 11;

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![len[1], len[2], len[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Fields as literals that are not indexed (RFC 7541, section 6.2.2), without Huffman's code.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name.as_bytes(), value.as_bytes())).collect()
}

pub fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0][..], &string(name), &string(value)].concat()
}

/// A string with its length (RFC 7541, section 5.2).
pub fn string(text: &[u8]) -> Vec<u8> {
    let mut bytes = integer(0, 7, text.len());
    bytes.extend(text);
    bytes
}

/// A number behind `prefix` (RFC 7541, section 5.1).
pub fn integer(prefix: u8, bits: u32, value: usize) -> Vec<u8> {
    let most = (1 << bits) - 1;
    if value < most {
        return vec![prefix | u8::try_from(value).unwrap()];
    }
    let mut bytes = vec![prefix | u8::try_from(most).unwrap()];
    let mut rest = value - most;
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes
}

/// The pseudo-fields of a request.
pub const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
pub const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")];

/// A whole request without a body.
pub fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, block(&GET))
}

/// The head of a request whose body follows.
pub fn post(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, block(&POST))
}

pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let pair = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, values.iter().flat_map(pair).collect::<Vec<_>>())
}

pub fn ping() -> Vec<u8> {
    frame(PING, 0, 0, *b"whoisit?")
}

pub fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, by.to_be_bytes())
}

pub fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, 8_u32.to_be_bytes())
}

/// A frame that was read.
#[derive(Clone, Debug)]
pub struct Read {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Read {
    /// The code of a reset or a farewell.
    pub fn code(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        Some(u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap()))
    }

    /// The status of a response, as encoders write it first: indexed, or as a literal with an indexed name.
    pub fn status(&self) -> Option<u16> {
        if self.kind != HEADERS {
            return None;
        }
        // The encoder may say first how large its table is.
        let n_updates = self.payload.iter().take_while(|byte| **byte & 0xe0 == 0x20).count();
        match self.payload[n_updates..] {
            [indexed @ 0x88..=0x8e, ..] => {
                Some([200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)])
            }
            // `:status` is 8 in the static table; three digits, plain or by Huffman's code in two bytes.
            [0x08 | 0x48, 3, a, b, c, ..] => std::str::from_utf8(&[a, b, c]).ok()?.parse().ok(),
            [0x08 | 0x48, 0x82, a, b, ..] => Some(huffman([a, b, 0xff])),
            [0x08 | 0x48, 0x83, a, b, c, ..] => Some(huffman([a, b, c])),
            _ => Some(0),
        }
    }
}

/// Three digits of Huffman's code, of 5 or 6 bits each.
fn huffman([a, b, c]: [u8; 3]) -> u16 {
    let bits = u32::from_be_bytes([0, a, b, c]);
    let (mut at, mut number) = (24, 0);
    for _ in 0..3 {
        let five = (bits >> (at - 5)) & 31;
        let digit = if five < 3 {
            at -= 5;
            five
        } else {
            at -= 6;
            ((bits >> at) & 63) - 0x19 + 3
        };
        number = number * 10 + digit;
    }
    number.try_into().unwrap()
}

/// A client that speaks in frames.
pub struct Peer(pub TcpStream);

impl Peer {
    /// Connects, and says nothing.
    pub async fn silent(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    /// Connects with a preface and empty settings.
    pub async fn connect(addr: SocketAddr) -> Self {
        let mut peer = Self::silent(addr).await;
        peer.send(&[PREFACE, &settings(&[])].concat()).await;
        peer
    }

    /// Whoever does not listen any more is no fault of the test.
    pub async fn send(&mut self, bytes: &[u8]) {
        drop(self.0.write_all(bytes).await);
    }

    /// The next frame; none when the connection ends or nothing comes in time.
    pub async fn read(&mut self, patience: Duration) -> Option<Read> {
        tokio::time::timeout(patience, self.frame()).await.ok().flatten()
    }

    async fn frame(&mut self) -> Option<Read> {
        let mut header = [0; 9];
        self.0.read_exact(&mut header).await.ok()?;
        let [a, b, c, kind, flags, d, e, f, g] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]).try_into().unwrap()];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Read { kind, flags, stream: u32::from_be_bytes([d, e, f, g]), payload })
    }

    /// Everything until the connection ends or nothing comes for a while.
    pub async fn all(&mut self, patience: Duration) -> Vec<Read> {
        let mut frames = Vec::new();
        while let Some(frame) = self.read(patience).await {
            frames.push(frame);
        }
        frames
    }

    /// Whether the connection has ended.
    pub async fn is_closed(&mut self) -> bool {
        !matches!(
            tokio::time::timeout(Duration::from_secs(5), self.0.read(&mut [0; 64])).await,
            Ok(Ok(1..)) | Err(_)
        )
    }
}
