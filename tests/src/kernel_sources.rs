//! The part of filling the kernel's maps that concerns sources.

use anyhow::Result;
use aya::maps::{LpmTrie, MapData, lpm_trie::Key};
use gateway_common::{
    cookie::SynCookie,
    filter::FilterWord,
    map::{self, MapDef as _},
    source::{RefusedRow, ServiceRate, SourceNetwork, SourceRateBucket},
};

use crate::{
    kernel_run::{Kernel, ROWS, zero},
    tables::{Tables, raw},
};

const WORD: usize = size_of::<FilterWord>();
const SERVICE_RATE: usize = size_of::<ServiceRate>();
const SOURCE_RATES: usize = size_of::<SourceRateBucket>();
const SYN_COOKIE: usize = size_of::<SynCookie>();
const REFUSED_ROW: usize = size_of::<RefusedRow>();

impl Kernel {
    /// What stands about sources. Few cases have anything, and the maps are large.
    pub(crate) fn fill_sources(&mut self, tables: &Tables, known: Option<&Tables>) -> Result<()> {
        let map = self.map(map::SourceNetworks::NAME)?;
        let mut networks: LpmTrie<&mut MapData, [u8; 16], [u8; 4]> = LpmTrie::try_from(map)?;
        let key = |network: &SourceNetwork| Key::new(network.prefix_bits, network.addr.octets());
        for network in known.iter().flat_map(|known| known.networks.keys()) {
            networks.remove(&key(network))?;
        }
        for (network, rule) in &tables.networks {
            networks.insert(&key(network), raw(rule), 0)?;
        }
        let mut filter = self.array::<WORD>(map::SourceFilter::NAME)?;
        for index in known.iter().flat_map(|known| known.source_filter.keys()) {
            filter.set(*index, raw(&FilterWord::default()), 0)?;
        }
        for (index, word) in &tables.source_filter {
            filter.set(*index, raw(word), 0)?;
        }
        if known.is_some_and(|known| known.settings.guards != 0) || tables.settings.guards != 0 {
            let mut rates = self.array::<SERVICE_RATE>(map::ServiceRates::NAME)?;
            for id in 0..ROWS {
                rates.set(id, raw(&tables.service_rates.get(&id).copied().unwrap_or_default()), 0)?;
            }
            let stale = std::mem::take(&mut self.refused);
            zero(&mut self.counts::<REFUSED_ROW>(map::RefusedSources::NAME)?, stale)?;
        }
        let mut cookies = self.array::<SYN_COOKIE>(map::SynCookies::NAME)?;
        for id in 0..ROWS {
            cookies.set(id, raw(&tables.syn_cookies.get(&id).copied().unwrap_or_default()), 0)?;
        }
        // A case names every bucket that its packet may touch.
        let mut rates = self.array::<SOURCE_RATES>(map::SourceRates::NAME)?;
        for at in known.iter().flat_map(|known| known.source_rates.keys()) {
            rates.set(*at, [0; SOURCE_RATES], 0)?;
        }
        for (at, bucket) in &tables.source_rates {
            rates.set(*at, raw(bucket), 0)?;
        }
        Ok(())
    }
}
