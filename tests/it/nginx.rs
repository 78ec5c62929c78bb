//! The example of deploy/nginx, run by a real nginx in front of the service and an API.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;

use crate::load::{k6, said};
use crate::support::postgres::Database;
use crate::support::server::{SECRET, Setup};

/// nginx with the example's file on free ports; killed when dropped.
struct Nginx {
    process: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Nginx {
    /// `headstart` is the address that the example calls 127.0.0.1:8080. The API answers with the request's id.
    async fn start(headstart: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = folder.path().display();
        let (front, api) = (free_address(), free_address());
        let mut example = std::fs::read_to_string(root.join("deploy/nginx/headstart.conf")).expect("the example");
        for (written, ours) in [("127.0.0.1:8000", &*front), ("127.0.0.1:3000", &*api), ("127.0.0.1:8080", headstart)] {
            assert_eq!(example.matches(written).count(), 1, "{written}");
            example = example.replace(written, ours);
        }
        let around = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log info;
             events {{ worker_connections 512; }}
             http {{
                 access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;
                 fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
                 server {{ listen {api}; location / {{ return 200 \"api $http_x_request_id\"; }} }}
                 {example}
             }}"
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, around).expect("write the configuration");
        let found = Command::new(root.join("deploy/dev/nginx.sh")).arg("bin").output().expect("run nginx.sh");
        let program = String::from_utf8(found.stdout).expect("a path");
        let mut command = Command::new(program.trim_end());
        command.arg("-p").arg(folder.path()).arg("-c").arg(&file).arg("-e").arg(folder.path().join("error.log"));
        let process = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("start nginx");
        let nginx = Self { process, url: format!("http://{front}"), _folder: folder };
        while tokio::net::TcpStream::connect(&front).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        nginx
    }

    async fn get(&self, path: &str, request_id: &str) -> reqwest::Response {
        let request = reqwest::Client::new().get(format!("{}{path}", self.url)).header("x-request-id", request_id);
        request.send().await.expect("an answer")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_reach_the_service_and_the_api_through_it() {
    let database = Database::create().await;
    let setup = Setup::new(&database.url(), include_str!("../../config/catalog.toml"));
    setup.must(&["seed", "--scale", "small"]);
    setup.must(&["migrate", "--apply"]);
    let server = setup.serve().await;
    let nginx = Nginx::start(server.base.trim_start_matches("http://")).await;

    for path in ["/", "/issues", "/metrics", "/readyz", "/livez"] {
        assert_eq!(nginx.get(path, "r-1").await.text().await.expect("a body"), "api r-1", "{path}");
    }
    let refused = nginx.get("/sync/bootstrap", "from-the-client").await;
    assert_eq!(refused.status(), 401);
    assert_eq!(refused.headers()["x-request-id"], "from-the-client");
    server.until("the log names the request", || async { server.log().contains("from-the-client") }).await;
    let strange = nginx.get("/sync/bootstrap", "two words").await;
    assert_eq!(strange.headers()["x-request-id"].len(), 32, "a new id");

    for script in ["bootstrap.js", "stampede.js"] {
        let output = k6(script, &nginx.url, SECRET);
        assert!(output.status.success(), "{script}: {}\n{}", output.status, said(&output));
    }
}

#[tokio::test]
async fn what_is_sent_arrives_at_once_and_what_breaks_stays_broken() {
    let service = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let nginx = Nginx::start(&service.local_addr().expect("its address").to_string()).await;
    let (go_on, told) = oneshot::channel::<()>();
    let answer = async {
        let (mut connection, _) = service.accept().await.expect("nginx connects");
        let mut head = [0; 4096];
        let _ = connection.read(&mut head).await.expect("a request");
        let begun = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\nfirst\n\r\n";
        connection.write_all(begun).await.expect("write");
        told.await.expect("the client has the first line");
        // The last chunk, which ends the body, never comes.
        connection.write_all(b"7\r\nsecond\n\r\n").await.expect("write");
    };
    let ask = async {
        let mut response = nginx.get("/sync/bootstrap", "r-1").await;
        assert_eq!(response.chunk().await.expect("a part").as_deref(), Some(&b"first\n"[..]));
        go_on.send(()).expect("the service listens");
        loop {
            match response.chunk().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a broken answer came out whole"),
                Err(_) => break,
            }
        }
    };
    tokio::join!(answer, ask);
}

/// nginx takes no more of an answer than its client does: the service is told to wait, and nothing piles up between them.
#[tokio::test]
async fn a_client_that_does_not_read_stops_the_service_too() {
    const LEN: usize = 128 << 20;
    let service = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let nginx = Nginx::start(&service.local_addr().expect("its address").to_string()).await;
    let answer = async {
        let (mut connection, _) = service.accept().await.expect("nginx connects");
        let mut head = [0; 4096];
        let _ = connection.read(&mut head).await.expect("a request");
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LEN}\r\n\r\n");
        connection.write_all(head.as_bytes()).await.expect("write");
        let mut sent = 0;
        // It has stopped when for so long not a byte more was taken.
        while let Ok(taken) = tokio::time::timeout(Duration::from_millis(500), connection.write(&[b'a'; 1 << 16])).await
        {
            sent += taken.expect("write");
            assert!(sent < LEN / 2, "nginx took {sent} bytes that nobody reads");
        }
    };
    let (response, ()) = tokio::join!(nginx.get("/sync/bootstrap", "r-1"), answer);
    assert_eq!(response.status(), 200);
}
