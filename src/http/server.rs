//! Accepting connections and ending them.
//!
//! HTTP/1.1 only: answers are few and long, and whatever stands in front (a load balancer, TLS) speaks it. Connections
//! are bounded in number, in the size of a request's head and in the time it may take to come.
//!
//! When the service is told to stop, listening ends at once, idle connections are closed, and answers in progress may
//! go on for a grace period. What is not finished then is dropped: the client sees a broken transfer, not an end.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::{Listener, ListenerExt};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::chain::Chain;
use crate::http::HttpSettings;
use crate::task::Tasks;

/// The largest request head that is read at all, in bytes, and what a connection buffers of an answer's small pieces.
/// Beyond it there is no telling what the request was: it gets a bare 431 and its connection is closed.
const MAX_HEAD: usize = 128 << 10;

/// A listener whose connections send small writes (a head, the last frame) at once.
pub fn without_delay(listener: TcpListener) -> impl Listener<Io = TcpStream, Addr = SocketAddr> {
    listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps Nagle's algorithm");
        }
    })
}

/// Serves until `stop` is cancelled, and then until the last connection has ended or was dropped. Dropping the future
/// stops accepting; connections go on until `stop` is cancelled.
pub async fn serve(
    mut listener: impl Listener,
    router: Router,
    settings: &HttpSettings,
    tasks: &Tasks,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(settings.max_connections));
    let grace = Duration::from_secs(settings.shutdown_grace_s);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(settings.idle_timeout_s))
        .max_header_size(MAX_HEAD)
        .max_buf_size(MAX_HEAD);
    loop {
        let accepted = stop.run_until_cancelled(async {
            // A place is taken before the connection: what can't be served stays in the kernel's queue.
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            (place, listener.accept().await.0)
        });
        let Some((place, io)) = accepted.await else { break };
        let service = TowerToHyperService::new(router.clone());
        let connection = http.serve_connection(TokioIo::new(io), service);
        let stop = stop.clone();
        tasks.spawn("connection", async move {
            let _place = place;
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => Some(ended),
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::time::timeout(grace, connection).await.ok()
                }
            };
            match ended {
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::debug!(error = %Chain(&error), "a connection broke"),
                None => tracing::warn!("a connection was cut off: its answer took longer than the grace period"),
            }
        });
    }
    drop(listener);
    let everyone = u32::try_from(settings.max_connections).unwrap_or(u32::MAX);
    let _all_ended = places.acquire_many(everyone).await;
}
