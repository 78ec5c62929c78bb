//! A collector of traces: takes what is posted to it, as OTLP over HTTP.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Listens until the test's runtime ends.
pub struct Collector {
    pub port: u16,
    taken: Arc<Mutex<Vec<String>>>,
}

/// A span, as it came.
#[derive(Clone, Debug)]
pub struct Span {
    pub trace: String,
    pub id: String,
    pub parent: String,
    pub name: String,
    pub facts: BTreeMap<String, String>,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let taken: Arc<Mutex<Vec<String>>> = Arc::default();
        let into = taken.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let message = take(stream).await;
                into.lock().expect("nobody panics with it").push(message);
            }
        });
        Self { port, taken }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1/traces", self.port)
    }

    /// Every request that came, head and body.
    pub fn messages(&self) -> Vec<String> {
        self.taken.lock().expect("nobody panics with it").clone()
    }

    /// Every span that came.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        for message in self.messages() {
            let (head, body) = message.split_once("\r\n\r\n").expect("a head");
            assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n") && head.contains("application/json"), "{head}");
            let body: Value = serde_json::from_str(body).expect("JSON");
            let resource = &body["resourceSpans"][0];
            assert_eq!(facts(&resource["resource"])["service.name"], "headstart");
            spans.extend(resource["scopeSpans"][0]["spans"].as_array().expect("spans").iter().map(span));
        }
        spans
    }
}

fn span(span: &Value) -> Span {
    let text = |name: &str| span[name].as_str().unwrap_or_default().to_owned();
    let nanos = |name: &str| text(name).parse::<u128>().expect("a time");
    assert!(nanos("startTimeUnixNano") <= nanos("endTimeUnixNano"), "{span}");
    assert!((text("traceId").len(), text("spanId").len()) == (32, 16), "{span}");
    Span {
        trace: text("traceId"),
        id: text("spanId"),
        parent: text("parentSpanId"),
        name: text("name"),
        facts: facts(span),
    }
}

fn facts(of: &Value) -> BTreeMap<String, String> {
    let attributes = of["attributes"].as_array().expect("attributes");
    let fact = |attribute: &Value| {
        let values = attribute["value"].as_object().expect("a value");
        let value = values.values().next().expect("one");
        (attribute["key"].as_str().expect("a key").to_owned(), value.as_str().map_or(value.to_string(), str::to_owned))
    };
    attributes.iter().map(fact).collect()
}

/// Reads one request and answers it.
async fn take(mut stream: TcpStream) -> String {
    let mut read = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&read).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let len = head.to_lowercase().split_once("content-length: ").expect("a length").1.to_owned();
            let len: usize = len.lines().next().expect("digits").parse().expect("a number");
            if body.len() >= len {
                let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
                let _ = stream.write_all(answer.as_bytes()).await;
                return text;
            }
        }
        if stream.read_buf(&mut read).await.expect("the rest of a request") == 0 {
            return text;
        }
    }
}
