//! The programs that ours are measured against: a bare drop, a balancer of the classic design, written plainly, and the
//! generator of the packets for both. Never part of the agent.
//!
//! The classic design remembers every flow in one LRU table, fills one ring of 65,537 slots, and sends packets on in a
//! tunnel, so it translates nothing and sees no replies.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "packets and rows of maps are raw pointers")]
#![expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::needless_pass_by_value,
    reason = "written plainly: addresses in the form that the verifier follows, lengths of packets, signatures of macros"
)]

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    helpers,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use gateway_common::{
    addr::{Addr, Port, Protocol},
    counter::Count,
    endpoint::Endpoint,
    flow::FlowKey,
    generator::{TEMPLATE_BYTES, Template},
    hash::{self, Keys, Seed},
    service::ServiceKey,
};
use gateway_ebpf::Aligned;

/// Slots of the ring: the prime next to 2^16, as the classic design has it.
const RING: usize = 65_537;

/// The seed of the hash, which the tables of the benchmark follow.
const KEYS: Keys = Seed::new([0x5eed, 0x5eed]).keys();

#[btf_map]
static REF_SERVICES: HashMap<ServiceKey, u32, 1_024> = HashMap::new();
#[btf_map]
static REF_FLOWS: LruHashMap<FlowKey, u32, 262_144> = LruHashMap::new();
#[btf_map]
static REF_RING: Array<u32, RING> = Array::new();
#[btf_map]
static REF_ENDPOINTS: Array<Endpoint, 1_024> = Array::new();
#[btf_map]
static REF_SERVED: PerCpuArray<Count, 1_024> = PerCpuArray::new();
#[btf_map]
static REF_SENT: PerCpuArray<Count, 1_024> = PerCpuArray::new();
#[btf_map]
static REF_TEMPLATE: Array<Template, 1> = Array::new();

/// Some helpers are open to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// Drops everything: what a program costs that does nothing.
#[xdp]
fn ref_drop(_: XdpContext) -> u32 {
    XDP_DROP
}

/// Balances by the classic design.
#[xdp]
fn ref_classic(ctx: XdpContext) -> u32 {
    let Some(packet) = parse(&ctx) else { return XDP_PASS };
    balance(&ctx, &packet).unwrap_or(XDP_DROP)
}

/// Writes the next packet of the template into the frame and sends it out of the interface that it is said to come
/// from.
#[xdp]
fn ref_generate(ctx: XdpContext) -> u32 {
    generate(&ctx).unwrap_or(XDP_DROP)
}

/// The address of `T` at `offset`, if all of it is inside the packet.
#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data().wrapping_add(offset);
    (start.wrapping_add(size_of::<T>()) <= ctx.data_end()).then_some(start as *mut T)
}

#[inline(always)]
fn load<T: Copy>(ctx: &XdpContext, offset: usize) -> Option<T> {
    let at = at::<T>(ctx, offset)?;
    // SAFETY: all of `T` is inside the packet, and it is read as integers only.
    Some(unsafe { at.read_unaligned() })
}

#[inline(always)]
fn store<T: Copy>(ctx: &XdpContext, offset: usize, value: T) -> Option<()> {
    let at = at::<T>(ctx, offset)?;
    // SAFETY: all of `T` is inside the packet, which this program owns while it runs.
    unsafe { at.write_unaligned(value) };
    Some(())
}

/// Word by word: of a copy from map to packet the compiler makes a call, which the verifier refuses.
#[inline(always)]
fn store_addr(ctx: &XdpContext, offset: usize, addr: Addr) -> Option<()> {
    let [a, b, c, d] = addr.words();
    store(ctx, offset, a)?;
    store(ctx, offset + 4, b)?;
    store(ctx, offset + 8, c)?;
    store(ctx, offset + 12, d)
}

/// What the balancer knows of a packet.
struct Packet {
    key: Aligned<FlowKey>,
    bytes: u16,
    v6: bool,
}

/// Bytes of a link-layer header.
const ETH: usize = 14;
/// Bytes of an IPv4 header without options.
const IPV4: usize = 20;
/// Bytes of an IPv6 header.
const IPV6: usize = 40;
/// Bytes of a TCP header without options.
const TCP: usize = 20;
/// Ethertypes, as they stand in a header.
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

#[inline(always)]
fn parse(ctx: &XdpContext) -> Option<Packet> {
    let ethertype: [u8; 2] = load(ctx, 12)?;
    let (source, destination, protocol, transport, v6) = if ethertype == ETHERTYPE_IPV4 {
        let version: u8 = load(ctx, ETH)?;
        let fragment: [u8; 2] = load(ctx, ETH + 6)?;
        // Options and fragments are left to the stack.
        if version != 0x45 || u16::from_be_bytes(fragment) & 0x3fff != 0 {
            return None;
        }
        let source: [u8; 4] = load(ctx, ETH + 12)?;
        let destination: [u8; 4] = load(ctx, ETH + 16)?;
        (Addr::v4(source), Addr::v4(destination), load::<u8>(ctx, ETH + 9)?, ETH + IPV4, false)
    } else if ethertype == ETHERTYPE_IPV6 {
        let source: [u8; 16] = load(ctx, ETH + 8)?;
        let destination: [u8; 16] = load(ctx, ETH + 24)?;
        (Addr::v6(source), Addr::v6(destination), load::<u8>(ctx, ETH + 6)?, ETH + IPV6, true)
    } else {
        return None;
    };
    let ports: [u8; 4] = load(ctx, transport)?;
    let [s0, s1, d0, d1] = ports;
    let key = FlowKey::new(
        source,
        Port::from_wire([s0, s1]),
        destination,
        Port::from_wire([d0, d1]),
        Protocol::new(protocol),
    );
    let bytes = ctx.data_end().wrapping_sub(ctx.data()) as u16;
    Some(Packet { key: Aligned(key), bytes, v6 })
}

#[inline(always)]
fn balance(ctx: &XdpContext, packet: &Packet) -> Option<u32> {
    let key = &packet.key.0;
    let service_key = Aligned(ServiceKey::new(key.destination, key.destination_port, key.protocol));
    // SAFETY: no program writes to this table.
    let Some(service) = (unsafe { REF_SERVICES.get(service_key.0) }) else { return Some(XDP_PASS) };
    let number = if let Some(row) = REF_FLOWS.get_ptr_mut(key) {
        // SAFETY: the kernel keeps the row in place while the program runs.
        unsafe { *row }
    } else {
        let slot = hash::slot(hash::flow(&KEYS, key, packet.v6), RING as u32);
        let number = *service + *REF_RING.get(slot)?;
        // A flow that cannot be remembered is balanced all the same.
        let _full = REF_FLOWS.insert(key, number, 0);
        number
    };
    let endpoint = REF_ENDPOINTS.get(number)?;
    count(REF_SERVED.get_ptr_mut(*service), packet);
    count(REF_SENT.get_ptr_mut(number), packet);
    if packet.v6 { tunnel_v6(ctx, packet, endpoint) } else { tunnel_v4(ctx, packet, endpoint) }
}

#[inline(always)]
fn count(row: Option<*mut Count>, packet: &Packet) {
    if let Some(row) = row {
        // SAFETY: the row belongs to this processor, and nothing else runs there in between.
        let count = unsafe { &mut *row };
        count.packets += 1;
        count.bytes += u64::from(packet.bytes);
    }
}

#[inline(always)]
fn link(ctx: &XdpContext, endpoint: &Endpoint, ethertype: [u8; 2]) -> Option<()> {
    store(ctx, 0, endpoint.next_hop.mac)?;
    store(ctx, 6, endpoint.next_hop.own_mac)?;
    store(ctx, 12, ethertype)
}

#[inline(always)]
fn grow(ctx: &XdpContext, by: usize) -> Option<()> {
    // SAFETY: the context is the program's own; all pointers into the packet are made anew afterwards.
    let code = unsafe { helpers::bpf_xdp_adjust_head(ctx.ctx, -(by as i32)) };
    (code == 0).then_some(())
}

/// `IPPROTO_IPIP`.
const IPIP: u8 = 4;
/// `IPPROTO_IPV6`: IPv6 in a tunnel.
const IN_IPV6: u8 = 41;

#[inline(always)]
fn tunnel_v4(ctx: &XdpContext, packet: &Packet, endpoint: &Endpoint) -> Option<u32> {
    grow(ctx, IPV4)?;
    link(ctx, endpoint, ETHERTYPE_IPV4)?;
    let total = (packet.bytes - ETH as u16 + IPV4 as u16).to_be_bytes();
    let source = endpoint.source.v4_octets();
    let destination = endpoint.addr.v4_octets();
    let head: [u8; 12] = [0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, IPIP, 0, 0];
    let sum =
        head.as_chunks::<2>().0.iter().chain(source.as_chunks::<2>().0).chain(destination.as_chunks::<2>().0);
    let sum: u32 = sum.map(|pair| u32::from(u16::from_ne_bytes(*pair))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let check = !((folded & 0xffff) + (folded >> 16)) as u16;
    store(ctx, ETH, head)?;
    store(ctx, ETH + 10, check)?;
    store(ctx, ETH + 12, source)?;
    store(ctx, ETH + 16, destination)?;
    Some(XDP_TX)
}

#[inline(always)]
fn tunnel_v6(ctx: &XdpContext, packet: &Packet, endpoint: &Endpoint) -> Option<u32> {
    grow(ctx, IPV6)?;
    link(ctx, endpoint, ETHERTYPE_IPV6)?;
    let payload = (packet.bytes - ETH as u16).to_be_bytes();
    let head: [u8; 8] = [0x60, 0, 0, 0, payload[0], payload[1], IN_IPV6, 64];
    store(ctx, ETH, head)?;
    store_addr(ctx, ETH + 8, endpoint.source)?;
    store_addr(ctx, ETH + 24, endpoint.addr)?;
    Some(XDP_TX)
}

#[inline(always)]
fn generate(ctx: &XdpContext) -> Option<u32> {
    let template: *mut Template = REF_TEMPLATE.get_ptr_mut(0)?;
    // SAFETY: one generator runs at a time, on one processor.
    let template = unsafe { &mut *template };
    let flow = template.next;
    template.next = (flow + template.stride) % template.n_flows.max(1);
    // The frame comes back as the last program left it, so all of the headers is written again.
    let len = if template.v6 == 0 { ETH + IPV4 + TCP } else { ETH + IPV6 + TCP };
    // SAFETY: the context is the program's own, and the template is longer than the headers.
    let code =
        unsafe { helpers::bpf_xdp_store_bytes(ctx.ctx, 0, template.bytes.as_mut_ptr().cast(), len as u32) };
    if code != 0 {
        return None;
    }
    let last = if template.v6 == 0 { ETH + 14 } else { ETH + 22 };
    let transport = if template.v6 == 0 { ETH + IPV4 } else { ETH + IPV6 };
    // 256 ports of each address: like clients, and not like one machine that tries all ports in order.
    store(ctx, last, ((flow >> 8) as u16).to_be_bytes())?;
    store(ctx, transport, (20_000 + (flow & 0xff) as u16).to_be_bytes())?;
    // Of as many services as are busy, by the last byte of their addresses.
    let service = if template.v6 == 0 { ETH + 19 } else { ETH + 39 };
    let first: u8 = load(ctx, service)?;
    store(ctx, service, first.wrapping_add((flow % template.n_services.max(1)) as u8))?;
    Some(XDP_TX)
}

const _: () = assert!(TEMPLATE_BYTES >= ETH + IPV6 + TCP);

/// Never reached: the verifier proves it, because a loop without an end would not load.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
