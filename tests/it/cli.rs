//! The real binary: what it prints and with which code it ends.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use headstart::auth::{AuthSettings, Secret};
use headstart::config::setting::settings;
use headstart::model::SyncGroup;

use crate::support::postgres::Database;
use crate::support::server::Setup;

const SECRET: &str = "a secret of more than thirty-two bytes";

/// Runs `headstart` in an empty folder, with no setting but these.
fn headstart(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().expect("a temporary folder");
    headstart_in(folder.path(), arguments, environment)
}

fn headstart_in(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headstart"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HEADSTART_")) {
        command.env_remove(name);
    }
    command.args(arguments).envs(environment.iter().copied()).current_dir(folder);
    command.output().expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

#[test]
fn config_prints_every_setting_its_source_and_no_secret() {
    let environment =
        [("HEADSTART_POSTGRES_URL", "postgres://app:hunter2@db/app"), ("HEADSTART_AUTH_HS256_SECRET", SECRET)];
    let output = headstart(&["config"], &environment);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let printed = stdout(&output);
    assert!(!printed.contains("hunter2") && !printed.contains(SECRET), "{printed}");
    let lines: Vec<Vec<&str>> = printed.lines().map(|line| line.split('\t').collect()).collect();
    let paths: Vec<&str> = lines.iter().map(|line| line[0]).collect();
    let known = settings();
    assert_eq!(paths, known.iter().map(|setting| setting.path.as_str()).collect::<Vec<_>>());
    let url = lines.iter().find(|line| line[0] == "postgres.url").unwrap();
    let environment = "environment HEADSTART_POSTGRES_URL";
    assert_eq!(url[1..], ["\"postgres://app:***@db/app\"", environment, "HEADSTART_POSTGRES_URL"]);
    let listen = lines.iter().find(|line| line[0] == "admin.listen").unwrap();
    assert_eq!(listen[1..], ["\"127.0.0.1:8081\"", "default", "HEADSTART_ADMIN_LISTEN"]);

    let one = headstart(&["config", "dump.concurrent", "--explain"], &[]);
    assert!(stdout(&one).starts_with("dump.concurrent = 2\n") && stdout(&one).contains("Dumps at once."));
}

#[test]
fn config_as_json_holds_the_same() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("config")).unwrap();
    std::fs::write(folder.path().join("config/headstart.toml"), "[dump]\nconcurrent = 7\n").unwrap();
    let output = headstart_in(folder.path(), &["config", "--json"], &[("HEADSTART_AUTH_HS256_SECRET", SECRET)]);
    let printed: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(printed.len(), settings().len());
    let entry = |name: &str| printed.iter().find(|entry| entry["setting"] == name).unwrap();
    assert_eq!(entry("dump.concurrent")["value"], 7);
    assert_eq!(entry("dump.concurrent")["source"], "config/headstart.toml:2", "the default file is read where it is");
    assert_eq!(entry("auth.hs256_secret")["value"], "***");
    assert_eq!(entry("auth.hs256_secret")["secret"], true);
}

#[test]
fn config_shows_what_does_not_fit_together_and_fails() {
    let output = headstart(&["config"], &[("HEADSTART_FRESHNESS_HARD_PENDING", "1")]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stdout(&output).contains("freshness.hard_pending\t1\t"));
    assert!(stderr(&output).starts_with("error: freshness.soft_pending, freshness.hard_pending: "));
}

#[test]
fn a_token_is_what_the_service_takes() {
    let arguments = ["token", "--org", "7", "--user", "u", "--groups", "team:1,user:u", "--ttl", "90s"];
    let output = headstart(&arguments, &[("HEADSTART_AUTH_HS256_SECRET", SECRET)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let settings = AuthSettings { hs256_secret: Some(Secret::new(SECRET)), ..AuthSettings::default() };
    let keys = settings.keys().unwrap();
    let printed = stdout(&output);
    let verify = |at| keys.verify(printed.trim_end(), at).now_or_never().expect("nothing to wait for");
    let claims = verify(SystemTime::now()).unwrap();
    assert_eq!((claims.org.as_str(), claims.user.as_str()), ("7", "u"));
    assert_eq!(claims.groups, Some(vec![SyncGroup::new("team:1"), SyncGroup::new("user:u")]));
    let later = SystemTime::now() + Duration::from_secs(90 + 31);
    assert!(verify(later).is_err(), "it ends");

    let none = headstart(&arguments[..5], &[]);
    assert_eq!(none.status.code(), Some(3), "without a secret there is no token");
    assert!(stderr(&none).contains("auth.hs256_secret"));
}

#[test]
fn each_kind_of_failure_has_its_code() {
    let usages: [&[&str]; 6] = [
        &[],
        &["fly"],
        &["token"],
        &["token", "--org", "1", "--user", "2", "--ttl", "soon"],
        &["token", "--org", "1", "--user", "2", "--groups", "team"],
        &["config", "--jsonn"],
    ];
    for arguments in usages {
        assert_eq!(headstart(arguments, &[]).status.code(), Some(2), "{arguments:?}");
    }
    for (arguments, environment) in [
        (&["--config", "missing.toml", "config"][..], &[][..]),
        (&["config"], &[("HEADSTART_CONFIG", "missing.toml")]),
        (&["config"], &[("HEADSTART_STORE_URL_FILE", "missing.txt")]),
    ] {
        let output = headstart(arguments, environment);
        assert_eq!(output.status.code(), Some(3), "{arguments:?} {environment:?}");
        let said = stderr(&output);
        assert!(said.starts_with("error: ") && said.contains("missing.t") && said.contains("No such file"), "{said}");
    }
    let help = headstart(&["--help"], &[]);
    assert_eq!(help.status.code(), Some(0));
    assert!(stdout(&help).contains("Exit codes:"));
    assert!(stdout(&headstart(&["--version"], &[])).starts_with("headstart "));
}

#[test]
fn an_unknown_name_in_the_environment_is_told_and_no_fault() {
    let output = headstart(&["config"], &[("HEADSTART_DUMP_CONCURENT", "3")]);
    assert_eq!(output.status.code(), Some(0));
    let said = stderr(&output);
    assert!(
        said.starts_with("warning: HEADSTART_DUMP_CONCURENT ") && said.contains("HEADSTART_DUMP_CONCURRENT"),
        "{said}"
    );
}

/// Columns of the lines that a command printed into a pipe.
fn rows(printed: &str) -> Vec<Vec<&str>> {
    printed.lines().map(|line| line.split('\t').collect()).collect()
}

#[tokio::test]
async fn from_an_empty_database_to_snapshots_by_hand() {
    let database = Database::create().await;
    let setup = Setup::new(&database.url(), include_str!("../../config/catalog.toml"));
    let findings = |output: &Output| {
        assert_eq!(output.status.code(), Some(1), "{}", stderr(output));
        stdout(output)
    };
    let empty = findings(&setup.run(&["check"]));
    assert!(rows(&empty).iter().any(|row| row[..3] == ["error", "tables", "models.Issue.table"]), "{empty}");

    setup.must(&["seed", "--scale", "small"]);
    let unlogged = findings(&setup.run(&["check"]));
    let mends = |row: &Vec<&str>| row[0] == "error" && row[4].contains("headstart migrate --apply");
    assert!(rows(&unlogged).iter().any(mends), "{unlogged}");

    assert!(setup.must(&["migrate"]).contains("CREATE TABLE"), "without --apply it is printed");
    assert!(setup.must(&["migrate", "--apply"]).starts_with("done: "));
    assert!(setup.must(&["migrate", "--apply"]).starts_with("nothing to do"));
    let checked = setup.must(&["check"]);
    assert!(rows(&checked).iter().all(|row| row[0] != "error"), "{checked}");

    let dumped = setup.must(&["dump", "--all"]);
    let orgs: Vec<&str> = rows(&dumped).iter().map(|row| row[0]).collect();
    assert_eq!(orgs.len(), 2, "{dumped}");
    assert!(rows(&dumped).iter().all(|row| row[1] == "made" && row[2].parse::<u64>().unwrap() > 100), "{dumped}");
    assert!(rows(&setup.must(&["dump", "--all"])).iter().all(|row| row[1] == "fresh"));
    assert_eq!(rows(&setup.must(&["dump", "--org", orgs[0], "--full"]))[0][..2], [orgs[0], "made"]);
    assert_eq!(setup.run(&["dump", "--org", "nobody"]).status.code(), Some(1));
    assert_eq!(setup.run(&["dump"]).status.code(), Some(2));

    let listed = setup.must(&["snapshots", "list"]);
    let generation = |org: &str| rows(&listed).iter().find(|row| row[0] == org).map(|row| row[2].to_owned());
    assert_eq!((generation(orgs[0]).as_deref(), generation(orgs[1]).as_deref()), (Some("2"), Some("1")));
    let shown = setup.must(&["snapshots", "show", "--org", orgs[1]]);
    let rows_of = |what: &str| rows(&shown).iter().find(|row| row[0] == what).map(|row| row[1].to_owned());
    let dumped_rows = rows(&dumped).iter().find(|row| row[0] == orgs[1]).unwrap()[2].to_owned();
    assert_eq!(rows_of("rows"), Some(dumped_rows));
    assert!(rows_of("Issue").is_some_and(|frames| frames != "0"), "models have their names: {shown}");
    assert_eq!(setup.must(&["snapshots", "delete", "--org", orgs[1]]), "1 snapshots deleted\n");
    assert_eq!(setup.run(&["snapshots", "show", "--org", orgs[1]]).status.code(), Some(1));
}

#[tokio::test]
async fn the_service_says_what_it_does_and_ends_in_order() {
    let database = Database::create().await;
    let mut setup = Setup::new(&database.url(), include_str!("../../config/catalog.toml"));
    setup.set("HEADSTART_LOG_FORMAT", "json");
    setup.must(&["seed", "--scale", "small"]);
    setup.must(&["migrate", "--apply"]);
    let server = setup.serve().await;
    server.until("clients are served", || async { server.log().contains("clients are served") }).await;
    let log = server.log();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(lines.iter().any(|line| line["message"] == "clients are served"), "{log}");
    assert!(lines[0]["changed"].as_str().unwrap().contains("postgres.url"), "{log}");
    assert!(server.stop().await.success());
}

#[test]
fn the_service_says_why_it_does_not_start() {
    let setup = |name: &str, value: &str| {
        let mut setup =
            Setup::new("postgres://127.0.0.1:1/none?sslmode=disable", include_str!("../../config/catalog.toml"));
        setup.set(name, value);
        setup
    };
    for (name, value, code, told) in [
        ("HEADSTART_AUTH_HS256_SECRET", "", 3, "auth.hs256_secret"),
        ("HEADSTART_POSTGRES_URL", "", 3, "postgres.url"),
        ("HEADSTART_POSTGRES_URL", "nonsense", 3, "postgres.url"),
        ("HEADSTART_STORE_URL", "s3://bucket", 3, "store.url"),
        ("HEADSTART_CATALOG_PATH", "missing.toml", 3, "catalog.path"),
        ("HEADSTART_HTTP_LISTEN", "203.0.113.1:1", 1, "http.listen"),
        ("HEADSTART_ADMIN_LISTEN", "0.0.0.0:0", 3, "set admin.token"),
        ("HEADSTART_ADMIN_TOKEN", "short", 3, "admin.token has 5 bytes"),
    ] {
        let output = setup(name, value).run(&["serve"]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{name}={value}: {said}");
        assert!(said.contains(told), "{name}={value}: {said}");
    }
}
