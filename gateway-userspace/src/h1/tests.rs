//! Properties of the codec, over bytes that are nearly right: what is taken means one thing only, it can be written and
//! read again, and nothing depends on how the bytes arrive.

use bytes::{Bytes, BytesMut};
use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    chunk::{Chunks, Piece},
    head::{self, Finder, Head},
};
use crate::metrics::refusal::Refusal;

/// Lines that requests are made of, good ones and bad ones.
const LINES: [&str; 24] = [
    "GET / HTTP/1.1",
    "POST /a?b HTTP/1.1",
    "OPTIONS * HTTP/1.0",
    "GET http://a/ HTTP/1.1",
    "Host: a",
    "hOST:a",
    "Host : a",
    "Content-Length: 5",
    "content-length:05",
    "Content-Length: 5, 5",
    "Transfer-Encoding: chunked",
    "transfer-encoding:\tCHUNKED ",
    "Transfer-Encoding: gzip, chunked",
    "Connection: close",
    "Connection: keep-alive, x",
    "Expect: 100-continue",
    "X: y",
    "X:",
    " folded",
    "X: \u{e9}",
    "X:: y",
    "Content-Length",
    "",
    "X: y z",
];

/// What may slip in anywhere.
const NOISE: &[u8] = b"\r\n\0 \t:;,#\\\x7f\xffAx0/";

fn request() -> impl Strategy<Value = Vec<u8>> {
    let lines = vec(select(LINES.to_vec()), 0..6);
    let noise = vec((any::<prop::sample::Index>(), select(NOISE.to_vec())), 0..3);
    (select(LINES[..4].to_vec()), select(vec!["Host: a", "X: y"]), lines, noise).prop_map(
        |(first, second, lines, noise)| {
            let mut bytes =
                [&[first, second], lines.as_slice(), &["", ""]].concat().join("\r\n").into_bytes();
            for (at, byte) in noise {
                bytes.insert(at.index(bytes.len()), byte);
            }
            bytes
        },
    )
}

fn read(bytes: &[u8]) -> Result<Option<(Head, usize)>, Refusal> {
    let Some(len) = Finder::default().find(bytes)? else { return Ok(None) };
    head::parse(&Bytes::copy_from_slice(&bytes[..len])).map(|head| Some((head, len)))
}

/// A head as anybody would write it.
fn written(head: &Head) -> Vec<u8> {
    let version = if head.parts.version == http::Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" };
    let target = if head.parts.uri == "*" { "*".to_owned() } else { head.parts.uri.to_string() };
    let mut bytes = format!("{} {target} {version}\r\n", head.parts.method).into_bytes();
    for (name, value) in &head.parts.headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// What a reader of the plainest kind sees: lines that end with both bytes, and names in front of the first colon.
fn plain(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
    let lines = text.strip_suffix("\r\n\r\n").expect("a head ends so").split("\r\n").skip(1);
    let field = |line: &str| {
        let (name, value) = line.split_once(':').expect("a field has a colon");
        let value = value
            .trim_matches([' ', '\t'])
            .chars()
            .map(|c| u8::try_from(u32::from(c)).expect("it was a byte"));
        (name.to_ascii_lowercase(), value.collect())
    };
    lines.map(field).collect()
}

fn body(bytes: &[u8], steps: &[usize]) -> Result<Option<(Vec<u8>, usize)>, Refusal> {
    let (mut chunks, mut buffer, mut body, mut at) = (Chunks::default(), BytesMut::new(), Vec::new(), 0);
    let mut steps = steps.iter().copied().chain(std::iter::repeat(bytes.len().max(1)));
    loop {
        match chunks.next(&mut buffer)? {
            Piece::Data(data) => body.extend_from_slice(&data),
            Piece::End(_) => return Ok(Some((body, at - buffer.len()))),
            Piece::Nothing if at == bytes.len() => return Ok(None),
            Piece::Nothing => {
                let next = (at + steps.next().unwrap_or(1)).min(bytes.len());
                buffer.extend_from_slice(&bytes[at..next]);
                at = next;
            }
        }
    }
}

fn chunked() -> impl Strategy<Value = Vec<u8>> {
    let parts = [
        "3\r\nabc\r\n",
        "1;x=y\r\na\r\n",
        "0\r\n",
        "\r\n",
        "X: y\r\n",
        "00\r\n",
        "a\r\n",
        "0123456789\r\n",
        "2 \r\n",
        "0x1\r\n",
    ];
    let noise = vec((any::<prop::sample::Index>(), select(NOISE.to_vec())), 0..2);
    (vec(select(parts.to_vec()), 1..8), noise).prop_map(|(parts, noise)| {
        let mut bytes = [parts.concat().as_str(), "0\r\n\r\n"].concat().into_bytes();
        for (at, byte) in noise {
            bytes.insert(at.index(bytes.len()), byte);
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn a_head_that_is_taken_means_one_thing(bytes in request()) {
        if let Ok(Some((head, len))) = read(&bytes) {
            let fields: Vec<(String, Vec<u8>)> = head
                .parts
                .headers
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
                .collect();
            let (mut seen, mut here) = (plain(&bytes[..len]), fields);
            // The map keeps fields of one name together.
            seen.sort();
            here.sort();
            prop_assert_eq!(seen, here);
            let again = written(&head);
            let (twice, len) = read(&again).expect("it was taken before").expect("it is whole");
            prop_assert_eq!(len, again.len());
            prop_assert_eq!(&twice.parts.headers, &head.parts.headers);
            prop_assert_eq!((twice.framing, twice.keeps_alive), (head.framing, head.keeps_alive));
            prop_assert_eq!(written(&twice), again);
        }
    }

    #[test]
    fn the_end_of_a_head_does_not_depend_on_how_it_arrives(bytes in request(), step in 1..9_usize) {
        let mut finder = Finder::default();
        let by_step = (1..=bytes.len())
            .filter(|len| len % step == 0 || *len == bytes.len())
            .find_map(|len| finder.find(&bytes[..len]).transpose());
        prop_assert_eq!(by_step, Finder::default().find(&bytes).transpose());
    }

    #[test]
    fn a_body_that_is_taken_means_one_thing(bytes in chunked(), steps in vec(1..6_usize, 0..40)) {
        let whole = body(&bytes, &[]);
        let in_steps = body(&bytes, &steps);
        match (&whole, &in_steps) {
            (Ok(Some((one, _))), Ok(Some((other, _)))) => prop_assert_eq!(one, other),
            (one, other) => prop_assert_eq!(one.is_ok(), other.is_ok()),
        }
        if let Ok(Some((body_bytes, _))) = whole {
            let again = [format!("{:x}\r\n", body_bytes.len()).as_bytes(), &body_bytes, b"\r\n0\r\n\r\n"].concat();
            let again = if body_bytes.is_empty() { b"0\r\n\r\n".to_vec() } else { again };
            prop_assert_eq!(body(&again, &[]), Ok(Some((body_bytes, again.len()))));
        }
    }
}
