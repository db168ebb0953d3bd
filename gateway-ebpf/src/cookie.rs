//! SYN cookies for services of the agent (RFC 4987, section 3.6): while more connections begin than a service allows, a SYN
//! is answered here with a number that stands for it, and nothing remembers it. The stack takes the number back from the
//! client's next packet.
//!
//! The number is the kernel's own: the listening socket gives one as soon as its queue is full, or always where
//! `net.ipv4.tcp_syncookies` is 2, and by giving it knows that some are under way. As long as it gives none, SYNs go to
//! the stack. No option but the segment size is offered: the others would have to come back in a timestamp, behind an
//! offset that only the stack knows.

use core::{ops::Deref, sync::atomic::AtomicU64};

use gateway_common::{
    cookie::{HOLD_MOMENTS, SynCookie, WHILE_ARMED},
    counter::Reason,
    service::{Rate, Service},
    settings::Settings,
};

use crate::{
    answer::{self, handshake},
    arrival::Arrival,
    count::dropped,
    env::{Env, Maps},
    event::told,
    guard::{self, Pace},
    packet::{self, Packet},
    rewrite::ports_word,
    select::NO_ROW,
    steer,
    verdict::Verdict,
};

/// Shared form of [`SynCookie`].
pub type CookieWords = [AtomicU64; 3];

/// What stands for a connection: a sequence number, and the segment size that it stands for.
#[must_use]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cookie {
    word: u64,
}

impl Cookie {
    /// There is none.
    pub const NONE: Self = Self { word: 0 };

    /// Of the programs' own.
    #[inline(always)]
    pub(crate) fn own(sequence: u32, segment_bytes: u16) -> Self {
        Self { word: u64::from(segment_bytes) << 32 | u64::from(sequence) }
    }

    /// From the word of the kernel's helper: the sequence number in the lower half, the segment size above.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { word }
    }

    /// The sequence number.
    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "the lower half of a word")]
    pub const fn sequence(self) -> u32 {
        self.word as u32
    }

    /// Bytes of a segment; not zero where there is a cookie.
    #[inline(always)]
    #[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "sixteen bits of a word")]
    pub const fn segment_bytes(self) -> u16 {
        (self.word >> 32) as u16
    }
}

/// A SYN as the kernel's helper wants to see it: what of it matters for a cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Syn {
    /// The IP header.
    pub ip: [u32; 10],
    /// Its bytes.
    pub ip_bytes: u32,
    /// The header of TCP, with one word of options: the segment size, if the client named one.
    pub tcp: [u32; 6],
}

impl Syn {
    /// Bytes of [`Syn::tcp`].
    pub const TCP_BYTES: u32 = 24;

    /// `begins` is the sequence number, in the packet's byte order.
    #[inline(always)]
    fn new(packet: &Packet, begins: u32, segment: Option<[u8; 2]>) -> Self {
        let key = packet.key();
        let (source, destination) = (key.source.words(), key.destination.words());
        let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (source, destination);
        let option = match segment {
            Some([high, low]) => u32::from_ne_bytes([2, 4, high, low]),
            None => 0,
        };
        let ports = ports_word(key.source_port, key.destination_port);
        let tcp = [ports, begins, 0, u32::from_ne_bytes([0x60, 0x02, 0, 0]), 0, option];
        let (ip, ip_bytes) = if packet.is_v6() {
            ([u32::from_ne_bytes([0x60, 0, 0, 0]), 0, s0, s1, s2, s3, d0, d1, d2, d3], 40)
        } else {
            ([u32::from_ne_bytes([0x45, 0, 0, 0]), 0, 0, s3, d3, 0, 0, 0, 0, 0], 20)
        };
        Self { ip, ip_bytes, tcp }
    }
}

/// Answers the SYN that the arrival speaks of with a cookie if its service does so at this moment, counted; else it goes on
/// to the stack.
#[inline(always)]
pub fn answer<E: Env>(env: &mut E, arrival: &mut Arrival) -> Verdict {
    arrival.row = NO_ROW;
    told(env, arrival, false, |env, arrival| {
        let verdict = run(env, arrival);
        dropped(env.maps(), arrival.id, verdict)
    })
}

#[inline(always)]
fn run<E: Env>(env: &mut E, arrival: &mut Arrival) -> Verdict {
    let pass = Verdict::Pass(Reason::Agent);
    let packet = &arrival.packet;
    let Some(settings) = env.maps().settings() else { return pass };
    let Some(service) = env.maps().service(arrival.id) else { return pass };
    let Some(row) = env.maps().syn_cookie(arrival.id) else { return pass };
    if !is_armed(env.maps(), &row, &service, &settings)
        || service.n_sockets == 0
        || packet.flags.closes()
        || !answer::may_be_answered(env, arrival)
    {
        return pass;
    }
    let Some(begins) = handshake::begins(env, packet) else { return pass };
    let syn = Syn::new(packet, begins, handshake::segment(env, packet));
    let cookie = env.cookie(steer::socket(&service, &settings, packet.key()), &syn);
    if cookie == Cookie::NONE {
        return pass;
    }
    let way = packet::way_back(env);
    let done =
        handshake::answer(env, packet, begins, cookie, handshake::WINDOW).and_then(|()| env.store_link(way));
    if done.is_none() {
        return Verdict::Drop(Reason::RewriteFailed);
    }
    let [_, _, sent] = &*row;
    <E::Maps as Maps>::add(sent, 1);
    arrival.leaves_by(way.interface());
    Verdict::Transmit(Reason::CookieSent)
}

/// Counts a SYN; says whether the service answers with cookies. It begins when there are more SYNs than it allows, and ends
/// when for a while there was not even half of that.
#[inline(always)]
pub(crate) fn is_armed<M: Maps>(
    maps: &M,
    row: &impl Deref<Target = CookieWords>,
    service: &Service,
    settings: &Settings,
) -> bool {
    let [full_at, armed, _] = &**row;
    let now = maps.moment();
    let was_armed = SynCookie::is_armed(M::load(armed), now);
    let per_second = if was_armed { service.cookie_rate / WHILE_ARMED } else { service.cookie_rate };
    // As many at once as in a second.
    let per_second = per_second.max(1);
    let pace = Pace::of(Rate { per_second, burst: per_second }, settings);
    if guard::takes::<M>(full_at, &pace, maps.instant(settings.tick_shift)) {
        return was_armed;
    }
    let until = SynCookie::until(now.after(HOLD_MOMENTS));
    if M::load(armed) != until {
        M::store(armed, until);
    }
    true
}
