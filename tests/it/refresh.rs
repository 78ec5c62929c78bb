//! Refreshes over memory: what they read and write, when they are not made, and what readers find meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headstart::dump::{DumpSettings, Dumps, Joined, LiveDump, Wish};
use headstart::metrics::Metrics;
use headstart::model::{BootstrapQuery, GroupSet, Org, SyncId};
use headstart::snapshot::{Manifest, PackEntry, frame};
use headstart::source::memory::Fate;
use headstart::source::{By, Source};
use headstart::store::{Facts, MemoryStore};
use tokio::time::{Instant, sleep};

use crate::support::dice::Dice;
use crate::support::server::Setup;
use crate::support::world::{World, caller, org, retention, team_set};
use crate::tracker;

/// A world whose refreshes are counted.
struct Counted {
    world: World,
    dumps: Dumps,
    metrics: Metrics,
}

impl Counted {
    fn new(settings: DumpSettings) -> Self {
        let world = World::with(settings.clone(), Arc::new(MemoryStore::new(retention())));
        let metrics = Metrics::new();
        let dumps =
            Dumps::new(world.source.clone(), world.store.clone(), world.tasks.clone(), settings, metrics.clone());
        Self { world, dumps, metrics }
    }

    async fn make(&self, org: &Org, wish: Wish) -> Arc<LiveDump> {
        // Later than what was published last.
        sleep(Duration::from_millis(1)).await;
        match self.dumps.join(&self.world.slot(org), wish, Instant::now(), &"the test asks").unwrap() {
            Joined::Live(live) => {
                live.wait_settled().await;
                live
            }
            Joined::Published => panic!("nothing was to be made"),
        }
    }

    async fn published(&self, org: &Org) -> (Facts, Manifest) {
        let slot = self.world.slot(org);
        let facts = self.world.store.head(&slot).await.unwrap().current.unwrap().facts;
        let manifest = Manifest::decode(&self.world.store.manifest(&slot, facts.id).await.unwrap()).unwrap();
        (facts, manifest)
    }

    async fn pack(&self, org: &Org, entry: PackEntry) -> Bytes {
        self.world.store.pack(org, entry.id).await.unwrap()
    }

    /// All lines of what is published, sorted.
    async fn lines(&self, org: &Org) -> Vec<String> {
        let (_, manifest) = self.published(org).await;
        let mut lines = Vec::new();
        for (number, entry) in manifest.packs.iter().enumerate() {
            let bytes = self.pack(org, *entry).await;
            for entry in manifest.frames.iter().filter(|frame| frame.pack as usize == number) {
                let stored = &bytes[entry.offset as usize..][..entry.len as usize];
                let raw = String::from_utf8(frame::decompress(stored, entry.raw_len as usize).unwrap()).unwrap();
                lines.extend(raw.lines().map(str::to_owned));
            }
        }
        lines.sort_unstable();
        lines
    }

    fn full_dumps(&self, reason: &str) -> u64 {
        let text = self.metrics.encode();
        let series = format!("headstart_full_dumps_total{{reason=\"{reason}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_changed_is_read_and_the_rest_is_used_again() {
    let counted = Counted::new(DumpSettings::default());
    let (world, o) = (&counted.world, org("o"));
    world.issues(&o, "a", 0, 100);
    assert_eq!(counted.make(&o, Wish::Background).await.refreshed(), None);
    assert_eq!(counted.full_dumps("no_snapshot"), 1);
    world.issues(&o, "b", 7, 1);
    world.issues(&o, "a", 100, 2);
    world.source.remove(&o, 0, "8");
    world.source.put(&o, 0, "9", GroupSet::new(Vec::new()), "{\"__class\":\"Issue\",\"id\":\"9\"}\n");
    let refreshed = counted.make(&o, Wish::Background).await.refreshed().unwrap();
    assert_eq!((refreshed.rows, refreshed.read), (100, 4));
    assert_eq!(world.source.scans(), 1);
    assert!(world.source.lookups().iter().all(|lookup| lookup.by == By::Id && lookup.org == o));
    assert_eq!(counted.lines(&o).await, world.source.lines(&o, |_, groups| !groups.as_slice().is_empty()));
    let (facts, manifest) = counted.published(&o).await;
    assert_eq!((facts.rows, manifest.refreshes), (100, 1));
    assert_eq!(counted.metrics.refreshed_rows.get(), 4);

    // Nothing happened: the same packs, at a later sync id.
    world.issues(&org("p"), "a", 0, 1);
    assert_eq!(counted.make(&o, Wish::Background).await.refreshed().unwrap().read, 0);
    let (later, again) = counted.published(&o).await;
    assert!(later.sync_id > facts.sync_id && again.packs == manifest.packs && again.frames == manifest.frames);
}

/// A row that changed is exchanged where it stood; one that moved, or has grown too long for its frame, gets another.
#[tokio::test(start_paused = true)]
async fn a_changed_row_stays_in_its_frame() {
    let counted = Counted::new(DumpSettings::default());
    let (world, o) = (&counted.world, org("o"));
    let put = |id: u32, team: &str, len: usize| {
        let line = format!(
            "{{\"__class\":\"Issue\",\"id\":\"{id}\",\"teamId\":\"{team}\",\"text\":\"{}\"}}\n",
            "x".repeat(len)
        );
        world.source.put(&o, 0, &id.to_string(), team_set(team), line);
    };
    (0..2000).for_each(|id| put(id, "a", 1000));
    counted.make(&o, Wish::Background).await;
    // For each frame the ids of its rows.
    let frames = async || {
        let (_, manifest) = counted.published(&o).await;
        assert_eq!(counted.lines(&o).await, world.source.lines(&o, |_, _| true));
        let mut frames = Vec::new();
        for entry in &manifest.frames {
            let pack = counted.pack(&o, manifest.packs[entry.pack as usize]).await;
            let stored = &pack[entry.offset as usize..][..entry.len as usize];
            let raw = frame::decompress(stored, entry.raw_len as usize).unwrap();
            let id = |line: &[u8]| serde_json::from_slice::<serde_json::Value>(line).unwrap()["id"].to_string();
            frames.push(frame::lines(&raw).map(id).collect::<BTreeSet<_>>());
        }
        frames.sort_unstable();
        frames
    };
    let refresh = async |change: &dyn Fn()| {
        change();
        assert!(counted.make(&o, Wish::Background).await.refreshed().is_some());
        frames().await
    };
    let made = frames().await;
    assert_eq!(made.len(), 7, "six full frames and a rest");
    assert!(refresh(&|| put(5, "a", 1000)).await == made);
    assert!(refresh(&|| put(6, "a", 900)).await == made);
    // In the order of ids as text.
    let [moved, grown, last] = ["\"7\"", "\"8\"", "\"999\""];
    let mut expected = made;
    let frame_of = |frames: &[BTreeSet<String>], id: &str| frames.iter().position(|ids| ids.contains(id)).unwrap();
    let (full, rest) = (frame_of(&expected, moved), frame_of(&expected, last));
    assert!(full == frame_of(&expected, grown) && full != rest);
    expected[full].remove(moved);
    expected.push(BTreeSet::from([moved.to_owned()]));
    expected.sort_unstable();
    assert!(refresh(&|| put(7, "b", 1000)).await == expected, "it is among those of another team");
    let (full, rest) = (frame_of(&expected, grown), frame_of(&expected, last));
    expected[full].remove(grown);
    expected[rest].insert(grown.to_owned());
    expected.sort_unstable();
    assert!(refresh(&|| put(8, "a", 5000)).await == expected, "there was no room for it any more");
}

/// Lines of more changed rows than are kept in memory until their frames are decoded.
#[tokio::test]
async fn more_may_change_than_waits_in_memory() {
    let counted = Counted::new(DumpSettings { refresh_max_percent: 100, ..DumpSettings::default() });
    let (world, o) = (&counted.world, org("o"));
    let put = |id: u32, text: &str| {
        let line =
            format!("{{\"__class\":\"Issue\",\"id\":\"{id}\",\"teamId\":\"a\",\"text\":\"{}\"}}\n", text.repeat(2500));
        world.source.put(&o, 0, &id.to_string(), team_set("a"), line);
    };
    (0..3000).for_each(|id| put(id, "before "));
    counted.make(&o, Wish::Background).await;
    (0..2000).for_each(|id| put(id, "after "));
    assert_eq!(counted.make(&o, Wish::Background).await.refreshed().unwrap().read, 2000);
    assert!(counted.lines(&o).await == world.source.lines(&o, |_, _| true), "rows are missing, or stand twice");
}

#[tokio::test(start_paused = true)]
async fn everything_is_read_when_it_has_to_be() {
    let counted = Counted::new(DumpSettings { refresh_max_count: 2, ..DumpSettings::default() });
    let (world, o) = (&counted.world, org("o"));
    let change = |at: usize, count: usize| world.issues(&o, "b", at, count);
    change(0, 100);
    counted.make(&o, Wish::Background).await;
    change(0, 1);
    assert_eq!(counted.make(&o, Wish::New).await.refreshed(), None);
    assert_eq!(counted.full_dumps("asked"), 1);
    change(0, 11);
    assert_eq!(counted.make(&o, Wish::Background).await.refreshed(), None);
    assert_eq!(counted.full_dumps("large"), 1, "a tenth at most");
    for _ in 0..2 {
        change(0, 10);
        assert_eq!(counted.make(&o, Wish::Background).await.refreshed().unwrap().read, 10);
    }
    change(0, 1);
    assert_eq!(counted.make(&o, Wish::Background).await.refreshed(), None);
    assert_eq!(counted.full_dumps("due"), 1);
    change(0, 1);
    world.source.trim(SyncId::MAX, Duration::ZERO, u64::MAX).await.unwrap();
    assert_eq!(counted.make(&o, Wish::Background).await.refreshed(), None);
    assert_eq!(counted.full_dumps("trimmed"), 1);
    change(0, 1);
    world.source.change_epoch("memory-2");
    assert_eq!(counted.make(&o, Wish::Background).await.refreshed(), None);
    assert_eq!(counted.full_dumps("epoch"), 1);
    change(0, 1);
    world.source.set_fate(Fate::Refused);
    assert_eq!(counted.make(&o, Wish::Background).await.refreshed(), None);
    assert_eq!(counted.full_dumps("failed"), 1);
    world.source.set_fate(Fate::Answered);
    // A pack or a shard that is not what was written.
    for of_index in [false, true] {
        let (_, manifest) = counted.published(&o).await;
        let entry = if of_index { manifest.index[0] } else { manifest.packs[0] };
        let mut damaged = counted.pack(&o, entry).await.to_vec();
        damaged[3] ^= 1;
        world.store.put_pack(&o, entry.id, damaged.into()).await.unwrap();
        change(0, 1);
        assert_eq!(counted.make(&o, Wish::Background).await.refreshed(), None);
        assert_eq!(counted.full_dumps("damaged"), 1 + u64::from(of_index));
        assert_eq!(counted.lines(&o).await, world.source.lines(&o, |_, _| true));
    }
}

/// Whoever comes during a refresh and can't be served from what is published waits for it, or for the dump it becomes.
#[tokio::test(start_paused = true)]
async fn readers_wait_for_a_refresh_or_get_the_dump_it_becomes() {
    let world = World::new();
    let (o, reader) = (org("o"), caller(&org("o"), &["team:a"]));
    world.issues(&o, "a", 0, 400);
    world.bootstrap(&reader, &BootstrapQuery::default()).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    for held in [false, true] {
        // More than the hard limit.
        world.issues(&o, "a", 0, 30);
        world.source.set_fate(Fate::Held);
        let scans = world.source.scans();
        let asking = async {
            let query = BootstrapQuery { no_sync_packets: true, ..BootstrapQuery::default() };
            let answers = (0..5).map(|_| world.bootstrap(&reader, &query));
            futures_util::future::join_all(answers).await
        };
        let releasing = async {
            sleep(Duration::from_secs(if held { 60 } else { 3 })).await;
            world.source.set_fate(Fate::Answered);
        };
        let (answers, ()) = tokio::join!(asking, releasing);
        for answer in answers {
            let answer = answer.unwrap();
            assert_eq!(answer.method(), if held { "postgres" } else { "snapshot" });
            assert_eq!(answer.lines, world.expected(&reader, &[0]));
        }
        assert_eq!(world.source.scans() - scans, u64::from(held), "one scan at most");
        sleep(Duration::from_secs(1)).await;
    }
}

/// What was published while they waited is served to them, also where more than the hard limit has happened since.
#[tokio::test(start_paused = true)]
async fn readers_get_the_refresh_they_waited_for_however_much_is_written_meanwhile() {
    let world = World::new();
    let (o, reader) = (org("o"), caller(&org("o"), &["team:a"]));
    world.issues(&o, "a", 0, 400);
    let query = BootstrapQuery { no_sync_packets: true, ..BootstrapQuery::default() };
    world.bootstrap(&reader, &query).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    world.issues(&o, "a", 0, 30);
    world.source.set_fate(Fate::Held);
    let writing = async {
        sleep(Duration::from_secs(3)).await;
        world.issues(&o, "a", 30, 30);
        world.source.set_fate(Fate::Answered);
    };
    let (answer, ()) = tokio::join!(world.bootstrap(&reader, &query), writing);
    let answer = answer.unwrap();
    assert_eq!((answer.method(), &answer.trailer["lastSyncId"]), ("snapshot", &430.into()));
    sleep(Duration::from_secs(1)).await;
    let head = world.store.head(&world.slot(&o)).await.unwrap();
    assert_eq!((head.generation.0, world.source.scans()), (2, 1), "one refresh, and no other for this request");
}

/// The command line waits for what is published: it has no reader who would rather have rows at once.
#[tokio::test(start_paused = true)]
async fn a_refresh_that_nobody_reads_may_take_its_time() {
    for (wish, is_refreshed) in [(Wish::Published, true), (Wish::Any, false)] {
        let counted = Counted::new(DumpSettings::default());
        let (world, o) = (&counted.world, org("o"));
        world.issues(&o, "a", 0, 400);
        counted.make(&o, Wish::Background).await;
        world.issues(&o, "a", 0, 30);
        world.source.set_fate(Fate::Held);
        let releasing = async {
            sleep(Duration::from_secs(60)).await;
            world.source.set_fate(Fate::Answered);
        };
        let (live, ()) = tokio::join!(counted.make(&o, wish), releasing);
        assert_eq!(live.refreshed().is_some(), is_refreshed, "{wish:?}");
        assert_eq!(counted.full_dumps("slow"), u64::from(!is_refreshed));
    }
}

/// Another instance's refresh sends no rows: whoever waits for some gets them all the same.
#[tokio::test(start_paused = true)]
async fn readers_at_another_instance_do_not_wait_for_a_refresh_for_ever() {
    let counted = Counted::new(DumpSettings::default());
    let (world, o) = (&counted.world, org("o"));
    world.issues(&o, "a", 0, 400);
    counted.make(&o, Wish::Background).await;
    world.issues(&o, "a", 0, 30);
    world.source.set_fate(Fate::Held);
    // Later than what was published last.
    sleep(Duration::from_millis(1)).await;
    let join = |dumps: &Dumps, wish| match dumps.join(&world.slot(&o), wish, Instant::now(), &"the test asks").unwrap()
    {
        Joined::Live(live) => live,
        Joined::Published => panic!("nothing was to be made"),
    };
    let refresh = join(&counted.dumps, Wish::Published);
    sleep(Duration::from_secs(1)).await;
    let (source, store) = (world.source.clone(), world.store.clone());
    let other = Dumps::new(source, store, world.tasks.clone(), DumpSettings::default(), Metrics::new());
    let live = join(&other, Wish::Any);
    tokio::time::timeout(Duration::from_secs(60), live.wait_end()).await.expect("it waits").unwrap();
    assert_eq!((live.rows(), world.source.scans()), (400, 2));
    assert!(refresh.end().is_none(), "it goes on meanwhile");
    world.source.set_fate(Fate::Answered);
    refresh.wait_settled().await;
}

/// A column that is added is in no row's action, and what reads the others does not fail: it is seen all the same.
#[tokio::test]
async fn a_refresh_never_leaves_a_new_column_out() {
    let (database, client) = tracker::database().await;
    let rows = "INSERT INTO issue (id, organization_id, team_id, title)
        SELECT n, 'o', 'a', md5(n::text) FROM generate_series(1, 200) n;
        INSERT INTO team_membership VALUES ('o', 'a', 'u', 'member')";
    client.batch_execute(rows).await.unwrap();
    let mut setup = Setup::new(&database.url(), tracker::CATALOG);
    setup.set("HEADSTART_FRESHNESS_SOFT_PENDING", "0");
    let server = setup.serve().await;
    let token = setup.token("o", "u", None);
    let lines = async || {
        let answer = server.get("/sync/bootstrap", &token).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.text().await.unwrap()
    };
    assert!(!lines().await.contains("priority"));
    server.until_published(1).await;
    let change = async |title: &str| {
        client.batch_execute(&format!("UPDATE issue SET title = '{title}' WHERE id = '1'")).await.unwrap();
        lines().await;
    };
    change("second").await;
    server.until("a refresh", async || server.metric("headstart_refreshes_total").await == 1.0).await;
    client.batch_execute("ALTER TABLE issue ADD COLUMN priority int DEFAULT 3").await.unwrap();
    change("third").await;
    let full = "headstart_full_dumps_total{reason=\"schema_changed\"}";
    server.until("a dump of the new columns", async || server.metric(full).await == 1.0).await;
    server.until("the new columns", async || lines().await.matches("\"priority\":3").count() >= 200).await;
    assert_eq!(server.metric("headstart_refreshes_total").await, 1.0);
}

/// Frames and packs stay full: many refreshes take little more room than a fresh dump, and are read as fast.
#[tokio::test]
async fn many_generations_stay_small() {
    let mut dice = Dice::seeded();
    println!("seed {}", dice.seed());
    let counted = Counted::new(DumpSettings { refresh_max_count: 1000, ..DumpSettings::default() });
    let (world, o) = (&counted.world, org("o"));
    let teams = ["a", "b", "c"];
    let put = |dice: &mut Dice, id: usize| {
        let team = teams[dice.below(teams.len())];
        let text: String = (0..60).map(|_| format!("{:x}", dice.below(1 << 48))).collect();
        let line = format!("{{\"__class\":\"Issue\",\"id\":\"{id}\",\"teamId\":\"{team}\",\"text\":\"{text}\"}}\n");
        world.source.put(&o, 0, &id.to_string(), team_set(team), line);
    };
    let (rows, mut next) = (16_000, 16_000);
    (0..rows).for_each(|id| put(&mut dice, id));
    counted.make(&o, Wish::Background).await;
    let mut worst = (0.0_f64, 0.0_f64);
    for generation in 0..30 {
        // Some change anywhere, some are new, some go.
        let changes = [3, 40, 400][generation % 3];
        for _ in 0..changes {
            let changed = dice.below(rows);
            put(&mut dice, changed);
            world.source.remove(&o, 0, &dice.below(rows).to_string());
            put(&mut dice, next);
            next += 1;
        }
        assert!(counted.make(&o, Wish::Background).await.refreshed().is_some());
        assert!(counted.lines(&o).await == world.source.lines(&o, |_, _| true), "generation {generation}");
        let stored = async |counted: &Counted| {
            let (_, manifest) = counted.published(&o).await;
            let bytes: u64 = manifest.stored().map(|entry| u64::from(entry.len)).sum();
            (bytes, manifest.frames.len())
        };
        let (bytes, frames) = stored(&counted).await;
        if generation % 5 == 4 {
            let fresh = Counted {
                world: World::with(DumpSettings::default(), Arc::new(MemoryStore::new(retention()))),
                dumps: counted.dumps.clone(),
                metrics: Metrics::new(),
            };
            let dumps = Dumps::new(
                world.source.clone(),
                fresh.world.store.clone(),
                world.tasks.clone(),
                DumpSettings::default(),
                Metrics::new(),
            );
            let fresh = Counted { dumps, ..fresh };
            fresh.make(&o, Wish::Background).await;
            let (fresh_bytes, fresh_frames) = stored(&fresh).await;
            assert_eq!(counted.lines(&o).await, fresh.lines(&o).await);
            let size = bytes as f64 / fresh_bytes as f64;
            let count = frames as f64 / fresh_frames as f64;
            worst = (worst.0.max(size), worst.1.max(count));
        }
    }
    println!("at most {:.3} times the bytes and {:.2} times the frames of a fresh dump", worst.0, worst.1);
    assert!(worst.0 <= 1.3, "{} times as large", worst.0);
    assert!(worst.1 <= 1.5, "{} times as many frames", worst.1);
}

/// The command says which of the two it did, and a snapshot whose packs belong to several is shown as any.
#[tokio::test]
async fn the_command_line_refreshes_and_says_so() {
    let (database, client) = tracker::database().await;
    let rows = "INSERT INTO issue (id, organization_id, team_id, title)
        SELECT n, 'o', CASE WHEN n % 2 = 0 THEN 'a' ELSE 'b' END, md5(n::text) FROM generate_series(1, 200) n";
    client.batch_execute(rows).await.unwrap();
    let mut setup = Setup::new(&database.url(), tracker::CATALOG);
    setup.set("HEADSTART_FRESHNESS_SOFT_PENDING", "0");
    let words = |printed: String| printed.trim_end().split('\t').map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(setup.must(&["dump", "--org", "o"]))[1..3], ["made", "200"]);
    let changes = "UPDATE issue SET title = 'other' WHERE id IN ('1', '2'); DELETE FROM issue WHERE id = '3';
        UPDATE issue SET organization_id = 'p' WHERE id = '4'; UPDATE issue SET team_id = 'a' WHERE id = '5'";
    client.batch_execute(changes).await.unwrap();
    let refreshed = words(setup.must(&["dump", "--org", "o"]));
    assert_eq!(refreshed[1..3], ["refreshed", "198"]);
    assert_eq!(refreshed[4], "3", "what is there of what changed");
    assert_eq!(words(setup.must(&["dump", "--org", "o"]))[1], "fresh");
    assert_eq!(setup.must(&["verify", "--org", "o"]), "o\tagrees\t198\t0\n");
    assert!(setup.must(&["snapshots", "show", "--org", "o"]).contains("198"));
    client.batch_execute("UPDATE issue SET title = 'third' WHERE id = '1'").await.unwrap();
    assert_eq!(words(setup.must(&["dump", "--org", "o", "--full"]))[1..3], ["made", "198"]);
    assert_eq!(setup.must(&["verify", "--org", "o"]), "o\tagrees\t198\t0\n");
}
