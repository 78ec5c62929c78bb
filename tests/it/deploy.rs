//! What stands in deploy/ and loadtests/, held against what the binary knows: names of settings, their defaults, the time
//! it takes to end; and what can be checked of images and manifests without building or running them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use headstart::app::END_WITHIN;
use headstart::config::setting::{Setting, settings};
use headstart::http::HttpSettings;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of a folder and of those in it, with their text.
fn texts(folder: &str) -> Vec<(PathBuf, String)> {
    let mut folders = vec![root().join(folder)];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty());
    found
}

/// Names in the environment that are no settings.
fn is_other_name(name: &str) -> bool {
    let others = ["HEADSTART_TEST_", "HEADSTART_FUZZ_"];
    name == "HEADSTART_CONFIG" || others.iter().any(|other| name.starts_with(other))
}

#[test]
fn every_setting_that_is_named_exists() {
    let known = settings();
    let is_named = |it: &Setting, name: &str| it.env == name || (it.is_secret() && it.file_env() == name);
    let sections: Vec<&str> = known.iter().filter_map(|it| Some(it.path.split_once('.')?.0)).collect();
    for (path, text) in texts("deploy").into_iter().chain(texts("loadtests")) {
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_' && letter != '.');
        for word in words.map(|word| word.trim_matches('.')) {
            if word.starts_with("HEADSTART_") && !word.ends_with('_') {
                assert!(is_other_name(word) || known.iter().any(|it| is_named(it, word)), "{}: {word}", path.display());
            }
            // In sentences a setting is named as in the file: `http.listen`.
            let is_file = ["toml", "js", "conf", "sh", "yaml"].iter().any(|end| word.ends_with(&format!(".{end}")));
            if let Some((section, _)) = word.split_once('.').filter(|_| !is_file && word.contains('_'))
                && sections.contains(&section)
            {
                assert!(known.iter().any(|it| it.path == word), "{}: {word}", path.display());
            }
        }
    }
}

/// Prose says `http.idle_timeout_s (75)`.
#[test]
fn every_default_that_is_told_is_the_default() {
    let mut told = 0;
    for setting in settings() {
        for (path, text) in texts("deploy") {
            let begin = format!("{} (", setting.path);
            for rest in text.replace('`', "").split(&begin).skip(1) {
                let value = rest.split(')').next().expect("a bracket that closes");
                assert_eq!(value, setting.default.to_string(), "{}: {}", path.display(), setting.path);
                told += 1;
            }
        }
    }
    assert!(told >= 4, "the defaults that deploy/ is known to tell");
}

#[test]
fn whoever_runs_it_waits_until_it_has_ended() {
    let number_after = |file: &str, begin: &str| -> u64 {
        let text = std::fs::read_to_string(root().join(file)).expect(file);
        let (_, rest) = text.split_once(begin).expect(begin);
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().expect(begin)
    };
    let drain = Duration::from_secs(HttpSettings::default().shutdown_grace_s) + END_WITHIN;
    let compose = number_after("deploy/compose.yaml", "stop_grace_period: ");
    assert!(Duration::from_secs(compose) > drain);
    let deployment = "deploy/kubernetes/base/deployment.yaml";
    let before = number_after(deployment, "sleep:\n                seconds: ");
    let granted = number_after(deployment, "terminationGracePeriodSeconds: ");
    assert!(Duration::from_secs(granted) > Duration::from_secs(before) + drain);
    let idle = number_after("deploy/nginx/headstart.conf", "keepalive_timeout ");
    assert!(idle < HttpSettings::default().idle_timeout_s);
}

/// What `.dockerignore` lets through is enough for cargo: every target of Cargo.toml that the image builds is there.
#[test]
fn the_image_is_given_all_that_it_is_built_from() {
    let context = tempfile::tempdir().expect("a temporary folder");
    let ignored = std::fs::read_to_string(root().join(".dockerignore")).expect("the file");
    let dockerfile = std::fs::read_to_string(root().join("deploy/Dockerfile")).expect("the file");
    for kept in ignored.lines().filter_map(|line| line.strip_prefix('!')) {
        assert!(dockerfile.contains(kept), "{kept} is sent and not copied");
        let target = context.path().join(kept);
        std::fs::create_dir_all(target.parent().expect("a folder")).expect("make a folder");
        let copied = Command::new("cp").arg("-r").arg(root().join(kept)).arg(&target).status().expect("run cp");
        assert!(copied.success(), "{kept}");
    }
    let mut cargo = Command::new(env!("CARGO"));
    let output = cargo.args(["metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"]);
    let output = output.current_dir(context.path()).output().expect("run cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The image's root, made as the image makes it, with the binary of this test in it. It runs without anything else.
#[test]
fn the_image_holds_all_that_the_binary_needs() {
    let image = tempfile::tempdir().expect("a temporary folder");
    let binary = env!("CARGO_BIN_EXE_headstart");
    let made = Command::new(root().join("deploy/rootfs.sh")).arg(binary).arg(image.path()).status().expect("run it");
    assert!(made.success());
    assert!(!image.path().join("bin/sh").exists());
    let id = Command::new("id").arg("-u").output().expect("run id").stdout;
    if id.trim_ascii() != b"0" {
        return; // Only root may change the root.
    }
    let run = |arguments: &[&str]| {
        let mut command = Command::new("chroot");
        command.arg("--userspec=65532:65532").arg(image.path()).arg("/usr/local/bin/headstart").args(arguments);
        command.env_clear().env("PATH", "/usr/bin:/usr/sbin:/bin:/sbin").output().expect("run chroot")
    };
    std::fs::set_permissions(image.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("open it");
    let version = run(&["--version"]);
    assert!(version.stdout.starts_with(b"headstart "), "{}", String::from_utf8_lossy(&version.stderr));
    assert_eq!(run(&["config"]).status.code(), Some(0));
    // Without settings it ends by itself, and says so.
    assert_eq!(run(&["serve"]).status.code(), Some(3));
}

#[test]
fn the_image_the_compose_file_and_the_manifests_are_in_order() {
    let output = Command::new(root().join("deploy/check.sh")).output().expect("run it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
