//! The pipeline's environment in memory: the host's side of the packet tests.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use bytemuck::Pod;
use gateway_common::{
    addr::Protocol,
    aside::Swept,
    cookie::SynCookie,
    counter::Hook,
    endpoint::{Endpoint, NextHop},
    flow::{FlowBucket, FlowKey, ReplyBucket, Scratch, SequenceBucket, Tick},
    fragment::FragmentBucket,
    service::ServiceBucket,
    source::{ServiceRate, SourceRateBucket},
};
use gateway_ebpf::{
    answer,
    arrival::Arrival,
    cookie::{self, Cookie, CookieWords, Syn},
    env::{Env, Room},
    guard::RateWords,
    ingress, probe, proxy,
    rare::{
        self,
        fragment::{FragmentRow, FragmentRows},
    },
    receive as tunnels, reply, steer,
    table::{
        self,
        row::{FlowRow, FlowRows, ReplyRow, ReplyRows},
        sequence::{SequenceRow, SequenceRows},
    },
    verdict::Verdict,
    way::Way,
};

mod maps;
mod receive;
mod socket;

pub use self::socket::SocketCall;
pub use crate::tables::Tables;

/// An interface whose routes take packets of so many bytes.
pub const NARROW: u32 = 78;
const NARROW_BYTES: u32 = 1_300;

/// Buckets of the flow tables of a test.
pub const BUCKETS: u32 = 64;

/// Buckets of the fragments of a test.
pub const FRAGMENTS: u16 = 4;

/// What came out of one run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// The code that the program returned.
    pub code: i32,
    /// The packet afterwards.
    pub bytes: Vec<u8>,
}

/// One packet, and what is around it.
#[derive(Clone, Debug)]
pub struct Run {
    /// The hook.
    pub hook: Hook,
    /// Index of the interface where the packet came in.
    pub ingress: u32,
    /// The present.
    pub now: Tick,
    /// What the kernel's routing table would say.
    pub next_hop: Option<NextHop>,
}

/// What an earlier packet may have left in the notes of its processor: nothing may depend on it.
pub const LEFT: Scratch = Scratch { words: [0xa5a5_a5a5_a5a5_a5a5; 32] };

impl Run {
    /// Runs a packet over the tables, and leaves in them what it changed.
    pub fn packet(&self, tables: &mut Tables, packet: &[u8]) -> Outcome {
        let maps = MemoryMaps::new(std::mem::take(tables), self.now);
        let mut env = Memory { maps, run: self.clone(), bytes: packet.to_vec() };
        let mut scratch = LEFT;
        let arrival = Arrival::of(&mut scratch);
        let mut verdict = match self.hook {
            Hook::XdpBalance | Hook::TcIngress => ingress::ingress(&mut env, arrival),
            Hook::TcEgress => reply::egress(&mut env, arrival),
            Hook::TcReceive => tunnels::receive(&mut env),
            Hook::TcProbeOut => probe::out(&mut env),
            Hook::TcProbeIn => probe::back(&mut env),
            Hook::SkLookup => panic!("a socket lookup has no packet: use connection()"),
            Hook::Connect4
            | Hook::Connect6
            | Hook::SendMsg4
            | Hook::SendMsg6
            | Hook::RecvMsg4
            | Hook::RecvMsg6
            | Hook::GetPeerName4
            | Hook::GetPeerName6 => panic!("a socket's call has no packet: use call()"),
        };
        // In the kernel, programs of their own, which end in each other.
        let is_egress = self.hook == Hook::TcEgress;
        if let Verdict::Rare(_) = verdict {
            verdict =
                if is_egress { rare::egress(&mut env, arrival) } else { rare::ingress(&mut env, arrival) };
        }
        if let Verdict::Rare(_) = verdict {
            verdict = rare::parsed(&mut env, arrival);
        }
        if let Verdict::Icmp(_) = verdict {
            verdict = if is_egress {
                rare::icmp_egress(&mut env, arrival)
            } else {
                rare::icmp_ingress(&mut env, arrival)
            };
        }
        if let Verdict::Proxy(_) = verdict {
            verdict = proxy::ingress(&mut env, arrival);
        }
        if let Verdict::Answer(_) = verdict {
            verdict = answer::answer(&mut env, arrival);
        }
        if let Verdict::Cookie(_) = verdict {
            verdict = cookie::answer(&mut env, arrival);
        }
        let code = if self.hook == Hook::XdpBalance {
            i32::from_ne_bytes(verdict.xdp_code(arrival.interface() == self.ingress).to_ne_bytes())
        } else {
            verdict.tc_code()
        };
        *tables = env.maps.into_tables();
        Outcome { code, bytes: env.bytes }
    }

    /// Sweeps buckets of a table; how many entries or places were freed.
    pub fn sweep(&self, tables: &mut Tables, what: Swept, buckets: std::ops::Range<u32>) -> u32 {
        let maps = MemoryMaps::new(std::mem::take(tables), self.now);
        let sweep = |bucket| match what {
            Swept::Flows => table::sweep(&maps, bucket),
            Swept::Replies => table::reply::sweep(&maps, bucket),
        };
        let freed = buckets.map(sweep).sum();
        *tables = maps.into_tables();
        freed
    }

    /// Runs a connection over the tables; `sockets` are the indices that hold a socket. Returns the code and the
    /// index that was chosen.
    pub fn connection(&self, tables: &mut Tables, key: &FlowKey, sockets: &[u32]) -> (u32, Option<u32>) {
        let maps = MemoryMaps::new(std::mem::take(tables), self.now);
        let mut chosen = None;
        let verdict = steer::steer(&maps, key, |socket| {
            chosen = sockets.contains(&socket).then_some(socket);
            chosen.is_some()
        });
        *tables = maps.into_tables();
        (verdict.sk_code(), chosen)
    }
}

struct Memory {
    maps: MemoryMaps,
    run: Run,
    bytes: Vec<u8>,
}

impl Env for Memory {
    type Maps = MemoryMaps;

    const IS_RARE: bool = true;

    fn maps(&self) -> &MemoryMaps {
        &self.maps
    }

    fn hook(&self) -> Hook {
        self.run.hook
    }

    fn len_bytes(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn ingress(&self) -> u32 {
        self.run.ingress
    }

    fn segment_payload(&self) -> Option<u32> {
        let is_tc = matches!(self.run.hook, Hook::TcIngress | Hook::TcEgress);
        self.maps.tables.borrow().segment_payload.filter(|_| is_tc)
    }

    fn takes_bytes(&self, interface: u32) -> u32 {
        // The loopback interface is what `BPF_PROG_TEST_RUN` uses; no other is known here.
        if interface == 1 { 65_536 } else { 0 }
    }

    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.bytes.get(start..start.checked_add(size_of::<T>())?)?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }

    fn store<T: Pod>(&mut self, offset: u32, header: &T) -> Option<()> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.bytes.get_mut(start..start.checked_add(size_of::<T>())?)?;
        bytes.copy_from_slice(bytemuck::bytes_of(header));
        Some(())
    }

    fn make_room(&mut self, room: Room) -> Option<()> {
        let bytes = usize::try_from(room.bytes()).ok()?;
        self.bytes.get(14)?;
        self.bytes.splice(14..14, vec![0; bytes]);
        Some(())
    }

    fn cut(&mut self, len_bytes: u32) -> Option<()> {
        let len = usize::try_from(len_bytes).ok().filter(|len| (14..=self.bytes.len()).contains(len))?;
        self.bytes.truncate(len);
        Some(())
    }

    fn stretch(&mut self, len_bytes: u32) -> Option<()> {
        let len = usize::try_from(len_bytes).ok()?;
        self.bytes.resize(len.max(self.bytes.len()), 0);
        Some(())
    }

    fn grow(&mut self, bytes: u32) -> Option<()> {
        self.bytes.splice(0..0, vec![0; usize::try_from(bytes).ok()?]);
        Some(())
    }

    fn cookie(&self, _socket: u32, _syn: &Syn) -> Cookie {
        Cookie::from_word(self.maps.tables.borrow().cookie)
    }

    fn next_hop(&mut self, _endpoint: &Endpoint, _protocol: Protocol, ip_bytes: u32) -> Result<Way, u32> {
        let hop = self.run.next_hop.as_ref().ok_or(0_u32)?;
        let is_too_big = hop.interface == NARROW && ip_bytes > NARROW_BYTES;
        if is_too_big { Err(NARROW_BYTES) } else { Ok(Way::from(hop)) }
    }
}

/// The maps over plain tables. Buckets of the flow tables are made when they are asked for.
struct MemoryMaps {
    tables: RefCell<Tables>,
    index: BTreeMap<u32, ServiceBucket>,
    flows: RefCell<BTreeMap<u32, Rc<FlowRows>>>,
    displaced: RefCell<BTreeMap<u32, Rc<AtomicU64>>>,
    replies: RefCell<BTreeMap<u32, Rc<ReplyRows>>>,
    sequences: RefCell<BTreeMap<u32, Rc<SequenceRows>>>,
    fragments: RefCell<BTreeMap<u32, Rc<FragmentRows>>>,
    service_flows: RefCell<BTreeMap<u32, Rc<AtomicU64>>>,
    service_evictions: RefCell<BTreeMap<u32, Rc<AtomicU64>>>,
    endpoint_flows: RefCell<BTreeMap<u32, Rc<AtomicU64>>>,
    service_rates: RefCell<BTreeMap<u32, Rc<AtomicU64>>>,
    syn_cookies: RefCell<BTreeMap<u32, Rc<CookieWords>>>,
    source_rates: RefCell<BTreeMap<u32, Rc<RateWords>>>,
    now: Tick,
}

impl MemoryMaps {
    fn new(mut tables: Tables, now: Tick) -> Self {
        let flows = std::mem::take(&mut tables.flows);
        let flows =
            flows.iter().map(|(at, bucket)| (*at, Rc::new(bucket.flows.each_ref().map(FlowRow::from))));
        let replies = std::mem::take(&mut tables.replies);
        let replies =
            replies.iter().map(|(at, bucket)| (*at, Rc::new(bucket.replies.each_ref().map(ReplyRow::from))));
        let sequences = std::mem::take(&mut tables.sequences);
        let sequences = sequences
            .iter()
            .map(|(at, bucket)| (*at, Rc::new(bucket.entries.each_ref().map(SequenceRow::from))));
        let fragments = std::mem::take(&mut tables.fragments);
        let fragments = fragments.iter().map(|(at, bucket)| {
            let words = bucket.packets.map(bytemuck::cast::<_, [u64; 2]>);
            (*at, Rc::new(words.map(FragmentRow::from)))
        });
        let counts = std::mem::take(&mut tables.service_flows);
        let evictions = std::mem::take(&mut tables.service_evictions);
        let endpoint_flows = std::mem::take(&mut tables.endpoint_flows);
        let displaced = std::mem::take(&mut tables.displaced);
        let service_rates = std::mem::take(&mut tables.service_rates);
        let service_rates = service_rates.into_iter().map(|(id, rate)| (id, rate.full_at)).collect();
        let syn_cookies = std::mem::take(&mut tables.syn_cookies);
        let syn_cookies = syn_cookies.iter().map(|(id, row)| {
            let words: [u64; 3] = bytemuck::cast(*row);
            (*id, Rc::new(words.map(AtomicU64::new)))
        });
        let source_rates = std::mem::take(&mut tables.source_rates);
        let source_rates =
            source_rates.iter().map(|(at, rates)| (*at, Rc::new(rates.words.map(AtomicU64::new))));
        let words = |words: BTreeMap<u32, u64>| {
            RefCell::new(words.into_iter().map(|(at, word)| (at, Rc::new(AtomicU64::new(word)))).collect())
        };
        Self {
            index: tables.index(),
            flows: RefCell::new(flows.collect()),
            replies: RefCell::new(replies.collect()),
            sequences: RefCell::new(sequences.collect()),
            fragments: RefCell::new(fragments.collect()),
            displaced: words(displaced),
            service_flows: words(counts),
            service_evictions: words(evictions),
            endpoint_flows: words(endpoint_flows),
            service_rates: words(service_rates),
            syn_cookies: RefCell::new(syn_cookies.collect()),
            source_rates: RefCell::new(source_rates.collect()),
            tables: RefCell::new(tables),
            now,
        }
    }

    fn into_tables(self) -> Tables {
        let mut tables = self.tables.into_inner();
        for (at, rows) in self.flows.into_inner() {
            let bucket = FlowBucket { flows: rows.each_ref().map(FlowRow::plain::<Self>) };
            if bucket != FlowBucket::default() {
                tables.flows.insert(at, bucket);
            }
        }
        for (at, rows) in self.replies.into_inner() {
            let bucket = ReplyBucket { replies: rows.each_ref().map(ReplyRow::get::<Self>) };
            if bucket != ReplyBucket::default() {
                tables.replies.insert(at, bucket);
            }
        }
        for (at, rows) in self.sequences.into_inner() {
            let bucket = SequenceBucket { entries: rows.each_ref().map(SequenceRow::get::<Self>) };
            if bucket != SequenceBucket::default() {
                tables.sequences.insert(at, bucket);
            }
        }
        for (at, rows) in self.fragments.into_inner() {
            let packets = rows.each_ref().map(|row| bytemuck::cast(row.plain::<Self>()));
            let bucket = FragmentBucket { packets };
            if bucket != FragmentBucket::default() {
                tables.fragments.insert(at, bucket);
            }
        }
        tables.service_flows = not_zero(self.service_flows);
        tables.service_evictions = not_zero(self.service_evictions);
        tables.endpoint_flows = not_zero(self.endpoint_flows);
        tables.displaced = not_zero(self.displaced);
        let rates = not_zero(self.service_rates).into_iter();
        tables.service_rates = rates.map(|(id, full_at)| (id, ServiceRate { full_at })).collect();
        for (id, words) in self.syn_cookies.into_inner() {
            let row: SynCookie = bytemuck::cast(words.each_ref().map(|word| word.load(SeqCst)));
            if row != SynCookie::default() {
                tables.syn_cookies.insert(id, row);
            }
        }
        for (at, words) in self.source_rates.into_inner() {
            let words = words.each_ref().map(|word| word.load(SeqCst));
            tables.source_rates.insert(at, SourceRateBucket { words });
        }
        tables
    }
}

fn not_zero(words: RefCell<BTreeMap<u32, Rc<AtomicU64>>>) -> BTreeMap<u32, u64> {
    let words = words.into_inner().into_iter().map(|(at, word)| (at, word.load(SeqCst)));
    words.filter(|(_, word)| *word != 0).collect()
}
