//! TLS to the database and to the store, with a throw-away authority: who is trusted, and by which name.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mongodb::Client;
use mongodb::bson::doc;
use tokio::time::Instant;

use crate::support::authority::{Authority, Issued};
use crate::support::cluster::Cluster;
use crate::support::postgres::Database;
use crate::support::server::Setup;
use crate::support::studio;

/// What `check` says of a part, if it finds an error there.
fn fault(setup: &Setup, place: &str) -> Option<String> {
    let output = setup.run(&["check"]);
    let found = String::from_utf8(output.stdout).expect("text");
    let begin = |line: &&str| line.starts_with("error\t") && line.split('\t').nth(2) == Some(place);
    let fault = found.lines().find(begin).map(str::to_owned);
    assert!(fault.is_some() || output.status.success(), "{found}");
    fault
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_must_be_who_the_url_says() {
    let (authority, stranger, cluster) = (Authority::new(), Authority::new(), Cluster::start(""));
    let client = cluster.connect().await;
    client.batch_execute(studio::TABLES).await.expect("the tables");
    studio::fill(&client, 50).await;
    drop(client);
    let port = cluster.config().get_ports()[0];
    let url = |host: &str, options: &str| format!("postgres://postgres@{host}:{port}/postgres?{options}");
    let mut setup = Setup::new(&url("127.0.0.1", "sslmode=disable"), studio::CATALOG);
    setup.must(&["migrate", "--apply"]);
    cluster.encrypt(&authority.issue("IP:127.0.0.1"));

    let trusting =
        |mode: &str, whom: &Authority| format!("sslmode={mode}&sslrootcert={}", whom.certificate().display());
    for (host, options, told) in [
        ("127.0.0.1", "sslmode=disable".into(), Some("no encryption")),
        ("127.0.0.1", trusting("verify-full", &stranger), Some("UnknownIssuer")),
        ("127.0.0.1", trusting("verify-ca", &stranger), Some("UnknownIssuer")),
        ("127.0.0.1", trusting("require", &stranger), Some("UnknownIssuer")),
        ("localhost", trusting("verify-full", &authority), Some("not valid for name")),
        ("localhost", trusting("verify-ca", &authority), None),
        ("127.0.0.1", "sslmode=require".into(), None),
        ("127.0.0.1", trusting("verify-full", &authority), None),
    ] {
        setup.set("HEADSTART_POSTGRES_URL", url(host, &options));
        let fault = fault(&setup, "postgres.url");
        match told {
            Some(told) => assert!(fault.as_ref().is_some_and(|fault| fault.contains(told)), "{options}: {fault:?}"),
            None => assert_eq!(fault, None, "{host} {options}"),
        }
    }

    // The whole service, its secrets from files.
    let whole = url("127.0.0.1", &trusting("verify-full", &authority));
    for (name, value) in [("HEADSTART_POSTGRES_URL", &whole), ("HEADSTART_AUTH_HS256_SECRET", &"s".repeat(40))] {
        let file = setup.folder.path().join(name);
        std::fs::write(&file, format!("{value}\n")).expect("write a secret");
        setup.env.remove(name);
        setup.set(&format!("{name}_FILE"), file.display().to_string());
    }
    let server = setup.serve().await;
    let answer = server.get("/sync/bootstrap", &setup.token("7", "ann", None)).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let body = answer.bytes().await.expect("a whole body");
    assert_eq!(studio::parse(&body).1["method"], "postgres");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_must_be_who_the_url_says() {
    let (authority, stranger, database) = (Authority::new(), Authority::new(), Database::create().await);
    let client = database.connect().await;
    client.batch_execute(studio::TABLES).await.expect("the tables");
    studio::fill(&client, 50).await;
    let mongo = Mongo::start(&authority.issue("IP:127.0.0.1")).await;
    let mut setup = Setup::new(&database.url(), studio::CATALOG);
    setup.must(&["migrate", "--apply"]);
    setup.set("HEADSTART_STORE_MONGO_SERVER_SELECTION_TIMEOUT_MS", "1500");
    let url = |options: &str| format!("mongodb://127.0.0.1:{}/headstart?replicaSet=rs{options}", mongo.port);
    let trusting = |whom: &Authority| format!("&tls=true&tlsCAFile={}", whom.certificate().display());
    for options in [String::new(), trusting(&stranger), "&tls=true".into()] {
        setup.set("HEADSTART_STORE_URL", url(&options));
        assert!(fault(&setup, "store.url").is_some(), "{options}");
    }
    let localhost = url(&trusting(&authority)).replace("replicaSet=rs", "directConnection=true");
    setup.set("HEADSTART_STORE_URL", localhost.replace("127.0.0.1", "localhost"));
    assert!(fault(&setup, "store.url").is_some(), "its certificate names another host");

    setup.set("HEADSTART_STORE_URL", url(&trusting(&authority)));
    assert_eq!(fault(&setup, "store.url"), None);
    setup.must(&["dump", "--org", "7"]);
    let server = setup.serve().await;
    let answer = server.get("/sync/bootstrap", &setup.token("7", "ann", None)).send().await.expect("an answer");
    let body = answer.bytes().await.expect("a whole body");
    assert_eq!(studio::parse(&body).1["method"], "snapshot", "it came from the store");
}

/// A MongoDB server of one node that takes connections by TLS only. Killed when dropped.
struct Mongo {
    process: Child,
    port: u16,
    _home: tempfile::TempDir,
}

impl Mongo {
    async fn start(issued: &Issued) -> Self {
        let home = tempfile::Builder::new().prefix("headstart-mongo-").tempdir().expect("make a directory");
        let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its address").port();
        let process = Command::new(program())
            .args(["--replSet", "rs", "--bind_ip", "127.0.0.1", "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25"])
            .args(["--tlsMode", "preferTLS", "--tlsAllowConnectionsWithoutCertificates", "--tlsCertificateKeyFile"])
            .arg(issued.together())
            .arg("--tlsCAFile")
            .arg(&issued.authority)
            .args(["--oplogSize", "64", "--port", &port.to_string(), "--dbpath"])
            .arg(home.path())
            .arg("--logpath")
            .arg(home.path().join("server.log"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", program().display()));
        let mongo = Self { process, port, _home: home };
        let url = format!("mongodb://127.0.0.1:{port}/?directConnection=true&serverSelectionTimeoutMS=2000");
        let admin = Client::with_uri_str(url).await.expect("a client").database("admin");
        let config = doc! { "_id": "rs", "members": [{ "_id": 0, "host": format!("127.0.0.1:{port}") }] };
        let deadline = Instant::now() + Duration::from_secs(60);
        let is_primary = async || {
            let hello = admin.run_command(doc! { "hello": 1 }).await;
            hello.is_ok_and(|hello| hello.get_bool("isWritablePrimary").unwrap_or_default())
        };
        // There is nothing to subscribe to.
        while !is_primary().await {
            assert!(Instant::now() < deadline, "no primary within a minute");
            let _ = admin.run_command(doc! { "replSetInitiate": config.clone() }).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        admin.run_command(doc! { "setParameter": 1, "tlsMode": "requireTLS" }).await.expect("ask for TLS");
        mongo
    }
}

impl Drop for Mongo {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The server's program: the one that `make test` names, or the one it installs.
fn program() -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join(".dev/mongodb/fiftyone/db/bin/mongod");
    std::env::var_os("HEADSTART_TEST_MONGOD").map_or(installed, PathBuf::from)
}
