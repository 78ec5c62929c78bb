//! The door with answers made by hand: what a client sees on its socket, byte for byte.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Extension;
use axum::Router;
use axum::http::{HeaderMap, Method};
use axum::routing::get;
use axum::serve::Listener;
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::http::bootstrap::Delivery;
use crate::http::encoding::Encoding;
use crate::http::error::HttpError;
use crate::http::fake::{Fake, broken, compress, facts, frames, lines, live, noise, stored};
use crate::http::pace::Socket;
use crate::http::range::Conditions;
use crate::http::request::RequestContext;
use crate::http::rests::Rests;
use crate::http::{HttpSettings, framed, server};
use crate::metrics::Metrics;
use crate::model::BootstrapQuery;
use crate::serve::{Answer, Content, Part, ServeError};
use crate::task::Tasks;

/// A served router.
pub(in crate::http) struct Door {
    address: SocketAddr,
    stop: CancellationToken,
    tasks: Tasks,
    /// Cancelled when the server has ended.
    ended: CancellationToken,
}

/// Serves answers at `/`, each made by the function, under the default settings but for `change`.
async fn door(make: impl Fn() -> Answer + Clone + Send + Sync + 'static, change: impl Fn(&mut HttpSettings)) -> Door {
    let listener = server::without_delay(TcpListener::bind("127.0.0.1:0").await.unwrap());
    door_on(listener, make, change)
}

pub(in crate::http) fn door_on(
    listener: impl Listener<Io: Socket, Addr = SocketAddr>,
    make: impl Fn() -> Answer + Clone + Send + Sync + 'static,
    change: impl Fn(&mut HttpSettings),
) -> Door {
    let handler =
        async move |Extension(context): Extension<Arc<RequestContext>>, method: Method, headers: HeaderMap| {
            let delivery = Delivery {
                encoding: Encoding::negotiate(&headers, true).ok_or(HttpError::NotAcceptable)?,
                conditions: Conditions::read(&headers, method == Method::GET),
                rests: Rests::new(0),
                tag: Some(BootstrapQuery { no_sync_packets: true, ..BootstrapQuery::default() }),
                started: context.started(),
                limit: std::time::Duration::from_secs(60),
            };
            delivery.respond(make()).await
        };
    let mut settings = HttpSettings::default();
    change(&mut settings);
    let panics = async || -> &'static str { panic!("on purpose") };
    let routes = Router::new().route("/", get(handler)).route("/panic", get(panics));
    let router = framed(routes, Arc::new(settings.rules(Metrics::new()).unwrap()));
    let (stop, tasks) = (CancellationToken::new(), Tasks::new());
    let address = listener.local_addr().unwrap();
    let ended = CancellationToken::new();
    tasks.spawn("door", {
        let (stop, tasks, ended) = (stop.clone(), tasks.clone(), ended.clone().drop_guard());
        async move {
            let _ended = ended;
            let pacing = settings.pacing(Metrics::new());
            server::serve(listener, router, &settings, &pacing, &tasks, stop).await;
        }
    });
    Door { address, stop, tasks, ended }
}

impl Door {
    pub(in crate::http) async fn connect(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// Sends one request and reads until the server closes.
    async fn ask(&self, method: &str, path: &str, headers: &str) -> Reply {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{headers}\r\n");
        let mut bytes = Vec::new();
        // A reset is as good a break as an end.
        let _ = self.connect(&request).await.read_to_end(&mut bytes).await;
        Reply::new(&bytes)
    }

    async fn get(&self, headers: &str) -> Reply {
        self.ask("GET", "/", headers).await
    }
}

/// What came back: the status, the head's lines in lower case, and the bytes after it.
struct Reply {
    status: u16,
    head: Vec<String>,
    body: Vec<u8>,
}

impl Reply {
    fn new(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head[9..12].parse().unwrap();
        let head = head.lines().skip(1).map(str::to_lowercase).collect();
        Self { status, head, body: bytes[end + 4..].to_vec() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

fn some() -> Arc<Fake> {
    Arc::new(Fake::new(&[vec![lines(1, 10)], vec![lines(2, 50), lines(3, 5)], vec![lines(4, 1)]]))
}

#[tokio::test]
async fn an_answer_whose_length_is_known_says_so_and_keeps_it() {
    let fake = some();
    let door = door(move || stored(&fake), |_| {}).await;
    for (accept, encoding) in [("", None), ("accept-encoding: zstd\r\n", Some("zstd"))] {
        let reply = door.get(accept).await;
        assert_eq!((reply.status, reply.header("content-encoding")), (200, encoding));
        assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()));
        assert_eq!(reply.header("content-type"), Some("application/x-ndjson"));
        assert_eq!(reply.header("accept-ranges"), Some("bytes"));
        assert_eq!(reply.header("vary"), Some("authorization, accept-encoding"));
        assert_eq!(reply.header("cache-control"), Some("private, no-cache"));
        assert_eq!(reply.header("x-sync-method"), Some("snapshot"));
        assert_eq!(reply.header("x-sync-id"), Some("41"));
        assert_eq!(reply.header("x-schema-hash"), Some(facts().schema.hash.as_str()));
        assert_eq!(reply.header("x-snapshot-id"), Some("07070707070707070707070707070707"));
        assert!(reply.header("server-timing").unwrap().starts_with("answer;dur="));
        let head = door.ask("HEAD", "/", &format!("{accept}range: bytes=1-2\r\n")).await;
        let but_time = |reply: &Reply| -> Vec<String> {
            let varies = ["server-timing", "x-request-id", "date"];
            reply.head.iter().filter(|line| !varies.iter().any(|name| line.starts_with(name))).cloned().collect()
        };
        assert_eq!((head.status, but_time(&head)), (200, but_time(&reply)));
        assert_eq!(head.body, b"");
    }
    let reply = door.get("accept-encoding: gzip\r\n").await;
    assert_eq!((reply.header("content-length"), reply.header("etag")), (None, None));
    assert!(reply.body.ends_with(LAST_CHUNK));
    assert_eq!(door.get("accept-encoding: identity;q=0\r\n").await.json()["code"], "NOT_ACCEPTABLE");
}

#[tokio::test]
async fn what_the_client_has_is_not_sent_again() {
    let fake = some();
    let door = door(move || stored(&fake), |_| {}).await;
    let zstd = "accept-encoding: zstd\r\n";
    let whole = door.get(zstd).await;
    let etag = whole.header("etag").unwrap();
    let same = door.get(&format!("{zstd}if-none-match: {etag}\r\n")).await;
    assert_eq!((same.status, &same.body[..]), (304, &b""[..]));
    assert_eq!((same.header("etag"), same.header("cache-control")), (Some(etag), Some("private, no-cache")));
    assert_eq!(same.header("vary"), whole.header("vary"));
    // RFC 9110, section 8.6: no length but the one of the answer that is not sent.
    assert!(same.header("content-length").is_none_or(|len| len == whole.body.len().to_string()));
    assert_eq!(door.get(&format!("if-none-match: {etag}\r\n")).await.status, 200, "in another encoding");

    let len = whole.body.len();
    let part = door.get(&format!("{zstd}range: bytes=10-19\r\nif-range: {etag}\r\n")).await;
    assert_eq!((part.status, &part.body[..]), (206, &whole.body[10..20]));
    assert_eq!(part.header("content-range"), Some(format!("bytes 10-19/{len}").as_str()));
    assert_eq!((part.header("content-length"), part.header("etag")), (Some("10"), Some(etag)));
    let stale = door.get(&format!("{zstd}range: bytes=10-19\r\nif-range: \"x\"\r\n")).await;
    assert_eq!((stale.status, stale.body == whole.body), (200, true));
    let behind = door.get(&format!("{zstd}range: bytes={len}-\r\n")).await;
    assert_eq!((behind.status, behind.json()["code"].as_str()), (416, Some("RANGE_NOT_SATISFIABLE")));
    assert_eq!(behind.header("content-range"), Some(format!("bytes */{len}").as_str()));
    assert_eq!(door.get(&format!("{zstd}range: bytes=0-1,3-4\r\n")).await.status, 200);
}

#[tokio::test]
async fn an_error_after_the_first_byte_breaks_the_transfer() {
    let parts = |end: fn() -> Result<Part, ServeError>| {
        move || live((0..20).map(|seed| frames(&lines(seed, 2000))).chain([end()]).collect())
    };
    let good = door(parts(|| Ok(Part::End(vec![40_000]))), |_| {}).await;
    let bad = door(parts(|| Err(broken())), |_| {}).await;
    let unfinished = door(parts(|| frames(b"{}\n")), |_| {}).await;
    for accept in ["zstd", "gzip", "identity"] {
        let accept = format!("accept-encoding: {accept}\r\n");
        let reply = good.get(&accept).await;
        assert_eq!((reply.status, reply.header("transfer-encoding")), (200, Some("chunked")));
        assert!(reply.body.ends_with(LAST_CHUNK), "{accept}");
        for door in [&bad, &unfinished] {
            let reply = door.get(&accept).await;
            assert_eq!((reply.status, reply.header("transfer-encoding")), (200, Some("chunked")));
            assert!(!reply.body.ends_with(LAST_CHUNK), "{accept}");
        }
    }
    let slices = vec![vec![noise(64 << 10)]; 12];
    let fake = Arc::new(Fake::new(&slices).failing_after(9));
    let door = door(move || stored(&fake), |_| {}).await;
    for accept in ["zstd", "identity"] {
        let reply = door.get(&format!("accept-encoding: {accept}\r\n")).await;
        let announced: usize = reply.header("content-length").unwrap().parse().unwrap();
        assert!(reply.status == 200 && reply.body.len() < announced, "{accept}");
        assert!(reply.body.len() >= 9 * (64 << 10), "{accept}: what came before the error arrives");
    }
    let reply = door.get("accept-encoding: gzip\r\n").await;
    assert!(reply.status == 200 && !reply.body.ends_with(LAST_CHUNK));
}

#[tokio::test]
async fn a_real_client_sees_the_break_as_an_error() {
    let door = door(|| live(vec![frames(&lines(1, 9)), Err(broken())]), |_| {}).await;
    let response = reqwest::get(format!("http://{}/", door.address)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.bytes().await.is_err());
}

#[tokio::test]
async fn what_is_too_large_or_leads_nowhere_is_a_problem() {
    let fake = some();
    let door =
        door(move || stored(&fake), |settings| (settings.max_uri_bytes, settings.max_header_bytes) = (2000, 3000))
            .await;
    for (method, path, headers, status, code) in [
        ("GET", format!("/?x={}", "x".repeat(2000)), String::new(), 414, "URI_TOO_LONG"),
        ("GET", "/".into(), format!("x: {}\r\n", "x".repeat(3000)), 431, "HEADERS_TOO_LARGE"),
        ("GET", "/nowhere".into(), String::new(), 404, "NOT_FOUND"),
        ("POST", "/".into(), String::new(), 405, "METHOD_NOT_ALLOWED"),
        (
            "OPTIONS",
            "/".into(),
            "origin: http://x\r\naccess-control-request-method: GET\r\n".into(),
            405,
            "METHOD_NOT_ALLOWED",
        ),
        ("GET", "/panic".into(), String::new(), 500, "INTERNAL"),
    ] {
        let reply = door.ask(method, &path, &headers).await;
        assert_eq!((reply.status, reply.json()["code"].as_str()), (status, Some(code)));
        assert_eq!(reply.header("content-type"), Some("application/problem+json"));
        let id = reply.json()["requestId"].as_str().unwrap().to_owned();
        assert_eq!((id.len(), reply.header("x-request-id")), (32, Some(id.as_str())));
    }
    let allow = door.ask("DELETE", "/", "").await;
    assert_eq!(allow.header("allow").map(|allow| allow.contains("get") && allow.contains("head")), Some(true));
    // Beyond what is read at all there is no telling what it was.
    assert_eq!(door.ask("GET", "/", &format!("x: {}\r\n", "x".repeat(200 << 10))).await.status, 431);
}

#[tokio::test]
async fn a_request_keeps_its_own_id_if_it_is_a_plain_one() {
    let fake = some();
    let door = door(move || stored(&fake), |_| {}).await;
    let reply = door.ask("GET", "/nowhere", "x-request-id: abc-1.2_z\r\n").await;
    assert_eq!(
        (reply.header("x-request-id"), reply.json()["requestId"].as_str()),
        (Some("abc-1.2_z"), Some("abc-1.2_z"))
    );
    for odd in ["a b", "a\"b", &"x".repeat(65), ""] {
        let reply = door.get(&format!("x-request-id: {odd}\r\n")).await;
        assert_eq!(reply.header("x-request-id").map(str::len), Some(32), "{odd}");
    }
}

#[tokio::test]
async fn other_origins_may_ask_once_they_are_configured() {
    let fake = some();
    let door = door(move || stored(&fake), |settings| settings.cors_origins = vec!["https://app.example".into()]).await;
    let origin = "origin: https://app.example\r\n";
    let preflight = door.ask("OPTIONS", "/", &format!("{origin}access-control-request-method: GET\r\n")).await;
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (204, Some("https://app.example")));
    for (path, status) in [("/", 200), ("/nowhere", 404)] {
        let reply = door.ask("GET", path, origin).await;
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), (status, Some("https://app.example")));
        assert!(reply.header("access-control-expose-headers").unwrap().contains("x-sync-id"));
    }
    assert_eq!(
        door.ask("GET", "/", "origin: https://evil.example\r\n").await.header("access-control-allow-origin"),
        None
    );
}

/// An answer whose parts come from a channel.
fn gated() -> (mpsc::Sender<Part>, impl Fn() -> Answer + Clone + Send + Sync + 'static) {
    let (send, receive) = mpsc::channel(1);
    let receive = Arc::new(std::sync::Mutex::new(Some(receive)));
    let make = move || {
        let receive: mpsc::Receiver<Part> = receive.lock().unwrap().take().unwrap();
        let parts = stream::unfold(receive, async |mut receive| Some((Ok(receive.recv().await?), receive)));
        Answer { facts: facts(), content: Content::Live(parts.boxed()), actions: None }
    };
    (send, make)
}

#[tokio::test]
async fn when_told_to_stop_answers_may_end_and_idle_connections_close() {
    let (send, make) = gated();
    let door = door(make, |_| {}).await;
    let mut idle = door.connect("").await;
    let mut busy = door.connect("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    send.send(Part::Frames(compress(&lines(1, 10)).into())).await.unwrap();
    let mut first = [0; 512];
    assert!(busy.read(&mut first).await.unwrap() > 0);
    door.stop.cancel();
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0);
    send.send(Part::End(vec![10])).await.unwrap();
    let mut rest = Vec::new();
    busy.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(LAST_CHUNK));
    door.ended.cancelled().await;
    assert!(TcpStream::connect(door.address).await.is_err());
    door.tasks.shutdown(std::time::Duration::from_secs(5)).await.unwrap();
}

#[tokio::test]
async fn after_the_grace_period_answers_break() {
    let (send, make) = gated();
    let door = door(make, |settings| settings.shutdown_grace_s = 0).await;
    let mut busy = door.connect("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    send.send(Part::Frames(compress(&lines(1, 10)).into())).await.unwrap();
    let mut bytes = vec![0; 512];
    assert!(busy.read(&mut bytes).await.unwrap() > 0);
    door.stop.cancel();
    door.ended.cancelled().await;
    bytes.clear();
    let _ = busy.read_to_end(&mut bytes).await;
    assert!(!bytes.ends_with(LAST_CHUNK));
    assert!(send.is_closed(), "the answer was dropped");
}
