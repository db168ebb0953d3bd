//! The part of the plan that concerns sources: which networks are listed, the filter in front of them, and the switch that
//! makes packets look.
//!
//! A network that is denied is denied for good before an exception of it goes; one that is allowed again passes when its
//! own entry goes. The filter only ever says that somebody has to look.

use std::collections::BTreeMap;

use gateway_common::{
    settings::Settings,
    source::{self, LONG, SourceNetwork, SourceRule},
};

use crate::{
    image::{Image, Limits},
    kernel::maps::Observed,
};

/// One write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SourceOp {
    /// What becomes of packets of a network; none when no list names it any more.
    Network {
        /// The network.
        network: SourceNetwork,
        /// The rule.
        rule: Option<SourceRule>,
    },
    /// 64 bits of the filter of sources.
    Filter {
        /// Index of the word.
        word: u32,
        /// Its bits.
        bits: u64,
    },
    /// What is refused.
    Guards {
        /// Bits of [`Settings::guards`].
        guards: u8,
    },
}

/// Everything between the maps and an image.
pub(super) fn ops(image: &Image, written: &Observed) -> Vec<SourceOp> {
    let mut ops = Vec::new();
    if image.networks != written.networks {
        let added = |(network, rule): (&SourceNetwork, &SourceRule)| {
            let is_there = written.networks.get(network) == Some(rule);
            (!is_there).then_some(SourceOp::Network { network: *network, rule: Some(*rule) })
        };
        ops.extend(image.networks.iter().filter_map(added));
    }
    let filter = filter(&image.networks);
    if filter != written.source_filter {
        let widened = |(word, bits): (&u32, &u64)| {
            let present = written.source_filter.get(word).copied().unwrap_or(0);
            (present | bits != present).then_some(SourceOp::Filter { word: *word, bits: present | bits })
        };
        ops.extend(filter.iter().filter_map(widened));
    }
    let guards = guards(image);
    if guards != written.guards {
        ops.push(SourceOp::Guards { guards });
    }
    let narrowed = |(word, present): (&u32, &u64)| {
        let bits = filter.get(word).copied().unwrap_or(0);
        (present & !bits != 0).then_some(SourceOp::Filter { word: *word, bits })
    };
    ops.extend(written.source_filter.iter().filter_map(narrowed));
    let gone = written.networks.keys().filter(|network| !image.networks.contains_key(network));
    ops.extend(gone.map(|network| SourceOp::Network { network: *network, rule: None }));
    ops
}

fn guards(image: &Image) -> u8 {
    let has = |is_so: bool, bit: u8| if is_so { bit } else { 0 };
    let limits = image.services.iter().any(|service| service.limits != Limits::default());
    let broad = image.networks.keys().any(is_broad);
    has(!image.networks.is_empty(), Settings::SOURCES)
        | has(limits, Settings::RATES)
        | has(broad, Settings::BROAD)
}

/// Whether a network stands in the bitmap of first sixteen bits of IPv6.
fn is_broad(network: &SourceNetwork) -> bool {
    !is_v4(network) && network.prefix_bits < LONG
}

fn is_v4(network: &SourceNetwork) -> bool {
    network.addr.is_v4() && network.prefix_bits >= 96
}

/// The words of the filter for these networks. Exceptions matter inside others only, whose bits are set.
fn filter(networks: &BTreeMap<SourceNetwork, SourceRule>) -> BTreeMap<u32, u64> {
    let mut words: BTreeMap<u32, u64> = BTreeMap::new();
    let listed = networks.iter().filter(|(_, rule)| **rule != SourceRule::ALLOW);
    let mut set = |bit: u32| *words.entry(bit / 64).or_default() |= 1 << (bit % 64);
    for (network, _) in listed {
        let [first, second] = source::bits(network.addr);
        // Bits in a row stand for networks in a row, where their first sixteen bits do.
        let (bits, first) = if is_v4(network) {
            (network.prefix_bits - 96, first)
        } else if is_broad(network) {
            (network.prefix_bits, second)
        } else {
            (16, first)
        };
        let many = 1_u32 << 16_u32.saturating_sub(bits);
        (first..first + many).for_each(&mut set);
    }
    words
}

#[cfg(test)]
mod tests {
    use gateway_common::addr::Addr;

    use super::*;
    use crate::{image::source_network, network::Network};

    fn of(text: &str) -> SourceNetwork {
        let (addr, bits) = text.split_once('/').unwrap();
        source_network(&Network { addr: addr.parse().unwrap(), prefix_bits: bits.parse().unwrap() })
    }

    fn image(rules: &[(&str, SourceRule)]) -> Image {
        let networks = rules.iter().map(|(network, rule)| (of(network), *rule)).collect();
        Image { networks, ..Image::default() }
    }

    /// Whether the filter makes packets of this source look.
    fn looks(words: &BTreeMap<u32, u64>, addr: &str) -> bool {
        let addr = Addr::from(addr.parse::<std::net::IpAddr>().unwrap());
        source::bits(addr)
            .iter()
            .any(|bit| words.get(&(bit / 64)).is_some_and(|word| word >> (bit % 64) & 1 == 1))
    }

    #[test]
    fn the_filter_covers_what_is_listed_and_little_else() {
        let check = |network: &str, inside: &[&str], outside: &[&str]| {
            let words = filter(&image(&[(network, SourceRule::DENY)]).networks);
            assert!(inside.iter().all(|addr| looks(&words, addr)), "{network}");
            assert!(!outside.iter().any(|addr| looks(&words, addr)), "{network}");
        };
        check("192.0.2.9/32", &["192.0.2.9"], &["192.1.2.9", "10.0.0.1", "2001:db8::1"]);
        check("10.0.0.0/8", &["10.0.0.0", "10.255.255.255", "10.77.1.2"], &["11.0.0.0", "9.255.0.0"]);
        check("0.0.0.0/0", &["0.0.0.0", "255.255.255.255"], &[]);
        check("2001:db8::/32", &["2001:db8::1", "2001:db8:ffff::1"], &["2001:db9::1", "2002::1"]);
        check("2001:db8:1::/48", &["2001:db8:1::1"], &["2001:db9::1"]);
        check("ff00::/8", &["ff02::1", "ffff::1"], &["fe80::1", "255.0.0.1"]);
        check("::/0", &["::1", "2001:db8::1", "ffff::1"], &[]);
        check("::1/128", &["::1"], &["fe80::1", "2001:db8::1"]);
    }

    #[test]
    fn packets_look_for_short_networks_where_there_are_some() {
        let broad = |network: &str| guards(&image(&[(network, SourceRule::DENY)])) & Settings::BROAD != 0;
        assert!(["::/0", "ff00::/8", "2001::/31"].into_iter().all(broad));
        assert!(!["0.0.0.0/0", "10.0.0.0/8", "2001:db8::/32", "::1/128"].into_iter().any(broad));
    }

    #[test]
    fn nothing_is_written_twice_and_exceptions_go_last() {
        let first = image(&[("10.0.0.0/8", SourceRule::DENY), ("10.1.0.0/16", SourceRule::ALLOW)]);
        let filter_of = |image: &Image| filter(&image.networks);
        let written = Observed {
            networks: first.networks.clone(),
            source_filter: filter_of(&first),
            guards: Settings::SOURCES,
            ..Observed::default()
        };
        assert_eq!(ops(&first, &written), []);
        let second = image(&[("10.0.0.0/8", SourceRule::DENY), ("10.1.2.0/24", SourceRule::DENY)]);
        let network = |text: &str, rule| SourceOp::Network { network: of(text), rule };
        let expected = [network("10.1.2.0/24", Some(SourceRule::DENY)), network("10.1.0.0/16", None)];
        assert_eq!(ops(&second, &written), expected);
        let nothing = ops(&Image::default(), &written);
        assert_eq!(
            nothing.first(),
            Some(&SourceOp::Guards { guards: 0 }),
            "packets stop looking before entries go"
        );
        assert_eq!(nothing.len(), 1 + 256 / 64 + 2);
    }
}
