//! A pooler in transaction mode, as small as can be: clients share sessions, one transaction at a time. It speaks the
//! simple query protocol only, which is what survives such poolers.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// Which free session a client is given.
#[derive(Clone, Copy)]
pub enum Choice {
    /// The one that was given back last.
    Warmest,
    /// The one that has been free for longest.
    InTurn,
}

/// Listens on loopback until the test ends.
pub struct Pooler {
    config: Config,
}

type Sessions = Arc<Mutex<Vec<TcpStream>>>;

impl Pooler {
    /// Opens so many sessions on a server and shares them. There must be as many as clients hold transactions at once.
    pub async fn start(server: &Config, sessions: usize, choice: Choice) -> Self {
        let mut open = Vec::new();
        for _ in 0..sessions {
            open.push(session(server).await);
        }
        let sessions = Arc::new(Mutex::new(open));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, Arc::clone(&sessions), choice));
            }
        });
        let mut config = Config::new();
        config
            .host("127.0.0.1")
            .port(address.port())
            .user("postgres")
            .ssl_mode(tokio_postgres::config::SslMode::Disable);
        Self { config }
    }

    /// How to connect through it.
    pub fn config(&self) -> Config {
        self.config.clone()
    }
}

async fn session(server: &Config) -> TcpStream {
    let Host::Tcp(host) = &server.get_hosts()[0] else { panic!("a server on loopback") };
    let mut stream = TcpStream::connect((host.as_str(), server.get_ports()[0])).await.expect("connect");
    let user = server.get_user().unwrap_or("postgres");
    let startup = format!("user\0{user}\0database\0{}\0\0", server.get_dbname().unwrap_or("postgres"));
    let mut message = u32::try_from(startup.len() + 8).expect("short").to_be_bytes().to_vec();
    message.extend(196_608_u32.to_be_bytes());
    message.extend(startup.as_bytes());
    stream.write_all(&message).await.expect("send");
    while read(&mut stream).await.expect("the server answers").0 != b'Z' {}
    stream
}

async fn serve(mut client: TcpStream, sessions: Sessions, choice: Choice) -> std::io::Result<()> {
    let length = client.read_u32().await?;
    let mut startup = vec![0; length as usize - 4];
    client.read_exact(&mut startup).await?;
    // Authenticated, a key that is nobody's, ready.
    client.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, 0, b'K', 0, 0, 0, 12, 0, 0, 0, 7, 0, 0, 0, 7]).await?;
    client.write_all(&[b'Z', 0, 0, 0, 5, b'I']).await?;
    let mut held: Option<TcpStream> = None;
    loop {
        let (kind, query) = read(&mut client).await?;
        if kind == b'X' {
            return Ok(());
        }
        assert_eq!(kind, b'Q', "only simple queries come this way");
        let mut session = match held.take() {
            Some(session) => session,
            None => {
                let mut free = sessions.lock().await;
                let place = if let Choice::Warmest = choice { free.len() - 1 } else { 0 };
                free.remove(place)
            }
        };
        session.write_all(&query).await?;
        loop {
            let (kind, answer) = read(&mut session).await?;
            if kind == b'Z' {
                // Given back before the client can know, as poolers do.
                if answer.last() == Some(&b'I') {
                    sessions.lock().await.push(session);
                } else {
                    held = Some(session);
                }
                client.write_all(&answer).await?;
                break;
            }
            client.write_all(&answer).await?;
        }
    }
}

/// One message, whole.
async fn read(stream: &mut TcpStream) -> std::io::Result<(u8, Vec<u8>)> {
    let kind = stream.read_u8().await?;
    let length = stream.read_u32().await?;
    let mut message = vec![kind];
    message.extend(length.to_be_bytes());
    message.resize(1 + length as usize, 0);
    stream.read_exact(&mut message[5..]).await?;
    Ok((kind, message))
}
