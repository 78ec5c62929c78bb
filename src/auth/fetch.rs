//! Fetching a key set: one GET of one URL, on a connection of its own, a few hundred times a day.
//!
//! Whoever answers decides who is let in, so the answer must come from the named host: https, with a certificate that
//! an authority vouches for; plain http only from this machine. Redirects are not followed: they would let the URL's
//! host hand that decision on. What is read is bounded, and so is the time.

use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::auth::jwk::{self, SetError};
use crate::auth::key::Key;

/// The most that is read of an answer, in bytes. Sets have a few KiB, with certificate chains some more.
const MAX_BYTES: usize = 256 << 10;

/// Where a key set is published.
pub(super) struct Endpoint {
    uri: Uri,
    /// Without the brackets that a URL puts around an IPv6 address.
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    limit: Duration,
}

/// What is wrong with a URL, or with the authorities it is to be trusted by. Never shows the URL's query.
#[derive(Debug, thiserror::Error)]
pub enum UrlFault {
    /// Not a URL that can be asked.
    #[error("it is no URL of the form https://host/path")]
    Form,
    /// Anyone on the way could answer.
    #[error("plain http is taken from this machine only: whoever answers decides who is let in. Use https")]
    Plain,
    /// The file of authorities can't be used.
    #[error("the certificates in {} can't be used", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why there is no key set.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection, or none that can be trusted.
    #[error("its host can't be reached")]
    Connect(#[source] io::Error),
    /// No answer in HTTP.
    #[error("its host gave no whole answer")]
    Http(#[from] hyper::Error),
    /// Another status than 200.
    #[error("its host answered {0}, which is not 200")]
    Status(StatusCode),
    /// More than a key set takes.
    #[error("the answer is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// Something else.
    #[error("the answer is of no use")]
    Set(#[from] SetError),
    /// Not in time.
    #[error("there was no answer within {0:?}")]
    Late(Duration),
}

impl Endpoint {
    /// The endpoint at this URL. `authorities` is a PEM file of those whose certificates are trusted; without one those
    /// are that browsers trust, as this program was built. `limit` is how long an answer may take.
    ///
    /// # Errors
    /// When it can't be asked, or not be trusted. Nothing is connected to yet.
    pub(super) fn new(url: &str, authorities: Option<&Path>, limit: Duration) -> Result<Self, UrlFault> {
        let uri: Uri = url.parse().map_err(|_| UrlFault::Form)?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or(UrlFault::Form)?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16();
        let tls = match uri.scheme_str() {
            Some("https") => {
                let name = ServerName::try_from(host.clone()).map_err(|_| UrlFault::Form)?;
                Some((connector(authorities)?, name))
            }
            Some("http") if is_loopback(&host) => None,
            Some("http") => return Err(UrlFault::Plain),
            _ => return Err(UrlFault::Form),
        };
        let port = port.unwrap_or(if tls.is_some() { 443 } else { 80 });
        Ok(Self { host, port, tls, uri, limit })
    }

    /// The keys that are published now, and how many others the set holds. Dropping the future ends the connection.
    ///
    /// # Errors
    /// [`FetchError`]
    pub(super) async fn key_set(&self) -> Result<(Vec<Key>, usize), FetchError> {
        let document = timeout(self.limit, self.document()).await;
        Ok(jwk::keys(&document.unwrap_or(Err(FetchError::Late(self.limit)))?)?)
    }

    async fn document(&self) -> Result<Vec<u8>, FetchError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(FetchError::Connect)?;
        match &self.tls {
            Some((connector, name)) => {
                self.get(connector.connect(name.clone(), stream).await.map_err(FetchError::Connect)?).await
            }
            None => self.get(stream).await,
        }
    }

    async fn get(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<Vec<u8>, FetchError> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path)
            .header(HOST, self.uri.authority().map_or("", |authority| authority.as_str()))
            .header(ACCEPT, "application/jwk-set+json, application/json")
            .header(USER_AGENT, concat!("headstart/", env!("CARGO_PKG_VERSION")))
            .header(CONNECTION, "close")
            .body(String::new())
            .expect("all of it was part of a URL, or is written here");
        let answer = async {
            let response = sender.send_request(request).await?;
            if response.status() != StatusCode::OK {
                return Err(FetchError::Status(response.status()));
            }
            read(response.into_body()).await
        };
        // The answer moves only while its connection is polled. How that ends is seen by the answer too.
        let driven = async {
            let _ = connection.await;
            std::future::pending().await
        };
        tokio::select! {
            answer = answer => answer,
            never = driven => never,
        }
    }
}

async fn read(mut body: Incoming) -> Result<Vec<u8>, FetchError> {
    let mut read = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let data: Bytes = frame?.into_data().unwrap_or_default();
        if read.len() + data.len() > MAX_BYTES {
            return Err(FetchError::TooLong);
        }
        read.extend_from_slice(&data);
    }
    Ok(read)
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

fn connector(authorities: Option<&Path>) -> Result<TlsConnector, UrlFault> {
    let mut roots = RootCertStore::empty();
    match authorities {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let fault = |cause| UrlFault::Authorities { path: path.into(), cause };
            let listed = CertificateDer::pem_file_iter(path).map_err(|error| fault(error.into()))?;
            for certificate in listed {
                roots.add(certificate.map_err(|error| fault(error.into()))?).map_err(|error| fault(error.into()))?;
            }
            if roots.is_empty() {
                return Err(fault("it holds none".into()));
            }
        }
    }
    // Named, because another crate's choice of a process-wide provider must not decide this.
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str, authorities: Option<&Path>) -> Result<Endpoint, UrlFault> {
        Endpoint::new(url, authorities, Duration::from_secs(1))
    }

    #[test]
    fn only_urls_that_can_be_trusted_are_taken() {
        for good in [
            "https://login.example/.well-known/jwks.json?tenant=7",
            "https://[2001:db8::1]:8443/",
            "http://127.0.0.1:3000/jwks",
            "http://[::1]/jwks",
            "http://localhost/jwks",
        ] {
            assert!(endpoint(good, None).is_ok(), "{good}");
        }
        for bad in
            ["", "login.example", "/jwks", "ftp://login.example/", "https://", "https://user:word@login.example/"]
        {
            assert!(matches!(endpoint(bad, None), Err(UrlFault::Form)), "{bad}");
        }
        for plain in ["http://login.example/jwks", "http://10.0.0.1/jwks", "http://localhost.example/"] {
            assert!(matches!(endpoint(plain, None), Err(UrlFault::Plain)), "{plain}");
        }
    }

    #[test]
    fn authorities_must_be_certificates() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        for path in [empty.path(), Path::new("/no/such/file")] {
            let fault = endpoint("https://login.example/", Some(path)).err().expect("a fault");
            assert!(matches!(fault, UrlFault::Authorities { .. }), "{fault}");
        }
    }
}
