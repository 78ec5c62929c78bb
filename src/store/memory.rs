//! Snapshots in this process's memory, for tests, simulations and a first try. Gone with the process.
//!
//! Its clock is tokio's, so a paused clock moves it. It is stricter than the others on purpose: what has expired is
//! gone at that very moment, not when somebody sweeps, so that a test finds whoever relied on it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::model::{Generation, Org, SchemaHash, SnapshotId};
use crate::snapshot::PackId;
use crate::store::{Facts, Head, Lease, Published, Retention, Slot, SnapshotStore, StoreError};

/// A store in memory. Holds every byte it is given until it expires and is swept.
#[derive(Debug)]
pub struct MemoryStore {
    retention: Retention,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    slots: BTreeMap<Slot, SlotState>,
    manifests: BTreeMap<(Org, SnapshotId), Kept>,
    packs: BTreeMap<(Org, PackId), Kept>,
    leases: BTreeMap<Org, Held>,
    announcements: BTreeMap<(Org, SnapshotId, u32), Kept>,
}

#[derive(Debug)]
struct SlotState {
    generation: Generation,
    facts: Option<Facts>,
    since: Instant,
}

/// Bytes, and when they expire unless somebody needs them.
#[derive(Debug)]
struct Kept {
    bytes: Bytes,
    until: Option<Instant>,
}

#[derive(Debug)]
struct Held {
    owner: SnapshotId,
    token: u64,
    until: Instant,
    makes: Option<(SchemaHash, SnapshotId)>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new(retention: Retention) -> Self {
        Self { retention, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change below is made whole before anything that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn is_there(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

impl SlotState {
    fn head(&self) -> Head {
        let current = self.facts.clone().map(|facts| Published { facts, age: self.since.elapsed() });
        Head { generation: self.generation, current }
    }
}

impl State {
    /// Puts a slot in its next state and lets what only the replaced one needed expire.
    fn advance(&mut self, slot: &Slot, facts: Option<Facts>, grace: Duration) {
        let now = Instant::now();
        let before = self.slots.remove(slot);
        let generation = before.as_ref().map_or(Generation::NONE, |before| before.generation).next();
        if let Some(replaced) = before.and_then(|before| before.facts) {
            let until = Some(now + grace);
            if let Some(manifest) = self.manifests.get_mut(&(slot.org.clone(), replaced.id)) {
                manifest.until = until;
            }
            for pack in replaced.dropped_by(facts.as_ref()) {
                if let Some(kept) = self.packs.get_mut(&(slot.org.clone(), pack)) {
                    kept.until = until;
                }
            }
        }
        self.slots.insert(slot.clone(), SlotState { generation, facts, since: now });
    }

    fn lease(&mut self, lease: &Lease) -> Option<&mut Held> {
        self.leases.get_mut(&lease.org).filter(|held| held.token == lease.token && held.owner == lease.owner)
    }
}

#[async_trait]
impl SnapshotStore for MemoryStore {
    async fn head(&self, slot: &Slot) -> Result<Head, StoreError> {
        Ok(self.lock().slots.get(slot).map(SlotState::head).unwrap_or_default())
    }

    async fn heads(&self) -> Result<Vec<(Slot, Head)>, StoreError> {
        let state = self.lock();
        let published = state.slots.iter().filter(|(_, slot)| slot.facts.is_some());
        Ok(published.map(|(slot, state)| (slot.clone(), state.head())).collect())
    }

    async fn manifest(&self, slot: &Slot, snapshot: SnapshotId) -> Result<Bytes, StoreError> {
        let state = self.lock();
        let kept = state.manifests.get(&(slot.org.clone(), snapshot)).filter(|kept| kept.is_there());
        kept.map(|kept| kept.bytes.clone()).ok_or_else(|| StoreError::Missing(format!("manifest {snapshot}")))
    }

    async fn pack(&self, org: &Org, pack: PackId) -> Result<Bytes, StoreError> {
        let state = self.lock();
        let kept = state.packs.get(&(org.clone(), pack)).filter(|kept| kept.is_there());
        kept.map(|kept| kept.bytes.clone()).ok_or_else(|| StoreError::Missing(format!("pack {pack}")))
    }

    async fn put_pack(&self, org: &Org, pack: PackId, bytes: Bytes) -> Result<(), StoreError> {
        let until = Some(Instant::now() + self.retention.unpublished);
        self.lock().packs.insert((org.clone(), pack), Kept { bytes, until });
        Ok(())
    }

    async fn publish(&self, slot: &Slot, over: Generation, facts: &Facts, manifest: Bytes) -> Result<(), StoreError> {
        let mut state = self.lock();
        let (generation, current) = match state.slots.get(slot) {
            Some(slot) => (slot.generation, slot.facts.as_ref()),
            None => (Generation::NONE, None),
        };
        if generation != over {
            let ours = generation == over.next() && current.is_some_and(|current| current.id == facts.id);
            return if ours { Ok(()) } else { Err(StoreError::Conflict) };
        }
        facts.check_reuse(current)?;
        for pack in &facts.packs {
            if !state.packs.get(&(slot.org.clone(), *pack)).is_some_and(Kept::is_there) {
                return Err(StoreError::Missing(format!("pack {pack}")));
            }
        }
        for pack in &facts.packs {
            if let Some(kept) = state.packs.get_mut(&(slot.org.clone(), *pack)) {
                kept.until = None;
            }
        }
        state.manifests.insert((slot.org.clone(), facts.id), Kept { bytes: manifest, until: None });
        state.advance(slot, Some(facts.clone()), self.retention.grace);
        Ok(())
    }

    async fn delete(&self, org: &Org) -> Result<u64, StoreError> {
        let mut state = self.lock();
        let slots: Vec<Slot> = state.slots.keys().filter(|slot| slot.org == *org).cloned().collect();
        let mut deleted = 0;
        for slot in slots {
            deleted += u64::from(state.slots.get(&slot).is_some_and(|slot| slot.facts.is_some()));
            state.advance(&slot, None, self.retention.grace);
        }
        Ok(deleted)
    }

    async fn retire(&self, slot: &Slot, over: Generation) -> Result<(), StoreError> {
        let mut state = self.lock();
        if state.slots.get(slot).map_or(Generation::NONE, |slot| slot.generation) != over {
            return Err(StoreError::Conflict);
        }
        state.advance(slot, None, self.retention.grace);
        Ok(())
    }

    async fn acquire(&self, org: &Org, owner: SnapshotId, ttl: Duration) -> Result<Option<Lease>, StoreError> {
        let now = Instant::now();
        let mut state = self.lock();
        let before = state.leases.get(org);
        if before.is_some_and(|held| now < held.until) {
            return Ok(None);
        }
        let token = before.map_or(0, |held| held.token) + 1;
        state.leases.insert(org.clone(), Held { owner, token, until: now + ttl, makes: None });
        Ok(Some(Lease { org: org.clone(), owner, token }))
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        let mut state = self.lock();
        let Some(held) = state.lease(lease) else { return Ok(false) };
        held.until = Instant::now() + ttl;
        Ok(true)
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let mut state = self.lock();
        if let Some(held) = state.lease(lease) {
            // The entry stays, so that tokens go on growing; a token nobody has says that it was released.
            held.until = Instant::now();
            held.token += 1;
        }
        Ok(())
    }

    async fn declare(&self, lease: &Lease, slot: &Slot, snapshot: SnapshotId) -> Result<(), StoreError> {
        if let Some(held) = self.lock().lease(lease) {
            held.makes = Some((slot.schema.clone(), snapshot));
        }
        Ok(())
    }

    async fn declared(&self, slot: &Slot) -> Result<Option<SnapshotId>, StoreError> {
        let state = self.lock();
        let held = state.leases.get(&slot.org).filter(|held| Instant::now() < held.until);
        let makes = held.and_then(|held| held.makes.as_ref()).filter(|(schema, _)| *schema == slot.schema);
        Ok(makes.map(|(_, snapshot)| *snapshot))
    }

    async fn announce(&self, org: &Org, snapshot: SnapshotId, number: u32, piece: Bytes) -> Result<(), StoreError> {
        let until = Some(Instant::now() + self.retention.unpublished);
        self.lock().announcements.insert((org.clone(), snapshot, number), Kept { bytes: piece, until });
        Ok(())
    }

    async fn announced(&self, org: &Org, snapshot: SnapshotId, number: u32) -> Result<Option<Bytes>, StoreError> {
        let state = self.lock();
        let kept = state.announcements.get(&(org.clone(), snapshot, number)).filter(|kept| kept.is_there());
        Ok(kept.map(|kept| kept.bytes.clone()))
    }

    async fn sweep(&self) -> Result<u64, StoreError> {
        let mut state = self.lock();
        let before = state.packs.len();
        state.packs.retain(|_, kept| kept.is_there());
        state.manifests.retain(|_, kept| kept.is_there());
        state.announcements.retain(|_, kept| kept.is_there());
        // No dump is older than this, so nobody can publish over such a tombstone any more.
        let forgotten = self.retention.grace + self.retention.unpublished;
        state.slots.retain(|_, slot| slot.facts.is_some() || slot.since.elapsed() < forgotten);
        Ok((before - state.packs.len()) as u64)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
