//! The keys that tokens are verified with, and the settings they come from.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::auth::fetch::{FetchError, KeySetUrl, UrlFault};
use crate::auth::key::Key;
use crate::auth::pem::{self, PemError};
use crate::auth::published::{Published, Rhythm};
use crate::auth::token::Claims;
use crate::metrics::Metrics;
use crate::model::SyncGroup;
use crate::task::Tasks;

/// The shortest HS256 secret, in bytes: as long as the digest.
const MIN_SECRET: usize = 32;

/// How tokens are verified and what their claims are called.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthSettings {
    /// The secret that HS256 tokens are signed with: its bytes as they are, at least 32. Default: none. Without it and
    /// without public keys the service does not start.
    pub hs256_secret: Option<Secret>,
    /// A second secret that is taken too, while the application moves from one to the other. Default: none. Whoever
    /// knows it can still sign tokens, so take it away when the last of the old ones has expired.
    pub hs256_secret_previous: Option<Secret>,
    /// Public keys as PEM, one after another: RSA for RS256, P-256 for ES256, Ed25519 for `EdDSA`. Default: none.
    pub public_keys: Option<String>,
    /// Where the issuer publishes its keys as a JWK Set. Default: none.
    pub jwks_url: Option<String>,
    /// A PEM file of the authorities that URL's certificate is trusted by. Default: none, and then it is those that
    /// browsers trust.
    pub jwks_ca_path: Option<PathBuf>,
    /// How old the set gets before it is fetched anew, in seconds. Default: 300. A key that is taken back is taken for
    /// that much longer.
    pub jwks_refresh_s: u64,
    /// The least time between two fetches, in seconds. Default: 10. A token that names an unknown key asks for the set
    /// once, but not earlier than that after the last time.
    pub jwks_pause_s: u64,
    /// How long a set serves while no newer one can be had, in seconds. Default: 86400.
    pub jwks_keep_s: u64,
    /// How long one fetch may take, in milliseconds. Default: 5000.
    pub jwks_timeout_ms: u64,
    /// What a token's `aud` must name. Default: none, and then `aud` is not looked at. Set it when the same issuer
    /// signs tokens for other services too.
    pub audience: Option<String>,
    /// What a token's `iss` must be. Default: none, and then `iss` is not looked at.
    pub issuer: Option<String>,
    /// How far the issuer's clock may be off, in seconds. Default: 30. Tokens live that much longer.
    pub leeway_s: u64,
    /// The claim that names the org: a string or a whole number. Default: `org`.
    pub org_claim: String,
    /// The claim that names the user: a string or a whole number. Default: `sub`.
    pub user_claim: String,
    /// The claim that lists the groups as `kind:id`. A token that has it is filtered by exactly that list, nothing
    /// added; one that has not gets the groups of the membership tables. Default: `groups`.
    pub groups_claim: String,
}

impl Default for AuthSettings {
    /// What `config/headstart.toml` says; a test holds the two together.
    fn default() -> Self {
        Self {
            hs256_secret: None,
            hs256_secret_previous: None,
            public_keys: None,
            jwks_url: None,
            jwks_ca_path: None,
            jwks_refresh_s: 300,
            jwks_pause_s: 10,
            jwks_keep_s: 86_400,
            jwks_timeout_ms: 5000,
            audience: None,
            issuer: None,
            leeway_s: 30,
            org_claim: "org".into(),
            user_claim: "sub".into(),
            groups_claim: "groups".into(),
        }
    }
}

/// A text that must not be seen: it is hidden wherever it would be printed or serialized.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// What stands in place of a secret.
    pub const HIDDEN: &'static str = "(hidden)";

    /// Wraps the text as it is.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Its bytes, for whoever signs or verifies.
    pub fn expose(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::HIDDEN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(Self::HIDDEN)
    }
}

/// Everything a token is checked against. Made once at start.
pub struct Keys {
    /// The keys that the settings hold, in the order they are tried.
    pub(super) own: Vec<Key>,
    /// Those of the issuer, if it publishes some.
    pub(super) published: Option<Arc<Published>>,
    pub(super) audience: Option<String>,
    pub(super) issuer: Option<String>,
    pub(super) leeway: Duration,
    pub(super) names: ClaimNames,
}

impl Keys {
    /// Begins to fetch the issuer's keys, if it publishes some, as a task that ends with the service. Until then no
    /// token of theirs can be told good from bad.
    pub fn start(&self, tasks: &Tasks, metrics: &Metrics) {
        let Some(published) = self.published.clone() else { return };
        let (token, metrics) = (tasks.token().clone(), metrics.clone());
        tasks.spawn("key set", async move {
            token.run_until_cancelled(published.keep_fresh(&metrics)).await;
        });
    }

    /// Asks the issuer once, if it publishes keys: how many of them are of use here.
    ///
    /// # Errors
    /// When it does not answer with a key set in time.
    pub async fn look(&self) -> Result<Option<usize>, FetchError> {
        let Some(published) = &self.published else { return Ok(None) };
        let (keys, _others) = published.fetch().await?;
        Ok(Some(keys.len()))
    }
}

/// What the mapped claims are called.
pub(super) struct ClaimNames {
    pub(super) org: String,
    pub(super) user: String,
    pub(super) groups: String,
}

/// Why tokens can't be verified, or made, with these settings.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is no key at all.
    #[error(
        "no key is set, so no token could be verified: give auth.hs256_secret {MIN_SECRET} random bytes or more, or name \
         the issuer's public keys by auth.public_keys or auth.jwks_url"
    )]
    NoKey,
    /// There is no key to sign with.
    #[error("auth.hs256_secret is not set: only with it can tokens be made here")]
    NoSecret,
    /// The public keys can't be used.
    #[error("auth.public_keys can't be used")]
    PublicKeys(#[from] PemError),
    /// The URL of the key set can't be used.
    #[error("auth.jwks_url can't be used")]
    Url(#[from] UrlFault),
    /// A time of the key set makes no sense.
    #[error(
        "auth.jwks_pause_s = {pause}, auth.jwks_refresh_s = {refresh}, auth.jwks_keep_s = {keep}: each must be at most the next, and none 0"
    )]
    Rhythm {
        /// The least time between two fetches, in seconds.
        pause: u64,
        /// The most, in seconds.
        refresh: u64,
        /// How long a set serves, in seconds.
        keep: u64,
    },
    /// A secret could be guessed.
    #[error("auth.{setting} has {len} bytes: HS256 needs at least {MIN_SECRET}, `openssl rand -hex 32` makes them")]
    ShortSecret {
        /// Which one.
        setting: &'static str,
        /// How long it is.
        len: usize,
    },
    /// A claim's name is empty, or one claim would be read for two things.
    #[error("auth.{setting} = `{name}`: the claims need a name each, and not `exp` or `nbf`")]
    ClaimName {
        /// Which one.
        setting: &'static str,
        /// What it is called.
        name: String,
    },
    /// The library could not sign.
    #[error("the token can't be signed")]
    Sign(#[source] jsonwebtoken::errors::Error),
}

impl AuthSettings {
    /// The keys these settings name.
    ///
    /// # Errors
    /// The first setting that won't do.
    pub fn keys(&self) -> Result<Keys, KeyError> {
        let secrets = [("hs256_secret", &self.hs256_secret), ("hs256_secret_previous", &self.hs256_secret_previous)];
        let mut own = Vec::new();
        for (setting, secret) in secrets {
            let Some(secret) = secret.as_ref().map(Secret::expose) else { continue };
            if secret.len() < MIN_SECRET {
                return Err(KeyError::ShortSecret { setting, len: secret.len() });
            }
            own.push(Key::hs256(secret));
        }
        if let Some(text) = &self.public_keys {
            own.extend(pem::keys(text)?);
        }
        let published = self.jwks_url.as_deref().map(|url| self.published(url)).transpose()?;
        if own.is_empty() && published.is_none() {
            return Err(KeyError::NoKey);
        }
        Ok(Keys {
            own,
            published: published.map(Arc::new),
            audience: self.audience.clone(),
            issuer: self.issuer.clone(),
            leeway: Duration::from_secs(self.leeway_s),
            names: self.claim_names()?,
        })
    }

    fn published(&self, url: &str) -> Result<Published, KeyError> {
        let rhythm = self.rhythm()?;
        let endpoint = Arc::new(KeySetUrl::new(url, self.jwks_ca_path.as_deref(), rhythm.timeout)?);
        let fetch = move || {
            let endpoint = endpoint.clone();
            async move { endpoint.key_set().await }.boxed()
        };
        Ok(Published::new(rhythm, Box::new(fetch)))
    }

    fn rhythm(&self) -> Result<Rhythm, KeyError> {
        let (pause, refresh, keep) = (self.jwks_pause_s, self.jwks_refresh_s, self.jwks_keep_s);
        if pause == 0 || self.jwks_timeout_ms == 0 || pause > refresh || refresh > keep {
            return Err(KeyError::Rhythm { pause, refresh, keep });
        }
        Ok(Rhythm {
            refresh: Duration::from_secs(refresh),
            pause: Duration::from_secs(pause),
            keep: Duration::from_secs(keep),
            timeout: Duration::from_millis(self.jwks_timeout_ms),
        })
    }

    /// A token with these claims that [`Self::keys`] take from `now` on for `ttl`; for development and tests.
    ///
    /// # Errors
    /// The same as [`Self::keys`], and without a secret to sign with.
    pub fn mint(&self, claims: &Claims, now: SystemTime, ttl: Duration) -> Result<String, KeyError> {
        self.keys()?;
        let names = self.claim_names()?;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut payload = Map::new();
        payload.insert("iat".into(), now.as_secs().into());
        payload.insert("exp".into(), (now + ttl).as_secs().into());
        for (name, expected) in [("aud", &self.audience), ("iss", &self.issuer)] {
            payload.extend(expected.clone().map(|text| (name.to_owned(), Value::from(text))));
        }
        payload.insert(names.org, claims.org.as_str().into());
        payload.insert(names.user, claims.user.as_str().into());
        if let Some(groups) = &claims.groups {
            payload.insert(names.groups, groups.iter().map(SyncGroup::as_str).collect());
        }
        let secret = self.hs256_secret.as_ref().ok_or(KeyError::NoSecret)?;
        let key = EncodingKey::from_secret(secret.expose());
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &payload, &key).map_err(KeyError::Sign)
    }

    fn claim_names(&self) -> Result<ClaimNames, KeyError> {
        let mut taken = BTreeSet::from(["", "exp", "nbf"]);
        let names =
            [("org_claim", &self.org_claim), ("user_claim", &self.user_claim), ("groups_claim", &self.groups_claim)];
        for (setting, name) in names {
            if !taken.insert(name) {
                return Err(KeyError::ClaimName { setting, name: name.clone() });
            }
        }
        let [org, user, groups] = names.map(|(_, name)| name.clone());
        Ok(ClaimNames { org, user, groups })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> AuthSettings {
        AuthSettings { hs256_secret: Some(Secret::new("s".repeat(32))), ..AuthSettings::default() }
    }

    #[test]
    fn settings_that_would_be_unsafe_are_refused_by_name() {
        let fault = |settings: AuthSettings| settings.keys().err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(fault(settings()), "");
        assert!(fault(AuthSettings::default()).contains("no key is set"));
        let short = Some(Secret::new("s".repeat(31)));
        assert!(fault(AuthSettings { hs256_secret: short.clone(), ..settings() }).contains("hs256_secret has 31"));
        let previous = AuthSettings { hs256_secret_previous: short, ..settings() };
        assert!(fault(previous).contains("hs256_secret_previous has 31"));
        assert!(fault(AuthSettings { user_claim: "org".into(), ..settings() }).contains("user_claim = `org`"));
        assert!(fault(AuthSettings { org_claim: String::new(), ..settings() }).contains("org_claim"));
    }

    #[test]
    fn a_secret_is_never_printed() {
        let settings = settings();
        let shown = format!("{settings:?} {}", serde_json::to_string(&settings).unwrap());
        assert!(shown.contains(Secret::HIDDEN) && !shown.contains("ssss"), "{shown}");
    }
}
