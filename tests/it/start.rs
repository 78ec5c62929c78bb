//! How the binary starts: at once, after its database, or not at all, and what it says then.

use std::time::{Duration, Instant};

use crate::fire::proxied;
use crate::support::cluster::Cluster;
use crate::support::postgres::Database;
use crate::support::proxy::Mode;
use crate::support::server::Setup;
use crate::support::studio;

const CATALOG: &str = include_str!("../../config/catalog.toml");

/// What operators show.
const TOKEN: &str = "the-token-of-whoever-operates-it";

/// Longer than it takes, also for a debug build beside other tests.
const SOON: Duration = Duration::from_secs(4);

fn url(cluster: &Cluster) -> String {
    format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", cluster.config().get_ports()[0])
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_the_database_says_so_and_is_ready_soon_after_it() {
    let cluster = Cluster::start("");
    let mut setup = Setup::new(&url(&cluster), CATALOG);
    setup.must(&["seed", "--scale", "small"]);
    setup.must(&["migrate", "--apply"]);
    setup.set("HEADSTART_ADMIN_TOKEN", TOKEN);

    let started = Instant::now();
    let server = setup.serve().await;
    assert!(started.elapsed() < SOON, "{:?} with a database that answers", started.elapsed());
    let admin = server.admin.trim_start_matches("http://").replace("127.0.0.1", "0.0.0.0");
    let mut probe = Setup::new(&url(&cluster), CATALOG);
    probe.set("HEADSTART_ADMIN_LISTEN", admin).set("HEADSTART_ADMIN_TOKEN", TOKEN);
    probe.must(&["probe"]);
    probe.must(&["probe", "--live"]);
    assert!(server.stop().await.success());
    assert_eq!(probe.run(&["probe", "--live"]).status.code(), Some(1), "nobody answers any more");

    cluster.crash();
    let folder = setup.folder.path().to_owned();
    let log = move || {
        let files = std::fs::read_dir(&folder).expect("the folder").map(|entry| entry.expect("an entry").path());
        let logs = files.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log-")));
        logs.map(|path| std::fs::read_to_string(path).expect("a log")).collect::<String>()
    };
    let database_answers = async {
        while !log().contains("the database does not answer; waiting up to 1") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::task::block_in_place(|| cluster.start_again());
        Instant::now()
    };
    let ready = async { (setup.serve().await, Instant::now()) };
    let (answers_at, (server, ready_at)) = tokio::join!(database_answers, ready);
    let after = ready_at.saturating_duration_since(answers_at);
    assert!(after < SOON, "ready {after:?} after the database");
    assert!(server.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_falls_silent_is_not_waited_for_without_end() {
    let (database, _client, mut setup) = studio::with_log(1, studio::CATALOG).await;
    setup.set("HEADSTART_HTTP_LISTEN", "127.0.0.1:0").set("HEADSTART_ADMIN_LISTEN", "127.0.0.1:0");
    setup.set("HEADSTART_POSTGRES_STARTUP_WAIT_S", "1");
    let proxy = proxied(&database, &mut setup).await;
    // Enough to connect, and too little to learn what the tables look like.
    proxy.set(Mode::StallAfter(1000));
    let output = tokio::task::block_in_place(|| setup.run(&["serve"]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("no answer within 10 s"), "{said}");
}

#[tokio::test]
async fn it_waits_no_longer_than_told_and_its_code_says_whose_fault_it_was() {
    let database = Database::create().await;
    let mut setup = Setup::new("postgres://127.0.0.1:1/none?sslmode=disable", CATALOG);
    setup.set("HEADSTART_HTTP_LISTEN", "127.0.0.1:0").set("HEADSTART_ADMIN_LISTEN", "127.0.0.1:0");
    setup.set("HEADSTART_POSTGRES_STARTUP_WAIT_S", "1");
    let started = Instant::now();
    let output = setup.run(&["serve"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "no database: starting again may help\n{said}");
    assert!(said.contains("the database does not answer; waiting up to 0 s more"), "{said}");
    assert!(started.elapsed() < Duration::from_secs(1) + SOON);

    setup.set("HEADSTART_POSTGRES_URL", database.url());
    let output = setup.run(&["serve"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "no such tables: starting again won't help\n{said}");
}
