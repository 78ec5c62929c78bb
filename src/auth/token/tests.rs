//! Tokens of every kind, good and bad.

use std::time::Duration;

use futures_util::FutureExt;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use serde_json::value::RawValue;

use super::*;
use crate::auth::keys::{AuthSettings, Secret};
use crate::auth::samples;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "another secret of thirty-two bytes, or more";
const NOW: u64 = 1_800_000_000;

fn settings() -> AuthSettings {
    AuthSettings { hs256_secret: Some(Secret::new(SECRET)), ..AuthSettings::default() }
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

/// Signs the text as it is, so that it may be what no serializer would write.
fn signed(payload: &str, secret: &str, header: &Header) -> String {
    signed_by(payload, &EncodingKey::from_secret(secret.as_bytes()), header)
}

fn signed_by(payload: &str, key: &EncodingKey, header: &Header) -> String {
    let payload = RawValue::from_string(payload.to_owned()).unwrap();
    jsonwebtoken::encode(header, &payload, key).unwrap()
}

/// Keys of the settings never wait.
fn check(keys: &Keys, token: &str) -> Result<Claims, TokenError> {
    keys.verify(token, now()).now_or_never().expect("nothing to wait for")
}

fn verify_with(settings: &AuthSettings, payload: &str) -> Result<Claims, TokenError> {
    check(&settings.keys().unwrap(), &signed(payload, SECRET, &Header::default()))
}

fn verify(payload: &str) -> Result<Claims, TokenError> {
    verify_with(&settings(), payload)
}

fn claim(name: &str) -> Result<Claims, TokenError> {
    Err(TokenError::Claim(name.into()))
}

#[test]
fn a_minted_token_says_what_it_was_given() {
    let settings = AuthSettings {
        audience: Some("sync".into()),
        issuer: Some("app".into()),
        org_claim: "tenant".into(),
        ..settings()
    };
    for groups in [None, Some(vec![]), Some(vec![SyncGroup::of("team", "1"), SyncGroup::of("user", "7")])] {
        let claims = Claims { org: "o-1".into(), user: "7".into(), groups };
        let token = settings.mint(&claims, now(), Duration::from_secs(60)).unwrap();
        assert_eq!(check(&settings.keys().unwrap(), &token), Ok(claims));
    }
}

#[test]
fn numbers_are_ids_too() {
    let claims = verify(&format!("{{\"org\":12,\"sub\":-3,\"exp\":{NOW}}}")).unwrap();
    assert_eq!((claims.org.as_str(), claims.user.as_str(), claims.groups), ("12", "-3", None));
}

#[test]
fn the_time_must_lie_between_nbf_and_exp_give_or_take_the_leeway() {
    let at = |exp: f64, nbf: f64| verify(&json!({"org": "o", "sub": "u", "exp": exp, "nbf": nbf}).to_string());
    let now = NOW as f64;
    assert!(at(now - 29.5, now + 30.0).is_ok());
    assert_eq!(at(now - 30.0, now), Err(TokenError::Expired));
    assert_eq!(at(now + 60.0, now + 30.5), Err(TokenError::NotYet));
    assert_eq!(verify("{\"org\":\"o\",\"sub\":\"u\"}"), claim("exp"));
    assert_eq!(verify("{\"org\":\"o\",\"sub\":\"u\",\"exp\":\"1900000000\"}"), claim("exp"));
    assert_eq!(verify("{\"org\":\"o\",\"sub\":\"u\",\"exp\":1900000000,\"nbf\":null}"), claim("nbf"));
}

#[test]
fn audience_and_issuer_count_once_they_are_set() {
    let strict = AuthSettings { audience: Some("sync".into()), issuer: Some("app".into()), ..settings() };
    let with = |settings: &AuthSettings, aud: Value, iss: Value| {
        let payload = json!({"org": "o", "sub": "u", "exp": NOW + 9, "aud": aud, "iss": iss});
        verify_with(settings, &payload.to_string())
    };
    assert!(with(&strict, json!("sync"), json!("app")).is_ok());
    assert!(with(&strict, json!(["other", "sync"]), json!("app")).is_ok());
    assert!(with(&settings(), json!("other"), json!("other")).is_ok());
    for aud in [json!("other"), json!(["other"]), json!([]), json!(null), json!({"sync": 1})] {
        assert_eq!(with(&strict, aud, json!("app")), claim("aud"));
    }
    for iss in [json!("other"), json!(["app"]), json!(null)] {
        assert_eq!(with(&strict, json!("sync"), iss), claim("iss"));
    }
    assert_eq!(verify_with(&strict, &format!("{{\"org\":\"o\",\"sub\":\"u\",\"exp\":{}}}", NOW + 9)), claim("iss"));
}

#[test]
fn malformed_claims_are_refused() {
    let with = |org: &str, groups: &str| {
        verify(&format!("{{\"org\":{org},\"sub\":\"u\",\"exp\":1900000000,\"groups\":{groups}}}"))
    };
    assert!(with("\"o\"", "[\"team:1\"]").is_ok());
    for org in ["\"\"", "1.5", "true", "null", "[\"o\"]", "{}", "\"a\\u0000b\"", "\"a\\nb\""] {
        assert_eq!(with(org, "[]"), claim("org"), "{org}");
    }
    for groups in ["null", "\"team:1\"", "[1]", "[\"team\"]", "[\"team:1\",\":2\"]", "{}", "[\"team:\\u0000\"]"] {
        assert_eq!(with("\"o\"", groups), claim("groups"), "{groups}");
    }
    assert_eq!(verify("{\"org\":\"o\",\"exp\":1900000000}"), claim("sub"));
}

#[test]
fn a_claim_that_stands_twice_is_refused() {
    for twice in [
        "{\"org\":\"a\",\"sub\":\"u\",\"exp\":1900000000,\"org\":\"b\"}",
        "{\"org\":\"a\",\"sub\":\"u\",\"exp\":1900000000,\"exp\":1900000001}",
        "{\"org\":\"a\",\"sub\":\"u\",\"exp\":1900000000,\"x\":1,\"x\":1}",
    ] {
        assert!(matches!(verify(twice), Err(TokenError::Signature(_))), "{twice}");
    }
}

#[test]
fn only_the_keys_choose_the_algorithm() {
    let keys = settings().keys().unwrap();
    let refused = |token: &str| matches!(check(&keys, token), Err(TokenError::Signature(_)));
    let payload = json!({"org": "o", "sub": "u", "exp": NOW + 9}).to_string();
    let good = signed(&payload, SECRET, &Header::default());
    assert!(check(&keys, &good).is_ok());
    let body = good.split('.').nth(1).unwrap();
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    // {"alg":"none"}, {"alg":"none","typ":"JWT"}, {"alg":"RS256","typ":"JWT"}, {"alg":"hs256"}
    for header in [
        "eyJhbGciOiJub25lIn0",
        "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0",
        "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9",
        "eyJhbGciOiJoczI1NiJ9",
    ] {
        let message = format!("{header}.{body}");
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
        assert!(refused(&format!("{message}.{signature}")), "{header}");
        assert!(refused(&format!("{message}.")), "{header}");
    }
    assert!(refused(&signed(&payload, SECRET, &Header::new(Algorithm::HS512))));
    assert!(refused(&signed(&payload, OTHER, &Header::default())));
    for bad in ["", ".", "..", "a.b.c", "a.b.c.d", body, &good[..good.len() - 1], &format!("{good}.")] {
        assert!(refused(bad), "{bad}");
    }
    let critical = Header { crit: Some(vec!["b64".into()]), ..Header::default() };
    assert_eq!(check(&keys, &signed(&payload, SECRET, &critical)), Err(TokenError::Critical));
}

#[test]
fn both_secrets_are_taken_while_they_rotate() {
    let payload = json!({"org": "o", "sub": "u", "exp": NOW + 9}).to_string();
    let rotating = AuthSettings {
        hs256_secret: Some(Secret::new(OTHER)),
        hs256_secret_previous: Some(Secret::new(SECRET)),
        ..settings()
    };
    assert!(verify_with(&rotating, &payload).is_ok());
    let done = AuthSettings { hs256_secret_previous: None, ..rotating };
    assert!(matches!(verify_with(&done, &payload), Err(TokenError::Signature(_))));
}

#[test]
fn a_token_beyond_its_size_is_not_parsed() {
    let payload = json!({"org": "o", "sub": "u", "exp": NOW + 9, "x": "x".repeat(MAX_TOKEN)}).to_string();
    assert!(matches!(verify(&payload), Err(TokenError::TooLong(_))));
}

/// Settings with public keys of all kinds and nothing else.
fn public() -> AuthSettings {
    let text = [samples::RSA_PUBLIC, samples::EC_PUBLIC, samples::ED_PUBLIC].concat();
    AuthSettings { public_keys: Some(text), ..AuthSettings::default() }
}

fn payload() -> String {
    json!({"org": "o", "sub": "u", "exp": NOW + 9}).to_string()
}

fn refused(keys: &Keys, token: &str) -> bool {
    matches!(check(keys, token), Err(TokenError::Signature(_)))
}

#[test]
fn public_keys_take_what_their_private_sides_signed() {
    let keys = public().keys().unwrap();
    for (algorithm, key) in samples::signers() {
        let named = Header { kid: Some("any".into()), ..Header::new(algorithm) };
        for header in [Header::new(algorithm), named] {
            let claims = check(&keys, &signed_by(&payload(), &key, &header)).unwrap();
            assert_eq!((claims.org.as_str(), claims.user.as_str()), ("o", "u"), "{algorithm:?}");
        }
    }
    for (algorithm, key) in samples::strangers() {
        assert!(refused(&keys, &signed_by(&payload(), &key, &Header::new(algorithm))), "{algorithm:?}");
    }
    assert!(refused(&keys, &signed(&payload(), SECRET, &Header::default())), "there is no secret");
}

#[test]
fn no_algorithm_passes_for_another() {
    let keys = AuthSettings { hs256_secret: Some(Secret::new(SECRET)), ..public() }.keys().unwrap();
    // What is public must not do as a secret: the text, a line of it, the bytes in it.
    for public in [samples::RSA_PUBLIC, samples::EC_PUBLIC, samples::ED_PUBLIC] {
        let lines: String = public.lines().filter(|line| !line.starts_with('-')).collect();
        let der = EncodingKey::from_base64_secret(&lines).unwrap();
        assert!(refused(&keys, &signed_by(&payload(), &der, &Header::default())));
        for secret in [public, public.trim_end(), &lines] {
            assert!(refused(&keys, &signed(&payload(), secret, &Header::default())));
        }
    }
    // Every header over every signature: only what belongs together is taken.
    let mut signers = samples::signers().to_vec();
    signers.push((Algorithm::HS256, EncodingKey::from_secret(SECRET.as_bytes())));
    for (signs, key) in &signers {
        for says in [Algorithm::HS256, Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::EdDSA] {
            let with = |algorithm| signers.iter().find(|(own, _)| *own == algorithm).map(|(_, key)| key);
            // The head of a token that says it, over a signature that does not mean it.
            let Some(other) = with(says) else { continue };
            let token = signed_by(&payload(), other, &Header::new(says));
            let message = token.rsplit_once('.').unwrap().0;
            let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, *signs).unwrap();
            assert_eq!(
                check(&keys, &format!("{message}.{signature}")).is_ok(),
                *signs == says,
                "{signs:?} as {says:?}"
            );
        }
    }
    // The same key, another algorithm of its family.
    let (_, rsa) = &signers[0];
    for algorithm in [Algorithm::PS256, Algorithm::RS384, Algorithm::RS512] {
        assert!(refused(&keys, &signed_by(&payload(), rsa, &Header::new(algorithm))), "{algorithm:?}");
    }
}

#[test]
fn a_token_that_was_cut_or_changed_anywhere_is_refused() {
    let keys = AuthSettings { hs256_secret: Some(Secret::new(SECRET)), ..public() }.keys().unwrap();
    let mut signers = samples::signers().to_vec();
    signers.push((Algorithm::HS256, EncodingKey::from_secret(SECRET.as_bytes())));
    for (algorithm, key) in signers {
        let good = signed_by(&payload(), &key, &Header::new(algorithm));
        assert!(check(&keys, &good).is_ok());
        for len in 0..good.len() {
            assert!(refused(&keys, &good[..len]), "{algorithm:?} cut to {len}");
        }
        for at in 0..good.len() {
            let other = if &good[at..=at] == "A" { "B" } else { "A" };
            let changed = format!("{}{other}{}", &good[..at], &good[at + 1..]);
            assert!(refused(&keys, &changed), "{algorithm:?} changed at {at}");
        }
        assert!(refused(&keys, &format!("{good}A")) && refused(&keys, &format!("{good}=")));
    }
}

#[test]
fn what_a_header_brings_along_or_says_twice_changes_nothing() {
    let keys = public().keys().unwrap();
    let (algorithm, stranger) = samples::strangers()[0].clone();
    let own = jsonwebtoken::jwk::Jwk::from_encoding_key(&stranger, algorithm).unwrap();
    let brings = Header {
        jwk: Some(own),
        jku: Some("https://stranger.example/jwks".into()),
        x5u: Some("https://stranger.example/chain".into()),
        ..Header::new(algorithm)
    };
    assert!(refused(&keys, &signed_by(&payload(), &stranger, &brings)));
    let (_, key) = samples::signers()[0].clone();
    assert!(check(&keys, &signed_by(&payload(), &key, &brings)).is_ok(), "nor does it harm a good token");
    let body = good_body(&key);
    // {"alg":"RS256"}, {"alg":"RS256","alg":"RS256"}, {"alg":"none","alg":"RS256"}
    for (header, taken) in [
        ("eyJhbGciOiJSUzI1NiJ9", true),
        ("eyJhbGciOiJSUzI1NiIsImFsZyI6IlJTMjU2In0", false),
        ("eyJhbGciOiJub25lIiwiYWxnIjoiUlMyNTYifQ", false),
    ] {
        let message = format!("{header}.{body}");
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::RS256).unwrap();
        assert_eq!(check(&keys, &format!("{message}.{signature}")).is_ok(), taken, "{header}");
    }
}

fn good_body(key: &EncodingKey) -> String {
    let token = signed_by(&payload(), key, &Header::new(Algorithm::RS256));
    token.split('.').nth(1).unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_never_answered_is_no_reason_to_refuse() {
    let with_url = AuthSettings { jwks_url: Some("https://login.example/jwks".into()), ..settings() };
    let keys = with_url.keys().unwrap();
    assert!(check(&keys, &signed(&payload(), SECRET, &Header::default())).is_ok());
    assert!(refused(&keys, &signed(&payload(), OTHER, &Header::default())), "sets hold no secrets");
    let (algorithm, key) = samples::signers()[0].clone();
    let token = signed_by(&payload(), &key, &Header::new(algorithm));
    assert_eq!(keys.verify(&token, now()).await, Err(TokenError::NoKeySet));
}
