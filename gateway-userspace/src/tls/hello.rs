//! The server name of a `ClientHello`, read without taking part in the handshake (RFC 8446, sections 4.1.2 and 5.1; RFC 6066,
//! section 3).
//!
//! The bytes arrive in any pieces, and the message may be spread over any number of records. What is malformed is refused
//! and not forwarded: the endpoint might read another name in it.

use crate::limits;

const RECORD_HEAD_BYTES: usize = 5;
const MESSAGE_HEAD_BYTES: usize = 4;
/// Largest plaintext of a record (RFC 8446, section 5.1).
const RECORD_BYTES: usize = 1 << 14;
const RECORD_OF_HANDSHAKE: u8 = 22;
const MAJOR_VERSION: u8 = 3;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: usize = 0;
const HOST_NAME: u8 = 0;
/// Longest host name of DNS (RFC 1035, section 2.3.4), without the dot of the root.
const NAME_BYTES: usize = 253;

/// Reads a `ClientHello` as it arrives.
#[derive(Debug, Default)]
pub struct Peek {
    /// Everything that arrived, to be sent on.
    raw: Vec<u8>,
    /// Where the next record begins.
    at: usize,
    /// The message, without the frames of its records.
    message: Vec<u8>,
}

/// What is known so far.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Seen {
    /// More has to arrive.
    Part,
    /// The message is complete; the name in lower case, none when it has none.
    Whole(Option<String>),
}

/// Why it is no `ClientHello` that could be routed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    /// Something else than TLS.
    NotTls,
    /// A part of it has a wrong length, comes twice, or is no host name.
    Malformed,
    /// It does not end within the bound.
    TooLong,
}

impl Peek {
    /// Takes the next bytes of the connection. Not to be called again after the message was whole or refused.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Seen, Refused> {
        self.raw.extend_from_slice(bytes);
        loop {
            if let Some(body) = whole(&self.message)? {
                return server_name(body).ok_or(Refused::Malformed);
            }
            let rest = self.raw.get(self.at..).unwrap_or_default();
            if let Some(first) = rest.first()
                && *first != RECORD_OF_HANDSHAKE
            {
                return Err(Refused::NotTls);
            }
            if rest.get(1).is_some_and(|major| *major != MAJOR_VERSION) {
                return Err(Refused::NotTls);
            }
            let Some((head, rest)) = rest.split_at_checked(RECORD_HEAD_BYTES) else { return self.part() };
            let len = number(head.get(3..).unwrap_or_default());
            if len == 0 || len > RECORD_BYTES {
                return Err(Refused::Malformed);
            }
            let Some(fragment) = rest.get(..len) else { return self.part() };
            self.message.extend_from_slice(fragment);
            self.at += RECORD_HEAD_BYTES + len;
        }
    }

    /// More has to arrive, if there is room for it.
    fn part(&self) -> Result<Seen, Refused> {
        if self.raw.len() >= limits::HELLO_BYTES { Err(Refused::TooLong) } else { Ok(Seen::Part) }
    }

    /// Everything that arrived.
    pub fn into_raw(self) -> Vec<u8> {
        self.raw
    }
}

/// The body of the message once all of it is there. What follows in the same record is the endpoint's business.
fn whole(message: &[u8]) -> Result<Option<&[u8]>, Refused> {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(Refused::NotTls);
    }
    let Some((head, body)) = message.split_at_checked(MESSAGE_HEAD_BYTES) else { return Ok(None) };
    let len = number(head.get(1..).unwrap_or_default());
    if len > limits::HELLO_BYTES {
        return Err(Refused::TooLong);
    }
    Ok(body.get(..len))
}

/// A number in network byte order, of at most four bytes.
fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// Takes a vector whose length stands before it in `len_bytes` bytes.
fn vector<'b>(bytes: &mut &'b [u8], len_bytes: usize) -> Option<&'b [u8]> {
    let (len, rest) = bytes.split_at_checked(len_bytes)?;
    let (vector, rest) = rest.split_at_checked(number(len))?;
    *bytes = rest;
    Some(vector)
}

/// What the body of a `ClientHello` says; none when it is malformed.
fn server_name(mut body: &[u8]) -> Option<Seen> {
    const VERSION_AND_RANDOM_BYTES: usize = 2 + 32;
    body = body.get(VERSION_AND_RANDOM_BYTES..)?;
    let (_session, suites, methods) = (vector(&mut body, 1)?, vector(&mut body, 2)?, vector(&mut body, 1)?);
    if suites.is_empty() || suites.len() % 2 != 0 || methods.is_empty() {
        return None;
    }
    if body.is_empty() {
        // TLS 1.2 without extensions.
        return Some(Seen::Whole(None));
    }
    let mut extensions = vector(&mut body, 2)?;
    if !body.is_empty() {
        return None;
    }
    let mut name = None;
    while !extensions.is_empty() {
        let (kind, rest) = extensions.split_at_checked(2)?;
        extensions = rest;
        let content = vector(&mut extensions, 2)?;
        if number(kind) == SERVER_NAME && name.replace(host_name(content)?).is_some() {
            return None;
        }
    }
    Some(Seen::Whole(name))
}

/// The one host name of the extension.
fn host_name(mut content: &[u8]) -> Option<String> {
    let mut names = vector(&mut content, 2)?;
    let (kind, rest) = names.split_first()?;
    names = rest;
    let name = vector(&mut names, 2)?;
    if *kind != HOST_NAME || !names.is_empty() || !content.is_empty() {
        return None;
    }
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let sound = (1..=NAME_BYTES).contains(&name.len()) && name.iter().all(is_letter) && !name.ends_with(b".");
    sound.then(|| String::from_utf8_lossy(name).to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};

    use super::*;

    /// What a real client sends.
    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut bytes = Vec::new();
        ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message in records of `len` bytes.
    fn in_records(hello: &[u8], len: usize) -> Vec<u8> {
        let records = hello[RECORD_HEAD_BYTES..].chunks(len);
        records.flat_map(|part| [&[22, 3, 1, 0, u8::try_from(part.len()).unwrap()], part].concat()).collect()
    }

    /// A `ClientHello` with these extensions.
    fn made(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let prefixed = |n: usize, bytes: &[u8]| [&bytes.len().to_be_bytes()[8 - n..], bytes].concat();
        let extensions: Vec<u8> = extensions
            .iter()
            .flat_map(|(kind, it)| [&kind.to_be_bytes()[..], &prefixed(2, it)].concat())
            .collect();
        let body = [
            vec![3; 34],
            prefixed(1, &[]),
            prefixed(2, &[19, 1]),
            prefixed(1, &[0]),
            prefixed(2, &extensions),
        ]
        .concat();
        let message = [vec![1], prefixed(3, &body)].concat();
        [vec![22, 3, 1], prefixed(2, &message)].concat()
    }

    fn names(names: &[&str]) -> Vec<u8> {
        let list: Vec<u8> = names
            .iter()
            .flat_map(|name| [&[0, 0, u8::try_from(name.len()).unwrap()], name.as_bytes()].concat())
            .collect();
        [&[0, u8::try_from(list.len()).unwrap()], list.as_slice()].concat()
    }

    #[test]
    fn names_of_real_clients_are_read_from_any_records() {
        let whole = |name: &str| Ok(Seen::Whole(Some(name.to_owned())));
        let hello_bytes = hello("Www.Example.org");
        assert_eq!(Peek::default().push(&hello_bytes), whole("www.example.org"));
        for len in [1, 7, 255] {
            assert_eq!(
                Peek::default().push(&in_records(&hello_bytes, len)),
                whole("www.example.org"),
                "{len}"
            );
        }
        assert_eq!(
            Peek::default().push(&hello("127.0.0.1")),
            Ok(Seen::Whole(None)),
            "addresses are no names"
        );
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let a = names(&["a.test"]);
        let malformed = [
            made(&[(0, a.clone()), (0, a.clone())]),
            made(&[(0, names(&["a.test", "b.test"]))]),
            made(&[(0, names(&[]))]),
            made(&[(0, names(&["a.test."]))]),
            made(&[(0, names(&["a\0.test"]))]),
            made(&[(0, names(&[""]))]),
            made(&[(0, [a.as_slice(), &[0]].concat())]),
            vec![22, 3, 1, 0, 0],
            vec![22, 3, 1, 0xff, 0xff],
        ];
        for bytes in malformed {
            assert_eq!(Peek::default().push(&bytes), Err(Refused::Malformed), "{bytes:?}");
        }
        assert_eq!(
            Peek::default().push(&made(&[(5, vec![1]), (0, a)])),
            Ok(Seen::Whole(Some("a.test".to_owned())))
        );
        assert_eq!(Peek::default().push(&made(&[])), Ok(Seen::Whole(None)));
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x02", b"\x16\x03\x01\x00\x01\x02"] {
            assert_eq!(Peek::default().push(bytes), Err(Refused::NotTls), "{bytes:?}");
        }
    }

    #[test]
    fn a_message_without_end_is_refused_at_the_bound() {
        let mut peek = Peek::default();
        let mut n = 0;
        let refused = loop {
            // Records of one byte, of a message that says it is long.
            let byte = [1, 0, 0x30, 0].get(n).copied().unwrap_or(7);
            match peek.push(&[22, 3, 1, 0, 1, byte]) {
                Ok(_) => n += 1,
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused, Refused::TooLong);
        assert!(n * 6 <= limits::HELLO_BYTES);
        assert_eq!(Peek::default().push(&[22, 3, 1, 0, 4, 1, 1, 0, 0]), Err(Refused::TooLong));
    }

    proptest! {
        #[test]
        fn pieces_change_nothing(at in 1_usize..200, garble in proptest::option::of((0_usize..300, any::<u8>()))) {
            let mut bytes = hello("www.example.org");
            if let Some((place, byte)) = garble {
                bytes[place] = byte;
            }
            let at_once = Peek::default().push(&bytes);
            let mut peek = Peek::default();
            let mut result = Ok(Seen::Part);
            let mut taken = Vec::new();
            for piece in bytes.chunks(at) {
                taken.extend_from_slice(piece);
                result = peek.push(piece);
                if result != Ok(Seen::Part) {
                    break;
                }
            }
            prop_assert_eq!(&result, &at_once);
            if result.is_ok() {
                prop_assert_eq!(peek.into_raw(), taken);
            }
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let framed = [&[22, 3, 1, 2, 0, 1, 0, 1, 200][..], &bytes].concat();
            for bytes in [bytes, framed] {
                if let Ok(Seen::Whole(Some(name))) = Peek::default().push(&bytes) {
                    prop_assert!(!name.is_empty() && name == name.to_ascii_lowercase());
                }
            }
        }
    }
}
