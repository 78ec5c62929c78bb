//! Stands between the service and a server, and lets a test stall or cut what passes.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What a proxy does with its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything passes.
    Pass,
    /// So many more bytes pass from the server on each connection, then none.
    StallAfter(usize),
    /// Connections that are open get no more answers; new ones do. As when the host they led to has vanished.
    Forget,
    /// Every connection is closed, and new ones too.
    Cut,
}

/// A TCP proxy on a port of its own. Ends with the test's runtime.
pub struct Proxy {
    pub port: u16,
    mode: Arc<watch::Sender<Mode>>,
}

impl Proxy {
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let mode = Arc::new(watch::Sender::new(Mode::Pass));
        let modes = mode.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, target.clone(), modes.subscribe()));
            }
        });
        Self { port, mode }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn connection(client: TcpStream, target: String, mut mode: watch::Receiver<Mode>) {
    if *mode.borrow() == Mode::Cut {
        return;
    }
    let forgotten = *mode.borrow() != Mode::Forget;
    let Ok(server) = TcpStream::connect(target).await else { return };
    let (mut client_in, mut client_out) = client.into_split();
    let (mut server_in, mut server_out) = server.into_split();
    let up = async { drop(tokio::io::copy(&mut client_in, &mut server_out).await) };
    let mut modes = mode.clone();
    let down = async {
        let mut passed = 0;
        let mut buffer = vec![0; 16 << 10];
        loop {
            // First: what comes after the mode has changed must not pass since it was waited for before.
            let read = server_in.read(&mut buffer).await;
            let stalls = |mode: &Mode| match mode {
                Mode::StallAfter(bytes) => passed >= *bytes,
                Mode::Forget => forgotten,
                Mode::Pass | Mode::Cut => false,
            };
            if mode.wait_for(|mode| !stalls(mode)).await.is_err() {
                return;
            }
            let Ok(count @ 1..) = read else { return };
            passed += count;
            if client_out.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
        _ = modes.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}
