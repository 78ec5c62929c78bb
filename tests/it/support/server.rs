//! The real binary, as a user starts it.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use reqwest::{Client, RequestBuilder};
use tokio::time::Instant;

/// A secret for tests.
pub const SECRET: &str = "a-secret-of-tests-that-is-long-enough";

/// How the binary is started: its environment and a folder of its own.
pub struct Setup {
    pub folder: tempfile::TempDir,
    pub env: BTreeMap<String, String>,
}

impl Setup {
    /// For a database and a catalog, with the folder store.
    pub fn new(postgres_url: &str, catalog: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let catalog_path = folder.path().join("catalog.toml");
        std::fs::write(&catalog_path, catalog).expect("write the catalog");
        let store = folder.path().join("store");
        let env = [
            ("HEADSTART_POSTGRES_URL", postgres_url.to_owned()),
            ("HEADSTART_CATALOG_PATH", catalog_path.display().to_string()),
            ("HEADSTART_STORE_URL", format!("file://{}", store.display())),
            ("HEADSTART_AUTH_HS256_SECRET", SECRET.to_owned()),
            // Dumps happen when a test asks for them.
            ("HEADSTART_DUMP_BACKGROUND", "false".to_owned()),
            ("HEADSTART_DUMP_SPOOL_DIR", folder.path().display().to_string()),
            ("HEADSTART_BOOTSTRAP_FRESHNESS_MS", "0".to_owned()),
        ];
        Self { env: env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(), folder }
    }

    pub fn set(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.env.insert(name.into(), value.into());
        self
    }

    pub fn store_folder(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// Runs a subcommand to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_headstart")).args(args).output().expect("run the binary")
    }

    /// Runs a subcommand that must succeed; gives what it printed.
    pub fn must(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{args:?}: {}\n{out}\n{err}", output.status);
        out.into_owned()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().envs(&self.env).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
    }

    /// A token of a user; `groups` as the claim, if any.
    pub fn token(&self, org: &str, user: &str, groups: Option<&str>) -> String {
        let mut args = vec!["token", "--org", org, "--user", user];
        args.extend(groups.iter().flat_map(|groups| ["--groups", *groups]));
        self.must(&args).trim().to_owned()
    }

    /// Starts the service and waits until it is ready.
    pub async fn serve(&self) -> Server {
        self.serve_with("exec \"$0\" serve").await
    }

    /// The same through a shell command in which `$0` is the binary.
    pub async fn serve_with(&self, shell: &str) -> Server {
        let (listen, admin) = (free_port(), free_port());
        let log = self.folder.path().join(format!("log-{listen}"));
        let file = std::fs::File::create(&log).expect("create the log");
        let child = self
            .command("/bin/sh")
            .args(["-c", shell, env!("CARGO_BIN_EXE_headstart")])
            .env("HEADSTART_HTTP_LISTEN", format!("127.0.0.1:{listen}"))
            .env("HEADSTART_ADMIN_LISTEN", format!("127.0.0.1:{admin}"))
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("start the service");
        let base = format!("http://127.0.0.1:{listen}");
        let admin = format!("http://127.0.0.1:{admin}");
        let mut server = Server { child, base, admin, log, client: Client::new() };
        server.wait_ready().await;
        server
    }
}

/// A running service; killed when dropped.
pub struct Server {
    child: Child,
    pub base: String,
    pub admin: String,
    log: PathBuf,
    pub client: Client,
}

impl Server {
    pub fn get(&self, path: &str, token: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.base)).bearer_auth(token)
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        read(&self.log)
    }

    /// Polls until a condition holds; there is nothing to subscribe to across processes.
    pub async fn until<F: Future<Output = bool>>(&self, what: &str, mut condition: impl FnMut() -> F) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !condition().await {
            assert!(Instant::now() < deadline, "not within a minute: {what}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its metrics now, as text.
    pub async fn metrics(&self) -> String {
        let answer = self.client.get(format!("{}/metrics", self.admin)).send().await.expect("the metrics");
        answer.text().await.expect("a whole body")
    }

    /// One of its metrics now, by its name and labels; 0 while there is none.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.metrics().await;
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until a dump of this process was published so many times.
    pub async fn until_published(&self, times: usize) {
        let published = || async { self.log().matches("a snapshot is published").count() >= times };
        self.until("a snapshot is published", published).await;
    }

    async fn wait_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Ok(answer) = self.client.get(format!("{}/readyz", self.admin)).send().await
                && answer.status().is_success()
            {
                return;
            }
            if let Some(status) = self.child.try_wait().expect("ask for the child") {
                panic!("the service ended with {status}:\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "not ready within a minute:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Bytes of memory it takes now: what is resident (`RssAnon`, `RssFile`, `RssShmem`, proc(5)).
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("its status");
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of it");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
        };
        of("RssAnon:") + of("RssFile:") + of("RssShmem:")
    }

    /// Sends it a signal by its name.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("/bin/kill").args(["-s", name, &pid]).status().expect("run kill");
        assert!(sent.success(), "kill -s {name} {pid}");
    }

    /// Asks it to stop and gives its exit status.
    pub async fn stop(self) -> std::process::ExitStatus {
        self.signal("TERM");
        self.ended().await
    }

    /// Waits for its end and gives its exit status.
    pub async fn ended(mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().expect("ask for the child") {
                return status;
            }
            assert!(Instant::now() < deadline, "did not stop within a minute:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the service's log ---\n{}", self.log());
        }
    }
}

/// A body as it was before its content coding.
pub fn decode(encoding: &str, body: &[u8]) -> Vec<u8> {
    let mut raw = Vec::new();
    match encoding {
        "zstd" => zstd::stream::copy_decode(body, &mut raw).expect("zstd"),
        "gzip" => drop(flate2::read::GzDecoder::new(body).read_to_end(&mut raw).expect("gzip")),
        _ => raw.extend_from_slice(body),
    }
    raw
}

fn read(path: &Path) -> String {
    let mut text = String::new();
    if let Ok(mut file) = std::fs::File::open(path) {
        file.read_to_string(&mut text).expect("the log is UTF-8");
    }
    text
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}
