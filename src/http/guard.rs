//! Who may see the operators' side: whoever shows its token, if it has one.
//!
//! Programs send it as a bearer token, browsers as the password of any user (RFC 7617), which makes them ask for it. A
//! refusal is always the same.

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{AppendHeaders, IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::auth::Secret;

/// The operators' token, if there is one. Only its digest is kept, and digests are what is compared: how long that takes
/// says nothing of the token.
#[derive(Clone, Debug)]
pub struct Guard(Option<[u8; 32]>);

impl Guard {
    /// For this token; without one everybody is let in.
    pub fn new(token: Option<&Secret>) -> Self {
        Self(token.map(|token| digest(token.expose())))
    }

    /// Whether a token is asked for.
    pub fn asks(&self) -> bool {
        self.0.is_some()
    }

    /// Whether a request with these headers comes from an operator.
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(expected) = self.0 else { return true };
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        shown(value).is_some_and(|token| digest(&token) == expected)
    }
}

/// Turns away whoever is no operator.
pub async fn guarded(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    if guard.admits(request.headers()) {
        return next.run(request).await;
    }
    let challenges = ["Bearer", "Basic realm=\"headstart, for operators: any user, admin.token as the password\""];
    let challenges = challenges.map(|challenge| (WWW_AUTHENTICATE, HeaderValue::from_static(challenge)));
    (StatusCode::UNAUTHORIZED, AppendHeaders(challenges), "the token of admin.token is needed\n").into_response()
}

/// The token in a header.
fn shown(value: &HeaderValue) -> Option<Vec<u8>> {
    let (scheme, credentials) = value.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(credentials.trim().into());
    }
    let pair = STANDARD.decode(credentials.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

fn digest(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(guard: &Guard, values: &[&str]) -> bool {
        let lines = values.iter().map(|value| (AUTHORIZATION, HeaderValue::from_str(value).unwrap()));
        guard.admits(&lines.collect())
    }

    #[test]
    fn the_token_opens_as_bearer_and_as_a_password() {
        let guard = Guard::new(Some(&Secret::new("open:sesame")));
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        for good in ["Bearer open:sesame", "bearer  open:sesame ", &basic("ann:open:sesame"), &basic(":open:sesame")] {
            assert!(admits(&guard, &[good]), "{good}");
        }
        for bad in [
            &[][..],
            &[""],
            &["Bearer"],
            &["Bearer "],
            &["open:sesame"],
            &["Bearer open:sesam"],
            &["Bearer open:sesamee"],
            &["Digest open:sesame"],
            &[&basic("open:sesame")],
            &[&basic("ann:")],
            &["Basic open:sesame"],
            &["Bearer open:sesame", "Bearer open:sesame"],
        ] {
            assert!(!admits(&guard, bad), "{bad:?}");
        }
        assert!(admits(&Guard::new(None), &[]));
    }
}
