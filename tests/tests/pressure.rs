//! Two million flows through a table that is made for one million: nobody's packets go astray, a service within its share
//! loses nothing, and every counter is exact.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a suite fails loudly"
)]

use std::{collections::BTreeMap, thread, time::Instant};

use aya::{
    Ebpf, TestRun as _, TestRunOptions,
    maps::{Array, PerCpuArray},
    programs::Xdp,
};
use gateway_common::{
    addr::Port,
    counter::{Hook, HookCounts, Reason, ServiceCount},
    flow::{FlowBucket, HeadState},
    map::{self, MapDef as _},
    service::{Mode, Service, Track},
    settings::Settings,
};
use gateway_tests::{
    bench::{
        frames,
        tables::{self, BUSY, ENDPOINTS, FLOW_BUCKETS, PORT, Traits},
    },
    kernel_run, privilege,
};

/// Flows of the service that floods, by IPv4.
const FLOOD: u32 = 2_000_000;
/// Flows of the service that stays within its share, by IPv6.
const CALM: u32 = 100_000;
/// Flows that it begins when the table is full.
const LATE: u32 = 20_000;
/// What the agent gives to each of two services of a table for a million flows.
const SHARE: u32 = 500_000;
/// Ports towards each endpoint: so many that the table is what runs out.
const PORTS: u16 = 30_000;
const FIRST_PORT: u16 = 30_000;
const NODE_V4: [u8; 4] = [198, 18, 1, 1];
const ENDPOINT_PORT: u16 = 8_080;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
/// Numbers of both services: the first of each family.
const IDS: [u32; 2] = [0, BUSY * 2];
/// No flow.
const NONE: u32 = u32::MAX;

#[test]
fn two_million_flows_fit_beside_a_calm_service() {
    if !privilege::require("running packets through the kernel programs") {
        return;
    }
    let mut ebpf = table_for_a_million();
    let program: &mut Xdp = ebpf.program_mut(Hook::XdpBalance.name()).unwrap().try_into().unwrap();
    program.load().unwrap();
    let program: &Xdp = program;

    let begun = Instant::now();
    let calm: Vec<u32> = (0..CALM).map(|flow| place_v6(&sent(program, &client_v6(flow, SYN)).1)).collect();
    // Two processors at once, each with its half.
    let [first, second] = both(|half| flood(program, half));
    let calm_after: Vec<u32> =
        (0..CALM).map(|flow| place_v6(&sent(program, &client_v6(flow, ACK)).1)).collect();
    assert!(calm == calm_after, "a flow of the calm service moved");
    let late = CALM..CALM + LATE;
    let n_late = late.filter(|flow| sent(program, &client_v6(*flow, SYN)).0 == XDP_TX).count();
    assert_eq!(n_late, usize::try_from(LATE).unwrap(), "the calm service begins as many flows as it wants");
    let [a, b] = both(|half| answers(program, half, &[&first, &second]));
    let mut answered = [a, b].concat();
    answered.sort_unstable();
    let n_answered = answered.len();
    answered.dedup();
    assert_eq!(answered.len(), n_answered, "two places lead to one flow");
    println!("{:.1} s", begun.elapsed().as_secs_f64());

    let n_sent = u64::from(first.n_sent + second.n_sent);
    let n_full = u64::from(first.n_dropped + second.n_dropped);
    assert_eq!(n_sent + n_full, u64::from(FLOOD), "every packet was sent or dropped");
    let reasons = reasons(&ebpf);
    let count = |reason: Reason| reasons.get(reason.name()).copied().unwrap_or(0);
    let others: u64 = reasons.iter().filter(|(name, _)| **name != "received").map(|(_, n)| n).sum();
    assert_eq!(count(Reason::Received), others, "received is the sum of the reasons: {reasons:?}");
    assert_eq!(count(Reason::Forwarded), n_sent + u64::from(2 * CALM + LATE), "{reasons:?}");
    let refused = [Reason::FlowTableFull, Reason::FlowContended, Reason::PortsExhausted];
    assert_eq!(refused.map(count).iter().sum::<u64>(), n_full, "{reasons:?}");
    assert_eq!(count(Reason::Replied), u64::try_from(n_answered).unwrap(), "{reasons:?}");

    let [flooded, calmed] = IDS.map(|id| service(&ebpf, id));
    assert_eq!((flooded.packets, flooded.new_flows, flooded.dropped), (n_sent, n_sent, n_full));
    let n_calm = u64::from(CALM + LATE);
    assert_eq!((calmed.packets, calmed.new_flows, calmed.dropped), (n_calm + u64::from(CALM), n_calm, 0));
    let live = live(&ebpf);
    let held: Array<_, [u64; 2]> = Array::try_from(ebpf.map(map::ServiceFlows::NAME).unwrap()).unwrap();
    let [[flooded, lost], [calmed, none_lost]] = IDS.map(|id| held.get(&id, 0).unwrap());
    assert_eq!([flooded, calmed], live, "what is counted (left), and what stands in the table");
    assert_eq!((lost, none_lost), (n_sent - live[0], 0), "every flow that lost its place is counted");
    assert_eq!(live[1], n_calm, "the calm service keeps everything");
    assert_eq!(u64::try_from(n_answered).unwrap(), live[0], "every flow in the table can be answered");
    println!("{n_sent} sent, {n_full} refused, {} in the table; {reasons:?}", live[0]);
    assert!(n_full * 100 < u64::from(FLOOD), "{n_full} of {FLOOD} flows found no place");
}

fn table_for_a_million() -> Ebpf {
    let mut ebpf = frames::load(&kernel_run::object_path().unwrap()).unwrap();
    let traits = Traits { mode: Mode::NAT, track: Track::ALWAYS, is_changing: false };
    // Packets of a test run come in, and go out, over the loopback interface.
    tables::fill(&mut ebpf, 1, traits).unwrap();
    let mut rows: Array<_, [u8; size_of::<Settings>()]> =
        Array::try_from(ebpf.map_mut(map::SettingsMap::NAME).unwrap()).unwrap();
    let mut settings: Settings = bytemuck::pod_read_unaligned(&rows.get(&0, 0).unwrap());
    (settings.first_port, settings.n_ports) = (Port::new(FIRST_PORT), PORTS);
    rows.set(0, <[u8; size_of::<Settings>()]>::try_from(bytemuck::bytes_of(&settings)).unwrap(), 0).unwrap();
    // The filter knows the addresses that answers go to.
    let mut filter: Array<_, u64> = Array::try_from(ebpf.map_mut(map::Filter::NAME).unwrap()).unwrap();
    let bit = gateway_common::filter::bit(gateway_common::addr::Addr::v4(NODE_V4));
    let word = filter.get(&(bit >> 6), 0).unwrap();
    filter.set(bit >> 6, word | 1 << (bit & 63), 0).unwrap();
    let mut services: Array<_, [u8; size_of::<Service>()]> =
        Array::try_from(ebpf.map_mut(map::Services::NAME).unwrap()).unwrap();
    for id in IDS {
        let mut service: Service = bytemuck::pod_read_unaligned(&services.get(&id, 0).unwrap());
        service.flow_share = SHARE;
        services
            .set(id, <[u8; size_of::<Service>()]>::try_from(bytemuck::bytes_of(&service)).unwrap(), 0)
            .unwrap();
    }
    ebpf
}

/// Runs both halves of something at the same time.
fn both<T: Send>(work: impl Fn(u32) -> T + Sync) -> [T; 2] {
    let work = &work;
    thread::scope(|scope| {
        let threads = [0, 1].map(|half| scope.spawn(move || work(half)));
        threads.map(|thread| thread.join().unwrap())
    })
}

/// What became of a half of the flood.
struct Flood {
    /// The last flow that each place towards an endpoint was given to.
    owners: Vec<u32>,
    n_sent: u32,
    n_dropped: u32,
}

fn flood(program: &Xdp, half: u32) -> Flood {
    let mut owners = vec![NONE; usize::from(ENDPOINTS) * usize::from(PORTS)];
    let (mut n_sent, mut n_dropped) = (0, 0);
    for flow in (half..FLOOD).step_by(2) {
        match sent(program, &client_v4(flow)) {
            (XDP_TX, frame) => {
                n_sent += 1;
                owners[place_v4(&frame)] = flow;
            }
            (XDP_DROP, _) => n_dropped += 1,
            (code, _) => panic!("flow {flow} ended with {code}"),
        }
    }
    Flood { owners, n_sent, n_dropped }
}

/// Answers from every place that was ever given away: each goes to the client that was given it last, or to nobody.
/// Returns the flows.
fn answers(program: &Xdp, half: u32, floods: &[&Flood; 2]) -> Vec<u32> {
    let mut answered = Vec::new();
    let places = floods[0].owners.len();
    for place in (usize::try_from(half).unwrap()..places).step_by(2) {
        let owners = floods.map(|flood| flood.owners[place]);
        if owners == [NONE; 2] {
            continue;
        }
        match sent(program, &endpoint_v4(place)) {
            (XDP_TX, frame) => {
                let flow = flow_of(&frame);
                assert!(owners.contains(&flow), "an answer to one of {owners:?} went to {flow}");
                answered.push(flow);
            }
            (XDP_PASS, _) => {}
            (code, _) => panic!("an answer ended with {code}"),
        }
    }
    answered
}

fn sent(program: &Xdp, frame: &[u8]) -> (u32, Vec<u8>) {
    let mut out = vec![0; 128];
    let options =
        TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
    let result = program.test_run(options).unwrap();
    (result.return_value, out)
}

/// A packet of TCP over IPv4; nobody on its way looks at checksums.
fn tcp_v4(from: ([u8; 4], u16), to: ([u8; 4], u16), flags: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00];
    frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend([from.0, to.0].concat());
    frame.extend(tcp(from.1, to.1, flags));
    frame
}

fn tcp(from: u16, to: u16, flags: u8) -> Vec<u8> {
    let mut header = [from.to_be_bytes(), to.to_be_bytes()].concat();
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    header
}

/// The client of a flow: 32 ports of each address.
fn client_v4(flow: u32) -> Vec<u8> {
    let port = 1_024 + u16::try_from(flow % 32).unwrap();
    tcp_v4(((0x0a00_0000 + flow / 32).to_be_bytes(), port), ([198, 18, 0, 1], PORT), SYN)
}

/// The flow whose client this frame goes to.
fn flow_of(frame: &[u8]) -> u32 {
    let addr = u32::from_be_bytes(frame[30..34].try_into().unwrap());
    let port = u16::from_be_bytes(frame[36..38].try_into().unwrap());
    assert_eq!(frame[26..30], [198, 18, 0, 1], "an answer comes from the virtual address");
    (addr - 0x0a00_0000) * 32 + u32::from(port - 1_024)
}

/// The place towards an endpoint that a translated frame takes: the endpoint, and the port.
fn place_v4(frame: &[u8]) -> usize {
    let endpoint = usize::from(u16::from_be_bytes(frame[32..34].try_into().unwrap())) - 2;
    let port = u16::from_be_bytes(frame[34..36].try_into().unwrap());
    endpoint * usize::from(PORTS) + usize::from(port - FIRST_PORT)
}

fn endpoint_v4(place: usize) -> Vec<u8> {
    let [high, low] = u16::try_from(place / usize::from(PORTS) + 2).unwrap().to_be_bytes();
    let port = FIRST_PORT + u16::try_from(place % usize::from(PORTS)).unwrap();
    tcp_v4(([198, 19, high, low], ENDPOINT_PORT), (NODE_V4, port), ACK)
}

fn client_v6(flow: u32, flags: u8) -> Vec<u8> {
    let [a, b, c, d] = (flow / 32).to_be_bytes();
    let port = 1_024 + u16::try_from(flow % 32).unwrap();
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
    frame.extend([0x60, 0, 0, 0, 0, 20, 6, 64]);
    frame.extend([0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, a, b, c, d]);
    frame.extend([0x20, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    frame.extend(tcp(port, PORT, flags));
    frame
}

/// Endpoint and port that a translated frame goes to and comes from.
fn place_v6(frame: &[u8]) -> u32 {
    u32::from_be_bytes([frame[52], frame[53], frame[54], frame[55]])
}

fn reasons(ebpf: &Ebpf) -> BTreeMap<&'static str, u64> {
    let map: PerCpuArray<_, [u8; size_of::<HookCounts>()]> =
        PerCpuArray::try_from(ebpf.map(map::Reasons::NAME).unwrap()).unwrap();
    let mut sums = BTreeMap::new();
    for one in map.get(&Hook::XdpBalance.number(), 0).unwrap().iter() {
        let counts: HookCounts = bytemuck::pod_read_unaligned(one);
        for reason in Reason::ALL {
            let n = counts.reasons[usize::try_from(reason.number()).unwrap()].packets;
            *sums.entry(reason.name()).or_default() += n;
        }
    }
    sums.retain(|_, n| *n > 0);
    sums
}

fn service(ebpf: &Ebpf, id: u32) -> ServiceCount {
    let map: PerCpuArray<_, [u8; size_of::<ServiceCount>()]> =
        PerCpuArray::try_from(ebpf.map(map::ServiceCounts::NAME).unwrap()).unwrap();
    let mut sum = ServiceCount::default();
    for one in map.get(&id, 0).unwrap().iter() {
        let one: ServiceCount = bytemuck::pod_read_unaligned(one);
        sum.packets += one.packets;
        sum.new_flows += one.new_flows;
        sum.dropped += one.dropped;
    }
    sum
}

/// Entries of each service that stand in the table.
fn live(ebpf: &Ebpf) -> [u64; 2] {
    let map: Array<_, [u8; size_of::<FlowBucket>()]> =
        Array::try_from(ebpf.map(map::Flows::NAME).unwrap()).unwrap();
    let mut live = [0; 2];
    for bucket in 0..FLOW_BUCKETS {
        let bucket: FlowBucket = bytemuck::pod_read_unaligned(&map.get(&bucket, 0).unwrap());
        for flow in bucket.flows {
            let is_busy = flow.head.state.number() & !HeadState::DISPLACED == HeadState::BUSY.number();
            assert!(!is_busy, "nobody writes any more");
            if flow.head.state.is_live() {
                let which = IDS.iter().position(|id| *id == flow.service);
                live[which.expect("nobody else sends")] += 1;
            }
        }
    }
    live
}
