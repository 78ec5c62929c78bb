//! One key, with the only algorithm it is used for.

use std::fmt;

use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};

use crate::auth::token::{Payload, TokenError};

/// The sizes of RSA keys that are taken, in bits: below it is too weak (RFC 7518, section 3.3), above it the library
/// takes none, and each look at a token would take long.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// A key that tokens are verified with.
pub(super) struct Key {
    /// What tokens call it, if they do.
    kid: Option<String>,
    algorithm: Algorithm,
    decoding: DecodingKey,
    validation: Validation,
}

/// Why a public key is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// Too short to be safe, or longer than any library takes.
    #[error("an RSA key of {0} bits: from 2048 to 8192 are taken")]
    RsaSize(usize),
    /// No exponent that RSA works with.
    #[error("its RSA exponent is even, 1 or longer than 4 bytes")]
    RsaExponent,
    /// Not the coordinates of a point.
    #[error("it is no uncompressed point of P-256, which has 65 bytes")]
    Point,
    /// Not as long as such keys are.
    #[error("it is no Ed25519 key, which has 32 bytes")]
    Ed25519,
}

impl Key {
    fn new(algorithm: Algorithm, decoding: DecodingKey) -> Self {
        // Only the signature is the library's part: it would read the clock itself, and pass a malformed `aud`.
        let mut validation = Validation::new(algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        Self { kid: None, algorithm, decoding, validation }
    }

    /// HS256, with this secret.
    pub(super) fn hs256(secret: &[u8]) -> Self {
        Self::new(Algorithm::HS256, DecodingKey::from_secret(secret))
    }

    /// RS256, with this modulus and exponent: unsigned, the highest byte first.
    ///
    /// # Errors
    /// When they make no key, or a weak one.
    pub(super) fn rs256(modulus: &[u8], exponent: &[u8]) -> Result<Self, KeyFault> {
        let (modulus, exponent) = (without_zeros(modulus), without_zeros(exponent));
        let bits = modulus.len() * 8 - modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
        if !RSA_BITS.contains(&bits) {
            return Err(KeyFault::RsaSize(bits));
        }
        if exponent.len() > 4 || exponent == [1] || exponent.last().is_none_or(|byte| byte % 2 == 0) {
            return Err(KeyFault::RsaExponent);
        }
        Ok(Self::new(Algorithm::RS256, DecodingKey::from_rsa_raw_components(modulus, exponent)))
    }

    /// ES256, with this point of P-256: 4, then both coordinates (SEC 1, section 2.3.3).
    ///
    /// # Errors
    /// When it has not the form of one. A point that is not on the curve verifies nothing.
    pub(super) fn es256(point: &[u8]) -> Result<Self, KeyFault> {
        match point {
            [4, coordinates @ ..] if coordinates.len() == 64 => {
                Ok(Self::new(Algorithm::ES256, DecodingKey::from_ec_der(point)))
            }
            _ => Err(KeyFault::Point),
        }
    }

    /// `EdDSA`, with this public key of Ed25519.
    ///
    /// # Errors
    /// When it is not as long as one.
    pub(super) fn ed25519(key: &[u8]) -> Result<Self, KeyFault> {
        if key.len() != 32 {
            return Err(KeyFault::Ed25519);
        }
        Ok(Self::new(Algorithm::EdDSA, DecodingKey::from_ed_der(key)))
    }

    /// The same key under a name.
    pub(super) fn named(self, kid: Option<String>) -> Self {
        Self { kid, ..self }
    }

    /// What tokens call it, if they do.
    pub(super) fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Whether a token with this header may be of this key: the algorithm is, and nobody names another. The name comes
    /// from the token and only saves work: the signature decides.
    pub(super) fn may_have_signed(&self, header: &Header) -> bool {
        let named_otherwise = self.kid.as_ref().zip(header.kid.as_ref()).is_some_and(|(own, other)| own != other);
        self.algorithm == header.alg && !named_otherwise
    }

    /// The claims of a token that this key has signed.
    ///
    /// # Errors
    /// [`TokenError::Signature`].
    pub(super) fn open(&self, token: &str) -> Result<Payload, TokenError> {
        let opened = jsonwebtoken::decode::<Payload>(token, &self.decoding, &self.validation);
        opened.map(|data| data.claims).map_err(TokenError::Signature)
    }
}

impl fmt::Debug for Key {
    /// Never the key itself: it may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// Without the zeros in front, which say nothing and which some write.
fn without_zeros(number: &[u8]) -> &[u8] {
    &number[number.iter().take_while(|byte| **byte == 0).count()..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_and_malformed_keys_are_refused() {
        let rsa = |bytes: usize, exponent: &[u8]| Key::rs256(&vec![0x80; bytes], exponent).map(drop);
        assert_eq!(rsa(256, &[1, 0, 1]), Ok(()));
        assert_eq!(rsa(128, &[1, 0, 1]), Err(KeyFault::RsaSize(1024)));
        assert_eq!(rsa(1025, &[1, 0, 1]), Err(KeyFault::RsaSize(8200)));
        assert_eq!(rsa(0, &[3]), Err(KeyFault::RsaSize(0)));
        let padded = [&[0, 0][..], &[0x7f; 256]].concat();
        assert_eq!(Key::rs256(&padded, &[3]).map(drop), Err(KeyFault::RsaSize(2047)), "zeros don't make it longer");
        for exponent in [&[][..], &[0], &[1], &[2], &[1, 0, 0], &[1, 0, 0, 0, 1]] {
            assert_eq!(rsa(256, exponent), Err(KeyFault::RsaExponent), "{exponent:?}");
        }
        for point in [&[4; 64][..], &[4; 66], &[2; 65], &[4; 97], &[]] {
            assert_eq!(Key::es256(point).map(drop), Err(KeyFault::Point));
        }
        assert_eq!(Key::ed25519(&[0; 33]).map(drop), Err(KeyFault::Ed25519));
    }

    #[test]
    fn only_two_different_names_tell_a_key_from_a_token() {
        let key = |kid: Option<&str>| Key::hs256(b"secret").named(kid.map(str::to_owned));
        let header = |kid: Option<&str>| Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::HS256) };
        for (own, named, may) in [
            (None, None, true),
            (Some("a"), None, true),
            (None, Some("a"), true),
            (Some("a"), Some("a"), true),
            (Some("a"), Some("A"), false),
        ] {
            assert_eq!(key(own).may_have_signed(&header(named)), may, "{own:?} {named:?}");
        }
        assert!(!key(None).may_have_signed(&Header::new(Algorithm::HS384)));
    }
}
