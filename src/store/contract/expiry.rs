//! What goes with time, and what must not.

use crate::model::Generation;
use crate::store::contract::{Draft, SHORT, is_missing, new_slot, published, wait_until};
use crate::store::{Slot, SnapshotStore};

/// What must hold in a store where times are short.
pub async fn run(store: &dyn SnapshotStore) {
    tokio::join!(
        what_a_head_names_stays_and_the_rest_goes(store),
        packs_used_again_by_ten_generations_stay(store),
        packs_never_published_go(store),
        the_deleted_goes(store),
        the_retired_goes(store),
        a_publish_that_comes_too_late_is_refused(store),
    );
}

async fn what_a_head_names_stays_and_the_rest_goes(store: &dyn SnapshotStore) {
    let slot = new_slot();
    let first = Draft::new(3, &[]);
    first.establish(store, &slot, 0).await;
    let second = Draft::new(1, &[first.pack(0)]);
    second.establish(store, &slot, 1).await;
    first.assert_readable(store, &slot).await;
    store.sweep().await.expect("sweep");
    first.assert_readable(store, &slot).await;

    wait_until("the end of the grace period", async || {
        store.sweep().await.expect("sweep");
        is_missing(&store.manifest(&slot, first.facts.id).await)
            && is_missing(&store.pack(&slot.org, first.pack(1)).await)
            && is_missing(&store.pack(&slot.org, first.pack(2)).await)
    })
    .await;
    assert_eq!(store.pack(&slot.org, first.pack(0)).await.expect("taken over"), first.packs[0].1);
    second.assert_readable(store, &slot).await;

    // A third takes the same pack over once more, long after the time of packs never published.
    let stray = Draft::new(1, &[]);
    stray.put_packs(store, &slot).await;
    wait_until("the end of a stray pack", async || {
        store.sweep().await.expect("sweep");
        is_missing(&store.pack(&slot.org, stray.pack(0)).await)
    })
    .await;
    let third = Draft::new(1, &[first.pack(0), second.pack(1)]);
    third.establish(store, &slot, 2).await;
    wait_until("the end of the second manifest", async || {
        store.sweep().await.expect("sweep");
        is_missing(&store.manifest(&slot, second.facts.id).await)
    })
    .await;
    assert_eq!(published(store, &slot).await, (3, Some(third.facts.id)));
    third.assert_readable(store, &slot).await;
    assert_eq!(store.pack(&slot.org, second.pack(1)).await.expect("taken over"), second.packs[0].1);
    assert_eq!(store.pack(&slot.org, first.pack(0)).await.expect("taken over twice"), first.packs[0].1);
}

/// Each generation uses most packs of the one before again, over more time than anything is kept that nobody names.
async fn packs_used_again_by_ten_generations_stay(store: &dyn SnapshotStore) {
    let slot = new_slot();
    let first = Draft::new(3, &[]);
    first.establish(store, &slot, 0).await;
    let mut all = vec![first];
    for generation in 1..10 {
        // All but the oldest three of the one before: a pack is used by several generations, and then dropped.
        let last = &all[generation - 1];
        let again = &last.facts.packs[if generation > 3 { 2 } else { 0 }..];
        let next = Draft::new(2, again);
        next.establish(store, &slot, generation as u64).await;
        // What the one before alone named is readable for its grace period, counted from now.
        last.assert_readable(store, &slot).await;
        let since = tokio::time::Instant::now();
        store.sweep().await.expect("sweep");
        if since.elapsed() < SHORT.grace / 4 {
            for pack in &all[generation - 1].facts.packs {
                store.pack(&slot.org, *pack).await.expect("a pack within its grace period");
            }
        }
        tokio::time::sleep(SHORT.grace / 2).await;
        store.sweep().await.expect("sweep");
        for pack in &next.facts.packs {
            let kept = store.pack(&slot.org, *pack).await.expect("a pack that the head names");
            let draft = all.iter().chain([&next]).find(|draft| draft.facts.id == pack.snapshot).expect("its maker");
            let put = draft.packs.iter().find(|(id, _)| id == pack).expect("a pack that was put");
            assert_eq!(kept, put.1);
        }
        all.push(next);
    }
    let kept = all.pop().expect("the last");
    let dropped: Vec<_> = all
        .iter()
        .flat_map(|draft| &draft.packs)
        .map(|(pack, _)| *pack)
        .filter(|pack| !kept.facts.packs.contains(pack))
        .collect();
    assert!(!dropped.is_empty());
    wait_until("the end of packs that no generation names any more", async || {
        store.sweep().await.expect("sweep");
        for pack in &dropped {
            if !is_missing(&store.pack(&slot.org, *pack).await) {
                return false;
            }
        }
        true
    })
    .await;
    for pack in &kept.facts.packs {
        store.pack(&slot.org, *pack).await.expect("a pack that the head names");
    }
}

async fn packs_never_published_go(store: &dyn SnapshotStore) {
    let slot = new_slot();
    let (lost, winner) = (Draft::new(2, &[]), Draft::new(1, &[]));
    lost.put_packs(store, &slot).await;
    store.sweep().await.expect("sweep");
    assert_eq!(store.pack(&slot.org, lost.pack(0)).await.expect("it may be published yet"), lost.packs[0].1);
    winner.establish(store, &slot, 0).await;
    lost.publish(store, &slot, Generation::NONE).await.expect_err("it lost");
    wait_until("the end of packs never published", async || {
        store.sweep().await.expect("sweep");
        is_missing(&store.pack(&slot.org, lost.pack(0)).await)
            && is_missing(&store.pack(&slot.org, lost.pack(1)).await)
            && is_missing(&store.manifest(&slot, lost.facts.id).await)
    })
    .await;
    winner.assert_readable(store, &slot).await;
}

async fn the_deleted_goes(store: &dyn SnapshotStore) {
    let (slot, draft) = (new_slot(), Draft::new(2, &[]));
    draft.establish(store, &slot, 0).await;
    assert_eq!(store.delete(&slot.org).await.expect("delete"), 1);
    goes_after_the_grace_period(store, &slot, &draft).await;
}

async fn the_retired_goes(store: &dyn SnapshotStore) {
    let (slot, draft) = (new_slot(), Draft::new(2, &[]));
    draft.establish(store, &slot, 0).await;
    store.retire(&slot, Generation(1)).await.expect("retire");
    goes_after_the_grace_period(store, &slot, &draft).await;
}

async fn goes_after_the_grace_period(store: &dyn SnapshotStore, slot: &Slot, draft: &Draft) {
    draft.assert_readable(store, slot).await;
    wait_until("the end of what was taken away", async || {
        store.sweep().await.expect("sweep");
        is_missing(&store.manifest(slot, draft.facts.id).await)
            && is_missing(&store.pack(&slot.org, draft.pack(0)).await)
            && is_missing(&store.pack(&slot.org, draft.pack(1)).await)
    })
    .await;
    assert_eq!(published(store, slot).await.1, None);
}

async fn a_publish_that_comes_too_late_is_refused(store: &dyn SnapshotStore) {
    let slot = new_slot();
    let late = Draft::new(1, &[]);
    late.put_packs(store, &slot).await;
    wait_until("the end of a pack never published", async || {
        store.sweep().await.expect("sweep");
        is_missing(&store.pack(&slot.org, late.pack(0)).await)
    })
    .await;
    assert!(is_missing(&late.publish(store, &slot, Generation::NONE).await));
    assert_eq!(published(store, &slot).await, (0, None));
}
