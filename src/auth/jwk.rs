//! Public keys as a JWK Set (RFC 7517), the form in which issuers publish theirs.
//!
//! Entries that are of no use here are passed over, as section 5 of the RFC wants it: issuers add kinds of keys when
//! they like. A symmetric key is never taken from one: what is published is no secret.

use jsonwebtoken::{DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use serde_json::Value;

use crate::auth::key::{Key, KeyFault};

/// The most keys that are taken from one set. Issuers publish a handful; a token without a name is tried against all.
const MAX_KEYS: usize = 64;

/// Why a document is no key set.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// It has not the form of one.
    #[error("it is no JWK Set")]
    Form(#[source] serde_json::Error),
    /// More than anyone publishes.
    #[error("it holds {0} keys: at most {MAX_KEYS} are taken")]
    TooMany(usize),
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

/// An entry as far as it is looked at (RFC 7517, section 4; RFC 7518, section 6; RFC 8037, section 2).
#[derive(Deserialize)]
struct Entry {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// The keys of a set that tokens can be verified with, and how many others it holds.
///
/// # Errors
/// When it is no set. One without any key is a set: its issuer takes them all back.
pub(super) fn keys(document: &[u8]) -> Result<(Vec<Key>, usize), SetError> {
    let Document { keys: entries } = serde_json::from_slice(document).map_err(SetError::Form)?;
    if entries.len() > MAX_KEYS {
        return Err(SetError::TooMany(entries.len()));
    }
    let all = entries.len();
    let keys: Vec<Key> = entries.into_iter().filter_map(|entry| Entry::deserialize(entry).ok()?.key()).collect();
    let others = all - keys.len();
    Ok((keys, others))
}

impl Entry {
    /// The key, if it is one for signatures of an algorithm that is known here.
    fn key(self) -> Option<Key> {
        let for_signatures = self.purpose.as_deref().is_none_or(|purpose| purpose == "sig")
            && self.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|name| name == "verify"));
        let (key, algorithms) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => (self.rsa(), &["RS256"][..]),
            ("EC", Some("P-256")) => (self.p256(), &["ES256"][..]),
            // RFC 9864 gave the second name to keys; tokens say the first.
            ("OKP", Some("Ed25519")) => (self.ed25519(), &["EdDSA", "Ed25519"][..]),
            _ => return None,
        };
        let for_this_algorithm = self.alg.as_deref().is_none_or(|alg| algorithms.contains(&alg));
        let key = key?.ok().filter(|_| for_signatures && for_this_algorithm)?;
        Some(key.named(self.kid))
    }

    fn rsa(&self) -> Option<Result<Key, KeyFault>> {
        // The library undoes the base64 of numbers.
        let decoded = DecodingKey::from_rsa_components(self.n.as_deref()?, self.e.as_deref()?).ok()?;
        let DecodingKeyKind::RsaModulusExponent { n, e } = decoded.kind() else { return None };
        Some(Key::rs256(n, e))
    }

    fn p256(&self) -> Option<Result<Key, KeyFault>> {
        let decoded = DecodingKey::from_ec_components(self.x.as_deref()?, self.y.as_deref()?).ok()?;
        Some(Key::es256(decoded.try_get_as_bytes().ok()?))
    }

    fn ed25519(&self) -> Option<Result<Key, KeyFault>> {
        let decoded = DecodingKey::from_ed_components(self.x.as_deref()?).ok()?;
        Some(Key::ed25519(decoded.try_get_as_bytes().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::auth::samples;

    /// The names of the keys taken from a set with this one entry, and how many were passed over.
    fn taken(entry: &Value) -> (usize, usize) {
        let (keys, others) = keys(&serde_json::to_vec(&json!({"keys": [entry]})).unwrap()).unwrap();
        (keys.len(), others)
    }

    fn with(entry: &Value, name: &str, value: Value) -> Value {
        let mut entry = entry.clone();
        entry[name] = value;
        entry
    }

    #[test]
    fn the_three_kinds_are_taken_with_their_names() {
        let set = samples::key_set("2026");
        let (keys, others) = keys(&serde_json::to_vec(&set).unwrap()).unwrap();
        let kids: Vec<_> = keys.iter().map(|key| key.kid().unwrap()).collect();
        assert_eq!((kids, others), (vec!["rsa-2026", "ec-2026", "ed-2026"], 0));
    }

    #[test]
    fn what_is_of_no_use_is_passed_over() {
        let set = samples::key_set("1");
        let [rsa, ec, ed] = [0, 1, 2].map(|index| set["keys"][index].clone());
        for good in [
            with(&rsa, "use", json!("sig")),
            with(&rsa, "key_ops", json!(["verify"])),
            with(&rsa, "alg", json!("RS256")),
            with(&rsa, "x5c", json!(["MIIB"])),
            with(&ec, "alg", json!("ES256")),
            with(&ed, "alg", json!("Ed25519")),
            with(&ed, "kid", Value::Null),
        ] {
            assert_eq!(taken(&good), (1, 0), "{good}");
        }
        for other in [
            with(&rsa, "use", json!("enc")),
            with(&rsa, "key_ops", json!(["encrypt"])),
            with(&rsa, "alg", json!("PS256")),
            with(&rsa, "n", json!("AQAB")),
            with(&rsa, "e", json!("AQ")),
            with(&rsa, "n", json!("not base64!")),
            with(&ec, "crv", json!("P-384")),
            with(&ec, "x", json!("AQAB")),
            with(&ec, "alg", json!("HS256")),
            with(&ed, "crv", json!("X25519")),
            with(&ed, "x", Value::Null),
            json!({"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlYw", "alg": "HS256"}),
            json!({"kty": "of the future"}),
            json!({}),
            json!("text"),
        ] {
            assert_eq!(taken(&other), (0, 1), "{other}");
        }
    }

    #[test]
    fn only_a_set_is_a_set() {
        assert_eq!(keys(b"{\"keys\":[]}").unwrap().0.len(), 0, "nothing is published any more");
        for bad in ["", "[]", "{}", "{\"keys\":{}}", "<html>", "{\"keys\":[]} x"] {
            assert!(matches!(keys(bad.as_bytes()), Err(SetError::Form(_))), "{bad}");
        }
        let many = serde_json::to_vec(&json!({"keys": vec![1; MAX_KEYS + 1]})).unwrap();
        assert!(matches!(keys(&many), Err(SetError::TooMany(_))));
    }
}
