//! What the kernel programs counted, as the values of metrics.

use gateway_common::{counter::Reason, event::EventCount};

use crate::{
    kernel::{Counters, OfEndpoint},
    metrics::{
        kernel::{EndpointSample, Samples as OfKernel},
        names::{PacketSample, Samples, ServiceSample},
    },
};

/// Adds what was read.
pub fn add(samples: &mut Samples, counters: &Counters) {
    samples.packets = counters
        .reasons
        .iter()
        .map(|(hook, reason, count)| PacketSample {
            hook: hook.name(),
            reason: reason.name(),
            packets: count.packets,
            bytes: count.bytes,
        })
        .collect();
    samples.flows =
        counters.flows.iter().map(|(listener, count)| (listener.clone(), count.entries)).collect();
    samples.flow_room = counters.flow_room;
    samples.kernel = OfKernel {
        drops: counters.drops.clone(),
        endpoints: counters.endpoints.iter().flat_map(endpoint_values).collect(),
        open: counters
            .endpoints
            .iter()
            .map(|of| (of.listener.clone(), of.addr.to_string(), of.flows))
            .collect(),
        events: counters.events.iter().flat_map(event_values).collect(),
        networks: counters.networks,
        socket_pairs: counters.socket_pairs,
        cookies: counters
            .cookies
            .iter()
            .map(|(listener, of)| (listener.clone(), of.is_armed, of.sent))
            .collect(),
    };
    for (listener, count) in &counters.services {
        samples.services.extend(count.named().map(|(what, count)| ServiceSample {
            listener: listener.clone(),
            what,
            count,
        }));
    }
    samples.services.extend(counters.flows.iter().map(|(listener, count)| ServiceSample {
        listener: listener.clone(),
        what: "evicted",
        count: count.evicted,
    }));
}

fn endpoint_values(of: &OfEndpoint) -> Vec<EndpointSample> {
    let OfEndpoint { count, health, .. } = of;
    // What never happened is left out: there may be a hundred thousand endpoints.
    let signals = health.named().into_iter().filter(|(_, count)| *count != 0);
    let values = count.named().into_iter().chain(signals);
    let sample = |(what, count)| EndpointSample {
        listener: of.listener.clone(),
        endpoint: of.addr.to_string(),
        what,
        count,
    };
    values.map(sample).collect()
}

fn event_values((reason, count): &(Reason, EventCount)) -> [(&'static str, &'static str, u64); 3] {
    let values = [("told", count.told), ("limited", count.limited), ("lost", count.lost)];
    values.map(|(outcome, packets)| (reason.name(), outcome, packets))
}
