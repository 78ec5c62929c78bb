//! Requests that the service itself makes of others, seldom and small: one a connection.
//!
//! Redirects are not followed, and proxies not used: who is asked is who the settings name. What is read is bounded; time is
//! the caller's matter.

use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Who is asked, and what for.
pub struct Endpoint {
    uri: Uri,
    /// Without the brackets that a URL puts around an IPv6 address.
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
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

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// No connection, or none that can be trusted.
    #[error("its host can't be reached")]
    Connect(#[source] io::Error),
    /// No answer in HTTP.
    #[error("its host gave no whole answer")]
    Http(#[from] hyper::Error),
    /// More than is wanted.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

impl Endpoint {
    /// The endpoint at this URL. `authorities` is a PEM file of those whose certificates are trusted; without one those
    /// are that browsers trust, as this program was built.
    ///
    /// # Errors
    /// When it can't be asked, or not be trusted. Nothing is connected to yet.
    pub fn new(url: &str, authorities: Option<&Path>) -> Result<Self, UrlFault> {
        let uri: Uri = url.parse().map_err(|_| UrlFault::Form)?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or(UrlFault::Form)?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16();
        let tls = match uri.scheme_str() {
            Some("https") => {
                let name = ServerName::try_from(host.clone()).map_err(|_| UrlFault::Form)?;
                Some((connector(authorities)?, name))
            }
            Some("http") => None,
            _ => return Err(UrlFault::Form),
        };
        let port = port.unwrap_or(if tls.is_some() { 443 } else { 80 });
        Ok(Self { host, port, tls, uri })
    }

    /// Whether nobody but this machine can read or change what is exchanged.
    pub fn is_private(&self) -> bool {
        self.tls.is_some() || is_loopback(&self.host)
    }

    /// Sends a request to the URL, whatever its own is, and reads up to `most` bytes of an answer that is a success.
    /// Dropping the future ends the connection.
    ///
    /// # Errors
    /// [`ExchangeError`]
    pub async fn exchange(
        &self,
        request: Request<String>,
        most: usize,
    ) -> Result<(StatusCode, Vec<u8>), ExchangeError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(ExchangeError::Connect)?;
        match &self.tls {
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await.map_err(ExchangeError::Connect)?;
                self.send(stream, request, most).await
            }
            None => self.send(stream, request, most).await,
        }
    }

    async fn send(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        mut request: Request<String>,
        most: usize,
    ) -> Result<(StatusCode, Vec<u8>), ExchangeError> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse().expect("it was part of a URL");
        let host = self.uri.authority().map_or("", |authority| authority.as_str());
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_str(host).expect("it was part of a URL"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("headstart/", env!("CARGO_PKG_VERSION"))));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok((status, if status.is_success() { read(response.into_body(), most).await? } else { Vec::new() }))
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

async fn read(mut body: Incoming, most: usize) -> Result<Vec<u8>, ExchangeError> {
    let mut read = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let data: Bytes = frame?.into_data().unwrap_or_default();
        if read.len() + data.len() > most {
            return Err(ExchangeError::TooLong(most));
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
