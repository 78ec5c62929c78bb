//! The cache in front of any store: verified packs and decoded manifests, each loaded once however many ask.
//!
//! A load is a task of its own, so a caller that goes away cancels nobody. Room for a pack is set aside before the
//! load begins, since the manifest says its length, and what it loads is checked before anyone sees it. Readers hold
//! what they got with a [`Pinned`] handle, or with slices of it that go to a socket; it counts until the last of them
//! is dropped. So memory stays within the limit however slow the readers are, and a load may have to wait. A reader
//! that asks for a pack while it holds others can be what others wait for: hold few at a time, and let go of them without
//! waiting for the next.
//!
//! A manifest's length is only known once it is decoded, so only four are loaded at a time, and those are not
//! counted until then.

mod shelf;

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot, watch};
use tracing::Instrument;

use crate::metrics::CacheMetrics;
use crate::model::{Org, SnapshotId};
use crate::snapshot::{Manifest, PackEntry, PackId, Selectable};
use crate::store::cache::shelf::{Answer, Key, Loaded, Lookup, Pin, Shelf, Value};
use crate::store::{Slot, SnapshotStore, StoreError};
use crate::task::{self, Tasks};
use crate::trace::span;

/// How many manifests are loaded at once.
const MANIFESTS_AT_ONCE: usize = 4;

/// Settings `[store.cache]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheSettings {
    /// MiB of packs and manifests in memory at most, those that slow readers hold included. A pack is 4 MiB; an org
    /// whose packs all fit is served without the store.
    pub limit_mib: u32,
    /// Milliseconds a load waits while readers hold everything; then the answer is "busy".
    pub room_wait_ms: u64,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self { limit_mib: 256, room_wait_ms: 10_000 }
    }
}

/// A bounded cache in front of a store. Clones share it.
#[derive(Clone)]
pub struct PackCache {
    store: Arc<dyn SnapshotStore>,
    shelf: Arc<Shelf>,
    manifests: Arc<Semaphore>,
    room_wait: Duration,
    tasks: Tasks,
}

/// The figures of a cache, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Bytes it may hold.
    pub limit: u64,
    /// Bytes it holds, those set aside for loads included.
    pub bytes: u64,
    /// Bytes of these that no reader holds.
    pub idle_bytes: u64,
    /// Answers out of the cache.
    pub hits: u64,
    /// Answers that waited for a load another caller had begun.
    pub joins: u64,
    /// Loads begun.
    pub loads: u64,
    /// Loads that had to wait for room.
    pub waits: u64,
    /// Entries that made room.
    pub evictions: u64,
}

impl PackCache {
    /// An empty cache.
    pub fn new(store: Arc<dyn SnapshotStore>, settings: &CacheSettings, tasks: Tasks, metrics: CacheMetrics) -> Self {
        Self {
            store,
            shelf: Shelf::new((settings.limit_mib as usize) << 20, metrics),
            manifests: Arc::new(Semaphore::new(MANIFESTS_AT_ONCE)),
            room_wait: Duration::from_millis(settings.room_wait_ms),
            tasks,
        }
    }

    /// A verified pack of a manifest.
    ///
    /// # Errors
    /// Those of the store; [`StoreError::Damaged`] naming the pack; [`StoreError::NoRoom`].
    pub async fn pack(&self, org: &Org, entry: PackEntry) -> Result<PinnedPack, StoreError> {
        let key = Key::Pack(org.clone(), entry.id);
        let load = |cache: Self| cache.load_pack(org.clone(), entry);
        match self.get(key, "load pack", load).await? {
            (Value::Pack(bytes), pin) => Ok(Pinned { value: bytes, pin: Arc::new(pin) }),
            (Value::Manifest(_), _) => unreachable!("a pack's key holds a pack"),
        }
    }

    /// Whether a pack is in memory.
    pub fn has_pack(&self, org: &Org, pack: PackId) -> bool {
        self.shelf.has(&Key::Pack(org.clone(), pack))
    }

    /// Begins to load a pack that somebody will ask for soon, where there is room to spare. Nobody holds it until then, so
    /// it may be gone again. What goes wrong is found by whoever asks.
    pub fn ahead(&self, org: &Org, entry: PackEntry) {
        let key = Key::Pack(org.clone(), entry.id);
        if let Some(ticket) = self.shelf.look_ahead(&key, entry.len as usize) {
            let load = self.clone().load_pack(org.clone(), entry);
            self.tasks.spawn("load pack", async move { ticket.finish(load.await) });
        }
    }

    /// The manifest of a snapshot.
    ///
    /// # Errors
    /// Those of the store; [`StoreError::Damaged`] naming the manifest; [`StoreError::NoRoom`].
    pub async fn manifest(&self, slot: &Slot, snapshot: SnapshotId) -> Result<PinnedManifest, StoreError> {
        let key = Key::Manifest(slot.org.clone(), snapshot);
        let load = |cache: Self| cache.load_manifest(slot.clone(), snapshot);
        match self.get(key, "load manifest", load).await? {
            (Value::Manifest(manifest), pin) => Ok(Pinned { value: manifest, pin: Arc::new(pin) }),
            (Value::Pack(_), _) => unreachable!("a manifest's key holds a manifest"),
        }
    }

    /// Whether a load waits for room that readers hold, as it changes.
    pub fn crowded(&self) -> watch::Receiver<bool> {
        self.shelf.crowded()
    }

    /// The manifest of a snapshot, if it is in memory.
    pub fn held_manifest(&self, slot: &Slot, snapshot: SnapshotId) -> Option<PinnedManifest> {
        match self.shelf.peek(&Key::Manifest(slot.org.clone(), snapshot))? {
            (Value::Manifest(manifest), pin) => Some(Pinned { value: manifest, pin: Arc::new(pin) }),
            (Value::Pack(_), _) => unreachable!("a manifest's key holds a manifest"),
        }
    }

    /// A pack, if it is in memory.
    pub fn held_pack(&self, org: &Org, pack: PackId) -> Option<PinnedPack> {
        match self.shelf.peek(&Key::Pack(org.clone(), pack))? {
            (Value::Pack(bytes), pin) => Some(Pinned { value: bytes, pin: Arc::new(pin) }),
            (Value::Manifest(_), _) => unreachable!("a pack's key holds a pack"),
        }
    }

    /// The figures now.
    pub fn stats(&self) -> CacheStats {
        self.shelf.stats()
    }

    async fn get<F>(&self, key: Key, task: &'static str, load: impl FnOnce(Self) -> F) -> Answer
    where
        F: Future<Output = Loaded> + Send + 'static,
    {
        let answer: oneshot::Receiver<Answer> = match self.shelf.look_up(&key) {
            Lookup::Ready(value, pin) => return Ok((value, pin)),
            Lookup::Joined(answer) => answer,
            Lookup::Load(answer, ticket) => {
                let load = load(self.clone());
                self.tasks.spawn(task, async move { ticket.finish(load.await) });
                answer
            }
        };
        answer.instrument(span!("load", what = task)).await.unwrap_or_else(|_| Err(StoreError::unavailable(Abandoned)))
    }

    async fn load_pack(self, org: Org, entry: PackEntry) -> Loaded {
        let room = self.shelf.room(entry.len as usize, self.room_wait).await.ok_or(StoreError::NoRoom)?;
        Ok((Value::Pack(self.store.whole_pack(&org, entry).await?), room))
    }

    async fn load_manifest(self, slot: Slot, snapshot: SnapshotId) -> Loaded {
        let _one_of_few = self.manifests.acquire().await;
        let bytes = self.store.manifest(&slot, snapshot).await?;
        // Large orgs have many sets.
        let decoded = task::blocking(move || Manifest::decode(&bytes).map(Selectable::new));
        let fault = match decoded.await {
            Ok(manifest)
                if (&manifest.org, &manifest.schema_hash, manifest.id) == (&slot.org, &slot.schema, snapshot) =>
            {
                let room = self.shelf.room(manifest.weight(), self.room_wait).await.ok_or(StoreError::NoRoom)?;
                return Ok((Value::Manifest(Arc::new(manifest)), room));
            }
            // Stores may find a manifest by its org and id alone.
            Ok(manifest) if (&manifest.org, manifest.id) == (&slot.org, snapshot) => {
                return Err(StoreError::Missing(format!("manifest {snapshot} in schema {}", slot.schema)));
            }
            Ok(_) => "it is of another snapshot".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(StoreError::Damaged { what: format!("manifest {snapshot} of org {:?}", slot.org), fault })
    }
}

/// Something of the cache that stays in memory for as long as this, its clones, or slices of it live.
#[derive(Clone)]
pub struct Pinned<T> {
    // Dropped before the pin, so that the bytes are gone by the time others count on their room.
    value: T,
    pin: Arc<Pin>,
}

/// A verified pack, as it is stored.
pub type PinnedPack = Pinned<Bytes>;
/// A decoded manifest.
pub type PinnedManifest = Pinned<Arc<Selectable>>;

impl PinnedPack {
    /// A part of the pack, without copying. It holds the whole pack in the cache until it is dropped.
    ///
    /// # Panics
    /// When the range reaches outside the pack. Those of a decoded manifest don't.
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        Bytes::from_owner(Pinned { value: self.value.slice(range), pin: self.pin.clone() })
    }
}

impl AsRef<[u8]> for PinnedPack {
    fn as_ref(&self) -> &[u8] {
        &self.value
    }
}

impl<T> fmt::Debug for Pinned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its name only: contents are large, and users' data has no place in a log.
        self.pin.fmt(f)
    }
}

impl<T: Deref> Deref for Pinned<T> {
    type Target = T::Target;

    fn deref(&self) -> &T::Target {
        &self.value
    }
}

/// The load ended without a result: it panicked, or the service is going down.
#[derive(Debug, thiserror::Error)]
#[error("loading was abandoned")]
struct Abandoned;
