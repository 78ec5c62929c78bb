//! A throw-away certificate authority, made by `openssl`.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// An authority with its files, which go with it.
pub struct Authority(TempDir);

/// A server's certificate, its private key and who issued it, each a PEM file of the authority's folder.
pub struct Issued {
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let authority = Self(tempfile::Builder::new().prefix("headstart-authority-").tempdir().expect("a folder"));
        let extensions = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"];
        // A name of its own, so that it is not taken for another one with a bad signature.
        let name = authority.0.path().display().to_string();
        authority.request("authority", &name.replace('/', " "), &extensions);
        authority
    }

    /// Its own certificate, for whoever is to trust it.
    pub fn certificate(&self) -> PathBuf {
        self.0.path().join("authority.pem")
    }

    /// A certificate for a server by this alternative name: `IP:127.0.0.1`, `DNS:localhost`.
    pub fn issue(&self, name: &str) -> Issued {
        let file = name.replace([':', '.'], "-");
        let (own, key) = (self.certificate().display().to_string(), self.key("authority").display().to_string());
        let names = format!("subjectAltName={name}");
        let extensions =
            ["-addext", &names, "-addext", "basicConstraints=critical,CA:FALSE", "-CA", &own, "-CAkey", &key];
        let certificate = self.request(&file, "a throw-away server", &extensions);
        Issued { authority: self.certificate(), certificate, key: self.key(&file) }
    }

    /// Makes a key and its certificate.
    fn request(&self, file: &str, subject: &str, more: &[&str]) -> PathBuf {
        let certificate = self.0.path().join(file).with_extension("pem");
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
        command.args(["-subj", &format!("/CN={subject}"), "-out"]).arg(&certificate);
        command.arg("-keyout").arg(self.key(file)).args(more);
        let made = command.output().expect("run openssl");
        assert!(made.status.success(), "{command:?}: {}", String::from_utf8_lossy(&made.stderr));
        certificate
    }

    fn key(&self, file: &str) -> PathBuf {
        self.0.path().join(file).with_extension("key")
    }
}

impl Issued {
    /// Both in one file, as MongoDB reads them.
    pub fn together(&self) -> PathBuf {
        let path = self.key.with_extension("both");
        let read = |path: &Path| std::fs::read_to_string(path).expect("read what openssl wrote");
        std::fs::write(&path, read(&self.key) + &read(&self.certificate)).expect("write both");
        path
    }
}
