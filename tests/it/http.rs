//! The door over the whole service in memory: what is asked, and what it gets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use headstart::auth::{AuthSettings, Claims, Secret};
use headstart::dump::DumpSettings;
use headstart::http::{self, HttpSettings, server};
use headstart::metrics::Metrics;
use headstart::model::{Caller, Org};
use headstart::store::MemoryStore;
use reqwest::header::HeaderMap;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::contract;
use crate::support::world::{World, caller, org, retention};

/// A served world, with a token for whoever is to ask.
struct Door {
    world: World,
    auth: AuthSettings,
    address: SocketAddr,
    client: Client,
    stop: CancellationToken,
    document: Value,
}

/// A received answer.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Door {
    async fn new() -> Self {
        Self::with(HttpSettings::default(), World::new()).await
    }

    async fn with(settings: HttpSettings, world: World) -> Self {
        let auth = AuthSettings { hs256_secret: Some(Secret::new("k".repeat(32))), ..AuthSettings::default() };
        let listener = server::without_delay(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = axum::serve::Listener::local_addr(&listener).unwrap();
        let router =
            http::router(world.service.clone(), auth.keys().unwrap(), Metrics::new(), &settings, &Default::default())
                .unwrap();
        let (stop, tasks) = (CancellationToken::new(), world.tasks.clone());
        let stopped = stop.clone();
        let pacing = settings.pacing(Metrics::new());
        tokio::spawn(async move { server::serve(listener, router, &settings, &pacing, &tasks, stopped).await });
        let client = Client::new();
        let document = client.get(format!("http://{address}/openapi.json")).send().await.unwrap();
        let document = serde_json::from_slice(&document.bytes().await.unwrap()).unwrap();
        Self { world, auth, address, client, stop, document }
    }

    fn token(&self, caller: &Caller) -> String {
        let claims = Claims {
            org: caller.org.to_string(),
            user: caller.user.to_string(),
            groups: Some(caller.grants.as_slice().to_vec()),
        };
        self.auth.mint(&claims, SystemTime::now(), Duration::from_secs(60)).unwrap()
    }

    async fn send(&self, token: Option<&str>, path: &str, headers: &[(&str, &str)]) -> reqwest::Result<Answer> {
        let mut request = self.client.get(format!("http://{}{path}", self.address));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await?.to_vec();
        let kind = headers.get("content-type").and_then(|kind| kind.to_str().ok());
        contract::hold(&self.document, "GET", path, status.as_u16(), kind, &body);
        Ok(Answer { status, headers, body })
    }

    async fn get(&self, caller: &Caller, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(Some(&self.token(caller)), path, headers).await.unwrap()
    }

    /// Waits until no dump runs.
    async fn settled(&self) {
        for live in self.world.dumps.in_progress() {
            live.wait_settled().await;
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// The body as its encoding says.
    fn plain(&self) -> Vec<u8> {
        match self.header("content-encoding") {
            Some("zstd") => zstd::decode_all(&self.body[..]).unwrap(),
            Some("gzip") => {
                let mut plain = Vec::new();
                std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&self.body[..]), &mut plain).unwrap();
                plain
            }
            _ => self.body.clone(),
        }
    }

    /// The rows, sorted, and the metadata, which is the last line.
    fn rows(&self) -> (Vec<String>, Value) {
        assert_eq!(self.status, 200, "{self:?}");
        let text = String::from_utf8(self.plain()).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let metadata: Value = serde_json::from_str(&lines.pop().unwrap()).unwrap();
        assert_eq!(metadata["__class"], "_metadata_");
        lines.sort_unstable();
        (lines, metadata)
    }
}

fn two_teams(world: &World, org: &Org) {
    world.issues(org, "1", 0, 300);
    world.issues(org, "2", 300, 300);
    world.comment(org, "1", "c1");
}

#[tokio::test]
async fn every_encoding_of_a_live_and_a_stored_answer_holds_what_the_caller_may_see() {
    let door = Door::new().await;
    let acme = org("acme");
    two_teams(&door.world, &acme);
    door.world.issues(&org("other"), "1", 0, 7);
    for (groups, expected) in [(&["team:1"][..], 300), (&["team:1", "team:2"], 600), (&["team:9"], 0)] {
        let who = caller(&acme, groups);
        for (method, query) in [("postgres", "?noCache=true"), ("snapshot", ""), ("snapshot", "?noSyncPackets=true")] {
            for encoding in ["zstd", "gzip", "identity"] {
                let path = format!("/sync/bootstrap{query}");
                let answer = door.get(&who, &path, &[("accept-encoding", encoding)]).await;
                let (lines, metadata) = answer.rows();
                assert_eq!(lines, door.world.expected(&who, &[0]), "{method} {encoding}");
                let counts = match query {
                    "?noSyncPackets=true" => json!({ "Issue": expected }),
                    _ => json!({ "Issue": expected, "SyncAction": 0 }),
                };
                assert_eq!(metadata["returnedModelsCount"], counts);
                assert_eq!(metadata["method"], method);
                assert_eq!(answer.header("x-sync-method"), Some(method));
                assert_eq!(answer.header("x-sync-id"), Some(metadata["lastSyncId"].to_string().as_str()));
                assert_eq!(answer.header("x-schema-hash"), metadata["schemaHash"].as_str());
                assert_eq!(answer.header("content-encoding").unwrap_or("identity"), encoding);
                let measured = method == "snapshot" && encoding != "gzip";
                assert_eq!(answer.header("content-length").is_some(), measured);
                assert_eq!(answer.header("etag").is_some(), measured && query == "?noSyncPackets=true");
            }
            door.settled().await;
        }
    }
    let both = caller(&acme, &["team:1", "team:2"]);
    let (lines, _) = door.get(&both, "/sync/bootstrap?type=partial&syncGroups=team:1", &[]).await.rows();
    assert_eq!(lines, door.world.expected(&caller(&acme, &["team:1"]), &[0, 1]));
}

#[tokio::test]
async fn bad_input_is_refused_by_name() {
    let door = Door::new().await;
    let acme = org("acme");
    two_teams(&door.world, &acme);
    let who = caller(&acme, &["team:1"]);
    let long = format!("onlyModels={}", "x".repeat(17_000));
    for (query, status, code, field) in [
        ("onlyModels=Nope", 422, "UNKNOWN_MODEL", "onlyModels"),
        ("onlyModels=Attachment", 422, "EXPLICIT_MODEL", "onlyModels"),
        ("onlyModels=", 400, "INVALID_QUERY", "onlyModels"),
        ("onlyModels=%ff", 400, "INVALID_QUERY", "onlyModels"),
        ("type=partial&syncGroups=team:2", 403, "GROUP_NOT_HELD", "syncGroups"),
        ("type=partial&syncGroups=team", 400, "INVALID_QUERY", "syncGroups"),
        ("syncGroups=team:1", 400, "INVALID_QUERY", "syncGroups"),
        ("type=partial", 400, "INVALID_QUERY", "type"),
        ("type=half", 400, "INVALID_QUERY", "type"),
        ("firstSyncId=-1", 400, "INVALID_QUERY", "firstSyncId"),
        ("firstSyncId=abc", 400, "INVALID_QUERY", "firstSyncId"),
        ("firstSyncId=9223372036854775808", 400, "INVALID_QUERY", "firstSyncId"),
        ("noCache=yes", 400, "INVALID_QUERY", "noCache"),
        ("noCache", 400, "INVALID_QUERY", "noCache"),
        ("type=full&type=full", 400, "INVALID_QUERY", "type"),
        ("onlyModel=Issue", 400, "INVALID_QUERY", "onlyModel"),
        ("schemaHash=00", 409, "SCHEMA_MISMATCH", "schemaHash"),
        (&long, 414, "URI_TOO_LONG", "query"),
    ] {
        let answer = door.get(&who, &format!("/sync/bootstrap?{query}"), &[("accept-encoding", "zstd")]).await;
        let problem = answer.json();
        assert_eq!(
            (answer.status.as_u16(), &problem["code"], &problem["field"]),
            (status, &json!(code), &json!(field))
        );
        assert_eq!(problem["status"], status);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert_eq!(answer.header("x-request-id"), problem["requestId"].as_str());
        assert!(answer.header("content-encoding").is_none());
    }
    let mismatch = door.get(&who, "/sync/bootstrap?schemaHash=00", &[]).await.json();
    assert_eq!(mismatch["schemaHash"], door.world.schema.hash.as_str());
    let heavy = "x".repeat(33_000);
    let answer = door.get(&who, "/sync/bootstrap", &[("x-heavy", &heavy)]).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (431, &json!("HEADERS_TOO_LARGE")));
    let nothing = door.get(&who, "/sync/bootstrap", &[("accept-encoding", "*;q=0")]).await;
    assert_eq!((nothing.status.as_u16(), &nothing.json()["code"]), (406, &json!("NOT_ACCEPTABLE")));
    assert_eq!(door.world.source.scans(), 0, "nothing was read for any of them");
    let ahead = door.get(&who, "/sync/bootstrap?firstSyncId=9000", &[]).await;
    assert_eq!((ahead.status.as_u16(), &ahead.json()["code"]), (503, &json!("WATERMARK_HELD")));
    assert!(ahead.header("retry-after").is_some());
}

#[tokio::test]
async fn only_a_valid_token_opens_any_door() {
    let door = Door::new().await;
    let acme = org("acme");
    two_teams(&door.world, &acme);
    let who = caller(&acme, &["team:1"]);
    let good = door.token(&who);
    let claims = Claims { org: "acme".into(), user: "u".into(), groups: None };
    let at = |ago: u64, ttl: u64, auth: &AuthSettings| {
        auth.mint(&claims, SystemTime::now() - Duration::from_secs(ago), Duration::from_secs(ttl)).unwrap()
    };
    let other = AuthSettings { hs256_secret: Some(Secret::new("o".repeat(32))), ..AuthSettings::default() };
    let (header, body) = good.split_once('.').unwrap();
    let body = body.split_once('.').unwrap().0;
    let tokens = [
        None,
        Some(String::new()),
        Some("not a token".into()),
        Some(format!("{header}.{body}.")),
        // {"alg":"none"}
        Some(format!("eyJhbGciOiJub25lIn0.{body}.")),
        Some(at(3600, 60, &door.auth)),
        Some(at(0, 60, &other)),
        Some("x".repeat(20_000)),
    ];
    let mut refusals = BTreeMap::new();
    for path in ["/sync/bootstrap", "/sync/groups", "/sync/schema", "/sync/bootstrap?type=nonsense"] {
        for token in &tokens {
            let answer = door.send(token.as_deref(), path, &[]).await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.header("www-authenticate")), (401, Some("Bearer")), "{token:?}");
            let mut problem = answer.json();
            problem["requestId"] = Value::Null;
            refusals.insert(problem.to_string(), ());
        }
        let status = door.send(Some(&good), path, &[]).await.unwrap().status.as_u16();
        assert!(if path.ends_with("nonsense") { status == 400 } else { status == 200 });
    }
    assert_eq!(refusals.len(), 1, "no refusal tells more than another: {refusals:?}");
}

#[tokio::test]
async fn groups_and_schema_are_told() {
    let door = Door::new().await;
    let acme = org("acme");
    two_teams(&door.world, &acme);
    let groups = door.get(&caller(&acme, &["team:2", "team:1"]), "/sync/groups", &[]).await;
    assert_eq!(groups.json(), json!({"org": "acme", "user": "u", "syncGroups": ["team:1", "team:2"]}));
    let none = caller(&acme, &[]);
    assert_eq!(door.get(&none, "/sync/groups", &[]).await.json()["syncGroups"], json!([]), "an empty list is a list");
    let schema = door.get(&none, "/sync/schema", &[]).await.json();
    assert_eq!(schema["schemaHash"], door.world.schema.hash.as_str());
    let names: Vec<_> = schema["models"].as_array().unwrap().iter().map(|model| &model["name"]).collect();
    assert_eq!(names, ["Issue", "Comment", "Attachment"]);
    assert_eq!(schema["models"][1]["fields"][1]["name"], "issueId");
    let openapi = door.send(None, "/openapi.json", &[]).await.unwrap().json();
    assert_eq!(openapi["openapi"], "3.1.0");
    for (path, methods) in openapi["paths"].as_object().unwrap() {
        let parameters = methods["get"]["parameters"].as_array();
        let needs_more = parameters.into_iter().flatten().any(|parameter| parameter["required"] == true);
        let status = if methods.get("get").is_none() {
            405
        } else if needs_more {
            400
        } else {
            200
        };
        assert_eq!(door.get(&none, path, &[]).await.status, status, "{path} is true");
    }
}

#[tokio::test]
async fn a_download_goes_on_from_a_snapshot_that_was_replaced() {
    let door = Door::new().await;
    let acme = org("acme");
    two_teams(&door.world, &acme);
    let who = caller(&acme, &["team:1"]);
    let path = "/sync/bootstrap?noSyncPackets=true";
    door.get(&who, path, &[]).await;
    door.settled().await;
    for encoding in ["zstd", "identity"] {
        let accept = ("accept-encoding", encoding);
        let old = door.get(&who, path, &[accept]).await;
        let etag = old.header("etag").unwrap().to_owned();
        assert_eq!(door.get(&who, path, &[accept, ("if-none-match", &etag)]).await.status, 304);
        // More than the hard limit: what was published is not served any more.
        let count = door.world.expected(&who, &[0]).len();
        door.world.issues(&acme, "1", 1000 + count, 30);
        let new = door.get(&who, path, &[accept]).await;
        door.settled().await;
        assert_eq!(new.rows().0.len(), count + 30);
        let half = old.body.len() / 2;
        let rest = door.get(&who, path, &[accept, ("range", &format!("bytes={half}-")), ("if-range", &etag)]).await;
        assert_eq!(rest.status, 206);
        let range = format!("bytes {half}-{}/{}", old.body.len() - 1, old.body.len());
        assert_eq!((rest.header("content-range"), rest.header("etag")), (Some(range.as_str()), Some(etag.as_str())));
        assert!([&old.body[..half], &rest.body].concat() == old.body);
        // Who asks for something else, or for something newer, gets it whole.
        let range = ("range", "bytes=5-9");
        let whole = [
            (
                path.to_owned(),
                &who,
                "other encoding",
                ("accept-encoding", if encoding == "zstd" { "identity" } else { "zstd" }),
            ),
            (path.to_owned(), &caller(&acme, &["team:1", "team:9"]), "other groups", accept),
            (format!("{path}&onlyModels=Issue"), &who, "other models", accept),
            (format!("{path}&type=partial&syncGroups=team:1"), &who, "other type", accept),
            (format!("{path}&firstSyncId={}", new.header("x-sync-id").unwrap()), &who, "newer", accept),
        ];
        for (path, who, why, accept) in whole {
            let answer = door.get(who, &path, &[accept, range, ("if-range", &etag)]).await;
            assert_eq!(answer.status, 200, "{why}");
            assert_ne!(answer.header("etag"), Some(etag.as_str()), "{why}");
        }
        let current = door.get(&who, path, &[accept, ("range", "bytes=0-3")]).await;
        assert_ne!(current.header("etag"), Some(etag.as_str()), "without `if-range` it is the current one");
    }
}

#[tokio::test]
async fn groups_with_equal_counts_have_other_etags() {
    let door = Door::new().await;
    let acme = org("acme");
    door.world.issues(&acme, "1", 0, 10);
    door.world.issues(&acme, "2", 10, 10);
    let who = caller(&acme, &["team:1", "team:2"]);
    door.get(&who, "/sync/bootstrap", &[]).await;
    door.settled().await;
    let path = |team: &str| format!("/sync/bootstrap?type=partial&noSyncPackets=true&syncGroups=team:{team}");
    let one = door.get(&who, &path("1"), &[]).await;
    let other = door.get(&who, &path("2"), &[("if-none-match", one.header("etag").unwrap())]).await;
    assert_eq!(other.rows().0, door.world.expected(&caller(&acme, &["team:2"]), &[0, 1]));
}

#[tokio::test]
async fn a_database_that_dies_breaks_the_transfer() {
    let door = Door::new().await;
    let acme = org("acme");
    two_teams(&door.world, &acme);
    let who = caller(&acme, &["team:1", "team:2"]);
    door.world.source.allow(Some(2));
    let url = format!("http://{}/sync/bootstrap", door.address);
    let mut answers = Vec::new();
    for encoding in ["zstd", "gzip", "identity"] {
        let request = door.client.get(&url).bearer_auth(door.token(&who)).header("accept-encoding", encoding);
        answers.push(request.send().await.unwrap());
    }
    door.world.source.switch_off(true);
    for answer in answers {
        assert_eq!(answer.status(), 200);
        assert!(answer.bytes().await.is_err());
    }
    door.settled().await;
    let down = door.get(&who, "/sync/bootstrap", &[]).await;
    assert_eq!((down.status.as_u16(), &down.json()["code"]), (503, &json!("DATABASE_UNAVAILABLE")));
    assert!(down.header("retry-after").is_some());
    door.world.source.switch_off(false);
    door.world.source.allow(None);
    assert_eq!(door.get(&who, "/sync/bootstrap", &[]).await.rows().0.len(), 600);
}

#[tokio::test]
async fn without_zstd_nobody_gets_it() {
    let world = World::with(DumpSettings::default(), Arc::new(MemoryStore::new(retention())));
    let door = Door::with(HttpSettings { zstd: false, ..HttpSettings::default() }, world).await;
    let acme = org("acme");
    two_teams(&door.world, &acme);
    let who = caller(&acme, &["team:1"]);
    let answer = door.get(&who, "/sync/bootstrap", &[("accept-encoding", "gzip, deflate, br, zstd")]).await;
    assert_eq!((answer.header("content-encoding"), answer.rows().0.len()), (Some("gzip"), 300));
}

#[test]
fn settings_that_make_no_sense_are_refused_by_name() {
    let world = World::new();
    let auth = AuthSettings { hs256_secret: Some(Secret::new("k".repeat(32))), ..AuthSettings::default() };
    let fault = |settings: HttpSettings| {
        http::router(world.service.clone(), auth.keys().unwrap(), Metrics::new(), &settings, &Default::default())
            .err()
            .map(|error| error.to_string())
    };
    assert_eq!(fault(HttpSettings::default()), None);
    let uri = fault(HttpSettings { max_uri_bytes: 100_000, ..HttpSettings::default() });
    assert!(uri.unwrap().contains("http.max_uri_bytes = 100000"));
    let origin = fault(HttpSettings { cors_origins: vec!["app.example".into()], ..HttpSettings::default() });
    assert!(origin.unwrap().contains("`app.example`"));
}
