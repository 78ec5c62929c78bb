//! Announcements of dumps in progress, for stores that several instances share.

use std::time::Duration;

use bytes::Bytes;

use crate::model::{SchemaHash, SnapshotId};
use crate::store::contract::{new_slot, wait_until};
use crate::store::{Slot, SnapshotStore};

const LONG: Duration = Duration::from_secs(60 * 60);
const SHORT: Duration = Duration::from_millis(300);

/// What must hold of announcements.
///
/// # Panics
/// When a promise is broken.
pub async fn run(store: &dyn SnapshotStore) {
    a_declaration_lasts_as_long_as_its_lease(store).await;
    pieces_are_found_by_their_number(store).await;
}

async fn a_declaration_lasts_as_long_as_its_lease(store: &dyn SnapshotStore) {
    let slot = new_slot();
    let other = Slot { org: slot.org.clone(), schema: SchemaHash::new("another") };
    let acquire = async |ttl| store.acquire(&slot.org, SnapshotId::random(), ttl).await.expect("acquire");
    let declared = async |slot: &Slot| store.declared(slot).await.expect("declared");
    assert_eq!(declared(&slot).await, None);
    let lease = acquire(LONG).await.expect("free");
    assert_eq!(declared(&slot).await, None, "nothing is said yet");
    let (first, second) = (SnapshotId::random(), SnapshotId::random());
    store.declare(&lease, &slot, first).await.expect("declare");
    assert_eq!((declared(&slot).await, declared(&other).await), (Some(first), None));
    assert!(store.renew(&lease, LONG).await.expect("renew"));
    assert_eq!(declared(&slot).await, Some(first), "renewing changes nothing");
    store.release(&lease).await.expect("release");
    assert_eq!(declared(&slot).await, None, "given back");
    store.declare(&lease, &slot, first).await.expect("declaring under a lost lease is no error");
    assert_eq!(declared(&slot).await, None);

    let lease = acquire(SHORT).await.expect("free");
    store.declare(&lease, &slot, first).await.expect("declare");
    wait_until("the end of the lease", async || declared(&slot).await.is_none()).await;
    let next = acquire(LONG).await.expect("free");
    assert_eq!(declared(&slot).await, None, "the next holder has not said anything");
    store.declare(&lease, &slot, first).await.expect("declare");
    assert_eq!(declared(&slot).await, None, "the former one has no say");
    store.declare(&next, &other, second).await.expect("declare");
    assert_eq!((declared(&slot).await, declared(&other).await), (None, Some(second)));
}

async fn pieces_are_found_by_their_number(store: &dyn SnapshotStore) {
    let (org, other, snapshot) = (new_slot().org, new_slot().org, SnapshotId::random());
    for number in [0, 1] {
        store.announce(&org, snapshot, number, Bytes::from(vec![number as u8; 10])).await.expect("announce");
    }
    let announced = async |org, snapshot, number| store.announced(org, snapshot, number).await.expect("announced");
    assert_eq!(announced(&org, snapshot, 1).await.as_deref(), Some(&[1; 10][..]));
    assert_eq!(announced(&org, snapshot, 2).await, None);
    assert_eq!(announced(&other, snapshot, 1).await, None);
    assert_eq!(announced(&org, SnapshotId::random(), 1).await, None);
}
