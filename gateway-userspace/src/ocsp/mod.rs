//! Answers of an authority about a certificate (OCSP, RFC 6960), as far as somebody has to read them who passes them on:
//! whether it is one, about this certificate, that it is good, and until when.
//!
//! Who signed it is looked at where it was fetched (`tls::signed`): clients do in any case, and whoever can write a file can write
//! the certificate's key.

pub mod ask;

use std::fmt;

use aws_lc_rs::digest::{self, Algorithm};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _, time::ASN1Time};

/// Bytes of a response. Those of public authorities have up to 2 KiB.
pub const MAX_BYTES: u64 = 64 * 1024;

/// Certificates that a response may bring of those who signed it.
const SIGNERS: usize = 4;

/// Certificates that one response may speak of.
const MOST: usize = 64;

const SEQUENCE: u8 = 0x30;
const ENUMERATED: u8 = 0x0a;
const OBJECT: u8 = 0x06;
const OCTETS: u8 = 0x04;
const INTEGER: u8 = 0x02;
const TIME: u8 = 0x18;
const BITS: u8 = 0x03;
const GOOD: u8 = 0x80;
const REVOKED: u8 = 0xa1;

/// `id-pkix-ocsp-basic`, 1.3.6.1.5.5.7.48.1.1.
const BASIC: [u8; 9] = [0x2b, 6, 1, 5, 5, 7, 48, 1, 1];
/// `id-sha1` and `id-sha256`, by which certificates are named.
const SHA1: [u8; 5] = [0x2b, 14, 3, 2, 26];
const SHA256: [u8; 9] = [0x60, 0x86, 0x48, 1, 101, 3, 4, 2, 1];

/// Why a response cannot be passed on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Error {
    /// It is none, or is damaged.
    Unreadable,
    /// The authority did not answer; its status (RFC 6960, section 4.2.1).
    Unsuccessful(u8),
    /// It speaks of other certificates.
    Foreign,
    /// The certificate is revoked.
    Revoked,
    /// The authority does not know the certificate.
    Unknown,
    /// It does not say until when it is good.
    Timeless,
    /// Nobody signed it who may.
    Unsigned,
    /// It is over, or not good yet.
    Untimely,
}

impl Error {
    /// What to do about it.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Unreadable | Self::Timeless => {
                "write a response as DER, such as `openssl ocsp -respout` makes, or leave the file out"
            }
            Self::Unsuccessful(_) | Self::Foreign | Self::Unknown | Self::Unsigned | Self::Untimely => {
                "ask the authority of this certificate again, or leave the file out"
            }
            Self::Revoked => "replace the certificate",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => f.write_str("it is no OCSP response"),
            Self::Unsuccessful(status) => write!(f, "it is an error of the authority (status {status})"),
            Self::Foreign => f.write_str("it is about another certificate"),
            Self::Revoked => f.write_str("it says that the certificate is revoked"),
            Self::Unknown => f.write_str("it says that the authority does not know the certificate"),
            Self::Timeless => f.write_str("it does not say until when it is good"),
            Self::Untimely => f.write_str("it is over, or not good yet: the clocks may differ"),
            Self::Unsigned => f.write_str("it is signed by nobody who may speak for the issuer"),
        }
    }
}

impl std::error::Error for Error {}

/// What a response says about a certificate.
#[derive(Clone, Debug)]
pub struct Said<'r> {
    /// From when on and until when the certificate is good, in seconds since 1970; or why it is not said to be.
    pub verdict: Result<[i64; 2], Error>,
    /// What is signed.
    pub signed: &'r [u8],
    /// How, as the content of an `AlgorithmIdentifier`.
    pub algorithm: &'r [u8],
    /// The signature.
    pub signature: &'r [u8],
    /// Certificates of who may have signed it.
    pub certificates: Vec<&'r [u8]>,
}

/// Until when a response is good that says that the first certificate of a chain is, in seconds since 1970. With the
/// issuer behind it in the chain, its key has to be the one that is named, too.
pub fn good_until<C: AsRef<[u8]>>(response: &[u8], chain: &[C]) -> Result<i64, Error> {
    let [_, until_s] = read(response, chain)?.verdict?;
    Ok(until_s)
}

/// What a response says, good or bad, about the first certificate of a chain, and by whom it was signed.
pub fn read<'r, C: AsRef<[u8]>>(response: &'r [u8], chain: &[C]) -> Result<Said<'r>, Error> {
    let mut chain = chain.iter().filter_map(|one| X509Certificate::from_der(one.as_ref()).ok());
    let (_, leaf) = chain.next().ok_or(Error::Foreign)?;
    let issuer = chain.next().map(|(_, issuer)| issuer);
    let mut whole = Der(response);
    let mut outer = whole.take(SEQUENCE)?;
    if !whole.0.is_empty() {
        return Err(Error::Unreadable);
    }
    match outer.take(ENUMERATED)?.0 {
        [0] => {}
        [status] => return Err(Error::Unsuccessful(*status)),
        _ => return Err(Error::Unreadable),
    }
    let mut bytes = outer.take(0xa0)?.take(SEQUENCE)?;
    if bytes.take(OBJECT)?.0 != BASIC {
        return Err(Error::Unreadable);
    }
    let mut basic = bytes.take(OCTETS)?.take(SEQUENCE)?;
    let (signed, mut data) = basic.whole(SEQUENCE)?;
    data.skip_if(0xa0)?;
    // The responder, by name or by key, and when it said so.
    data.any()?;
    data.take(TIME)?;
    let mut answers = data.take(SEQUENCE)?;
    for _ in 0..MOST {
        if answers.0.is_empty() {
            break;
        }
        let mut answer = answers.take(SEQUENCE)?;
        if is_about(answer.take(SEQUENCE)?, &leaf, issuer.as_ref())? {
            let verdict = times(answer);
            let algorithm = basic.take(SEQUENCE)?.0;
            // Bits come in whole bytes.
            let Some((0, signature)) =
                basic.take(BITS)?.0.split_first().map(|(unused, rest)| (*unused, rest))
            else {
                return Err(Error::Unreadable);
            };
            let certificates = signers(basic)?;
            return Ok(Said { verdict, signed, algorithm, signature, certificates });
        }
    }
    Err(Error::Foreign)
}

/// What follows the signature.
fn signers(mut rest: Der<'_>) -> Result<Vec<&[u8]>, Error> {
    let Some(mut list) = rest.optional(0xa0)? else { return Ok(Vec::new()) };
    let mut list = list.take(SEQUENCE)?;
    let mut signers = Vec::new();
    while !list.0.is_empty() && signers.len() < SIGNERS {
        signers.push(list.whole(SEQUENCE)?.0);
    }
    Ok(signers)
}

/// Whether an answer is about a certificate.
fn is_about(
    mut id: Der<'_>,
    leaf: &X509Certificate<'_>,
    issuer: Option<&X509Certificate<'_>>,
) -> Result<bool, Error> {
    let hash: &Algorithm = match id.take(SEQUENCE)?.take(OBJECT)?.0 {
        name if name == SHA1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
        name if name == SHA256 => &digest::SHA256,
        _ => return Ok(false),
    };
    let (name, key, serial) = (id.take(OCTETS)?.0, id.take(OCTETS)?.0, id.take(INTEGER)?.0);
    let is = |named: &[u8], thing: &[u8]| digest::digest(hash, thing).as_ref() == named;
    Ok(serial == leaf.raw_serial()
        && is(name, leaf.issuer().as_raw())
        && issuer.is_none_or(|issuer| is(key, &issuer.public_key().subject_public_key.data)))
}

/// From when on, and until when an answer is good that says so.
fn times(mut answer: Der<'_>) -> Result<[i64; 2], Error> {
    match answer.any()?.0 {
        GOOD => {}
        REVOKED => return Err(Error::Revoked),
        _ => return Err(Error::Unknown),
    }
    let (this, _) = answer.whole(TIME)?;
    let next = answer.optional(0xa0)?.ok_or(Error::Timeless)?;
    let time = |der: &[u8]| match ASN1Time::from_der(der) {
        Ok(([], time)) => Ok(time.timestamp()),
        Ok(_) | Err(_) => Err(Error::Unreadable),
    };
    Ok([time(this)?, time(next.0)?])
}

/// Elements of DER, one after the other.
#[derive(Clone, Copy)]
struct Der<'d>(&'d [u8]);

impl<'d> Der<'d> {
    /// The next element, whatever it is: its tag, and what is in it.
    fn any(&mut self) -> Result<(u8, Der<'d>), Error> {
        let [tag, first, rest @ ..] = self.0 else { return Err(Error::Unreadable) };
        // Tags of several bytes, and lengths of none or of more than three, do not occur.
        let n_digits = if *first < 0x80 { 0 } else { usize::from(*first - 0x80) };
        if tag & 0x1f == 0x1f || n_digits > 3 || *first == 0x80 {
            return Err(Error::Unreadable);
        }
        let (digits, rest) = rest.split_at_checked(n_digits).ok_or(Error::Unreadable)?;
        let len = match n_digits {
            0 => usize::from(*first),
            _ => digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit)),
        };
        let (content, rest) = rest.split_at_checked(len).ok_or(Error::Unreadable)?;
        self.0 = rest;
        Ok((*tag, Der(content)))
    }

    /// The next element, which has this tag.
    fn take(&mut self, tag: u8) -> Result<Der<'d>, Error> {
        match self.any()? {
            (found, content) if found == tag => Ok(content),
            _ => Err(Error::Unreadable),
        }
    }

    /// The same, and all of its bytes.
    fn whole(&mut self, tag: u8) -> Result<(&'d [u8], Der<'d>), Error> {
        let before = self.0;
        let content = self.take(tag)?;
        let whole = before.get(..before.len() - self.0.len()).ok_or(Error::Unreadable)?;
        Ok((whole, content))
    }

    /// The next element, if it has this tag.
    fn optional(&mut self, tag: u8) -> Result<Option<Der<'d>>, Error> {
        if self.0.first() == Some(&tag) { self.take(tag).map(Some) } else { Ok(None) }
    }

    fn skip_if(&mut self, tag: u8) -> Result<(), Error> {
        self.optional(tag).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Made by `openssl ocsp` with a certificate of an authority of its own; see the folder's README.
    const GOOD_SHA1: &[u8] = include_bytes!("../../../tests/testdata/ocsp/good-sha1.der");
    const GOOD_SHA256: &[u8] = include_bytes!("../../../tests/testdata/ocsp/good-sha256.der");
    const REVOKED: &[u8] = include_bytes!("../../../tests/testdata/ocsp/revoked.der");
    const UNKNOWN: &[u8] = include_bytes!("../../../tests/testdata/ocsp/unknown.der");
    const TIMELESS: &[u8] = include_bytes!("../../../tests/testdata/ocsp/timeless.der");
    const LEAF: &[u8] = include_bytes!("../../../tests/testdata/ocsp/leaf.der");
    const OTHER: &[u8] = include_bytes!("../../../tests/testdata/ocsp/other.der");
    const AUTHORITY: &[u8] = include_bytes!("../../../tests/testdata/ocsp/authority.der");

    #[test]
    fn what_an_authority_says_about_a_certificate_is_read() {
        for response in [GOOD_SHA1, GOOD_SHA256] {
            for chain in [&[LEAF][..], &[LEAF, AUTHORITY]] {
                let until = good_until(response, chain).unwrap();
                let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
                assert!(until > i64::try_from(now).unwrap(), "{until}");
            }
        }
        assert_eq!(good_until(REVOKED, &[LEAF, AUTHORITY]), Err(Error::Revoked));
        assert_eq!(good_until(UNKNOWN, &[LEAF, AUTHORITY]), Err(Error::Unknown));
        assert_eq!(good_until(TIMELESS, &[LEAF, AUTHORITY]), Err(Error::Timeless));
    }

    #[test]
    fn what_is_about_another_certificate_is_told() {
        assert_eq!(good_until(GOOD_SHA1, &[OTHER, AUTHORITY]), Err(Error::Foreign));
        // Named by another issuer's key.
        assert_eq!(good_until(GOOD_SHA1, &[LEAF, OTHER]), Err(Error::Foreign));
        assert_eq!(good_until::<&[u8]>(GOOD_SHA1, &[]), Err(Error::Foreign));
    }

    #[test]
    fn what_is_no_response_is_told() {
        for response in [&b""[..], b"0", LEAF, &GOOD_SHA1[..GOOD_SHA1.len() - 1], &[GOOD_SHA1, b"x"].concat()]
        {
            assert_eq!(good_until(response, &[LEAF]), Err(Error::Unreadable));
        }
        // "Try later".
        assert_eq!(good_until(&[0x30, 3, 0x0a, 1, 3], &[LEAF]), Err(Error::Unsuccessful(3)));
    }

    proptest! {
        #[test]
        fn any_damage_is_refused_or_changes_nothing(at in 0..GOOD_SHA256.len(), byte: u8) {
            let mut response = GOOD_SHA256.to_vec();
            response[at] = byte;
            let _whatever = good_until(&response, &[LEAF, AUTHORITY]);
            let _whatever = good_until(&response[..at], &[LEAF, AUTHORITY]);
        }
    }
}
