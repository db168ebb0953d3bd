//! A long run at half load, over every protocol on both sides: the configuration changes every ten seconds, endpoints die
//! with everything that they have open and return, and nothing of it may show: no failed request, no memory, no descriptor,
//! no task that stays.

mod agent;
mod client;
mod endpoint;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::task::JoinSet;

use self::{
    agent::Agent,
    client::{Client, Seen, Speech},
    endpoint::{Endpoint, Protocol},
};

/// Below it there is nothing to compare.
pub const SHORTEST: Duration = Duration::from_mins(1);

/// Of each protocol.
const N_ENDPOINTS: usize = 4;
const N_CLIENTS: u32 = 16;
/// One endpoint of each protocol after the other dies so often, and is away for a third of the time.
const DEATHS: Duration = Duration::from_secs(6);
const RELOADS: Duration = Duration::from_secs(10);
/// How long it is measured what the agent can do.
const FULL_LOAD: Duration = Duration::from_secs(5);
/// Memory may grow by this part.
const TOLERANCE: f64 = 0.05;

/// Runs for `time`; whether everything held.
///
/// # Errors
/// When the agent cannot be run.
pub fn run(time: Duration) -> Result<bool> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(soak(time))
}

/// The middle of some values.
fn middle(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

async fn load(
    agent: &Agent,
    every: Option<Duration>,
    time: Duration,
    seen: &Arc<Seen>,
) -> Result<JoinSet<()>> {
    let mut clients = JoinSet::new();
    for speech in Speech::ALL.into_iter().cycle().take(usize::try_from(N_CLIENTS)?) {
        let client = Client::new(speech, agent.addrs(), &agent.certificate)?;
        clients.spawn(client.run(every, Instant::now() + time, Arc::clone(seen)));
        // Not all at the same moment.
        tokio::time::sleep(every.unwrap_or_default() / N_CLIENTS).await;
    }
    Ok(clients)
}

async fn soak(time: Duration) -> Result<bool> {
    let (mut endpoints, mut tasks) = (Vec::new(), JoinSet::new());
    for protocol in [Protocol::Http1, Protocol::H2c] {
        for _ in 0..N_ENDPOINTS {
            endpoints.push(Endpoint::start(protocol, &mut tasks)?);
        }
    }
    let mut agent = Agent::start(&endpoints).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let descriptors = agent.descriptors().await?;
    let tasks = agent.metric("sluice_tasks", "").await?;
    let full = Arc::new(Seen::default());
    load(&agent, None, FULL_LOAD, &full).await?.join_all().await;
    let per_second = full.n_good.load(Ordering::Relaxed) / FULL_LOAD.as_secs();
    let every = Duration::from_secs(1) * N_CLIENTS * 2 / u32::try_from(per_second.max(1))?;
    println!("full load is {per_second} requests in a second; half of it for {time:?}");
    let seen = Arc::new(Seen::default());
    let clients = load(&agent, Some(every), time, &seen).await?;
    let memory = disturb(&agent, &endpoints, time).await?;
    clients.join_all().await;
    let n_reloads = agent.metric("sluice_config_reloads_total", "applied").await?;
    let retries = agent.metric("sluice_upstream_retries_total", "").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let left = agent.descriptors().await?;
    let open = agent.metric("sluice_connections_open", "").await?;
    let pooled = agent.metric("sluice_upstream_connections", "state=\"open\"").await?;
    // A connection to an endpoint is a task of its own.
    let tasks_left = agent.metric("sluice_tasks", "").await? - pooled;
    let (ended, warnings) = (agent.end().await?, agent.warnings());
    let (n_good, n_bad) = (seen.n_good.load(Ordering::Relaxed), seen.n_bad.load(Ordering::Relaxed));
    let (early, late) = memory.split_at(memory.len() / 2);
    let (early, late) = (middle(early), middle(late));
    #[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "mebibytes are far below 2^52")]
    let growth = late as f64 / early.max(1) as f64 - 1.0;
    println!(
        "requests: {n_good} good, {n_bad} failed ({:?} first); {retries} retries, {n_reloads} reloads",
        seen.first.get()
    );
    println!("memory: {early} KiB in the first half, {late} KiB in the second: {:+.1} %", growth * 100.0);
    println!(
        "descriptors beside connections: {descriptors} before, {left} after; {open} connections left open"
    );
    println!("tasks beside those of connections to endpoints: {tasks} before, {tasks_left} after");
    println!("the agent ended within {ended:?}; errors in its log: {warnings:?}");
    // Without what disturbs it, it shows nothing.
    #[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "seconds are far below 2^52")]
    let due = (time.as_secs() / RELOADS.as_secs()) as f64;
    let is_disturbed = n_reloads >= due / 2.0 && (retries > 0.5 || time < DEATHS);
    Ok(n_bad == 0
        && n_good > 0
        && is_disturbed
        && growth < TOLERANCE
        && (left - descriptors).abs() < 3.0
        && open < 0.5
        && tasks_left <= tasks
        && ended < Duration::from_secs(10)
        && warnings.is_empty())
}

/// Changes the configuration and lets endpoints die; memory once a second after a fifth of the time.
async fn disturb(agent: &Agent, endpoints: &[Endpoint], time: Duration) -> Result<Vec<u64>> {
    let (started, mut memory, mut n_reloads) = (Instant::now(), Vec::new(), 0);
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    while started.elapsed() < time {
        ticks.tick().await;
        let elapsed = started.elapsed();
        if elapsed.as_secs() / RELOADS.as_secs() > n_reloads {
            n_reloads += 1;
            agent.reload(endpoints, n_reloads)?;
        }
        // One of each protocol after the other, and never two of one.
        let turn = usize::try_from(elapsed.as_secs() / DEATHS.as_secs())?;
        let is_dying = elapsed.as_secs() % DEATHS.as_secs() < DEATHS.as_secs() / 3;
        for (at, endpoint) in endpoints.iter().enumerate() {
            endpoint.set_dead(is_dying && at % N_ENDPOINTS == turn % N_ENDPOINTS);
        }
        if elapsed > time / 5 {
            memory.push(agent.memory_kib()?);
        }
    }
    for endpoint in endpoints {
        endpoint.set_dead(false);
    }
    Ok(memory)
}
