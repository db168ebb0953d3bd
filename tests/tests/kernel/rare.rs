//! Fragments and extension headers: packets that are not all in one piece, or not as simple as most.

use gateway_common::{
    addr::Port,
    counter::{Hook, Reason},
    flow::Phase,
    fragment::{FragmentBucket, Fragmented, Lesson},
    service::{Mode, Track},
};
use gateway_tests::{
    memory::Run,
    packet::{Packet, inspect, tcp, udp},
    piece::{extended, pieces, plain, together},
    world::{INGRESS, Id, LOCAL4, TCP4, TCP6, UDP4, UDP6, World},
};

use crate::check::{Case, check, raw, steps};

const VIP4: &str = "198.51.100.1:443";
const DNS4: &str = "198.51.100.1:53";
const VIP6: &str = "[2001:db8::1]:443";
const DNS6: &str = "[2001:db8::1]:53";
const CLIENT4: &str = "192.0.2.9:40000";
const CLIENT6: &str = "[2001:db8:9::9]:40000";
const HOOKS: [Hook; 2] = [Hook::XdpBalance, Hook::TcIngress];

fn long(packet: &Packet) -> Vec<u8> {
    let payload: Vec<u8> = (0..100).collect();
    packet.clone().payload(&payload).bytes()
}

/// A service that balances this packet, and where its endpoint is.
fn flows() -> [(Packet, Id, &'static str); 4] {
    [
        (tcp(CLIENT4, VIP4), TCP4, "10.0.0.10:8443"),
        (udp(CLIENT4, DNS4), UDP4, "10.0.0.10:5353"),
        (tcp(CLIENT6, VIP6), TCP6, "[fd00::10]:8443"),
        (udp(CLIENT6, DNS6), UDP6, "[fd00::10]:5353"),
    ]
}

#[test]
fn pieces_follow_the_first_one() {
    for hook in HOOKS {
        for (packet, id, endpoint) in flows() {
            for (unfragmentable, cuts) in [(0, vec![48]), (0, vec![24, 64, 72]), (8, vec![64])] {
                let mut frame = long(&packet);
                if unfragmentable != 0 {
                    if packet.key().source.is_v4() {
                        continue;
                    }
                    frame = extended(&frame, &[(60, vec![0, 0, 1, 4, 0, 0, 0, 0])]);
                }
                let all = pieces(&frame, unfragmentable, 0x1234_5678, &cuts);
                let sent = steps(
                    "pieces",
                    hook,
                    |_| {},
                    &all,
                    Reason::Forwarded,
                    |world| {
                        assert_eq!(world.tables.live().count(), 1);
                        let n = u64::try_from(all.len()).unwrap();
                        assert_eq!(world.tables.endpoint_counts[&id.row()].packets, n);
                    },
                );
                let seen = inspect(&plain_if(unfragmentable != 0, &together(&sent))).unwrap();
                assert_eq!(seen.destination.to_string(), endpoint);
                assert_eq!(seen.ttl, 63);
            }
        }
    }
}

fn plain_if(is_extended: bool, frame: &[u8]) -> Vec<u8> {
    if is_extended { plain(frame) } else { frame.to_vec() }
}

#[test]
fn replies_in_pieces_go_back_to_the_client() {
    for hook in HOOKS {
        for (packet, id, endpoint) in flows() {
            let (client, vip) = ends(&packet);
            let node = if packet.key().source.is_v4() { "10.0.0.1:20005" } else { "[fd00::1]:20005" };
            let is_udp = id == UDP4 || id == UDP6;
            let reply = if is_udp { udp(endpoint, node) } else { tcp(endpoint, node) };
            let open = |world: &mut World| {
                world.established(&packet, id.row(), 20_005, Phase::OPEN, world.now);
            };
            let all = pieces(&long(&reply), 0, 7, &[40, 80]);
            let sent = steps("pieces of a reply", hook, open, &all, Reason::Replied, |_| {});
            let seen = inspect(&together(&sent)).unwrap();
            assert_eq!((seen.source, seen.destination), (vip, client));
        }
    }
}

fn ends(packet: &Packet) -> (std::net::SocketAddr, std::net::SocketAddr) {
    let seen = inspect(&packet.bytes()).unwrap();
    (seen.source, seen.destination)
}

#[test]
fn pieces_return_directly() {
    for (packet, id, _) in flows() {
        for (mode, extra) in [(Mode::DSR_L2, 0), (Mode::DSR_IPIP, 1), (Mode::DSR_GUE, 1)] {
            let direct = |world: &mut World| {
                world.change(id, |service| (service.mode, service.track) = (mode, Track::CHANGE));
            };
            let all = pieces(&long(&packet), 0, 7, &[40, 80]);
            let sent = steps("pieces", Hook::XdpBalance, direct, &all, Reason::Forwarded, |_| {});
            let inside: Vec<Vec<u8>> = sent
                .iter()
                .zip(&all)
                .map(|(sent, was)| {
                    assert_eq!(sent.len() > was.len(), extra != 0);
                    [&was[..14], &sent[14 + sent.len() - was.len()..]].concat()
                })
                .collect();
            let seen = inspect(&together(&inside)).unwrap();
            assert_eq!((seen.source, seen.destination), ends(&packet));
        }
    }
}

#[test]
fn pieces_for_and_from_this_node() {
    let packet = tcp(CLIENT4, "198.51.100.2:443");
    let all = pieces(&long(&packet), 0, 9, &[40]);
    let sent = steps("to a local endpoint", Hook::XdpBalance, |_| {}, &all, Reason::ForwardedLocal, |_| {});
    let seen = inspect(&together(&sent)).unwrap();
    assert_eq!((seen.destination.to_string(), seen.ttl), ("10.0.0.1:9000".to_owned(), 64));
    let open = |world: &mut World| {
        world.established(&packet, LOCAL4.row(), 40_000, Phase::OPEN, world.now);
    };
    let all = pieces(&long(&tcp("10.0.0.1:9000", CLIENT4)), 0, 9, &[40]);
    let sent = steps("of a local endpoint", Hook::TcEgress, open, &all, Reason::Replied, |_| {});
    assert_eq!(inspect(&together(&sent)).unwrap().source.to_string(), "198.51.100.2:443");
}

/// The first piece of a packet was seen some ticks ago.
fn taught(packet: Packet, id: u32, ago: u32) -> impl Fn(&mut World) {
    move |world| {
        let first = pieces(&long(&packet), 0, id, &[48]).remove(0);
        let mut tables = world.tables.clone();
        let run = Run { hook: Hook::XdpBalance, ingress: INGRESS, now: world.ago(ago), next_hop: None };
        run.packet(&mut tables, &first);
        world.tables.fragments = tables.fragments;
        assert_eq!(world.tables.fragments.len(), 1, "a first piece is remembered");
    }
}

#[test]
fn pieces_without_a_first_one_pass() {
    let (v4, v6) = (udp(CLIENT4, DNS4), udp(CLIENT6, DNS6));
    let last = |packet: &Packet, id| pieces(&long(packet), 0, id, &[48]).remove(1);
    check(vec![
        raw("nothing is known over v4", last(&v4, 1), Reason::Fragment).code(2),
        raw("nothing is known over v6", last(&v6, 1), Reason::Fragment).code(2),
        raw("nothing is known at tc", last(&v6, 1), Reason::Fragment).at(Hook::TcIngress).code(-1),
        raw("just now", last(&v4, 1), Reason::Forwarded).with(taught(v4.clone(), 1, 0)).leaves(|_| {}),
        raw("a little ago", last(&v6, 1), Reason::Forwarded).with(taught(v6.clone(), 1, 3)).leaves(|_| {}),
        raw("too long ago", last(&v4, 1), Reason::Fragment).with(taught(v4.clone(), 1, 6)),
        raw("another packet", last(&v4, 2), Reason::Fragment).with(taught(v4.clone(), 1, 0)),
        raw("another client", last(&udp("192.0.2.8:40000", DNS4), 1), Reason::Fragment).with(taught(
            v4.clone(),
            1,
            0,
        )),
        raw("another protocol", last(&tcp(CLIENT4, VIP4), 1), Reason::Fragment).with(taught(
            v4.clone(),
            1,
            0,
        )),
    ]);
}

#[test]
fn there_is_room_for_so_many() {
    let packet = udp(CLIENT4, DNS4);
    let first = pieces(&long(&packet), 0, 1, &[48]).remove(0);
    let to_nobody = pieces(&long(&udp(CLIENT4, "10.0.0.1:9")), 0, 1, &[48]).remove(0);
    // Tags that were in each bucket and are in one no more.
    let gone = |world: &World| -> Vec<u64> {
        let tags = |bucket: &FragmentBucket| bucket.packets.map(|packet| packet.tag);
        let buckets: Vec<[u64; 4]> = world.tables.fragments.values().map(tags).collect();
        [3, 5, 7, 9].into_iter().filter(|tag| !buckets.iter().all(|tags| tags.contains(tag))).collect()
    };
    let full = |ago: [u16; 4]| {
        move |world: &mut World| {
            let present = u16::try_from(world.now.count() & 0xffff).unwrap();
            let mut lesson = Lesson::new(Port::new(1), Port::new(2), packet_protocol(), world.now);
            let packets = [(3, ago[0]), (5, ago[1]), (7, ago[2]), (9, ago[3])].map(|(tag, ago)| {
                lesson.seen = present.wrapping_sub(ago);
                Fragmented { tag, lesson }
            });
            for bucket in 0..u32::from(gateway_tests::kernel_run::FRAGMENTS) {
                world.tables.fragments.insert(bucket, FragmentBucket { packets });
            }
        }
    };
    check(vec![
        raw("all places are taken", first.clone(), Reason::Forwarded)
            .with(full([1, 3, 2, 1]))
            .leaves(|_| {})
            .after(move |world| assert_eq!(gone(world), [5], "the oldest gives way")),
        raw("all were taken just now", first.clone(), Reason::Forwarded)
            .with(full([0; 4]))
            .leaves(|_| {})
            .after(move |world| assert_eq!(gone(world), [3])),
        raw("all places are old", first, Reason::Forwarded).with(full([4, 4, 5, 4])).leaves(|_| {}),
        raw("of a packet to nobody", to_nobody, Reason::NoService).with(full([0; 4])).code(2),
    ]);
}

fn packet_protocol() -> gateway_common::addr::Protocol {
    gateway_common::addr::Protocol::UDP
}

/// A frame whose byte at `at` is replaced.
fn with_byte(mut frame: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    frame[at] = byte;
    frame
}

#[test]
fn pieces_that_mislead_are_dropped() {
    let frame = long(&tcp(CLIENT4, VIP4));
    let frame6 = long(&tcp(CLIENT6, VIP6));
    let mut cases = Vec::new();
    for (name, cuts, nth, reason) in [
        ("ends inside a unit", vec![44], 0, Reason::BadFragment),
        ("a later one ends inside a unit", vec![48, 60], 1, Reason::BadFragment),
        ("begins inside the header of tcp", vec![8], 1, Reason::BadFragment),
        ("the header of tcp is not all in the first one", vec![16], 0, Reason::Truncated),
    ] {
        cases.push(raw(name, pieces(&frame, 0, 1, &cuts).remove(nth), reason));
        cases.push(raw(name, pieces(&frame6, 0, 1, &cuts).remove(nth), reason));
        cases.push(raw(name, pieces(&frame6, 0, 1, &cuts).remove(nth), reason).at(Hook::TcIngress));
    }
    let last = pieces(&frame, 0, 1, &[48]).remove(1);
    cases.push(raw("ends beyond the largest packet", with_byte(last, 20, 0x1f), Reason::Fragment));
    let mut far = pieces(&frame, 0, 1, &[48]).remove(1);
    far[20..22].copy_from_slice(&[0x1f, 0xff]);
    cases.push(raw("ends beyond the largest packet", far, Reason::BadFragment));
    let again = pieces(&frame6, 0, 1, &[48]).remove(0);
    let twice = extended(&again, &[(44, vec![0, 0, 0, 1, 0, 0, 0, 1])]);
    // The length field of a fragment header is not one.
    cases.push(raw("two fragment headers", with_byte(twice, 55, 0), Reason::BadExtension));
    check(cases);
}

/// A chain of extension headers is sent on as it is.
fn chain(name: &'static str, headers: &[(u8, Vec<u8>)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for hook in HOOKS {
        for (packet, _, endpoint) in flows() {
            if packet.key().source.is_v4() {
                continue;
            }
            let frame = extended(&long(&packet), headers);
            let before = frame.clone();
            let case = raw(name, frame, Reason::Forwarded).at(hook).leaves(move |sent| {
                let seen = inspect(&plain(sent)).unwrap();
                assert_eq!((seen.destination.to_string().as_str(), seen.ttl), (endpoint, 63));
                assert_eq!(sent.len(), before.len());
            });
            cases.push(case);
        }
    }
    cases
}

fn options(bytes: usize) -> Vec<u8> {
    // One option of padding (RFC 8200, section 4.2).
    let mut header = vec![0; bytes];
    (header[2], header[3]) = (1, u8::try_from(bytes - 4).unwrap());
    header
}

/// A routing header that has nothing left to visit.
fn routed() -> Vec<u8> {
    vec![0, 0, 253, 0, 0, 0, 0, 0]
}

#[test]
fn extension_headers_are_skipped() {
    let mut cases = chain("hop-by-hop options", &[(0, options(8))]);
    cases.extend(chain("destination options", &[(60, options(16))]));
    cases.extend(chain("a routing header at its end", &[(43, routed())]));
    cases.extend(chain(
        "all of them",
        &[(0, options(8)), (60, options(8)), (43, routed()), (60, options(24))],
    ));
    cases.extend(chain(
        "as many as are read",
        &[
            (0, options(8)),
            (60, options(8)),
            (60, options(8)),
            (60, options(8)),
            (60, options(8)),
            (60, options(8)),
        ],
    ));
    cases.extend(chain("as long as is read", &[(60, options(200))]));
    check(cases);
}

#[test]
fn a_piece_that_is_all_of_its_packet_is_none() {
    let frame = long(&tcp(CLIENT6, VIP6));
    let atomic = extended(&frame, &[(44, vec![0, 0, 0, 0, 0, 0, 0, 1])]);
    check(vec![
        raw("an atomic fragment", atomic, Reason::Forwarded)
            .leaves(|sent| assert_eq!(sent[20], 44))
            .after(|world| assert!(world.tables.fragments.is_empty())),
    ]);
}

#[test]
fn other_chains_pass_or_are_dropped() {
    let frame = long(&tcp(CLIENT6, VIP6));
    let with = |headers: &[(u8, Vec<u8>)]| extended(&frame, headers);
    let seven: Vec<(u8, Vec<u8>)> = (0..7).map(|_| (60, options(8))).collect();
    let mut beyond = with(&[(60, options(8))]);
    beyond[55] = 200;
    let mut cut = with(&[(60, options(8))]);
    cut.truncate(58);
    cut[18..20].copy_from_slice(&[0, 4]);
    let mut cases = Vec::new();
    for hook in HOOKS {
        let (passes, drops) = if hook == Hook::XdpBalance { (2, 1) } else { (-1, 2) };
        for (name, frame) in [
            ("more than are read", with(&seven)),
            ("longer than is read", with(&[(60, options(208))])),
            ("a routing header with places to visit", with(&[(43, vec![0, 0, 253, 1, 0, 0, 0, 0])])),
            ("authentication", with(&[(51, options(8))])),
            ("encryption", with(&[(50, options(8))])),
            ("encryption behind options", with(&[(0, options(8)), (50, options(8))])),
            ("mobility", with(&[(135, options(8))])),
        ] {
            cases.push(raw(name, frame, Reason::ExtensionHeader).at(hook).code(passes));
        }
        for (name, frame) in [
            ("hop-by-hop options at a later place", with(&[(60, options(8)), (0, options(8))])),
            ("longer than the packet", beyond.clone()),
            ("a header that is cut", cut.clone()),
        ] {
            cases.push(raw(name, frame, Reason::BadExtension).at(hook).code(drops));
        }
    }
    let icmp = extended(&gateway_tests::packet::icmp(CLIENT6, VIP6).bytes(), &[(60, options(8))]);
    cases.push(raw("an ICMP message behind options", icmp, Reason::OtherProtocol));
    let ping = pieces(&long(&gateway_tests::packet::icmp(CLIENT4, VIP4)), 0, 1, &[48]);
    for piece in ping {
        cases.push(raw("an ICMP message in pieces", piece, Reason::Fragment));
    }
    check(cases);
}

#[test]
fn answers_to_rare_packets() {
    let down = |world: &mut World| {
        for id in [TCP4, TCP6] {
            world.state(id, gateway_common::endpoint::EndpointState::DOWN);
        }
    };
    let frame = extended(&long(&tcp(CLIENT6, VIP6)), &[(60, options(8))]);
    let first = pieces(&long(&tcp(CLIENT4, VIP4)), 0, 1, &[48]).remove(0);
    check(vec![
        raw("behind options", frame, Reason::ResetSent)
            .with(down)
            .leaves(|sent| assert_eq!(inspect(sent).unwrap().source.to_string(), VIP6)),
        raw("a first fragment", first, Reason::ResetSent)
            .with(down)
            .leaves(|sent| assert_eq!(inspect(sent).unwrap().source.to_string(), VIP4)),
    ]);
}
