//! A PostgreSQL server of a test's own, for what can't be done to the shared one: to crash it, to start it again, to
//! follow it with a standby and promote that.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tokio_postgres::{Client, Config, NoTls};

use super::authority::Issued;
use super::required;

/// A server in a directory of its own, on a free port of loopback. Stopped, and its files removed, when it is dropped.
pub struct Cluster {
    home: TempDir,
    port: u16,
}

impl Cluster {
    /// Makes and starts one. `settings` are lines of `postgresql.conf`.
    pub fn start(settings: &str) -> Self {
        let cluster = Self::new();
        let data = cluster.data();
        cluster.run("initdb", &["-D", &data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"]);
        cluster.configure(&format!(
            "fsync = off\nmax_prepared_transactions = 10\nautovacuum = off\nwal_level = replica\n{settings}"
        ));
        cluster.start_again();
        cluster
    }

    /// A standby that follows this server.
    pub fn standby(&self) -> Self {
        let standby = Self::new();
        let from = format!("host=127.0.0.1 port={} user=postgres", self.port);
        standby.run("pg_basebackup", &["-D", &standby.data(), "-d", &from, "-R", "-X", "stream", "-c", "fast"]);
        standby.configure("");
        standby.start_again();
        standby
    }

    fn new() -> Self {
        let home = tempfile::Builder::new().prefix("headstart-cluster-").tempdir().expect("make a directory");
        if is_root() {
            let done = Command::new("chown").arg("postgres").arg(home.path()).status().expect("run chown");
            assert!(done.success(), "give the directory to the user postgres");
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        Self { home, port: port.expect("find a free port").port() }
    }

    fn data(&self) -> String {
        self.home.path().join("data").display().to_string()
    }

    fn configure(&self, settings: &str) {
        let lines =
            format!("{settings}\nlisten_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = ''\n", self.port);
        let path = Path::new(&self.data()).join("postgresql.auto.conf");
        let there = std::fs::read_to_string(&path).expect("read the settings");
        std::fs::write(&path, there + &lines).expect("write the settings");
    }

    /// Starts it after a stop; recovers from its WAL if that was a crash.
    pub fn start_again(&self) {
        let log = self.home.path().join("server.log").display().to_string();
        self.run("pg_ctl", &["-D", &self.data(), "-w", "-t", "120", "-l", &log, "start"]);
    }

    /// Stops it at once, as a crash would: nothing more is written.
    pub fn crash(&self) {
        self.run("pg_ctl", &["-D", &self.data(), "-w", "-m", "immediate", "stop"]);
    }

    /// From now on it takes connections by TLS only, with this certificate. It is stopped and started.
    pub fn encrypt(&self, issued: &Issued) {
        self.crash();
        let data = PathBuf::from(self.data());
        // The names that it looks for by default.
        for (from, name) in [(&issued.certificate, "server.crt"), (&issued.key, "server.key")] {
            let to = data.join(name);
            std::fs::copy(from, &to).expect("copy a file");
            std::fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("close it");
            if is_root() {
                let done = Command::new("chown").arg("postgres").arg(&to).status().expect("run chown");
                assert!(done.success(), "give the file to the user postgres");
            }
        }
        std::fs::write(data.join("pg_hba.conf"), "hostssl all all 127.0.0.1/32 trust\n")
            .expect("write who may connect");
        self.configure("ssl = on");
        self.start_again();
    }

    /// Makes a standby the primary of a new timeline.
    pub fn promote(&self) {
        self.run("pg_ctl", &["-D", &self.data(), "-w", "-t", "120", "promote"]);
    }

    /// Sends a signal to one of its processes.
    pub fn signal(&self, signal: &str, pid: i32) {
        let done = Command::new("kill").args([signal, &pid.to_string()]).status().expect("run kill");
        assert!(done.success(), "kill {signal} {pid}");
    }

    /// How to connect as its superuser.
    pub fn config(&self) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").dbname("postgres");
        config
    }

    /// A new connection, driven by a task of its own.
    pub async fn connect(&self) -> Client {
        connect(&self.config()).await
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let program = PathBuf::from(required("HEADSTART_TEST_POSTGRES_BIN")).join(program);
        let mut command = if is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        // Files, not pipes: the server inherits them and keeps them open.
        let output = self.home.path().join("output");
        let file = || std::fs::OpenOptions::new().create(true).append(true).open(&output).expect("open the output");
        command.args(arguments).current_dir("/").stdout(file()).stderr(file());
        let done = command.status().unwrap_or_else(|error| panic!("run {}: {error}", program.display()));
        if !done.success() {
            let said = std::fs::read_to_string(&output).unwrap_or_default();
            let log = std::fs::read_to_string(self.home.path().join("server.log")).unwrap_or_default();
            panic!("{} {arguments:?}: {done}\n{said}\n{log}", program.display());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The first line of this file is the server's pid; there is none when it was stopped.
        let Ok(file) = std::fs::read_to_string(Path::new(&self.data()).join("postmaster.pid")) else { return };
        if let Some(pid) = file.lines().next() {
            let _ = Command::new("kill").args(["-QUIT", pid]).status();
            // Its files go once it has let go of them.
            while Path::new("/proc").join(pid).exists() {
                std::thread::yield_now();
            }
        }
    }
}

/// Connects, and drives the connection by a task of its own.
pub async fn connect(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.expect("connect to PostgreSQL");
    tokio::spawn(connection);
    client
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}
