//! What a packet costs in the kernel: our program beside a bare drop and the classic design, each behind a link of its
//! own, measured in turns by the kernel's own statistics.

use anyhow::{Context as _, Result, bail, ensure};
use aya::sys::{Stats, enable_stats};
use gateway_common::flow::{Tick, tick_shift};
use gateway_userspace::clock::interrupts_per_second;

use super::{
    Options,
    frames::{self, Cost, Generator, Order},
    subject::{Kind, Subject},
    tables::{self, PORT},
};
use crate::{
    netns::Ns,
    packet,
    report::{Report, Series, What, machine},
    ticks,
};

/// One kind of traffic.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Whether it is IPv6.
    pub v6: bool,
    /// Number of clients.
    pub n_flows: u32,
    /// Services that they ask for.
    pub n_services: u32,
    /// Whether these are the ones with many endpoints.
    pub is_broad: bool,
    /// Whether the packets are for a service.
    pub is_ours: bool,
}

const TRAFFIC: [Traffic; 12] = [
    Traffic { v6: false, n_flows: 1, n_services: 1, is_broad: true, is_ours: true },
    Traffic { v6: false, n_flows: 1_024, n_services: 1, is_broad: true, is_ours: true },
    Traffic { v6: false, n_flows: 1_024, n_services: tables::BUSY, is_broad: false, is_ours: true },
    Traffic { v6: false, n_flows: 1_024, n_services: tables::BUSY, is_broad: true, is_ours: true },
    Traffic { v6: false, n_flows: MANY, n_services: 1, is_broad: true, is_ours: true },
    Traffic { v6: true, n_flows: 1, n_services: 1, is_broad: true, is_ours: true },
    Traffic { v6: true, n_flows: 1_024, n_services: 1, is_broad: true, is_ours: true },
    Traffic { v6: true, n_flows: 1_024, n_services: tables::BUSY, is_broad: false, is_ours: true },
    Traffic { v6: true, n_flows: 1_024, n_services: tables::BUSY, is_broad: true, is_ours: true },
    Traffic { v6: true, n_flows: MANY, n_services: 1, is_broad: true, is_ours: true },
    Traffic { v6: false, n_flows: 1_024, n_services: 1, is_broad: true, is_ours: false },
    Traffic { v6: true, n_flows: 1_024, n_services: 1, is_broad: true, is_ours: false },
];

/// So many flows that no cache holds them; only with these it is measured what recording one costs.
const MANY: u32 = 100_000;

/// Packets whose time is taken at once. Others on a shared machine slow a program down for moments that are not much
/// longer, and never speed it up: of the pieces of a value the fastest counts.
const PIECE: u32 = 10_000;

/// Bytes that are written so that the caches hold nothing else: twice as many as the largest flow table.
const CHILL: usize = 1 << 28;

/// What is sent before a measurement at least.
const WARM_UP: u32 = 1_000;

/// Milliseconds that the last frames of a piece may be late.
const PATIENCE: u32 = 20;

/// How often a measurement is made again that lost frames, or that fell into two ticks of the programs' clock.
const TRIES: u32 = 20;

/// What a value is about, and the packets that it was taken from.
type Value = (String, Cost);

impl Traffic {
    /// The packet of the first flow: TCP in the middle of a connection, or what opens it, from addresses for benchmarks.
    fn packet(self, flags: u8) -> Vec<u8> {
        let first = if self.is_broad { 1 } else { 1 + tables::BUSY };
        let (source, destination) = match (self.v6, self.is_ours) {
            (false, true) => ("198.18.64.0:20000", format!("198.18.0.{first}:{PORT}")),
            (false, false) => ("198.18.64.0:20000", format!("198.18.0.77:{PORT}")),
            (true, true) => ("[2001:2:0:40::]:20000", format!("[2001:2::{first:x}]:{PORT}")),
            (true, false) => ("[2001:2:0:40::]:20000", format!("[2001:2::77]:{PORT}")),
        };
        packet::tcp(source, &destination).flags(flags).bytes()
    }

    const fn family(self) -> &'static str {
        if self.v6 { "IPv6" } else { "IPv4" }
    }

    fn name(self) -> String {
        let family = self.family();
        match self.n_flows {
            _ if !self.is_ours => format!("{family}, not for a service"),
            1 => format!("{family}, 1 flow"),
            n if n < 1_000 => format!("{family}, {n} flows"),
            n if self.n_services > 1 => {
                let broad = if self.is_broad {
                    format!(" of {} endpoints", tables::ENDPOINTS)
                } else {
                    String::new()
                };
                format!(
                    "{family}, {},{:03} flows to {} services{broad}",
                    n / 1_000,
                    n % 1_000,
                    self.n_services
                )
            }
            n => format!("{family}, {},{:03} flows", n / 1_000, n % 1_000),
        }
    }
}

/// All of it; the link of each subject is in one namespace, so that nothing else sees its frames.
#[derive(Debug)]
struct Bench {
    generator: Generator,
    lanes: Vec<Lane>,
    ns: Ns,
    /// Packets of one value.
    n_packets: u32,
    /// More than any cache holds.
    chill: Vec<u8>,
}

/// A subject at its link.
#[derive(Debug)]
struct Lane {
    subject: Subject,
    /// Interface that frames are sent from.
    sender: u32,
}

/// Runs the benchmark.
///
/// # Errors
/// When something is missing, or when a program did not do what its time is taken for.
pub fn run(options: Options) -> Result<Report> {
    ensure!(nix::unistd::geteuid().is_root(), "l4 loads kernel programs: run it as root");
    let _statistics = enable_stats(Stats::RunTime).context("cannot switch the kernel's statistics on")?;
    let mut bench = Bench::new(if options.is_quick { 20_000 } else { 200_000 })?;
    let mut series = Series::default();
    for round in 0..options.n_rounds {
        eprintln!("l4: round {} of {}", round + 1, options.n_rounds);
        for traffic in TRAFFIC {
            bench.measure(traffic, &mut series)?;
        }
        bench.repeat(&mut series)?;
    }
    let mut conditions = machine();
    conditions.push(format!(
        "{} rounds, subjects in turns; {} live frames for each value ({MANY} for first packets), sent by \
         BPF_PROG_TEST_RUN over a veth pair; time from the kernel's BPF statistics, of the fastest {PIECE} frames in a \
         row, above that of a bare XDP_DROP in the same round",
        options.n_rounds, bench.n_packets
    ));
    conditions.push(format!(
        "sluice: {} services with 10 endpoints, 16 of each family with {} (those of the lines that do not say 16 services; \
         100,000 flows need as many for ports), filter, a denied network of each family, limits of new flows for sources and services, events, size of packets against the way, counts by reason, service and endpoint; {}: \
         translation, ports, checksums, an entry for each flow; {}: IP in IP, nothing remembered; {}: the same while every \
         slot has just changed its endpoint, so that every flow is remembered",
        tables::SERVICES,
        tables::ENDPOINTS,
        Kind::Nat.name(),
        Kind::Tunnel.name(),
        Kind::Change.name()
    ));
    conditions.push(format!(
        "{}: service hash, LRU flow table for every packet, one ring of 65,537 slots, array of endpoints, IP in IP, two \
         counters; no translation, so no second entry, no ports and no checksums of TCP",
        Kind::Classic.name()
    ));
    Ok(Report { bench: "l4", conditions, figures: series.figures(Kind::Classic.name()) })
}

impl Bench {
    fn new(n_packets: u32) -> Result<Self> {
        let ns = Ns::new("bench")?;
        let mut generator = Generator::load()?;
        ns.ip("link add spare0 type veth peer name spare1")?;
        generator.stay(&ns, "spare0")?;
        let mut lanes = Vec::new();
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            let (near, far) = (format!("near{number}"), format!("far{number}"));
            ns.ip(&format!("link add {near} type veth peer name {far}"))?;
            for end in [&near, &far] {
                // Nothing of the stack's own may come in between.
                ns.ip(&format!("link set {end} addrgenmode none up"))?;
            }
            generator.absorb(&ns, &near)?;
            let subject = Subject::new(kind, &ns, &far)?;
            lanes.push(Lane { subject, sender: frames::index(&ns, &near)? });
        }
        ns.unname()?;
        Ok(Self { generator, lanes, ns, n_packets, chill: vec![0; CHILL] })
    }

    /// The values of each subject for one kind of traffic.
    fn measure(&mut self, traffic: Traffic, series: &mut Series) -> Result<()> {
        let Self { generator, lanes, ns, n_packets, chill } = self;
        let mut floors = Vec::new();
        for lane in lanes {
            let kind = lane.subject.kind;
            let mut turn = Turn { generator, ns, lane, traffic, n_packets: *n_packets, chill };
            let values = turn.run().with_context(|| format!("{}, {}", kind.name(), traffic.name()))?;
            let values: Vec<(String, f64)> =
                values.into_iter().map(|(case, cost)| (case, cost.per_packet())).collect();
            if kind == Kind::Drop {
                floors.clone_from(&values);
            }
            for ((case, value), (_, floor)) in values.into_iter().zip(&floors) {
                add(series, kind, &case, value, *floor);
            }
        }
        Ok(())
    }

    /// The other way to measure, which needs no link: one packet again and again. Programs that change the packet
    /// cannot be measured so, because the second run would see what the first one made of it.
    fn repeat(&mut self, series: &mut Series) -> Result<()> {
        let traffic = Traffic { v6: false, n_flows: 1, n_services: 1, is_broad: true, is_ours: false };
        let mut floor = 0.0;
        for lane in &mut self.lanes {
            let ns = lane.subject.repeat(&traffic.packet(packet::ACK), self.n_packets * 4)?;
            if lane.subject.kind == Kind::Drop {
                floor = ns;
            }
            add(series, lane.subject.kind, &format!("{}, one packet repeated", traffic.name()), ns, floor);
        }
        Ok(())
    }
}

/// Adds a value: a bare drop's as it is, others above it.
fn add(series: &mut Series, kind: Kind, case: &str, ns: f64, floor: f64) {
    let (metric, value) = match kind {
        Kind::Drop => ("time of a packet, all of it", ns),
        Kind::Classic | Kind::Nat | Kind::NatChange | Kind::Tunnel | Kind::Change => {
            ("time of a packet above a bare drop", ns - floor)
        }
    };
    let what = What { case: case.to_owned(), subject: kind.name().to_owned(), metric, unit: "ns" };
    series.add(what, value);
}

/// One subject's turn with one kind of traffic.
struct Turn<'a> {
    generator: &'a mut Generator,
    ns: &'a Ns,
    lane: &'a mut Lane,
    traffic: Traffic,
    n_packets: u32,
    chill: &'a mut [u8],
}

impl Turn<'_> {
    fn run(&mut self) -> Result<Vec<Value>> {
        for _ in 0..TRIES {
            if let Some(values) = self.attempt()? {
                return Ok(values);
            }
        }
        bail!("{TRIES} attempts lost frames or took more than a second: the machine is too busy")
    }

    /// Nothing when frames got lost, or when the programs' clock moved on.
    fn attempt(&mut self) -> Result<Option<Vec<Value>>> {
        let Traffic { n_flows, is_ours, .. } = self.traffic;
        let is_many = is_ours && n_flows == MANY;
        self.forget(is_many)?;
        let kind = self.lane.subject.kind;
        let new_flows = if is_ours && kind.counts_new() { n_flows } else { 0 };
        let Some(first) = self.send(packet::ACK, n_flows, Order::Ascending, new_flows)? else {
            return Ok(None);
        };
        self.lane.subject.remembers(if is_ours && kind.remembers() {
            usize::try_from(n_flows)?
        } else {
            0
        })?;
        if is_many {
            next_tick()?;
        }
        let tick = now()?;
        // Programs write to the entries of a flow once in a tick; all that follows finds them fresh.
        let refreshing = self.send(packet::ACK, n_flows.max(WARM_UP), Order::Mixed, 0)?;
        let known = self.send(packet::ACK, self.n_packets, Order::Mixed, 0)?;
        let (Some(refreshing), Some(known)) = (refreshing, known) else { return Ok(None) };
        if now()? != tick {
            return Ok(None);
        }
        let mut values = vec![(self.traffic.name(), known)];
        if is_many {
            let family = self.traffic.family();
            values.push((format!("{family}, a flow's first packet in a second"), refreshing));
            values.push((format!("{family}, first packet of a flow"), first));
            // The same of what asks the buckets of its source and its service for a token.
            self.forget(is_many)?;
            let Some(opening) = self.send(packet::SYN, n_flows, Order::Ascending, n_flows)? else {
                return Ok(None);
            };
            values.push((format!("{family}, SYN of a flow, within two limits"), opening));
        }
        Ok(Some(values))
    }

    /// Has the subject forget its flows. What is left of that in the caches goes where first packets are measured: one
    /// subject's flows are forgotten one by one, which brings the very lines that new ones will get, another's all at once.
    fn forget(&mut self, is_measured: bool) -> Result<()> {
        self.lane.subject.forget()?;
        if is_measured {
            self.chill.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
        }
        Ok(())
    }

    /// Sends packets piece by piece, and sees to it that they went the way that is measured; what the fastest piece
    /// cost. Nothing when the link lost some, as it does when the kernel hands its work to a thread that has to wait.
    fn send(&mut self, flags: u8, n: u32, order: Order, new_flows: u32) -> Result<Option<Cost>> {
        let subject = &mut self.lane.subject;
        let packet = self.traffic.packet(flags);
        self.generator.prepare(&packet, self.traffic, order)?;
        let tally = subject.tally(self.traffic)?;
        let (mut best, mut rest) = (None, n);
        while rest > 0 {
            let piece = rest.min(PIECE);
            let before = subject.cost()?;
            self.generator.send(self.ns, self.lane.sender, packet.len(), piece)?;
            let mut cost = subject.cost()?.since(before);
            // The last frames may be with the kernel's own thread, which waits for this one.
            for _ in 0..PATIENCE {
                if cost.packets >= u64::from(piece) {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
                cost = subject.cost()?.since(before);
            }
            ensure!(cost.packets <= u64::from(piece), "{} frames arrived, {piece} were sent", cost.packets);
            if cost.packets < u64::from(piece) {
                return Ok(None);
            }
            best = best.into_iter().chain([cost]).min_by(|a, b| a.per_packet().total_cmp(&b.per_packet()));
            rest -= piece;
        }
        let after = subject.tally(self.traffic)?;
        let difference =
            |after: Option<u64>, before: Option<u64>| after.zip(before).map(|(after, before)| after - before);
        if let Some(counted) = difference(after.packets, tally.packets) {
            let reasons = subject.reasons()?;
            ensure!(
                counted == u64::from(n),
                "{counted} of {n} packets went the way that is measured: {reasons}"
            );
        }
        if let Some(counted) = difference(after.new_flows, tally.new_flows) {
            ensure!(counted == u64::from(new_flows), "{counted} flows were recorded instead of {new_flows}");
        }
        Ok(best)
    }
}

/// The present, as the programs see it.
fn now() -> Result<Tick> {
    ticks::now(tick_shift(interrupts_per_second()))
}

/// Waits for the programs' next tick, little more than a second at most.
fn next_tick() -> Result<()> {
    let tick = now()?;
    while now()? == tick {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_of_traffic_has_a_name_of_its_own() {
        let names: BTreeSet<String> = TRAFFIC.iter().map(|traffic| traffic.name()).collect();
        assert_eq!(names.len(), TRAFFIC.len());
        assert!(names.contains("IPv6, 100,000 flows"), "{names:?}");
        assert!(names.contains("IPv4, 1,024 flows"), "{names:?}");
    }

    #[test]
    fn values_stand_above_the_bare_drop_of_their_round() {
        let mut series = Series::default();
        for (kind, ns) in [(Kind::Drop, 40.0), (Kind::Classic, 140.0), (Kind::Nat, 90.0)] {
            add(&mut series, kind, "c", ns, 40.0);
        }
        let figures = series.figures(Kind::Classic.name());
        let medians: Vec<f64> = figures.iter().map(|figure| figure.median.round()).collect();
        assert_eq!(medians, [40.0, 100.0, 50.0]);
        assert_eq!(figures[2].ratio, Some(0.5));
        assert_eq!(figures[0].ratio, None);
    }
}
