//! An issuer of tokens that publishes its keys by https, well or badly.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::authority::Issued;

/// What the issuer answers with.
#[derive(Clone)]
pub enum Answer {
    /// These bytes, as they are.
    Raw(Vec<u8>),
    /// Nothing, for ever.
    Silence,
}

/// An issuer on a port of loopback. Ends with the test's runtime.
pub struct Issuer {
    pub url: String,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    /// Silent at first.
    pub async fn start(issued: &Issued) -> Self {
        let certificate = CertificateDer::from_pem_file(&issued.certificate).expect("the certificate");
        let key = PrivateKeyDer::from_pem_file(&issued.key).expect("its key");
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a certificate with its key");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("https://127.0.0.1:{}/keys", listener.local_addr().expect("its address").port());
        let (answer, asked) = (Arc::new(Mutex::new(Answer::Silence)), Arc::new(AtomicUsize::new(0)));
        let (answers, counted) = (answer.clone(), asked.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(acceptor.clone(), stream, answers.clone(), counted.clone()));
            }
        });
        Self { url, answer, asked }
    }

    pub fn set(&self, answer: Answer) {
        *self.answer.lock().expect("nobody panicked") = answer;
    }

    /// Answers with this status and body.
    pub fn say(&self, status: &str, body: &[u8]) {
        let head = format!("HTTP/1.1 {status}\r\nlocation: {}\r\ncontent-length: {}\r\n\r\n", self.url, body.len());
        self.set(Answer::Raw([head.as_bytes(), body].concat()));
    }

    /// Answers with the public sides of these keys, by these names.
    pub fn publish(&self, keys: &[(&str, &Signer)]) {
        let entries: Vec<Value> = keys.iter().map(|(kid, signer)| signer.public(kid)).collect();
        self.say("200 OK", json!({"keys": entries}).to_string().as_bytes());
    }

    /// How many requests came.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, answer: Arc<Mutex<Answer>>, asked: Arc<AtomicUsize>) {
    // Whoever does not trust the certificate ends here.
    let Ok(mut stream) = acceptor.accept(stream).await else { return };
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    assert!(head.starts_with(b"GET /keys HTTP/1.1\r\n"), "{}", String::from_utf8_lossy(&head));
    asked.fetch_add(1, Ordering::SeqCst);
    let answer = answer.lock().expect("nobody panicked").clone();
    match answer {
        Answer::Raw(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
        Answer::Silence => std::future::pending().await,
    }
}

/// A private key with its algorithm.
pub struct Signer(pub Algorithm, pub EncodingKey);

impl Signer {
    /// The keys of `tests/keys`: RSA, P-256, Ed25519.
    pub fn trusted() -> [Self; 3] {
        Self::read(
            include_str!("../../keys/rsa.pem"),
            include_str!("../../keys/ec.pem"),
            include_str!("../../keys/ed.pem"),
        )
    }

    /// Others of the same kinds.
    pub fn others() -> [Self; 3] {
        Self::read(
            include_str!("../../keys/other-rsa.pem"),
            include_str!("../../keys/other-ec.pem"),
            include_str!("../../keys/other-ed.pem"),
        )
    }

    fn read(rsa: &str, ec: &str, ed: &str) -> [Self; 3] {
        [
            Self(Algorithm::RS256, EncodingKey::from_rsa_pem(rsa.as_bytes()).expect("RSA")),
            Self(Algorithm::ES256, EncodingKey::from_ec_pem(ec.as_bytes()).expect("P-256")),
            Self(Algorithm::EdDSA, EncodingKey::from_ed_pem(ed.as_bytes()).expect("Ed25519")),
        ]
    }

    fn public(&self, kid: &str) -> Value {
        let jwk = Jwk::from_encoding_key(&self.1, self.0).expect("a public side");
        let mut entry = serde_json::to_value(jwk).expect("an entry");
        entry["kid"] = kid.into();
        entry
    }

    /// A token that says this key signed it.
    pub fn sign(&self, kid: Option<&str>, claims: &Value) -> String {
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(self.0) };
        jsonwebtoken::encode(&header, claims, &self.1).expect("a token")
    }
}
