//! Fetching a key set: one GET of one URL, on a connection of its own, a few hundred times a day.
//!
//! Whoever answers decides who is let in, so the answer must come from the named host: https, with a certificate that
//! an authority vouches for; plain http only from this machine. Redirects are not followed: they would let the URL's
//! host hand that decision on. What is read is bounded, and so is the time.

use std::path::Path;
use std::time::Duration;

use hyper::header::{ACCEPT, HeaderValue};
use hyper::{Request, StatusCode};
use tokio::time::timeout;

use crate::auth::jwk::{self, SetError};
use crate::auth::key::Key;
pub use crate::outbound::UrlFault;
use crate::outbound::{Endpoint, ExchangeError};

/// The most that is read of an answer, in bytes. Sets have a few KiB, with certificate chains some more.
const MAX_BYTES: usize = 256 << 10;

/// Where a key set is published.
pub(super) struct KeySetUrl {
    endpoint: Endpoint,
    limit: Duration,
}

/// Why there is no key set.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No answer.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// Another status than 200.
    #[error("its host answered {0}, which is not 200")]
    Status(StatusCode),
    /// Something else.
    #[error("the answer is of no use")]
    Set(#[from] SetError),
    /// Not in time.
    #[error("there was no answer within {0:?}")]
    Late(Duration),
}

impl KeySetUrl {
    /// The key set at this URL. `authorities` is a PEM file of those whose certificates are trusted; without one those
    /// are that browsers trust, as this program was built. `limit` is how long an answer may take.
    ///
    /// # Errors
    /// When it can't be asked, or not be trusted. Nothing is connected to yet.
    pub(super) fn new(url: &str, authorities: Option<&Path>, limit: Duration) -> Result<Self, UrlFault> {
        let endpoint = Endpoint::new(url, authorities)?;
        if endpoint.is_private() { Ok(Self { endpoint, limit }) } else { Err(UrlFault::Plain) }
    }

    /// The keys that are published now, and how many others the set holds. Dropping the future ends the connection.
    ///
    /// # Errors
    /// [`FetchError`]
    pub(super) async fn key_set(&self) -> Result<(Vec<Key>, usize), FetchError> {
        let document = timeout(self.limit, self.document()).await;
        Ok(jwk::keys(&document.unwrap_or(Err(FetchError::Late(self.limit)))?)?)
    }

    async fn document(&self) -> Result<Vec<u8>, FetchError> {
        let mut request = Request::new(String::new());
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/jwk-set+json, application/json"));
        match self.endpoint.exchange(request, MAX_BYTES).await? {
            (StatusCode::OK, document) => Ok(document),
            (other, _) => Err(FetchError::Status(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str, authorities: Option<&Path>) -> Result<KeySetUrl, UrlFault> {
        KeySetUrl::new(url, authorities, Duration::from_secs(1))
    }

    #[test]
    fn only_urls_that_can_be_trusted_are_taken() {
        for good in [
            "https://login.example/.well-known/jwks.json?tenant=7",
            "https://[2001:db8::1]:8443/",
            "http://127.0.0.1:3000/jwks",
            "http://[::1]/jwks",
            "http://localhost/jwks",
        ] {
            assert!(endpoint(good, None).is_ok(), "{good}");
        }
        for bad in
            ["", "login.example", "/jwks", "ftp://login.example/", "https://", "https://user:word@login.example/"]
        {
            assert!(matches!(endpoint(bad, None), Err(UrlFault::Form)), "{bad}");
        }
        for plain in ["http://login.example/jwks", "http://10.0.0.1/jwks", "http://localhost.example/"] {
            assert!(matches!(endpoint(plain, None), Err(UrlFault::Plain)), "{plain}");
        }
    }

    #[test]
    fn authorities_must_be_certificates() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        for path in [empty.path(), Path::new("/no/such/file")] {
            let fault = endpoint("https://login.example/", Some(path)).err().expect("a fault");
            assert!(matches!(fault, UrlFault::Authorities { .. }), "{fault}");
        }
    }
}
