//! A client that reads as little as a test wants: plain HTTP/1.1 on a socket with small buffers.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::server::Server;

/// What the kernel keeps for a client that does not read.
const RECEIVE_BUFFER: u32 = 16 << 10;

/// A request that was sent, and what was read of its answer.
pub struct Socket {
    stream: TcpStream,
    /// What was read so far, the head included.
    pub read: Vec<u8>,
}

impl Socket {
    /// Sends a GET.
    pub async fn get(server: &Server, path: &str, token: &str, encoding: &str) -> Self {
        let address: SocketAddr = server.base.trim_start_matches("http://").parse().expect("an address");
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(RECEIVE_BUFFER).expect("a small buffer");
        let mut stream = socket.connect(address).await.expect("connect");
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {token}\r\naccept-encoding: {encoding}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("send the request");
        Self { stream, read: Vec::new() }
    }

    /// Reads until there are `len` bytes, or less at the answer's end; `false` when the connection broke or ended before.
    pub async fn read_to(&mut self, len: usize) -> bool {
        let mut buffer = vec![0; 16 << 10];
        while self.read.len() < len {
            match self.stream.read(&mut buffer).await {
                Ok(count @ 1..) => self.read.extend_from_slice(&buffer[..count]),
                Ok(0) | Err(_) => return false,
            }
        }
        true
    }

    /// Takes at most `most` bytes, whatever is there; `false` when the connection broke or ended.
    pub async fn sip(&mut self, most: usize) -> bool {
        let mut buffer = vec![0; most];
        let Ok(count @ 1..) = self.stream.read(&mut buffer).await else { return false };
        self.read.extend_from_slice(&buffer[..count]);
        true
    }

    /// The status of the answer; its head must have been read.
    pub fn status(&self) -> u16 {
        let head = String::from_utf8_lossy(&self.read[..self.read.len().min(64)]).into_owned();
        head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status in {head}"))
    }

    /// How long the whole answer is by its `content-length`, the head included.
    pub fn announced(&self) -> usize {
        let end = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a whole head") + 4;
        let head = String::from_utf8_lossy(&self.read[..end]).to_lowercase();
        let len = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        end + len.trim().parse::<usize>().expect("a number")
    }
}
