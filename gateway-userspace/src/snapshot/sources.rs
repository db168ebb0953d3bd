//! Who may send packets to services, and how many flows may begin; and the checks of both.

use std::collections::HashSet;

use crate::{
    duration, limits,
    network::Network,
    place::{Located, Place},
    snapshot::build::Problems,
};

/// Who may send packets.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Sources {
    /// Networks whose packets are dropped.
    pub deny: Vec<Network>,
    /// Exceptions.
    pub allow: Vec<Network>,
    /// Whether packets from addresses that no packet can come from are dropped.
    pub drops_forged: bool,
}

/// Bounds on flows that begin.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NewFlows {
    /// Of all clients together.
    pub all: Option<Pace>,
    /// Of one source.
    pub source: Option<Pace>,
}

/// How many may come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pace {
    /// In a second.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// [`Sources`] with their places.
#[derive(Clone, Debug, Default)]
pub struct DraftSources {
    /// Networks whose packets are dropped.
    pub deny: Vec<Located<Network>>,
    /// Exceptions.
    pub allow: Vec<Located<Network>>,
    /// See [`Sources::drops_forged`].
    pub drops_forged: bool,
}

/// [`NewFlows`] with their places.
#[derive(Clone, Debug)]
pub struct DraftNewFlows {
    /// The whole of it.
    pub place: Place,
    /// Of all clients together.
    pub all: DraftPace,
    /// Of one source.
    pub source: DraftPace,
}

/// A pace that may lack a part.
#[derive(Clone, Debug)]
pub struct DraftPace {
    /// In a second.
    pub per_second: Option<Located<u32>>,
    /// At once.
    pub burst: Option<Located<u32>>,
    /// The keys of both.
    pub keys: [&'static str; 2],
}

impl DraftPace {
    /// The pace, if there is a bound.
    pub fn value(&self) -> Option<Pace> {
        let per_second = self.per_second.as_ref()?.value;
        Some(Pace { per_second, burst: self.burst.as_ref().map_or(per_second, |burst| burst.value) })
    }
}

impl DraftNewFlows {
    /// The bounds.
    pub fn value(&self) -> NewFlows {
        NewFlows { all: self.all.value(), source: self.source.value() }
    }
}

impl DraftSources {
    pub(super) fn value(self) -> Sources {
        let values = |networks: Vec<Located<Network>>| networks.into_iter().map(|network| network.value);
        Sources {
            deny: values(self.deny).collect(),
            allow: values(self.allow).collect(),
            drops_forged: self.drops_forged,
        }
    }
}

/// Each network is written once, and in one list.
pub(super) fn check(sources: &DraftSources, problems: &mut Problems) {
    let mut seen = HashSet::new();
    for (network, list) in sources
        .deny
        .iter()
        .map(|network| (network, "deny"))
        .chain(sources.allow.iter().map(|network| (network, "allow")))
    {
        let Network { addr, prefix_bits } = network.value;
        if seen.insert((addr, prefix_bits)) {
            continue;
        }
        let is_in_both = list == "allow" && sources.deny.iter().any(|denied| denied.value == network.value);
        let (message, remedy) = if is_in_both {
            (format!("{addr}/{prefix_bits} is denied, too"), "remove it from one of both lists")
        } else {
            (format!("{addr}/{prefix_bits} is written twice"), "write each network once")
        };
        problems.fault(network.place, message, remedy);
    }
}

/// Bounds have to say something, and a burst must come back in time.
pub(super) fn check_new_flows(flows: &DraftNewFlows, problems: &mut Problems) {
    let paces = [&flows.all, &flows.source];
    let is_empty = paces.iter().all(|pace| pace.per_second.is_none() && pace.burst.is_none());
    if is_empty {
        let remedy = "write `perSecond` or `sourcePerSecond`, or remove it";
        problems.fault(flows.place, "nothing is bounded", remedy);
    }
    for DraftPace { per_second, burst, keys: [rate, depth] } in paces {
        match (per_second, burst) {
            (None, Some(burst)) => {
                problems.fault(
                    burst.place,
                    format!("`{depth}` without `{rate}`"),
                    format!("write `{rate}`, too"),
                );
            }
            (Some(per_second), Some(burst)) => {
                let seconds = u64::from(burst.value) / u64::from(per_second.value.max(1));
                if seconds > limits::BURST_TIME.as_secs() {
                    let most = u64::from(per_second.value) * limits::BURST_TIME.as_secs();
                    let time = duration::write(limits::BURST_TIME);
                    let message = format!("it takes more than {time} to come back");
                    problems.fault(
                        burst.place,
                        message,
                        format!("write at most {most}, or a larger `{rate}`"),
                    );
                }
            }
            (_, None) => {}
        }
    }
}
