//! Every key of the configuration file: its shape, its bounds, its default and what it means.

use crate::{
    config::shape::{Field, List, Presence, Shape, Table, Text},
    limits,
};

macro_rules! text {
    ($name:ident, $what:literal, $example:literal, $pattern:literal) => {
        text!($name, $what, $example, $pattern, false);
    };
    ($name:ident, $what:literal, $example:literal, $pattern:literal, $number:literal) => {
        static $name: Text = Text { what: $what, example: $example, pattern: $pattern, number: $number };
    };
}

mod agent;
mod bounds;
mod filter;
mod rule;
mod service;
mod sources;
mod tls;
mod wanted;

use agent::AGENT;
use service::SERVICE;
use sources::SOURCES;
use wanted::{LISTENER, ROUTE};

const PORT: Shape = Shape::Integer { min: 1, max: 65_535 };
const WEIGHT: Shape = Shape::Integer { min: 0, max: weight_bound() };

#[expect(clippy::as_conversions, reason = "widening, in a constant, where `From` cannot be called")]
const fn weight_bound() -> u64 {
    limits::WEIGHT as u64
}

text!(NAME, "a name", "web", "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$");
text!(ADDRESS, "the IP address of a machine", "10.0.0.10", "^[0-9a-fA-F.:]+$");
text!(NETWORK, "a network", "10.0.0.0/24", r"^[0-9a-fA-F.:]+(/[0-9]{1,3})?$");
text!(FILE, "a usable file", "web.pem", "^.+$");
text!(KEY_FILE, "a usable file", "web.key", "^.+$");
text!(SEED_FILE, "a usable file", "/etc/sluice/seed", "^.+$");
text!(PATH, "a path", "/api", "^/[^?#]*$");

/// The whole file.
pub static ROOT: Table = Table {
    name: "file",
    doc: "The file has two parts: `agent` holds settings of the process and takes effect when it starts; the rest is \
          what is wanted and takes effect as soon as the file changes.",
    fields: &[
        Field {
            key: "agent",
            shape: Shape::Table(&AGENT),
            presence: Presence::Absent("every setting has its default"),
            doc: "Settings of the process. A change needs a restart; a reload says so.",
        },
        Field {
            key: "listeners",
            shape: Shape::List(&List { item: Shape::Table(&LISTENER), min: 0, max: limits::NAMED_THINGS }),
            presence: Presence::Required("[]"),
            doc: "Addresses to accept on.",
        },
        Field {
            key: "routes",
            shape: Shape::List(&List { item: Shape::Table(&ROUTE), min: 0, max: limits::NAMED_THINGS }),
            presence: Presence::Absent("no routes"),
            doc: "Which requests and connections go to which services.",
        },
        Field {
            key: "services",
            shape: Shape::List(&List { item: Shape::Table(&SERVICE), min: 0, max: limits::NAMED_THINGS }),
            presence: Presence::Absent("no services"),
            doc: "Named groups of endpoints.",
        },
        Field {
            key: "sources",
            shape: Shape::Table(&SOURCES),
            presence: Presence::Absent("everybody may come"),
            doc: "Who may send packets to the listeners' addresses.",
        },
    ],
    one_of: &[],
};
