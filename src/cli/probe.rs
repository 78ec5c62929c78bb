//! `headstart probe`: whether the service of these settings is well, for health checks where there is no other client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::auth::Secret;
use crate::cli::CliError;
use crate::config::Config;

/// How long the service may take to answer.
const WITHIN: Duration = Duration::from_secs(5);

/// The most that is read of an answer. The readiness of all parts is far shorter.
const MOST: u64 = 64 * 1024;

/// Arguments of `headstart probe`.
#[derive(Args)]
pub struct ProbeArgs {
    /// Ask whether the process lives, not whether clients can be served
    #[arg(long)]
    live: bool,
}

/// Asks the admin listener of a service with the same settings on this machine.
///
/// # Errors
/// When it does not answer, or answers that it is not well; with its words.
pub async fn run(args: &ProbeArgs, config: &Config) -> Result<(), CliError> {
    let (address, path) = (reachable(config.admin.listen), if args.live { "/livez" } else { "/readyz" });
    let nothing = |why: String| CliError::Nothing(format!("http://{address}{path}: {why}"));
    let answer = timeout(WITHIN, ask(address, path, config.admin.token.as_ref())).await;
    let answer = answer.map_err(|_| nothing(format!("no answer within {WITHIN:?}")))?;
    let answer = answer.map_err(|error| nothing(error.to_string()))?;
    // Only 200 is well (RFC 9112, section 4, has the form of the line).
    if answer.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(nothing(answer)) }
}

/// One request on a connection of its own. With the operators' token the answer tells which part is not well.
async fn ask(address: SocketAddr, path: &str, token: Option<&Secret>) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(address).await?;
    let mut request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n").into_bytes();
    if let Some(token) = token {
        request.extend_from_slice(&[b"authorization: Bearer ", token.expose(), b"\r\n"].concat());
    }
    request.extend_from_slice(b"\r\n");
    connection.write_all(&request).await?;
    let mut answer = Vec::new();
    connection.take(MOST).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Where a listener on all addresses is reached from the same machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
