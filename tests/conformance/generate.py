#!/usr/bin/env python3
"""Makes the packet conformance suite: what goes in, and what has to come out, built by scapy.

Nothing here is taken from the pipeline. A packet that has to come out is built from the same description as the one
that went in, with the addresses, ports and times to live that the case asks for, and scapy computes every length and
checksum anew. What is a free choice of the implementation is left open in the bytes:

    .    a nibble that may have any value, the same for every packet of a flow
    x    a nibble of 0xc to 0xf: the upper bits of a port of the dynamic range (RFC 6335)
    ~~~~ the header checksum of an IPv4 header with such nibbles: the one that makes the header's sum right

The port of a translated packet is no free choice here: the range of translation has a single port.

    generate.py             writes cases.json beside this file
    generate.py --check     compares, and says whether they are the same
    generate.py --list      says what there is of each kind
"""

import collections
import json
import logging
import pathlib
import sys

logging.getLogger("scapy").setLevel(logging.ERROR)

from scapy.all import (  # noqa: E402
    ICMP,
    IP,
    TCP,
    UDP,
    Dot1Q,
    Ether,
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    Raw,
    raw,
)

CASES = pathlib.Path(__file__).with_name("cases.json")

# The world of the suite (tests/src/world.rs): who is where.
CLIENT_MAC, NODE_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
ENDPOINT_MAC, INNER_MAC = "02:00:00:00:01:01", "02:00:00:00:01:02"
CLIENT = {4: "192.0.2.9", 6: "2001:db8:9::9"}
VIP = {4: "198.51.100.1", 6: "2001:db8::1"}
NODE = {4: "10.0.0.1", 6: "fd00::1"}
ENDPOINT = {4: "10.0.0.10", 6: "fd00::10"}
OTHER = {4: "10.0.0.11", 6: "fd00::11"}
STRANGER = {4: "203.0.113.77", 6: "2001:db8:ff::1"}
ROUTER = {4: "203.0.113.1", 6: "2001:db8:77::1"}
CLIENT_PORT = 40000
VIRTUAL_PORT = {"tcp": 443, "udp": 53}
ENDPOINT_PORT = {"tcp": 8443, "udp": 5353}
TRANSLATION_PORT = 20000
AGENT_PORT = 80
TUNNEL_PORT = 6080
TUNNEL_TTL = 64
# Who may send through tunnels to this node, which in a test run is whoever looks.
PEER = {4: "172.16.7.7", 6: "100::7:7"}
HERE = {4: "127.0.0.1", 6: "::1"}
HERE_MAC = "00:00:00:00:00:00"
# Where the tunnels come from; what is free in them follows in the bytes.
TUNNEL_SOURCE = {4: "172.16.0.0", 6: "100::"}

VERDICTS = {"forwarded": "send", "replied": "send", "forwarded_local": "pass"}


class Kind:
    """How a packet looks, but for its addresses, ports, time to live and frame."""

    def __init__(
        self, name, payload=b"sluice", ip=None, transport=None, pad=0, fault=0, zero_sum=False, chain=()
    ):
        self.name = name
        self.payload = payload
        # Extension headers of IPv6.
        self.chain = chain
        # Fields of the IP header and of the transport header, as scapy calls them.
        self.ip = ip or {}
        self.transport = transport or {}
        # Bytes after the end of the IP packet, as short frames have them.
        self.pad = pad
        # What the transport checksum is wrong by.
        self.fault = fault
        # The payload is chosen so that the checksum of what comes out is zero, before UDP's rule.
        self.zero_sum = zero_sum


class Ends:
    """Addresses, ports and frame of a packet."""

    def __init__(self, source, destination, ttl, macs):
        self.source, self.destination, self.ttl, self.macs = source, destination, ttl, macs


def network(family, proto, kind, ends, payload):
    """The IP packet, by scapy."""
    (source, source_port), (destination, destination_port) = ends.source, ends.destination
    if family == 4:
        fields = {"id": 0x1234, **kind.ip}
        header = IP(src=source, dst=destination, ttl=ends.ttl, **fields)
    else:
        fields = {"fl": 0x12345, **kind.ip}
        header = IPv6(src=source, dst=destination, hlim=ends.ttl, **fields)
        for extension in kind.chain:
            header = header / extension.copy()
    if proto == "tcp":
        fields = {"flags": "A", "seq": 1, "ack": 2, "window": 8192, **kind.transport}
        transport = TCP(sport=source_port, dport=destination_port, **fields)
    else:
        transport = UDP(sport=source_port, dport=destination_port, **kind.transport)
    return header / transport / Raw(payload) if payload else header / transport


def checksum_of(packet):
    """The transport checksum of an IP packet as its bytes have it."""
    data = raw(packet)
    again = type(packet)(data)
    return again[TCP].chksum if TCP in again else again[UDP].chksum


def add16(a, b):
    """A sum in ones' complement."""
    total = a + b
    return (total & 0xFFFF) + (total >> 16)


def build(family, proto, kind, ends, payload=None):
    """The frame."""
    payload = kind.payload if payload is None else payload
    packet = network(family, proto, kind, ends, payload)
    if kind.fault:
        # An error of the sender's stays the same error: a checksum that is updated keeps it (RFC 1624), and one that is
        # computed anew would hide it.
        right = checksum_of(packet)
        layer = packet[TCP] if proto == "tcp" else packet[UDP]
        layer.chksum = ~add16(~right & 0xFFFF, kind.fault) & 0xFFFF
    source_mac, destination_mac = ends.macs
    return raw(Ether(src=source_mac, dst=destination_mac) / packet) + bytes(kind.pad)


def zero_payload(family, proto, kind, ends):
    """A payload with which the checksum at these ends is zero in ones' complement."""
    for filler in range(0x10000):
        payload = b"slui" + filler.to_bytes(2, "big")
        found = checksum_of(network(family, proto, kind, ends, payload))
        if found == (0 if proto == "tcp" else 0xFFFF):
            return payload
        if filler == 0:
            # Only one word of the sum is missing.
            guess = add16(0, found)
            payload = b"slui" + guess.to_bytes(2, "big")
            if checksum_of(network(family, proto, kind, ends, payload)) in (0, 0xFFFF):
                return payload
    raise ValueError("no payload makes the checksum zero")


TCP_OPTIONS = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (7, 0)), ("NOP", None), ("WScale", 7)]

TCP_KINDS = [
    Kind("syn", b"", transport={"flags": "S", "ack": 0}),
    Kind("syn with options", b"", transport={"flags": "S", "ack": 0, "options": TCP_OPTIONS}),
    Kind("ack", b""),
    Kind("data"),
    Kind("odd data", b"odd", transport={"flags": "PA"}),
    Kind("urgent data", transport={"flags": "PAU", "urgptr": 3}),
    Kind("fin", b"", transport={"flags": "FA"}),
    Kind("rst", b"", transport={"flags": "R", "seq": 0xFFFFFFFF, "ack": 0}),
    Kind("largest option words", transport={"options": [("NOP", None)] * 40}),
    Kind("padded frame", b"", pad=6),
    Kind("checksum becomes zero", zero_sum=True),
    Kind("wrong checksum stays wrong", fault=0x0102),
]

UDP_KINDS = [
    Kind("even data"),
    Kind("odd data", b"odd"),
    Kind("no data", b""),
    Kind("padded frame", b"", pad=18),
    Kind("checksum becomes zero", zero_sum=True),
    Kind("wrong checksum stays wrong", fault=0x0102),
    Kind("length below the packet's", b"sluice", transport={"len": 10, "chksum": 0}),
]

NO_CHECKSUM = Kind("no checksum", transport={"chksum": 0})

# Kinds of a family, for either protocol.
IP_KINDS = {
    4: [
        Kind("service class", ip={"tos": 0xB8}),
        Kind("congestion experienced", ip={"tos": 0x03}),
        Kind("do not fragment", ip={"flags": "DF", "id": 0}),
        Kind("identification", ip={"id": 0xFFFF}),
        Kind("a word of options", ip={"options": b"\x01\x01\x01\x00"}),
        Kind("record route", ip={"options": b"\x07\x07\x04\x00\x00\x00\x00\x00"}),
        Kind("most options", ip={"options": b"\x01" * 40}),
    ],
    6: [
        Kind("service class", ip={"tc": 0xB8}),
        Kind("congestion experienced", ip={"tc": 0x03}),
        Kind("largest flow label", ip={"fl": 0xFFFFF}),
        Kind("no flow label", ip={"fl": 0}),
    ],
}


def kinds(family, proto):
    """All that a packet of this family and protocol may look like."""
    own = TCP_KINDS if proto == "tcp" else UDP_KINDS
    # IPv6 knows no packets of UDP without a checksum but those of tunnels (RFC 8200, section 8.1).
    zero = [NO_CHECKSUM] if (family, proto) == (4, "udp") else []
    return [kind for kind in own if family == 4 or kind.name != "length below the packet's"] + zero + IP_KINDS[family]


def cuts(data):
    """Where the headers of a frame end, as far as they can be seen."""
    found, at = [14], 14
    proto = {b"\x08\x00": 4, b"\x86\xdd": 41}.get(data[12:14])
    while proto is not None and at < len(data):
        if proto == 4 and data[at] >> 4 == 4 and len(data) >= at + 20:
            proto, at = data[at + 9], at + (data[at] & 15) * 4
        elif proto == 41 and data[at] >> 4 == 6 and len(data) >= at + 40:
            proto, at = data[at + 6], at + 40
        elif proto == 6 and len(data) >= at + 20:
            proto, at = None, at + (data[at + 12] >> 4) * 4
        elif proto == 17 and len(data) >= at + 8:
            tunnel = data[at + 2 : at + 4] == TUNNEL_PORT.to_bytes(2, "big")
            at += 8
            proto = {4: 4, 6: 41}.get(data[at] >> 4) if tunnel else None
        else:
            break
        found.append(at)
    return [at for at in found if 0 < at < len(data)]


def text(data, free=()):
    """Bytes as hexadecimal digits, a space after each header; `free` has what stands instead of some digits."""
    digits = list(data.hex())
    for at, what in free:
        digits[at : at + len(what)] = list(what)
    ends = [0, *cuts(data), len(data)]
    return " ".join("".join(digits[2 * a : 2 * b]) for a, b in zip(ends, ends[1:]) if a < b)


class Case:
    """A case: what the tables say, packets one after the other, and what is counted at the end."""

    def __init__(self, name, family, proto, mode, **given):
        self.name, self.family, self.proto, self.mode = name, family, proto, mode
        self.given = {"service": f"{proto}{family}", "mode": mode, **given}
        self.steps = []
        self.service = collections.Counter()
        # Why the service dropped packets.
        self.reasons = collections.Counter()
        # The service's two endpoints.
        self.endpoints = [collections.Counter(), collections.Counter()]
        # Entries of the flow table: flows by endpoint, and clients that keep theirs.
        self.flows = [0, 0]
        self.clients = 0
        self.replies = 0

    def step(self, hook, reason, verdict, data, out=None, free=(), flow=None):
        """Adds a packet; one that comes out unchanged is not written twice."""
        step = {"hook": hook, "reason": reason, "verdict": verdict, "in": text(data)}
        if out is not None and (out != data or free):
            step["out"] = text(out, free)
        if flow is not None:
            step["flow"] = flow
        self.steps.append(step)

    def dropped(self, reason):
        """Counts a packet that the service dropped, or answered because of it."""
        self.service["dropped"] += 1
        self.reasons[reason] += 1

    def counted(self, what, data, is_new, nth=0):
        """Counts a packet that was sent on, or back."""
        prefix = "reply_" if what == "reply" else ""
        for count in (self.service, self.endpoints[nth]):
            count[prefix + "packets"] += 1
            count[prefix + "bytes"] += len(data)
            count["new_flows"] += is_new

    def as_dict(self):
        """The case as the file has it."""
        first, other = (
            {**count, "open_flows": flows} for count, flows in zip(self.endpoints, self.flows)
        )
        counts = {
            "service": self.service,
            "reasons": self.reasons,
            "endpoint": first,
            "other": other,
        }
        counts = {
            what: {key: value for key, value in sorted(count.items()) if value} for what, count in counts.items()
        }
        counts = {what: count for what, count in counts.items() if count or what in ("service", "endpoint")}
        counts.update(flows=sum(self.flows) + self.clients, replies=self.replies)
        return {"name": self.name, "given": self.given, "steps": self.steps, "counts": counts}


def client_ends(family, proto, ttl=64, port=CLIENT_PORT, to=None):
    """A packet as the client sends it, to the service's port or to another."""
    to = VIRTUAL_PORT[proto] if to is None else to
    return Ends((CLIENT[family], port), (VIP[family], to), ttl, (CLIENT_MAC, NODE_MAC))


def forward_ends(case, ttl=63, port=CLIENT_PORT, to=None, nth=0):
    """The same packet, as the endpoint gets it."""
    family, proto = case.family, case.proto
    macs = (INNER_MAC, ENDPOINT_MAC)
    if case.mode == "nat":
        endpoint = (ENDPOINT, OTHER)[nth][family]
        # Where the service takes all ports, an endpoint keeps the packet's.
        own = to if "any_port" in case.given else ENDPOINT_PORT[proto]
        return Ends((NODE[family], TRANSLATION_PORT), (endpoint, own), ttl, macs)
    to = VIRTUAL_PORT[proto] if to is None else to
    return Ends((CLIENT[family], port), (VIP[family], to), ttl, macs)


def tunnelled(case, kind, inner, nth=0):
    """A packet inside the outer headers of its tunnel, and what is free in them."""
    outer = 6 if ":" in case.given["endpoint"] else 4
    # What the outer header takes from the packet inside: service class and congestion (RFC 2983, RFC 6040).
    tos = kind.ip.get("tos" if case.family == 4 else "tc", 0)
    packet, pad = (inner[14:-kind.pad], inner[-kind.pad :]) if kind.pad else (inner[14:], b"")
    number = 17 if case.mode == "dsr-gue" else {4: 4, 6: 41}[case.family]
    body = UDP(sport=0xC000, dport=TUNNEL_PORT, chksum=0) / Raw(packet) if number == 17 else Raw(packet)
    to, source = (case.given["endpoint"], OTHER[outer])[nth], TUNNEL_SOURCE[outer]
    if outer == 4:
        header = IP(src=source, dst=to, tos=tos, id=0, flags="DF", ttl=TUNNEL_TTL, proto=number)
        # The checksum, and the lower half of the source address.
        free, after = [(2 * 24, "~~~~"), (2 * 28, "....")], 34
    else:
        header = IPv6(src=source, dst=to, tc=tos, fl=0, nh=number, hlim=TUNNEL_TTL)
        # The flow label, and the last quarter of the source address.
        free, after = [(2 * 15 + 1, "....."), (2 * 34, "........")], 54
    if number == 17:
        free.append((2 * after, "x..."))
    frame = Ether(src=INNER_MAC, dst=ENDPOINT_MAC, type=0x800 if outer == 4 else 0x86DD)
    return raw(frame / header / body) + pad, free


def send_on(case, hook, kind, ttl=64, port=CLIENT_PORT, first=True, **other):
    """A client's packet, as it comes and as it goes to the endpoint, the first one of its flow or a later one.

    Otherwise `to` is its port, `nth` its endpoint, and `records` says whether its flow is to be remembered, which
    services do that remember all of them."""
    family, proto = case.family, case.proto
    to, nth = other.get("to"), other.get("nth", 0)
    before, after = client_ends(family, proto, ttl, port, to), forward_ends(case, ttl - 1, port, to, nth)
    payload = zero_payload(family, proto, kind, after) if kind.zero_sum else None
    data = build(family, proto, kind, before, payload)
    out, free, flow = build(family, proto, kind, after, payload), (), None
    if case.mode in ("dsr-ipip", "dsr-gue"):
        out, free = tunnelled(case, kind, out, nth)
        flow = f"{proto} {CLIENT[family]} {port}" + (f" to {to}" if to else "")
    case.step(hook, "forwarded", "send", data, out, free, flow)
    track = case.given.get("track", "always")
    records = other.get("records", track == "always")
    opens = proto == "tcp" and kind.transport.get("flags") == "S"
    # Where only some flows are remembered, what begins a flow is known of the packets that say so, and of datagrams whose
    # flow is remembered.
    is_new = first if track == "always" else opens or proto == "udp" and records and first
    case.counted("forward", data, is_new, nth)
    if records and first:
        case.flows[nth] += 1
        case.replies += case.mode == "nat"


def send_back(case, hook, kind, ttl=64, to=None, nth=0):
    """A packet of the endpoint, as it comes and as it goes to the client."""
    family, proto = case.family, case.proto
    endpoint = forward_ends(case, to=to, nth=nth).destination
    before = Ends(endpoint, (NODE[family], TRANSLATION_PORT), ttl, (ENDPOINT_MAC, INNER_MAC))
    virtual = (VIP[family], VIRTUAL_PORT[proto] if to is None else to)
    after = Ends(virtual, (CLIENT[family], CLIENT_PORT), ttl - 1, (NODE_MAC, CLIENT_MAC))
    payload = zero_payload(family, proto, kind, after) if kind.zero_sum else None
    data = build(family, proto, kind, before, payload)
    case.step(hook, "replied", "send", data, build(family, proto, kind, after, payload))
    case.counted("reply", data, 0, nth)


def answer(family, transport):
    """A packet of the virtual address back to the client, in the frame that it came in."""
    header = (
        IP(src=VIP[4], dst=CLIENT[4], id=0, flags="DF", ttl=64)
        if family == 4
        else IPv6(src=VIP[6], dst=CLIENT[6], fl=0, hlim=64)
    )
    return raw(Ether(src=NODE_MAC, dst=CLIENT_MAC) / header / transport)


def quote(family, data):
    """What a message quotes of a frame: whole words, as far as every host takes the message (RFC 1812, RFC 4443)."""
    packet = data[14:]
    length = min(len(packet), 548 if family == 4 else 1232)
    return Raw(packet[: length - length % 4])


def reset(family, proto, data):
    """What a SYN is answered with where nobody is (RFC 9293, section 3.10.7.1)."""
    ports = {"sport": VIRTUAL_PORT[proto], "dport": CLIENT_PORT}
    return answer(family, TCP(flags="RA", seq=0, ack=2, window=0, **ports))


def unreachable(family, proto, data):
    """What a datagram is answered with where nobody is."""
    message = ICMP(type=3, code=3) if family == 4 else ICMPv6DestUnreach(code=4)
    return answer(family, message / quote(family, data))


def too_big(family, data, room):
    """What a packet is answered with for which the way has no room."""
    message = ICMP(type=3, code=4, nexthopmtu=room) if family == 4 else ICMPv6PacketTooBig(mtu=room)
    return answer(family, message / quote(family, data))


PLAIN = {"tcp": TCP_KINDS[3], "udp": UDP_KINDS[0]}
OPENING = {"tcp": TCP_KINDS[0], "udp": UDP_KINDS[0]}
WAYS = [
    ("nat", None),
    ("dsr-l2", None),
    ("dsr-ipip", 4),
    ("dsr-ipip", 6),
    ("dsr-gue", 4),
    ("dsr-gue", 6),
]
XDP, TC, EGRESS, RECEIVE = "xdp_balance", "tc_ingress", "tc_egress", "tc_receive"
FLAVORS = [(family, proto) for family in (4, 6) for proto in ("tcp", "udp")]


def new_case(what, family, proto, way, hook=XDP, **given):
    """A case in a mode, named after all that it is about."""
    mode, outer = way
    if mode != "nat":
        given.setdefault("track", "never")
        given["endpoint"] = ENDPOINT[outer or family]
    through = f"{mode} over v{outer}" if outer else mode
    where = {XDP: "", TC: " at tc", EGRESS: " at tc", RECEIVE: ""}[hook]
    return Case(f"{through}, {proto} over v{family}: {what}{where}", family, proto, mode, **given)


def forwards():
    """Every kind of packet, in every mode."""
    for way in WAYS:
        for family, proto in FLAVORS:
            for kind in kinds(family, proto):
                case = new_case(kind.name, family, proto, way)
                send_on(case, XDP, kind)
                yield case


def forwards_at_tc():
    """The hook that has the stack's own view of a packet."""
    for way in WAYS:
        for family, proto in FLAVORS:
            for kind in (OPENING[proto], IP_KINDS[family][-1]):
                case = new_case(kind.name, family, proto, way, TC)
                send_on(case, TC, kind)
                yield case


def hops():
    """Times to live."""
    for way in WAYS:
        for family, proto in FLAVORS:
            for ttl in (2, 255):
                case = new_case(f"{ttl} hops left", family, proto, way)
                send_on(case, XDP, PLAIN[proto], ttl)
                yield case
            case = new_case("the last hop", family, proto, way)
            data = build(family, proto, PLAIN[proto], client_ends(family, proto, 1))
            case.step(XDP, "ttl_expired", "drop", data)
            case.dropped("ttl_expired")
            if way[0] == "nat":
                # The flow is recorded before its endpoint is looked at.
                case.flows, case.replies = [1, 0], 1
            yield case


def flows():
    """Packets of one flow one after the other: the same endpoint, the same translation, the same tunnel."""
    for way in WAYS:
        for family, proto in FLAVORS:
            case = new_case("three packets of a flow", family, proto, way)
            for kind, first in ((OPENING[proto], True), (PLAIN[proto], False), (PLAIN[proto], False)):
                send_on(case, XDP, kind, first=first)
            yield case
    for way in WAYS[1:]:
        for family, proto in FLAVORS:
            case = new_case("two packets of a flow that is recorded", family, proto, way, track="always")
            send_on(case, XDP, OPENING[proto])
            send_on(case, XDP, PLAIN[proto], first=False)
            yield case
            case = new_case("two flows", family, proto, way)
            send_on(case, XDP, OPENING[proto])
            send_on(case, XDP, OPENING[proto], port=CLIENT_PORT + 1)
            yield case
    for family, proto in FLAVORS:
        case = new_case("no second port", family, proto, ("nat", None))
        send_on(case, XDP, OPENING[proto])
        data = build(family, proto, OPENING[proto], client_ends(family, proto, port=CLIENT_PORT + 1))
        case.step(XDP, "ports_exhausted", "drop", data)
        case.dropped("ports_exhausted")
        yield case


def replies():
    """What endpoints answer."""
    for family, proto in FLAVORS:
        for kind in kinds(family, proto):
            case = new_case(f"answer, {kind.name}", family, proto, ("nat", None))
            send_on(case, XDP, OPENING[proto])
            send_back(case, XDP, kind)
            yield case
        case = new_case("answer on the last hop", family, proto, ("nat", None))
        send_on(case, XDP, OPENING[proto])
        ends = Ends(
            (ENDPOINT[family], ENDPOINT_PORT[proto]), (NODE[family], TRANSLATION_PORT), 1, (ENDPOINT_MAC, INNER_MAC)
        )
        case.step(XDP, "ttl_expired", "drop", build(family, proto, PLAIN[proto], ends))
        case.dropped("ttl_expired")
        yield case
        case = new_case("answer", family, proto, ("nat", None), TC)
        send_on(case, TC, OPENING[proto])
        send_back(case, TC, PLAIN[proto])
        yield case


def not_replies():
    """What comes to the port of a flow, and is no answer to it: the node's own socket may want it."""
    for family, proto in FLAVORS:
        other = "udp" if proto == "tcp" else "tcp"
        good = (ENDPOINT[family], ENDPOINT_PORT[proto]), (NODE[family], TRANSLATION_PORT)
        frauds = [
            ("another port of the endpoint", proto, (ENDPOINT[family], ENDPOINT_PORT[proto] + 1), good[1]),
            ("a stranger", proto, (STRANGER[family], ENDPOINT_PORT[proto]), good[1]),
            ("another protocol", other, *good),
            ("a port that is not translated to", proto, good[0], (NODE[family], TRANSLATION_PORT + 1)),
        ]
        for what, protocol, source, destination in frauds:
            case = new_case(f"no answer, {what}", family, proto, ("nat", None))
            send_on(case, XDP, OPENING[proto])
            data = build(family, protocol, PLAIN[protocol], Ends(source, destination, 64, (ENDPOINT_MAC, INNER_MAC)))
            reason = "no_service" if destination[1] != TRANSLATION_PORT else "no_translation"
            case.step(XDP, reason, "pass", data)
            yield case


def locals_():
    """An endpoint on this node: only the destination is translated, by the hook on the way in, and only the source, by
    the hook on the way out; the stack delivers, so no hop is counted."""
    for family, proto in FLAVORS:
        for kind in kinds(family, proto):
            if kind.fault or kind.zero_sum:
                continue
            given = {"local": True, "endpoint": NODE[family]}
            case = new_case(f"on this node, {kind.name}", family, proto, ("nat", None), XDP, **given)
            before = client_ends(family, proto)
            after = Ends(before.source, (NODE[family], ENDPOINT_PORT[proto]), 64, before.macs)
            data = build(family, proto, kind, before)
            case.step(XDP, "forwarded_local", "pass", data, build(family, proto, kind, after))
            case.counted("forward", data, 1)
            case.flows, case.replies = [1, 0], 1
            macs = (NODE_MAC, CLIENT_MAC)
            before = Ends((NODE[family], ENDPOINT_PORT[proto]), (CLIENT[family], CLIENT_PORT), 64, macs)
            after = Ends((VIP[family], VIRTUAL_PORT[proto]), before.destination, 64, macs)
            data = build(family, proto, kind, before)
            case.step(EGRESS, "replied", "pass", data, build(family, proto, kind, after))
            case.counted("reply", data, 0)
            yield case
    for family, proto in FLAVORS:
        case = new_case("from this node, no flow", family, proto, ("nat", None), EGRESS)
        ends = Ends(
            (NODE[family], ENDPOINT_PORT[proto]), (CLIENT[family], CLIENT_PORT), 64, (NODE_MAC, CLIENT_MAC)
        )
        case.step(EGRESS, "not_translated", "pass", build(family, proto, PLAIN[proto], ends))
        yield case


def with_bytes(data, at, new):
    """A frame with some of its bytes replaced."""
    return data[:at] + bytes(new) + data[at + len(new) :]


def faults(family, proto):
    """Frames that cannot be read, each with the reason it ends with."""
    good = build(family, proto, PLAIN[proto], client_ends(family, proto))
    transport = 34 if family == 4 else 54
    if family == 4:
        optioned = build(family, proto, Kind("", b"", {"options": b"\x01" * 40}), client_ends(family, proto))
        yield "version 6", with_bytes(good, 14, [0x65]), "bad_ip_header"
        yield "header of four words", with_bytes(good, 14, [0x44]), "bad_ip_header"
        yield "total length beyond the frame", with_bytes(good, 16, [0x7F, 0]), "bad_ip_header"
        yield "total length of zero", with_bytes(good, 16, [0, 0]), "bad_ip_header"
        yield "total length below the header", with_bytes(good, 16, [0, 19]), "bad_ip_header"
        yield "total length ends in the transport header", with_bytes(good, 16, [0, 27]), "truncated"
        yield "no transport header", with_bytes(good, 16, [0, 20])[:34], "truncated"
        yield "cut in the options", optioned[: 14 + 40], "truncated"
        yield "cut in the transport header", good[:40], "bad_ip_header"
        yield "a byte is missing at the end", good[:-1], "bad_ip_header"
    else:
        yield "version 4", with_bytes(good, 14, [0x40]), "bad_ip_header"
        yield "payload length beyond the frame", with_bytes(good, 18, [0x7F, 0]), "bad_ip_header"
        yield "payload length of zero", with_bytes(good, 18, [0, 0]), "truncated"
        yield "payload length ends in the transport header", with_bytes(good, 18, [0, 7]), "truncated"
        yield "no transport header", with_bytes(good, 18, [0, 0])[:54], "truncated"
        yield "cut in the transport header", good[:60], "bad_ip_header"
        yield "a byte is missing at the end", good[:-1], "bad_ip_header"
        mapped = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 9])
        yield "an IPv4-mapped source", with_bytes(good, 22, mapped), "bad_ip_header"
    if proto == "tcp":
        yield "tcp header of four words", with_bytes(good, transport + 12, [0x40]), "bad_transport_header"
        yield "tcp header of no words", with_bytes(good, transport + 12, [0x00]), "bad_transport_header"
        yield "tcp header beyond the packet", with_bytes(good, transport + 12, [0xF0]), "bad_transport_header"
    else:
        yield "udp length of zero", with_bytes(good, transport + 4, [0, 0]), "bad_transport_header"
        yield "udp length below the header", with_bytes(good, transport + 4, [0, 7]), "bad_transport_header"
        yield "udp length beyond the packet", with_bytes(good, transport + 4, [0, 15]), "bad_transport_header"


def malformed():
    """Every fault in every mode, and at both hooks: dropped, and nobody's flow."""
    for way in WAYS:
        for family, proto in FLAVORS:
            for what, data, reason in faults(family, proto):
                if way[1] is not None and way[1] != family:
                    continue
                hook = TC if way[0] == "dsr-l2" else XDP
                case = new_case(f"malformed, {what}", family, proto, way, hook)
                case.step(hook, reason, "drop", data)
                yield case


def strangers():
    """What is not ours stays as it is, whatever is wrong with it."""
    for family, proto in FLAVORS:
        to = Ends(
            (CLIENT[family], CLIENT_PORT), (STRANGER[family], VIRTUAL_PORT[proto]), 1, (CLIENT_MAC, NODE_MAC)
        )
        foreign = build(family, proto, PLAIN[proto], to)
        end = 34 if family == 4 else 54
        here = build(family, proto, PLAIN[proto], client_ends(family, proto))
        other = Ends((CLIENT[family], CLIENT_PORT), (VIP[family], 9), 64, (CLIENT_MAC, NODE_MAC))
        agent = Ends((CLIENT[family], CLIENT_PORT), (VIP[family], AGENT_PORT), 64, (CLIENT_MAC, NODE_MAC))
        frames = [
            ("another address on its last hop", foreign, "not_ours"),
            ("another address and a bad version", with_bytes(foreign, 14, [0x05]), "not_ours"),
            ("another address and a bad length", with_bytes(foreign, 16 if family == 4 else 18, [255, 255]), "not_ours"),
            ("another address and a cut header", foreign[: end + 4], "not_ours"),
            ("a port of no service", build(family, proto, PLAIN[proto], other), "no_service"),
            ("ARP's type", with_bytes(here, 12, [0x08, 0x06]), "not_ip"),
            ("a length instead of a type", with_bytes(here, 12, [0x00, 0x2E]), "not_ip"),
        ]
        if (family, proto) == (4, "tcp"):
            frames.append(("the agent's own service", build(family, proto, PLAIN[proto], agent), "agent"))
        for what, data, reason in frames:
            for hook in (XDP, TC):
                case = new_case(f"passes, {what}", family, proto, ("nat", None), hook)
                case.step(hook, reason, "pass", data)
                yield case


def states():
    """Endpoints that take no new flows."""
    for way in WAYS:
        for family, proto in FLAVORS:
            case = new_case("no endpoint is up", family, proto, way, state="down")
            data = build(family, proto, OPENING[proto], client_ends(family, proto))
            reason, out = ("reset_sent", reset) if proto == "tcp" else ("unreachable_sent", unreachable)
            case.step(XDP, reason, "send", data, out(family, proto, data))
            case.dropped("no_endpoint")
            yield case
            case = new_case("all endpoints drain", family, proto, way, state="draining")
            send_on(case, XDP, OPENING[proto])
            yield case


def sizes():
    """Packets against the MTU of the way, 1500 bytes here."""
    for way in WAYS:
        mode, outer = way
        for family, proto in FLAVORS:
            outside = {None: 0, 4: 20, 6: 40}[outer] + (8 if mode == "dsr-gue" else 0)
            headers = (20 if family == 4 else 40) + (20 if proto == "tcp" else 8)
            room = 1500 - outside - headers
            if proto == "udp" and (family, outer) != (4, 4):
                continue
            case = new_case("as large as the way takes", family, proto, way)
            send_on(case, XDP, Kind("", b"s" * room))
            yield case
            case = new_case("a byte too large", family, proto, way)
            kind = Kind("", b"s" * (room + 1))
            data = build(family, proto, kind, client_ends(family, proto))
            case.step(XDP, "too_big_answered", "send", data, too_big(family, data, 1500 - outside))
            case.dropped("too_big")
            if mode == "nat":
                # The flow is recorded before its first packet turns out to be too large.
                case.flows, case.replies = [1, 0], 1
            yield case


def messages(family):
    """Errors about packets, by what they are called."""
    if family == 4:
        yield "host unreachable", ICMP(type=3, code=1)
        yield "port unreachable", ICMP(type=3, code=3)
        yield "too big", ICMP(type=3, code=4, nexthopmtu=1400)
        yield "time exceeded", ICMP(type=11, code=0)
        yield "parameter problem", ICMP(type=12, code=0, ptr=8)
    else:
        yield "host unreachable", ICMPv6DestUnreach(code=3)
        yield "port unreachable", ICMPv6DestUnreach(code=4)
        yield "too big", ICMPv6PacketTooBig(mtu=1400)
        yield "time exceeded", ICMPv6TimeExceeded(code=0)
        yield "parameter problem", ICMPv6ParamProblem(code=1, ptr=6)


# Internet control is of a class of its own (RFC 4594); a packet through a tunnel keeps it.
CONTROL = {4: Kind("", ip={"tos": 0xC0}), 6: Kind("", ip={"tc": 0xC0})}


def error(family, source, destination, message, quoted, macs, ttl=64):
    """An ICMP error that quotes these bytes."""
    if family == 4:
        header = IP(src=source, dst=destination, tos=0xC0, id=0x4321, ttl=ttl)
    else:
        header = IPv6(src=source, dst=destination, tc=0xC0, fl=0x54321, hlim=ttl)
    frame = Ether(src=macs[0], dst=macs[1])
    return raw(frame / header / message.copy() / Raw(quoted))


def reply_ends(family, proto, port=CLIENT_PORT, ttl=57):
    """A packet of the virtual address, as a router on its way to the client sees it."""
    return Ends((VIP[family], VIRTUAL_PORT[proto]), (CLIENT[family], port), ttl, (NODE_MAC, CLIENT_MAC))


def seen_by_endpoint(family, proto):
    """The same, as the endpoint of a translated flow has sent it."""
    to = (NODE[family], TRANSLATION_PORT)
    return Ends((ENDPOINT[family], ENDPOINT_PORT[proto]), to, 57, (ENDPOINT_MAC, INNER_MAC))


def quotes(family, proto, kind=None):
    """How much of a packet may be quoted: eight bytes of its transport header, or all of it."""
    shortest = (20 if family == 4 else 40) + 8
    yield "", shortest
    yield ", quoted as a whole", None


def errors():
    """ICMP errors reach whoever sent the packet that they quote, in the terms that it knows."""
    for way in WAYS:
        for family, proto in FLAVORS:
            for what, message in messages(family):
                for much, keep in quotes(family, proto):
                    case = new_case(f"{what} for the endpoint{much}", family, proto, way)
                    error_for_endpoint(case, XDP, message, keep)
                    yield case
            case = new_case("port unreachable for the endpoint", family, proto, way, TC)
            error_for_endpoint(case, TC, dict(messages(family))["port unreachable"], None)
            yield case
    for family, proto in FLAVORS:
        for what, message in messages(family):
            for much, keep in quotes(family, proto):
                case = new_case(f"{what} for the client{much}", family, proto, ("nat", None))
                error_for_client(case, XDP, message, keep)
                yield case
        case = new_case("port unreachable for the client", family, proto, ("nat", None), TC)
        error_for_client(case, TC, dict(messages(family))["port unreachable"], None)
        yield case


def error_for_endpoint(case, hook, message, keep):
    """An error about what the endpoint sent, from a router on the way to the client."""
    family, proto = case.family, case.proto
    if case.mode == "nat":
        send_on(case, hook, OPENING[proto])
    seen = build(family, proto, PLAIN[proto], reply_ends(family, proto))[14:][:keep]
    data = error(family, ROUTER[family], VIP[family], message, seen, (CLIENT_MAC, NODE_MAC))
    macs, free, flow = (INNER_MAC, ENDPOINT_MAC), (), None
    if case.mode == "nat":
        sent = build(family, proto, PLAIN[proto], seen_by_endpoint(family, proto))[14:][:keep]
        out = error(family, NODE[family], ENDPOINT[family], message, sent, macs, 63)
    else:
        out = error(family, ROUTER[family], VIP[family], message, seen, macs, 63)
    if case.mode in ("dsr-ipip", "dsr-gue"):
        out, free = tunnelled(case, CONTROL[family], out)
        flow = f"{proto} {CLIENT[family]} {CLIENT_PORT}"
    case.step(hook, "icmp_forwarded", "send", data, out, free, flow)
    case.counted("forward", data, 0)


def error_for_client(case, hook, message, keep):
    """An error about what the client sent, from a router on the way to the endpoint."""
    family, proto = case.family, case.proto
    send_on(case, hook, OPENING[proto])
    seen = build(family, proto, PLAIN[proto], forward_ends(case, 57))[14:][:keep]
    data = error(family, ROUTER[family], NODE[family], message, seen, (ENDPOINT_MAC, INNER_MAC))
    sent = build(family, proto, PLAIN[proto], client_ends(family, proto, 57))[14:][:keep]
    out = error(family, VIP[family], CLIENT[family], message, sent, (NODE_MAC, CLIENT_MAC), 63)
    case.step(hook, "icmp_forwarded", "send", data, out)
    case.counted("reply", data, 0)


def wrong_errors():
    """Errors that say too little, or are about nobody's flow."""
    for family, proto in FLAVORS:
        message = dict(messages(family))["port unreachable"]
        header = 20 if family == 4 else 40
        macs = (CLIENT_MAC, NODE_MAC)
        seen = build(family, proto, PLAIN[proto], reply_ends(family, proto))[14:]
        other = build(family, proto, PLAIN[proto], reply_ends(family, proto, CLIENT_PORT + 1))[14:]
        length = 20 if family == 4 else 8
        for what, quoted, ttl, reason, verdict in [
            ("no packet is quoted", b"", 64, "bad_icmp", "drop"),
            ("half a header is quoted", seen[: header // 2], 64, "bad_icmp", "drop"),
            ("a header alone is quoted", seen[:header], 64, "bad_icmp", "drop"),
            ("half a port is quoted", seen[: header + 3], 64, "bad_icmp", "drop"),
            ("the quoted packet is of another version", bytes([seen[0] ^ 0x20]) + seen[1:], 64, "bad_icmp", "drop"),
            ("the quoted packet is of no flow", other[: header + length], 64, "icmp_no_flow", "pass"),
            ("on its last hop", seen, 1, "ttl_expired", "drop"),
        ]:
            case = new_case(f"port unreachable, {what}", family, proto, ("nat", None))
            send_on(case, XDP, OPENING[proto])
            data = error(family, ROUTER[family], VIP[family], message, quoted, macs, ttl)
            case.step(XDP, reason, verdict, data)
            if reason == "ttl_expired":
                case.dropped(reason)
            yield case


def pieces(family, proto, kind, ends, payload, cuts):
    """A packet in fragments that begin at these bytes behind its header."""
    whole = network(family, proto, kind, ends, payload)
    data = raw(whole)[20 if family == 4 else 40 :]
    source_mac, destination_mac = ends.macs
    number = 6 if proto == "tcp" else 17
    for begin, end in zip([0, *cuts], [*cuts, len(data)]):
        more = end < len(data)
        if family == 4:
            header = IP(
                src=whole.src, dst=whole.dst, ttl=ends.ttl, id=0x1234, proto=number, flags=int(more), frag=begin // 8
            )
        else:
            header = IPv6(src=whole.src, dst=whole.dst, hlim=ends.ttl, fl=0x12345, nh=44)
            header = header / IPv6ExtHdrFragment(nh=number, offset=begin // 8, m=int(more), id=0x12345678)
        yield raw(Ether(src=source_mac, dst=destination_mac) / header / Raw(data[begin:end]))


LONG = bytes(range(100))
CUTS = {"two fragments": [48], "four fragments": [24, 64, 72]}


def fragments():
    """Packets in pieces: the first one teaches the way of the others."""
    for way in WAYS:
        for family, proto in FLAVORS:
            for what, cuts in CUTS.items():
                case = new_case(what, family, proto, way)
                fragments_on(case, XDP, cuts)
                yield case
            case = new_case("two fragments", family, proto, way, TC)
            fragments_on(case, TC, CUTS["two fragments"])
            yield case
    for family, proto in FLAVORS:
        for what, cuts in CUTS.items():
            case = new_case(f"answer in {what}", family, proto, ("nat", None))
            send_on(case, XDP, OPENING[proto])
            macs = (ENDPOINT_MAC, INNER_MAC)
            to = (NODE[family], TRANSLATION_PORT)
            before = Ends((ENDPOINT[family], ENDPOINT_PORT[proto]), to, 64, macs)
            macs, to = (NODE_MAC, CLIENT_MAC), (CLIENT[family], CLIENT_PORT)
            after = Ends((VIP[family], VIRTUAL_PORT[proto]), to, 63, macs)
            ins = pieces(family, proto, PLAIN[proto], before, LONG, cuts)
            outs = pieces(family, proto, PLAIN[proto], after, LONG, cuts)
            for data, out in zip(ins, outs):
                case.step(XDP, "replied", "send", data, out)
                case.counted("reply", data, 0)
            yield case
        case = new_case("a fragment whose first one nobody saw", family, proto, ("nat", None))
        last = [*pieces(family, proto, PLAIN[proto], client_ends(family, proto), LONG, [48])][1]
        case.step(XDP, "fragment", "pass", last)
        yield case


def fragments_on(case, hook, cuts):
    """The pieces of a client's packet, as they come and as they go to the endpoint."""
    family, proto = case.family, case.proto
    ins = pieces(family, proto, PLAIN[proto], client_ends(family, proto), LONG, cuts)
    outs = pieces(family, proto, PLAIN[proto], forward_ends(case), LONG, cuts)
    records = case.given.get("track", "always") == "always"
    for nth, (data, out) in enumerate(zip(ins, outs)):
        free, flow = (), None
        if case.mode in ("dsr-ipip", "dsr-gue"):
            out, free = tunnelled(case, PLAIN[proto], out)
            flow = f"{proto} {CLIENT[family]} {CLIENT_PORT}"
        case.step(hook, "forwarded", "send", data, out, free, flow)
        case.counted("forward", data, records and nth == 0)
    if records:
        case.flows[0] += 1
        case.replies += case.mode == "nat"


def bad_fragments():
    """Pieces that mislead whoever puts them together."""
    for family, proto in FLAVORS:
        ends = client_ends(family, proto)

        def cut(cuts, nth):
            return [*pieces(family, proto, PLAIN[proto], ends, LONG, cuts)][nth]

        offset = 20 if family == 4 else 56
        beyond = with_bytes(cut([48], 1), offset, [0x1F, 0xFF] if family == 4 else [0xFF, 0xF8])
        frames = [
            ("ends inside a unit of eight bytes", cut([44], 0), "bad_fragment"),
            ("a later one ends inside a unit of eight bytes", cut([48, 60], 1), "bad_fragment"),
            ("ends beyond the largest packet", beyond, "bad_fragment"),
        ]
        if proto == "tcp":
            frames.append(("begins inside the header of tcp", cut([8], 1), "bad_fragment"))
            frames.append(("the header of tcp is cut", cut([16], 0), "truncated"))
        for what, data, reason in frames:
            for hook in (XDP, TC):
                case = new_case(f"fragment, {what}", family, proto, ("nat", None), hook)
                case.step(hook, reason, "drop", data)
                yield case


def options(number):
    """Options of so many bytes with their header."""
    return [PadN(optdata=bytes(number - 4))]


def routed(left):
    """A routing header of a type for experiments (RFC 4727), with so many places left to visit."""
    return IPv6ExtHdrRouting(type=253, segleft=left, addresses=[])


HOP, DESTINATION = IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt
CHAINS = [
    Kind("hop-by-hop options", chain=[HOP(options=options(8))]),
    Kind("destination options", chain=[DESTINATION(options=options(16))]),
    Kind("a routing header at its end", chain=[routed(0)]),
    Kind("an atomic fragment", chain=[IPv6ExtHdrFragment(offset=0, m=0, id=7)]),
    Kind(
        "four extension headers",
        chain=[HOP(options=options(8)), DESTINATION(options=options(8)), routed(0), DESTINATION(options=options(24))],
    ),
    Kind("six extension headers", chain=[HOP(options=options(8))] + [DESTINATION(options=options(8))] * 5),
    Kind("as many bytes as are read", chain=[DESTINATION(options=options(200))]),
]


def chains():
    """IPv6 extension headers are read and stay as they are."""
    for way in WAYS:
        for proto in ("tcp", "udp"):
            for kind in CHAINS:
                case = new_case(kind.name, 6, proto, way)
                send_on(case, XDP, kind)
                yield case
            case = new_case(CHAINS[0].name, 6, proto, way, TC)
            send_on(case, TC, CHAINS[0])
            yield case
    for proto in ("tcp", "udp"):
        for kind in CHAINS:
            case = new_case(f"answer, {kind.name}", 6, proto, ("nat", None))
            send_on(case, XDP, OPENING[proto])
            send_back(case, XDP, kind)
            yield case


def other_chains():
    """Chains that are for the stack, and those that nobody can read."""
    for proto in ("tcp", "udp"):
        ends = client_ends(6, proto)

        def with_chain(*chain):
            return build(6, proto, Kind("", chain=chain), ends)

        simple = with_chain(DESTINATION(options=options(8)))
        for what, data, reason, verdict in [
            ("seven extension headers", with_chain(*[DESTINATION(options=options(8))] * 7), "extension_header", "pass"),
            ("more bytes than are read", with_chain(DESTINATION(options=options(208))), "extension_header", "pass"),
            ("places left to visit", with_chain(routed(1)), "extension_header", "pass"),
            ("authentication", with_bytes(simple, 20, [51]), "extension_header", "pass"),
            ("encryption", with_bytes(simple, 20, [50]), "extension_header", "pass"),
            ("mobility", with_bytes(simple, 20, [135]), "extension_header", "pass"),
            (
                "hop-by-hop options at a later place",
                with_chain(DESTINATION(options=options(8)), HOP(options=options(8))),
                "bad_extension",
                "drop",
            ),
            ("a header that is longer than the packet", with_bytes(simple, 55, [200]), "bad_extension", "drop"),
            ("a header that is cut", with_bytes(simple[:58], 18, [0, 4]), "bad_extension", "drop"),
        ]:
            for hook in (XDP, TC):
                case = new_case(what, 6, proto, ("nat", None), hook)
                case.step(hook, reason, verdict, data)
                yield case


def tags():
    """Frames with VLAN tags that nobody has configured pass at either hook, whatever the service does with others."""
    for way in WAYS:
        for family, proto in FLAVORS:
            packet = network(family, proto, PLAIN[proto], client_ends(family, proto), b"sluice")
            frame = Ether(src=CLIENT_MAC, dst=NODE_MAC)
            service = Ether(src=CLIENT_MAC, dst=NODE_MAC, type=0x88A8)
            for what, tagged in [
                ("a VLAN tag", frame / Dot1Q(vlan=5) / packet),
                ("a VLAN tag of priority alone", frame / Dot1Q(vlan=0, prio=5) / packet),
                ("a service VLAN tag", service / Dot1Q(vlan=6) / packet),
                ("two VLAN tags", service / Dot1Q(vlan=6) / Dot1Q(vlan=5) / packet),
                ("two VLAN tags of one kind", frame / Dot1Q(vlan=6) / Dot1Q(vlan=5) / packet),
            ]:
                for hook in (XDP, TC):
                    case = new_case(f"passes, {what}", family, proto, way, hook)
                    case.step(hook, "vlan", "pass", raw(tagged))
                    yield case
            if way[0] == "nat":
                case = new_case("passes, a VLAN tag that is cut", family, proto, way)
                case.step(XDP, "vlan", "pass", raw(frame / Dot1Q(vlan=5))[:16])
                yield case


def untagged():
    """The same frames without a tag, so that it was the tag that made them pass."""
    for way in WAYS:
        for family, proto in FLAVORS:
            for hook in (XDP, TC):
                case = new_case("no VLAN tag", family, proto, way, hook)
                send_on(case, hook, PLAIN[proto])
                yield case


def changes():
    """Services that remember flows of slots that change: every slot leads to the first endpoint now, and led to the second
    before."""
    for way in WAYS[1:]:
        for family, proto in FLAVORS:
            for hook in (XDP, TC):
                opening, plain = OPENING[proto], PLAIN[proto]

                def changed(what, **given):
                    outer = way[1] or family
                    return new_case(what, family, proto, way, hook, track="change", other=OTHER[outer], **given)

                case = changed("nothing changes, nothing is remembered")
                send_on(case, hook, opening)
                send_on(case, hook, plain, first=False)
                yield case
                if proto == "tcp":
                    case = changed("a connection begins in a change", former=1)
                    send_on(case, hook, opening, records=True)
                    send_on(case, hook, plain, first=False, records=True)
                    yield case
                case = changed("a flow goes on in a change", former=1)
                send_on(case, hook, plain, records=True, nth=1)
                send_on(case, hook, plain, first=False, records=True, nth=1)
                yield case
                case = changed("a flow in a change whose endpoint went down", former=1, other_state="down")
                send_on(case, hook, plain, records=True)
                yield case
                case = changed("a flow in a change whose endpoint drains", former=1, other_state="draining")
                # A connection stays; datagrams choose again.
                send_on(case, hook, plain, records=True, nth=int(proto == "tcp"))
                yield case
                case = changed("in a change where nothing is remembered", former=1)
                case.given["track"] = "never"
                send_on(case, hook, plain)
                yield case


def affinities():
    """Clients that keep their endpoint: every slot leads to the first one."""
    for way in WAYS:
        for family, proto in FLAVORS:
            for hook in (XDP, TC):

                def client(what, **given):
                    given = {"track": "always", "affinity": True, "other": OTHER[way[1] or family], **given}
                    case = new_case(what, family, proto, way, hook, **given)
                    case.clients = 1
                    return case

                case = client("the first flow of a client")
                send_on(case, hook, OPENING[proto])
                send_on(case, hook, PLAIN[proto], first=False)
                yield case
                case = client("a client that has an endpoint", sticks=1)
                send_on(case, hook, OPENING[proto], nth=1)
                send_on(case, hook, PLAIN[proto], first=False, nth=1)
                if way[0] == "nat":
                    send_back(case, hook, PLAIN[proto], nth=1)
                else:
                    send_on(case, hook, OPENING[proto], port=CLIENT_PORT + 1, nth=1)
                yield case
                case = client("a client whose endpoint drains", sticks=1, other_state="draining")
                send_on(case, hook, OPENING[proto])
                yield case
                case = client("a client whose endpoint is down", sticks=1, other_state="down")
                send_on(case, hook, OPENING[proto])
                yield case


def ports():
    """Services of ranges of ports, and of all of them."""
    ranges = [[1000, 1009], [2000, 2009]]
    for way in WAYS:
        for family, proto in FLAVORS:
            for hook in (XDP, TC):
                for what, to in [("first", 1000), ("last", 1009), ("last of the second", 2009)]:
                    if hook == TC and to != 1000:
                        continue
                    case = new_case(f"a range of ports, its {what}", family, proto, way, hook, ranges=ranges)
                    send_on(case, hook, OPENING[proto], to=to)
                    if way[0] == "nat":
                        send_back(case, hook, PLAIN[proto], to=to)
                    yield case
                for what, to in [("before", 999), ("behind", 1010), ("between", 1999)]:
                    if hook == TC:
                        continue
                    case = new_case(f"a port {what} its ranges", family, proto, way, hook, ranges=ranges)
                    data = build(family, proto, OPENING[proto], client_ends(family, proto, to=to))
                    case.step(hook, "no_service", "pass", data)
                    yield case
                case = new_case("any port", family, proto, way, hook, any_port=True)
                send_on(case, hook, OPENING[proto], to=9999)
                if way[0] == "nat":
                    send_back(case, hook, PLAIN[proto], to=9999)
                yield case


def limits():
    """Services that take no more new flows than so many."""
    for way in WAYS:
        for family, proto in FLAVORS:
            for track in ["always"] if way[0] == "nat" else ["always", "change", "never"]:
                for hook in (XDP, TC):

                    def limited(what, left):
                        what = f"{what}, track {track}"
                        return new_case(what, family, proto, way, hook, track=track, flows_left=left)

                    if hook == XDP:
                        case = limited("the last flow of a burst", 1)
                        send_on(case, hook, OPENING[proto])
                        yield case
                    case = limited("a flow too many", 0)
                    if proto == "udp" and track != "always":
                        # Nothing tells the first datagram of a flow from the others.
                        send_on(case, hook, OPENING[proto])
                    else:
                        data = build(family, proto, OPENING[proto], client_ends(family, proto))
                        case.step(hook, "service_limited", "drop", data)
                        case.dropped("service_limited")
                    yield case
                    if proto == "udp" or hook == TC:
                        continue
                    case = limited("a connection that nobody knows", 0)
                    if way[0] == "nat":
                        data = build(family, proto, PLAIN[proto], client_ends(family, proto))
                        case.step(hook, "service_limited", "drop", data)
                        case.dropped("service_limited")
                    else:
                        # Another node began it.
                        send_on(case, hook, PLAIN[proto])
                    yield case


NOT_ECT, ECT1, ECT0, CE = range(4)
ECN_NAMES = ["not capable", "ECT(1)", "ECT(0)", "congested"]


def classes():
    """The outer header of a tunnel is marked as the packet inside (RFC 2983, section 4; RFC 6040, section 4.1)."""
    for way in WAYS[2:]:
        for family, proto in FLAVORS:
            for dscp in (0, 10, 46, 63):
                for ecn, name in enumerate(ECN_NAMES):
                    field = "tos" if family == 4 else "tc"
                    kind = Kind("", ip={field: dscp << 2 | ecn})
                    hook = TC if dscp == 10 else XDP
                    case = new_case(f"class {dscp}, {name}", family, proto, way, hook)
                    send_on(case, hook, kind)
                    yield case


def leaving_ecn(inner, outer):
    """What a packet says that leaves a tunnel (RFC 6040, figure 4); none for one that is dropped."""
    if inner == NOT_ECT:
        return None if outer == CE else NOT_ECT
    if inner == CE or outer == CE:
        return CE
    return ECT1 if ECT1 in (inner, outer) else ECT0


def shell(mode, family, packet, **outer):
    """A packet of this family in a tunnel to this node."""
    over, tos = outer["over"], outer.get("tos", 0)
    source, to = outer.get("source", PEER[over]), outer.get("to", HERE[over])
    number = 17 if mode == "dsr-gue" else {4: 4, 6: 41}[family]
    header = (
        IP(src=source, dst=to, tos=tos, id=0, flags="DF", ttl=61, proto=number)
        if over == 4
        else IPv6(src=source, dst=to, tc=tos, fl=0x777, nh=number, hlim=61)
    )
    if number == 17:
        header = header / UDP(sport=0xC123, dport=outer.get("port", TUNNEL_PORT), chksum=0)
    return raw(Ether(src=CLIENT_MAC, dst=HERE_MAC) / header / Raw(packet))


def opened():
    """What comes through a tunnel to this node leaves it as its sender sent it, but for what the way marked."""
    for mode, over in WAYS[2:]:
        for family, proto in FLAVORS:

            def inside(dscp, ecn):
                kind = Kind("", ip={"tos" if family == 4 else "tc": dscp << 2 | ecn})
                ends = Ends((CLIENT[family], CLIENT_PORT), (VIP[family], VIRTUAL_PORT[proto]), 63, (CLIENT_MAC, HERE_MAC))
                return build(family, proto, kind, ends)

            def open_case(what):
                return new_case(what, family, proto, (mode, over), RECEIVE, receive=True)

            for dscp, outer_dscp in ((0, 0), (46, 10)):
                for inner, inner_name in enumerate(ECN_NAMES):
                    for outer, outer_name in enumerate(ECN_NAMES):
                        classes = f"class {dscp} {inner_name} inside, class {outer_dscp} {outer_name} outside"
                        case = open_case(f"opened, {classes}")
                        data = shell(mode, family, inside(dscp, inner)[14:], over=over, tos=outer_dscp << 2 | outer)
                        found = leaving_ecn(inner, outer)
                        if found is None:
                            case.step(RECEIVE, "tunnel_congested", "drop", data)
                        else:
                            case.step(RECEIVE, "decapsulated", "pass", data, inside(dscp, found))
                        yield case
            packet = inside(0, 0)[14:]
            for what, reason, verdict, outer in [
                ("of no peer", "tunnel_stranger", "drop", {"source": {4: "172.17.0.1", 6: "101::1"}[over]}),
                ("through another port", "not_tunnelled", "pass", {"port": TUNNEL_PORT + 1}),
            ]:
                if "port" in outer and mode != "dsr-gue":
                    continue
                case = open_case(f"not opened, {what}")
                case.step(RECEIVE, reason, verdict, shell(mode, family, packet, over=over, **outer))
                yield case
            cut = packet[: 19 if family == 4 else 39]
            case = open_case("not opened, a header that is cut inside")
            case.step(RECEIVE, "bad_tunnel", "drop", shell(mode, family, cut, over=over))
            yield case


GROUPS = [
    forwards,
    forwards_at_tc,
    hops,
    flows,
    replies,
    not_replies,
    locals_,
    malformed,
    strangers,
    states,
    sizes,
    errors,
    wrong_errors,
    fragments,
    bad_fragments,
    chains,
    other_chains,
    tags,
    untagged,
    changes,
    affinities,
    ports,
    limits,
    classes,
    opened,
]


def render(cases):
    """The file: JSON, with a line for each packet."""

    def value(what):
        return json.dumps(what, separators=(", ", ": "))

    lines = []
    for case in cases:
        steps = []
        for step in case["steps"]:
            head = value({key: step[key] for key in ("hook", "reason", "verdict", "flow") if key in step})[:-1]
            packets = "".join(f',\n    "{key}": {value(step[key])}' for key in ("in", "out") if key in step)
            steps.append(f"   {head}{packets}}}")
        lines.append(
            f' {{"name": {value(case["name"])},\n  "given": {value(case["given"])},\n  "steps": [\n'
            + ",\n".join(steps)
            + f'],\n  "counts": {value(case["counts"])}}}'
        )
    return "[\n" + ",\n".join(lines) + "\n]\n"


def main(arguments):
    groups = [(group.__name__.strip("_"), [case.as_dict() for case in group()]) for group in GROUPS]
    cases = [case for _, group in groups for case in group]
    names = collections.Counter(case["name"] for case in cases)
    twice = [name for name, n in names.items() if n > 1]
    if twice:
        raise SystemExit(f"two cases have the same name: {twice}")
    if arguments == ["--list"]:
        for name, group in groups:
            print(f"{name}: {len(group)}")
        print(f"all: {len(cases)}")
    elif arguments == ["--check"]:
        if CASES.read_text() != render(cases):
            raise SystemExit(f"{CASES} is not what this generator makes: run it without arguments")
        print(f"{len(cases)} cases")
    elif not arguments:
        CASES.write_text(render(cases))
        print(f"{len(cases)} cases")
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
