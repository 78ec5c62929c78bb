//! Public keys as PEM: what `openssl pkey -pubout` writes, one after another.
//!
//! Each is a `SubjectPublicKeyInfo` (RFC 5280, section 4.1) of RSA (RFC 3279), P-256 (RFC 5480) or Ed25519 (RFC 8410).
//! It is read strictly here, because the JWT library would take a private key, a certificate or a key of another curve
//! for a public one, and find out with the first token, if at all.

use rustls::pki_types::pem::{self, PemObject, SectionKind};

use crate::auth::key::{Key, KeyFault};

/// Object identifiers with their parameters, as `AlgorithmIdentifier` holds them.
const RSA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00";
const P256: &[u8] = b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
const ED25519: &[u8] = b"\x06\x03\x2b\x65\x70";

/// Tags of DER (X.690).
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;

/// Why a text holds no public keys.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// A section does not end, or is not base64.
    #[error("it is not PEM")]
    Malformed,
    /// Nothing in it is a public key.
    #[error("it holds no section `PUBLIC KEY`: `openssl pkey -pubout` writes one")]
    Empty,
    /// Whoever reads this setting could sign tokens.
    #[error("it holds a private key, which this service must not have: give what `openssl pkey -pubout` makes of it")]
    Private,
    /// The key of a certificate has to be taken out of it.
    #[error("it holds a certificate: give what `openssl x509 -pubkey -noout` makes of it")]
    Certificate,
    /// Another kind of key.
    #[error("public key {0} is not of RSA, P-256 or Ed25519")]
    Kind(usize),
    /// The right kind, but no good.
    #[error("public key {number} is not usable")]
    Key {
        /// Which one, counted from 1.
        number: usize,
        /// Why.
        #[source]
        fault: KeyFault,
    },
}

/// The keys in a text, in its order; at least one.
///
/// # Errors
/// The first section that is no usable public key.
pub(super) fn keys(text: &str) -> Result<Vec<Key>, PemError> {
    let mut keys = Vec::new();
    for section in sections(text) {
        match section.map_err(|_| PemError::Malformed)? {
            (SectionKind::PublicKey, der) => keys.push(key(&der, keys.len() + 1)?),
            (SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey, _) => {
                return Err(PemError::Private);
            }
            (SectionKind::Certificate, _) => return Err(PemError::Certificate),
            _ => return Err(PemError::Empty),
        }
    }
    if keys.is_empty() { Err(PemError::Empty) } else { Ok(keys) }
}

fn sections(text: &str) -> impl Iterator<Item = Result<(SectionKind, Vec<u8>), pem::Error>> {
    PemObject::pem_slice_iter(text.as_bytes())
}

fn key(der: &[u8], number: usize) -> Result<Key, PemError> {
    let (algorithm, bits) = read_info(der).ok_or(PemError::Kind(number))?;
    let key = match algorithm {
        RSA => {
            let (modulus, exponent) = read_rsa(bits).ok_or(PemError::Kind(number))?;
            Key::rs256(modulus, exponent)
        }
        P256 => Key::es256(bits),
        ED25519 => Key::ed25519(bits),
        _ => return Err(PemError::Kind(number)),
    };
    key.map_err(|fault| PemError::Key { number, fault })
}

/// The algorithm and the key's own bits.
fn read_info(mut der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut info = take(SEQUENCE, &mut der)?;
    let algorithm = take(SEQUENCE, &mut info)?;
    // The first byte counts the bits that are left over.
    let (0, bits) = take(BIT_STRING, &mut info)?.split_first()? else { return None };
    (der.is_empty() && info.is_empty()).then_some((algorithm, bits))
}

/// Modulus and exponent.
fn read_rsa(mut der: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut numbers = take(SEQUENCE, &mut der)?;
    let pair = (take(INTEGER, &mut numbers)?, take(INTEGER, &mut numbers)?);
    (der.is_empty() && numbers.is_empty()).then_some(pair)
}

/// The content of the element that is next, if it has this tag.
fn take<'a>(tag: u8, der: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (&found, rest) = der.split_first()?;
    let (&short, rest) = rest.split_first()?;
    let (len, rest) = match short {
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), &rest[2..]),
        // Nothing that is read here takes 64 KiB.
        0x80.. => return None,
        len => (usize::from(len), rest),
    };
    let (content, after) = rest.split_at_checked(len).filter(|_| found == tag)?;
    *der = after;
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::samples;

    fn fault(text: &str) -> PemError {
        keys(text).expect_err("a fault")
    }

    #[test]
    fn keys_of_all_kinds_may_follow_each_other() {
        let text = [samples::RSA_PUBLIC, "a line between\n", samples::EC_PUBLIC, samples::ED_PUBLIC].concat();
        assert_eq!(keys(&text).unwrap().len(), 3);
        assert_eq!(keys(&text.replace('\n', "\r\n")).unwrap().len(), 3, "a file from Windows");
    }

    #[test]
    fn what_is_no_public_key_is_refused_by_its_kind() {
        assert_eq!(fault(""), PemError::Empty);
        assert_eq!(fault("secret"), PemError::Empty);
        for private in [samples::RSA_PRIVATE, samples::EC_PRIVATE, samples::ED_PRIVATE] {
            assert_eq!(fault(&[samples::EC_PUBLIC, private].concat()), PemError::Private);
        }
        assert_eq!(fault("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"), PemError::Certificate);
        assert_eq!(fault(&[samples::EC_PUBLIC, samples::SECP256K1_PUBLIC].concat()), PemError::Kind(2));
        let weak = PemError::Key { number: 1, fault: KeyFault::RsaSize(1024) };
        assert_eq!(fault(samples::WEAK_RSA_PUBLIC), weak);
        assert_eq!(fault(samples::EC_PUBLIC.trim_end().trim_end_matches("PUBLIC KEY-----")), PemError::Malformed);
    }

    #[test]
    fn der_that_was_cut_or_continued_is_no_key() {
        let (_, der) = sections(samples::RSA_PUBLIC).next().unwrap().unwrap();
        assert!(key(&der, 1).is_ok());
        for len in 0..der.len() {
            assert!(key(&der[..len], 1).is_err(), "{len}");
        }
        assert!(key(&[&der[..], &[0]].concat(), 1).is_err());
    }
}
