//! Contents of every map in plain form: what a packet test starts with, and what it compares afterwards.

use std::collections::{BTreeMap, BTreeSet};

#[cfg(feature = "whole")]
use bytemuck::Pod;
use gateway_common::{
    addr::Addr,
    answer::Answers,
    cookie::{CookieKeys, SynCookie},
    counter::{Count, EndpointCount, ServiceCount, ServiceReasons},
    endpoint::Endpoint,
    event::{Event, EventCount},
    filter::FilterWord,
    flow::{FlowBucket, ReplyBucket, SequenceBucket, Tick},
    fragment::FragmentBucket,
    health::EndpointHealth,
    heartbeat::Heartbeat,
    probe::Probe,
    receive::Receive,
    service::{PortRange, Service, ServiceKey},
    settings::Settings,
    slot::SlotChunk,
    socket::{AskedFor, SocketPeer, SocketScope},
    source::{self, RefusedRow, RefusedSource, ServiceRate, SourceNetwork, SourceRateBucket, SourceRule},
};

/// Contents of every map, in plain form: what a test starts with, and what it compares afterwards.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tables {
    /// Services by virtual address.
    pub services: BTreeMap<ServiceKey, Service>,
    /// Rows of port ranges, and what an address has of them: the first and how many.
    pub ranges: BTreeMap<u32, PortRange>,
    /// The ranges of an address, with its key for port zero.
    pub range_keys: BTreeMap<ServiceKey, (u32, u32)>,
    /// Addresses whose echo requests are answered, by their keys in the index, and a service of each.
    pub echo: BTreeMap<ServiceKey, u32>,
    /// Chunks of slots.
    pub chunks: BTreeMap<u32, SlotChunk>,
    /// Endpoint rows.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// Buckets of the flow table that are not empty.
    pub flows: BTreeMap<u32, FlowBucket>,
    /// Counts of displaced flows that are not zero.
    pub displaced: BTreeMap<u32, u64>,
    /// Buckets of the table of replies that are not empty.
    pub replies: BTreeMap<u32, ReplyBucket>,
    /// Buckets of sequence numbers that are not empty.
    pub sequences: BTreeMap<u32, SequenceBucket>,
    /// Entries that services hold in the flow table.
    pub service_flows: BTreeMap<u32, u64>,
    /// Flows of services that lost their place.
    pub service_evictions: BTreeMap<u32, u64>,
    /// Flows of endpoint rows.
    pub endpoint_flows: BTreeMap<u32, u64>,
    /// Words of the filter that are not zero.
    pub filter: BTreeMap<u32, FilterWord>,
    /// Networks that are listed.
    pub networks: BTreeMap<SourceNetwork, SourceRule>,
    /// Words of the filter of sources that are not zero.
    pub source_filter: BTreeMap<u32, FilterWord>,
    /// Buckets of services' new flows.
    pub service_rates: BTreeMap<u32, ServiceRate>,
    /// Buckets of sources' new flows.
    pub source_rates: BTreeMap<u32, SourceRateBucket>,
    /// SYN cookies of services.
    pub syn_cookies: BTreeMap<u32, SynCookie>,
    /// Keys of cookies.
    pub cookie_keys: CookieKeys,
    /// The present by the clock of cookies, where it is another than that of flows: no map.
    pub moment: Option<Tick>,
    /// Bytes behind the transport header in each segment that will be made of a packet at TC: no map either.
    pub segment_payload: Option<u32>,
    /// What the kernel's listening sockets say when they are asked for a cookie: no map, but as far from the pipeline.
    pub cookie: u64,
    /// Heartbeats of workers.
    pub heartbeats: BTreeMap<u32, Heartbeat>,
    /// Indices of the sockets where one listens: what the kernel knows by itself.
    pub listening: BTreeSet<u32>,
    /// Sources whose packets were refused.
    pub refused: BTreeMap<u32, RefusedRow>,
    /// What processes asked for.
    pub asked: BTreeMap<SocketPeer, AskedFor>,
    /// Whether there is no room for more of that.
    pub is_asked_full: bool,
    /// What a program gets that asks for a number by chance: no map either.
    pub random: u32,
    /// Whose sockets are translated.
    pub socket_scope: SocketScope,
    /// The settings.
    pub settings: Settings,
    /// Whose tunnels end here.
    pub receive: Receive,
    /// Health checks on their way.
    pub probes: BTreeMap<u32, Probe>,
    /// Buckets of the fragments that are not empty.
    pub fragments: BTreeMap<u32, FragmentBucket>,
    /// What the processor has answered.
    pub answers: Answers,
    /// Counts by number of the hook and of the reason that are not zero.
    pub reasons: BTreeMap<(u32, u32), Count>,
    /// Counts by service that are not zero.
    pub service_counts: BTreeMap<u32, ServiceCount>,
    /// Reasons by service that are not zero.
    pub service_reasons: BTreeMap<u32, ServiceReasons>,
    /// Counts by endpoint row that are not zero.
    pub endpoint_counts: BTreeMap<u32, EndpointCount>,
    /// Signals by endpoint row that are not zero, without times.
    pub endpoint_health: BTreeMap<u32, EndpointHealth>,
    /// Packets that were told of, without their times and without what means nothing.
    pub events: Vec<Event>,
    /// What was told, by the number of the reason.
    pub event_counts: BTreeMap<u32, EventCount>,
}

/// The bytes of a shared type.
#[cfg(feature = "whole")]
pub(crate) fn raw<T: Pod, const N: usize>(value: &T) -> [u8; N] {
    bytemuck::bytes_of(value).try_into().expect("the caller names the size of the type")
}

impl Tables {
    /// Lists a network, as the agent would write it; `prefix_bits` counts from the beginning of the address as it is
    /// written.
    pub fn list(&mut self, addr: Addr, prefix_bits: u32, rule: SourceRule) {
        let is_broad = !addr.is_v4() && prefix_bits < source::LONG;
        let prefix_bits = if addr.is_v4() { prefix_bits + 96 } else { prefix_bits };
        self.networks.insert(SourceNetwork { prefix_bits, addr }, rule);
        for bit in source::bits(addr) {
            self.source_filter.entry(bit >> 6).or_default().bits |= 1 << (bit & 63);
        }
        self.settings.guards |= Settings::SOURCES | if is_broad { Settings::BROAD } else { 0 };
    }

    /// Takes an event as the ring would.
    pub(crate) fn tell(&mut self, fill: impl FnOnce(&mut Event)) {
        let mut event = Event::default();
        fill(&mut event);
        self.events.push(Event { time_ns: 0, ..event.without_rest() });
    }

    /// Every source whose packets were refused.
    pub fn refused_sources(&self) -> impl Iterator<Item = &RefusedSource> {
        self.refused.values().flat_map(|row| &row.sources).filter(|one| one.packets != 0)
    }
}
