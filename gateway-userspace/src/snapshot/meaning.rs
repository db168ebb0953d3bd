//! Checks of one listener: whether what is written means something for its protocol, and agrees with its neighbours.

use gateway_common::service::Track;

use crate::{
    place::{Located, Place},
    snapshot::{
        build::Problems,
        draft::DraftListener,
        listener::{Forwarding, Protocol},
        sources::{self, DraftNewFlows},
    },
};

/// Checks a listener by itself.
pub(super) fn check(listener: &DraftListener, problems: &mut Problems) {
    if let Some(flows) = &listener.new_flows {
        sources::check_new_flows(flows, problems);
    }
    let Some(Located { value: protocol, place }) = listener.protocol else { return };
    check_tls(listener, protocol, place, problems);
    check_track(listener, problems);
    let word = protocol.as_str();
    let mut meaningless = |place: Option<Place>, key: &str, remedy: &str| {
        if let Some(place) = place {
            problems.fault(place, format!("`{key}` has no meaning for {word}"), remedy);
        }
    };
    let is_packets = matches!(protocol, Protocol::Tcp | Protocol::Udp);
    let forwarding = listener.forwarding.as_ref();
    if !is_packets {
        let what = if protocol == Protocol::Tls { "connections" } else { "requests" };
        let remedy = &format!("remove it: the agent itself forwards {what}");
        meaningless(forwarding.map(|it| it.place), "forwarding", remedy);
    } else if protocol == Protocol::Udp {
        let agent = forwarding.filter(|it| it.value == Forwarding::Agent);
        meaningless(
            agent.map(|it| it.place),
            "forwarding: agent",
            "remove it: datagrams belong to no connection",
        );
    }
    if is_packets {
        let remedy = "remove it: packets carry no host name";
        meaningless(listener.hostname.as_ref().map(|it| it.place), "hostname", remedy);
    }
    if !protocol.is_layer7() {
        let remedy = "remove it: packets carry no path";
        meaningless(listener.paths.as_ref().map(|it| it.place), "paths", remedy);
        let remedy = "remove it: packets carry no header fields";
        meaningless(listener.underscores.as_ref().map(|it| it.place), "underscores", remedy);
        meaningless(listener.trusted_hops.as_ref().map(|it| it.place), "trustedHops", remedy);
    }
    let by_kernel = is_packets && forwarding.is_none_or(|it| it.value != Forwarding::Agent);
    if !by_kernel {
        let remedy = "remove it, or write `protocol: TCP` or `UDP` without `forwarding: agent`";
        meaningless(listener.track.as_ref().map(|it| it.place), "track", remedy);
        meaningless(listener.affinity.as_ref().map(|it| it.place), "affinity", remedy);
        meaningless(listener.ports.as_ref().map(|it| it.place), "ports", remedy);
    }
    if !by_kernel || protocol == Protocol::Udp {
        let remedy = "remove it, or write `protocol: TCP` without `forwarding: agent`";
        meaningless(listener.resets.as_ref().map(|it| it.place), "whenDown", remedy);
    }
    if by_kernel {
        let remedy =
            "write `protocol: TCP` with `forwarding: agent`: the kernel forwards packets as they are";
        meaningless(listener.proxies.as_ref().map(|it| it.place), "proxyProtocol", remedy);
    }
    if let Some(remedy) = without_handshake(listener, protocol) {
        meaningless(listener.syn_cookies.as_ref().map(|it| it.place), "synCookies", remedy);
    }
    if by_kernel {
        let open = listener.fails_open.as_ref();
        let remedy = "remove it: the kernel forwards packets without the agent";
        meaningless(open.map(|it| it.place), "failMode", remedy);
    }
    if by_kernel || protocol.is_layer7() {
        let remedy = "remove it, or write `protocol: TCP` with `forwarding: agent`";
        meaningless(listener.idle_timeout.as_ref().map(|it| it.place), "idleTimeout", remedy);
    }
}

/// What to do about cookies where no handshake comes through this node; none where one does.
fn without_handshake(listener: &DraftListener, protocol: Protocol) -> Option<&'static str> {
    if protocol == Protocol::Udp {
        return Some("remove it: datagrams begin no connections");
    }
    listener.forwarding.as_ref().filter(|it| it.value.is_direct()).map(|_| {
        "remove it, or write `forwarding: nat` or `agent`: with direct return the endpoint's part of a handshake does \
         not come through this node"
    })
}

/// Translation has ports to remember, affinity a client.
fn check_track(listener: &DraftListener, problems: &mut Problems) {
    let Some(Located { value: track, place }) = listener.track else { return };
    let is_direct = listener.forwarding.as_ref().is_some_and(|it| it.value.is_direct());
    let needed_by = match (&listener.affinity, is_direct) {
        _ if track == Track::ALWAYS => return,
        (_, false) => "translation",
        (Some(_), true) => "`affinity`",
        (None, true) => return,
    };
    let message = format!("{needed_by} needs every flow to be remembered");
    problems.fault(place, message, "remove it, or write `always`");
}

fn check_tls(listener: &DraftListener, protocol: Protocol, place: Place, problems: &mut Problems) {
    match (protocol, &listener.tls) {
        (Protocol::Https, None) => {
            let remedy = "write `tls: {certificates: [{certificateFile: web.pem, keyFile: web.key}]}`, or protocol HTTP";
            problems.fault(place, "HTTPS needs `tls`", remedy);
        }
        (Protocol::Http | Protocol::Tls | Protocol::Tcp | Protocol::Udp, Some(tls)) => {
            let message = format!("`tls` has no meaning for {}", protocol.as_str());
            problems.fault(tls.place, message, "remove it, or write protocol HTTPS");
        }
        (Protocol::Https, Some(_))
        | (Protocol::Http | Protocol::Tls | Protocol::Tcp | Protocol::Udp, None) => {}
    }
}

/// Checks listeners that share an address and port, and so the beginning of every connection, handshakes and sessions. A
/// client that was let in under one name may ask for the other, so the certificate it had to show must not depend on that.
pub(super) fn check_shared(first: &DraftListener, listener: &DraftListener, problems: &mut Problems) {
    let name = first.name.as_ref().map_or("another listener", |name| name.value.as_str());
    let proxies = |listener: &DraftListener| listener.proxies.as_ref().map(|proxies| proxies.value.clone());
    if proxies(first) != proxies(listener) {
        let place = listener.proxies.as_ref().map_or(listener.place, |proxies| proxies.place);
        let message = format!("{name} has another `proxyProtocol` on the same address and port");
        problems.fault(place, message, "write the same `proxyProtocol`, or another port");
    }
    let flows = |listener: &DraftListener| listener.new_flows.as_ref().map(DraftNewFlows::value);
    if flows(first) != flows(listener) {
        let place = listener.new_flows.as_ref().map_or(listener.place, |flows| flows.place);
        let message = format!("{name} has another `newFlows` on the same address and port");
        problems.fault(place, message, "write the same `newFlows`, or another port");
    }
    let cookies = |listener: &DraftListener| listener.syn_cookies.as_ref().map(|cookies| cookies.value);
    if cookies(first) != cookies(listener) {
        let place = listener.syn_cookies.as_ref().map_or(listener.place, |cookies| cookies.place);
        let message = format!("{name} has other `synCookies` on the same address and port");
        problems.fault(place, message, "write the same `synCookies`, or another port");
    }
    let fails_open = |listener: &DraftListener| listener.fails_open.as_ref().is_some_and(|it| it.value);
    if fails_open(first) != fails_open(listener) {
        let place = listener.fails_open.as_ref().map_or(listener.place, |it| it.place);
        let message = format!("{name} has another `failMode` on the same address and port");
        problems.fault(place, message, "write the same `failMode`, or another port");
    }
    let (Some(theirs), Some(ours)) = (&first.tls, &listener.tls) else { return };
    if theirs.value.clients != ours.value.clients {
        let message = format!("{name} asks other certificates of clients on the same address and port");
        problems.fault(ours.place, message, "write the same `clientCertificates`, or another port");
    }
    if theirs.value.ticket_keys != ours.value.ticket_keys {
        let message = format!("{name} has other ticket keys on the same address and port");
        problems.fault(ours.place, message, "write the same `ticketKeysFile`, or another port");
    }
}
