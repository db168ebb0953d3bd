//! Requests as bytes, and what has to become of them.

/// What has to become of the bytes.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    /// The endpoint gets these: method, target and body.
    Taken(Vec<(String, String, String)>),
    /// The client gets this status, it counts once and under this reason, and the connection ends: nobody can tell what the
    /// bytes behind it belong to.
    Refused(u16, &'static str),
    /// The same, but the connection goes on: where the request ends is in no doubt.
    Answered(u16, &'static str),
}

#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) bytes: Vec<u8>,
    pub(crate) expected: Expected,
}

pub(crate) const SENTINEL: &str = "GET /sentinel HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

fn refused(bytes: impl AsRef<[u8]>, status: u16, reason: &'static str) -> Case {
    Case { bytes: bytes.as_ref().to_vec(), expected: Expected::Refused(status, reason) }
}

fn answered(bytes: impl AsRef<[u8]>, reason: &'static str) -> Case {
    Case { bytes: bytes.as_ref().to_vec(), expected: Expected::Answered(400, reason) }
}

fn taken(bytes: impl AsRef<[u8]>, requests: &[(&str, &str, &str)]) -> Case {
    let requests = requests.iter().map(|(m, t, b)| ((*m).to_owned(), (*t).to_owned(), (*b).to_owned()));
    Case { bytes: bytes.as_ref().to_vec(), expected: Expected::Taken(requests.collect()) }
}

/// A head with these fields behind `Host`.
fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

fn post(fields: &str, body: &str) -> String {
    format!("POST /p HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}")
}

pub(crate) fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked\r\n", body)
}

fn lines() -> Vec<Case> {
    let mut cases = Vec::new();
    for (line, reason) in [
        ("GET / HTTP/1.1 ", "line"),
        ("GET  / HTTP/1.1", "line"),
        ("GET /  HTTP/1.1", "line"),
        ("GET\t/ HTTP/1.1", "line"),
        (" GET / HTTP/1.1", "line"),
        ("GET /a b HTTP/1.1", "line"),
        ("GET HTTP/1.1", "line"),
        ("G(T / HTTP/1.1", "line"),
        ("G:T / HTTP/1.1", "line"),
        ("\"GET\" / HTTP/1.1", "line"),
        ("G\x7fT / HTTP/1.1", "line"),
        ("G\0T / HTTP/1.1", "line"),
    ] {
        cases.push(refused(format!("{line}\r\nHost: a\r\n\r\n"), 400, reason));
    }
    for version in ["HTTP/1.2", "HTTP/2.0", "HTTP/0.9", "HTTP/3.0"] {
        cases.push(refused(format!("GET / {version}\r\nHost: a\r\n\r\n"), 505, "version"));
    }
    for version in
        ["http/1.1", "HTTP/1.10", "HTTP/11", "HTTP/1,1", "HTP/1.1", "HTTP/+1.1", "HTTP/1.", "HTTP/"]
    {
        cases.push(refused(format!("GET / {version}\r\nHost: a\r\n\r\n"), 400, "line"));
    }
    for target in [
        "*",
        "a",
        "a/b",
        "?q",
        "/a#f",
        "/a\\b",
        "/a\"b",
        "/a<b",
        "/a>b",
        "/\u{e9}",
        "/\u{7f}",
        "ftp://a/",
        "ws://a/",
        "http:///a",
        "http://",
        "a:80",
        "file:///etc",
        "javascript:1",
    ] {
        cases.push(refused(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), 400, "target"));
    }
    for target in ["/%00", "/%2f", "/a%5Cb", "/a/..;/b", "/%", "/%zz", "/a/%2e%2e;x/"] {
        cases.push(answered(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), "path"));
    }
    for target in ["/", "/a/b?c=d&e=%20", "/%41", "/a;b=c", "/a//b", "/?", "/~!$&'()*+,=:@"] {
        let mut case = taken(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), &[("GET", target, "")]);
        // The form of paths is another test's matter.
        if let Expected::Taken(requests) = &mut case.expected {
            requests[0].1.clear();
        }
        cases.push(case);
    }
    cases.push(taken("GET http://a/abs HTTP/1.1\r\nHost: b\r\n\r\n", &[("GET", "/abs", "")]));
    cases.push(taken("OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", &[("OPTIONS", "*", "")]));
    cases.push(taken("OPTIONS http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", &[("OPTIONS", "/", "")]));
    cases.push(taken("GET http://a?b=c HTTP/1.1\r\nHost: a\r\n\r\n", &[("GET", "/?b=c", "")]));
    cases.push(taken("\r\n\r\nGET /late HTTP/1.1\r\nHost: a\r\n\r\n", &[("GET", "/late", "")]));
    for method in ["HEAD", "DELETE", "OPTIONS", "PUT", "PATCH", "PROPFIND", "M-SEARCH", "get"] {
        cases.push(taken(format!("{method} /m HTTP/1.1\r\nHost: a\r\n\r\n"), &[(method, "/m", "")]));
    }
    cases
}

fn line_ends() -> Vec<Case> {
    [
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "GET / HTTP/1.1\n\n",
        "GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\n\r\nhello",
    ]
    .map(|bytes| refused(bytes, 400, "line_end"))
    .into()
}

fn fields() -> Vec<Case> {
    let mut cases = Vec::new();
    // Every byte that is no part of a name, within a name.
    for byte in
        (0..=255_u8).filter(|byte| !byte.is_ascii_alphanumeric() && !b"!#$%&'*+-.^_`|~:\r\n".contains(byte))
    {
        let mut bytes = b"GET / HTTP/1.1\r\nHost: a\r\nX".to_vec();
        bytes.push(byte);
        bytes.extend_from_slice(b"Y: 1\r\n\r\n");
        cases.push(refused(bytes, 400, "field"));
    }
    // Every byte that is no part of a value, within a value.
    for byte in (0..32_u8).chain([127]).filter(|byte| !b"\t\r\n".contains(byte)) {
        let mut bytes = b"GET / HTTP/1.1\r\nHost: a\r\nX: a".to_vec();
        bytes.push(byte);
        bytes.extend_from_slice(b"b\r\n\r\n");
        cases.push(refused(bytes, 400, "field"));
    }
    for field in [
        "X : 1",
        "X\t: 1",
        ": 1",
        " X: 1",
        "\tX: 1",
        "X",
        "X: 1\r\n folded",
        "X: 1\r\n\tfolded",
        "X: 1\r\n \r\n Y: 2",
    ] {
        cases.push(refused(get(&format!("{field}\r\n")), 400, "field"));
    }
    cases.push(refused("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, "field"));
    cases.push(refused("GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400, "field"));
    for field in ["X:1", "X:  1  ", "X:", "X: \t", "X: \u{e9}", "x-y.z~!: 1"] {
        cases.push(taken(get(&format!("{field}\r\n")), &[("GET", "/", "")]));
    }
    for hosts in
        ["", "Host: a\r\nHost: a\r\n", "Host: a\r\nHost: b\r\n", "HOST: a\r\nhost: b\r\n", "X-Host: a\r\n"]
    {
        cases.push(refused(format!("GET / HTTP/1.1\r\n{hosts}\r\n"), 400, "host"));
    }
    for field in ["x_y: 1", "_: 1", "Content_Length: 5", "Transfer_Encoding: chunked"] {
        cases.push(answered(get(&format!("{field}\r\n")), "underscore"));
    }
    for host in ["u@a", "a:b", "a:80:80", "a, b", "a/b", "[::1", "a\\b"] {
        cases.push(answered(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), "host"));
    }
    cases.push(refused(get("Expect: 200-ok\r\n"), 417, "expect"));
    cases.push(refused(get(&format!("X: {}\r\n", "x".repeat(33_000))), 431, "head_too_large"));
    cases.push(refused(get(&"X: 1\r\n".repeat(100)), 431, "head_too_large"));
    cases
}

fn lengths() -> Vec<Case> {
    let mut cases = Vec::new();
    for length in [
        "+5",
        "-5",
        "0x5",
        "5,5",
        "5, 5",
        "5 5",
        "",
        " ",
        "5;",
        "five",
        "5.0",
        "5e0",
        "\"5\"",
        "\u{b2}",
        "99999999999999999999",
        "18446744073709551616",
        "_5",
        "05,",
    ] {
        cases.push(refused(post(&format!("Content-Length: {length}\r\n"), "hello"), 400, "length"));
    }
    for fields in [
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 0\r\nContent-Length: 5\r\n",
        "content-length: 5\r\nCONTENT-LENGTH: 5\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\nX: 1\r\nContent-Length: 0\r\n",
    ] {
        cases.push(refused(post(fields, "0\r\n\r\n"), 400, "length"));
    }
    for coding in [
        "gzip, chunked",
        "chunked, gzip",
        "chunked, chunked",
        "identity",
        "gzip",
        "chunked;q=1",
        "xchunked",
        "chunked,",
        ",chunked",
        "\"chunked\"",
        "",
        "chunk",
        "chunked identity",
        "identity, chunked",
        "cow",
        "\u{b}chunked2",
    ] {
        let reason = if coding.starts_with('\u{b}') { "field" } else { "coding" };
        cases.push(refused(post(&format!("Transfer-Encoding: {coding}\r\n"), "0\r\n\r\n"), 400, reason));
    }
    cases
}

fn codings() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.push(refused(
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        400,
        "coding",
    ));
    cases.push(refused(
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n", "0\r\n\r\n"),
        400,
        "coding",
    ));
    cases.push(refused(
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "coding",
    ));
    for (fields, body) in [
        ("Content-Length: 5\r\n", "hello"),
        ("Content-Length: 005\r\n", "hello"),
        ("Content-Length:\t5 \r\n", "hello"),
        ("Content-Length: 0\r\n", ""),
        ("", ""),
        ("content-length: 36\r\n", "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n\0"),
        ("Content-Length: 5\r\nExpect: 100-continue\r\n", "hello"),
    ] {
        cases.push(taken(post(fields, body), &[("POST", "/p", body)]));
    }
    for method in ["GET", "DELETE", "PUT"] {
        let bytes = format!("{method} /b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        cases.push(taken(bytes, &[(method, "/b", "hi")]));
        let bytes = format!(
            "{method} /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
        );
        cases.push(taken(bytes, &[(method, "/c", "hi")]));
    }
    cases
}

fn chunks() -> Vec<Case> {
    let mut cases = Vec::new();
    for (body, whole) in [
        ("0\r\n\r\n", ""),
        ("5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "hello"),
        ("005\r\nhello\r\n000\r\n\r\n", "hello"),
        ("A\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        ("a\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        ("5;x\r\nhello\r\n0\r\n\r\n", "hello"),
        ("5;x=y;z=\"w\"\r\nhello\r\n0;last\r\n\r\n", "hello"),
        ("5 ;x\r\nhello\r\n0\r\n\r\n", "hello"),
        ("5\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n", "hello"),
        ("7\r\n0\r\n\r\nGE\r\n0\r\n\r\n", "0\r\n\r\nGE"),
    ] {
        cases.push(taken(chunked(body), &[("POST", "/p", whole)]));
        let transfer = post("TRANSFER-ENCODING:  Chunked \r\n", body);
        cases.push(taken(transfer, &[("POST", "/p", whole)]));
    }
    cases
}

fn pipelines() -> Vec<Case> {
    let two = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
    let many = (0..20).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect::<Vec<_>>().concat();
    let targets: Vec<String> = (0..20).map(|n| format!("/{n}")).collect();
    let each: Vec<(&str, &str, &str)> = targets.iter().map(|target| ("GET", target.as_str(), "")).collect();
    vec![
        taken(two, &[("GET", "/1", ""), ("POST", "/2", "hi")]),
        taken(many, &each),
        taken(format!("{}\r\n{}", get(""), get("")), &[("GET", "/", ""), ("GET", "/", "")]),
    ]
}

pub(crate) fn corpus() -> Vec<Case> {
    [lines(), line_ends(), fields(), lengths(), codings(), chunks(), pipelines()]
        .into_iter()
        .flatten()
        .collect()
}

/// Bodies in chunks that are none, and the reason that each counts under.
pub(crate) fn malformed() -> Vec<(&'static str, &'static str)> {
    vec![
        ("x\r\n", "chunk"),
        ("\r\n", "chunk"),
        ("-1\r\na\r\n", "chunk"),
        ("0x2\r\nab\r\n", "chunk"),
        (" 2\r\nab\r\n", "chunk"),
        ("2 \r\nab\r\n", "chunk"),
        ("2\r\nabc\r\n", "chunk"),
        ("2\nab\r\n", "line_end"),
        ("2\r\nab\n0\r\n\r\n", "chunk"),
        ("2;a\rb\r\nab\r\n", "chunk"),
        ("0000000000000002\r\nab\r\n", "chunk"),
        ("fffffffffffffffff\r\n", "chunk"),
        ("ffffffffffffffff\r\n", "chunk"),
        ("1g\r\n", "chunk"),
        ("2,\r\nab\r\n", "chunk"),
        ("+2\r\nab\r\n", "chunk"),
        ("0\r\nX : 1\r\n\r\n", "field"),
        ("0\r\nX: 1\n\r\n", "line_end"),
        ("0\r\nContent-Length: 5\r\n\r\n", "field"),
        ("0\r\nTransfer-Encoding: chunked\r\n\r\n", "field"),
        ("0\r\nHost: b\r\n\r\n", "field"),
        ("0\r\n X: 1\r\n\r\n", "field"),
        ("0\n\r\n", "line_end"),
        ("0\r\n\n", "line_end"),
    ]
}
