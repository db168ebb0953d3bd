//! The keys of `routes[].rules[].filters`.

use std::time::Duration;

use super::NAME;
use crate::config::shape::{
    Field, List,
    Presence::{Absent, Default, Required},
    Shape, Table, Text,
};

text!(FIELD, "the name of a header field", "x-version", "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$");
text!(FIELD_VALUE, "the value of a header field", "2", r"^\S(.*\S)?$");
text!(HOST, "a host name", "www.example.org", "^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$");
text!(
    AUTHORITY,
    "a host name, with or without a port",
    "app.internal:8080",
    "^[A-Za-z0-9]([-A-Za-z0-9.:]*[A-Za-z0-9])?$"
);
text!(REPLACEMENT, "a path", "/v2", "^/[^?#]*$");
text!(BODY, "a short text", "closed", "^[\\s\\S]*$");
text!(MEDIA_TYPE, "a media type", "text/html", r"^\S(.*\S)?$");
text!(
    ORIGIN,
    "an origin, a pattern of origins, or a star",
    "https://*.example.org",
    r"^(\*|[a-z][a-z0-9+.-]*://\S+)$"
);
text!(METHOD, "a method, or a star", "PUT", r"^(\*|[A-Z]+)$");
text!(ANY_FIELD, "the name of a header field, or a star", "x-version", "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$");

/// What a rule does besides forwarding.
pub(super) static FILTERS: Table = Table {
    name: "filters",
    doc: "What a rule does with requests and responses. A redirect or a response of the gateway's own takes the place of \
          backends.",
    fields: &[
        Field {
            key: "requestHeaders",
            shape: Shape::Table(&EDITS),
            presence: Absent("no change"),
            doc: "Changes of requests, as the endpoint gets them.",
        },
        Field {
            key: "responseHeaders",
            shape: Shape::Table(&EDITS),
            presence: Absent("no change"),
            doc: "Changes of responses, as the client gets them; also of those that the gateway gives.",
        },
        Field {
            key: "rewrite",
            shape: Shape::Table(&REWRITE),
            presence: Absent("the target stays"),
            doc: "Another target towards the endpoint.",
        },
        Field {
            key: "redirect",
            shape: Shape::Table(&REDIRECT),
            presence: Absent("no redirect"),
            doc: "Sends the client elsewhere, instead of forwarding.",
        },
        Field {
            key: "respond",
            shape: Shape::Table(&RESPOND),
            presence: Absent("no response"),
            doc: "Answers, instead of forwarding.",
        },
        Field {
            key: "mirrors",
            shape: Shape::List(&List { item: Shape::Table(&MIRROR), min: 1, max: 8 }),
            presence: Absent("no copies"),
            doc: "Services that get copies of requests, with the new target and fields. A copy never delays its request: a \
                  mirror that does not keep up loses copies, which is counted in \
                  `sluice_limit_reached_total{limit=\"mirrors\"}`.",
        },
        Field {
            key: "cors",
            shape: Shape::Table(&CORS),
            presence: Absent("what the endpoint says"),
            doc: "Answers preflights and says in responses who may read them in a browser, in place of the endpoint. A \
                  rule that matches by method has to match OPTIONS too.",
        },
    ],
    one_of: &[],
};

/// What a rule does for one backend.
pub(super) static BACKEND_FILTERS: Table = Table {
    name: "backendFilters",
    doc: "What is done with requests that go to this backend, and with the responses of its endpoints. HTTP and HTTPS only.",
    fields: &[
        Field {
            key: "requestHeaders",
            shape: Shape::Table(&EDITS),
            presence: Absent("no change"),
            doc: "Changes of requests, as the endpoint gets them, after those of the rule.",
        },
        Field {
            key: "responseHeaders",
            shape: Shape::Table(&EDITS),
            presence: Absent("no change"),
            doc: "Changes of responses of endpoints, before those of the rule; not of those that the gateway gives.",
        },
    ],
    one_of: &[],
};

static EDITS: Table = Table {
    name: "headerEdits",
    doc: "Changes of header fields; a name is written once. Fields that say how a message is framed cannot be changed.",
    fields: &[
        Field {
            key: "set",
            shape: Shape::List(&List { item: Shape::Table(&EDIT), min: 1, max: 16 }),
            presence: Absent("none"),
            doc: "Fields that get this value alone.",
        },
        Field {
            key: "add",
            shape: Shape::List(&List { item: Shape::Table(&EDIT), min: 1, max: 16 }),
            presence: Absent("none"),
            doc: "Fields that get this value besides what they have.",
        },
        Field {
            key: "remove",
            shape: Shape::List(&List { item: Shape::Text(&FIELD), min: 1, max: 16 }),
            presence: Absent("none"),
            doc: "Fields that are dropped.",
        },
    ],
    one_of: &[],
};

static EDIT: Table = Table {
    name: "headerEdit",
    doc: "A header field and its value.",
    fields: &[
        Field {
            key: "name",
            shape: Shape::Text(&FIELD),
            presence: Required("x-version"),
            doc: "Name, in any case.",
        },
        Field {
            key: "value",
            shape: Shape::Text(&FIELD_VALUE),
            presence: Required("\"2\""),
            doc: "Value, at most 4,096 bytes.",
        },
    ],
    one_of: &[],
};

static REWRITE: Table = Table {
    name: "rewrite",
    doc: "Another target towards the endpoint.",
    fields: &[
        Field {
            key: "hostname",
            shape: Shape::Text(&AUTHORITY),
            presence: Absent("the host that was asked for"),
            doc: "Another host.",
        },
        Field {
            key: "path",
            shape: Shape::Table(&PATH_REWRITE),
            presence: Absent("the path that was asked for"),
            doc: "Another path; the query stays.",
        },
    ],
    one_of: &[],
};

static PATH_REWRITE: Table = Table {
    name: "pathRewrite",
    doc: "Another path.",
    fields: &[
        Field {
            key: "type",
            shape: Shape::Word(&["ReplaceFullPath", "ReplacePrefixMatch"]),
            presence: Default("ReplacePrefixMatch"),
            doc: "Whether the whole path is replaced, or the prefix that matched; then every match of the rule has to be a \
                  PathPrefix.",
        },
        Field {
            key: "value",
            shape: Shape::Text(&REPLACEMENT),
            presence: Required("/v2"),
            doc: "What to put there, as it is sent.",
        },
    ],
    one_of: &[],
};

static REDIRECT: Table = Table {
    name: "redirect",
    doc: "Where the client is sent; what is absent stays as it was asked for.",
    fields: &[
        Field {
            key: "scheme",
            shape: Shape::Word(&["http", "https"]),
            presence: Absent("that of the request"),
            doc: "Another scheme.",
        },
        Field {
            key: "hostname",
            shape: Shape::Text(&HOST),
            presence: Absent("that of the request"),
            doc: "Another host.",
        },
        Field {
            key: "port",
            shape: super::PORT,
            presence: Absent("that of `scheme` if it is written, else that of the listener"),
            doc: "Another port.",
        },
        Field {
            key: "path",
            shape: Shape::Table(&PATH_REWRITE),
            presence: Absent("that of the request"),
            doc: "Another path; the query stays.",
        },
        Field {
            key: "status",
            shape: Shape::Integer { min: 301, max: 308 },
            presence: Default("302"),
            doc: "301, 302, 303, 307 or 308.",
        },
    ],
    one_of: &[],
};

static RESPOND: Table = Table {
    name: "respond",
    doc: "A response of the gateway's own.",
    fields: &[
        Field {
            key: "status",
            shape: Shape::Integer { min: 200, max: 599 },
            presence: Required("503"),
            doc: "Its status.",
        },
        Field {
            key: "body",
            shape: Shape::Text(&BODY),
            presence: Default(""),
            doc: "Its body, at most 4,096 bytes.",
        },
        Field {
            key: "contentType",
            shape: Shape::Text(&MEDIA_TYPE),
            presence: Default("text/plain"),
            doc: "What the body is.",
        },
    ],
    one_of: &[],
};

static CORS: Table = Table {
    name: "cors",
    doc: "Who may read responses in a browser.",
    fields: &[
        Field {
            key: "origins",
            shape: Shape::List(&List { item: Shape::Text(&ORIGIN), min: 1, max: 64 }),
            presence: Required("[\"https://*.example.org\"]"),
            doc: "Who may ask; one `*` in front of a host stands for one label or more, `*` alone for everybody.",
        },
        Field {
            key: "methods",
            shape: Shape::List(&List { item: Shape::Text(&METHOD), min: 1, max: 16 }),
            presence: Absent("those that need no preflight"),
            doc: "Methods that may be used, or `*`.",
        },
        Field {
            key: "headers",
            shape: Shape::List(&List { item: Shape::Text(&ANY_FIELD), min: 1, max: 64 }),
            presence: Absent("those that need no preflight"),
            doc: "Fields that may be sent, or `*`.",
        },
        Field {
            key: "exposed",
            shape: Shape::List(&List { item: Shape::Text(&ANY_FIELD), min: 1, max: 64 }),
            presence: Absent("those that are always readable"),
            doc: "Fields of responses that may be read, or `*`.",
        },
        Field {
            key: "credentials",
            shape: Shape::Word(&["allow", "omit"]),
            presence: Default("omit"),
            doc: "Whether browsers may send cookies and the like.",
        },
        Field {
            key: "maxAge",
            shape: Shape::Duration { min: Duration::ZERO, max: Duration::from_hours(24) },
            presence: Default("5s"),
            doc: "How long the answer to a preflight may be remembered.",
        },
    ],
    one_of: &[],
};

static MIRROR: Table = Table {
    name: "mirror",
    doc: "A service that gets copies of requests; its answers are dropped.",
    fields: &[
        Field {
            key: "service",
            shape: Shape::Text(&NAME),
            presence: Required("canary"),
            doc: "Name of the service.",
        },
        Field {
            key: "percent",
            shape: Shape::Integer { min: 0, max: 100 },
            presence: Default("100"),
            doc: "Share of the requests that are copied, drawn for each.",
        },
    ],
    one_of: &[],
};
