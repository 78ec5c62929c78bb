//! The shape of the code, read from the code itself: imports go down only, every foreign crate has a home, only
//! `task.rs` spawns, wall-clock time comes from few places, files stay short and are named after what they hold.
//!
//! Tests inside `src/` obey the imports too; crates, spawns and clocks are free to them: an oracle is often another crate,
//! and a test waits for what it starts. A fault names the file, the line and the rule. A new room, a new crate, a new place that reads the clock: add it to
//! the lists below, where the choice is seen.

use std::fs;
use std::path::{Path, PathBuf};

use paths::{code, paths};

#[path = "floors/paths.rs"]
mod paths;

/// The rooms of each floor, lowest first.
const FLOORS: [&[&str]; 8] = [
    &["model", "metrics", "task", "chain", "trace", "outbound"],
    &["snapshot", "wire"],
    &["source", "store", "auth"],
    &["dump", "verify"],
    &["serve"],
    &["http"],
    &["app", "config", "telemetry", "cli"],
    &["lib", "main"],
];

/// Floors whose rooms may import each other: the ground, and the assembly.
const OPEN_FLOORS: [usize; 2] = [0, 6];

/// Where each foreign crate may be named: beginnings of paths below `src/`. An empty list: anywhere. A `!` in front:
/// anywhere but there. Crates that come with another one (`bson`) stand here too.
const HOMES: &[(&str, &[&str])] = &[
    ("tokio", PURE),
    ("tokio_util", PURE),
    ("futures_util", PURE),
    ("async_trait", PURE),
    ("async_stream", &["source/", "dump/", "http/"]),
    ("bytes", &[]),
    ("axum", &["http/"]),
    ("hyper", &["http/", "auth/", "outbound", "telemetry"]),
    ("hyper_util", &["http/", "outbound"]),
    ("socket2", &["http/"]),
    ("http_body", &["http/", "outbound"]),
    ("base64", &["http/"]),
    ("tokio_postgres", &["source/", "cli/seed"]),
    ("tokio_postgres_rustls", &["source/"]),
    ("tokio_rustls", &["outbound"]),
    ("webpki_roots", &["outbound"]),
    ("rustls", &["source/", "auth/", "outbound"]),
    ("mongodb", &["store/mongo"]),
    ("bson", &["store/mongo"]),
    ("object_store", &["store/object"]),
    ("dashmap", &["serve/"]),
    ("zstd", &["snapshot/"]),
    ("flate2", &["http/"]),
    ("xxhash_rust", &["snapshot/", "http/"]),
    ("memchr", &["snapshot/"]),
    ("sha2", &["model/", "source/migrate/", "store/object", "http/"]),
    ("getrandom", &[]),
    ("ryu", &["source/", "wire/"]),
    ("itoa", &["source/", "wire/"]),
    ("jsonwebtoken", &["auth/"]),
    ("serde", &[]),
    ("serde_json", &[]),
    ("schemars", &["serve/", "http/"]),
    ("toml", &["model/", "config", "cli/"]),
    ("percent_encoding", &["http/", "source/", "store/"]),
    ("clap", &["cli/", "main"]),
    ("indicatif", &["cli/"]),
    ("strsim", &["config/"]),
    ("thiserror", &[]),
    ("tracing", &[]),
    ("tracing_subscriber", &["telemetry"]),
    ("prometheus_client", &["metrics"]),
    ("tempfile", &["dump/"]),
    ("memmap2", &["dump/mapping", "store/pages"]),
    ("rustix", &["http/server"]),
    ("tikv_jemallocator", &["main"]),
    // Away everywhere: it is for `fuzz/`.
    ("libfuzzer_sys", &["!"]),
];

/// No async and no I/O in the words and the formats.
const PURE: &[&str] = &["!model/", "!snapshot/", "!wire/"];

/// What starts work of its own accord. The module itself too: imported, its functions could not be told from others.
const SPAWNING: [&str; 11] = [
    "tokio::spawn",
    "tokio::task",
    "tokio::task::spawn",
    "tokio::task::spawn_blocking",
    "tokio::task::spawn_local",
    "tokio::task::JoinSet",
    "tokio::task::LocalSet",
    "tokio::runtime",
    "std::thread::spawn",
    "std::thread::Builder",
    "std::thread::scope",
];
/// Who may spawn, and by what: tasks have names and an end there; the program's own start makes its runtime.
const SPAWNERS: [(&str, &str); 2] = [("task.rs", ""), ("main.rs", "tokio::runtime")];

/// Where wall-clock time comes from: the doors through which a token comes or goes, stores without a server's clock, and the
/// spans of traces, which others' spans stand beside.
const CLOCKS: [&str; 5] = ["cli/token.rs", "http/identity.rs", "store/memory.rs", "store/object", "telemetry/spans.rs"];

const LONGEST_FILE: usize = 500;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 7] = ["util", "utils", "common", "manager", "helper", "helpers", "misc"];

#[test]
fn imports_go_down_only() {
    hold(sources().iter().flat_map(|file| import_faults(&file.path, &file.code)));
}

#[test]
fn foreign_crates_stay_at_home() {
    hold(sources().iter().flat_map(|file| home_faults(&file.path, file.served())));
}

#[test]
fn only_task_rs_spawns() {
    hold(sources().iter().flat_map(|file| spawn_faults(&file.path, file.served())));
}

#[test]
fn wall_clock_time_comes_from_few_places() {
    hold(sources().iter().flat_map(|file| clock_faults(&file.path, file.served())));
}

#[test]
fn only_the_mapping_of_spools_is_unsafe() {
    let word = |file: &Source| file.code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
    let others = sources().into_iter().filter(|file| file.path != "dump/mapping.rs" && word(file));
    hold(others.map(|file| format!("{}: `unsafe` is for dump/mapping.rs alone", file.path)));
}

#[test]
fn files_are_short_and_named_after_what_they_hold() {
    let tests = files(&root().join("tests")).into_iter().map(|path| (format!("tests/{}", below("tests", &path)), path));
    let sources = files(&root().join("src")).into_iter().map(|path| (below("src", &path), path));
    hold(sources.chain(tests).filter(|(name, _)| name.ends_with(".rs")).flat_map(|(name, path)| {
        let text = read(&path);
        length_fault(&name, text.lines().count()).into_iter().chain(name_faults(&name, &text)).collect::<Vec<_>>()
    }));
}

#[test]
fn every_dependency_says_why_and_has_a_home() {
    hold(manifest_faults(&read(&root().join("Cargo.toml"))));
}

#[test]
fn no_file_names_a_registry() {
    let hosts = [
        ["crates", "io"],
        ["pypi", "org"],
        ["pythonhosted", "org"],
        ["npmjs", "org"],
        ["npmjs", "com"],
        ["debian", "org"],
    ];
    let skipped = [".git", "target", ".dev", "Cargo.lock", "node_modules"];
    let mut faults = Vec::new();
    for entry in fs::read_dir(root()).expect("the repository can be read").flatten() {
        if skipped.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        for path in files(&entry.path()) {
            // What is no text names nothing.
            let Ok(text) = fs::read_to_string(&path) else { continue };
            for host in hosts.iter().map(|parts| parts.join(".")).filter(|host| text.contains(host.as_str())) {
                faults.push(format!("{}: names {host}; clients of registries know their hosts", path.display()));
            }
        }
    }
    hold(faults);
}

fn import_faults(path: &str, code: &str) -> Vec<String> {
    let room = room_of(path);
    let Some(floor) = floor_of(room) else {
        return vec![format!("{path}: room `{room}` is on no floor: add it to FLOORS")];
    };
    let mut faults = Vec::new();
    for (line, import) in paths(code) {
        if import.starts_with("super::super") {
            faults.push(format!("{path}:{line}: `{import}`: say it from `crate::`, so that its room is seen"));
        }
        let Some(target) = import.strip_prefix("crate::").or_else(|| import.strip_prefix("headstart::")) else {
            continue;
        };
        let target = target.split("::").next().unwrap_or_default();
        let Some(reached) = floor_of(target) else {
            faults.push(format!("{path}:{line}: `{import}`: `{target}` is no room"));
            continue;
        };
        if reached > floor {
            faults.push(format!(
                "{path}:{line}: `{import}`: {room} (floor {}) imports upward ({})",
                floor + 1,
                reached + 1
            ));
        } else if reached == floor && target != room && !OPEN_FLOORS.contains(&floor) {
            faults.push(format!("{path}:{line}: `{import}`: {room} imports sideways on floor {}", floor + 1));
        }
    }
    faults
}

fn home_faults(path: &str, code: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (line, import) in paths(code) {
        let name = import.split("::").next().unwrap_or_default();
        let Some((_, homes)) = HOMES.iter().find(|(known, _)| *known == name) else { continue };
        let (away, at): (Vec<&str>, Vec<&str>) = homes.iter().partition(|home| home.starts_with('!'));
        let is_away = away.iter().any(|room| path.starts_with(&room[1..]));
        if is_away || !(at.is_empty() || at.iter().any(|home| path.starts_with(home))) {
            faults.push(format!("{path}:{line}: `{import}`: the crate {name} is at home in {}", homes.join(", ")));
        }
    }
    faults
}

fn spawn_faults(path: &str, code: &str) -> Vec<String> {
    let allowed = |import: &str| SPAWNERS.iter().any(|(file, what)| path == *file && import.starts_with(what));
    let spawns = |import: &str| SPAWNING.contains(&import) || import.starts_with("tokio::runtime::");
    let found = paths(code).into_iter().filter(|(_, import)| spawns(import) && !allowed(import));
    found.map(|(line, import)| format!("{path}:{line}: `{import}`: only task.rs spawns")).collect()
}

fn clock_faults(path: &str, code: &str) -> Vec<String> {
    let reads = |import: &str| import.ends_with("SystemTime::now") || import.ends_with("Utc::now");
    let allowed = CLOCKS.iter().any(|place| path.starts_with(place));
    let found = paths(code).into_iter().filter(|(_, import)| reads(import) && !allowed);
    found.map(|(line, import)| format!("{path}:{line}: `{import}`: time is an argument or the store's")).collect()
}

fn length_fault(path: &str, lines: usize) -> Option<String> {
    (lines > LONGEST_FILE).then(|| format!("{path}: {lines} lines: more than {LONGEST_FILE} hold a second noun"))
}

/// Looks at the file's own name and at the types it declares.
fn name_faults(path: &str, text: &str) -> Vec<String> {
    let parts = path.trim_end_matches(".rs").split('/').map(str::to_owned);
    let types = code(text).lines().filter_map(declared).map(str::to_owned).collect::<Vec<_>>();
    let empty = |name: &str| EMPTY_NAMES.iter().any(|bad| name == *bad || name.ends_with(&capitalized(bad)));
    parts.chain(types).filter(|name| empty(name)).map(|name| format!("{path}: `{name}` says nothing")).collect()
}

fn manifest_faults(manifest: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut section, mut above) = ("", "");
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if let Some((name, _)) = line.split_once('=').filter(|_| section.ends_with("dependencies]")) {
            let name = name.trim();
            if !above.starts_with('#') {
                faults.push(format!("Cargo.toml: `{name}` has no comment that says what it is for"));
            }
            if section == "[dependencies]" && !HOMES.iter().any(|(known, _)| *known == name.replace('-', "_")) {
                faults.push(format!("Cargo.toml: `{name}` has no home: add it to HOMES"));
            }
        }
        above = line;
    }
    faults
}

/// A file below `src/`, with its comments and texts blanked.
struct Source {
    path: String,
    code: String,
}

impl Source {
    /// The part that serves: without the tests, which come last (clippy's `items_after_test_module`).
    fn served(&self) -> &str {
        const TESTS: &str = "\n#[cfg(test)]\nmod tests {";
        if self.path.ends_with("tests.rs") { "" } else { self.code.split(TESTS).next().unwrap_or_default() }
    }
}

fn sources() -> Vec<Source> {
    let all: Vec<Source> = files(&root().join("src"))
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| Source { code: code(&read(&path)), path: below("src", &path) })
        .collect();
    assert!(all.len() > 10, "only {} sources found: the checks would hold of nothing", all.len());
    all
}

fn hold(faults: impl IntoIterator<Item = String>) {
    let faults: Vec<String> = faults.into_iter().collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn below(folder: &str, path: &Path) -> String {
    let path = path.strip_prefix(root().join(folder)).expect("a file of that folder");
    path.to_str().expect("names are plain").to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn files(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return vec![path.to_owned()] };
    let mut found: Vec<PathBuf> = entries.flatten().flat_map(|entry| files(&entry.path())).collect();
    found.sort();
    found
}

/// The room of a file below `src/`: its folder, or its own name.
fn room_of(path: &str) -> &str {
    path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
}

fn floor_of(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// The name of the type that a line declares.
fn declared(line: &str) -> Option<&str> {
    let mut words =
        line.split_whitespace().skip_while(|word| !["struct", "enum", "trait", "type", "mod"].contains(word));
    words.nth(1).map(|name| name.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default())
}

fn capitalized(word: &str) -> String {
    word[..1].to_uppercase() + &word[1..]
}

mod the_checker_itself {
    use super::*;

    #[test]
    fn refuses_upward_and_sideways_imports() {
        let faults = |path: &str, text: &str| import_faults(path, &code(text)).len();
        assert_eq!(faults("source/mod.rs", "use crate::model::Org;"), 0);
        assert_eq!(faults("source/mod.rs", "use crate::source::sql;"), 0);
        assert_eq!(faults("source/mod.rs", "use crate::store::X;"), 1);
        assert_eq!(faults("source/mod.rs", "fn f() { crate::http::error(); }"), 1);
        assert_eq!(faults("wire/line.rs", "use crate::{model::Org, snapshot::frame};"), 1);
        assert_eq!(faults("task.rs", "use crate::metrics::Gauge;"), 0);
        assert_eq!(faults("app.rs", "use crate::{config::Config, telemetry, http};"), 0);
        assert_eq!(faults("model/ids.rs", "use crate::{\n    task,\n    app,\n};"), 1);
        assert_eq!(faults("main.rs", "use headstart::cli;"), 0);
        assert_eq!(faults("dump/live.rs", "use crate::Thing;"), 1);
        assert_eq!(faults("dump/live.rs", "use super::super::serve;"), 1);
        assert_eq!(faults("attic/mod.rs", ""), 1);
    }

    #[test]
    fn refuses_crates_away_from_home() {
        let faults = |path: &str, text: &str| home_faults(path, &code(text)).len();
        assert_eq!(faults("source/postgres/pool.rs", "use tokio_postgres::Client;"), 0);
        assert_eq!(faults("http/batch.rs", "use tokio_postgres::Client;"), 1);
        assert_eq!(faults("store/object.rs", "use mongodb::bson::doc;"), 1);
        assert_eq!(faults("snapshot/frame.rs", "use zstd;\nuse tokio::io;"), 1);
        assert_eq!(faults("serve/batch/mod.rs", "let map: dashmap::DashMap<u8, u8>;"), 0);
        assert_eq!(faults("dump/live.rs", "let map: dashmap::DashMap<u8, u8>;"), 1);
    }

    #[test]
    fn refuses_spawns_and_clocks() {
        let spawns = |path: &str, text: &str| spawn_faults(path, &code(text)).len();
        assert_eq!(spawns("task.rs", "tokio::spawn(f)"), 0);
        assert_eq!(spawns("dump/live.rs", "tokio::spawn(f)"), 1);
        assert_eq!(spawns("dump/live.rs", "use tokio::{sync::mpsc, task::JoinSet};"), 1);
        assert_eq!(spawns("dump/live.rs", "use tokio::task;"), 1);
        assert_eq!(spawns("dump/live.rs", "tasks.spawn(f)"), 0);
        assert_eq!(spawns("main.rs", "tokio::runtime::Builder::new_multi_thread()"), 0);
        assert_eq!(spawns("main.rs", "tokio::spawn(f)"), 1);
        let clocks = |path: &str| clock_faults(path, &code("std::time::SystemTime::now()")).len();
        assert_eq!((clocks("dump/policy.rs"), clocks("store/memory.rs")), (1, 0));
    }

    #[test]
    fn tells_tests_from_what_serves() {
        let source =
            |path: &str| Source { path: path.into(), code: "a::b();\n#[cfg(test)]\nmod tests { c::d(); }".into() };
        assert_eq!(source("http/body.rs").served(), "a::b();");
        assert_eq!(source("http/tests.rs").served(), "");
    }

    #[test]
    fn refuses_long_files_empty_names_and_silent_dependencies() {
        assert!(length_fault("a.rs", 501).is_some() && length_fault("a.rs", 500).is_none());
        assert_eq!(name_faults("http/utils.rs", "").len(), 1);
        assert_eq!(name_faults("http/mod.rs", "pub struct PoolManager<T> {").len(), 1);
        assert_eq!(name_faults("http/mod.rs", "// struct PoolManager\nmod body;").len(), 0);
        let manifest = "[package]\nname = \"x\"\n[dependencies]\n# Why.\ntokio = \"1\"\nserde = \"1\"\n# Why.\nunheard-of = \"1\"\n";
        assert_eq!(manifest_faults(manifest).len(), 2);
    }
}
