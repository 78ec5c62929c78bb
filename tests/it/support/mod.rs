//! What the tests share: databases of their own on the server that `make test` started.

pub mod authority;
pub mod browser;
pub mod cluster;
pub mod collector;
pub mod contract;
pub mod dice;
pub mod issuer;
pub mod operators;
pub mod oracle;
pub mod pooler;
pub mod postgres;
pub mod proxy;
pub mod reader;
pub mod replica_set;
pub mod server;
pub mod session;
pub mod socket;
pub mod studio;
pub mod world;

use headstart::model::SnapshotId;

/// A variable that `make test` sets. A missing server is a failure, never a skip.
pub fn required(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `make test`, which starts the servers"))
}

/// The URL of the test's MongoDB with a database of its own.
pub fn mongo_url() -> String {
    let url = required("HEADSTART_TEST_MONGODB_URL");
    let (server, options) = url.split_once("/?").unwrap_or((url.trim_end_matches('/'), ""));
    format!("{server}/t_{}?{options}", SnapshotId::random())
}
