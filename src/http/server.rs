//! Accepting connections and ending them.
//!
//! HTTP/1.1 only: answers are few and long, and whatever stands in front (a load balancer, TLS) speaks it. Connections
//! are bounded in number, in the size of a request's head and in the time it may take to come.
//!
//! Each connection has a [pace](crate::http::pace): a client that does not take its answer is cut off.
//!
//! When the service is told to stop, listening ends at once, idle connections are closed, and answers in progress may
//! go on for a grace period. What is not finished then is dropped: the client sees a broken transfer, not an end.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use axum::serve::{Listener, ListenerExt};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioTimer;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::chain::Chain;
use crate::http::HttpSettings;
use crate::http::pace::{Cut, PacedIo, Pacing, Socket, UNSENT, WHOLE};
use crate::task::Tasks;

/// The largest request head that is read at all, in bytes, give or take one read of 16 KiB. Beyond it there is no telling what the
/// request was: it gets a bare 431 and its connection is closed.
const MAX_HEAD: usize = 128 << 10;

/// Lets the process have as many files open as the system allows: every connection is one, and many systems begin with
/// 1024.
///
/// # Errors
/// The system's; then there are as many as before.
pub fn allow_many_connections() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// A listener whose connections send small writes (a head, the last frame) at once, and keep little that they can't send.
pub fn without_delay(listener: TcpListener) -> impl Listener<Io = TcpStream, Addr = SocketAddr> {
    listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps Nagle's algorithm");
        }
        stream.keep_unsent(UNSENT);
    })
}

/// How a connection ended.
enum Ended {
    /// By the client, or after its last answer.
    Itself(hyper::Result<()>),
    /// The client was too slow.
    Cut(Cut),
    /// The service stopped, and its answer went on for too long.
    OutOfGrace,
}

/// Serves until `stop` is cancelled, and then until the last connection has ended or was dropped. Dropping the future
/// stops accepting; connections go on until `stop` is cancelled.
pub async fn serve(
    mut listener: impl Listener<Io: Socket>,
    router: Router,
    settings: &HttpSettings,
    pacing: &Pacing,
    tasks: &Tasks,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(settings.max_connections));
    let grace = Duration::from_secs(settings.shutdown_grace_s);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(settings.idle_timeout_s))
        .max_header_size(MAX_HEAD)
        // What is sent in one call. How much of it there is, the pace decides; and by how little is read at once, how large
        // the buffer of what comes grows, which this bounds too.
        .max_buf_size(WHOLE);
    loop {
        let accepted = stop.run_until_cancelled(async {
            // A place is taken before the connection: what can't be served stays in the kernel's queue.
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            (place, listener.accept().await.0)
        });
        let Some((place, io)) = accepted.await else { break };
        let pace = pacing.connection();
        let routes = TowerToHyperService::new(router.clone());
        let (io, known) = (PacedIo::new(io, pace.clone()), pace.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(known.clone());
            routes.call(request)
        });
        let connection = http.serve_connection(io, service);
        let stop = stop.clone();
        tasks.spawn("connection", async move {
            let _place = place;
            let mut connection = Box::pin(connection);
            let mut cut = pin!(pace.cut());
            let ended = tokio::select! {
                ended = connection.as_mut() => Ended::Itself(ended),
                cut = cut.as_mut() => Ended::Cut(cut),
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        ended = connection.as_mut() => Ended::Itself(ended),
                        cut = cut.as_mut() => Ended::Cut(cut),
                        () = sleep(grace) => Ended::OutOfGrace,
                    }
                }
            };
            drop(connection);
            pace.end();
            match ended {
                Ended::Itself(Ok(())) => {}
                Ended::Itself(Err(error)) => tracing::debug!(error = %Chain(&error), "a connection broke"),
                Ended::Cut(why) => tracing::debug!(%why, "a connection was cut off"),
                Ended::OutOfGrace => {
                    tracing::warn!("a connection was cut off: its answer took longer than the grace period");
                }
            }
        });
    }
    drop(listener);
    let everyone = u32::try_from(settings.max_connections).unwrap_or(u32::MAX);
    let _all_ended = places.acquire_many(everyone).await;
}
