//! Session tickets: what lets a client resume without a full handshake, on any node that has the keys.
//!
//! A ticket is `version (1) | name of the key (8) | salt (32) | sealed (8 + n) | tag (16)`. The name and, with the salt, the
//! key of this one ticket follow from the ring's key by HKDF-SHA256; it is sealed with AES-256-GCM under a nonce of zeros,
//! because no two tickets share a key. What is sealed begins with the second of the full handshake that the session goes back
//! to, so that it ends some time after it however often it is resumed: each connection gets new tickets. The version and the
//! name are authenticated with it.
//!
//! A resumed session skips the check of the client's certificate, so tickets are bound to a [`Scope`]: one that was given
//! where clients are trusted differently opens nothing here.

use std::{
    cell::Cell,
    fmt,
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest,
    hkdf::{self, HKDF_SHA256},
    rand,
};
use parking_lot::Mutex;
use rustls::server::ProducesTickets;

use crate::{
    clock::{self, Clock},
    limits,
};

/// Bytes of a key of the ring.
pub const KEY_BYTES: usize = 32;

const VERSION: u8 = 1;
const NAME_BYTES: usize = 8;
const SALT_BYTES: usize = 32;
const TIME_BYTES: usize = 8;
const HEAD_BYTES: usize = 1 + NAME_BYTES;
const TAG_BYTES: usize = 16;

/// What has to be the same where a ticket is made and where it is used: how clients prove who they are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Scope([u8; 32]);

impl Scope {
    /// From everything that decides which clients are let in.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in parts {
            context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            context.update(part);
        }
        let mut scope = [0; 32];
        scope.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        Self(scope)
    }
}

/// One key of a ring.
#[derive(Clone)]
struct Key {
    name: [u8; NAME_BYTES],
    secret: [u8; KEY_BYTES],
}

impl Key {
    fn new(secret: [u8; KEY_BYTES]) -> Option<Self> {
        let mut name = [0; NAME_BYTES];
        derive(&secret, &[], &[b"sluice ticket name"], &mut name)?;
        Some(Self { name, secret })
    }

    fn random() -> Option<Self> {
        let mut secret = [0; KEY_BYTES];
        rand::fill(&mut secret).ok()?;
        Self::new(secret)
    }

    /// The key of one ticket.
    fn of_ticket(&self, salt: &[u8], scope: &Scope) -> Option<LessSafeKey> {
        let mut bytes = [0; KEY_BYTES];
        derive(&self.secret, salt, &[b"sluice ticket key", &scope.0], &mut bytes)?;
        Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).ok()?))
    }
}

fn derive<const N: usize>(secret: &[u8], salt: &[u8], info: &[&[u8]], to: &mut [u8; N]) -> Option<()> {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let extracted = hkdf::Salt::new(HKDF_SHA256, salt).extract(secret);
    extracted.expand(info, Length(N)).ok()?.fill(to).ok()
}

/// Keys, the one that makes new tickets first.
#[derive(Clone)]
pub struct Ring(Source);

#[derive(Clone)]
enum Source {
    /// From a file that the nodes of a cluster share.
    Given(Arc<[Key]>),
    /// Of this process.
    Own(Arc<Own>),
}

struct Own {
    clock: Clock,
    keys: Mutex<OwnKeys>,
}

struct OwnKeys {
    current: Key,
    previous: Option<Key>,
    since: Instant,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ring")
    }
}

impl Ring {
    /// Random keys that nobody else has, replaced in turn; none when the system gives no random bytes.
    pub fn own(clock: Clock) -> Option<Self> {
        let keys = Mutex::new(OwnKeys { current: Key::random()?, previous: None, since: clock.now() });
        Some(Self(Source::Own(Arc::new(Own { clock, keys }))))
    }

    /// These keys; the first makes new tickets, all are accepted. None when there is none, or one is of another length.
    pub fn given<'k>(keys: impl IntoIterator<Item = &'k [u8]>) -> Option<Self> {
        let keys: Option<Vec<Key>> = keys.into_iter().map(|key| Key::new(key.try_into().ok()?)).collect();
        keys.filter(|keys| !keys.is_empty()).map(|keys| Self(Source::Given(keys.into())))
    }

    /// The key that makes new tickets.
    fn current(&self) -> Option<Key> {
        match &self.0 {
            Source::Given(keys) => keys.first().cloned(),
            Source::Own(own) => own.current(),
        }
    }

    fn named(&self, name: &[u8]) -> Option<Key> {
        match &self.0 {
            Source::Given(keys) => keys.iter().find(|key| key.name == name).cloned(),
            Source::Own(own) => own.named(name),
        }
    }
}

impl Own {
    fn current(&self) -> Option<Key> {
        let now = self.clock.now();
        let mut keys = self.keys.lock();
        let age = now.saturating_duration_since(keys.since);
        if age >= limits::TICKET_KEY_USE {
            // Without random bytes no ticket is better than one under an old key.
            let old = std::mem::replace(&mut keys.current, Key::random()?);
            keys.previous = (age < limits::TICKET_KEY_USE * 2).then_some(old);
            keys.since = now;
        }
        Some(keys.current.clone())
    }

    fn named(&self, name: &[u8]) -> Option<Key> {
        // A process that made no ticket for long still forgets its old keys.
        self.current()?;
        let keys = self.keys.lock();
        [Some(&keys.current), keys.previous.as_ref()]
            .into_iter()
            .flatten()
            .find(|key| key.name == name)
            .cloned()
    }
}

tokio::task_local! {
    /// The second of the full handshake that the connection goes back to whose handshake is going on; none before a ticket of
    /// it was opened. The library makes and opens tickets while a handshake is polled, and does not say for whom.
    static BEGUN_S: Cell<Option<u64>>;
}

/// Shakes hands, so that the tickets of a session that is resumed are as old as the one that it was resumed with.
pub(super) async fn ageing<F: Future>(handshake: F) -> F::Output {
    BEGUN_S.scope(Cell::new(None), handshake).await
}

/// Makes and opens the tickets of one TLS configuration.
#[derive(Debug)]
pub struct Ticketer {
    ring: Ring,
    scope: Scope,
}

impl Ticketer {
    /// With the keys of `ring`, for `scope` alone.
    pub const fn new(ring: Ring, scope: Scope) -> Self {
        Self { ring, scope }
    }

    fn seal(&self, plain: &[u8], made_s: u64) -> Option<Vec<u8>> {
        let key = self.ring.current()?;
        let mut salt = [0; SALT_BYTES];
        rand::fill(&mut salt).ok()?;
        let mut ticket = Vec::with_capacity(HEAD_BYTES + SALT_BYTES + TIME_BYTES + plain.len() + TAG_BYTES);
        ticket.push(VERSION);
        ticket.extend_from_slice(&key.name);
        let mut sealed = Vec::with_capacity(TIME_BYTES + plain.len() + TAG_BYTES);
        sealed.extend_from_slice(&made_s.to_be_bytes());
        sealed.extend_from_slice(plain);
        key.of_ticket(&salt, &self.scope)?
            .seal_in_place_append_tag(zero_nonce(), Aad::from(ticket.as_slice()), &mut sealed)
            .ok()?;
        ticket.extend_from_slice(&salt);
        ticket.extend_from_slice(&sealed);
        Some(ticket)
    }

    /// What was sealed, and the second of its full handshake.
    fn open(&self, ticket: &[u8], now_s: u64) -> Option<(Vec<u8>, u64)> {
        let (head, rest) = ticket.split_at_checked(HEAD_BYTES)?;
        let (version, name) = head.split_first()?;
        let (salt, sealed) = rest.split_at_checked(SALT_BYTES)?;
        if *version != VERSION || sealed.len() > limits::TICKET_BYTES {
            return None;
        }
        let key = self.ring.named(name)?.of_ticket(salt, &self.scope)?;
        let mut sealed = sealed.to_vec();
        let plain = key.open_in_place(zero_nonce(), Aad::from(head), &mut sealed).ok()?;
        let (made, plain) = plain.split_at_checked(TIME_BYTES)?;
        let made_s = u64::from_be_bytes(made.try_into().ok()?);
        // A ticket from a node whose clock is ahead is young.
        (now_s.saturating_sub(made_s) <= limits::TICKET_LIFETIME.as_secs()).then(|| (plain.to_vec(), made_s))
    }
}

fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(limits::TICKET_LIFETIME.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, BEGUN_S.try_with(Cell::get).ok().flatten().unwrap_or_else(wall_s))
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (plain, begun_s) = self.open(ticket, wall_s())?;
        // Nobody is there where no handshake goes on, and then nobody makes tickets.
        BEGUN_S.try_with(|begun| begun.set(Some(begun_s))).ok();
        Some(plain)
    }
}

fn wall_s() -> u64 {
    clock::wall().duration_since(UNIX_EPOCH).map_or(0, |since: Duration| since.as_secs())
}

#[cfg(test)]
mod tests {
    use rustls::{
        ClientConfig, HandshakeKind, RootCertStore, ServerConfig,
        pki_types::{PrivateKeyDer, ServerName},
    };
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::tls::Context;

    fn given(keys: &[[u8; KEY_BYTES]]) -> Ring {
        Ring::given(keys.iter().map(<[u8; KEY_BYTES]>::as_slice)).unwrap()
    }

    fn ticketer(ring: Ring) -> Ticketer {
        Ticketer::new(ring, Scope::of(&[b"anybody"]))
    }

    #[test]
    fn nodes_with_one_file_open_each_others_tickets_while_keys_rotate() {
        let [old, new] = [[1; KEY_BYTES], [2; KEY_BYTES]];
        let before = ticketer(given(&[old]));
        let prepared = ticketer(given(&[old, new]));
        let turned = ticketer(given(&[new, old]));
        let after = ticketer(given(&[new]));
        let tickets = [&before, &prepared, &turned, &after].map(|one| one.seal(b"session", 5).unwrap());
        let opens = |one: &Ticketer| tickets.each_ref().map(|ticket| one.open(ticket, 6).is_some());
        assert_eq!(opens(&before), [true, true, false, false]);
        assert_eq!(opens(&prepared), [true; 4], "the new key is known before anybody uses it");
        assert_eq!(opens(&turned), [true; 4]);
        assert_eq!(opens(&after), [false, false, true, true]);
        assert_eq!(turned.open(&tickets[0], 6).unwrap(), (b"session".to_vec(), 5));
    }

    #[test]
    fn a_ticket_is_worth_nothing_where_clients_are_trusted_differently() {
        let ring = given(&[[1; KEY_BYTES]]);
        let open = Ticketer::new(ring.clone(), Scope::of(&[b"required", b"one"]));
        let other = Ticketer::new(ring, Scope::of(&[b"requiredone"]));
        let ticket = open.seal(b"session", 5).unwrap();
        assert!(open.open(&ticket, 5).is_some());
        assert_eq!(other.open(&ticket, 5), None);
    }

    #[test]
    fn what_was_changed_cut_or_is_too_old_does_not_open() {
        let one = ticketer(given(&[[1; KEY_BYTES]]));
        let ticket = one.seal(b"session", 1_000).unwrap();
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(one.open(&changed, 1_000), None, "byte {at}");
            assert_eq!(one.open(&ticket[..at], 1_000), None, "cut at {at}");
        }
        let lifetime = limits::TICKET_LIFETIME.as_secs();
        assert!(one.open(&ticket, 1_000 + lifetime).is_some());
        assert_eq!(one.open(&ticket, 1_001 + lifetime), None);
        assert!(one.open(&ticket, 0).is_some(), "made by a node whose clock is ahead");
        assert_ne!(ticket, one.seal(b"session", 1_000).unwrap(), "no two are alike");
    }

    #[test]
    fn own_keys_take_turns_and_are_forgotten() {
        let clock = Clock::driven();
        let one = ticketer(Ring::own(clock.clone()).unwrap());
        let first = one.seal(b"first", 0).unwrap();
        clock.advance(limits::TICKET_KEY_USE);
        let second = one.seal(b"second", 0).unwrap();
        assert_ne!(first[1..HEAD_BYTES], second[1..HEAD_BYTES], "another key makes tickets now");
        assert!(one.open(&first, 0).is_some() && one.open(&second, 0).is_some());
        clock.advance(limits::TICKET_KEY_USE);
        assert_eq!(one.open(&first, 0), None);
        assert!(one.open(&second, 0).is_some());
        clock.advance(limits::TICKET_KEY_USE * 2);
        assert_eq!(one.open(&second, 0), None, "also when no ticket was made meanwhile");
    }

    /// Seconds that seem to have passed whenever a ticket is opened; after a few the time of a session is over.
    const STEP_S: u64 = 3_700;

    /// Tickets that say what they go back to.
    #[derive(Debug)]
    struct Aged {
        tickets: Ticketer,
        begun_s: Mutex<Vec<u64>>,
    }

    impl ProducesTickets for Aged {
        fn enabled(&self) -> bool {
            true
        }

        fn lifetime(&self) -> u32 {
            self.tickets.lifetime()
        }

        fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
            let ticket = self.tickets.encrypt(plain)?;
            self.begun_s.lock().push(self.tickets.open(&ticket, wall_s())?.1);
            Some(ticket)
        }

        fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
            let (plain, begun_s) = self.tickets.open(ticket, wall_s())?;
            self.tickets.decrypt(&self.tickets.seal(&plain, begun_s - STEP_S)?)
        }
    }

    /// One connection; whether an earlier session went on.
    async fn connect(client: &TlsConnector, server: &TlsAcceptor) -> bool {
        let (ours, theirs) = tokio::io::duplex(64 * 1_024);
        let name = ServerName::try_from("a.test").unwrap();
        let (accepted, connected) = tokio::join!(ageing(server.accept(theirs)), client.connect(name, ours));
        let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());
        // The client takes tickets while it reads.
        accepted.write_all(b"x").await.unwrap();
        connected.read_exact(&mut [0]).await.unwrap();
        accepted.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    #[tokio::test]
    async fn a_session_is_as_old_as_its_full_handshake_however_often_it_is_resumed() {
        let context = Context::new().unwrap();
        let pair = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(pair.cert.der().clone()).unwrap();
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let tickets = Ticketer::new(given(&[[1; KEY_BYTES]]), Scope::of(&[]));
            let aged = Arc::new(Aged { tickets, begun_s: Mutex::default() });
            let mut server = ServerConfig::builder_with_provider(Arc::clone(&context.provider))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![pair.cert.der().clone()], key.clone_key())
                .unwrap();
            server.ticketer = Arc::<Aged>::clone(&aged);
            let client = ClientConfig::builder_with_provider(Arc::clone(&context.provider))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            let (client, server) =
                (TlsConnector::from(Arc::new(client)), TlsAcceptor::from(Arc::new(server)));
            let (now_s, most) = (wall_s(), limits::TICKET_LIFETIME.as_secs() / STEP_S);
            for n in 0..=most {
                assert_eq!(connect(&client, &server).await, n > 0, "{version:?}, {n}");
                for begun_s in std::mem::take(&mut *aged.begun_s.lock()) {
                    let age_s = (now_s + 60).saturating_sub(begun_s + n * STEP_S);
                    assert!((30..=60).contains(&age_s), "{version:?}, {n}: {age_s}");
                }
            }
            assert!(!connect(&client, &server).await, "{version:?}: it is over");
        }
    }

    #[test]
    fn rings_need_keys_of_the_right_length() {
        assert!(Ring::given([]).is_none());
        assert!(Ring::given([&[0_u8; 31][..]]).is_none());
    }
}
