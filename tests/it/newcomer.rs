//! What the README tells a newcomer to type, typed: the six steps to a first bootstrap, and the client it shows.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::postgres::Database;
use crate::support::server::free_port;
use crate::support::studio::{self, visible};

const README: &str = include_str!("../../README.md");

/// The first block of code in a language below a heading.
fn block(heading: &str, language: &str) -> &'static str {
    let (_, section) = README.split_once(&format!("\n## {heading}\n")).expect("the section");
    let (_, code) = section.split_once(&format!("\n```{language}\n")).expect("its code");
    code.split_once("\n```\n").expect("its end").0
}

/// Runs a command to its end, which has to be a good one; gives what it printed.
fn run(command: &mut Command, input: &str) -> String {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("start it");
    let written = child.stdin.take().expect("its input").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("its end");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    written.expect("write its input");
    out.into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_six_steps_lead_to_a_first_bootstrap() {
    let database = Database::create().await;
    let client = database.connect().await;
    client.batch_execute(include_str!("init/tracker.sql")).await.expect("the tables");
    let (org, user) = ("0a0a0a0a-0000-4000-8000-000000000001", "0a0a0a0a-0000-4000-8000-000000000002");
    let rows = format!(
        "INSERT INTO core.companies VALUES ('{org}', 'Acme'), (gen_random_uuid(), 'Other');
         INSERT INTO core.people VALUES ('{user}', '{org}', 'ann@example.com', 'Ann', 'never leaves');
         ANALYZE"
    );
    client.batch_execute(&rows).await.expect("its rows");

    let (listen, admin) = (free_port(), free_port());
    let steps = block("Use it on your own database", "sh");
    let typed = steps.lines().map(|line| match line {
        // The binary is there: that of this test.
        line if line.starts_with("cargo install") => String::new(),
        line if line.starts_with("export HEADSTART_POSTGRES_URL=") => {
            format!("export HEADSTART_POSTGRES_URL='{}'", database.url())
        }
        // A person takes a moment to type the next line.
        "headstart serve &" => format!(
            "headstart serve 2>log & trap 'kill $!' EXIT
             until curl -fs -o ready http://127.0.0.1:{admin}/readyz; do kill -0 $! || {{ cat log >&2; exit 1; }}; sleep 0.1; done"
        ),
        line => line.replace("ORG", org).replace("USER", user).replace(":8080", &format!(":{listen}")),
    });
    let typed = typed.collect::<Vec<_>>().join("\n");
    assert!(typed.contains("/readyz") && typed.contains(org) && typed.contains(&database.url()), "{typed}");
    let folder = TempDir::new().expect("an empty folder");
    let binary = Path::new(env!("CARGO_BIN_EXE_headstart")).parent().expect("its folder");
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").expect("a path"));
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail"]).current_dir(folder.path()).env("PATH", path);
    shell.env("HEADSTART_HTTP_LISTEN", format!("127.0.0.1:{listen}"));
    shell.env("HEADSTART_ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
    let printed = run(&mut shell, &typed);

    let answer = &printed[printed.find("{\"__class\"").expect("an answer")..];
    let (lines, metadata) = studio::parse(answer.as_bytes());
    let classes = lines.iter().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["__class"].clone());
    assert_eq!(classes.collect::<Vec<_>>(), ["Company", "Person"], "{printed}");
    assert_eq!(metadata["returnedModelsCount"]["Person"], 1);
    assert!(!answer.contains("Other") && !answer.contains("never leaves"), "{answer}");
}

/// Has the client sync once for each line of its input, and tell its rows.
const DRIVER: &str = r#"
import { sync } from "./client.js";
import { createInterface } from "node:readline";
let state;
for await (const line of createInterface({ input: process.stdin })) {
  state = await sync(process.argv[2], process.argv[3], state);
  console.log(JSON.stringify([...state.rows.values()]));
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_client_ends_with_the_rows_that_sql_gives() {
    let (_database, client, setup) = studio::with_log(5, studio::CATALOG).await;
    let folder = TempDir::new().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("write it");
    write("client.ts", block("A client", "ts"));
    write("driver.js", DRIVER);
    write("package.json", r#"{"type": "module"}"#);
    let compiler = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/dev/typescript.sh");
    run(Command::new(compiler).arg("compile").arg(folder.path().join("client.ts")).arg(folder.path()), "");

    let server = setup.serve().await;
    let mut node = Command::new("node");
    node.arg("driver.js").arg(&server.base).arg(setup.token("7", "ann", None)).current_dir(folder.path());
    let mut child = node.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start node");
    let mut input = child.stdin.take().expect("its input");
    let mut told = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("its output")));
    let changes = [
        // The bootstrap.
        "",
        "UPDATE studio.task SET title = 'new' WHERE id % 3 = 0;
         DELETE FROM studio.task WHERE id % 5 = 0;
         INSERT INTO studio.star VALUES (1000, 7, 'ann', 1), (1001, 7, 'bob', 1)",
        r#"UPDATE studio."Project" SET circle_ids = '{3}' WHERE circle_ids = '{1}'"#,
        "DELETE FROM studio.circle_member WHERE person = 'ann' AND circle = 2",
        "INSERT INTO studio.circle_member VALUES (7, 'ann', 3)",
        "",
    ];
    for change in changes {
        client.batch_execute(change).await.expect("a change");
        writeln!(input, "sync").expect("tell it");
        let rows = told.next().expect("it answers").expect("a line");
        let rows: Vec<Value> = serde_json::from_str(&rows).expect("rows");
        // A delta tells of partial models too.
        let models = ["Workspace", "Project", "Task", "Star"];
        let held = rows.iter().filter(|row| models.iter().any(|model| row["__class"] == **model));
        let mut held: Vec<String> = held.map(Value::to_string).collect();
        held.sort_unstable();
        assert_eq!(held, visible(&client, 7, "ann", None, &models).await, "after {change}");
    }
    drop(input);
    assert!(child.wait().expect("its end").success());
}
