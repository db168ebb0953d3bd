//! Who signed an answer about a certificate: its issuer, or somebody whom the issuer lets answer (RFC 6960, section 4.2.2.2).

use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::ocsp::{Error, Said};

/// Ways to check a signature.
pub type Algorithms<'a> = &'a [&'static dyn SignatureVerificationAlgorithm];

/// `id-kp-OCSPSigning`, 1.3.6.1.5.5.7.3.9.
const MAY_ANSWER: [u8; 8] = [0x2b, 6, 1, 5, 5, 7, 3, 9];

/// Sees to it that the issuer stands behind an answer at an instant.
///
/// # Errors
/// [`Error::Unsigned`].
pub fn check(said: &Said<'_>, issuer: &[u8], algorithms: Algorithms<'_>, now: UnixTime) -> Result<(), Error> {
    let issuer = CertificateDer::from(issuer);
    if is_by(said, &issuer, algorithms) {
        return Ok(());
    }
    let anchor = [anchor_from_trusted_cert(&issuer).map_err(|_| Error::Unsigned)?];
    let may_answer = |signer: &CertificateDer<'_>| {
        EndEntityCert::try_from(signer).is_ok_and(|signer| {
            let usage = KeyUsage::required(&MAY_ANSWER);
            signer.verify_for_usage(algorithms, &anchor, &[], now, usage, None, None).is_ok()
        })
    };
    let mut signers = said.certificates.iter().map(|one| CertificateDer::from(*one));
    let is_signed = signers.any(|signer| is_by(said, &signer, algorithms) && may_answer(&signer));
    if is_signed { Ok(()) } else { Err(Error::Unsigned) }
}

/// Whether the key of a certificate made the signature.
fn is_by(said: &Said<'_>, signer: &CertificateDer<'_>, algorithms: Algorithms<'_>) -> bool {
    let Ok(signer) = EndEntityCert::try_from(signer) else { return false };
    let named = algorithms.iter().filter(|one| one.signature_alg_id().as_ref() == said.algorithm);
    // Of several under one name the one that suits the key verifies.
    named.into_iter().any(|one| signer.verify_signature(*one, said.signed, said.signature).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ocsp::read;

    // See the folder's README.
    const GOOD_SHA1: &[u8] = include_bytes!("../../../tests/testdata/ocsp/good-sha1.der");
    const GOOD_SHA256: &[u8] = include_bytes!("../../../tests/testdata/ocsp/good-sha256.der");
    const REVOKED: &[u8] = include_bytes!("../../../tests/testdata/ocsp/revoked.der");
    const LEAF: &[u8] = include_bytes!("../../../tests/testdata/ocsp/leaf.der");
    const OTHER: &[u8] = include_bytes!("../../../tests/testdata/ocsp/other.der");
    const AUTHORITY: &[u8] = include_bytes!("../../../tests/testdata/ocsp/authority.der");

    #[test]
    fn an_answer_is_the_issuers_own_or_nobodys() {
        let algorithms = crate::tls::Context::new().unwrap().provider.signature_verification_algorithms.all;
        let now = UnixTime::now();
        let said = read(GOOD_SHA256, &[LEAF, AUTHORITY]).unwrap();
        assert!(said.verdict.is_ok_and(|[from_s, until_s]| from_s < until_s));
        assert_eq!(check(&said, AUTHORITY, algorithms, now), Ok(()));
        assert_eq!(check(&said, OTHER, algorithms, now), Err(Error::Unsigned));
        let damaged = Said { signature: said.signature.split_at(1).1, ..said.clone() };
        assert_eq!(check(&damaged, AUTHORITY, algorithms, now), Err(Error::Unsigned));
        // Who revokes signs, too.
        let revoked = read(REVOKED, &[LEAF, AUTHORITY]).unwrap();
        assert_eq!(revoked.verdict, Err(Error::Revoked));
        assert_eq!(check(&revoked, AUTHORITY, algorithms, now), Ok(()));
        let of_another = read(GOOD_SHA1, &[LEAF, AUTHORITY]).unwrap();
        let moved = Said { signed: of_another.signed, ..said };
        assert_eq!(check(&moved, AUTHORITY, algorithms, now), Err(Error::Unsigned));
    }
}
