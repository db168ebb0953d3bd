//! Shards, stealing, growth, sharing, and the end of an endpoint.
#![expect(clippy::disallowed_methods, reason = "the endpoint's tasks end with their test")]

use std::net::SocketAddr;

use futures_util::FutureExt as _;
use http::Request;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    clock::Clock,
    drain::Tasks,
    endpoint::{EndpointId, Health, Registry},
    metrics::names::Families,
    name::ServiceName,
    pool::{kept::Kept, places::Places, registry::Pools},
};

struct Bench {
    pool: Arc<Pool>,
    pools: Pools,
    clock: Clock,
    addr: SocketAddr,
}

/// Idle connections of each worker.
const KEPT: usize = 2 * limits::POOL_IDLE_CONNECTIONS;

/// A pool of two shards before an endpoint that answers `ok` to whatever it reads.
async fn bench() -> Bench {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                while stream.read(&mut bytes).await.is_ok_and(|n| n > 0) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                }
            });
        }
    });
    let clock = Clock::driven();
    let (tasks, families) = (Tasks::default(), Families::default());
    let (kept, places) = (Kept::new(2, KEPT), Places::new(KEPT));
    let pools = Pools::new(Shared { n_shards: 2, tasks, clock: clock.clone(), families, kept, places });
    let endpoint = Registry::default().resolve(&EndpointId { service: ServiceName::new("s"), addr });
    Bench { pool: pools.resolve(&endpoint, Protocol::Http1.into()), pools, clock, addr }
}

async fn connect(addr: SocketAddr) -> Result<Link, OpenError> {
    TcpStream::connect(addr).await.map(Link::from).map_err(OpenError::Io)
}

impl Bench {
    async fn open(&self, worker: usize) -> Lease {
        self.pool.open(worker, None, connect(self.addr)).await.unwrap()
    }

    /// One whole exchange.
    async fn exchange(&self, mut lease: Lease) {
        let head = Request::get("/").header("host", "a").body(()).unwrap().into_parts().0;
        let response = lease.send(&head, &mut RequestBody::empty(), &interim::Nobody, None).await.unwrap();
        assert_eq!(response.status(), 200);
        lease.finish(&mut response.into_body());
    }
}

#[tokio::test]
async fn a_worker_takes_its_own_then_steals_and_then_grows() {
    let bench = bench().await;
    assert!(bench.pool.reuse(0).is_none());
    let first = bench.open(0).await;
    assert_eq!(first.origin(), Origin::Opened);
    assert!(bench.pool.reuse(0).is_none(), "it is in use");
    bench.exchange(first).await;
    assert_eq!((bench.pool.open_count(), bench.pool.idle_count()), (1, 1));

    let own = bench.pool.reuse(0).unwrap();
    assert_eq!(own.origin(), Origin::Reused);
    assert!(!bench.pool.should_grow(0), "it has its share");
    bench.exchange(own).await;

    let stolen = bench.pool.reuse(1).unwrap();
    assert_eq!((stolen.origin(), bench.pool.stolen_count()), (Origin::Stolen, 1));
    assert!(bench.pool.should_grow(1));
    assert!(!bench.pool.should_grow(1), "one at a time");
    let grown = bench.open(1).await;
    bench.pool.grown(1);
    bench.exchange(grown).await;
    bench.exchange(stolen).await;
    assert!(!bench.pool.should_grow(1), "it has its share now");
    assert_eq!(bench.pool.reuse(1).unwrap().origin(), Origin::Reused);
}

#[tokio::test]
async fn idle_connections_end_after_a_while() {
    let bench = bench().await;
    let (a, b) = (bench.open(0).await, bench.open(0).await);
    bench.exchange(a).await;
    bench.clock.advance(limits::POOL_IDLE);
    bench.exchange(b).await;
    bench.pools.sweep(0, limits::POOL_IDLE);
    assert_eq!(bench.pool.idle_count(), 1);
    bench.clock.advance(limits::POOL_IDLE);
    bench.pools.sweep(0, limits::POOL_IDLE);
    assert_eq!(bench.pool.idle_count(), 0);
}

#[tokio::test]
async fn no_more_idle_connections_are_kept_than_the_bound() {
    let bench = bench().await;
    let mut leases = Vec::new();
    for _ in 0..=limits::POOL_IDLE_CONNECTIONS {
        leases.push(bench.open(0).await);
    }
    for lease in leases {
        bench.exchange(lease).await;
    }
    assert_eq!(bench.pool.idle_count(), limits::POOL_IDLE_CONNECTIONS);
}

#[tokio::test]
async fn the_oldest_idle_connections_of_all_endpoints_go_when_there_are_too_many() {
    let Bench { pool, pools, clock, addr } = bench().await;
    let kept = Kept::new(2, 16);
    let shared = Shared { kept: kept.clone(), ..pool.shared.clone() };
    drop((pool, pools));
    let (pools, registry) = (Pools::new(shared), Registry::default());
    let all: Vec<_> = (0..40)
        .map(|idx| {
            let id = EndpointId { service: ServiceName::new(&format!("s{idx}")), addr };
            pools.resolve(&registry.resolve(&id), Protocol::Http1.into())
        })
        .collect();
    for pool in &all {
        let bench = Bench {
            pool: Arc::clone(pool),
            pools: Pools::new(pool.shared.clone()),
            clock: clock.clone(),
            addr,
        };
        bench.exchange(bench.open(0).await).await;
        clock.advance(Duration::from_millis(1));
        // As the worker does.
        if kept.crowded(0).now_or_never().is_some() {
            pools.relieve(0);
        }
    }
    let idle: Vec<usize> = all.iter().map(|pool| pool.idle_count()).collect();
    let n_idle: usize = idle.iter().sum();
    assert!((14..=18).contains(&n_idle), "{idle:?}");
    assert!(idle.is_sorted(), "the oldest went: {idle:?}");
    // Whatever takes them out of a pool is counted.
    assert_eq!(kept.count(0), n_idle);
    drop(all[39].reuse(0).unwrap());
    pools.sweep(0, Duration::from_millis(3));
    all[38].endpoint().set_health(Health::Down);
    drop((all, pools));
    eventually_none(&kept).await;
}

#[tokio::test]
async fn idle_connections_make_room_where_the_node_has_none() {
    let bench = bench().await;
    let (a, b) = (bench.open(0).await, bench.open(0).await);
    bench.exchange(a).await;
    bench.exchange(b).await;
    let kept = &bench.pool.shared.kept;
    for (cause, is_of_node) in [(libc::ECONNREFUSED, false), (libc::EMFILE, true)] {
        let lacking = async { Err(OpenError::Io(io::Error::from_raw_os_error(cause))) };
        bench.pool.open(0, None, lacking).await.unwrap_err();
        assert_eq!(kept.crowded(0).now_or_never().is_some(), is_of_node);
    }
    bench.pools.relieve(0);
    assert_eq!((bench.pool.idle_count(), kept.count(0)), (1, 1));
}

#[tokio::test]
async fn all_pools_together_have_so_many_connections_and_idle_ones_make_room() {
    let Bench { pool, addr, .. } = bench().await;
    let pools = Pools::new(Shared { places: Places::new(2), ..pool.shared.clone() });
    let registry = Registry::default();
    let [one, other] = [(1, Protocol::Http1), (2, Protocol::Http2)].map(|(n, protocol)| {
        let id = EndpointId { service: ServiceName::new(&format!("s{n}")), addr };
        pools.resolve(&registry.resolve(&id), protocol.into())
    });
    let (first, second) =
        (one.open(0, None, connect(addr)).await.unwrap(), other.open(1, None, connect(addr)).await.unwrap());
    for (pool, worker) in [(&one, 0), (&other, 0)] {
        let refused = pool.open(worker, None, connect(addr)).await.unwrap_err();
        assert!(refused.is_of_node(), "{refused:?}");
    }
    // Who waited for another's turn is not told that the endpoint refused it.
    let [refused, waited] =
        <[_; 2]>::from(tokio::join!(other.open(0, None, connect(addr)), other.open(0, None, connect(addr))));
    assert!([refused, waited].iter().all(|opened| opened.as_ref().is_err_and(OpenError::is_of_node)));
    assert_eq!((one.open_count(), other.open_count()), (1, 1), "nothing is left of what was refused");
    assert_eq!(one.total.load(Ordering::Relaxed), 1);
    // Every worker may have what another one lacks.
    for worker in [0, 1] {
        assert!(pools.crowded(worker).now_or_never().is_some(), "{worker}");
    }
    assert!(!pools.relieve(0) && !pools.relieve(1), "all are busy");
    first.give_back();
    assert!(pools.make_room(0) && !pools.make_room(0));
    let first = one.open(0, None, connect(addr)).await.unwrap();
    // One that carries many streams is idle when it carries none.
    second.give_back();
    assert!(pools.relieve(1));
    while other.open_count() > 0 {
        tokio::task::yield_now().await;
    }
    let second = one.open(1, None, connect(addr)).await.unwrap();
    // What another worker has idle is waited for.
    let relieving = async {
        second.give_back();
        pools.crowded(1).await;
        assert!(pools.relieve(1));
    };
    let (place, ()) = tokio::join!(pools.place(0), relieving);
    let second = one.open(1, Some(place.unwrap()), connect(addr)).await.unwrap();
    assert!(pools.place(0).await.is_err(), "all are busy");
    drop((first, second));
    assert_eq!(one.open_count(), 0);
}

async fn eventually_none(kept: &Kept) {
    for _ in 0..100 {
        if kept.count(0) == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(kept.count(0), 0);
}

#[tokio::test]
async fn all_connections_end_with_the_endpoint_and_new_ones_are_possible_when_it_is_back() {
    let bench = bench().await;
    for _ in 0..3 {
        let (idle, busy) = (bench.open(0).await, bench.open(1).await);
        bench.exchange(idle).await;
        bench.pool.endpoint().set_health(Health::Down);
        while bench.pool.open_count() > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(bench.pool.idle_count(), 0);
        let mut busy = busy;
        let head = Request::get("/").header("host", "a").body(()).unwrap().into_parts().0;
        assert!(matches!(
            busy.send(&head, &mut RequestBody::empty(), &interim::Nobody, None).await,
            Err(SendError::Unsent | SendError::Closed)
        ));
        drop(busy);
        assert_eq!(bench.pool.open_count(), 0);
        bench.pool.endpoint().set_health(Health::Up);
    }
}

#[tokio::test]
async fn a_pool_outlives_whoever_asks_for_it_again() {
    let bench = bench().await;
    let again = bench.pools.resolve(bench.pool.endpoint(), Protocol::Http1.into());
    assert!(Arc::ptr_eq(&again, &bench.pool));
    let other = bench.pools.resolve(bench.pool.endpoint(), Protocol::Http2.into());
    assert!(!Arc::ptr_eq(&other, &bench.pool));
}

#[tokio::test]
async fn a_client_keeps_its_pools_to_a_bound_and_they_count_with_that_of_all() {
    let bench = bench().await;
    let ends = Client { source: bench.addr, destination: bench.addr };
    let own = own::Own::new(ends);
    let first = own.resolve(&bench.pools, &bench.pool, 1);
    assert!(Arc::ptr_eq(&first, &own.resolve(&bench.pools, &bench.pool, 1)));
    let same = own::Own::new(ends).resolve(&bench.pools, &bench.pool, 0);
    assert!(Arc::ptr_eq(&first, &same), "another connection of the same client");
    let other = Client { destination: SocketAddr::from(([127, 0, 0, 1], 1)), ..ends };
    assert!(!Arc::ptr_eq(&first, &own::Own::new(other).resolve(&bench.pools, &bench.pool, 0)));
    drop(same);
    assert_eq!((first.client(), bench.pool.client()), (Some(ends), None));
    let lease = first.open(1, None, connect(bench.addr)).await.unwrap();
    assert_eq!((first.open_count(), bench.pool.open_count()), (1, 0));
    assert_eq!(bench.pool.total.load(Ordering::Relaxed), 1, "the cap is that of the endpoint");
    bench.exchange(lease).await;
    assert!(bench.pool.reuse(0).is_none(), "nobody else may have it");
    let kept = &bench.pool.shared.kept;
    assert_eq!((kept.count(0), kept.count(1)), (0, 1), "the worker that served first has it");
    assert_eq!(first.reuse(3).map(|lease| lease.origin()), Some(Origin::Reused));
    let registry = Registry::default();
    for port in 0..u16::try_from(limits::OWN_POOLS).unwrap() {
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let endpoint = registry.resolve(&EndpointId { service: ServiceName::new("s"), addr });
        own.resolve(&bench.pools, &bench.pools.resolve(&endpoint, Protocol::Http1.into()), 0);
    }
    assert_eq!(Arc::strong_count(&first), 1, "it was given up");
    drop((first, own));
    assert_eq!(bench.pool.total.load(Ordering::Relaxed), 0, "its connections end with the last who holds it");
}
