//! Heads, packs, manifests, publishing and deleting.

use std::ops::Range;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::model::{Generation, GroupSet, Org, SchemaHash, SnapshotId};
use crate::snapshot::{PackBuilder, PackEntry, PackId};
use crate::store::contract::{Draft, is_missing, new_slot, published};
use crate::store::{Head, Slot, SnapshotStore, StoreError};

/// What must hold in a store where nothing expires.
pub async fn run(store: &dyn SnapshotStore) {
    store.ping().await.expect("ping");
    what_is_not_there_is_missing(store).await;
    a_snapshot_is_read_as_it_was_published(store).await;
    only_the_generation_that_was_seen_can_be_replaced(store).await;
    packs_must_be_there_to_be_published(store).await;
    of_many_publishers_one_wins(store).await;
    deleting_empties_all_schemas(store).await;
    retiring_empties_one_schema(store).await;
    a_dump_from_before_a_deletion_is_refused(store).await;
    any_size_is_kept(store).await;
    a_whole_pack_is_the_one_that_the_manifest_names(store).await;
}

async fn what_is_not_there_is_missing(store: &dyn SnapshotStore) {
    let slot = new_slot();
    assert_eq!(store.head(&slot).await.expect("head"), Head::default());
    let snapshot = SnapshotId::random();
    assert!(is_missing(&store.manifest(&slot, snapshot).await));
    let pack = PackId { snapshot, number: 0 };
    assert!(is_missing(&store.pack(&slot.org, pack).await));
    assert!(is_missing(&store.pack_parts(&slot.org, pack, &[0..1, 1..2]).await));
    assert_eq!(store.delete(&slot.org).await.expect("delete"), 0);
}

async fn a_snapshot_is_read_as_it_was_published(store: &dyn SnapshotStore) {
    let (slot, other) = (new_slot(), new_slot());
    let draft = Draft::new(3, &[]);
    draft.put_packs(store, &slot).await;
    let listed = |heads: Vec<(Slot, Head)>| heads.into_iter().find(|(found, _)| *found == slot).map(|(_, head)| head);
    assert_eq!(published(store, &slot).await, (0, None), "packs alone publish nothing");
    assert_eq!(listed(store.heads().await.expect("heads")), None);

    draft.publish(store, &slot, Generation::NONE).await.expect("publish");
    let head = store.head(&slot).await.expect("head");
    assert_eq!(head.generation, Generation(1));
    let current = head.current.expect("something is published");
    assert_eq!(current.facts, draft.facts);
    assert!(current.age.as_secs() < 60, "{:?}", current.age);
    let head = listed(store.heads().await.expect("heads")).expect("the slot is listed");
    assert_eq!(head.current.expect("it holds a snapshot").facts, draft.facts);
    draft.assert_readable(store, &slot).await;

    assert!(is_missing(&store.pack(&other.org, draft.pack(0)).await), "another org does not see it");
    assert!(is_missing(&store.manifest(&other, draft.facts.id).await));
    let schema = Slot { schema: SchemaHash::new("other"), ..slot.clone() };
    assert_eq!(published(store, &schema).await, (0, None), "nor does another schema");

    draft.publish(store, &slot, Generation::NONE).await.expect("asking again after a lost answer");
    assert_eq!(published(store, &slot).await, (1, Some(draft.facts.id)));

    store.put_pack(&other.org, draft.pack(0), Bytes::from_static(b"of another org")).await.expect("put");
    draft.assert_readable(store, &slot).await;
    let replaced = Bytes::from_static(b"the same pack, put again");
    store.put_pack(&slot.org, PackId { snapshot: draft.facts.id, number: 9 }, Bytes::new()).await.expect("put");
    store.put_pack(&slot.org, PackId { snapshot: draft.facts.id, number: 9 }, replaced.clone()).await.expect("put");
    let read = store.pack(&slot.org, PackId { snapshot: draft.facts.id, number: 9 }).await;
    assert_eq!(read.expect("a pack"), replaced);
}

async fn only_the_generation_that_was_seen_can_be_replaced(store: &dyn SnapshotStore) {
    let slot = new_slot();
    let (first, second) = (Draft::new(1, &[]), Draft::new(1, &[]));
    second.put_packs(store, &slot).await;
    assert!(matches!(second.publish(store, &slot, Generation(1)).await, Err(StoreError::Conflict)));
    first.establish(store, &slot, 0).await;
    for wrong in [0, 2, 3] {
        let refused = second.publish(store, &slot, Generation(wrong)).await;
        assert!(matches!(refused, Err(StoreError::Conflict)), "over {wrong}: {refused:?}");
    }
    assert_eq!(published(store, &slot).await, (1, Some(first.facts.id)));
    first.assert_readable(store, &slot).await;
    second.put_packs(store, &slot).await;
    second.publish(store, &slot, Generation(1)).await.expect("publish over what is there");
    assert_eq!(published(store, &slot).await, (2, Some(second.facts.id)));
    first.assert_readable(store, &slot).await;
}

async fn packs_must_be_there_to_be_published(store: &dyn SnapshotStore) {
    let slot = new_slot();
    let (first, second) = (Draft::new(2, &[]), Draft::new(1, &[]));
    store.put_pack(&slot.org, first.packs[0].0, first.packs[0].1.clone()).await.expect("put");
    assert!(is_missing(&first.publish(store, &slot, Generation::NONE).await), "its second pack was never put");
    assert_eq!(published(store, &slot).await, (0, None));
    first.establish(store, &slot, 0).await;
    second.establish(store, &slot, 1).await;
    let late = Draft::new(0, &[first.pack(0)]);
    assert!(is_missing(&late.publish(store, &slot, Generation(2)).await), "that pack may be on its way out");
    let third = Draft::new(1, &[second.pack(0)]);
    third.establish(store, &slot, 2).await;
    assert_eq!(published(store, &slot).await, (3, Some(third.facts.id)));
    let empty = Draft::new(0, &[]);
    empty.establish(store, &slot, 3).await;
    assert_eq!(published(store, &slot).await, (4, Some(empty.facts.id)), "an org without rows has no packs");
}

async fn of_many_publishers_one_wins(store: &dyn SnapshotStore) {
    let slot = new_slot();
    for generation in 0..5 {
        let drafts: Vec<Draft> = (0..8).map(|_| Draft::new(1, &[])).collect();
        let results = join_all(drafts.iter().map(async |draft| {
            draft.put_packs(store, &slot).await;
            draft.publish(store, &slot, Generation(generation)).await
        }));
        let results = results.await;
        let winners: Vec<_> = drafts.iter().zip(&results).filter(|(_, result)| result.is_ok()).collect();
        assert_eq!(winners.len(), 1, "of generation {generation}: {results:?}");
        let losers = results.iter().filter(|result| matches!(result, Err(StoreError::Conflict))).count();
        assert_eq!(losers, 7, "of generation {generation}: {results:?}");
        assert_eq!(published(store, &slot).await, (generation + 1, Some(winners[0].0.facts.id)));
        winners[0].0.assert_readable(store, &slot).await;
    }
}

async fn deleting_empties_all_schemas(store: &dyn SnapshotStore) {
    let (slot, bystander) = (new_slot(), new_slot());
    let schema = Slot { schema: SchemaHash::new("other"), ..slot.clone() };
    let drafts = [Draft::new(2, &[]), Draft::new(1, &[])];
    drafts[0].establish(store, &slot, 0).await;
    drafts[1].establish(store, &schema, 0).await;
    Draft::new(1, &[]).establish(store, &bystander, 0).await;
    assert_eq!(store.delete(&slot.org).await.expect("delete"), 2);
    assert_eq!(published(store, &slot).await, (2, None));
    assert_eq!(published(store, &schema).await, (2, None));
    drafts[0].assert_readable(store, &slot).await;
    drafts[1].assert_readable(store, &schema).await;
    let listed = store.heads().await.expect("heads");
    assert!(listed.iter().all(|(found, _)| found.org != slot.org));
    assert!(listed.iter().any(|(found, _)| *found == bystander));
    assert_eq!(store.delete(&slot.org).await.expect("delete again"), 0);
    let next = Draft::new(1, &[]);
    let over = store.head(&slot).await.expect("head").generation;
    next.establish(store, &slot, over.0).await;
    next.assert_readable(store, &slot).await;
}

async fn retiring_empties_one_schema(store: &dyn SnapshotStore) {
    let slot = new_slot();
    let schema = Slot { schema: SchemaHash::new("other"), ..slot.clone() };
    let (retired, kept, late) = (Draft::new(2, &[]), Draft::new(1, &[]), Draft::new(1, &[]));
    retired.establish(store, &slot, 0).await;
    kept.establish(store, &schema, 0).await;
    late.put_packs(store, &slot).await;
    for wrong in [0, 2] {
        let refused = store.retire(&slot, Generation(wrong)).await;
        assert!(matches!(refused, Err(StoreError::Conflict)), "over {wrong}: {refused:?}");
    }
    assert_eq!(published(store, &slot).await, (1, Some(retired.facts.id)));
    store.retire(&slot, Generation(1)).await.expect("retire");
    assert_eq!(published(store, &slot).await, (2, None));
    retired.assert_readable(store, &slot).await;
    assert!(matches!(late.publish(store, &slot, Generation(1)).await, Err(StoreError::Conflict)));
    assert_eq!(published(store, &schema).await, (1, Some(kept.facts.id)), "the other schema keeps its own");
    let listed = store.heads().await.expect("heads");
    assert!(listed.iter().all(|(found, _)| *found != slot) && listed.iter().any(|(found, _)| *found == schema));
    late.publish(store, &slot, Generation(2)).await.expect("it is made anew when it is asked for again");
    late.assert_readable(store, &slot).await;

    // A publisher and who retires what it replaces: one of them wins.
    for over in [3, 5, 7, 9] {
        let next = Draft::new(1, &[]);
        next.put_packs(store, &slot).await;
        let over = Generation(over);
        let (retired, moved) = tokio::join!(store.retire(&slot, over), next.publish(store, &slot, over));
        assert_ne!(retired.is_ok(), moved.is_ok(), "{retired:?} {moved:?}");
        let current = moved.is_ok().then_some(next.facts.id);
        assert_eq!(published(store, &slot).await, (over.next().0, current));
        Draft::new(1, &[]).establish(store, &slot, over.next().0).await;
    }
}

async fn a_dump_from_before_a_deletion_is_refused(store: &dyn SnapshotStore) {
    let slot = new_slot();
    let mut over = Generation::NONE;
    for _ in 0..12 {
        Draft::new(1, &[]).establish(store, &slot, over.0).await;
        let late = Draft::new(1, &[]);
        late.put_packs(store, &slot).await;
        let (deleted, late) = tokio::join!(store.delete(&slot.org), late.publish(store, &slot, over.next()));
        assert_eq!(deleted.expect("delete"), 1);
        // Faster than the deletion, it was deleted; slower, it was refused.
        assert!(matches!(late, Ok(()) | Err(StoreError::Conflict)), "{late:?}");
        let head = store.head(&slot).await.expect("head");
        assert_eq!(head.current, None, "{late:?}");
        over = head.generation;
    }
}

async fn any_size_is_kept(store: &dyn SnapshotStore) {
    let slot = new_slot();
    // Every eight bytes are different, so that parts which come back in another order are seen.
    let counted = |from: u64, len: u64| {
        let mut bytes = Vec::with_capacity(len as usize);
        (from..from + len / 8).for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        Bytes::from(bytes)
    };
    let mut draft = Draft::new(3, &[]);
    draft.packs[0].1 = counted(1, 20 << 20);
    draft.packs[1].1 = Bytes::new();
    draft.manifest = counted(2, 20 << 20);
    draft.establish(store, &slot, 0).await;
    draft.assert_readable(store, &slot).await;
    let (pack, bytes) = &draft.packs[0];
    let parts = [8..24, 24..24, (20 << 20) - 9..20 << 20, 0..5 << 20];
    let read = store.pack_parts(&slot.org, *pack, &parts).await.expect("parts");
    let cut = |part: &Range<u64>| bytes.slice(part.start as usize..part.end as usize);
    assert!(read == parts.iter().map(cut).collect::<Vec<_>>());
    for beyond in [(20 << 20) - 1..(20 << 20) + 1, 21 << 20..22 << 20] {
        let read = store.pack_parts(&slot.org, *pack, &[0..1, beyond]).await;
        assert!(matches!(read, Err(StoreError::Damaged { .. })), "{read:?}");
    }
}

/// Small packs, and ones that are not checked where they arrive.
async fn a_whole_pack_is_the_one_that_the_manifest_names(store: &dyn SnapshotStore) {
    let slot = new_slot();
    let snapshot = SnapshotId::random();
    for (number, frame) in [100, 3 << 20].into_iter().enumerate() {
        let id = PackId { snapshot, number: number as u32 };
        let mut builder = PackBuilder::default();
        builder.push(0, &GroupSet::default(), &vec![7; frame], 1000, 1);
        let pack = builder.finish();
        let entry = PackEntry { id, len: pack.len() as u32 };
        assert!(is_missing(&store.whole_pack(&slot.org, entry).await));
        store.put_pack(&slot.org, id, pack.clone()).await.expect("put");
        assert!(store.whole_pack(&slot.org, entry).await.expect("it is whole") == pack);
        for len in [0, entry.len - 1, entry.len + 1] {
            let read = store.whole_pack(&slot.org, PackEntry { id, len }).await;
            assert!(matches!(read, Err(StoreError::Damaged { .. })), "{len} of {} bytes: {:?}", entry.len, read.err());
        }
        let mut damaged = pack.to_vec();
        damaged[frame / 2] ^= 1;
        store.put_pack(&slot.org, id, damaged.into()).await.expect("put again");
        let read = store.whole_pack(&slot.org, entry).await;
        assert!(matches!(read, Err(StoreError::Damaged { .. })), "a flipped bit of {frame} bytes: {:?}", read.err());
    }
}

/// Orgs are any text. Every slot of this store is one of theirs.
pub async fn odd_orgs_stay_apart(store: &dyn SnapshotStore) {
    let long = "ÄÖ".repeat(75);
    let longer = format!("{long}.");
    let orgs = [
        "",
        " ",
        ".",
        "..",
        "../..",
        "a/b",
        "a\\b",
        "a=2fb",
        "a%2Fb",
        "a#1",
        "Acme",
        "acme",
        "ACME",
        "$where",
        "$$NOW",
        "a.b",
        "a\0b",
        "naïve",
        "naive",
        "東京😀",
        "con",
        "-",
        "null",
        &long,
        &longer,
    ];
    let slots: Vec<Slot> =
        orgs.iter().map(|org| Slot { org: Org::new(*org), schema: SchemaHash::new("a/B c") }).collect();
    let drafts: Vec<Draft> = slots.iter().map(|_| Draft::new(1, &[])).collect();
    for (slot, draft) in slots.iter().zip(&drafts) {
        draft.establish(store, slot, 0).await;
        let lease = store.acquire(&slot.org, SnapshotId::random(), std::time::Duration::from_secs(60)).await;
        assert!(lease.expect("acquire").is_some(), "{:?}", slot.org);
    }
    for (slot, draft) in slots.iter().zip(&drafts) {
        assert_eq!(published(store, slot).await, (1, Some(draft.facts.id)), "{:?}", slot.org);
        draft.assert_readable(store, slot).await;
    }
    let mut listed: Vec<_> = store.heads().await.expect("heads").into_iter().map(|(slot, _)| slot).collect();
    let mut all = slots.clone();
    listed.sort();
    all.sort();
    assert_eq!(listed, all);
    for (index, slot) in slots.iter().enumerate() {
        assert_eq!(store.delete(&slot.org).await.expect("delete"), 1, "{:?}", slot.org);
        assert_eq!(store.heads().await.expect("heads").len(), slots.len() - index - 1);
    }
}
