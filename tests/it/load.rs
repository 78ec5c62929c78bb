//! The load tests: a second of each script against the real service, and that they fail when answers are not whole.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::postgres::Database;
use crate::support::server::{SECRET, Setup};

/// All of them.
const SCRIPTS: [&str; 6] = ["bootstrap.js", "stampede.js", "batch.js", "delta.js", "mixed.js", "soak.js"];

/// Runs a script against a service, with two clients, a second for each of its parts.
pub fn k6(script: &str, url: &str, secret: &str) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = Command::new(root.join("deploy/dev/k6.sh")).arg("bin").output().expect("run k6.sh");
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    let program = String::from_utf8(found.stdout).expect("a path");
    let small = [("SCALE", "small"), ("USERS", "2"), ("DURATION_S", "1"), ("MINUTE", "10")];
    let mut command = Command::new(program.trim_end());
    // A debug build beside other tests is no measure of time.
    command.envs(small).env("URL", url).env("SECRET", secret);
    command.env("FIRST_BYTE_MS", "60000").env("K6_NO_USAGE_REPORT", "true");
    command.args(["run", "--quiet"]).arg(root.join("loadtests").join(script)).output().expect("run k6")
}

/// What k6 said.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_script_runs_and_finds_every_answer_complete() {
    let database = Database::create().await;
    let setup = Setup::new(&database.url(), include_str!("../../config/catalog.toml"));
    setup.must(&["seed", "--scale", "small"]);
    setup.must(&["migrate", "--apply"]);
    // What clients have missed.
    database.connect().await.batch_execute("UPDATE issue SET priority = 1").await.expect("changes");
    let server = setup.serve().await;
    for script in SCRIPTS {
        let output = k6(script, &server.base, SECRET);
        assert!(output.status.success(), "{script}: {}\n{}", output.status, said(&output));
    }
    let output = k6("soak.js", &server.base, "a-secret-that-the-service-does-not-know");
    assert_eq!(output.status.code(), Some(99), "refused clients fail the run\n{}", said(&output));
}

#[test]
fn an_answer_without_its_end_fails_the_run() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    // Ends with the test's process.
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.expect("a connection");
            let mut head = [0; 4096];
            let _ = connection.read(&mut head);
            let body = "{\"__class\":\"Team\",\"id\":\"1\"}\n";
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = connection.write_all(format!("{head}{body}").as_bytes());
        }
    });
    let output = k6("soak.js", &url, SECRET);
    assert_eq!(output.status.code(), Some(99), "{}", said(&output));
    assert!(said(&output).contains("thresholds on metrics"), "{}", said(&output));
}
