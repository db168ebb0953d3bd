//! What the kernel programs counted, as the values of metrics.

use gateway_common::{
    counter::{EndpointCount, Reason},
    event::EventCount,
};

use crate::{
    kernel::Counters,
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
    samples.flows.clone_from(&counters.flows);
    samples.flow_room = counters.flow_room;
    samples.kernel = OfKernel {
        drops: counters.drops.clone(),
        endpoints: counters.endpoints.iter().flat_map(endpoint_values).collect(),
        events: counters.events.iter().flat_map(event_values).collect(),
        networks: counters.networks,
        cookies: counters
            .cookies
            .iter()
            .map(|(listener, of)| (listener.clone(), of.is_armed, of.sent))
            .collect(),
    };
    for (listener, count) in &counters.services {
        let values = [
            ("packets", count.packets),
            ("bytes", count.bytes),
            ("reply_packets", count.reply_packets),
            ("reply_bytes", count.reply_bytes),
            ("new_flows", count.new_flows),
            ("steered", count.steered),
            ("dropped", count.dropped),
            ("unrecorded", count.unrecorded),
        ];
        samples.services.extend(values.map(|(what, count)| ServiceSample {
            listener: listener.clone(),
            what,
            count,
        }));
    }
}

fn endpoint_values(
    (listener, endpoint, count): &(String, std::net::SocketAddr, EndpointCount),
) -> [EndpointSample; 5] {
    let values = [
        ("packets", count.packets),
        ("bytes", count.bytes),
        ("reply_packets", count.reply_packets),
        ("reply_bytes", count.reply_bytes),
        ("new_flows", count.new_flows),
    ];
    values.map(|(what, count)| EndpointSample {
        listener: listener.clone(),
        endpoint: endpoint.to_string(),
        what,
        count,
    })
}

fn event_values((reason, count): &(Reason, EventCount)) -> [(&'static str, &'static str, u64); 3] {
    let values = [("told", count.told), ("limited", count.limited), ("lost", count.lost)];
    values.map(|(outcome, packets)| (reason.name(), outcome, packets))
}
