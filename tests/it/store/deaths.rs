//! Processes that die in the middle of publishing, deleting and sweeping. Whatever they leave, readers see a whole
//! snapshot, the next publisher succeeds, and in the end nothing is kept that no head names.
//!
//! A process is a runtime of its own here, which is dropped at a random moment with all its tasks: what it had sent is
//! still done, what it had not is not. One test kills real processes.

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::mongodb::bson::{Document, doc};
use headstart::model::{Org, SchemaHash, SnapshotId};
use headstart::store::{Retention, Slot, SnapshotStore, StoreError};

use super::{folder, mongo, mongo_url, publish, read_whole};

const RETENTION: Retention = Retention { grace: Duration::from_millis(1500), unpublished: Duration::from_secs(3) };

/// What a process does until it dies: it publishes, taking over a pack, and now and then deletes and sweeps.
async fn work(store: &dyn SnapshotStore, slot: &Slot, round: u32) -> Result<(), StoreError> {
    let head = store.head(slot).await?;
    let reused: Vec<_> = head.current.iter().filter_map(|current| current.facts.packs.last()).copied().collect();
    publish(store, slot, head.generation, 2, &reused).await?;
    if round.is_multiple_of(5) {
        store.delete(&slot.org).await?;
    }
    store.sweep().await.map(|_| ())
}

/// Runs `work` in a process of its own that lives for `life` at most.
fn live_and_die<F>(life: Duration, work: impl FnOnce() -> F + Send + 'static)
where
    F: Future<Output = Result<(), StoreError>>,
{
    let process = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let lived = runtime.block_on(async { tokio::time::timeout(life, work()).await });
        runtime.shutdown_background();
        lived
    });
    match process.join().expect("no panic") {
        // A dead one's compare-and-set may arrive late.
        Err(_) | Ok(Ok(()) | Err(StoreError::Conflict)) => {}
        Ok(Err(error)) => panic!("{error:?}"),
    }
}

/// A pseudo-random fraction (splitmix64), so that a failing seed can be run again.
fn fraction(seed: u64, round: u32) -> f64 {
    let mut z = seed.wrapping_add(u64::from(round).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

fn new_seed() -> u64 {
    let seed = u64::from_le_bytes(SnapshotId::random().as_bytes()[..8].try_into().expect("eight"));
    println!("seed {seed}");
    seed
}

fn slot() -> Slot {
    Slot { org: Org::new("acme"), schema: SchemaHash::new("s") }
}

/// `open` opens the same store again and again; `left` counts the packs and manifests that are kept there.
async fn survive<F, L>(rounds: u32, longest: Duration, open: impl Fn() -> F + Clone + Send + 'static, left: L)
where
    F: Future<Output = Arc<dyn SnapshotStore>>,
    L: AsyncFn() -> (usize, usize),
{
    let seed = new_seed();
    let store = open().await;
    for round in 0..rounds {
        let open = open.clone();
        let life = longest.mul_f64(fraction(seed, round));
        let process = move || live_and_die(life, move || async move { work(&*open().await, &slot(), round).await });
        tokio::task::spawn_blocking(process).await.expect("no panic");
        if let Some(current) = store.head(&slot()).await.expect("head").current {
            read_whole(&*store, &slot(), &current).await;
        }
    }
    let generation = recover(&*store, left).await;
    assert!(generation > u64::from(rounds) / 10, "{generation}: hardly anybody lived long enough to publish");
}

/// Publishes and waits until nothing else is left; says the generation.
async fn recover(store: &dyn SnapshotStore, left: impl AsyncFn() -> (usize, usize)) -> u64 {
    let generation = loop {
        let head = store.head(&slot()).await.expect("head");
        match publish(store, &slot(), head.generation, 3, &[]).await {
            Ok(_) => break head.generation.next(),
            // The last of the dead arrived late.
            Err(StoreError::Conflict) => {}
            Err(error) => panic!("{error:?}"),
        }
    };
    let begun = Instant::now();
    while left().await != (3, 1) {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?} packs and manifests are left", left().await);
        store.sweep().await.expect("sweep");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let current = store.head(&slot()).await.expect("head").current.expect("published");
    read_whole(store, &slot(), &current).await;
    generation.0
}

#[tokio::test]
async fn a_folder_survives() {
    let root = tempfile::tempdir().expect("a folder");
    let path = root.path().to_owned();
    let open = move || {
        let path = path.clone();
        async move { folder(&path, RETENTION).await }
    };
    survive(150, Duration::from_millis(30), open, async || kept_in(root.path())).await;
}

/// Packs and manifests of the org, and what was meant to become such.
fn kept_in(root: &Path) -> (usize, usize) {
    let files =
        |folder: &str| std::fs::read_dir(root.join("v1/orgs/acme").join(folder)).map_or(0, Iterator::count);
    (files("packs"), files("manifests"))
}

/// Names the victim's folder.
const VICTIM: &str = "HEADSTART_TEST_VICTIM_FOLDER";

#[tokio::test]
async fn a_folder_survives_sigkill() {
    let root = tempfile::tempdir().expect("a folder");
    let (store, seed) = (folder(root.path(), RETENTION).await, new_seed());
    for round in 0..12 {
        let mut victim = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "store::deaths::victim", "--ignored", "--nocapture"])
            .env(VICTIM, root.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("another process");
        let mut lines = BufReader::new(victim.stdout.take().expect("its output")).lines();
        assert!(lines.any(|line| line.expect("a line").contains("at work")), "the victim did not begin");
        std::thread::sleep(Duration::from_millis(60).mul_f64(fraction(seed, round)));
        victim.kill().expect("kill");
        victim.wait().expect("its end");
        if let Some(current) = store.head(&slot()).await.expect("head").current {
            read_whole(&*store, &slot(), &current).await;
        }
    }
    let generation = recover(&*store, async || kept_in(root.path())).await;
    assert!(generation > 12, "{generation}: the victims hardly did anything");
}

#[tokio::test]
#[ignore = "run and killed by a_folder_survives_sigkill"]
async fn victim() {
    let root = std::env::var(VICTIM).expect("a folder");
    let store = folder(Path::new(&root), RETENTION).await;
    println!("at work");
    for round in 1.. {
        work(&*store, &slot(), round).await.expect("alone with the folder");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_survives() {
    let url = mongo_url();
    let client = ::mongodb::Client::with_uri_str(&url).await.expect("a client");
    let database = client.default_database().expect("a database");
    let open = move || {
        let url = url.clone();
        async move { mongo(&url, RETENTION).await }
    };
    let count = async |name: &str| {
        let documents = database.collection::<Document>(name).count_documents(doc! {}).await;
        documents.expect("count") as usize
    };
    survive(40, Duration::from_millis(250), open, async || (count("packs").await, count("manifests").await)).await;
}
