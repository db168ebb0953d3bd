//! Certificates whose authority the agent asks by itself what it says about them: whom to ask, and the last answer. They
//! outlive reloads of the configuration.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use aws_lc_rs::digest;
use parking_lot::Mutex;
use rustls::{pki_types::UnixTime, sign::CertifiedKey};

use crate::{
    ocsp::{
        self,
        ask::{Question, Unasked},
    },
    tls::{
        certificate::Staple,
        signed::{self, Algorithms},
    },
};

/// How far the authority's clock may be ahead, in seconds.
const AHEAD_S: i64 = 300;

/// A certificate, whom to ask about it, and the last answer.
pub struct Fetched {
    key: Arc<CertifiedKey>,
    origin: String,
    name: String,
    question: Question,
    staple: ArcSwapOption<Staple>,
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetched").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Fetched {
    /// The file of the chain.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// What tells its chain from all others, in letters and digits.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whom to ask, and what.
    pub const fn question(&self) -> &Question {
        &self.question
    }

    /// Takes an answer if it is good at this instant, in seconds since 1970, and the issuer stands behind it; until when it
    /// is good.
    ///
    /// # Errors
    /// What is wrong with it. An answer that the certificate is revoked ends the former one.
    pub fn take(&self, response: &[u8], algorithms: Algorithms<'_>, now_s: i64) -> Result<i64, ocsp::Error> {
        let said = ocsp::read(response, &self.key.cert)?;
        let [_, issuer, ..] = self.key.cert.as_slice() else { return Err(ocsp::Error::Foreign) };
        let since = Duration::from_secs(u64::try_from(now_s).unwrap_or(0));
        signed::check(&said, issuer, algorithms, UnixTime::since_unix_epoch(since))?;
        if said.verdict == Err(ocsp::Error::Revoked) {
            self.staple.store(None);
        }
        let [from_s, until_s] = said.verdict?;
        if until_s <= now_s || from_s > now_s.saturating_add(AHEAD_S) {
            return Err(ocsp::Error::Untimely);
        }
        let mut key = CertifiedKey::clone(&self.key);
        key.ocsp = Some(response.to_vec());
        self.staple.store(Some(Arc::new(Staple { key: Arc::new(key), until_s })));
        Ok(until_s)
    }

    /// Until when the last answer is good, in seconds since 1970.
    pub fn until_s(&self) -> Option<i64> {
        self.staple.load().as_ref().map(|staple| staple.until_s)
    }

    /// The certificate with the last answer, as long as that is good.
    pub(crate) fn at(&self, now_s: i64) -> Option<Arc<CertifiedKey>> {
        let staple = self.staple.load();
        staple.as_ref().filter(|staple| now_s < staple.until_s).map(|staple| Arc::clone(&staple.key))
    }
}

/// The certificates that somebody asks about.
#[derive(Clone, Default)]
pub struct Staples(Arc<Mutex<HashMap<Vec<u8>, Weak<Fetched>>>>);

impl Staples {
    /// The certificate of a chain, with what is known about it already.
    ///
    /// # Errors
    /// When nobody can be asked.
    pub fn of(&self, key: &Arc<CertifiedKey>, origin: &str) -> Result<Arc<Fetched>, Unasked> {
        let mut chain = digest::Context::new(&digest::SHA256);
        key.cert.iter().for_each(|one| chain.update(one));
        let chain = chain.finish().as_ref().to_vec();
        let mut known = self.0.lock();
        if let Some(fetched) = known.get(&chain).and_then(Weak::upgrade) {
            return Ok(fetched);
        }
        let question = Question::about(&key.cert)?;
        let (key, origin) = (Arc::clone(key), origin.to_owned());
        let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16);
        let name = chain.iter().flat_map(|byte| [byte >> 4, byte & 15]).filter_map(digit).collect();
        let fetched = Arc::new(Fetched { key, origin, name, question, staple: ArcSwapOption::empty() });
        known.retain(|_, other| other.strong_count() > 0);
        known.insert(chain, Arc::downgrade(&fetched));
        Ok(fetched)
    }
}
