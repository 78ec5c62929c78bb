//! Leases.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;

use crate::model::{Org, SnapshotId};
use crate::store::contract::{new_slot, wait_until};
use crate::store::{Lease, SnapshotStore};

const LONG: Duration = Duration::from_secs(60 * 60);
const SHORT: Duration = Duration::from_millis(300);

/// What must hold of leases.
pub async fn run(store: &dyn SnapshotStore) {
    one_of_many_gets_it(store).await;
    never_two_at_once(store).await;
    a_lease_ends_and_its_former_holder_has_no_say(store).await;
    renewing_holds_on(store).await;
}

async fn acquire(store: &dyn SnapshotStore, org: &Org, ttl: Duration) -> Option<Lease> {
    store.acquire(org, SnapshotId::random(), ttl).await.expect("acquire")
}

async fn one_of_many_gets_it(store: &dyn SnapshotStore) {
    let (org, other) = (new_slot().org, new_slot().org);
    let leases = join_all((0..32).map(|_| acquire(store, &org, LONG))).await;
    let mut held = leases.into_iter().flatten();
    let lease = held.next().expect("somebody gets it");
    assert_eq!(held.next(), None, "and nobody else");
    assert_eq!(store.acquire(&org, lease.owner, LONG).await.expect("acquire"), None, "not even the holder");
    assert!(acquire(store, &other, LONG).await.is_some(), "another org is free");
    store.release(&lease).await.expect("release");
    assert!(!store.renew(&lease, LONG).await.expect("renew"), "what was given back is lost");
    let next = acquire(store, &org, LONG).await.expect("free again");
    assert!(next.token > lease.token);
}

async fn never_two_at_once(store: &dyn SnapshotStore) {
    let org = new_slot().org;
    let inside = AtomicUsize::new(0);
    let worked = join_all((0..32).map(async |_| {
        let lease = loop {
            if let Some(lease) = acquire(store, &org, LONG).await {
                break lease;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold the lease at once");
        assert!(store.renew(&lease, LONG).await.expect("renew"));
        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1, "two held the lease at once");
        store.release(&lease).await.expect("release");
        lease.token
    }));
    let mut tokens = worked.await;
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 32, "every lease has a token of its own");
}

async fn a_lease_ends_and_its_former_holder_has_no_say(store: &dyn SnapshotStore) {
    let org = new_slot().org;
    let former = acquire(store, &org, SHORT).await.expect("free");
    assert_eq!(acquire(store, &org, LONG).await, None, "held");
    let mut taken = None;
    wait_until("the end of the lease", async || {
        taken = acquire(store, &org, LONG).await;
        taken.is_some()
    })
    .await;
    let holder = taken.expect("taken");
    assert!(holder.token > former.token);
    assert!(!store.renew(&former, LONG).await.expect("renew"), "lost");
    store.release(&former).await.expect("releasing what was lost is no error");
    assert_eq!(acquire(store, &org, LONG).await, None, "the holder still has it");
    assert!(store.renew(&holder, LONG).await.expect("renew"));
}

async fn renewing_holds_on(store: &dyn SnapshotStore) {
    let (org, clock) = (new_slot().org, new_slot().org);
    let lease = acquire(store, &org, SHORT).await.expect("free");
    assert!(store.renew(&lease, LONG).await.expect("renew"));
    // Shows that the time of the first lease has passed by the store's clock.
    acquire(store, &clock, SHORT).await.expect("free");
    wait_until("the end of the lease", async || acquire(store, &clock, SHORT).await.is_some()).await;
    assert_eq!(acquire(store, &org, LONG).await, None, "held for longer");
    assert!(store.renew(&lease, SHORT).await.expect("renew"));
    wait_until("the end of the lease", async || acquire(store, &org, LONG).await.is_some()).await;
}
