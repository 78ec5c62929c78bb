//! What is too large, and what answers may hold.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_split_and_a_key_that_is_stands_alone() {
    let bench = Bench::new(LoaderSettings { statement_bytes: 700, ..LoaderSettings::default() });
    let o = org("o");
    bench.fill(&o, 0..30, "x");
    bench.fill(&o, 40..43, &"y".repeat(300));
    let good = bench.spawn(&o, vec![issue(0), issue(1), issue(2)], SyncId::ZERO);
    let bad = bench.spawn(&o, vec![issue(1), issue(4)], SyncId::ZERO);
    assert_eq!(good.await.unwrap().unwrap().iter().map(|load| load.rows.len()).collect::<Vec<_>>(), [10, 10, 10]);
    match bad.await.unwrap() {
        Err(LoadError::TooLarge { ask, bytes: 700 }) => assert_eq!(ask, issue(4)),
        other => panic!("{other:?}"),
    }
    bench.until_idle().await;
}

/// A row has to be told, however long it is: nothing else would bring a client past its action.
#[tokio::test(start_paused = true)]
async fn one_row_may_be_as_long_as_it_is() {
    let bench = Bench::new(LoaderSettings { statement_bytes: 700, ..LoaderSettings::default() });
    let o = org("o");
    bench.fill(&o, 0..2, "x");
    bench.put(&o, 2, &"y".repeat(3000));
    let loaded = bench.load(&o, &ids([0, 1, 2])).await.unwrap();
    assert_eq!(loaded.iter().map(|load| load.rows.len()).collect::<Vec<_>>(), [1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn rows_that_are_held_turn_new_keys_away() {
    let bench = Bench::new(LoaderSettings { held_bytes: 100, ..LoaderSettings::default() });
    let o = org("o");
    bench.fill(&o, 0..10, "x");
    let held = bench.load(&o, &[issue(0)]).await.unwrap();
    assert!(matches!(bench.load(&o, &ids([1])).await, Err(LoadError::Overloaded)));
    drop(held);
    assert!(bench.load(&o, &ids([1])).await.is_ok());
}

/// What one load brings, part after part, counts before it is all there.
#[tokio::test(start_paused = true)]
async fn a_load_ends_where_answers_may_hold_no_more() {
    let bench = Bench::new(LoaderSettings { statement_bytes: 700, held_bytes: 2000, ..LoaderSettings::default() });
    let o = org("o");
    bench.fill(&o, 0..100, "x");
    let all: Vec<Ask> = (0..10).map(issue).collect();
    assert!(matches!(bench.load(&o, &all).await, Err(LoadError::Overloaded)));
    let read = bench.source.lookups().iter().filter(|lookup| lookup.values.len() == 1).count();
    assert!((1..9).contains(&read), "{read} of 10 parts were read");
    bench.until_idle().await;
    assert!(bench.load(&o, &[issue(0)]).await.is_ok(), "nothing is held any more");
}
