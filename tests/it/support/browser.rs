//! A real browser that a test drives, over the pipes of its DevTools protocol.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A browser with one page; killed when dropped.
pub struct Browser {
    process: Child,
    profile: tempfile::TempDir,
    to: File,
    from: mpsc::Receiver<Value>,
    session: Value,
    sent: u64,
}

/// Where Chromium is; installed if missing.
pub fn program() -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/dev/chromium.sh");
    let found = Command::new(script).arg("bin").output().expect("run chromium.sh");
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    String::from_utf8(found.stdout).expect("a path").trim_end().to_owned()
}

/// What it is started with. Containers and root have no sandbox; the pages are ours.
pub const FLAGS: [&str; 7] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
];

impl Browser {
    /// Opens a page. Blocks until it has loaded.
    pub fn open(url: &str) -> Self {
        let profile = tempfile::tempdir().expect("a temporary folder");
        let (there, back) = (profile.path().join("there"), profile.path().join("back"));
        for pipe in [&there, &back] {
            assert!(Command::new("mkfifo").arg(pipe).status().expect("run mkfifo").success());
        }
        // The browser reads commands from descriptor 3 and writes answers to 4.
        let process = Command::new("/bin/sh")
            .args(["-c", "there=$1 back=$2; shift 2; exec \"$@\" 3<\"$there\" 4>\"$back\"", "sh"])
            .args([&there, &back])
            .arg(program())
            .args(FLAGS)
            .args(["--remote-debugging-pipe", &format!("--user-data-dir={}", profile.path().display()), "about:blank"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the browser");
        let to = OpenOptions::new().write(true).open(&there).expect("its commands");
        let answers = BufReader::new(File::open(&back).expect("its answers"));
        let (told, from) = mpsc::sync_channel(10_000);
        std::thread::spawn(move || {
            for answer in answers.split(0).map_while(Result::ok) {
                if told.send(serde_json::from_slice(&answer).expect("JSON")).is_err() {
                    break;
                }
            }
        });
        let mut browser = Self { process, profile, to, from, session: Value::Null, sent: 0 };
        let target = browser.ask("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.ask("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].clone();
        browser.go(url);
        browser
    }

    /// Loads another page.
    pub fn go(&mut self, url: &str) {
        self.ask("Page.navigate", json!({"url": url}));
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'");
    }

    /// Sends a command and gives its result.
    pub fn ask(&mut self, method: &str, parameters: Value) -> Value {
        self.sent += 1;
        let mut command = json!({"id": self.sent, "method": method, "params": parameters});
        if !self.session.is_null() {
            command["sessionId"] = self.session.clone();
        }
        self.to.write_all(format!("{command}\0").as_bytes()).expect("the browser reads");
        loop {
            let answer = self.from.recv_timeout(Duration::from_secs(60)).expect("the browser answers");
            if answer["id"] == self.sent {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// What an expression gives in the page.
    pub fn eval(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true});
        let told = self.ask("Runtime.evaluate", asked);
        assert!(told["exceptionDetails"].is_null(), "{expression}: {told:#}");
        told["result"]["value"].clone()
    }

    /// Waits until an expression holds in the page.
    pub fn until(&mut self, expression: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        // Between two pages there is nothing to ask.
        while self.ask("Runtime.evaluate", json!({"expression": expression, "returnByValue": true}))["result"]["value"]
            != true
        {
            assert!(
                Instant::now() < deadline,
                "not within a minute: {expression}\n{}",
                self.eval("document.body.innerText")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses and lets go of a key, as a person does.
    pub fn press(&mut self, key: &str, code: u32) {
        for kind in ["rawKeyDown", "char", "keyUp"] {
            let text = if kind == "char" && key == "Enter" { "\r" } else { "" };
            if kind == "char" && text.is_empty() {
                continue;
            }
            self.ask(
                "Input.dispatchKeyEvent",
                json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text}),
            );
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = self.profile.path();
    }
}
