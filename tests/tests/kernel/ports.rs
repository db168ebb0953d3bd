//! Services of many ports: a range, or all that have no service of their own.

use gateway_common::{
    addr::{Port, Protocol},
    counter::Reason,
    service::{PortRange, ServiceKey},
};
use gateway_tests::{
    packet::{tcp, udp},
    world::{TCP4, TCP6, World, addr_of},
};

use crate::check::{case, check};

const CLIENT: &str = "192.0.2.9:40000";

/// The TCP service of the world takes all ports of its address; its endpoints keep the port of the packet.
fn wildcard(world: &mut World) {
    let key = ServiceKey::new(addr_of("198.51.100.1"), Port::new(443), Protocol::TCP);
    let mut service = world.tables.services.remove(&key).unwrap();
    service.port = Port::NONE;
    world.tables.services.insert(service.key(), service);
    for row in TCP4.row()..TCP4.row() + 2 {
        world.row(row).port = Port::NONE;
    }
}

fn ranges(world: &mut World, ranges: &[(u16, u16)]) {
    let key = ServiceKey::new(addr_of("198.51.100.1"), Port::NONE, Protocol::TCP);
    for (row, (first, last)) in (7..).zip(ranges) {
        let range = PortRange { first: Port::new(*first), last: Port::new(*last), service: TCP4.0 };
        world.tables.ranges.insert(row, range);
    }
    world.tables.range_keys.insert(key, (7, u32::try_from(ranges.len()).unwrap()));
}

#[test]
fn many_ports_of_an_address_are_one_service() {
    let to = |port: u16| tcp(CLIENT, &format!("198.51.100.1:{port}"));
    let open = move |world: &mut World| {
        wildcard(world);
        world.established(&to(9_999), TCP4.row(), 20_005, gateway_common::flow::Phase::OPEN, world.now);
    };
    check(vec![
        case("any port", &to(9_999).syn(), Reason::Forwarded).with(wildcard).sent(
            "10.0.0.1:?",
            "10.0.0.10:9999",
            63,
        ),
        case("a reply from that port", &tcp("10.0.0.10:9999", "10.0.0.1:20005"), Reason::Replied)
            .with(open)
            .sent("198.51.100.1:9999", CLIENT, 63),
        case(
            "from another port it is no reply",
            &tcp("10.0.0.10:9998", "10.0.0.1:20005"),
            Reason::NoTranslation,
        )
        .with(open),
        case("a port of its own comes first", &to(80).syn(), Reason::Agent).with(wildcard),
        case("another protocol is another address", &udp(CLIENT, "198.51.100.1:9999"), Reason::NoService)
            .with(wildcard),
        case("the first port of a range", &to(1_000).syn(), Reason::Forwarded)
            .with(|world| ranges(world, &[(1_000, 1_009)]))
            .sent("10.0.0.1:?", "10.0.0.10:8443", 63),
        case("the last port of the second range", &to(2_009).syn(), Reason::Forwarded)
            .with(|world| ranges(world, &[(1_000, 1_009), (2_000, 2_009)]))
            .sent("10.0.0.1:?", "10.0.0.10:8443", 63),
        case("one port further", &to(1_010).syn(), Reason::NoService)
            .with(|world| ranges(world, &[(1_000, 1_009)])),
        case("a range comes before all ports", &to(1_005).syn(), Reason::Forwarded)
            .with(|world| {
                wildcard(world);
                ranges(world, &[(1_000, 1_009)]);
                let range = world.tables.ranges.get_mut(&7).unwrap();
                range.service = TCP6.0;
                world.change(TCP6, |service| service.mode = gateway_common::service::Mode::DSR_IPIP);
            })
            .leaves(|frame| assert_eq!(&frame[12..14], [0x86, 0xdd], "to an endpoint of the other service")),
    ]);
}
