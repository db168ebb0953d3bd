//! The cases, as data: what a client sends behind its preface, and what RFC 9113 (HTTP/2) and RFC 7541 (HPACK) let a server
//! make of it.

use crate::{
    Allowed::{self, Alive, Any, Connection, Malformed, Served, Stream},
    support::frames::{
        ACK, COMPRESSION, CONTINUATION, DATA, END_HEADERS, END_STREAM, FLOW_CONTROL, FRAME_SIZE, GET, GOAWAY,
        HEADERS, PADDED, PING, POST, PRIORITIZED, PRIORITY, PROTOCOL, PUSH_PROMISE, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, block, field, frame, get, integer, ping, post, reset, settings, string, window,
    },
};

/// One case.
pub(crate) struct Case {
    pub(crate) section: &'static str,
    pub(crate) name: &'static str,
    /// Sent behind preface and settings; where `is_raw`, behind the preface alone.
    pub(crate) bytes: Vec<u8>,
    pub(crate) is_raw: bool,
    pub(crate) allowed: Allowed,
}

fn case(section: &'static str, name: &'static str, bytes: impl Into<Vec<u8>>, allowed: Allowed) -> Case {
    Case { section, name, bytes: bytes.into(), is_raw: false, allowed }
}

fn raw(section: &'static str, name: &'static str, bytes: Vec<u8>, allowed: Allowed) -> Case {
    Case { is_raw: true, ..case(section, name, bytes, allowed) }
}

/// A request whose head ends it, with these fields behind the pseudo-fields.
fn with(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, block(&[&GET[..], fields].concat()))
}

/// A request whose head is this.
fn head(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, block(fields))
}

/// A request with these bytes behind its fields, or in front of them.
fn behind(bytes: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, [&block(&GET)[..], bytes].concat())
}

fn before(bytes: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, [bytes, &block(&GET)[..]].concat())
}

/// A head that does not end, and what follows it.
fn open_head(next: &[u8]) -> Vec<u8> {
    [&frame(HEADERS, END_STREAM, 1, block(&GET))[..], next].concat()
}

fn data(flags: u8, payload: &[u8]) -> Vec<u8> {
    frame(DATA, flags, 1, payload)
}

fn upload(next: &[Vec<u8>]) -> Vec<u8> {
    [post(1), next.concat()].concat()
}

/// A request that is reset, and what follows it.
fn after_reset(next: &[u8]) -> Vec<u8> {
    [&post(1)[..], &reset(1), next].concat()
}

const CLOSED: Allowed = Any(&["reset:5", "goaway:5", "goaway:1", "closed"]);
/// A frame on a stream that was reset may be on its way when the reset arrives (RFC 9113, section 5.1).
const LATE: Allowed = Any(&["reset:5", "goaway:5", "goaway:1", "alive", "closed"]);
/// Priorities are out of use (RFC 9113, section 5.3).
const PRIORITIES: Allowed = Any(&["reset:1", "goaway:1", "closed", "alive", "status:200"]);

pub(crate) fn all() -> Vec<Case> {
    [
        preface(),
        frames(),
        setting(),
        pings(),
        windows(),
        resets(),
        priorities(),
        farewells(),
        bodies(),
        heads(),
        continuations(),
        streams(),
        fields(),
        pseudo_fields(),
        lengths(),
        tables(),
        literals(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn preface() -> Vec<Case> {
    vec![
        raw("3.4", "settings are first", settings(&[]), Alive),
        raw("3.4", "a ping is first", ping(), Connection(PROTOCOL)),
        raw("3.4", "a request is first", get(1), Connection(PROTOCOL)),
        raw(
            "3.4",
            "an acknowledgment is first",
            frame(SETTINGS, ACK, 0, []),
            Any(&["goaway:1", "closed", "alive"]),
        ),
        raw("3.4", "a request with the settings", [settings(&[]), get(1)].concat(), Served),
    ]
}

fn frames() -> Vec<Case> {
    let large = vec![0; 16_385];
    vec![
        case("4.1", "an unknown type, for the connection", frame(99, 0, 0, [1, 2, 3]), Alive),
        case("4.1", "an unknown type, for an idle stream", frame(99, 0xff, 7, [0; 100]), Alive),
        case("4.1", "an unknown type without payload", frame(0xff, 0, 0, []), Alive),
        case("4.1", "the reserved bit", frame(PING, 0, 0x8000_0000, [0; 8]), Alive),
        case("4.1", "unknown flags of PING", frame(PING, 0xfe, 0, [0; 8]), Alive),
        case(
            "4.1",
            "unknown flags of HEADERS",
            frame(HEADERS, END_STREAM | END_HEADERS | 0x52, 1, block(&GET)),
            Served,
        ),
        case(
            "4.2",
            "DATA beyond the largest frame",
            upload(&[data(0, &large)]),
            Any(&["goaway:6", "reset:6", "closed"]),
        ),
        case(
            "4.2",
            "HEADERS beyond the largest frame",
            frame(HEADERS, END_HEADERS, 1, &large),
            Connection(FRAME_SIZE),
        ),
        case(
            "4.2",
            "CONTINUATION beyond the largest frame",
            open_head(&frame(CONTINUATION, END_HEADERS, 1, &large)),
            Connection(FRAME_SIZE),
        ),
        case("4.2", "DATA as large as allowed", upload(&[data(END_STREAM, &[0; 16_384])]), Served),
        case(
            "4.2",
            "an unknown type beyond the largest frame",
            frame(99, 0, 0, &large),
            Any(&["goaway:6", "closed", "alive"]),
        ),
    ]
}

fn setting() -> Vec<Case> {
    let one = |id, value| settings(&[(id, value)]);
    vec![
        case("6.5", "none", settings(&[]), Alive),
        case(
            "6.5",
            "an acknowledgment with payload",
            frame(SETTINGS, ACK, 0, [0; 6]),
            Connection(FRAME_SIZE),
        ),
        case("6.5", "for a stream", frame(SETTINGS, 0, 1, []), Connection(PROTOCOL)),
        case("6.5", "5 bytes", frame(SETTINGS, 0, 0, [0; 5]), Connection(FRAME_SIZE)),
        case("6.5", "7 bytes", frame(SETTINGS, 0, 0, [0; 7]), Connection(FRAME_SIZE)),
        case(
            "6.5",
            "an acknowledgment of nothing",
            frame(SETTINGS, ACK, 0, []),
            Any(&["alive", "goaway:1", "closed"]),
        ),
        case("6.5.2", "ENABLE_PUSH 0", one(2, 0), Alive),
        case("6.5.2", "ENABLE_PUSH 1", one(2, 1), Alive),
        case("6.5.2", "ENABLE_PUSH 2", one(2, 2), Connection(PROTOCOL)),
        case("6.5.2", "INITIAL_WINDOW_SIZE 2^31-1", one(4, 0x7fff_ffff), Alive),
        case("6.5.2", "INITIAL_WINDOW_SIZE 2^31", one(4, 0x8000_0000), Connection(FLOW_CONTROL)),
        case("6.5.2", "MAX_FRAME_SIZE 16383", one(5, 16_383), Connection(PROTOCOL)),
        case("6.5.2", "MAX_FRAME_SIZE 16384", one(5, 16_384), Alive),
        case("6.5.2", "MAX_FRAME_SIZE 2^24-1", one(5, 0xff_ffff), Alive),
        case("6.5.2", "MAX_FRAME_SIZE 2^24", one(5, 0x100_0000), Connection(PROTOCOL)),
        case("6.5.2", "an unknown one", one(0xfff, 7), Alive),
        case("6.5.2", "HEADER_TABLE_SIZE 0", [one(1, 0), get(1)].concat(), Served),
        case("6.5.2", "HEADER_TABLE_SIZE 2^32-1", [one(1, u32::MAX), get(1)].concat(), Served),
        case("6.5.2", "MAX_CONCURRENT_STREAMS 0", [one(3, 0), get(1)].concat(), Served),
        case("6.5.2", "MAX_HEADER_LIST_SIZE 2^32-1", [one(6, u32::MAX), get(1)].concat(), Served),
        case("6.5.3", "one of them twice", [settings(&[(4, 0), (4, 65_535)]), get(1)].concat(), Served),
        case("8441.3", "ENABLE_CONNECT_PROTOCOL of a client", one(8, 1), Alive),
    ]
}

fn pings() -> Vec<Case> {
    vec![
        case("6.7", "one", ping(), Alive),
        case("6.7", "for a stream", frame(PING, 0, 1, [0; 8]), Connection(PROTOCOL)),
        case("6.7", "7 bytes", frame(PING, 0, 0, [0; 7]), Connection(FRAME_SIZE)),
        case("6.7", "9 bytes", frame(PING, 0, 0, [0; 9]), Connection(FRAME_SIZE)),
        case("6.7", "an answer to none", frame(PING, ACK, 0, [9; 8]), Alive),
    ]
}

fn windows() -> Vec<Case> {
    vec![
        case("6.9", "by 1 for the connection", window(0, 1), Alive),
        case("6.9", "by 0 for the connection", window(0, 0), Connection(PROTOCOL)),
        case("6.9", "by 0 for a stream", upload(&[window(1, 0)]), Stream(PROTOCOL)),
        case("6.9", "3 bytes", frame(WINDOW_UPDATE, 0, 0, [0; 3]), Connection(FRAME_SIZE)),
        case("6.9", "5 bytes", frame(WINDOW_UPDATE, 0, 0, [1; 5]), Connection(FRAME_SIZE)),
        case("6.9", "the reserved bit", window(0, 0x8000_0001), Alive),
        case("6.9", "for an idle stream", window(1, 1), Connection(PROTOCOL)),
        case("6.9", "for a stream whose request has ended", [get(1), window(1, 1)].concat(), Served),
        case("6.9", "for a stream that was reset", after_reset(&window(1, 1)), Alive),
        case(
            "6.9.1",
            "more than 2^31-1 for the connection",
            [window(0, 0x7fff_ffff), window(0, 1)].concat(),
            Connection(FLOW_CONTROL),
        ),
        case(
            "6.9.1",
            "more than 2^31-1 for a stream",
            upload(&[window(1, 0x7fff_ffff), window(1, 1)]),
            Stream(FLOW_CONTROL),
        ),
        case(
            "6.9.2",
            "a first window that makes another one too large",
            upload(&[window(1, 0x7fff_0000), settings(&[(4, 0x7fff_ffff)])]),
            Connection(FLOW_CONTROL),
        ),
        case(
            "6.9.2",
            "none at first, and then one",
            [settings(&[(4, 0)]), get(1), window(1, 1_000)].concat(),
            Served,
        ),
    ]
}

fn resets() -> Vec<Case> {
    vec![
        case("6.4", "for the connection", reset(0), Connection(PROTOCOL)),
        case("6.4", "of an idle stream", reset(1), Connection(PROTOCOL)),
        case("6.4", "3 bytes", upload(&[frame(RST_STREAM, 0, 1, [0; 3])]), Connection(FRAME_SIZE)),
        case("6.4", "5 bytes", upload(&[frame(RST_STREAM, 0, 1, [0; 5])]), Connection(FRAME_SIZE)),
        case("6.4", "of an open stream", after_reset(&[]), Alive),
        case("6.4", "twice", after_reset(&reset(1)), Alive),
        case(
            "6.4",
            "with an unknown code",
            upload(&[frame(RST_STREAM, 0, 1, 0xdead_beef_u32.to_be_bytes())]),
            Alive,
        ),
        case("5.1", "DATA behind it", after_reset(&data(END_STREAM, b"x")), LATE),
        case("5.1", "HEADERS behind it", after_reset(&post(1)), LATE),
        case(
            "5.1",
            "CONTINUATION behind it",
            after_reset(&frame(CONTINUATION, END_HEADERS, 1, [])),
            Connection(PROTOCOL),
        ),
        case("5.1", "PRIORITY behind it", after_reset(&frame(PRIORITY, 0, 1, [0, 0, 0, 0, 16])), Alive),
    ]
}

fn priorities() -> Vec<Case> {
    let priority = |stream, payload: &[u8]| frame(PRIORITY, 0, stream, payload);
    let prioritized = |on: u32| {
        let payload = [&on.to_be_bytes()[..], &[15], &block(&GET)].concat();
        frame(HEADERS, END_STREAM | END_HEADERS | PRIORITIZED, 1, payload)
    };
    vec![
        case("6.3", "for the connection", priority(0, &[0, 0, 0, 1, 15]), Connection(PROTOCOL)),
        case("6.3", "4 bytes", priority(1, &[0; 4]), Stream(FRAME_SIZE)),
        case("6.3", "6 bytes", priority(1, &[0; 6]), Stream(FRAME_SIZE)),
        case("6.3", "of an idle stream", priority(7, &[0, 0, 0, 0, 15]), Alive),
        case("6.3", "on itself", priority(1, &[0, 0, 0, 1, 15]), PRIORITIES),
        case("6.3", "with HEADERS", prioritized(0), Served),
        case("6.3", "with HEADERS, on itself", prioritized(1), PRIORITIES),
        case("6.3", "with HEADERS, exclusive", prioritized(0x8000_0000), Served),
    ]
}

fn farewells() -> Vec<Case> {
    let goodbye = |last: u32, code: u32| [last.to_be_bytes(), code.to_be_bytes()].concat();
    vec![
        case("6.8", "for a stream", frame(GOAWAY, 0, 1, goodbye(0, 0)), Connection(PROTOCOL)),
        case("6.8", "7 bytes", frame(GOAWAY, 0, 0, [0; 7]), Connection(FRAME_SIZE)),
        case("6.8", "without an error", frame(GOAWAY, 0, 0, goodbye(0, 0)), Any(&["alive", "closed"])),
        case(
            "6.8",
            "with a text",
            frame(GOAWAY, 0, 0, [goodbye(0, 2), b"text".to_vec()].concat()),
            Any(&["alive", "closed"]),
        ),
        case(
            "6.8",
            "with a request under way",
            [get(1), frame(GOAWAY, 0, 0, goodbye(0, 0))].concat(),
            Served,
        ),
    ]
}

fn bodies() -> Vec<Case> {
    let ended = END_STREAM | PADDED;
    vec![
        case("6.1", "for the connection", frame(DATA, 0, 0, b"x"), Connection(PROTOCOL)),
        case("6.1", "of an idle stream", data(END_STREAM, b"x"), Connection(PROTOCOL)),
        case("6.1", "empty at the end", upload(&[data(END_STREAM, b"")]), Served),
        case("6.1", "empty in the middle", upload(&[data(0, b""), data(END_STREAM, b"x")]), Served),
        case("6.1", "padded", upload(&[data(ended, &[2, b'x', 0, 0])]), Served),
        case("6.1", "padded by nothing", upload(&[data(ended, &[0, b'x'])]), Served),
        case("6.1", "padding only", upload(&[data(ended, &[3, 0, 0, 0])]), Served),
        case(
            "6.1",
            "as much padding as payload",
            upload(&[data(ended, &[4, 0, 0, 0])]),
            Connection(PROTOCOL),
        ),
        case(
            "6.1",
            "more padding than payload",
            upload(&[data(ended, &[200, 0, 0, 0])]),
            Connection(PROTOCOL),
        ),
        case(
            "6.1",
            "padded without a length",
            upload(&[data(ended, &[])]),
            Any(&["goaway:1", "goaway:6", "closed"]),
        ),
        case("5.1", "behind the end of the request", [get(1), data(END_STREAM, b"x")].concat(), CLOSED),
        case(
            "5.1",
            "behind the end of the body",
            upload(&[data(END_STREAM, b"x"), data(END_STREAM, b"y")]),
            CLOSED,
        ),
        case("5.1.1", "of a stream of the server", frame(DATA, END_STREAM, 2, b"x"), Connection(PROTOCOL)),
    ]
}

fn heads() -> Vec<Case> {
    let ended = END_STREAM | END_HEADERS;
    let padded = |n: u8, padding: usize| {
        frame(HEADERS, ended | PADDED, 1, [&[n][..], &block(&GET), &vec![0; padding]].concat())
    };
    let both = [&[2, 0, 0, 0, 0, 15][..], &block(&GET), &[0, 0]].concat();
    vec![
        case("6.2", "for the connection", frame(HEADERS, ended, 0, block(&GET)), Connection(PROTOCOL)),
        case("6.2", "padded", padded(3, 3), Served),
        case("6.2", "padded by nothing", padded(0, 0), Served),
        case("6.2", "more padding than payload", padded(255, 0), Connection(PROTOCOL)),
        case("6.2", "padded and prioritized", frame(HEADERS, ended | PADDED | PRIORITIZED, 1, both), Served),
        case(
            "6.2",
            "prioritized without room for it",
            frame(HEADERS, ended | PRIORITIZED, 1, [0; 4]),
            Any(&["goaway:6", "goaway:1", "closed"]),
        ),
        case(
            "6.6",
            "a promise of a client",
            [get(1), frame(PUSH_PROMISE, END_HEADERS, 1, [&[0, 0, 0, 2][..], &block(&GET)].concat())]
                .concat(),
            Connection(PROTOCOL),
        ),
        case(
            "6.6",
            "a promise for the connection",
            frame(PUSH_PROMISE, END_HEADERS, 0, [0, 0, 0, 2]),
            Connection(PROTOCOL),
        ),
    ]
}

fn continuations() -> Vec<Case> {
    let all = block(&GET);
    let (first, second) = all.split_at(10);
    let (second, third) = second.split_at(10);
    let part = |flags, bytes: &[u8]| frame(CONTINUATION, flags, 1, bytes);
    let begin = |bytes: &[u8]| frame(HEADERS, END_STREAM, 1, bytes);
    vec![
        case("6.10", "one", [begin(first), part(END_HEADERS, &[second, third].concat())].concat(), Served),
        case("6.10", "two", [begin(first), part(0, second), part(END_HEADERS, third)].concat(), Served),
        case("6.10", "an empty one", open_head(&part(END_HEADERS, &[])), Served),
        case("6.10", "behind empty HEADERS", [begin(&[]), part(END_HEADERS, &all)].concat(), Served),
        case(
            "6.10",
            "for the connection",
            open_head(&frame(CONTINUATION, END_HEADERS, 0, [])),
            Connection(PROTOCOL),
        ),
        case(
            "6.10",
            "for another stream",
            open_head(&frame(CONTINUATION, END_HEADERS, 3, [])),
            Connection(PROTOCOL),
        ),
        case("6.10", "of nothing", part(END_HEADERS, &all), Connection(PROTOCOL)),
        case(
            "6.10",
            "behind the end of the head",
            [post(1), part(END_HEADERS, &[])].concat(),
            Connection(PROTOCOL),
        ),
        case("6.10", "behind DATA", upload(&[data(0, b"x"), part(END_HEADERS, &[])]), Connection(PROTOCOL)),
        case("6.2", "HEADERS within a head", open_head(&get(3)), Connection(PROTOCOL)),
        case("6.2", "DATA within a head", open_head(&data(END_STREAM, b"x")), Connection(PROTOCOL)),
        case("6.2", "PING within a head", open_head(&ping()), Connection(PROTOCOL)),
        case("6.2", "SETTINGS within a head", open_head(&settings(&[])), Connection(PROTOCOL)),
        case("6.2", "WINDOW_UPDATE within a head", open_head(&window(0, 1)), Connection(PROTOCOL)),
        case(
            "6.2",
            "PRIORITY within a head",
            open_head(&frame(PRIORITY, 0, 1, [0, 0, 0, 0, 1])),
            Connection(PROTOCOL),
        ),
        case("6.2", "RST_STREAM within a head", open_head(&reset(1)), Connection(PROTOCOL)),
        case("5.5", "an unknown type within a head", open_head(&frame(99, 0, 1, [])), Connection(PROTOCOL)),
    ]
}

fn streams() -> Vec<Case> {
    let trailers = |flags, fields: &[(&str, &str)]| frame(HEADERS, flags | END_HEADERS, 1, block(fields));
    vec![
        case("5.1.1", "a stream of the server", get(2), Connection(PROTOCOL)),
        case("5.1.1", "numbers that are left out", [get(101), get(1_001)].concat(), Served),
        case(
            "5.1.1",
            "a number below the last one",
            [get(5), get(3)].concat(),
            Any(&["goaway:1", "goaway:5", "closed"]),
        ),
        case("5.1.1", "a number again", [get(1), get(1)].concat(), CLOSED),
        case("5.1.1", "the largest number", get(0x7fff_ffff), Served),
        case("8.1", "trailers", upload(&[data(0, b"x"), trailers(END_STREAM, &[("x-sum", "1")])]), Served),
        case("8.1", "trailers without data", upload(&[trailers(END_STREAM, &[("x-sum", "1")])]), Served),
        case(
            "8.1",
            "trailers that do not end the request",
            upload(&[data(0, b"x"), trailers(0, &[("x-sum", "1")])]),
            Stream(PROTOCOL),
        ),
        case(
            "8.1",
            "trailers with a pseudo-field",
            upload(&[data(0, b"x"), trailers(END_STREAM, &[(":path", "/")])]),
            Malformed,
        ),
        case(
            "8.1",
            "trailers with a pseudo-field of the static table",
            upload(&[data(0, b"x"), frame(HEADERS, END_STREAM | END_HEADERS, 1, [0x84])]),
            Malformed,
        ),
        case(
            "8.1",
            "trailers with a pseudo-field that the head has stored",
            [
                // A name of the static table with a value of its own, to be stored (RFC 7541, section 6.2.1).
                frame(
                    HEADERS,
                    END_HEADERS,
                    1,
                    [&block(&[POST[0], POST[1], POST[3]])[..], &[0x44], &string(b"/stored")].concat(),
                ),
                data(0, b"x"),
                frame(HEADERS, END_STREAM | END_HEADERS, 1, [0xbe]),
            ]
            .concat(),
            Malformed,
        ),
        case(
            "8.1",
            "DATA behind trailers",
            upload(&[trailers(END_STREAM, &[("x-sum", "1")]), data(END_STREAM, b"x")]),
            CLOSED,
        ),
        case("5.1", "HEADERS behind the end of the request", [get(1), post(1)].concat(), CLOSED),
    ]
}

fn fields() -> Vec<Case> {
    let name = |name: &[u8]| behind(&field(name, b"1"));
    let value = |value: &[u8]| behind(&field(b"x-a", value));
    vec![
        case("8.2.1", "a name in upper case", name(b"X-Upper"), Malformed),
        case("8.2.1", "an empty name", name(b""), Malformed),
        case("8.2.1", "a name with a space", name(b"x a"), Malformed),
        case("8.2.1", "a name with a colon in it", name(b"x:a"), Malformed),
        case("8.2.1", "a name beyond ASCII", name(b"x-\xe9"), Malformed),
        case("8.2.1", "a name with a line end", name(b"x\r\na"), Malformed),
        case("8.2.1", "a value with a line feed", value(b"1\n2"), Malformed),
        case("8.2.1", "a value with a carriage return", value(b"1\r2"), Malformed),
        case("8.2.1", "a value with a zero byte", value(b"1\x002"), Malformed),
        case("8.2.1", "a value that begins with a space", value(b" 1"), Malformed),
        case("8.2.1", "a value that ends with a tab", value(b"1\t"), Malformed),
        case("8.2.1", "an empty value", value(b""), Served),
        case("8.2.1", "a value beyond ASCII", value(b"\xc3\xa9"), Any(&["status:200", "status:400"])),
        case("8.2.2", "connection", with(&[("connection", "close")]), Malformed),
        case("8.2.2", "keep-alive", with(&[("keep-alive", "1")]), Malformed),
        case("8.2.2", "proxy-connection", with(&[("proxy-connection", "close")]), Malformed),
        case("8.2.2", "transfer-encoding", with(&[("transfer-encoding", "chunked")]), Malformed),
        case("8.2.2", "upgrade", with(&[("upgrade", "h2c")]), Malformed),
        case("8.2.2", "te: gzip", with(&[("te", "gzip")]), Malformed),
        case("8.2.2", "te: trailers", with(&[("te", "trailers")]), Served),
        case("8.2.3", "cookies in pieces", with(&[("cookie", "a=1"), ("cookie", "b=2")]), Served),
    ]
}

fn pseudo_fields() -> Vec<Case> {
    const METHOD: (&str, &str) = GET[0];
    const SCHEME: (&str, &str) = GET[1];
    const PATH: (&str, &str) = GET[2];
    const AUTHORITY: (&str, &str) = GET[3];
    let path = |path| head(&[METHOD, SCHEME, (":path", path), AUTHORITY]);
    let method = |method| head(&[(":method", method), SCHEME, PATH, AUTHORITY]);
    let connect = |more: &[(&str, &str)]| head(&[&[(":method", "CONNECT")][..], more].concat());
    vec![
        case("8.3", "an unknown one", with(&[(":x", "1")]), Malformed),
        case("8.3", "one of responses", with(&[(":status", "200")]), Malformed),
        case("8.3", "behind a field", head(&[METHOD, SCHEME, ("x-a", "1"), PATH, AUTHORITY]), Malformed),
        case("8.3.1", "no :method", head(&[SCHEME, PATH, AUTHORITY]), Malformed),
        case("8.3.1", "no :scheme", head(&[METHOD, PATH, AUTHORITY]), Malformed),
        case("8.3.1", "no :path", head(&[METHOD, SCHEME, AUTHORITY]), Malformed),
        case("8.3.1", "none at all", head(&[("x-a", "1")]), Malformed),
        case("8.3.1", "two of :method", head(&[METHOD, METHOD, SCHEME, PATH, AUTHORITY]), Malformed),
        case("8.3.1", "two of :scheme", head(&[METHOD, SCHEME, SCHEME, PATH, AUTHORITY]), Malformed),
        case("8.3.1", "two of :path", head(&[METHOD, SCHEME, PATH, PATH, AUTHORITY]), Malformed),
        case("8.3.1", "two of :authority", head(&[METHOD, SCHEME, PATH, AUTHORITY, AUTHORITY]), Malformed),
        case("8.3.1", "an empty :path", path(""), Malformed),
        case("8.3.1", "a :path without a slash", path("a"), Malformed),
        case("8.3.1", "a :path with a space", path("/a b"), Malformed),
        case(
            "8.3.1",
            "a :path with a fragment",
            path("/a#b"),
            Any(&["reset:1", "goaway:1", "closed", "status:400", "status:200"]),
        ),
        case("8.3.1", "a :path with a query", path("/a?b"), Served),
        case("8.3.1", "* for GET", path("*"), Malformed),
        case(
            "8.3.1",
            "* for OPTIONS",
            head(&[(":method", "OPTIONS"), SCHEME, (":path", "*"), AUTHORITY]),
            Any(&["status:200", "status:404", "status:405"]),
        ),
        case("8.3.1", "a method with a space", method("G T"), Malformed),
        case("8.3.1", "an empty method", method(""), Malformed),
        case(
            "8.3.1",
            "a method in lower case",
            method("get"),
            Any(&["status:200", "status:400", "status:405", "status:501"]),
        ),
        case("8.3.1", "HEAD", method("HEAD"), Served),
        case("8.3.1", "a host beside the same :authority", with(&[("host", "a")]), Served),
        case("8.3.1", "a host beside another :authority", with(&[("host", "b")]), Malformed),
        case("8.3.1", "a host and no :authority", head(&[METHOD, SCHEME, PATH, ("host", "a")]), Served),
        case("8.3.1", "user information", head(&[METHOD, SCHEME, PATH, (":authority", "u@a")]), Malformed),
        case("8.5", "CONNECT with :scheme and :path", connect(&[SCHEME, PATH, AUTHORITY]), Malformed),
        case("8.5", "CONNECT without :authority", connect(&[]), Malformed),
        case(
            "8.5",
            "CONNECT that nobody allows",
            connect(&[(":authority", "a:1")]),
            Any(&["status:501", "status:405", "status:400", "reset:1", "reset:10", "reset:7"]),
        ),
        case("8441.4", ":protocol without CONNECT", with(&[(":protocol", "websocket")]), Malformed),
    ]
}

fn lengths() -> Vec<Case> {
    let said = |length: &str| {
        frame(HEADERS, END_HEADERS, 1, block(&[&POST[..], &[("content-length", length)]].concat()))
    };
    let sent = |length: &str, pieces: &[&[u8]]| {
        let (last, first) = pieces.split_last().unwrap();
        let first: Vec<u8> = first.iter().flat_map(|piece| data(0, piece)).collect();
        [said(length), first, data(END_STREAM, last)].concat()
    };
    let twice = |first: &str, second: &str| {
        let lengths = [("content-length", first), ("content-length", second)];
        let head = frame(HEADERS, END_HEADERS, 1, block(&[&POST[..], &lengths].concat()));
        [head, data(END_STREAM, b"abc")].concat()
    };
    vec![
        case("8.1.1", "as much as was said", sent("3", &[b"abc"]), Served),
        case("8.1.1", "as much as was said, in pieces", sent("3", &[b"a", b"", b"bc"]), Served),
        case("8.1.1", "less than was said", sent("4", &[b"abc"]), Malformed),
        case("8.1.1", "more than was said", sent("2", &[b"abc"]), Malformed),
        case("8.1.1", "more than was said, in pieces", sent("2", &[b"a", b"bc"]), Malformed),
        case("8.1.1", "nothing though something was said", with(&[("content-length", "1")]), Malformed),
        case("8.1.1", "a length that is no number", sent("x", &[b"abc"]), Malformed),
        case("8.1.1", "a length with a sign", sent("+3", &[b"abc"]), Malformed),
        case("8.1.1", "an empty length", with(&[("content-length", "")]), Malformed),
        case("8.1.1", "an empty length, and no data", sent("", &[b""]), Malformed),
        case(
            "8.1.1",
            "an empty length, and trailers",
            [said(""), frame(HEADERS, END_STREAM | END_HEADERS, 1, block(&[("x-a", "b")]))].concat(),
            Malformed,
        ),
        case("8.1.1", "two lengths", twice("3", "4"), Malformed),
        case("8.1.1", "the same length twice", twice("3", "3"), Malformed),
    ]
}

fn tables() -> Vec<Case> {
    let size = |size| integer(0x20, 5, size);
    let indexed = |idx| integer(0x80, 7, idx);
    // A literal that is indexed, with a name of its own.
    let stored = [&[0x40][..], &string(b"x-a"), &string(b"1")].concat();
    vec![
        case("7541-2.3.3", "index 0", behind(&indexed(0)), Connection(COMPRESSION)),
        case("7541-2.3.3", "an index beyond both tables", behind(&indexed(62)), Connection(COMPRESSION)),
        case(
            "7541-2.3.3",
            "an index far beyond both tables",
            behind(&indexed(100_000)),
            Connection(COMPRESSION),
        ),
        case("7541-6.1", "an index of the static table", behind(&indexed(16)), Served),
        case(
            "7541-2.3.2",
            "an index of what was stored",
            behind(&[stored.clone(), indexed(62)].concat()),
            Served,
        ),
        case(
            "7541-2.3.2",
            "an index of what an earlier request stored",
            [
                behind(&stored),
                frame(HEADERS, END_STREAM | END_HEADERS, 3, [block(&GET), indexed(62)].concat()),
            ]
            .concat(),
            Served,
        ),
        case(
            "7541-6.2",
            "a name beyond both tables",
            behind(&[integer(0x40, 6, 63), string(b"1")].concat()),
            Connection(COMPRESSION),
        ),
        case(
            "7541-4.2",
            "a table of no size, then an index of what was stored",
            [
                behind(&stored),
                frame(HEADERS, END_STREAM | END_HEADERS, 3, [size(0), block(&GET), indexed(62)].concat()),
            ]
            .concat(),
            Connection(COMPRESSION),
        ),
        case(
            "7541-4.4",
            "a field that is larger than the table",
            behind(&[&[0x40][..], &string(b"x-a"), &string(&[b'1'; 5_000])].concat()),
            Served,
        ),
        case("7541-6.3", "a table as large as allowed", before(&size(4_096)), Served),
        case(
            "7541-6.3",
            "a table that is larger than allowed",
            before(&size(4_097)),
            Connection(COMPRESSION),
        ),
        case("7541-6.3", "two sizes in front", before(&[size(0), size(4_096)].concat()), Served),
        case("7541-4.2", "a size behind a field", behind(&size(0)), Connection(COMPRESSION)),
        case(
            "7541-4.2",
            "a size between fields",
            behind(&[field(b"x-a", b"1"), size(0), field(b"x-b", b"1")].concat()),
            Connection(COMPRESSION),
        ),
    ]
}

fn literals() -> Vec<Case> {
    // `a` is 00011 in Huffman's code: padded by ones, by zeros, by a byte of ones; and the code of the end alone.
    let coded = |bytes: &[u8]| [&[0][..], &string(b"x-a"), &integer(0x80, 7, bytes.len()), bytes].concat();
    vec![
        case(
            "7541-6.2.3",
            "never indexed",
            behind(&[&[0x10][..], &string(b"x-a"), &string(b"1")].concat()),
            Served,
        ),
        case(
            "7541-6.2.1",
            "indexed",
            behind(&[&[0x40][..], &string(b"x-a"), &string(b"1")].concat()),
            Served,
        ),
        case(
            "7541-6.2.2",
            "with an indexed name",
            behind(&[integer(0, 4, 16), string(b"gzip")].concat()),
            Served,
        ),
        case("7541-5.2", "Huffman's code", behind(&coded(&[0b0001_1111])), Served),
        case(
            "7541-5.2",
            "Huffman's code, padded by zeros",
            behind(&coded(&[0b0001_1000])),
            Connection(COMPRESSION),
        ),
        case(
            "7541-5.2",
            "Huffman's code, padded by a byte",
            behind(&coded(&[0b0001_1111, 0xff])),
            Connection(COMPRESSION),
        ),
        case(
            "7541-5.2",
            "Huffman's code with its end",
            behind(&coded(&[0xff, 0xff, 0xff, 0xff])),
            Connection(COMPRESSION),
        ),
        case(
            "7541-5.2",
            "a string that is cut off",
            behind(&[&[0][..], &string(b"x-a"), &[5, b'1']].concat()),
            Connection(COMPRESSION),
        ),
        case("7541-5.2", "a name that is cut off", behind(&[0, 9, b'x']), Connection(COMPRESSION)),
        case("7541-5.1", "a number that is cut off", behind(&[0xff]), Connection(COMPRESSION)),
        case(
            "7541-5.1",
            "a number without end",
            behind(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
            Connection(COMPRESSION),
        ),
        case(
            "7541-5.1",
            "a number with zeros in front",
            behind(&[&[0][..], &string(b"x-a"), &[0x7f, 0x80, 0x00], &[b'1'; 127]].concat()),
            Served,
        ),
        case(
            "7541-5.1",
            "a length beyond 32 bits",
            behind(&[&[0][..], &string(b"x-a"), &[0x7f, 0xff, 0xff, 0xff, 0xff, 0x7f]].concat()),
            Connection(COMPRESSION),
        ),
    ]
}
