//! How long a decision takes to reach the kernel's maps: from the change of an endpoint to the last byte that packets can
//! see, the new table included; and thousands of services at once. The agent's own kernel side over maps of its own.

use std::{
    collections::HashMap,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use gateway_common::endpoint::{EndpointState, NextHop};
use gateway_userspace::{
    compile::{
        id::Ids,
        image::{Made, Means, SocketRanges, Wanted, image, left},
        service::settle,
    },
    endpoint::{Endpoint, Health, Registry},
    image::{Image, Way},
    kernel::{AttachMode, Kernel, Settings, cleanup, writer::Written},
    snapshot::Snapshot,
    source::file,
};
use nix::mount::{MntFlags, umount2};

use super::Options;
use crate::{
    netns::Ns,
    report::{Report, Series, What, machine},
};

const SUBJECT: &str = "sluice";
const TIME: &str = "time until the maps say so";

/// Endpoints of the one service whose endpoint goes and comes.
const MANY: usize = 100;
/// Services that are programmed at once, and endpoints of each.
const SERVICES: usize = 10_000;
const EACH: usize = 10;
/// Services of these that change at once: one in so many.
const ONE_IN: usize = 100;
/// Longer than the agent lets a service rest between two publications.
const REST: Duration = Duration::from_millis(2);

/// Runs the benchmark.
///
/// # Errors
/// When it is not run as root, or the maps do not say what they should.
pub fn run(options: Options) -> Result<Report> {
    let n_changes = if options.is_quick { 5 } else { 50 };
    let n_services = if options.is_quick { 200 } else { SERVICES };
    let ns = Ns::new("publish").context("a namespace needs root")?;
    let mut series = Series::default();
    for _ in 0..options.n_rounds {
        ns.run(|| one_service(&mut series, n_changes))?;
        ns.run(|| all_services(&mut series, n_services))?;
    }
    let mut conditions = machine();
    conditions.push(format!(
        "{} rounds; {n_changes} changes of one service in each, {} ms apart; {n_services} services of {EACH} endpoints from nothing in each; every time the maps are read back and are as the agent says",
        options.n_rounds,
        REST.as_millis()
    ));
    Ok(Report { bench: "publish", conditions, figures: series.figures(SUBJECT) })
}

fn what(case: &str) -> What {
    What { case: case.to_owned(), subject: SUBJECT.to_owned(), metric: TIME, unit: "µs" }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// An agent's kernel side with what it serves.
struct Agent {
    folder: tempfile::TempDir,
    kernel: Option<Kernel>,
    ids: Ids,
    made: Made,
    image: Arc<Image>,
    registry: Registry,
    /// What live endpoints were brought to.
    settled: Option<Arc<Snapshot>>,
}

impl Agent {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let kernel = Kernel::start(&settings(&folder.path().join("bpf")))?;
        let ids = Ids::new(kernel.capacity());
        let (made, image, registry) = (Made::default(), Arc::default(), Registry::default());
        Ok(Self { folder, kernel: Some(kernel), ids, made, image, registry, settled: None })
    }

    fn kernel(&mut self) -> Result<&mut Kernel> {
        self.kernel.as_mut().context("the kernel side has ended")
    }

    fn compile(&mut self, snapshot: &Arc<Snapshot>) -> Result<Arc<Image>> {
        let retired = left(&Wanted::of(snapshot), &self.image);
        let sockets = SocketRanges::new();
        let means =
            Means { registry: &self.registry, sockets: &sockets, retired: &retired, is_written: true };
        let made = image(snapshot, means, &mut self.ids, &mut self.made);
        settle(snapshot, self.settled.as_deref(), &self.registry);
        self.settled = Some(Arc::clone(snapshot));
        self.image = Arc::new(made.map_err(|full| anyhow!("there is no room: {full:?}"))?);
        Ok(Arc::clone(&self.image))
    }

    /// Reads the maps as a successor would, which knows nothing, and holds them against what this agent has written.
    fn is_true(&mut self) -> Result<()> {
        let kernel = self.kernel.take().context("the kernel side has ended")?;
        ensure!(kernel.gap() == 0, "{} writes are missing", kernel.gap());
        let written = kernel.written().clone();
        drop(kernel);
        let successor = Kernel::start(&settings(&self.folder.path().join("bpf")))?;
        ensure!(*successor.written() == written, "the maps say something else than what was written");
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.kernel.take());
        let bpffs = self.folder.path().join("bpf");
        if let Err(error) = cleanup(&bpffs) {
            eprintln!("publish: cannot clean up: {error}");
        }
        // The folder can only go without a file system on it.
        if let Err(error) = umount2(&bpffs, MntFlags::MNT_DETACH) {
            eprintln!("publish: cannot unmount {}: {error}", bpffs.display());
        }
    }
}

fn settings(bpffs: &Path) -> Settings {
    Settings {
        bpffs: bpffs.to_owned(),
        attach: AttachMode::Auto,
        ports: 61_000..=65_535,
        seed: Some([7; 16]),
        flows: 65_536,
        change_window: Duration::from_mins(10),
        echo: true,
        tunnel: gateway_common::settings::Tunnel::DEFAULT,
        tcx: true,
        receive: gateway_common::receive::Receive::default(),
        events: 0,
        fail_open_after: Duration::from_secs(3),
        connect: None,
    }
}

/// One endpoint of many goes, and comes back.
fn one_service(series: &mut Series, n_changes: u32) -> Result<()> {
    let mut agent = Agent::new()?;
    let image = serve(&mut agent, &Arc::new(snapshot(1, MANY, 0)?))?.0;
    let endpoint = first_endpoint(&image, 0)?;
    for _ in 0..n_changes {
        for (health, state) in [(Health::Down, EndpointState::DOWN), (Health::Up, EndpointState::ACTIVE)] {
            thread::sleep(REST);
            let begun = Instant::now();
            endpoint.set_health(health);
            let done = agent.kernel()?.publish(&[Arc::clone(&endpoint)])?;
            let time = begun.elapsed();
            ensure!((done.rows, done.tables, done.services) == (1, 1, 1), "published {done:?}");
            let row = image.services[0].endpoints[0].row;
            let found = agent.kernel()?.written().endpoints.get(&row).map(|row| row.state);
            ensure!(found == Some(state), "the row is {found:?}");
            let case = format!("one of {MANY} endpoints goes or comes back");
            series.add(what(&case), micros(time));
            series.add(what(&format!("{case}: publication alone")), micros(done.publishing));
        }
    }
    agent.is_true()
}

/// Many services from nothing, and then one in a hundred of them changes, in both ways that there are.
fn all_services(series: &mut Series, n: usize) -> Result<()> {
    let mut agent = Agent::new()?;
    let begun = Instant::now();
    let snapshot_before = Arc::new(snapshot(n, EACH, 0)?);
    let parsed = begun.elapsed();
    let (image, compiled, written) = serve(&mut agent, &snapshot_before)?;
    let all = format!("{n} services of {EACH} endpoints from nothing");
    series.add(what(&format!("{all}: reading the file")), micros(parsed));
    series.add(what(&format!("{all}: working out what the maps should hold")), micros(compiled));
    series.add(what(&format!("{all}: writing it")), micros(written));

    let changed: Vec<_> =
        (0..n / ONE_IN).map(|idx| first_endpoint(&image, idx * ONE_IN)).collect::<Result<_>>()?;
    thread::sleep(REST);
    let begun = Instant::now();
    for endpoint in &changed {
        endpoint.set_health(Health::Down);
    }
    let done = agent.kernel()?.publish(&changed)?;
    let time = begun.elapsed();
    ensure!(done.tables == changed.len(), "published {done:?}");
    series.add(what(&format!("an endpoint of {} of these services goes", changed.len())), micros(time));

    let snapshot_after = Arc::new(snapshot(n, EACH, ONE_IN)?);
    thread::sleep(REST);
    let begun = Instant::now();
    let image = agent.compile(&snapshot_after)?;
    let compiled = begun.elapsed();
    let done = agent.kernel()?.apply(image)?;
    let time = begun.elapsed();
    ensure!(done.tables == changed.len(), "applied {done:?}");
    let case = format!("another weight in {} of these services", changed.len());
    series.add(what(&format!("{case}: working out what the maps should hold")), micros(compiled));
    series.add(what(&format!("{case}: working it out and writing it")), micros(time));
    agent.is_true()
}

/// Brings the maps to a snapshot; says how long working it out and writing it took.
fn serve(agent: &mut Agent, snapshot: &Arc<Snapshot>) -> Result<(Arc<Image>, Duration, Duration)> {
    let begun = Instant::now();
    let image = agent.compile(snapshot)?;
    let compiled = begun.elapsed();
    agent.kernel()?.set_ways(ways(&image))?;
    let begun = Instant::now();
    let done: Written = agent.kernel()?.apply(Arc::clone(&image))?;
    let written = begun.elapsed();
    ensure!(done.tables == image.services.len(), "applied {done:?}");
    Ok((image, compiled, written))
}

fn first_endpoint(image: &Image, service: usize) -> Result<Arc<Endpoint>> {
    let row = image.services.get(service).and_then(|service| service.endpoints.first());
    Ok(Arc::clone(&row.context("a service without endpoints")?.endpoint))
}

fn ways(image: &Image) -> HashMap<IpAddr, Way> {
    let way = Way {
        is_local: false,
        is_on_link: true,
        interface: 1,
        source: Some(IpAddr::from([10, 255, 0, 1])),
        next_hop: NextHop { interface: 1, mac: [2; 6], own_mac: [3; 6] },
        mtu: 1_500,
    };
    let rows = image.services.iter().flat_map(|service| &service.endpoints);
    rows.map(|row| (row.endpoint.addr().ip(), way)).collect()
}

/// So many services, each with so many endpoints; of one in `heavy_one_in` of them the second endpoint has more weight.
fn snapshot(n_services: usize, n_endpoints: usize, heavy_one_in: usize) -> Result<Snapshot> {
    let host = |base: u32, idx: usize| -> Result<Ipv4Addr> { Ok(Ipv4Addr::from(base + u32::try_from(idx)?)) };
    let [mut listeners, mut routes, mut services] =
        ["listeners:\n", "routes:\n", "services:\n"].map(String::from);
    for idx in 0..n_services {
        // 198.18.0.0/15 is for benchmarks (RFC 2544).
        let virtual_addr = host(0xc612_0000, idx)?;
        writeln!(listeners, "- {{name: s{idx}, address: {virtual_addr}, port: 80, protocol: TCP}}")?;
        writeln!(
            routes,
            "- {{name: s{idx}, listeners: [s{idx}], rules: [{{backends: [{{service: s{idx}}}]}}]}}"
        )?;
        writeln!(services, "- name: s{idx}\n  endpoints:")?;
        for endpoint in 0..n_endpoints {
            let is_heavy = heavy_one_in != 0 && idx % heavy_one_in == 0 && endpoint == 1;
            let weight = if is_heavy { ", weight: 3" } else { "" };
            let addr = host(0x0a00_0001, idx * n_endpoints + endpoint)?;
            writeln!(services, "  - {{address: {addr}, port: 80{weight}}}")?;
        }
    }
    let text = [listeners, routes, services].concat();
    let loaded = file::parse(Path::new("publish.yaml"), &text);
    Ok(loaded.map_err(|faults| anyhow!("the configuration is unsound: {faults}"))?.snapshot)
}
