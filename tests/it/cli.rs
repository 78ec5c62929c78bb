//! The real binary: what it prints and with which code it ends.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use headstart::auth::{AuthSettings, Secret};
use headstart::config::setting::settings;
use headstart::model::SyncGroup;

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
    let claims = keys.verify(printed.trim_end(), SystemTime::now()).unwrap();
    assert_eq!((claims.org.as_str(), claims.user.as_str()), ("7", "u"));
    assert_eq!(claims.groups, Some(vec![SyncGroup::new("team:1"), SyncGroup::new("user:u")]));
    let later = SystemTime::now() + Duration::from_secs(90 + 31);
    assert!(keys.verify(printed.trim_end(), later).is_err(), "it ends");

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
