//! What answers say they were read at.

use super::*;
use crate::model::{Epoch, Watermark};
use crate::serve::batch::marks::Marks;

#[tokio::test(start_paused = true)]
async fn a_load_whose_watermark_nobody_tells_is_read_at_the_last_and_joined_by_nobody_who_does() {
    let bench = Bench::new(LoaderSettings::default());
    let o = org("o");
    let first = bench.put(&o, 1, "x");
    bench.load(&o, &ids([1])).await.unwrap();
    bench.put(&o, 1, "y");
    tokio::time::sleep(Duration::from_millis(60)).await;
    bench.source.set_fate(Fate::Held);
    let quiet = bench.spawn_with(&o, ids([1]), Need { at_least: first, told: false });
    bench.until_lookups(2).await;
    let tells = bench.spawn(&o, ids([1]), SyncId::ZERO);
    bench.until_lookups(3).await;
    bench.source.set_fate(Fate::Answered);
    let (quiet, tells) = (quiet.await.unwrap().unwrap(), tells.await.unwrap().unwrap());
    assert_eq!((quiet[0].sync_id, tells[0].sync_id), (first, SyncId(2)));
    bench.until_idle().await;
}

#[tokio::test(start_paused = true)]
async fn callers_who_overlap_are_told_a_watermark_of_a_moment_ago_and_see_the_rows_as_they_are() {
    let bench = Bench::new(LoaderSettings::default());
    let o = org("o");
    let first = bench.put(&o, 1, "x");
    let other = bench.loader.visit();
    assert_eq!(bench.load(&o, &ids([1])).await.unwrap()[0].sync_id, first);
    let second = bench.put(&o, 2, "y");
    let loaded = bench.load(&o, &ids([2])).await.unwrap();
    assert_eq!((loaded[0].sync_id, loaded[0].rows.len()), (first, 1));
    // Who names the sync id it has seen is never told an older one.
    let loaded = bench.loader.load(&o, &ids([1, 2]), need(second), soon()).await.unwrap();
    assert!(loaded.iter().all(|load| load.sync_id >= second && load.rows.len() == 1));
    let third = bench.put(&o, 3, "z");
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(bench.load(&o, &ids([3])).await.unwrap()[0].sync_id, third);
    // Who is alone is told the newest.
    drop(other);
    let fourth = bench.put(&o, 4, "z");
    assert_eq!(bench.load(&o, &ids([3])).await.unwrap()[0].sync_id, fourth);
    bench.until_idle().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_is_alone_waits_for_nobody_and_is_told_the_newest() {
    let bench = Bench::new(LoaderSettings::default());
    let o = org("o");
    for id in 1..4 {
        let written = bench.put(&o, id, "x");
        // As a batch does, which reads memberships within its visit.
        let (visit, began) = (bench.loader.visit(), Instant::now());
        let loaded = bench.loader.load_within(&visit, &o, &ids([id]), need(SyncId::ZERO), soon()).await.unwrap();
        assert_eq!((loaded[0].sync_id, began.elapsed()), (written, Duration::ZERO));
    }
    bench.until_idle().await;
}

#[tokio::test(start_paused = true)]
async fn a_watermark_that_comes_late_makes_none_young_again() {
    let bench = Bench::new(LoaderSettings::default());
    let marks = &bench.loader.shared.marks;
    let mark = |sync_id| Watermark { epoch: Epoch::new("e"), sync_id: SyncId(sync_id) };
    let (early, later) = (Instant::now(), Instant::now() + Duration::from_millis(30));
    let known = |marks: &Marks| marks.known().map(|mark| (mark.watermark.sync_id, mark.taken)).unwrap();
    assert_eq!(marks.remember(mark(5), early), mark(5));
    assert_eq!(marks.remember(mark(3), later), mark(5), "a slow probe began before");
    assert_eq!(known(marks), (SyncId(5), early));
    assert_eq!(marks.remember(mark(5), later), mark(5));
    assert_eq!(known(marks), (SyncId(5), later));
}
