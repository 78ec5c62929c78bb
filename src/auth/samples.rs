//! Keys for the tests of this room.

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

pub const RSA_PRIVATE: &str = include_str!("../../tests/keys/rsa.pem");
pub const RSA_PUBLIC: &str = include_str!("../../tests/keys/rsa.pub.pem");
pub const WEAK_RSA_PUBLIC: &str = include_str!("../../tests/keys/weak-rsa.pub.pem");
pub const EC_PRIVATE: &str = include_str!("../../tests/keys/ec.pem");
pub const EC_PUBLIC: &str = include_str!("../../tests/keys/ec.pub.pem");
pub const SECP256K1_PUBLIC: &str = include_str!("../../tests/keys/secp256k1.pub.pem");
pub const ED_PRIVATE: &str = include_str!("../../tests/keys/ed.pem");
pub const ED_PUBLIC: &str = include_str!("../../tests/keys/ed.pub.pem");

/// One private key of each kind, with its algorithm.
pub fn signers() -> [(Algorithm, EncodingKey); 3] {
    read([RSA_PRIVATE, EC_PRIVATE, ED_PRIVATE])
}

/// The same kinds, but keys that nobody trusts.
pub fn strangers() -> [(Algorithm, EncodingKey); 3] {
    read([
        include_str!("../../tests/keys/other-rsa.pem"),
        include_str!("../../tests/keys/other-ec.pem"),
        include_str!("../../tests/keys/other-ed.pem"),
    ])
}

fn read([rsa, ec, ed]: [&str; 3]) -> [(Algorithm, EncodingKey); 3] {
    [
        (Algorithm::RS256, EncodingKey::from_rsa_pem(rsa.as_bytes()).unwrap()),
        (Algorithm::ES256, EncodingKey::from_ec_pem(ec.as_bytes()).unwrap()),
        (Algorithm::EdDSA, EncodingKey::from_ed_pem(ed.as_bytes()).unwrap()),
    ]
}

/// The public sides of the signers, as an issuer publishes them: `rsa-…`, `ec-…` and `ed-…`.
pub fn key_set(suffix: &str) -> Value {
    let entries = ["rsa", "ec", "ed"].into_iter().zip(signers()).map(|(kind, (algorithm, key))| {
        let mut entry = serde_json::to_value(Jwk::from_encoding_key(&key, algorithm).unwrap()).unwrap();
        entry["kid"] = format!("{kind}-{suffix}").into();
        entry
    });
    json!({"keys": entries.collect::<Vec<_>>()})
}
