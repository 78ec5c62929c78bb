//! What the tests share: databases of their own on the server that `make test` started.

pub mod authority;
pub mod cluster;
pub mod dice;
pub mod issuer;
pub mod oracle;
pub mod pooler;
pub mod postgres;
pub mod proxy;
pub mod reader;
pub mod server;
pub mod session;
pub mod studio;
pub mod world;

/// A variable that `make test` sets. A missing server is a failure, never a skip.
pub fn required(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `make test`, which starts the servers"))
}
