//! Dumps and bootstraps over the two seams in memory: who shares a scan, what becomes of followers, what is served.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use headstart::dump::{DumpError, DumpSettings};
use headstart::model::{BootstrapQuery, Epoch, Generation, SchemaHash, SnapshotId, SyncGroup, SyncId};
use headstart::serve::{Content, ServeError};
use headstart::source::Source;
use headstart::source::memory::Fate;
use headstart::store::{Facts, Head, MemoryStore, Slot};
use tokio::time::{advance, sleep, timeout};

use crate::support::dice::Dice;
use crate::support::world::{World, caller, org, receive, retention, schema};

pub fn full() -> BootstrapQuery {
    BootstrapQuery { no_sync_packets: true, ..BootstrapQuery::default() }
}

fn no_cache() -> BootstrapQuery {
    BootstrapQuery { no_cache: true, ..full() }
}

/// Waits until no dump runs or waits: what was made is published or given up.
pub async fn settled(world: &World) {
    for live in world.dumps.in_progress() {
        live.wait_settled().await;
    }
}

#[tokio::test]
async fn the_first_answer_is_live_and_the_second_a_snapshot() {
    let world = World::new();
    let acme = org("acme");
    world.issues(&acme, "1", 0, 100);
    world.issues(&acme, "2", 100, 50);
    world.comment(&acme, "1", "c1");
    world.issues(&org("other"), "1", 0, 10);
    let (one, both) = (caller(&acme, &["team:1"]), caller(&acme, &["team:1", "team:2"]));
    let first = world.bootstrap(&one, &full()).await.unwrap();
    assert_eq!(first.method(), "postgres");
    assert_eq!(first.lines, world.expected(&one, &[0]));
    assert_eq!(first.trailer["returnedModelsCount"], serde_json::json!({ "Issue": 100 }));
    assert_eq!(first.trailer["subscribedSyncGroups"], serde_json::json!(["team:1"]));
    settled(&world).await;
    for who in [&one, &both, &caller(&acme, &["team:3"])] {
        let answer = world.bootstrap(who, &full()).await.unwrap();
        assert_eq!(answer.method(), "snapshot");
        assert_eq!(answer.lines, world.expected(who, &[0]));
        assert_eq!(answer.trailer["lastSyncId"], first.trailer["lastSyncId"]);
    }
    let partial =
        BootstrapQuery { partial: true, sync_groups: Some(BTreeSet::from([SyncGroup::new("team:1")])), ..full() };
    let answer = world.bootstrap(&both, &partial).await.unwrap();
    assert_eq!(answer.lines, world.expected(&one, &[0, 1]), "of one group, every model the snapshot has");
    assert_eq!(world.source.scans(), 1);
}

#[tokio::test]
async fn a_crowd_shares_one_scan_and_reads_at_its_own_pace() {
    let world = Arc::new(World::new());
    let acme = org("acme");
    for team in 0..10 {
        world.issues(&acme, &team.to_string(), team * 100, 100);
    }
    world.source.allow(Some(3));
    let crowd: Vec<_> = (0..200)
        .map(|n| {
            let (world, acme) = (world.clone(), acme.clone());
            async move {
                let caller = caller(&acme, &[&format!("team:{}", n % 10)]);
                let answer = world.bootstrap(&caller, &full()).await.unwrap();
                assert_eq!(answer.lines, world.expected(&caller, &[0]));
            }
        })
        .collect();
    let crowd = tokio::spawn(join_all(crowd));
    while world.source.scans() == 0 {
        tokio::task::yield_now().await;
    }
    world.source.allow(None);
    crowd.await.unwrap();
    settled(&world).await;
    assert_eq!(world.source.scans(), 1);
    let late = caller(&acme, &["team:3"]);
    assert_eq!(world.bootstrap(&late, &full()).await.unwrap().method(), "snapshot");
}

#[tokio::test]
async fn when_the_database_dies_every_follower_breaks_and_nothing_is_published() {
    let world = World::new();
    let acme = org("acme");
    world.issues(&acme, "1", 0, 100);
    let who = caller(&acme, &["team:1"]);
    world.source.allow(Some(2));
    let query = full();
    let answers = join_all((0..5).map(|_| world.service.bootstrap(&who, &query))).await;
    world.source.switch_off(true);
    for answer in answers {
        let broken = receive(answer.unwrap()).await.unwrap_err();
        assert!(matches!(broken, ServeError::Dump(DumpError::Source(_))), "{broken:?}");
    }
    settled(&world).await;
    assert_eq!(world.store.head(&world.slot(&acme)).await.unwrap(), Head::default());
    assert!(matches!(world.service.bootstrap(&who, &full()).await, Err(ServeError::Source(_))));
    world.source.switch_off(false);
    world.source.allow(None);
    let afresh = world.bootstrap(&who, &full()).await.unwrap();
    assert_eq!(afresh.lines, world.expected(&who, &[0]));
    assert_eq!(world.source.scans(), 2);
    settled(&world).await;
    assert_eq!(world.dumps.spool_bytes(), 0, "no spool is left");
}

#[tokio::test]
async fn a_reader_that_leaves_stops_nobody() {
    let world = World::new();
    let acme = org("acme");
    world.issues(&acme, "1", 0, 100);
    let who = caller(&acme, &["team:1"]);
    world.source.allow(Some(1));
    drop(world.service.bootstrap(&who, &full()).await.unwrap());
    let stays = world.service.bootstrap(&who, &full()).await.unwrap();
    world.source.allow(None);
    assert_eq!(receive(stays).await.unwrap().lines, world.expected(&who, &[0]));
    settled(&world).await;
    assert_eq!(world.source.scans(), 1);
}

#[tokio::test]
async fn changes_make_it_stale_and_then_unusable() {
    let world = World::new();
    let acme = org("acme");
    world.issues(&acme, "1", 0, 30);
    let who = caller(&acme, &["team:1"]);
    world.bootstrap(&who, &full()).await.unwrap();
    settled(&world).await;
    // Six pending actions: past the soft limit, so the old one is served and a new one made behind.
    world.issues(&acme, "1", 30, 6);
    let stale = world.bootstrap(&who, &full()).await.unwrap();
    assert_eq!((stale.method(), stale.lines.len()), ("snapshot", 30));
    settled(&world).await;
    assert_eq!(world.source.scans(), 2);
    // Past the hard limit, what was published is not served.
    world.issues(&acme, "1", 36, 21);
    let new = world.bootstrap(&who, &full()).await.unwrap();
    assert_eq!((new.method(), new.lines.len()), ("postgres", 57));
    settled(&world).await;
    let head = world.store.head(&world.slot(&acme)).await.unwrap();
    assert_eq!((head.generation, head.current.unwrap().facts.sync_id), (Generation(3), SyncId(57)));
}

/// What others commit while a writer stays open is in no answer yet, however much it is, and nothing is made in vain.
#[tokio::test]
async fn a_watermark_that_is_held_back_makes_answers_older_and_nothing_else() {
    let world = World::new();
    let acme = org("acme");
    world.issues(&acme, "1", 0, 30);
    let who = caller(&acme, &["team:1"]);
    world.bootstrap(&who, &full()).await.unwrap();
    settled(&world).await;
    world.source.hold_watermark(true);
    // More than the hard limit.
    world.issues(&acme, "1", 30, 30);
    let catching_up = BootstrapQuery { no_sync_packets: false, ..full() };
    for query in [full(), catching_up.clone()] {
        let answer = world.bootstrap(&who, &query).await.unwrap();
        assert_eq!((answer.method(), answer.lines.len()), ("snapshot", 30));
        assert_eq!(answer.trailer["lastSyncId"], 30);
    }
    world.runner().round(false, false).await.unwrap();
    settled(&world).await;
    let head = world.store.head(&world.slot(&acme)).await.unwrap();
    assert_eq!((head.generation, world.source.scans()), (Generation(1), 1), "nothing newer can be made");
    world.source.hold_watermark(false);
    let answer = world.bootstrap(&who, &catching_up).await.unwrap();
    assert_eq!((answer.lines.len(), &answer.trailer["lastSyncId"]), (60, &60.into()));
    settled(&world).await;
    // Where the log does not reach back, as after a trigger was made anew, what is stored is not the newest there is.
    world.source.hold_watermark(true);
    world.issues(&acme, "1", 60, 30);
    world.source.trim(SyncId::MAX, Duration::ZERO, u64::MAX).await.unwrap();
    let scans = world.source.scans();
    let answer = world.bootstrap(&who, &full()).await.unwrap();
    assert_eq!((answer.method(), answer.lines.len(), world.source.scans()), ("postgres", 90, scans + 1));
}

#[tokio::test]
async fn demands_are_met_or_refused() {
    let world = World::new();
    let acme = org("acme");
    world.issues(&acme, "1", 0, 3);
    let who = caller(&acme, &["team:1"]);
    let needs = |id| BootstrapQuery { first_sync_id: Some(SyncId(id)), ..full() };
    world.bootstrap(&who, &full()).await.unwrap();
    settled(&world).await;
    assert_eq!(world.bootstrap(&who, &needs(3)).await.unwrap().method(), "snapshot");
    world.issues(&acme, "1", 3, 1);
    let newer = world.bootstrap(&who, &needs(4)).await.unwrap();
    // What is published lacks it: it is refreshed, and served then.
    assert_eq!((newer.method(), newer.lines.len()), ("snapshot", 4));
    settled(&world).await;
    let ahead = world.bootstrap(&who, &needs(5)).await;
    assert!(matches!(ahead, Err(ServeError::Ahead { watermark: SyncId(4) })), "{ahead:?}");
    assert_eq!(world.source.scans(), 1, "nothing is read in vain for an id that is not there");
    assert_eq!(world.bootstrap(&who, &no_cache()).await.unwrap().method(), "postgres");
    settled(&world).await;
    assert_eq!(world.source.scans(), 2);
    let other = BootstrapQuery { schema_hash: Some(schema("text").hash.clone()), ..full() };
    assert!(matches!(world.bootstrap(&who, &other).await, Err(ServeError::SchemaMismatch { .. })));
    let named = |name: &str| BootstrapQuery { only_models: Some(BTreeSet::from([name.to_owned()])), ..full() };
    assert!(matches!(world.bootstrap(&who, &named("Nope")).await, Err(ServeError::UnknownModel(_))));
    assert!(matches!(world.bootstrap(&who, &named("Attachment")).await, Err(ServeError::ExplicitModel(_))));
    assert_eq!(world.bootstrap(&who, &named("Comment")).await.unwrap().lines, [""; 0]);
    let foreign =
        BootstrapQuery { partial: true, sync_groups: Some(BTreeSet::from([SyncGroup::new("team:2")])), ..full() };
    assert!(matches!(world.bootstrap(&who, &foreign).await, Err(ServeError::GroupNotHeld(_))));
}

#[tokio::test]
async fn no_cache_never_joins_a_read_that_began_before() {
    let world = World::new();
    let acme = org("acme");
    world.issues(&acme, "1", 0, 100);
    let who = caller(&acme, &["team:1"]);
    world.source.allow(Some(1));
    let first = world.service.bootstrap(&who, &full()).await.unwrap();
    world.issues(&acme, "1", 100, 1);
    let (joins, new) = {
        let service = world.service.clone();
        let joins = service.bootstrap(&who, &full()).await.unwrap();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let (service, who) = (service.clone(), who.clone());
                tokio::spawn(async move { receive(service.bootstrap(&who, &no_cache()).await?).await })
            })
            .collect();
        (joins, waiting)
    };
    while world.dumps.in_progress().len() < 2 {
        tokio::task::yield_now().await;
    }
    world.source.allow(None);
    assert_eq!(receive(first).await.unwrap().lines.len(), 100);
    assert_eq!(receive(joins).await.unwrap().lines.len(), 100);
    for answer in new {
        assert_eq!(answer.await.unwrap().unwrap().lines.len(), 101);
    }
    settled(&world).await;
    assert_eq!(world.source.scans(), 2, "those who want a new one share it");
}

/// More objects change after a dump began than an answer may tell of, some of them again and again: wherever the answer
/// stops, it tells of every object that changed up to there.
#[tokio::test]
async fn an_answer_that_stops_earlier_leaves_nothing_out() {
    let mut dice = Dice::seeded();
    println!("HEADSTART_TEST_SEED={}", dice.seed());
    for _ in 0..40 {
        let world = World::new();
        let acme = org("acme");
        let caller = caller(&acme, &["team:1"]);
        let objects = 1 + dice.below(60);
        world.issues(&acme, "1", 0, objects);
        world.source.allow(Some(0));
        let first = world.service.bootstrap(&caller, &full()).await.unwrap();
        let began = first.facts.last_sync_id;
        let changed: Vec<usize> = (0..dice.below(120)).map(|_| dice.below(objects)).collect();
        changed.iter().for_each(|issue| world.issues(&acme, "1", *issue, 1));
        let last = began.0 + changed.len() as u64;
        let wish = (dice.below(2) == 0).then(|| SyncId(began.0 + dice.below(changed.len() + 1) as u64));
        let query = BootstrapQuery { first_sync_id: wish, ..BootstrapQuery::default() };
        let release = async {
            // A dump that is true at what was asked for may have to be made behind the first.
            sleep(Duration::from_millis(5)).await;
            world.source.allow(None);
        };
        let (answer, ()) = tokio::join!(world.service.bootstrap(&caller, &query), release);
        let answer = answer.unwrap();
        let (from, to) = (answer.facts.snapshot.as_ref().unwrap().sync_id, answer.facts.last_sync_id);
        assert!(to >= wish.unwrap_or_default() && to.0 <= last, "{wish:?}: {to}");
        let lines: Vec<Bytes> = answer.actions.unwrap().lines().try_collect().await.unwrap();
        let told = lines.concat();
        let told = told.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| {
            let action: serde_json::Value = serde_json::from_slice(line).unwrap();
            action["modelId"].as_str().unwrap().parse().unwrap()
        });
        let told: BTreeSet<usize> = told.collect();
        let ids = (began.0 + 1..).zip(&changed).filter(|(id, _)| from.0 < *id && *id <= to.0);
        assert_eq!(told, ids.map(|(_, issue)| *issue).collect(), "from {from} to {to} of {changed:?}");
    }
}

#[tokio::test]
async fn another_epoch_or_schema_makes_a_snapshot_unusable() {
    let world = World::new();
    let acme = org("acme");
    world.issues(&acme, "1", 0, 3);
    let who = caller(&acme, &["team:1"]);
    world.bootstrap(&who, &full()).await.unwrap();
    settled(&world).await;
    world.source.change_epoch("memory-2");
    let answer = world.bootstrap(&who, &full()).await.unwrap();
    assert_eq!((answer.method(), &answer.trailer["epoch"]), ("postgres", &"memory-2".into()));
    settled(&world).await;
    world.source.change_schema(schema("text"));
    let answer = world.bootstrap(&who, &full()).await.unwrap();
    assert_eq!((answer.method(), &answer.trailer["schemaHash"]), ("postgres", &schema("text").hash.as_str().into()));
    settled(&world).await;
    assert_eq!(world.store.heads().await.unwrap().len(), 2, "the versions do not evict each other");
}

#[tokio::test]
async fn past_the_bounds_dumps_are_refused_or_fail_with_the_reason() {
    let settings = DumpSettings { concurrent: 1, waiting: 1, ..DumpSettings::default() };
    let world = World::with(settings, Arc::new(MemoryStore::new(retention())));
    for name in ["a", "b", "c"] {
        world.issues(&org(name), "1", 0, 100);
    }
    world.source.allow(Some(0));
    let start = |name: &str| {
        let (service, who) = (world.service.clone(), caller(&org(name), &["team:1"]));
        tokio::spawn(async move { receive(service.bootstrap(&who, &full()).await?).await })
    };
    let first = start("a");
    while world.source.scans() == 0 {
        tokio::task::yield_now().await;
    }
    let second = start("b");
    while world.dumps.in_progress().len() < 2 {
        tokio::task::yield_now().await;
    }
    let refused = world.service.bootstrap(&caller(&org("c"), &["team:1"]), &full()).await;
    assert!(matches!(refused, Err(ServeError::Dump(DumpError::Overloaded))));
    world.source.allow(None);
    assert_eq!(first.await.unwrap().unwrap().lines.len(), 100);
    assert_eq!(second.await.unwrap().unwrap().lines.len(), 100);

    let tiny = DumpSettings { spool_max_bytes: 10, ..DumpSettings::default() };
    let world = World::with(tiny, Arc::new(MemoryStore::new(retention())));
    world.issues(&org("a"), "1", 0, 100);
    let failed = world.bootstrap(&caller(&org("a"), &["team:1"]), &full()).await.unwrap_err();
    assert!(matches!(failed, ServeError::Dump(DumpError::SpoolFull { limit: 10 })), "{failed:?}");
    settled(&world).await;
    assert_eq!(world.dumps.spool_bytes(), 0);
}

#[tokio::test]
async fn the_background_job_takes_what_is_due_and_drops_what_is_gone() {
    let world = World::new();
    let (acme, bolt) = (org("acme"), org("bolt"));
    world.issues(&acme, "1", 0, 10);
    world.issues(&bolt, "1", 0, 10);
    let runner = world.runner();
    runner.round(true, true).await.unwrap();
    assert_eq!(world.source.scans(), 2);
    runner.round(true, false).await.unwrap();
    assert_eq!(world.source.scans(), 2, "nothing changed");
    world.issues(&acme, "1", 10, 6);
    world.issues(&bolt, "1", 10, 2);
    runner.round(false, false).await.unwrap();
    assert_eq!(world.source.scans(), 3, "only one is past the soft limit");
    for id in 0..12 {
        world.source.remove(&bolt, 0, &id.to_string());
    }
    runner.round(true, false).await.unwrap();
    assert_eq!(world.store.head(&world.slot(&bolt)).await.unwrap().current, None);
    assert!(world.store.head(&world.slot(&acme)).await.unwrap().current.is_some());
}

/// What has ended since the last round may be due again.
#[tokio::test(start_paused = true)]
async fn an_org_that_is_always_written_to_is_refreshed_in_every_round() {
    let world = World::new();
    let acme = org("acme");
    world.issues(&acme, "1", 0, 100);
    world.runner().start(world.tasks.token().clone());
    let every = Duration::from_secs(world.dumps.settings().interval_s);
    for round in 1..=10 {
        sleep(every).await;
        let head = world.store.head(&world.slot(&acme)).await.unwrap();
        assert_eq!(head.generation, Generation(round));
        // Past the soft limit.
        world.issues(&acme, "1", 0, 8);
    }
}

/// One that takes long takes a place, and no more: rounds go on.
#[tokio::test(start_paused = true)]
async fn the_background_job_does_not_wait_for_the_slowest() {
    let world = World::new();
    let (slow, quick) = (org("slow"), org("quick"));
    world.issues(&slow, "1", 0, 100);
    world.runner().round(true, false).await.unwrap();
    // It is refreshed, and the look-ups take for ever.
    world.issues(&slow, "1", 0, 8);
    world.source.set_fate(Fate::Held);
    world.runner().start(world.tasks.token().clone());
    sleep(Duration::from_secs(100)).await;
    let head = async |org| world.store.head(&world.slot(org)).await.unwrap();
    assert_eq!((head(&slow).await.generation, world.dumps.in_progress().len()), (Generation(1), 1));
    world.issues(&quick, "1", 0, 3);
    sleep(Duration::from_secs(1000)).await;
    assert_eq!((head(&slow).await.generation, world.dumps.in_progress().len()), (Generation(1), 1));
    assert_eq!(head(&quick).await.generation, Generation(1));
    world.source.set_fate(Fate::Answered);
    sleep(Duration::from_secs(100)).await;
    assert_eq!(head(&slow).await.generation, Generation(2));
}

#[tokio::test(start_paused = true)]
async fn old_schemas_go_once_nobody_has_published_in_them_for_long() {
    let world = World::with(
        DumpSettings { old_schemas_s: 100_000, ..DumpSettings::default() },
        Arc::new(MemoryStore::new(retention())),
    );
    let acme = org("acme");
    world.issues(&acme, "1", 0, 10);
    let runner = world.runner();
    let slot = |schema: &str| Slot { org: acme.clone(), schema: SchemaHash::new(schema) };
    let publish = async |slot: &Slot, sync_id: u64| {
        let (epoch, packs) = (Epoch::new("e"), Vec::new());
        let sync_id = SyncId(sync_id);
        let facts = Facts { id: SnapshotId::random(), epoch, sync_id, rows: 0, raw_len: 0, len: 0, packs };
        let over = world.store.head(slot).await.unwrap().generation;
        world.store.publish(slot, over, &facts, Bytes::new()).await.unwrap();
    };
    let held = async |slot: &Slot| world.store.head(slot).await.unwrap().current.is_some();
    let (left, in_use) = (slot("left"), slot("in use"));
    runner.round(true, false).await.unwrap();
    publish(&left, 1).await;
    publish(&in_use, 1).await;
    advance(Duration::from_secs(99_000)).await;
    publish(&in_use, 2).await;
    runner.round(true, false).await.unwrap();
    assert!(held(&left).await && held(&in_use).await, "a deploy that goes on, and the way back");
    advance(Duration::from_secs(2_000)).await;
    runner.round(false, false).await.unwrap();
    assert!(held(&left).await, "only when it looks which orgs there are");
    runner.round(true, false).await.unwrap();
    assert!(!held(&left).await && held(&in_use).await);
    assert!(held(&world.slot(&acme)).await, "the present schema's has no such end");
    advance(Duration::from_secs(100_000)).await;
    runner.round(true, false).await.unwrap();
    assert!(!held(&in_use).await && held(&world.slot(&acme)).await);
}

#[tokio::test]
async fn while_another_instance_holds_the_lease_only_requests_dump() {
    let world = World::new();
    let acme = org("acme");
    world.issues(&acme, "1", 0, 10);
    let other = SnapshotId::random();
    let lease = world.store.acquire(&acme, other, Duration::from_secs(60)).await.unwrap().unwrap();
    world.runner().round(true, false).await.unwrap();
    assert_eq!(world.source.scans(), 0);
    let who = caller(&acme, &["team:1"]);
    assert_eq!(world.bootstrap(&who, &full()).await.unwrap().lines.len(), 10);
    settled(&world).await;
    assert!(world.store.renew(&lease, Duration::from_secs(60)).await.unwrap(), "the other's lease is untouched");
}

#[tokio::test]
async fn stopping_breaks_followers_in_time() {
    let world = World::new();
    let acme = org("acme");
    world.issues(&acme, "1", 0, 100);
    world.source.allow(Some(1));
    let answer = world.service.bootstrap(&caller(&acme, &["team:1"]), &full()).await.unwrap();
    let Content::Live(_) = &answer.content else { panic!("it is live") };
    timeout(Duration::from_secs(5), world.tasks.shutdown(Duration::from_secs(4))).await.unwrap().unwrap();
    let broken = receive(answer).await.unwrap_err();
    assert!(matches!(broken, ServeError::Dump(DumpError::Stopping)), "{broken:?}");
}
