//! Calls of processes at their sockets: on the host as they are described, in the kernel as this process makes them.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use gateway_common::{
    addr::{Addr, Port, Protocol},
    counter::{Hook, Reason},
    endpoint::EndpointState,
    probe::OWN_MARK,
    service::{Mode, Service, ServiceKey},
    socket::{AskedFor, SocketPeer},
};
use gateway_tests::{
    cgroup::Cgroup,
    kernel_run::Kernel,
    kernel_sockets::{cookie, network},
    memory::{Run, SocketCall},
    privilege,
    tables::Tables,
    world::{AGENT4, Id, LOCAL4, TCP4, TCP6, UDP4, UDP6, World},
};

use crate::{DNS4, DNS6, VIP4, VIP6, check::now};

const COOKIE: u64 = 77;
const NETWORK: u64 = 5;
const REFUSED: u32 = 0;
const PROCEED: u32 = 1;

fn place(text: &str) -> (Addr, Port) {
    of(text.parse().unwrap())
}

fn of(at: SocketAddr) -> (Addr, Port) {
    (at.ip().into(), Port::new(at.port()))
}

fn world() -> World {
    let mut world = World::new(now());
    world.tables.socket_scope.network = NETWORK;
    world
}

fn call(protocol: Protocol, to: &str) -> SocketCall {
    SocketCall { peer: place(to), protocol, cookie: COOKIE, mark: 0, network: NETWORK }
}

fn run(world: &mut World, hook: Hook, call: &mut SocketCall) -> u32 {
    let run = Run { hook, ingress: 0, now: world.now, next_hop: None };
    run.call(&mut world.tables, call)
}

/// The one reason that a hook counted beside the arrival.
fn reason(world: &World, hook: Hook) -> Reason {
    assert_eq!(world.tables.reason(hook, Reason::Received).packets, 1);
    let counted =
        |reason: &&Reason| **reason != Reason::Received && world.tables.reason(hook, **reason).packets == 1;
    let all: Vec<&Reason> = Reason::ALL.iter().filter(counted).collect();
    let [one] = all[..] else { panic!("{} counted {all:?}", hook.name()) };
    *one
}

#[test]
fn a_virtual_address_becomes_an_endpoint() {
    let cases = [
        (Hook::Connect4, Protocol::TCP, VIP4, "10.0.0.10:8443", TCP4),
        (Hook::Connect4, Protocol::UDP, DNS4, "10.0.0.10:5353", UDP4),
        (Hook::SendMsg4, Protocol::UDP, DNS4, "10.0.0.10:5353", UDP4),
        (Hook::Connect4, Protocol::TCP, "198.51.100.2:443", "10.0.0.1:9000", LOCAL4),
        (Hook::Connect6, Protocol::TCP, VIP6, "[fd00::10]:8443", TCP6),
        (Hook::Connect6, Protocol::UDP, DNS6, "[fd00::10]:5353", UDP6),
        (Hook::SendMsg6, Protocol::UDP, DNS6, "[fd00::10]:5353", UDP6),
        // Sockets of IPv6 name IPv4 addresses in the form in which the maps have them.
        (Hook::Connect6, Protocol::TCP, VIP4, "10.0.0.10:8443", TCP4),
    ];
    for (hook, protocol, to, expected, id) in cases {
        let mut world = world();
        let mut call = call(protocol, to);
        assert_eq!(run(&mut world, hook, &mut call), PROCEED, "{to}");
        assert_eq!(call.peer, place(expected), "{to}");
        assert_eq!(reason(&world, hook), Reason::SocketTranslated, "{to}");
        let (addr, port) = place(expected);
        let (vip, vport) = place(to);
        let asked = [(SocketPeer::new(COOKIE, addr, port), AskedFor::new(vip, vport, id.0))];
        assert_eq!(world.tables.asked, asked.into(), "{to}");
        assert_eq!(world.tables.service_counts[&id.0].new_flows, 1, "{to}");
        assert_eq!(world.tables.endpoint_counts[&id.row()].new_flows, 1, "{to}");

        // The same socket again is no new flow, and hears the virtual address.
        let mut again = SocketCall { peer: place(to), ..call };
        assert_eq!(run(&mut world, hook, &mut again), PROCEED);
        assert_eq!(world.tables.service_counts[&id.0].new_flows, 1, "{to}");
        for hook in [Hook::RecvMsg4, Hook::GetPeerName6] {
            let mut answer = SocketCall { peer: place(expected), ..call };
            assert_eq!(run(&mut world, hook, &mut answer), PROCEED);
            assert_eq!(answer.peer, place(to), "{}", hook.name());
            assert_eq!(reason(&world, hook), Reason::SocketRestored);
        }
        // Nor is a datagram after one to another virtual address with the same endpoint; a connection is.
        world.tables.asked =
            [(SocketPeer::new(COOKIE, addr, port), AskedFor::new(vip, Port::new(1), id.0))].into();
        let mut turned = SocketCall { peer: place(to), ..call };
        assert_eq!(run(&mut world, hook, &mut turned), PROCEED);
        let expected_flows = if protocol == Protocol::TCP { 2 } else { 1 };
        assert_eq!(world.tables.service_counts[&id.0].new_flows, expected_flows, "{to}");
        assert_eq!(world.tables.asked, asked.into(), "{to}");
        let mut other = SocketCall { peer: place(expected), cookie: COOKIE + 1, ..call };
        assert_eq!(run(&mut world, Hook::GetPeerName4, &mut other), PROCEED);
        assert_eq!(other.peer, place(expected), "another socket's");
        assert_eq!(reason(&world, Hook::GetPeerName4), Reason::NotTranslated);
    }
}

#[test]
fn what_is_not_for_it_passes() {
    type Prepare = fn(&mut World, &mut SocketCall);
    let cases: [(&str, Protocol, &str, Prepare, Reason); 7] = [
        ("a stranger", Protocol::TCP, "203.0.113.77:443", |_, _| {}, Reason::NotOurs),
        ("a port without a service", Protocol::TCP, "198.51.100.1:81", |_, _| {}, Reason::NoService),
        ("a service of the agent", Protocol::TCP, "198.51.100.1:80", |_, _| {}, Reason::Agent),
        (
            "an echo request",
            Protocol::ICMP,
            "198.51.100.1:0",
            |world, call| {
                world.tables.echo.insert(ServiceKey::new(call.peer.0, Port::NONE, Protocol::ICMP), TCP4.0);
            },
            Reason::OtherProtocol,
        ),
        ("the agent itself", Protocol::TCP, VIP4, |_, call| call.mark = OWN_MARK, Reason::ForeignSocket),
        ("another network", Protocol::TCP, VIP4, |_, call| call.network += 1, Reason::ForeignSocket),
        (
            "no network that is known",
            Protocol::TCP,
            VIP4,
            |world, _| world.tables.socket_scope.network = 0,
            Reason::ForeignSocket,
        ),
    ];
    for (name, protocol, to, prepare, expected) in cases {
        let mut world = world();
        let mut call = call(protocol, to);
        prepare(&mut world, &mut call);
        let before = call;
        assert_eq!(run(&mut world, Hook::Connect4, &mut call), PROCEED, "{name}");
        assert_eq!(call, before, "{name}");
        assert_eq!(reason(&world, Hook::Connect4), expected, "{name}");
        assert!(world.tables.asked.is_empty() && world.tables.service_counts.is_empty(), "{name}");
    }
}

#[test]
fn endpoints_that_take_no_flows_get_none() {
    let mut world = world();
    world.row(TCP4.row()).state = EndpointState::DRAINING;
    world.slots_in_turns(TCP4);
    for random in 0..50 {
        world.tables.random = random * 40_503;
        let mut call = call(Protocol::TCP, VIP4);
        assert_eq!(run(&mut world, Hook::Connect4, &mut call), PROCEED);
        assert_eq!(call.peer, place("10.0.0.11:8443"));
    }
    world.state(TCP4, EndpointState::DOWN);
    world.tables.reasons.clear();
    world.tables.service_counts.clear();
    let mut call = call(Protocol::TCP, VIP4);
    assert_eq!(run(&mut world, Hook::Connect4, &mut call), REFUSED);
    assert_eq!(call.peer, place(VIP4));
    assert_eq!(reason(&world, Hook::Connect4), Reason::NoEndpoint);
    assert_eq!(world.tables.service_counts[&TCP4.0].dropped, 1);
    assert_eq!(world.tables.service_reasons[&TCP4.0].packets[Reason::NoEndpoint.place()], 1);
}

#[test]
fn what_cannot_be_written_down_is_refused() {
    let mut world = world();
    world.tables.is_asked_full = true;
    let mut call = call(Protocol::UDP, DNS4);
    assert_eq!(run(&mut world, Hook::SendMsg4, &mut call), REFUSED);
    assert_eq!(call.peer, place(DNS4));
    assert_eq!(reason(&world, Hook::SendMsg4), Reason::SocketsFull);
    assert_eq!(world.tables.service_reasons[&UDP4.0].packets[Reason::SocketsFull.place()], 1);
}

/// Where calls go to, of these sockets, each with another number by chance.
fn targets(
    world: &mut World,
    (protocol, to): (Protocol, &str),
    cookies: impl Iterator<Item = u64>,
) -> Vec<Addr> {
    let mut chance = 1_u32;
    let mut target = |cookie| {
        chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        world.tables.random = chance;
        let mut call = SocketCall { cookie, ..call(protocol, to) };
        assert_eq!(run(world, Hook::Connect4, &mut call), PROCEED);
        call.peer.0
    };
    cookies.map(&mut target).collect()
}

#[test]
fn connections_are_spread_and_datagrams_stay_together() {
    let mut world = world();
    world.slots_in_turns(TCP4);
    world.slots_in_turns(UDP4);
    let share = |targets: &[Addr]| {
        let first = place("10.0.0.10:1").0;
        targets.iter().filter(|addr| **addr == first).count()
    };
    let tcp = targets(&mut world, (Protocol::TCP, VIP4), std::iter::repeat_n(COOKIE, 400));
    assert!((140..260).contains(&share(&tcp)), "{} of 400", share(&tcp));
    let udp = targets(&mut world, (Protocol::UDP, DNS4), 1..401);
    assert!((140..260).contains(&share(&udp)), "{} of 400", share(&udp));
    let one = targets(&mut world, (Protocol::UDP, DNS4), std::iter::repeat_n(COOKIE, 50));
    assert!([0, 50].contains(&share(&one)), "one socket keeps its endpoint: {}", share(&one));
    world.change(TCP4, |service| service.flags |= Service::AFFINITY);
    let node = targets(&mut world, (Protocol::TCP, VIP4), 1..51);
    assert!([0, 50].contains(&share(&node)), "the node is one client: {}", share(&node));
}

#[test]
fn direct_return_keeps_the_port_and_the_family() {
    let mut world = world();
    world.change(TCP4, |service| service.mode = Mode::DSR_IPIP);
    let mut call = call(Protocol::TCP, VIP4);
    assert_eq!(run(&mut world, Hook::Connect4, &mut call), PROCEED);
    assert_eq!(call.peer, place("10.0.0.10:443"));
    for row in [TCP4.row(), TCP4.row() + 1] {
        world.row(row).addr = place("[fd00::10]:1").0;
    }
    world.tables.reasons.clear();
    call.peer = place(VIP4);
    assert_eq!(run(&mut world, Hook::Connect4, &mut call), REFUSED);
    assert_eq!(reason(&world, Hook::Connect4), Reason::NoEndpoint);
}

/// An endpoint of a service in this process.
fn moves(world: &mut World, id: Id, to: SocketAddr) {
    let row = world.row(id.row());
    (row.addr, row.port) = of(to);
}

/// What the host makes of calls, one after the other; where each then leads.
fn on_host(world: &mut World, calls: &[(Hook, SocketCall)]) -> Vec<(Addr, Port)> {
    let each = |(hook, call): &(Hook, SocketCall)| {
        let mut call = *call;
        let _code = run(world, *hook, &mut call);
        call.peer
    };
    calls.iter().map(each).collect()
}

/// What calls change is the same on both sides.
fn same(kernel: &Tables, host: &Tables) {
    assert_eq!(kernel.asked, host.asked);
    assert_eq!(kernel.reasons, host.reasons);
    assert_eq!(kernel.service_counts, host.service_counts);
    assert_eq!(kernel.endpoint_counts, host.endpoint_counts);
    assert_eq!(kernel.service_reasons, host.service_reasons);
}

fn tcp_of(kernel: &mut Kernel, family: &str, vip: &str, (hook, name, id): (Hook, Hook, Id)) {
    let listener = TcpListener::bind(format!("{family}:0")).unwrap();
    let mut world = world();
    let to = listener.local_addr().unwrap();
    moves(&mut world, id, to);
    world.tables.socket_scope.network = network(&listener).unwrap();
    kernel.fill(&world.tables).unwrap();
    let mut after = world.clone();
    let stream = TcpStream::connect(vip).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    assert_eq!(stream.local_addr().unwrap(), accepted.peer_addr().unwrap(), "it is this connection");
    assert_eq!(stream.peer_addr().unwrap().to_string(), vip, "the process sees the virtual address");
    let made = SocketCall {
        cookie: cookie(&stream).unwrap(),
        network: world.tables.socket_scope.network,
        ..call(Protocol::TCP, vip)
    };
    let asked = SocketCall { peer: of(to), ..made };
    let other = SocketCall { peer: of(accepted.peer_addr().unwrap()), cookie: 0, ..made };
    // The accepted connection is asked for its peer when it is taken, and twice above.
    let calls = [(hook, made), (name, other), (name, asked), (name, other), (name, other)];
    assert_eq!(on_host(&mut after, &calls)[..3], [of(to), other.peer, made.peer]);
    same(&kernel.read(&world.tables).unwrap(), &after.tables);
}

fn udp_of(kernel: &mut Kernel, family: &str, vip: &str, (hooks, id): ([Hook; 4], Id)) {
    let [connect, send, receive, name] = hooks;
    let server = UdpSocket::bind(format!("{family}:0")).unwrap();
    let client = UdpSocket::bind(format!("{family}:0")).unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    }
    let mut world = world();
    let to = server.local_addr().unwrap();
    moves(&mut world, id, to);
    let own = network(&server).unwrap();
    world.tables.socket_scope.network = own;
    kernel.fill(&world.tables).unwrap();
    let mut after = world.clone();
    let mut bytes = [0; 8];

    // Without a connection: the datagram goes to the endpoint, and its answer comes from the virtual address.
    client.send_to(b"one", vip).unwrap();
    let (len, from) = server.recv_from(&mut bytes).unwrap();
    assert_eq!((&bytes[..len], from), (&b"one"[..], client.local_addr().unwrap()));
    server.send_to(b"two", from).unwrap();
    let (len, answered) = client.recv_from(&mut bytes).unwrap();
    assert_eq!((&bytes[..len], answered.to_string().as_str()), (&b"two"[..], vip));
    // With one.
    client.connect(vip).unwrap();
    client.send(b"three").unwrap();
    assert_eq!(server.recv(&mut bytes).unwrap(), 5);
    assert_eq!(client.peer_addr().unwrap().to_string(), vip);

    let made = SocketCall { cookie: cookie(&client).unwrap(), network: own, ..call(Protocol::UDP, vip) };
    let server = SocketCall { cookie: cookie(&server).unwrap(), peer: of(from), ..made };
    let heard = SocketCall { peer: of(to), ..made };
    // A name without a virtual address is looked at too, and a receiver that does not ask is not.
    let calls = [
        (send, made),
        (receive, server),
        (send, SocketCall { peer: of(from), ..server }),
        (receive, heard),
        (connect, made),
        (name, heard),
    ];
    assert_eq!(on_host(&mut after, &calls), [of(to), of(from), of(from), made.peer, of(to), made.peer]);
    same(&kernel.read(&world.tables).unwrap(), &after.tables);
}

#[test]
fn the_kernel_does_so_for_this_process() {
    if !privilege::require("control groups") {
        return;
    }
    let group = Cgroup::enter().unwrap();
    let mut kernel = Kernel::load().expect("the programs load");
    kernel.sit_at(group.path()).unwrap();
    let tcp4 = (Hook::Connect4, Hook::GetPeerName4, TCP4);
    tcp_of(&mut kernel, "127.0.0.1", VIP4, tcp4);
    tcp_of(&mut kernel, "[::1]", VIP6, (Hook::Connect6, Hook::GetPeerName6, TCP6));
    let udp4 = [Hook::Connect4, Hook::SendMsg4, Hook::RecvMsg4, Hook::GetPeerName4];
    udp_of(&mut kernel, "127.0.0.1", DNS4, (udp4, UDP4));
    let udp6 = [Hook::Connect6, Hook::SendMsg6, Hook::RecvMsg6, Hook::GetPeerName6];
    udp_of(&mut kernel, "[::1]", DNS6, (udp6, UDP6));

    // A socket of IPv6 that names an IPv4 address.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut world = world();
    world.tables.socket_scope.network = network(&listener).unwrap();
    moves(&mut world, TCP4, listener.local_addr().unwrap());
    kernel.fill(&world.tables).unwrap();
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
    let mapped: SocketAddr = "[::ffff:198.51.100.1]:443".parse().unwrap();
    socket.connect_timeout(&mapped.into(), Duration::from_secs(2)).unwrap();
    assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(mapped));
    drop(socket);

    // Nobody listens, as far as the process can tell; what the agent's own sockets name stays.
    world.state(TCP4, EndpointState::DOWN);
    kernel.fill(&world.tables).unwrap();
    assert_eq!(TcpStream::connect(VIP4).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let counted = kernel.read(&world.tables).unwrap();
    assert_eq!(counted.reason(Hook::Connect4, Reason::NoEndpoint).packets, 1);
    assert_eq!(counted.service_counts[&TCP4.0].dropped, 1);
    for (name, mark, network) in
        [("own", OWN_MARK, world.tables.socket_scope.network), ("other", 0, u64::MAX)]
    {
        world.tables.socket_scope.network = network;
        kernel.fill(&world.tables).unwrap();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        if mark != 0 {
            socket.set_mark(mark).unwrap();
        }
        socket.set_nonblocking(true).unwrap();
        let to: SocketAddr = VIP4.parse().unwrap();
        // No way leads there, or nobody answers: it goes as it is.
        drop(socket.connect(&to.into()));
        let counted = kernel.read(&world.tables).unwrap();
        assert_eq!(counted.reason(Hook::Connect4, Reason::ForeignSocket).packets, 1, "{name}");
    }

    // A service of the agent, and what is nobody's, go as they are.
    kernel.fill(&world.tables).unwrap();
    let own: (Addr, Port) =
        (world.tables.services.values().find(|one| one.id == AGENT4.0).unwrap().addr, Port::new(80));
    let to = SocketAddr::new(IpAddr::from(own.0), own.1.number());
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    drop(socket.connect(&to.into()));
    drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    let counted = kernel.read(&world.tables).unwrap();
    assert_eq!(counted.reason(Hook::Connect4, Reason::Agent).packets, 1);
    assert_eq!(counted.reason(Hook::Connect4, Reason::NotOurs).packets, 1);
    group.leave().unwrap();
}
