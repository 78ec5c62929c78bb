//! Under load and under fire: the real binary when everybody comes at once, when nobody reads, when it is told to stop.

mod admission;
mod slow;
mod stampede;
mod stop;

use crate::support::postgres::Database;
use crate::support::proxy::Proxy;
use crate::support::server::Setup;

/// Puts a proxy between the service and its database.
pub async fn proxied(database: &Database, setup: &mut Setup) -> Proxy {
    let config = database.config();
    let tokio_postgres::config::Host::Tcp(host) = &config.get_hosts()[0] else { panic!("tests use TCP") };
    let port = config.get_ports()[0];
    let proxy = Proxy::start(format!("{host}:{port}")).await;
    setup.set("HEADSTART_POSTGRES_URL", database.url().replace(&format!(":{port}/"), &format!(":{}/", proxy.port)));
    proxy
}

/// The seconds of an answer's `retry-after`.
fn retry_after(answer: &reqwest::Response) -> u64 {
    let value = answer.headers().get("retry-after").expect("a Retry-After").to_str().expect("digits");
    value.parse().expect("seconds")
}
