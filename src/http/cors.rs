//! Cross-origin requests, off unless origins are configured (the Fetch standard, section 3.2).
//!
//! Tokens travel in a header that pages set themselves, never in cookies, so credentials are not allowed and any page
//! gains no more than what its own token opens.

use std::collections::HashSet;

use axum::body::Body;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::Response;

/// What pages may send beside the headers that are always allowed.
const ALLOWED: &str = "authorization, content-type, if-none-match, if-range, range, x-request-id";
/// What pages may read beside the headers that are always readable.
const EXPOSED: &str = "accept-ranges, content-encoding, content-range, etag, retry-after, server-timing, \
                       www-authenticate, x-request-id, x-schema-hash, x-snapshot-id, x-sync-id, x-sync-method";
/// How long a browser may remember a preflight, in seconds: two hours, the most that Chromium takes.
const MAX_AGE_S: &str = "7200";

/// Which origins may ask.
#[derive(Debug)]
pub struct Cors {
    /// `*` was configured.
    any: bool,
    origins: HashSet<HeaderValue>,
}

/// An entry of `http.cors_origins` that no browser would ever send.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("http.cors_origins: `{0}` is no origin: write `scheme://host[:port]` without a path, or `*` for any")]
pub struct OriginError(pub String);

impl Cors {
    /// For these origins; `None` when there are none.
    ///
    /// # Errors
    /// The first that is no origin.
    pub fn new(origins: &[String]) -> Result<Option<Self>, OriginError> {
        let mut cors = Self { any: false, origins: HashSet::new() };
        for origin in origins {
            if origin == "*" {
                cors.any = true;
                continue;
            }
            let parsed = origin.parse::<Uri>().ok().filter(|uri| {
                let bare = uri.scheme_str().zip(uri.authority()).map(|(scheme, host)| format!("{scheme}://{host}"));
                bare.is_some_and(|bare| bare == *origin)
            });
            match (parsed, HeaderValue::from_str(origin)) {
                (Some(_), Ok(value)) => drop(cors.origins.insert(value)),
                _ => return Err(OriginError(origin.clone())),
            }
        }
        Ok((cors.any || !cors.origins.is_empty()).then_some(cors))
    }

    /// The answer to a preflight; `None` when the request is none.
    pub fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<Response> {
        if method != Method::OPTIONS
            || !headers.contains_key(ORIGIN)
            || !headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
        {
            return None;
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, POST"));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE_S));
        Some(response)
    }

    /// Lets a page of an allowed origin read a response. `origin` is the request's.
    pub fn expose(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        if !self.any {
            // The answer depends on it, also where it is not sent: a cache must not mix the two.
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
        let allowed = match origin {
            Some(_) if self.any => HeaderValue::from_static("*"),
            Some(origin) if self.origins.contains(origin) => origin.clone(),
            _ => return,
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(origins: &[&str]) -> Result<Option<Cors>, OriginError> {
        Cors::new(&origins.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    fn allowed(cors: &Cors, origin: &'static str) -> Option<HeaderValue> {
        let mut headers = HeaderMap::new();
        cors.expose(Some(&HeaderValue::from_static(origin)), &mut headers);
        headers.remove(ACCESS_CONTROL_ALLOW_ORIGIN)
    }

    #[test]
    fn only_origins_are_taken_as_origins() {
        assert!(cors(&[]).unwrap().is_none());
        assert!(cors(&["https://app.example", "http://localhost:3000"]).unwrap().is_some());
        for bad in ["app.example", "https://app.example/", "https://app.example/x", "", "null", "https://"] {
            assert_eq!(cors(&[bad]).unwrap_err(), OriginError(bad.into()));
        }
    }

    #[test]
    fn an_allowed_origin_is_named_and_others_are_not() {
        let some = cors(&["https://app.example"]).unwrap().unwrap();
        assert_eq!(allowed(&some, "https://app.example").unwrap(), "https://app.example");
        assert_eq!(allowed(&some, "https://app.example.evil"), None);
        assert_eq!(allowed(&cors(&["*"]).unwrap().unwrap(), "https://any.example").unwrap(), "*");
    }

    #[test]
    fn a_preflight_is_an_options_request_with_both_headers() {
        let cors = cors(&["*"]).unwrap().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(ORIGIN, HeaderValue::from_static("https://app.example"));
        assert!(cors.preflight(&Method::OPTIONS, &headers).is_none());
        headers.insert(ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("GET"));
        assert!(cors.preflight(&Method::GET, &headers).is_none());
        let response = cors.preflight(&Method::OPTIONS, &headers).unwrap();
        assert!(response.headers()[ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap().contains("authorization"));
    }
}
