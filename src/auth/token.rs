//! From a token to verified claims. The time is an argument.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{AlgorithmFamily, Header};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use crate::auth::key::Key;
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
    /// The issuer's keys can't be had, so nobody knows whether it is good. The only one that is no refusal.
    #[error("the key set at auth.jwks_url can't be had")]
    NoKeySet,
}

impl Keys {
    /// Checks a token's signature and claims as of `now`. Waits only when the token names a key that is not known, and
    /// then for one fetch at most; may be dropped at any time.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub async fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong(token.len()));
        }
        let Payload(mut payload) = self.payload(token).await?;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.check_times(&payload, now)?;
        self.check_origin(&payload)?;
        Ok(Claims {
            org: identifier(&payload, &self.names.org)?,
            user: identifier(&payload, &self.names.user)?,
            groups: payload.remove(&self.names.groups).map(|list| self.groups(list)).transpose()?,
        })
    }

    /// The claims, signed by one of the keys. The header is believed only where a lie can't help: it says which keys to
    /// try, and each of them only ever verifies its own algorithm.
    async fn payload(&self, token: &str) -> Result<Payload, TokenError> {
        let header = jsonwebtoken::decode_header(token).map_err(TokenError::Signature)?;
        if header.crit.is_some() {
            return Err(TokenError::Critical);
        }
        let opened = open(&self.own, &header, token);
        match &self.published {
            // Sets hold no secrets.
            Some(published) if opened.is_err() && header.alg.family() != AlgorithmFamily::Hmac => {
                open(&published.keys(&header).await?, &header, token)
            }
            _ => opened,
        }
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

/// The claims of a token that one of these keys has signed.
fn open(keys: &[Key], header: &Header, token: &str) -> Result<Payload, TokenError> {
    let mut refusal = None;
    for key in keys.iter().filter(|key| key.may_have_signed(header)) {
        match key.open(token) {
            Ok(payload) => return Ok(payload),
            Err(error) => refusal = refusal.or(Some(error)),
        }
    }
    let no_such_key = || TokenError::Signature(jsonwebtoken::errors::ErrorKind::InvalidAlgorithm.into());
    Err(refusal.unwrap_or_else(no_such_key))
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
pub(super) struct Payload(BTreeMap<String, Value>);

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
mod tests;
