//! Pages of other origins, in a real browser: one of an allowed origin uses the whole API, any other gets nothing.

use std::time::Duration;

use axum::Router;
use axum::response::Html;
use axum::routing::{get, post};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::browser::Browser;
use crate::support::postgres::Database;
use crate::support::server::Setup;
use crate::support::studio;

/// What a page does with the service, told to its own origin in the end.
const PAGE: &str = include_str!("cors.html");

/// What a page at this origin tells of its requests.
async fn told(origin: &str, told: &mut mpsc::Receiver<Value>) -> Value {
    let _browser = Browser::open(origin);
    timeout(Duration::from_secs(120), told.recv()).await.expect("the page ends").expect("it tells")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_an_allowed_origin_uses_the_api_and_another_gets_nothing() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(studio::TABLES).await.expect("the tables");
    studio::fill(&client, 200).await;
    let mut setup = Setup::new(&database.url(), studio::CATALOG);
    setup.must(&["migrate", "--apply"]);
    setup.must(&["dump", "--org", "7"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    let (allowed, other) = (format!("http://127.0.0.1:{port}"), format!("http://localhost:{port}"));
    setup.set("HEADSTART_HTTP_CORS_ORIGINS", &allowed);
    let server = setup.serve().await;

    let page = PAGE.replace("{base}", &server.base).replace("{token}", &setup.token("7", "ann", None));
    let (tell, mut pages) = mpsc::channel(1);
    let routes = Router::new().route("/", get(async || Html(page))).route(
        "/told",
        post(async move |body: String| drop(tell.send(serde_json::from_str(&body).expect("JSON")).await)),
    );
    tokio::spawn(async move { axum::serve(listener, routes).await });

    let outcome = told(&allowed, &mut pages).await;
    let of = |name: &str, field: &str| &outcome[name][field];
    assert_eq!(of("bootstrap", "status"), 200, "{outcome:#}");
    let metadata: Value = serde_json::from_str(of("bootstrap", "last").as_str().expect("a line")).expect("JSON");
    assert_eq!((&metadata["__class"], &metadata["method"]), (&"_metadata_".into(), &"snapshot".into()));
    for readable in ["etag", "x-sync-id", "x-sync-method", "x-schema-hash", "x-request-id", "server-timing"] {
        assert!(of("bootstrap", "headers")[readable].is_string(), "{readable} can be read: {outcome:#}");
    }
    assert_eq!(of("unchanged", "status"), 304);
    assert_eq!((of("other", "status"), of("range", "status")), (&200.into(), &206.into()));
    assert!(of("range", "headers")["content-range"].as_str().is_some_and(|range| range.starts_with("bytes 0-9/")));
    assert_eq!(of("batch", "status"), 200);
    assert_eq!(of("refused", "status"), 401);
    assert_eq!(of("refused", "headers")["www-authenticate"], "Bearer");
    assert!(of("refused", "last").as_str().is_some_and(|problem| problem.contains("\"UNAUTHENTICATED\"")));

    let before = server.log().matches("verb=\"GET\"").count();
    let outcome = told(&other, &mut pages).await;
    for name in ["bootstrap", "unchanged", "range", "batch", "refused", "simple"] {
        assert!(outcome[name]["error"].is_string(), "{name}: {outcome:#}");
    }
    let log = server.log();
    assert_eq!(
        log.matches("verb=\"GET\"").count() - before,
        1,
        "only what needs no leave was sent, without a token: {log}"
    );
    assert_eq!(log.matches("verb=\"POST\"").count(), 1, "that of the allowed page");
}
