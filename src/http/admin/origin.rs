//! Only the service's own page, and programs, may ask the operators' side anything.
//!
//! A browser that once was given the token sends it along with whatever asks, pages of other sites included; and without a
//! token a page could reach this machine's own listener. So a request that says it comes from another origin is refused:
//! by `Sec-Fetch-Site` (Fetch Metadata Request Headers, W3C), which browsers send to hosts they trust, or by `Origin`
//! against `Host`, which they send with every POST and DELETE. What sends neither is no browser. Following a link to the
//! page is allowed.
//!
//! Without a token a name that an attacker has pointed at this machine (DNS rebinding) would make its page one of the same
//! origin. Then only addresses and `localhost` are taken as the host.

use std::net::Ipv6Addr;

use axum::extract::{Request, State};
use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::error::HttpError;
use crate::http::guard::Guard;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Turns away what was sent by a page of another site.
pub async fn from_here(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    if is_own(request.method(), headers) && (guard.asks() || is_host_safe(headers)) {
        next.run(request).await
    } else {
        HttpError::CrossSite.into_response()
    }
}

fn is_own(method: &Method, headers: &HeaderMap) -> bool {
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    match (text(&SEC_FETCH_SITE), text(&ORIGIN)) {
        (Some("same-origin" | "none"), _) => true,
        (Some(_), _) => method == Method::GET && text(&SEC_FETCH_MODE) == Some("navigate"),
        (None, Some(origin)) => {
            let host = origin.split_once("://").map(|(_, host)| host);
            host.is_some() && host == text(&HOST)
        }
        (None, None) => true,
    }
}

/// Whether the host is one that nobody else can give an address to.
fn is_host_safe(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST) else { return true };
    let Ok(authority) = Authority::try_from(host.as_bytes()) else { return false };
    let host = authority.host();
    let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::Ipv4Addr>().is_ok()
        || v6.is_some_and(|host| host.parse::<Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn other_sites_are_told_from_this_one_and_from_programs() {
        let own = |method: &Method, lines: &[(&'static str, &str)]| is_own(method, &headers(lines));
        for method in [Method::GET, Method::POST, Method::DELETE] {
            assert!(own(&method, &[]));
            assert!(own(&method, &[("sec-fetch-site", "same-origin"), ("origin", "http://h:1"), ("host", "h:1")]));
            assert!(own(&method, &[("sec-fetch-site", "none")]));
            assert!(own(&method, &[("origin", "http://10.0.0.7:8081"), ("host", "10.0.0.7:8081")]));
            for bad in ["cross-site", "same-site", "", "x"] {
                assert!(!own(&method, &[("sec-fetch-site", bad), ("origin", "http://h:1"), ("host", "h:1")]), "{bad}");
            }
            for bad in ["http://evil:8081", "http://10.0.0.7:8080", "null", ""] {
                assert!(!own(&method, &[("origin", bad), ("host", "10.0.0.7:8081")]), "{bad}");
            }
        }
        let link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert!(own(&Method::GET, &link) && !own(&Method::POST, &link), "a link may lead here, a form may not");
    }

    #[test]
    fn names_that_others_may_have_pointed_here_are_not_taken() {
        for safe in ["localhost:8081", "LOCALHOST", "127.0.0.1:8081", "[::1]:8081", "10.0.0.7"] {
            assert!(is_host_safe(&headers(&[("host", safe)])), "{safe}");
        }
        for unsafe_ in ["evil.example:8081", "127.0.0.1.evil.example", "localhost.evil.example:1", "", "[::1"] {
            assert!(!is_host_safe(&headers(&[("host", unsafe_)])), "{unsafe_}");
        }
        assert!(is_host_safe(&HeaderMap::new()));
    }
}
