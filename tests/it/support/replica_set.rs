//! A MongoDB replica set of three nodes of a test's own, for what can't be done to the shared server: to kill its
//! primary, to step it down, to make it slow or full.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use headstart::model::SnapshotId;
use mongodb::bson::{Bson, Document, doc};
use mongodb::{Client, Database};
use tempfile::TempDir;
use tokio::time::Instant;

/// The nodes, on free ports of loopback. Killed, and their files removed, when it is dropped.
pub struct ReplicaSet {
    home: TempDir,
    nodes: Vec<Node>,
}

struct Node {
    port: u16,
    process: Option<Child>,
}

impl ReplicaSet {
    /// Starts three nodes and waits for their primary. Elections take about a second.
    pub async fn start() -> Self {
        let home = tempfile::Builder::new().prefix("headstart-mongo-").tempdir().expect("make a directory");
        let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let port = |listener: &TcpListener| listener.local_addr().expect("its address").port();
        let nodes = listeners.iter().map(|listener| Node { port: port(listener), process: None }).collect();
        drop(listeners);
        let mut set = Self { home, nodes };
        for node in 0..3 {
            set.start_node(node);
        }
        let members: Vec<Bson> = (set.nodes.iter().enumerate())
            .map(|(id, node)| doc! { "_id": id as i32, "host": format!("127.0.0.1:{}", node.port) }.into())
            .collect();
        let settings = doc! { "electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 200 };
        let config = doc! { "_id": "rs", "members": members, "settings": settings };
        let first = set.node(0).await;
        within("the set is made", async || {
            first.run_command(doc! { "replSetInitiate": config.clone() }).await.ok().map(|_| ())
        })
        .await;
        set.primary().await;
        set
    }

    /// How the service reaches it; a database of its own.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("mongodb://{}/t{}?replicaSet=rs", hosts.join(","), SnapshotId::random())
    }

    /// Starts a node that does not run.
    pub fn start_node(&mut self, node: usize) {
        let data = self.home.path().join(node.to_string());
        std::fs::create_dir_all(&data).expect("make a directory");
        let process = Command::new(program())
            .args(["--replSet", "rs", "--bind_ip", "127.0.0.1", "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25"])
            .args(["--setParameter", "enableTestCommands=1", "--oplogSize", "64"])
            .args(["--port", &self.nodes[node].port.to_string()])
            .arg("--dbpath")
            .arg(&data)
            .arg("--logpath")
            .arg(data.with_extension("log"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", program().display()));
        self.nodes[node].process = Some(process);
    }

    /// Kills a node at once.
    pub fn kill(&mut self, node: usize) {
        let mut process = self.nodes[node].process.take().expect("it runs");
        process.kill().expect("kill");
        process.wait().expect("its end");
    }

    /// Which node is the primary, once there is one.
    pub async fn primary(&self) -> usize {
        within("there is a primary", async || {
            for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.process.is_some()) {
                let hello = direct(node.port).await.run_command(doc! { "hello": 1 }).await;
                if hello.is_ok_and(|hello| hello.get_bool("isWritablePrimary").unwrap_or_default()) {
                    return Some(index);
                }
            }
            None
        })
        .await
    }

    /// Makes the primary a secondary; another is elected.
    pub async fn step_down(&self) {
        let primary = self.node(self.primary().await).await;
        // It closes its connections, or says why it can't yet.
        let _ = primary.run_command(doc! { "replSetStepDown": 5, "secondaryCatchUpPeriodSecs": 2 }).await;
    }

    /// Makes these commands of the service fail, or wait, on every node, until [`Self::mend`].
    pub async fn fail(&self, how: Document, commands: &[&str]) {
        let mut data = doc! { "failCommands": commands, "appName": "headstart" };
        data.extend(how);
        self.fail_point(doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data }).await;
    }

    /// Ends what [`Self::fail`] began.
    pub async fn mend(&self) {
        self.fail_point(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await;
    }

    async fn fail_point(&self, command: Document) {
        for node in 0..3 {
            self.node(node).await.run_command(command.clone()).await.expect("set a fail point");
        }
    }

    async fn node(&self, node: usize) -> Database {
        direct(self.nodes[node].port).await
    }
}

impl Drop for ReplicaSet {
    fn drop(&mut self) {
        for process in self.nodes.iter_mut().filter_map(|node| node.process.as_mut()) {
            // It may have ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

async fn direct(port: u16) -> Database {
    let url = format!("mongodb://127.0.0.1:{port}/?directConnection=true&serverSelectionTimeoutMS=2000");
    Client::with_uri_str(url).await.expect("a client").database("admin")
}

/// Asks until there is an answer; there is nothing to subscribe to.
async fn within<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The server's program: the one that `make test` names, or the one it installs.
fn program() -> PathBuf {
    let installed = concat!(env!("CARGO_MANIFEST_DIR"), "/.dev/mongodb/fiftyone/db/bin/mongod");
    std::env::var_os("HEADSTART_TEST_MONGOD").map_or_else(|| installed.into(), PathBuf::from)
}
