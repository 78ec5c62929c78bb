//! What a request leaves: one line in the log and, where that is wanted, the spans of its trace; and what never stands in
//! either.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::support::collector::{Collector, Span};
use crate::support::server::{Server, Setup};
use crate::support::studio;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// The request lines of a log in JSON.
fn lines(log: &str) -> Vec<Value> {
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter(|event| event["message"] == "request").collect()
}

/// Waits for the spans of a trace, its first one among them.
async fn spans_of(collector: &Collector, server: &Server, trace: &str) -> Vec<Span> {
    let of_trace = || collector.spans().into_iter().filter(|span| span.trace == trace).collect::<Vec<_>>();
    server.until("the request's span", async || of_trace().iter().any(|span| span.name == "request")).await;
    of_trace()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_leaves_a_line_and_spans_that_join() {
    let (_database, _client, mut setup) = studio::with_log(1, studio::CATALOG).await;
    let collector = Collector::start().await;
    setup.set("HEADSTART_OTLP_URL", collector.url()).set("HEADSTART_LOG_FORMAT", "json");
    let server = setup.serve().await;
    let token = setup.token("7", "ann", None);
    let ask = |path: &str, flags: &str| {
        let parent = format!("00-{TRACE}-{CALLER}-{flags}");
        server.get(path, &token).header("traceparent", parent).header("x-request-id", format!("r{flags}"))
    };

    // A trace that the caller does not keep leaves a line that joins, and no span.
    let unkept = ask("/sync/groups", "00").send().await.unwrap();
    assert_eq!(unkept.status(), 200);
    unkept.bytes().await.unwrap();
    let body = ask("/sync/bootstrap", "01").send().await.unwrap().bytes().await.unwrap();
    let spans = spans_of(&collector, &server, TRACE).await;
    let requests: Vec<&Span> = spans.iter().filter(|span| span.name == "request").collect();
    let [request] = requests[..] else { panic!("{requests:?}") };
    assert_eq!(request.parent, CALLER);
    for (fact, value) in [
        ("http.request.method", "GET"),
        ("http.route", "/sync/bootstrap"),
        ("http.response.status_code", "200"),
        ("request_id", "r01"),
        ("org", "7"),
        ("method", "postgres"),
        ("why", "missing"),
        ("bytes", &body.len().to_string()),
        ("outcome", "complete"),
    ] {
        assert_eq!(request.facts.get(fact).map(String::as_str), Some(value), "{fact}: {request:?}");
    }
    let child = |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name}: {spans:?}"));
    for name in ["memberships", "look", "wait for dump"] {
        assert_eq!(child(name).parent, request.id, "{name}");
    }
    // The dump is a trace of its own, which the request's names.
    let snapshot = child("wait for dump").facts["snapshot"].clone();
    let dump = || collector.spans().into_iter().find(|span| span.name == "dump");
    server.until("the dump's span", async || dump().is_some()).await;
    let dump = dump().unwrap();
    assert_eq!((&dump.facts["snapshot"], dump.parent.as_str()), (&snapshot, ""));
    assert_ne!(dump.trace, TRACE);
    for name in ["scan", "store"] {
        assert!(collector.spans().iter().any(|span| span.name == name && span.parent == dump.id), "{name}");
    }

    // From the store, without a caller's trace: one begins here. What is loaded while the body is read belongs to it.
    server.until_published(1).await;
    server.get("/sync/bootstrap", &token).send().await.unwrap().bytes().await.unwrap();
    server.until("both lines", async || lines(&server.log()).len() == 3).await;
    let logged = lines(&server.log());
    let trace = logged[2]["trace_id"].as_str().expect("a trace").to_owned();
    assert_ne!(trace, TRACE);
    let spans = spans_of(&collector, &server, &trace).await;
    let request = spans.iter().find(|span| span.name == "request").unwrap();
    assert_eq!((request.parent.as_str(), &*request.facts["method"]), ("", "snapshot"));
    let loads: Vec<&Span> = spans.iter().filter(|span| span.name == "load").collect();
    assert!(loads.iter().any(|load| load.facts["what"] == "load pack"), "{spans:?}");
    assert!(loads.iter().all(|load| load.parent == request.id), "{spans:?}");

    for (line, (id, route, why)) in logged.iter().zip([
        ("r00", "/sync/groups", Value::Null),
        ("r01", "/sync/bootstrap", json!("missing")),
        ("", "/sync/bootstrap", json!("fresh")),
    ]) {
        assert!(id.is_empty() || (line["request_id"] == id && line["trace_id"] == TRACE), "{line}");
        assert_eq!((&line["route"], &line["why"], &line["outcome"]), (&json!(route), &why, &json!("complete")));
        assert_eq!((&line["verb"], &line["status"], &line["org"]), (&json!("GET"), &json!(200), &json!("7")));
        let [bytes, first, whole] = ["bytes", "first_byte_ms", "duration_ms"].map(|name| line[name].as_u64().unwrap());
        assert!(bytes > 0 && first <= whole, "{line}");
    }
    assert!(server.metric("headstart_spans_sent_total").await > 0.0);
    assert_eq!(server.metric("headstart_spans_lost_total").await, 0.0);

    // What has just ended is sent before the service ends.
    let last = TRACE.replace('4', "5");
    let parent = format!("00-{last}-{CALLER}-01");
    let answer = server.get("/sync/schema", &token).header("traceparent", parent).send().await.unwrap();
    answer.bytes().await.unwrap();
    assert!(server.stop().await.success());
    assert!(collector.spans().iter().any(|span| span.trace == last && span.name == "request"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_and_no_row_stands_in_a_log_or_a_span() {
    const MARK: &str = "wer-das-liest-liest-zeilen";
    let (_database, client, mut setup) = studio::with_log(1, studio::CATALOG).await;
    let collector = Collector::start().await;
    setup.set("HEADSTART_OTLP_URL", collector.url()).set("HEADSTART_LOG_FILTER", "debug");
    setup.set("HEADSTART_ADMIN_TOKEN", "an-operators-token-that-is-long-enough");
    client.batch_execute(&format!("UPDATE studio.workspace SET name = '{MARK}'")).await.unwrap();
    let mut forms = Vec::new();
    for format in ["human", "json"] {
        setup.set("HEADSTART_LOG_FORMAT", format);
        let server = setup.serve().await;
        let token = setup.token("7", "ann", None);
        let get = |path: String| {
            let sent = server.get(&path, &token).send();
            async move { sent.await.unwrap().bytes().await.unwrap() }
        };
        let body = get("/sync/bootstrap".into()).await;
        assert!(String::from_utf8_lossy(&body).contains(MARK), "the row is in the answer");
        let (_, metadata) = studio::parse(&body);
        client.batch_execute("UPDATE studio.workspace SET name = name || '.'").await.unwrap();
        let (from, epoch) = (&metadata["lastSyncId"], metadata["epoch"].as_str().unwrap());
        let delta = get(format!("/sync/delta?lastSyncId={from}&epoch={epoch}")).await;
        assert!(String::from_utf8_lossy(&delta).contains(MARK), "the row is in the delta");
        // Where they don't belong: a query, a path, a key, a header that is no token.
        get(format!("/sync/bootstrap?access_token={token}&onlyModels={MARK}")).await;
        get(format!("/sync/{token}/{MARK}")).await;
        for (field, value) in [("id", MARK), ("keyValue", MARK), ("indexedKey", &*token)] {
            let mut request = json!({"modelName": "Workspace", "id": "7"});
            request[field] = json!(value);
            let batch = server.client.post(format!("{}/sync/batch", server.base)).bearer_auth(&token);
            let batch = batch.header("content-type", "application/json");
            batch.body(json!({"requests": [request]}).to_string()).send().await.unwrap().bytes().await.unwrap();
        }
        for wrong in [format!("{token}x"), format!("{MARK}.{MARK}.{MARK}")] {
            let refused = server.get("/sync/groups", &wrong).header("x-request-id", format!("{token} x"));
            assert_eq!(refused.send().await.unwrap().status(), 401);
        }
        let verb = reqwest::Method::from_bytes(MARK.to_uppercase().as_bytes()).unwrap();
        let odd = server.client.request(verb, format!("{}/sync/groups", server.base)).bearer_auth(&token);
        odd.send().await.unwrap().bytes().await.unwrap();
        let folder = setup.folder.path().to_owned();
        assert!(server.stop().await.success());
        let logs = std::fs::read_dir(folder).unwrap().filter_map(|entry| {
            let path = entry.unwrap().path();
            let is_log = path.file_name()?.to_str()?.starts_with("log-");
            is_log.then(|| std::fs::read_to_string(path).unwrap())
        });
        forms.push((token, logs.collect::<String>()));
    }
    let told = collector.messages().concat();
    assert!(told.contains("\"load rows\"") && told.contains("\"request\""), "spans came");
    for (token, log) in &forms {
        assert!(log.contains("/sync/delta"), "lines came");
        for text in [log, &told] {
            let lower = text.to_lowercase();
            let parts = token.split('.').chain([MARK, "an-operators-token"]).chain([crate::support::server::SECRET]);
            for secret in parts.map(str::to_lowercase) {
                let at = lower.find(&secret);
                assert!(at.is_none(), "{secret} stands in …{}", &lower[at.unwrap_or_default().saturating_sub(300)..]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_collector_harms_nobody() {
    let (_database, _client, mut setup) = studio::with_log(1, studio::CATALOG).await;
    // Takes connections, and never a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    for port in [silent.local_addr().unwrap().port(), closed] {
        setup.set("HEADSTART_OTLP_URL", format!("http://127.0.0.1:{port}/v1/traces"));
        let server = setup.serve().await;
        let token = setup.token("7", "ann", Some("org:7"));
        server.get("/sync/bootstrap", &token).send().await.unwrap().bytes().await.unwrap();
        let began = Instant::now();
        // More spans than may wait.
        for _ in 0..1500 {
            let answer = server.get("/sync/bootstrap?noSyncPackets=true", &token).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            answer.bytes().await.unwrap();
        }
        eprintln!("1500 answers took {:?}", began.elapsed());
        server.until("spans are lost", async || server.metric("headstart_spans_lost_total").await > 0.0).await;
        assert_eq!(server.metric("headstart_spans_sent_total").await, 0.0);
        assert_eq!(server.log().matches("spans of traces were lost").count(), 1, "told once a minute");
        let stopped = Instant::now();
        assert!(server.stop().await.success());
        assert!(stopped.elapsed() < Duration::from_secs(9), "{:?}", stopped.elapsed());
    }
    // Without one nothing is sent, and lines carry only a caller's trace.
    setup.set("HEADSTART_OTLP_URL", "").set("HEADSTART_LOG_FORMAT", "json");
    let server: Server = Setup::serve(&setup).await;
    let token = setup.token("7", "ann", Some("org:7"));
    for parent in [None, Some(format!("00-{TRACE}-{CALLER}-01"))] {
        let mut request = server.get("/sync/groups", &token);
        if let Some(parent) = parent {
            request = request.header("traceparent", parent);
        }
        request.send().await.unwrap().bytes().await.unwrap();
    }
    server.until("both lines", async || lines(&server.log()).len() == 2).await;
    let logged = lines(&server.log());
    assert_eq!((&logged[0]["trace_id"], &logged[1]["trace_id"]), (&Value::Null, &json!(TRACE)));
}
