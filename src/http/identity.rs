//! Who asks: from the `authorization` header to verified claims (RFC 6750, section 2.1).
//!
//! Every refusal is the same 401. What exactly was wrong is in the log, at debug level, and never in the answer: it
//! would help nobody but a guesser.

use std::time::SystemTime;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;

use crate::auth::{Claims, Keys, TokenError};
use crate::http::error::HttpError;

/// The claims of a request's bearer token, as of now.
///
/// # Errors
/// [`HttpError::Unauthenticated`] unless there is exactly one token, and a valid one. [`HttpError::NoKeySet`] when that
/// can't be told.
pub async fn identify(headers: &HeaderMap, keys: &Keys) -> Result<Claims, HttpError> {
    identify_at(headers, keys, SystemTime::now()).await
}

async fn identify_at(headers: &HeaderMap, keys: &Keys, now: SystemTime) -> Result<Claims, HttpError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(HttpError::Unauthenticated(None));
    };
    let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(HttpError::Unauthenticated(None));
    }
    keys.verify(token.trim(), now).await.map_err(|error| match error {
        TokenError::NoKeySet => HttpError::NoKeySet,
        error => HttpError::Unauthenticated(Some(error)),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::HeaderValue;
    use futures_util::FutureExt;

    use super::*;
    use crate::auth::{AuthSettings, Secret};

    #[test]
    fn one_bearer_token_is_taken() {
        let settings = AuthSettings { hs256_secret: Some(Secret::new("s".repeat(32))), ..AuthSettings::default() };
        let claims = Claims { org: "o".into(), user: "u".into(), groups: None };
        let now = SystemTime::now();
        let token = settings.mint(&claims, now, Duration::from_secs(60)).unwrap();
        let keys = settings.keys().unwrap();
        let verdict = |lines: &[String]| {
            let lines = lines.iter().map(|line| (AUTHORIZATION, HeaderValue::from_str(line).unwrap()));
            identify_at(&lines.collect(), &keys, now).now_or_never().expect("nothing to wait for")
        };
        for good in [format!("Bearer {token}"), format!("bearer  {token} ")] {
            assert_eq!(verdict(&[good]).unwrap(), claims);
        }
        let good = format!("Bearer {token}");
        for bad in [
            vec![],
            vec![String::new()],
            vec!["Bearer".into()],
            vec!["Bearer ".into()],
            vec![token.clone()],
            vec![format!("Basic {token}")],
            vec![format!("Bearer{token}")],
            vec![format!("Bearer {token} {token}")],
            vec![good.clone(), good],
        ] {
            assert!(matches!(verdict(&bad), Err(HttpError::Unauthenticated(_))), "{bad:?}");
        }
    }
}
