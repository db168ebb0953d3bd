//! Who may send packets, and how many flows may begin, read into a draft.

use crate::{
    config::{read::View, text::network},
    place::Located,
    snapshot::sources::{DraftNewFlows, DraftPace, DraftSources},
};

pub(super) fn read(view: &View<'_>) -> DraftSources {
    let forged = view.word("forged", |word| match word {
        "drop" => Some(true),
        "pass" => Some(false),
        _ => None,
    });
    DraftSources {
        deny: view.texts("deny", network),
        allow: view.texts("allow", network),
        drops_forged: forged.is_some_and(|forged| forged.value),
    }
}

pub(super) fn syn_cookies(view: &View<'_>) -> Located<Option<u32>> {
    Located { value: view.integer("perSecond").map(|it: Located<u32>| it.value), place: view.place() }
}

pub(super) fn new_flows(view: &View<'_>) -> DraftNewFlows {
    let number = |key: &str| -> Option<Located<u32>> { if view.has(key) { view.integer(key) } else { None } };
    let pace = |keys: [&'static str; 2]| {
        let [rate, depth] = keys;
        DraftPace { per_second: number(rate), burst: number(depth), keys }
    };
    DraftNewFlows {
        place: view.place(),
        all: pace(["perSecond", "burst"]),
        source: pace(["sourcePerSecond", "sourceBurst"]),
    }
}
