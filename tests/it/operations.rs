//! The operations API and its events, over the whole service in memory. Every answer is held against the document.

use std::sync::Arc;
use std::time::Duration;

use headstart::dump::DumpSettings;
use headstart::model::Org;
use headstart::serve::survey::{OrgOrder, OrgSelection};
use headstart::store::MemoryStore;
use serde_json::{Value, json};

use crate::support::operators::Operators;
use crate::support::world::{World, caller, org, retention, team_set};

/// An org whose id does what it can to be taken for something else.
const HOSTILE: &str = "../<img src=x onerror=alert(1)>&?#%2e \"'\u{202e}";

/// Orgs `n00` to `n11` with a snapshot, of growing size; `void` and the hostile one without.
async fn filled() -> Operators {
    let world = World::new();
    for n in 0..12 {
        world.issues(&org(&format!("n{n:02}")), "1", 0, 10 + n);
    }
    world.runner().round(true, true).await.unwrap();
    world.issues(&org("void"), "1", 0, 3);
    world.issues(&org(HOSTILE), "1", 0, 3);
    Operators::new(world).await
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn ids(page: &Value) -> Vec<&str> {
    page["orgs"].as_array().unwrap().iter().map(|org| org["org"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn orgs_are_listed_worst_first_and_found() {
    let operators = filled().await;
    let world = &operators.world;
    // Past the soft limit, and past the hard one.
    world.issues(&org("n03"), "1", 100, 6);
    world.issues(&org("n05"), "1", 100, 30);
    world.bootstrap(&caller(&org("n07"), &["team:1"]), &Default::default()).await.unwrap();
    let page = operators.get("/operations/orgs").await;
    assert_eq!(ids(&page)[..4], [HOSTILE, "void", "n05", "n03"]);
    let of = |id: &str| page["orgs"].as_array().unwrap().iter().find(|org| org["org"] == id).unwrap();
    let standing = |id: &str| of(id)["standing"].as_str().unwrap().to_owned();
    assert_eq!(["void", "n05", "n03", "n00"].map(standing), ["missing", "unusable", "stale", "fresh"]);
    assert_eq!(
        (&of("n05")["snapshot"]["pending"], &page["pendingLimit"]),
        (&21.into(), &20.into()),
        "counted so far only"
    );
    assert_eq!(of("n03")["reason"], "6 actions came after the snapshot");
    assert_eq!((&of("n07")["lastAnswer"]["method"], &of("n00")["lastAnswer"]), (&"snapshot".into(), &Value::Null));
    let totals = json!({"orgs": 14, "missing": 2, "unusable": 1, "stale": 1, "unchecked": 0, "fresh": 10});
    for (figure, value) in totals.as_object().unwrap() {
        assert_eq!(&page["totals"][figure], value, "{figure}");
    }
    assert_eq!(page["totals"]["rows"], (0..12).map(|n| 10 + n).sum::<u64>());

    let page = operators.get("/operations/orgs?search=N0&order=org&offset=2&limit=3").await;
    assert_eq!((ids(&page), &page["matched"]), (vec!["n02", "n03", "n04"], &10.into()));
    assert_eq!(ids(&operators.get("/operations/orgs?order=size&limit=2").await), ["n11", "n10"]);
    assert_eq!(ids(&operators.get("/operations/orgs?order=pending&limit=2").await), ["n05", "n03"]);
    assert_eq!(ids(&operators.get(&format!("/operations/orgs?search={}", encoded("<IMG"))).await), [HOSTILE]);
    assert_eq!(operators.get("/operations/orgs?offset=4000000000").await["orgs"], json!([]));
    for bad in ["limit=0", "limit=501", "limit=x", "offset=-1", "order=best", "lim=1", "limit=1&limit=1"] {
        let refused = operators.refused("GET", &format!("/operations/orgs?{bad}"), &[]).await;
        assert_eq!(refused, (400, "INVALID_QUERY".into()), "{bad}");
    }
}

#[tokio::test]
async fn one_look_serves_all_who_come() {
    let world = World::new();
    world.issues(&org("acme"), "1", 0, 1);
    let looks = futures_util::future::join_all((0..50).map(|_| world.service.survey(Duration::from_secs(60)))).await;
    let first = looks[0].as_ref().unwrap();
    assert!(looks.iter().all(|look| Arc::ptr_eq(look.as_ref().unwrap(), first)));
    world.service.delete_snapshots(&org("acme")).await.unwrap();
    let after = world.service.survey(Duration::from_secs(60)).await.unwrap();
    assert!(!Arc::ptr_eq(&after, first), "what operators have changed is seen at once");
}

/// Ten thousand orgs are looked at in one go, and a page of them is small.
#[tokio::test]
async fn many_orgs_cost_one_look() {
    let world = World::new();
    for n in 0..10_000 {
        world.source.put(&Org::new(format!("org {n}")), 0, "1", team_set("1"), "{}\n".to_owned());
    }
    let selection = OrgSelection { search: "9".into(), order: OrgOrder::Org, offset: 10, limit: 5 };
    let page = world.service.orgs(selection, Duration::ZERO).await.unwrap();
    assert_eq!((page.orgs.len(), page.matched, page.totals.missing), (5, 3439, 10_000));
}

#[tokio::test]
async fn a_snapshot_is_looked_into_page_by_page() {
    let world = World::new();
    let acme = org("acme");
    for team in 0..7 {
        world.issues(&acme, &team.to_string(), team * 100, 10 * (team + 1));
        world.comment(&acme, &team.to_string(), &format!("c{team}"));
    }
    world.runner().round(true, true).await.unwrap();
    let operators = Operators::new(world).await;
    let content = operators.get("/operations/snapshot?org=acme").await;
    assert_eq!((&content["rows"], &content["groupSets"], &content["frames"]), (&287.into(), &7.into(), &14.into()));
    let models: Vec<_> = content["models"].as_array().unwrap().iter().map(|it| (&it["name"], &it["rows"])).collect();
    assert_eq!(models, [(&json!("Issue"), &json!(280)), (&json!("Comment"), &json!(7))]);

    let (mut frames, mut sets) = (Vec::new(), Vec::new());
    for offset in (0..14).step_by(4) {
        let page = operators.get(&format!("/operations/frames?org=acme&offset={offset}&limit=4")).await;
        frames.extend(page["frames"].as_array().unwrap().clone());
        let page = operators.get(&format!("/operations/groups?org=acme&offset={offset}&limit=4")).await;
        sets.extend(page["groupSets"].as_array().unwrap().clone());
    }
    assert_eq!((frames.len(), sets.len()), (14, 7));
    let sum = |items: &[Value], of: &str| items.iter().map(|item| item[of].as_u64().unwrap()).sum::<u64>();
    for figure in ["rows", "bytes", "rawBytes"] {
        let whole = content[figure].as_u64().unwrap();
        assert_eq!((sum(&frames, figure), sum(&sets, figure)), (whole, whole), "{figure}");
    }
    assert!(sets.windows(2).all(|pair| pair[0]["bytes"].as_u64() >= pair[1]["bytes"].as_u64()), "the largest first");

    let id = content["id"].as_str().unwrap();
    assert_eq!(operators.get(&format!("/operations/snapshot?org=acme&snapshot={id}")).await["id"], id);
    for (path, why) in [
        ("snapshot?org=nobody", (404, "NO_SNAPSHOT")),
        (&format!("snapshot?org=nobody&snapshot={id}"), (404, "NO_SNAPSHOT")),
        ("frames?org=acme&schema=old", (404, "NO_SNAPSHOT")),
        (&format!("frames?org=acme&schema=old&snapshot={id}"), (404, "NO_SNAPSHOT")),
        ("groups?org=acme&snapshot=x", (400, "INVALID_QUERY")),
        ("groups?org=", (400, "INVALID_QUERY")),
        ("groups", (400, "INVALID_QUERY")),
    ] {
        let refused = operators.refused("GET", &format!("/operations/{path}"), &[]).await;
        assert_eq!(refused, (why.0, why.1.to_owned()), "{path}");
    }
}

#[tokio::test]
async fn an_org_is_refreshed_and_its_snapshots_deleted() {
    let operators = filled().await;
    let at = |call: &str| format!("/operations/{call}?org={}", encoded(HOSTILE));
    assert_eq!(operators.refused("GET", &at("snapshot"), &[]).await.1, "NO_SNAPSHOT");
    let (status, refreshing) = operators.send("POST", &at("refresh"), &[]).await;
    assert_eq!(status, 202);
    operators.settled().await;
    assert_eq!(operators.get(&at("snapshot")).await["id"], refreshing["snapshot"]);
    let dumps = operators.get("/operations/dumps").await;
    let ended = &dumps["ended"][0];
    assert_eq!(
        (&ended["id"], &ended["outcome"], &ended["rows"]),
        (&refreshing["snapshot"], &"published".into(), &3.into())
    );

    let unknown = operators.refused("POST", "/operations/refresh?org=nobody", &[]).await;
    assert_eq!(unknown, (404, "UNKNOWN_ORG".into()));
    let world = &operators.world;
    world.issues(&org("new"), "1", 0, 1);
    assert_eq!(operators.send("POST", "/operations/refresh?org=new", &[]).await.0, 202, "made since the last look");

    assert_eq!(operators.send("DELETE", &at("snapshots"), &[]).await.1, json!({"snapshots": 1}));
    assert_eq!(operators.send("DELETE", &at("snapshots"), &[]).await.1, json!({"snapshots": 0}));
    assert_eq!(operators.refused("GET", &at("snapshot"), &[]).await.1, "NO_SNAPSHOT");
    let page = operators.get("/operations/orgs?search=img").await;
    assert_eq!(page["orgs"][0]["standing"], "missing");
    assert_eq!(
        operators.refused("DELETE", "/operations/refresh?org=n00", &[]).await,
        (405, "METHOD_NOT_ALLOWED".into())
    );
    world.source.switch_off(true);
    assert_eq!(operators.refused("POST", "/operations/refresh?org=x", &[]).await, (503, "DATABASE_UNAVAILABLE".into()));
}

#[tokio::test]
async fn past_the_bounds_a_refresh_is_refused() {
    let settings = DumpSettings { concurrent: 1, waiting: 1, ..DumpSettings::default() };
    let world = World::with(settings, Arc::new(MemoryStore::new(retention())));
    for name in ["a", "b", "c"] {
        world.issues(&org(name), "1", 0, 100);
    }
    world.source.allow(Some(0));
    let operators = Operators::new(world).await;
    assert_eq!(operators.send("POST", "/operations/refresh?org=a", &[]).await.0, 202);
    while operators.get("/operations/dumps").await["inProgress"][0]["phase"] != "reading" {
        tokio::task::yield_now().await;
    }
    let (_, waiting) = operators.send("POST", "/operations/refresh?org=b", &[]).await;
    let (_, again) = operators.send("POST", "/operations/refresh?org=b", &[]).await;
    assert_eq!(waiting, again, "impatience makes no second dump");
    assert_eq!(operators.refused("POST", "/operations/refresh?org=c", &[]).await, (503, "OVERLOADED".into()));
    let dumps = operators.get("/operations/dumps").await;
    let phases: Vec<_> = dumps["inProgress"].as_array().unwrap().iter().map(|dump| dump["phase"].clone()).collect();
    assert_eq!(
        (phases, &dumps["inProgress"][0]["expectedRows"]),
        (vec!["reading".into(), "waiting".into()], &100.into())
    );
    operators.world.source.switch_off(true);
    operators.world.source.allow(None);
    operators.settled().await;
    let dumps = operators.get("/operations/dumps").await;
    assert_eq!((&dumps["ended"][0]["outcome"], &dumps["inProgress"]), (&"source".into(), &json!([])), "{dumps}");
}

#[tokio::test]
async fn other_sites_are_refused_whatever_they_ask() {
    let operators = filled().await;
    let own = operators.url("");
    let cross = (403, "CROSS_SITE".to_owned());
    for (method, path) in [
        ("POST", "/operations/refresh?org=void"),
        ("DELETE", "/operations/snapshots?org=n00"),
        ("GET", "/operations/events"),
        ("GET", "/operations/orgs"),
    ] {
        for headers in [
            &[("sec-fetch-site", "cross-site")][..],
            &[("sec-fetch-site", "same-site"), ("origin", &own)],
            &[("origin", "http://evil.example")],
            &[("origin", "null")],
            &[("host", "evil.example:8081")],
        ] {
            assert_eq!(operators.refused(method, path, headers).await, cross, "{method} {path} {headers:?}");
        }
    }
    let form = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
    assert_eq!(operators.refused("POST", "/operations/refresh?org=void", &form).await, cross);
    assert_eq!(operators.send("GET", "/", &form).await.0, 200, "a link may lead to the page");
    let listed = operators.get("/operations/orgs?search=n00").await;
    assert_eq!(listed["orgs"][0]["standing"], "fresh");
    assert_eq!(operators.get("/operations/dumps").await["inProgress"], json!([]));
    for headers in [&[("origin", &*own)][..], &[("sec-fetch-site", "same-origin"), ("origin", &own)], &[]] {
        assert_eq!(operators.send("POST", "/operations/refresh?org=void", headers).await.0, 202, "{headers:?}");
    }
}

#[tokio::test]
async fn without_the_token_nothing_is_told_and_with_it_names_are_free() {
    let token = "o".repeat(32);
    let world = World::new();
    world.issues(&org("acme"), "1", 0, 1);
    let operators = Operators::with(world, Some(&token)).await;
    let paths = operators.document["paths"].as_object().unwrap();
    let probes = ["/livez", "/readyz"];
    let guarded = paths.keys().filter(|path| !probes.contains(&path.as_str()));
    for path in guarded.map(String::as_str).chain(["/", "/dashboard.js", "/icon.svg", "/openapi.json"]) {
        let method = paths.get(path).and_then(|it| it.as_object()?.keys().next()).map_or("get", String::as_str);
        let (status, body) = operators.send(&method.to_uppercase(), path, &[]).await;
        assert_eq!((status.as_u16(), body), (401, Value::Null), "{path}");
    }
    let bearer = format!("Bearer {token}");
    let named = [("authorization", bearer.as_str()), ("host", "ops.example.com")];
    assert_eq!(operators.send("GET", "/operations/orgs", &named).await.0, 200);
    let cross = [("authorization", bearer.as_str()), ("sec-fetch-site", "cross-site")];
    assert_eq!(operators.refused("POST", "/operations/refresh?org=acme", &cross).await.1, "CROSS_SITE");
}

#[tokio::test]
async fn events_tell_what_changes_and_end_with_the_service() {
    let operators = filled().await;
    let mut events = operators.events().await;
    let first = events.until("orgs", |_| true).await;
    assert_eq!((&first["page"]["totals"]["missing"], &first["health"][0]["name"]), (&2.into(), &"database".into()));
    operators.metrics.request("/sync/bootstrap", 200);
    operators.send("POST", "/operations/refresh?org=void", &[]).await;
    let dumps = events.until("dumps", |dumps| dumps["ended"][0]["org"] == "void").await;
    assert_eq!(dumps["ended"][0]["outcome"], "published");
    events.until("orgs", |orgs| orgs["page"]["totals"]["missing"] == 1).await;
    // Who comes later gets what was before; who follows gets point by point.
    let mut later = operators.events().await;
    let history = later.until("history", |history| !history["points"].as_array().unwrap().is_empty()).await;
    let points = history["points"].as_array().unwrap();
    assert_eq!(points.iter().map(|point| point["served"].as_u64().unwrap()).sum::<u64>(), 1, "{history}");
    later.until("point", |_| true).await;
    operators.world.source.switch_off(true);
    let down = events.until("orgs", |orgs| orgs["health"][0]["status"] == "down").await;
    assert!(down["health"][0]["reason"].is_string());

    operators.stop.cancel();
    while events.next().await.is_some() {}
    while later.next().await.is_some() {}
}

#[tokio::test]
async fn pages_that_watch_are_bounded() {
    let operators = filled().await;
    let mut watching = Vec::new();
    for _ in 0..64 {
        watching.push(operators.events().await);
    }
    assert_eq!(operators.refused("GET", "/operations/events", &[]).await, (503, "OVERLOADED".into()));
    drop(watching);
    // The server notices at the next event that they have gone.
    while operators.request("GET", "/operations/events").send().await.unwrap().status() != 200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
