//! The operators' side of a small world, on a port of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use headstart::auth::Secret;
use headstart::http::admin::{self, AdminSettings};
use headstart::http::{HttpSettings, server};
use headstart::metrics::Metrics;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::contract;
use super::world::World;

/// A served world.
pub struct Operators {
    pub world: World,
    pub metrics: Metrics,
    pub address: SocketAddr,
    pub client: Client,
    pub document: Value,
    pub stop: CancellationToken,
}

/// Server-sent events as they come.
pub struct Events {
    answer: reqwest::Response,
    buffer: String,
}

impl Operators {
    pub async fn new(world: World) -> Self {
        Self::with(world, None).await
    }

    pub async fn with(world: World, token: Option<&str>) -> Self {
        let settings = AdminSettings { token: token.map(Secret::new), ..AdminSettings::default() };
        let (stop, metrics, http) = (CancellationToken::new(), Metrics::new(), HttpSettings::default());
        let opened = Arc::new(AtomicBool::new(true));
        let router =
            admin::router(world.service.clone(), metrics.clone(), opened, stop.clone(), &settings, &world.tasks);
        let listener = server::without_delay(TcpListener::bind("127.0.0.1:0").await.expect("a free port"));
        let address = axum::serve::Listener::local_addr(&listener).expect("its address");
        let (tasks, stopped) = (world.tasks.clone(), stop.clone());
        let pacing = http.pacing(Metrics::new());
        tokio::spawn(async move { server::serve(listener, router, &http, &pacing, &tasks, stopped).await });
        let client = Client::new();
        let ask = client.get(format!("http://{address}/openapi.json")).bearer_auth(token.unwrap_or("none"));
        let document = ask.send().await.expect("an answer").bytes().await.expect("a whole body");
        let document = serde_json::from_slice(&document).expect("JSON");
        Self { world, metrics, address, client, document, stop }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        self.client.request(Method::try_from(method).expect("a method"), self.url(path))
    }

    /// Sends it; the answer is one that the document tells of.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> (StatusCode, Value) {
        let request =
            headers.iter().fold(self.request(method, path), |request, (name, value)| request.header(*name, *value));
        let answer = request.send().await.expect("an answer");
        let status = answer.status();
        let kind = answer.headers().get("content-type").and_then(|kind| kind.to_str().ok()).map(str::to_owned);
        let body = answer.bytes().await.expect("a whole body");
        contract::hold(&self.document, method, path, status.as_u16(), kind.as_deref(), &body);
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self.send("GET", path, &[]).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// The code a request is refused with.
    pub async fn refused(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let (status, body) = self.send(method, path, headers).await;
        (status.as_u16(), body["code"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until no dump runs or waits.
    pub async fn settled(&self) {
        for live in self.world.dumps.in_progress() {
            live.wait_settled().await;
        }
    }

    pub async fn events(&self) -> Events {
        let answer = self.request("GET", "/operations/events").send().await.expect("an answer");
        assert_eq!(
            (answer.status(), &answer.headers()["content-type"]),
            (StatusCode::OK, &"text/event-stream".parse().unwrap())
        );
        Events { answer, buffer: String::new() }
    }
}

impl Drop for Operators {
    fn drop(&mut self) {
        self.stop.cancel();
        self.world.tasks.token().cancel();
    }
}

impl Events {
    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let (name, data) = event.split_once('\n').expect("two lines");
                let name = name.strip_prefix("event: ").expect("a name").to_owned();
                let data = serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
                self.buffer = rest.to_owned();
                return Some((name, data));
            }
            let piece = timeout(Duration::from_secs(60), self.answer.chunk()).await.expect("within a minute");
            let piece = piece.expect("an unbroken stream")?;
            self.buffer.push_str(std::str::from_utf8(&piece).expect("UTF-8, in whole events"));
        }
    }

    /// The next event of a kind that is as wanted.
    pub async fn until(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let (of, data) = self.next().await.expect("an event");
            if of == name && wanted(&data) {
                return data;
            }
        }
    }
}
