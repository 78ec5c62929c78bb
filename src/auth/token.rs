//! From a token to verified claims. Pure: the time is an argument.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use crate::auth::keys::Keys;
use crate::model::SyncGroup;

/// The longest token that is looked at, in bytes. It holds some 250 groups named by UUID.
pub const MAX_TOKEN: usize = 16 << 10;

/// Claims of a verified token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The org, as the token says it; not yet in canonical form.
    pub org: String,
    /// The user, likewise.
    pub user: String,
    /// Exactly the groups to filter by, if the token lists any.
    pub groups: Option<Vec<SyncGroup>>,
}

/// Why a token is not taken. For logs only: a caller is never told which.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Longer than [`MAX_TOKEN`].
    #[error("the token has {0} bytes")]
    TooLong(usize),
    /// No key made this signature with its algorithm, or it is no token.
    #[error("the token is malformed, or no key has signed it")]
    Signature(#[source] jsonwebtoken::errors::Error),
    /// It demands an extension (RFC 7515, section 4.1.11).
    #[error("the token has critical headers")]
    Critical,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` has not come.
    #[error("the token is not valid yet")]
    NotYet,
    /// A claim is missing, or not what it must be.
    #[error("the claim `{0}` is missing or not what it must be")]
    Claim(String),
}

impl Keys {
    /// Checks a token's signature and claims as of `now`.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong(token.len()));
        }
        let Payload(mut payload) = self.payload(token)?;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.check_times(&payload, now)?;
        self.check_origin(&payload)?;
        Ok(Claims {
            org: identifier(&payload, &self.names.org)?,
            user: identifier(&payload, &self.names.user)?,
            groups: payload.remove(&self.names.groups).map(|list| self.groups(list)).transpose()?,
        })
    }

    /// The claims, signed by one of the keys.
    fn payload(&self, token: &str) -> Result<Payload, TokenError> {
        let mut refusal = None;
        for key in &self.keys {
            match jsonwebtoken::decode::<Payload>(token, &key.decoding, &key.validation) {
                Ok(data) if data.header.crit.is_some() => return Err(TokenError::Critical),
                Ok(data) => return Ok(data.claims),
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        let unsigned = || jsonwebtoken::errors::ErrorKind::InvalidSignature.into();
        Err(TokenError::Signature(refusal.unwrap_or_else(unsigned)))
    }

    /// RFC 7519, sections 4.1.4 and 4.1.5. Both may be fractions of a second.
    fn check_times(&self, payload: &BTreeMap<String, Value>, now: f64) -> Result<(), TokenError> {
        let time = |name: &str| match payload.get(name) {
            None => Ok(None),
            Some(time) => time.as_f64().map(Some).ok_or_else(|| TokenError::Claim(name.into())),
        };
        let leeway = self.leeway.as_secs_f64();
        let expires = time("exp")?.ok_or_else(|| TokenError::Claim("exp".into()))?;
        if now >= expires + leeway {
            return Err(TokenError::Expired);
        }
        if time("nbf")?.is_some_and(|begins| now + leeway < begins) {
            return Err(TokenError::NotYet);
        }
        Ok(())
    }

    fn check_origin(&self, payload: &BTreeMap<String, Value>) -> Result<(), TokenError> {
        let issued = self.issuer.as_deref().is_none_or(|issuer| payload.get("iss").is_some_and(|iss| iss == issuer));
        if !issued {
            return Err(TokenError::Claim("iss".into()));
        }
        // `aud` is one name or a list of them (RFC 7519, section 4.1.3).
        let meant = self.audience.as_deref().is_none_or(|audience| match payload.get("aud") {
            Some(Value::Array(names)) => names.iter().any(|name| name == audience),
            Some(name) => name == audience,
            None => false,
        });
        if meant { Ok(()) } else { Err(TokenError::Claim("aud".into())) }
    }

    fn groups(&self, list: Value) -> Result<Vec<SyncGroup>, TokenError> {
        let group = |name: &Value| name.as_str().filter(|name| is_plain(name)).and_then(SyncGroup::parse);
        let groups = list.as_array().and_then(|names| names.iter().map(group).collect());
        groups.ok_or_else(|| TokenError::Claim(self.names.groups.clone()))
    }
}

/// A claim that is a string or a whole number, as text.
fn identifier(payload: &BTreeMap<String, Value>, name: &str) -> Result<String, TokenError> {
    let text = match payload.get(name) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) if !number.is_f64() => Some(number.to_string()),
        _ => None,
    };
    text.filter(|text| is_plain(text)).ok_or_else(|| TokenError::Claim(name.into()))
}

/// No id holds a control character: PostgreSQL's text takes no NUL, and logs should stay one line an event.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}

/// All claims by name. One that stands twice is refused: two readers could take different ones (RFC 7519, section 4).
struct Payload(BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Payload;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of claims")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Payload, A::Error> {
                let mut claims = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    match claims.entry(name) {
                        Entry::Vacant(entry) => drop(entry.insert(value)),
                        Entry::Occupied(_) => return Err(A::Error::custom("a claim stands twice")),
                    }
                }
                Ok(Payload(claims))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jsonwebtoken::{Algorithm, EncodingKey, Header};
    use serde_json::json;
    use serde_json::value::RawValue;

    use super::*;
    use crate::auth::keys::{AuthSettings, Secret};

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
        let payload = RawValue::from_string(payload.to_owned()).unwrap();
        jsonwebtoken::encode(header, &payload, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
    }

    fn verify_with(settings: &AuthSettings, payload: &str) -> Result<Claims, TokenError> {
        settings.keys().unwrap().verify(&signed(payload, SECRET, &Header::default()), now())
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
            assert_eq!(settings.keys().unwrap().verify(&token, now()), Ok(claims));
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
        let refused = |token: &str| matches!(keys.verify(token, now()), Err(TokenError::Signature(_)));
        let payload = json!({"org": "o", "sub": "u", "exp": NOW + 9}).to_string();
        let good = signed(&payload, SECRET, &Header::default());
        assert!(keys.verify(&good, now()).is_ok());
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
        assert_eq!(keys.verify(&signed(&payload, SECRET, &critical), now()), Err(TokenError::Critical));
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
}
