//! Where the database is and how far its certificate is trusted.
//!
//! tokio-postgres reads connection strings but knows `sslmode` only up to `require` and no CA file. So `sslmode` and
//! `sslrootcert` are taken off the string here and given libpq's meaning (PostgreSQL docs, "SSL Support", table
//! "SSL Mode Descriptions"): `prefer` and `require` encrypt without looking at the certificate, `require` with a CA
//! file is `verify-ca`, `verify-full` checks the host name too. `allow` is refused: it protects from nothing.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::source::BoxError;

/// After how long a server that went away without a word, or the network to it, counts as gone: a connection that waits
/// for its answer breaks then, and its place is free again.
const UNANSWERED: Duration = Duration::from_secs(30);

/// A database to connect to: the driver's settings and the TLS they ask for.
#[derive(Clone)]
pub struct Target {
    /// Host, port, database, user, password.
    pub config: Config,
    /// Makes the TLS side of a connection; unused with `sslmode=disable`.
    pub tls: MakeRustlsConnect,
}

/// What is wrong with a connection string. Never shows the string: it may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// Not a connection string.
    #[error("not a PostgreSQL URL (postgres://user@host:5432/database) nor a list of key=value settings")]
    Syntax(#[source] Option<tokio_postgres::Error>),
    /// A mode that does not exist or is not supported.
    #[error("sslmode `{0}` is not one of disable, prefer, require, verify-ca, verify-full")]
    Mode(String),
    /// Verification was asked for, and nothing to verify by.
    #[error("sslmode {0} needs sslrootcert=<file>, the certificates of the authorities to trust, as PEM")]
    NoAuthority(&'static str),
    /// The CA file can't be used.
    #[error("the certificates in {path:?} can't be used")]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: BoxError,
    },
}

impl Target {
    /// Reads a URL or a keyword string, and the CA file it names.
    ///
    /// # Errors
    /// What is wrong with it. Nothing is connected to yet.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let is_url = text.starts_with("postgres://") || text.starts_with("postgresql://");
        let (rest, options) = if is_url { split_url(text) } else { split_keywords(text)? };
        let mut config: Config = rest.parse().map_err(|error| UrlError::Syntax(Some(error)))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(UrlError::Syntax(None));
        }
        let authority = options.authority.filter(|path| !path.is_empty()).map(PathBuf::from);
        let (mode, trust) = match (options.mode.as_deref().unwrap_or("prefer"), authority) {
            ("disable", _) => (SslMode::Disable, Trust::Anyone),
            ("prefer", _) => (SslMode::Prefer, Trust::Anyone),
            ("require", None) => (SslMode::Require, Trust::Anyone),
            ("require" | "verify-ca", Some(path)) => (SslMode::Require, Trust::authorities(path, false)?),
            ("verify-full", Some(path)) => (SslMode::Require, Trust::authorities(path, true)?),
            ("verify-ca", None) => return Err(UrlError::NoAuthority("verify-ca")),
            ("verify-full", None) => return Err(UrlError::NoAuthority("verify-full")),
            (other, _) => return Err(UrlError::Mode(other.to_owned())),
        };
        // libpq ignores sslmode on Unix sockets, where the server has no TLS to offer.
        let local =
            config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_))) && !config.get_hosts().is_empty();
        config.ssl_mode(if local { SslMode::Disable } else { mode });
        // Whoever sets that knows better, also when an idle connection is to be asked for signs of life.
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(UNANSWERED).keepalives_idle(UNANSWERED / 2).keepalives_interval(UNANSWERED / 6);
        }
        Ok(Self { config, tls: MakeRustlsConnect::new(client_config(trust)) })
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Config's own output hides the password.
        self.config.fmt(f)
    }
}

/// What the driver does not understand.
#[derive(Default)]
struct TlsOptions {
    mode: Option<String>,
    authority: Option<String>,
}

impl TlsOptions {
    /// Keeps an option of ours; `false`: it is the driver's.
    fn take(&mut self, key: &str, value: &str) -> bool {
        match key {
            "sslmode" => self.mode = Some(value.to_owned()),
            "sslrootcert" => self.authority = Some(value.to_owned()),
            _ => return false,
        }
        true
    }
}

fn split_url(text: &str) -> (String, TlsOptions) {
    let mut options = TlsOptions::default();
    // As the driver reads it: the first `@` ends the credentials, which may hold a `?`.
    let host = text.find('@').map_or(0, |at| at + 1);
    let Some(mark) = text[host..].find('?') else { return (text.to_owned(), options) };
    let (base, query) = (&text[..host + mark], &text[host + mark + 1..]);
    let kept: Vec<&str> = query
        .split('&')
        .filter(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            !pair.is_empty() && !options.take(key, &percent_decode_str(value).decode_utf8_lossy())
        })
        .collect();
    let rest = if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) };
    (rest, options)
}

/// `key = value` pairs; values may stand in single quotes, a backslash takes the next character as it is (PostgreSQL
/// docs, "Connection Strings").
fn split_keywords(text: &str) -> Result<(String, TlsOptions), UrlError> {
    let (mut rest, mut options) = (String::new(), TlsOptions::default());
    let mut left = text.trim();
    while !left.is_empty() {
        let (key, after) = left.split_once('=').ok_or(UrlError::Syntax(None))?;
        let after = after.trim_start();
        let quoted = after.starts_with('\'');
        let (mut value, mut end, mut escaped) = (String::new(), None, false);
        for (at, letter) in after.char_indices().skip(usize::from(quoted)) {
            if escaped {
                value.push(letter);
                escaped = false;
            } else if letter == '\\' {
                escaped = true;
            } else if (quoted && letter == '\'') || (!quoted && letter.is_whitespace()) {
                end = Some(at + letter.len_utf8());
                break;
            } else {
                value.push(letter);
            }
        }
        if escaped || (quoted && end.is_none()) {
            return Err(UrlError::Syntax(None));
        }
        if !options.take(key.trim(), &value) {
            rest.push_str(&format!("{}='{}' ", key.trim(), value.replace('\\', "\\\\").replace('\'', "\\'")));
        }
        left = after[end.unwrap_or(after.len())..].trim_start();
    }
    Ok((rest, options))
}

/// Whose certificates are taken.
#[derive(Debug)]
enum Trust {
    /// Anyone's: encryption against listeners, not against impostors.
    Anyone,
    /// Those the authorities vouch for, or that are in the file themselves.
    Authorities { chain: Arc<WebPkiServerVerifier>, listed: Vec<CertificateDer<'static>>, check_name: bool },
}

impl Trust {
    fn authorities(path: PathBuf, check_name: bool) -> Result<Self, UrlError> {
        let load = || -> Result<Self, BoxError> {
            let listed = CertificateDer::pem_file_iter(&path)?.collect::<Result<Vec<_>, _>>()?;
            let mut roots = RootCertStore::empty();
            for certificate in &listed {
                roots.add(certificate.clone())?;
            }
            // Refuses a file without certificates.
            let chain = WebPkiServerVerifier::builder_with_provider(roots.into(), provider()).build()?;
            Ok(Self::Authorities { chain, listed, check_name })
        };
        load().map_err(|cause| UrlError::Authority { path, cause })
    }
}

fn provider() -> Arc<CryptoProvider> {
    // Named, because another crate's choice of a process-wide provider must not decide this.
    Arc::new(aws_lc_rs::default_provider())
}

fn client_config(trust: Trust) -> ClientConfig {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { trust, provider: provider() }))
        .with_no_client_auth()
}

/// Applies [`Trust`] to a certificate; the signatures of the handshake are always checked.
#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Trust::Authorities { chain, listed, check_name } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        if listed.contains(certificate) {
            // A self-signed server certificate that is its own authority, as `openssl req -x509` makes them: webpki
            // refuses those in a chain, OpenSSL (and so libpq) does not.
            if *check_name {
                rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        let other_name = |error: &rustls::Error| {
            use CertificateError::{NotValidForName, NotValidForNameContext};
            matches!(error, rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }))
        };
        match chain.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The name is checked last, so everything else was found to be right.
            Err(error) if !check_name && other_name(&error) => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_options_are_taken_off_a_url() {
        let (rest, options) =
            split_url("postgres://u:p?w@h/db?sslmode=verify-full&connect_timeout=3&sslrootcert=%2Fa%20b.pem");
        assert_eq!(rest, "postgres://u:p?w@h/db?connect_timeout=3");
        assert_eq!((options.mode.as_deref(), options.authority.as_deref()), (Some("verify-full"), Some("/a b.pem")));
        assert_eq!(split_url("postgres://h/db?sslmode=disable").0, "postgres://h/db");
    }

    #[test]
    fn tls_options_are_taken_off_keywords() {
        let (rest, options) = split_keywords(r"host=h sslmode = require password='it\'s \\' dbname=d").unwrap();
        assert_eq!(rest, r"host='h' password='it\'s \\' dbname='d' ");
        assert_eq!(options.mode.as_deref(), Some("require"));
        assert!(split_keywords("host='h").is_err());
    }

    #[test]
    fn modes_that_promise_too_much_are_refused() {
        assert!(matches!(Target::parse("postgres://h/d?sslmode=allow"), Err(UrlError::Mode(_))));
        assert!(matches!(Target::parse("postgres://h/d?sslmode=verify-full"), Err(UrlError::NoAuthority(_))));
        let missing = Target::parse("postgres://h/d?sslmode=verify-ca&sslrootcert=/no/such/file");
        assert!(matches!(missing, Err(UrlError::Authority { .. })));
        assert!(matches!(Target::parse("http://h/d"), Err(UrlError::Syntax(_))));
    }

    #[test]
    fn unix_sockets_never_ask_for_tls() {
        let target = Target::parse("postgres://u@%2Fvar%2Frun/db?sslmode=require").unwrap();
        assert_eq!(target.config.get_ssl_mode(), SslMode::Disable);
        assert_eq!(Target::parse("host=h").unwrap().config.get_ssl_mode(), SslMode::Prefer);
    }
}
