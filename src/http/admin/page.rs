//! The dashboard: a page and what it is made of, embedded in the program.
//!
//! Its policy lets it run its own script and talk to this listener, and nothing else: no inline script, no other host, no
//! frame around it. What it shows of orgs it sets as text.

use std::sync::Arc;

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::get;

use crate::http::admin::Admin;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Each with its path and its type.
const FILES: [(&str, &str, &str); 10] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/dashboard.css", "text/css; charset=utf-8", include_str!("page/dashboard.css")),
    ("/dashboard.js", SCRIPT, include_str!("page/dashboard.js")),
    ("/api.js", SCRIPT, include_str!("page/api.js")),
    ("/chart.js", SCRIPT, include_str!("page/chart.js")),
    ("/dumps.js", SCRIPT, include_str!("page/dumps.js")),
    ("/format.js", SCRIPT, include_str!("page/format.js")),
    ("/inspect.js", SCRIPT, include_str!("page/inspect.js")),
    ("/orgs.js", SCRIPT, include_str!("page/orgs.js")),
    ("/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];

/// The page.
pub fn routes() -> Router<Arc<Admin>> {
    let served = |routes: Router<Arc<Admin>>, (path, kind, text): (&'static str, &'static str, &'static str)| {
        routes.route(path, get(async move || ([(CONTENT_TYPE, HeaderValue::from_static(kind))], text)))
    };
    FILES.into_iter().fold(Router::new(), served).layer(map_response(protected))
}

async fn protected(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        // Another version may serve in the next moment.
        (CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_it_needs_another_host_or_leave_to_run_inline() {
        for (path, _, text) in FILES {
            // Names of XML languages are no addresses.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for word in ["http://", "https://", "//cdn", "innerHTML", "insertAdjacentHTML", "eval(", "document.write"] {
                assert!(!text.contains(word), "{path} holds {word}");
            }
            let inline = [" onclick=", " onload=", " style=", "javascript:", "<style", "<script>"];
            assert!(path.ends_with(".js") || inline.iter().all(|word| !text.contains(word)), "{path}");
        }
    }
}
