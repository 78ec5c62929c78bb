//! Settings: which value wins, what is refused and how it is said, and that the embedded file and the rooms' structs
//! hold exactly the same settings.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::Path;

use headstart::auth::AuthSettings;
use headstart::config::secret::read_file;
use headstart::config::setting::settings;
use headstart::config::{Config, ConfigErrors, InForce, Layers, Origin};
use headstart::dump::DumpSettings;
use headstart::dump::trim::TrimSettings;
use headstart::http::HttpSettings;
use headstart::http::admin::AdminSettings;
use headstart::serve::bootstrap::BootstrapSettings;
use headstart::serve::delta::DeltaSettings;
use headstart::source::postgres::pool::PoolSettings;
use headstart::source::postgres::replica::ReplicaSettings;
use headstart::source::postgres::scan::ScanSettings;
use headstart::source::postgres::watermark::WatermarkSettings;
use headstart::store::StoreSettings;
use headstart::verify::rounds::VerifySettings;
use tempfile::NamedTempFile;

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("write");
    file
}

fn environment(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// Reads a file of this text and this environment.
fn read(text: &str, pairs: &[(&str, &str)]) -> Result<Layers, ConfigErrors> {
    Layers::read(Some(file(text).path()), environment(pairs))
}

/// What people are told is wrong, in either step.
fn fault(text: &str, pairs: &[(&str, &str)]) -> String {
    match read(text, pairs).and_then(|layers| Config::new(&layers)) {
        Ok(_) => panic!("nothing is wrong with {text:?} and {pairs:?}"),
        Err(errors) => errors.to_string(),
    }
}

fn entry<'a>(layers: &'a Layers, path: &str) -> &'a InForce {
    layers.in_force().iter().find(|entry| entry.setting.path == path).expect("a setting")
}

/// All values that are no objects, with their paths.
fn values(prefix: &str, value: &serde_json::Value, found: &mut BTreeMap<String, String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                values(&if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") }, value, found);
            }
        }
        // Not set: `None` in a room, an empty text in the file.
        serde_json::Value::Null => assert!(found.insert(prefix.to_owned(), "\"\"".into()).is_none()),
        value => assert!(found.insert(prefix.to_owned(), value.to_string()).is_none()),
    }
}

#[test]
fn the_embedded_file_and_the_structs_hold_the_same_settings() {
    let config = Config::new(&Layers::defaults()).expect("the defaults are in order");
    let mut fields = BTreeMap::new();
    values("", &serde_json::to_value(&config).expect("settings are plain data"), &mut fields);
    let in_file = settings().into_iter().map(|it| (it.path, serde_json::to_value(it.default).unwrap().to_string()));
    assert_eq!(fields, in_file.collect());
    // Rooms with a default of their own, for their tests.
    same(&config.postgres.pool, &PoolSettings::default());
    same(&config.scan, &ScanSettings::default());
    same(&config.replica, &ReplicaSettings::default());
    same(&config.watermark, &WatermarkSettings::default());
    same(&config.store, &StoreSettings::default());
    same(&config.dump, &DumpSettings::default());
    same(&config.trim, &TrimSettings::default());
    same(&config.verify, &VerifySettings::default());
    same(&config.bootstrap, &BootstrapSettings::default());
    same(&config.delta, &DeltaSettings::default());
    same(&config.http, &HttpSettings::default());
    same(&config.admin, &AdminSettings::default());
    same(&config.auth, &AuthSettings::default());
}

fn same<T: serde::Serialize>(one: &T, other: &T) {
    assert_eq!(serde_json::to_value(one).unwrap(), serde_json::to_value(other).unwrap());
}

#[test]
fn later_layers_win_setting_by_setting() {
    let text = "[dump]\nconcurrent = 3\nwaiting = 5\n";
    let file = file(text);
    let pairs = [("HEADSTART_DUMP_WAITING", "7"), ("HEADSTART_BOOTSTRAP_NO_CACHE", "false")];
    let layers = Layers::read(Some(file.path()), environment(&pairs)).unwrap();
    let config = Config::new(&layers).unwrap();
    let dump = &config.dump;
    assert_eq!((dump.concurrent, dump.waiting, dump.lease_s, config.bootstrap.no_cache), (3, 7, 30, false));
    let origin = |path| entry(&layers, path).origin.clone();
    assert_eq!(origin("dump.concurrent"), Origin::File(file.path().into(), 2));
    assert_eq!(origin("dump.waiting"), Origin::Environment("HEADSTART_DUMP_WAITING".into()));
    assert_eq!(origin("dump.lease_s"), Origin::Default);
    assert!(layers.warnings().is_empty());
}

#[test]
fn a_named_file_that_is_missing_or_no_toml_is_a_fault() {
    let missing = Layers::read(Some(Path::new("/nowhere/headstart.toml")), []).unwrap_err().to_string();
    assert!(missing.contains("/nowhere/headstart.toml"), "{missing}");
    assert!(fault("[dump\n", &[]).contains("is not TOML"));
}

#[test]
fn unknown_keys_are_refused_with_the_place_and_the_nearest() {
    let file = file("[dump]\n\nspool_max_byte = 1\n");
    let said = Layers::read(Some(file.path()), []).unwrap_err().to_string();
    let place = format!("{}:3", file.path().display());
    assert_eq!(said, format!("there is no setting `dump.spool_max_byte` ({place}); `dump.spool_max_bytes` is one"));
    assert!(!fault("[dump]\nzebra = 1\n", &[]).contains("is one"));
    assert!(fault("dump = 3\n", &[]).contains("no setting `dump`"));
    assert!(fault("[dump.concurrent]\nx = 3\n", &[]).contains("`dump.concurrent.x`"));
    // Only secrets come from files of their own.
    assert!(fault("[dump]\nspool_dir_file = \"x\"\n", &[]).contains("`dump.spool_dir_file`"));
}

#[test]
fn all_faults_are_told_at_once() {
    let said = fault("[dump]\nzebra = 1\nconcurrent = \"two\"\n", &[("HEADSTART_DUMP_LEASE_S", "soon")]);
    assert_eq!(said.lines().count(), 3, "{said}");
}

#[test]
fn unknown_names_in_the_environment_are_a_warning() {
    let pairs = [
        ("HEADSTART_DUMP_WAITNG", "7"),
        ("HEADSTART_CONFIG", "x"),
        ("HEADSTART_TEST_POSTGRES_URL", "x"),
        ("HEADSTARTLED", "x"),
    ];
    let layers = read("", &pairs).unwrap();
    let warnings = layers.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("HEADSTART_DUMP_WAITNG") && warnings[0].contains("HEADSTART_DUMP_WAITING"));
}

#[test]
fn wrong_types_and_ranges_name_the_setting_the_place_and_what_is_expected() {
    let said = fault("", &[("HEADSTART_DUMP_CONCURRENT", "many")]);
    let place = "environment HEADSTART_DUMP_CONCURRENT";
    assert_eq!(said, format!("`dump.concurrent` ({place}): it takes a whole number from 1 to 256"));
    for (text, expected) in [
        ("[dump]\nconcurrent = 0\n", "from 1 to 256"),
        ("[dump]\nconcurrent = \"2\"\n", "a whole number"),
        ("[dump]\nconcurrent = 2.5\n", "a whole number"),
        ("[dump]\nbackground = 1\n", "true or false"),
        ("[postgres]\nurl = 5\n", "a text"),
        ("[postgres]\nurl_file = 5\n", "the name of a file"),
        ("[http]\nlisten = \"localhost\"\n", "`http.listen` ("),
        ("[http]\ncors_origins = \"x\"\n", "a list of texts"),
        ("[log]\nformat = \"xml\"\n", "`human` or `json`"),
        ("[log]\nfilter = \"inof\"\n", "no level"),
    ] {
        let said = fault(text, &[]);
        assert!(said.contains(expected), "{text:?} gets {said:?}");
    }
    let layers = read("", &[("HEADSTART_HTTP_CORS_ORIGINS", "https://a.example, https://b.example")]).unwrap();
    assert_eq!(Config::new(&layers).unwrap().http.cors_origins, ["https://a.example", "https://b.example"]);
    // A room's own refusal names the setting and the place too.
    assert!(fault("", &[("HEADSTART_LOG_FORMAT", "xml")]).contains("`log.format` (environment HEADSTART_LOG_FORMAT)"));
}

#[test]
fn secrets_come_from_files_and_never_show() {
    let url = file("postgres://app:hunter2@db/app\n");
    let path = url.path().to_str().unwrap();
    let by_file = read(&format!("[postgres]\nurl_file = {path:?}\n"), &[]).unwrap();
    let by_environment = read("", &[("HEADSTART_POSTGRES_URL_FILE", path)]).unwrap();
    for layers in [by_file, by_environment] {
        let entry = entry(&layers, "postgres.url");
        assert_eq!(entry.origin, Origin::SecretFile(path.into()));
        assert_eq!(entry.shown().as_str(), Some("postgres://app:***@db/app"));
        assert_eq!(Config::new(&layers).unwrap().postgres.url, "postgres://app:hunter2@db/app");
    }
    // A later layer's file wins over an earlier layer's value.
    let layers = read("[postgres]\nurl = \"postgres://other\"\n", &[("HEADSTART_POSTGRES_URL_FILE", path)]).unwrap();
    assert_eq!(entry(&layers, "postgres.url").value.as_str(), Some("postgres://app:hunter2@db/app"));
    // An empty name of a file is none.
    assert!(read("", &[("HEADSTART_POSTGRES_URL", "postgres://db"), ("HEADSTART_POSTGRES_URL_FILE", "")]).is_ok());

    let said = fault("", &[("HEADSTART_POSTGRES_URL", "x"), ("HEADSTART_POSTGRES_URL_FILE", path)]);
    assert!(said.contains("both given"), "{said}");
    let said = fault(&format!("[postgres]\nurl = \"x\"\nurl_file = {path:?}\n"), &[]);
    assert!(said.contains("`postgres.url` and `postgres.url_file` are both given"), "{said}");
    let said = fault("", &[("HEADSTART_STORE_URL_FILE", "/nowhere/store")]);
    assert!(said.contains("`store.url`") && said.contains("/nowhere/store"), "{said}");
}

#[test]
fn settings_that_do_not_fit_together_are_refused() {
    for (text, settings) in [
        ("[freshness]\nsoft_pending = 10\nhard_pending = 9\n", "freshness.soft_pending, freshness.hard_pending"),
        ("[store]\ngrace_s = 3600\n", "store.grace_s, http.answer_deadline_s"),
        ("[admin]\nlisten = \"127.0.0.1:8080\"\n", "http.listen, admin.listen"),
        ("[scan]\nconnections = 8\n", "scan.connections, postgres.max_connections"),
        ("[dump]\nconcurrent = 8\n", "dump.concurrent, postgres.max_connections"),
        ("[freshness]\nsoft_age_s = 10\nhard_age_s = 9\n", "freshness.soft_age_s, freshness.hard_age_s"),
    ] {
        let said = fault(text, &[]);
        assert!(said.starts_with(settings), "{said}");
    }
}

#[test]
fn secret_files_lose_their_last_line_break_and_must_hold_something() {
    let read = |content: &str| read_file(file(content).path());
    assert_eq!(read("hunter2\n").unwrap(), "hunter2");
    assert_eq!(read(" hun\nter2 \r\n").unwrap(), " hun\nter2 ");
    assert!(read("\n").unwrap_err().to_string().contains("empty"));
    assert!(read(&"a".repeat(70_000)).unwrap_err().to_string().contains("longer"));
    assert_eq!(read_file(Path::new("/nowhere")).unwrap_err().kind(), ErrorKind::NotFound);
}
