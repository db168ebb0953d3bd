//! The keys of `tls` below a listener and below a service.

use super::{FILE, KEY_FILE};
use crate::config::shape::{
    Field, List,
    Presence::{Absent, Default, Required},
    Shape, Table, Text,
};

text!(SERVER_NAME, "a host name or an address", "app.internal", "^[0-9A-Za-z.:-]+$");
text!(OCSP_FILE, "a usable file", "web.ocsp", "^.+$");
text!(TICKET_KEYS_FILE, "a usable file", "tickets.keys", "^.+$");
text!(
    IDENTITY_HEADER,
    "the name of a header field",
    "x-forwarded-client-cert",
    "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"
);

/// TLS of a listener.
pub(super) static TLS: Table = Table {
    name: "tls",
    doc: "TLS of an HTTPS listener.",
    fields: &[
        Field {
            key: "certificates",
            shape: Shape::List(&List { item: Shape::Table(&SERVED_CERTIFICATE), min: 1, max: 64 }),
            presence: Required("[{certificateFile: web.pem, keyFile: web.key}]"),
            doc: "Certificates with their keys; the client's server name picks one, and of several for a name the first \
                  that the client can use, RSA last.",
        },
        Field {
            key: "clientCertificates",
            shape: Shape::Table(&CLIENT_CERTIFICATES),
            presence: Absent("clients are asked for no certificate"),
            doc: "Which certificates clients need. The same for all listeners of an address and port.",
        },
        Field {
            key: "ticketKeysFile",
            shape: Shape::Text(&TICKET_KEYS_FILE),
            presence: Absent("keys of the process, which change every six hours"),
            doc: "File with keys of session tickets, for nodes that clients should be able to resume on alike: a line of \
                  64 hexadecimal digits for each, at most 16, `#` before comments. The first makes new tickets, all are \
                  accepted. The same for all listeners of an address and port.",
        },
    ],
    one_of: &[],
};

/// TLS towards the endpoints of a service.
pub(super) static ENDPOINT_TLS: Table = Table {
    name: "endpointTls",
    doc: "TLS towards endpoints, for requests and health checks over HTTP. Relative paths start at the folder of the \
          configuration file; the files are watched, too.",
    fields: &[
        Field {
            key: "serverName",
            shape: Shape::Text(&SERVER_NAME),
            presence: Required("app.internal"),
            doc: "Host name or IP address that the certificates of all endpoints have to be good for. A host name is also \
                  sent to endpoints (SNI).",
        },
        Field {
            key: "trustFile",
            shape: Shape::Text(&FILE),
            presence: Absent("`trust` is written"),
            doc: "PEM file with the certificate authorities that an endpoint's certificate has to lead to.",
        },
        Field {
            key: "trust",
            shape: Shape::Word(&["system"]),
            presence: Absent("`trustFile` is written"),
            doc: "`system` trusts the authorities of the operating system.",
        },
        Field {
            key: "clientCertificate",
            shape: Shape::Table(&CERTIFICATE),
            presence: Absent("endpoints are shown no certificate"),
            doc: "Certificate that the agent shows to endpoints that ask for one (mutual TLS).",
        },
    ],
    one_of: &["trustFile", "trust"],
};

static SERVED_CERTIFICATE: Table = Table {
    name: "servedCertificate",
    doc: "A certificate chain, its key, and what its authority says about it. Relative paths start at the folder of the \
          configuration file; the files are watched, too.",
    fields: &[
        CHAIN_FILE,
        CHAIN_KEY_FILE,
        Field {
            key: "ocspFile",
            shape: Shape::Text(&OCSP_FILE),
            presence: Absent("clients are told nothing about it"),
            doc: "DER file with an OCSP response about the certificate, which clients are sent that ask for it (stapling), as \
                  long as it is good. Somebody has to write it anew in time.",
        },
        Field {
            key: "ocsp",
            shape: Shape::Word(&["fetch"]),
            presence: Absent("`ocspFile`, if that is written"),
            doc: "`fetch` asks the responder that the certificate names, over `http` (one that has an `https` address alone \
                  is refused), and again when half of the time of its answer is over. The chain has to have the issuer's certificate behind the leaf, which what is answered is \
                  checked against. Until there is an answer, and when the last one is over, clients are told nothing.",
        },
    ],
    one_of: &[],
};

static CERTIFICATE: Table = Table {
    name: "certificate",
    doc: "A certificate chain and its key. Relative paths start at the folder of the configuration file; the files \
          are watched, too.",
    fields: &[CHAIN_FILE, CHAIN_KEY_FILE],
    one_of: &[],
};

const CHAIN_FILE: Field = Field {
    key: "certificateFile",
    shape: Shape::Text(&FILE),
    presence: Required("web.pem"),
    doc: "PEM file with the chain, leaf first.",
};

const CHAIN_KEY_FILE: Field = Field {
    key: "keyFile",
    shape: Shape::Text(&KEY_FILE),
    presence: Required("web.key"),
    doc: "PEM file with the key, unencrypted: PKCS#8, PKCS#1 or SEC1.",
};

static CLIENT_CERTIFICATES: Table = Table {
    name: "clientCertificates",
    doc: "Which certificates clients need, and what endpoints learn of them.",
    fields: &[
        Field {
            key: "trustFile",
            shape: Shape::Text(&FILE),
            presence: Required("clients-ca.pem"),
            doc: "PEM file with the certificate authorities that a client's certificate has to lead to.",
        },
        Field {
            key: "mode",
            shape: Shape::Word(&["required", "optional"]),
            presence: Default("required"),
            doc: "`required` ends the handshake of a client without a certificate; `optional` lets it in without an \
                  identity. A certificate that is not good ends the handshake in both.",
        },
        Field {
            key: "identityHeader",
            shape: Shape::Text(&IDENTITY_HEADER),
            presence: Default("x-forwarded-client-cert"),
            doc: "Header field that tells endpoints who the client is: `Hash=`, `Subject=`, and `URI=` and `DNS=` for each \
                  name, with `;` between them. What clients send under this name is removed, on every listener, in front of a body and behind it.",
        },
    ],
    one_of: &[],
};
