//! The dashboard in a real browser, over the whole service in memory.

use std::time::Duration;

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;

use crate::support::browser::Browser;
use crate::support::operators::Operators;
use crate::support::world::{World, org, team_set};

/// An org whose id would run, or hide, if it were taken for anything but text.
const HOSTILE: &str = "<img src=x onerror=\"window.ran=1\">../?\u{202e}&amp;";

/// Reads the row of an org in the table.
fn row(org: &str) -> String {
    format!(
        "[...document.querySelectorAll('#rows tr')].find(row => row.querySelector('bdi').textContent === {})",
        json!(org)
    )
}

fn press(org: &str, action: &str) -> String {
    format!("{}.querySelector('[data-action={action}]').click()", row(org))
}

fn chip(org: &str, text: &str) -> String {
    format!("{}?.querySelector('.chip').textContent.startsWith({})", row(org), json!(text))
}

async fn filled() -> Operators {
    let world = World::new();
    for n in 0..60 {
        world.issues(&org(&format!("org-{n:02}")), "1", 0, 5);
    }
    for team in 0..150 {
        world.issues(&org("many"), &team.to_string(), team * 10, 2);
    }
    world.runner().round(true, true).await.unwrap();
    world.issues(&org(HOSTILE), "1", 0, 3);
    Operators::new(world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_refresh_inspect_and_delete() {
    let operators = filled().await;
    let mut page = Browser::open(&operators.url("/"));
    page.until(&chip(HOSTILE, "No snapshot"));
    page.until("document.getElementById('link').textContent === 'Live'");
    assert_eq!(page.eval("document.getElementById('tile-orgs').textContent"), "62");
    assert_eq!(page.eval("document.querySelectorAll('#rows tr').length"), 50, "the worst ones");
    assert_eq!(page.eval("document.title"), "(1) Headstart operations");

    // A refresh, and the events that tell of it.
    page.eval(&press(HOSTILE, "refresh"));
    page.until("document.querySelector('#ended bdi') !== null");
    page.until("document.title === 'Headstart operations'");
    assert_eq!(page.eval("document.querySelector('#ended bdi').textContent"), HOSTILE);
    assert_eq!(page.eval("document.querySelector('#ended .chip').textContent"), "Published");

    // Others are found by their id.
    page.eval("search.value = 'MANY'; search.dispatchEvent(new Event('input'))");
    page.until("document.querySelectorAll('#rows tr').length === 1");
    page.until(&chip("many", "Fresh"));
    page.eval(&press("many", "inspect"));
    page.until("!document.getElementById('inspect-content').hidden");
    assert_eq!(page.eval("document.querySelector('#models th').textContent"), "Issue");
    assert_eq!(page.eval("document.getElementById('groups-count').textContent"), "150");
    page.eval("document.querySelector('#groups-box summary').click()");
    page.until("document.querySelectorAll('#groups tr').length === 100");
    page.eval("document.getElementById('more-groups').click()");
    page.until(
        "document.querySelectorAll('#groups tr').length === 150 && document.getElementById('more-groups').hidden",
    );
    page.eval("document.querySelector('#frames-box summary').click()");
    page.until("document.querySelectorAll('#frames tr').length === 100");
    page.press("Escape", 27);
    page.until("!document.getElementById('inspect').open");
    assert_eq!(
        page.eval("document.activeElement.dataset.action ?? 'none'"),
        "none",
        "a click by script moves no focus"
    );

    // Deletion asks first; Escape and Cancel are no.
    page.eval("search.value = 'img'; search.dispatchEvent(new Event('input'))");
    page.until(&format!("{} && document.querySelectorAll('#rows tr').length === 1", chip(HOSTILE, "Fresh")));
    for refuse in ["Escape", "Enter"] {
        page.eval(&format!("{}.querySelector('[data-action=delete]').focus()", row(HOSTILE)));
        page.press("Enter", 13);
        page.until("document.getElementById('confirm').open");
        assert_eq!(page.eval("document.querySelector('#confirm bdi').textContent"), HOSTILE);
        assert_eq!(page.eval("document.activeElement.textContent"), "Cancel", "the harmless answer is the ready one");
        page.press(refuse, if refuse == "Enter" { 13 } else { 27 });
        page.until("!document.getElementById('confirm').open && document.activeElement.dataset.action === 'delete'");
    }
    let name = percent_encoding::utf8_percent_encode(HOSTILE, percent_encoding::NON_ALPHANUMERIC).to_string();
    let snapshot = format!("/operations/snapshot?org={name}");
    assert_eq!(operators.send("GET", &snapshot, &[]).await.0, 200, "nothing was deleted");
    page.eval(&press(HOSTILE, "delete"));
    page.until("document.getElementById('confirm').open");
    page.eval("document.querySelector('#confirm .danger').click()");
    page.until(&chip(HOSTILE, "No snapshot"));
    assert_eq!(operators.send("GET", &snapshot, &[]).await.0, 404);
    page.until("document.getElementById('toast').textContent.startsWith('1 snapshot of ')");
    assert_eq!(page.eval("window.ran ?? 'never'"), "never", "an id is text");
    assert_eq!(page.eval("document.querySelectorAll('main img, dialog img').length"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_is_seen_to_go_on() {
    let world = World::new();
    let acme = org("acme");
    // Each row fills more than half a frame, so that frames are told of as rows come.
    let line =
        |id: usize| format!("{{\"__class\":\"Issue\",\"id\":\"{id}\",\"text\":\"{}\"}}\n", "x".repeat(700 << 10));
    for id in 0..32 {
        world.source.put(&acme, 0, &id.to_string(), team_set("1"), line(id));
    }
    world.runner().round(true, true).await.unwrap();
    world.source.allow(Some(0));
    let operators = Operators::new(world).await;
    let mut page = Browser::open(&operators.url("/"));
    page.until(&chip("acme", "Fresh"));
    page.eval(&press("acme", "refresh"));
    page.until("document.querySelector('#dumps progress') !== null");
    page.until("document.querySelector('#dumps .phase').textContent === 'Reads rows'");
    page.until("document.getElementById('tile-dumps').textContent === '1'");
    page.until(&chip("acme", "Dumping"));
    operators.world.source.allow(Some(1));
    page.until("document.querySelector('#dumps progress').value > 0.1");
    assert_eq!(page.eval("document.querySelector('#dumps progress').getAttribute('aria-label')"), "Dump of acme");
    let done = page.eval("document.querySelector('#dumps .done').textContent");
    assert!(done.as_str().unwrap().contains(" of about 32 rows"), "{done}");
    operators.world.source.allow(None);
    page.until("document.querySelector('#dumps progress') === null && document.querySelector('#ended bdi') !== null");

    // The charts draw what is counted.
    operators.metrics.request("/sync/bootstrap", 200);
    operators.metrics.sent_bytes.inc_by(1 << 20);
    page.until("document.querySelectorAll('.chart .stroke.one[d]').length === 4");
    // There are two points, so that there is one before the last: the service takes one every two seconds.
    page.until("document.querySelector('.chart .stroke.one').getAttribute('d').includes('L')");
    page.until("document.querySelector('.chart .summary').textContent.includes('in the last ten minutes')");
    page.eval("document.querySelector('.chart').focus()");
    page.press("ArrowLeft", 37);
    page.until("document.querySelector('.chart .value').textContent.endsWith('now')");
    page.press("ArrowLeft", 37);
    page.until("document.querySelector('.chart .value').textContent.endsWith('0:02 ago')");

    // When the service goes the page says so, and when the database does.
    operators.world.source.switch_off(true);
    page.until("document.getElementById('fault').textContent.startsWith('database: ')");
    operators.stop.cancel();
    page.until("document.getElementById('link').dataset.state === 'lost'");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_site_changes_nothing_though_the_browser_knows_the_password() {
    let token = "o".repeat(32);
    let world = World::new();
    world.issues(&org("acme"), "1", 0, 3);
    world.runner().round(true, true).await.unwrap();
    let operators = Operators::with(world, Some(&token)).await;
    let mut page = Browser::open(&operators.url("/"));
    assert_eq!(page.eval("document.getElementById('rows')"), json!(null), "no page without the token");
    // As a browser knows it once it was typed in.
    page.go(&format!("http://ops:{token}@{}/openapi.json", operators.address));
    page.go(&operators.url("/"));
    page.until(&chip("acme", "Fresh"));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let evil = Router::new().route("/", get(async || Html("<!doctype html><title>Evil</title>")));
    tokio::spawn(async move { axum::serve(listener, evil).await });
    page.go(&format!("http://127.0.0.1:{port}/"));
    page.until("document.title === 'Evil'");
    let send = |method: &str, call: &str, form: &str| {
        let url = operators.url(&format!("/operations/{call}?org=acme"));
        format!(
            "fetch({}, {{method: '{method}', mode: '{form}', credentials: 'include'}}).then(a => a.type, e => 'refused')",
            json!(url)
        )
    };
    assert_eq!(page.eval(&send("POST", "refresh", "no-cors")), "opaque", "it was sent, and not told the answer");
    assert_eq!(page.eval(&send("POST", "refresh", "cors")), "refused");
    assert_eq!(page.eval(&send("DELETE", "snapshots", "cors")), "refused");
    let framed = "new Promise(done => { const frame = document.createElement('iframe'); frame.onload = () => { \
                  try { done(frame.contentDocument === null) } catch { done(true) } }; frame.src = %; document.body.append(frame) })";
    assert_eq!(page.eval(&framed.replace('%', &json!(operators.url("/")).to_string())), true, "nor framed");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let bearer = format!("Bearer {token}");
    let (_, dumps) = operators.send("GET", "/operations/dumps", &[("authorization", &bearer)]).await;
    let ended = dumps["ended"].as_array().unwrap();
    assert_eq!((ended.len(), &dumps["inProgress"]), (1, &json!([])), "only the first one: {dumps}");
    let snapshot = operators.send("GET", "/operations/snapshot?org=acme", &[("authorization", &bearer)]).await;
    assert_eq!(snapshot.0, 200);
}
