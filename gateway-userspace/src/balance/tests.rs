//! What every policy must hold.

use std::{net::SocketAddr, sync::Arc};

use super::*;
use crate::{
    endpoint::{EndpointId, Health, Registry},
    name::ServiceName,
};

fn members(registry: &Registry, weights: &[u32]) -> Vec<Member> {
    (1u8..)
        .zip(weights)
        .map(|(n, weight)| {
            let id =
                EndpointId { service: ServiceName::new("s"), addr: SocketAddr::from(([192, 0, 2, n], 80)) };
            let endpoint = registry.resolve(&id);
            endpoint.set_weight(*weight);
            Member { endpoint, backend_weight: 1, weight: *weight }
        })
        .collect()
}

fn of_port(port: u16) -> FlowKey {
    let (client, here) = (Addr::v4([198, 51, 100, 7]), Addr::v4([203, 0, 113, 1]));
    FlowKey::new(client, Port::new(port), here, Port::new(80), Protocol::TCP)
}

#[track_caller]
fn shares(policy: Policy, weights: &[u32], n: u16, tolerance: f64) {
    let balancer = Balancer::new(policy, members(&Registry::default(), weights), &Seed::new([1, 2]));
    let mut counts = vec![0u32; weights.len()];
    for port in 0..n {
        counts[balancer.pick(&of_port(port), &Tried::default()).unwrap()] += 1;
    }
    let total: f64 = weights.iter().copied().map(f64::from).sum();
    for (count, weight) in counts.iter().zip(weights) {
        let (share, wanted) = (f64::from(*count) / f64::from(n), f64::from(*weight) / total);
        assert!((share - wanted).abs() < tolerance, "{policy:?}: {share} instead of {wanted} of {counts:?}");
        assert_eq!(*count == 0, *weight == 0, "{policy:?}: {counts:?}");
    }
}

#[test]
fn shares_follow_weights() {
    shares(Policy::RoundRobin, &[3, 1], 4_000, 0.000_1);
    shares(Policy::RoundRobin, &[5, 1, 1, 0], 7_000, 0.000_1);
    shares(Policy::RoundRobin, &[1_000_000, 999_999, 1], 20_000, 0.002);
    shares(Policy::Maglev, &[3, 1, 0], 60_000, 0.02);
}

#[test]
fn a_weighted_turn_is_spread_and_not_bunched() {
    let balancer =
        Balancer::new(Policy::RoundRobin, members(&Registry::default(), &[5, 1, 1]), &Seed::new([1, 2]));
    let picks: Vec<_> = (0..14).map(|_| balancer.pick(&of_port(1), &Tried::default()).unwrap()).collect();
    let longest = picks.split(|idx| *idx != 0).map(<[usize]>::len).max().unwrap();
    assert!(longest <= 4, "{picks:?}");
}

#[test]
fn the_less_loaded_is_preferred() {
    let registry = Registry::default();
    let members = members(&registry, &[1, 1, 1, 1, 1]);
    let busy: Vec<_> = (0..50).map(|_| members[0].endpoint.begin()).collect();
    let balancer = Balancer::new(Policy::LeastRequest, members, &Seed::new([1, 2]));
    let hits = (0..1_000).filter(|_| balancer.pick(&of_port(1), &Tried::default()) == Some(0)).count();
    assert_eq!(hits, 0);
    drop(busy);
    let hits = (0..1_000).filter(|_| balancer.pick(&of_port(1), &Tried::default()) == Some(0)).count();
    assert!(hits > 50, "{hits}");
}

#[test]
fn what_is_down_or_was_tried_is_left_out() {
    for policy in [Policy::RoundRobin, Policy::LeastRequest, Policy::Maglev] {
        let registry = Registry::default();
        let members = members(&registry, &[1, 1, 1, 1]);
        let endpoints: Vec<_> = members.iter().map(|member| Arc::clone(&member.endpoint)).collect();
        let balancer = Balancer::new(policy, members, &Seed::new([1, 2]));
        endpoints[1].set_health(Health::Down);
        let mut tried = Tried::default();
        tried.push(2);
        for port in 0..200 {
            let idx = balancer.pick(&of_port(port), &tried).unwrap();
            assert!(idx == 0 || idx == 3, "{policy:?} picked {idx}");
        }
        endpoints[0].set_health(Health::Down);
        endpoints[3].set_health(Health::Down);
        assert_eq!(balancer.pick(&of_port(1), &tried), None, "{policy:?}");
        endpoints[1].set_health(Health::Up);
        assert_eq!(balancer.pick(&of_port(1), &tried), Some(1), "{policy:?}");
        endpoints[1].set_draining(true);
        endpoints[2].set_health(Health::Down);
        assert_eq!(
            balancer.pick(&of_port(1), &tried),
            Some(1),
            "{policy:?}: the last one drains and still serves"
        );
    }
}

#[test]
fn only_flows_of_the_lost_member_move() {
    let registry = Registry::default();
    let members = members(&registry, &[1; 5]);
    let lost = Arc::clone(&members[2].endpoint);
    let balancer = Balancer::new(Policy::Maglev, members, &Seed::new([1, 2]));
    let pick = |port| balancer.pick(&of_port(port), &Tried::default()).unwrap();
    let before: Vec<_> = (0..5_000).map(pick).collect();
    lost.set_health(Health::Down);
    let after: Vec<_> = (0..5_000).map(pick).collect();
    let moved = before.iter().zip(&after).filter(|(a, b)| a != b && **a != 2).count();
    assert!(after.iter().all(|idx| *idx != 2));
    assert!(moved < 500, "{moved} flows of others moved");
    lost.set_health(Health::Up);
    assert_eq!(before, (0..5_000).map(pick).collect::<Vec<_>>());
}
