//! Heads that are taken, and heads that are refused.

use super::*;

#[track_caller]
fn read(text: &str) -> Result<Head, Refusal> {
    // In one piece and byte by byte: the result must be the same.
    let mut finder = Finder::default();
    let by_byte = (1..=text.len()).find_map(|len| finder.find(&text.as_bytes()[..len]).transpose());
    let found = Finder::default().find(text.as_bytes()).transpose();
    assert_eq!(by_byte, found, "{text:?}");
    let len = found.unwrap_or_else(|| panic!("{text:?} does not end"))?;
    parse(&Bytes::copy_from_slice(&text.as_bytes()[..len]))
}

#[track_caller]
fn refused(text: &str, expected: Refusal) {
    assert_eq!(read(text).expect_err(text), expected, "{text:?}");
}

#[test]
fn a_head_is_read() {
    let head = read("POST /a?b=%20c HTTP/1.1\r\nHost: a.test\r\nX-Empty:\r\nX-Blank: \t \r\nX-Padded:  v w\t \r\ncontent-length: 12\r\n\r\nrest").unwrap();
    assert_eq!((head.parts.method.as_str(), head.parts.uri.to_string().as_str()), ("POST", "/a?b=%20c"));
    assert_eq!((head.framing, head.keeps_alive, head.awaits_continue), (Framing::Length(12), true, false));
    let get = |name: &str| head.parts.headers.get(name).unwrap().as_bytes().to_vec();
    assert_eq!((get("x-empty"), get("x-blank"), get("x-padded")), (vec![], vec![], b"v w".to_vec()));
}

#[test]
fn a_connection_stays_when_both_want_it() {
    let keeps = |version: &str, fields: &str| {
        read(&format!("GET / HTTP/{version}\r\nHost: a\r\n{fields}\r\n")).unwrap().keeps_alive
    };
    assert!(keeps("1.1", ""));
    assert!(!keeps("1.1", "Connection: close\r\n"));
    assert!(!keeps("1.1", "Connection: keep-alive, Close\r\n"));
    assert!(!keeps("1.1", "Connection: close\r\nConnection: keep-alive\r\n"));
    assert!(!keeps("1.0", ""));
    assert!(keeps("1.0", "Connection: x, Keep-Alive\r\n"));
}

#[test]
fn a_body_has_one_length() {
    let framing =
        |fields: &str| read(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).map(|h| h.framing);
    assert_eq!(framing(""), Ok(Framing::None));
    assert_eq!(framing("Content-Length: 0\r\n"), Ok(Framing::None));
    assert_eq!(framing("Transfer-Encoding: Chunked\r\n"), Ok(Framing::Chunked));
    for fields in [
        "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        "Content-Length: 1\r\nContent-Length: 1\r\n",
        "Content-Length: +1\r\n",
        "Content-Length: 0x1\r\n",
        "Content-Length: 1, 1\r\n",
        "Content-Length: \r\n",
        "Content-Length: 18446744073709551616\r\n",
    ] {
        assert_eq!(framing(fields), Err(Refusal::Length), "{fields:?}");
    }
    for fields in [
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    ] {
        assert_eq!(framing(fields), Err(Refusal::Coding), "{fields:?}");
    }
    refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Refusal::Coding);
}

#[test]
fn every_byte_is_accounted_for() {
    let field = |field: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
    for text in [
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
    ] {
        refused(text, Refusal::LineEnd);
    }
    for bad in [
        "X : 1",
        "X\t: 1",
        ": 1",
        " X: 1",
        "X: 1\r\n folded",
        "X: 1\r\n\tfolded",
        "X: a\0b",
        "X: a\rb",
        "X: a\x7fb",
        "X",
        "X(: 1",
        "X: \x0b1",
    ] {
        assert!(read(&field(bad)).is_err(), "{bad:?}");
    }
    for line in [
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        " GET / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /",
        "G\u{e9}T / HTTP/1.1",
        "GET / HTTP/1.1\r",
        "GET / http/1.1",
    ] {
        assert!(read(&format!("{line}\r\nHost: a\r\n\r\n")).is_err(), "{line:?}");
    }
    for version in ["HTTP/1.2", "HTTP/2.0", "HTTP/0.9", "HTTP/1.10", "HTTP/01.1"] {
        assert!(read(&format!("GET / {version}\r\nHost: a\r\n\r\n")).is_err(), "{version:?}");
    }
}

#[test]
fn there_is_one_host() {
    refused("GET / HTTP/1.1\r\nX: 1\r\n\r\n", Refusal::Host);
    refused("GET / HTTP/1.1\r\nHost: a\r\nHOST: a\r\n\r\n", Refusal::Host);
    refused("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", Refusal::Host);
    assert!(read("GET / HTTP/1.0\r\n\r\n").is_ok());
}

#[test]
fn targets_have_one_form() {
    let line = |line: &str| read(&format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n"));
    for good in
        ["GET /", "GET /a//b?c=/?", "GET http://a.test/x", "OPTIONS *", "CONNECT a.test:443", "GET /%00"]
    {
        assert!(line(good).is_ok(), "{good:?}");
    }
    for bad in [
        "GET *",
        "GET a.test",
        "GET a.test:80",
        "GET /a#b",
        "GET /a\\b",
        "GET /\u{e9}",
        "GET ftp://a/",
        "CONNECT /",
        "CONNECT a.test",
        "CONNECT http://a:80/",
        "GET ?a",
        "GET http:///a",
        "GET /a\"b",
        "GET /<a>",
    ] {
        assert!(line(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn options_without_a_path_are_about_the_server() {
    let target = |line: &str| {
        let head = read(&format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap();
        head.parts.uri.path_and_query().unwrap().as_str().to_owned()
    };
    for whole in ["OPTIONS *", "OPTIONS http://a", "OPTIONS http://a:80", "OPTIONS https://[::1]:8"] {
        assert_eq!(target(whole), "*", "{whole}");
    }
    assert_eq!(target("OPTIONS http://a/"), "/");
    assert_eq!(target("OPTIONS http://a/a"), "/a");
    assert_eq!(target("GET http://a"), "/");
    assert!(target("OPTIONS http://a?b").ends_with("?b"));
}

#[test]
fn what_is_too_large_is_said_so() {
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(limits::HEAD_BYTES));
    refused(&long, Refusal::HeadTooLarge);
    assert_eq!(Finder::default().find(&vec![b'x'; limits::HEAD_BYTES + 1]), Err(Refusal::HeadTooLarge));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(limits::HEADERS));
    refused(&many, Refusal::HeadTooLarge);
}

#[test]
fn empty_lines_in_front_are_skipped() {
    let skip = |text: &str| {
        let mut bytes = BytesMut::from(text);
        (skip_empty_lines(&mut bytes), bytes)
    };
    assert_eq!(skip("\r\n\r\nGET"), (Ok(true), BytesMut::from("GET")));
    assert_eq!(skip("\r\n\r").0, Ok(false));
    for bad in ["\n", "\r\r", "\r\n\n"] {
        assert_eq!(skip(bad).0, Err(Refusal::LineEnd), "{bad:?}");
    }
}

#[test]
fn an_expectation_is_the_one_that_is_known() {
    assert!(
        read("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n")
            .unwrap()
            .awaits_continue
    );
    refused("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n", Refusal::Expect);
}
