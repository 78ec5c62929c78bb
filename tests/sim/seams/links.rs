//! What lies between one instance and the two seams: delays, outages, lost answers, damage, and the cut of a crash.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use headstart::model::{Epoch, Generation, GroupSet, Org, Schema, SnapshotId, SyncGroup, SyncId, User, Watermark};
use headstart::snapshot::{Manifest, PackId, frame, index, pack};
use headstart::source::{Action, ActionRange, Found, LogSize, Lookup, Object, Scan, Source, SourceError};
use headstart::store::{Facts, Head, Lease, MemoryStore, Slot, SnapshotStore, StoreError};
use tokio::time::sleep;

use super::history::{CLASSES, History, Key};
use crate::support::dice::Dice;

/// The weather between an instance and what it leans on.
#[derive(Default)]
pub struct Weather {
    /// The database can't be reached.
    pub database_down: AtomicBool,
    /// The store can't be reached.
    pub store_down: AtomicBool,
    /// Some calls of the store fail, before or after they had their effect.
    pub flaky: AtomicBool,
    /// Some packs come damaged.
    pub rotten: AtomicBool,
    /// Calls of the store take longer than a lease lasts.
    pub frozen: AtomicBool,
    /// The process has died: nothing of it reaches anything any more.
    pub dead: AtomicBool,
}

impl Weather {
    /// All is well again, unless the instance is dead.
    pub fn clear(&self) {
        for fault in [&self.database_down, &self.store_down, &self.flaky, &self.rotten, &self.frozen] {
            fault.store(false, Ordering::SeqCst);
        }
    }
}

/// One instance's way to the database and the store.
pub struct Link {
    pub weather: Weather,
    dice: Mutex<Dice>,
    /// The most refreshes in a row that were seen published.
    pub refreshed: AtomicU64,
    /// Scans that are open, by org.
    scans: Mutex<HashMap<Org, usize>>,
}

impl Link {
    pub fn new(dice: Dice) -> Arc<Self> {
        Arc::new(Self {
            weather: Weather::default(),
            dice: Mutex::new(dice),
            refreshed: AtomicU64::default(),
            scans: Mutex::default(),
        })
    }

    fn roll(&self, sides: usize) -> usize {
        self.dice.lock().unwrap().below(sides)
    }

    fn is(&self, fault: &AtomicBool) -> bool {
        fault.load(Ordering::SeqCst)
    }

    async fn database(&self) -> Result<(), SourceError> {
        sleep(Duration::from_millis(self.roll(20) as u64)).await;
        if self.is(&self.weather.dead) || self.is(&self.weather.database_down) {
            return Err(SourceError::unavailable("by the simulation"));
        }
        Ok(())
    }

    /// One call of the store, with what may befall it.
    async fn store<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let pause = if self.is(&self.weather.frozen) { 45_000 } else { self.roll(20) as u64 };
        sleep(Duration::from_millis(pause)).await;
        let lost = || Err(StoreError::Unavailable(Arc::from(Box::from("by the simulation"))));
        if self.is(&self.weather.dead) || self.is(&self.weather.store_down) {
            return lost();
        }
        let flaky = if self.is(&self.weather.flaky) { self.roll(6) } else { 6 };
        if flaky == 0 {
            return lost();
        }
        let answer = call.await;
        if flaky == 1 { lost() } else { answer }
    }
}

/// The database, over a link.
pub struct LinkedSource {
    pub history: History,
    pub link: Arc<Link>,
}

/// A scan that is open; an instance has one at a time for each org.
struct OpenScan {
    link: Arc<Link>,
    org: Org,
}

impl OpenScan {
    fn new(link: Arc<Link>, org: Org) -> Self {
        let mut scans = link.scans.lock().unwrap();
        let open = scans.entry(org.clone()).or_default();
        *open += 1;
        assert_eq!(*open, 1, "an instance scans {org} twice at a time");
        drop(scans);
        Self { link, org }
    }
}

impl Drop for OpenScan {
    fn drop(&mut self) {
        self.link.scans.lock().unwrap().remove(&self.org);
    }
}

#[async_trait]
impl Source for LinkedSource {
    async fn schema(&self) -> Result<Arc<Schema>, SourceError> {
        self.link.database().await?;
        self.history.database.schema().await
    }

    async fn schema_now(&self) -> Result<Arc<Schema>, SourceError> {
        self.link.database().await?;
        self.history.database.schema_now().await
    }

    async fn watermark(&self) -> Result<Watermark, SourceError> {
        self.link.database().await?;
        self.history.database.watermark().await
    }

    async fn epoch(&self) -> Result<Epoch, SourceError> {
        self.link.database().await?;
        self.history.database.epoch().await
    }

    async fn scan(&self, org: &Org) -> Result<Scan, SourceError> {
        let open = OpenScan::new(self.link.clone(), org.clone());
        self.link.database().await?;
        let mut scan = self.history.database.scan(org).await?;
        scan.batches = async_stream::stream! {
            let open = open;
            let mut batches = pin!(scan.batches);
            while let Some(batch) = batches.next().await {
                if let Err(error) = open.link.database().await {
                    yield Err(error);
                    return;
                }
                yield batch;
            }
        }
        .boxed();
        Ok(scan)
    }

    async fn lookup(&self, lookup: &Lookup) -> Result<Found, SourceError> {
        self.link.database().await?;
        self.history.database.lookup(lookup).await
    }

    async fn actions(&self, range: &ActionRange) -> Result<Vec<Action>, SourceError> {
        self.link.database().await?;
        self.history.database.actions(range).await
    }

    async fn changed(&self, range: &ActionRange) -> Result<Vec<Object>, SourceError> {
        self.link.database().await?;
        self.history.database.changed(range).await
    }

    async fn memberships(&self, members: &[(Org, User)]) -> Result<Vec<Vec<SyncGroup>>, SourceError> {
        self.link.database().await?;
        self.history.database.memberships(members).await
    }

    async fn pending(&self, orgs: &[(Org, SyncId)], cap: u64) -> Result<Vec<u64>, SourceError> {
        self.link.database().await?;
        self.history.database.pending(orgs, cap).await
    }

    async fn trim(&self, up_to: SyncId, age: Duration, most: u64) -> Result<u64, SourceError> {
        self.link.database().await?;
        self.history.database.trim(up_to, age, most).await
    }

    async fn log_size(&self) -> Result<LogSize, SourceError> {
        self.link.database().await?;
        self.history.database.log_size().await
    }

    async fn unlogged(&self) -> Result<Arc<BTreeMap<usize, SourceError>>, SourceError> {
        self.link.database().await?;
        self.history.database.unlogged().await
    }

    async fn orgs(&self) -> Result<Vec<Org>, SourceError> {
        self.link.database().await?;
        self.history.database.orgs().await
    }
}

/// The store, over a link. Whatever is published is looked at as a whole at once.
pub struct LinkedStore {
    pub store: Arc<MemoryStore>,
    pub history: History,
    pub link: Arc<Link>,
}

impl LinkedStore {
    /// A published snapshot is whole, its counts hold, it holds what was true at its sync id or became so since, and none is
    /// replaced by an older one.
    async fn inspect(&self, slot: &Slot, before: &Head) {
        let head = self.store.head(slot).await.unwrap();
        let Facts { id, epoch, sync_id, rows, raw_len, len, packs } = head.current.unwrap().facts;
        if let Some(replaced) = before.current.as_ref().filter(|replaced| replaced.facts.epoch == epoch) {
            assert!(replaced.facts.sync_id <= sync_id, "{slot:?} went back: {:?}, {sync_id}", replaced.facts);
        }
        let manifest = Manifest::decode(&self.store.manifest(slot, id).await.unwrap()).unwrap();
        assert_eq!((manifest.id, &manifest.org, manifest.sync_id), (id, &slot.org, sync_id));
        assert_eq!((manifest.rows(), manifest.raw_len(), manifest.len()), (rows, raw_len, len));
        assert_eq!(manifest.stored().map(|pack| pack.id).collect::<Vec<_>>(), packs);
        self.link.refreshed.fetch_max(manifest.refreshes.into(), Ordering::SeqCst);
        let mut bytes = Vec::new();
        for entry in &manifest.packs {
            let pack = self.store.pack(&slot.org, entry.id).await.unwrap();
            assert_eq!(pack.len(), entry.len as usize);
            pack::verify(&pack).unwrap();
            bytes.push(pack);
        }
        let mut held: BTreeMap<Key, (GroupSet, String)> = BTreeMap::new();
        for entry in &manifest.frames {
            let (from, to) = (entry.offset as usize, (entry.offset + entry.len) as usize);
            let lines = frame::decompress(&bytes[entry.pack as usize][from..to], entry.raw_len as usize).unwrap();
            let lines = String::from_utf8(lines).unwrap();
            assert_eq!(lines.lines().count(), entry.rows as usize);
            for line in lines.lines() {
                let fields: serde_json::Value = serde_json::from_str(line).unwrap();
                let id = fields["id"].as_str().unwrap().to_owned();
                assert_eq!(fields["__class"], CLASSES[entry.model as usize]);
                let set = manifest.sets[entry.set as usize].clone();
                let twice = held.insert((entry.model as usize, id), (set, line.to_owned()));
                assert!(twice.is_none(), "{line} stands twice");
            }
        }
        for (key, versions) in &self.history.snapshot(&slot.org, sync_id) {
            let version = held.remove(key);
            assert!(versions.contains(&version), "{slot:?} at {sync_id}: {key:?} is {version:?}, not of {versions:?}");
        }
        assert!(held.is_empty(), "{slot:?} at {sync_id}: {held:?} never was");
        for entry in &manifest.index {
            let shard = self.store.pack(&slot.org, entry.id).await.unwrap();
            assert_eq!(shard.len(), entry.len as usize);
            index::read(&shard).unwrap();
        }
    }
}

#[async_trait]
impl SnapshotStore for LinkedStore {
    async fn head(&self, slot: &Slot) -> Result<Head, StoreError> {
        self.link.store(self.store.head(slot)).await
    }

    async fn heads(&self) -> Result<Vec<(Slot, Head)>, StoreError> {
        self.link.store(self.store.heads()).await
    }

    async fn manifest(&self, slot: &Slot, snapshot: SnapshotId) -> Result<Bytes, StoreError> {
        self.link.store(self.store.manifest(slot, snapshot)).await
    }

    async fn pack(&self, org: &Org, pack: PackId) -> Result<Bytes, StoreError> {
        let bytes = self.link.store(self.store.pack(org, pack)).await?;
        if !self.link.is(&self.link.weather.rotten) || self.link.roll(2) == 0 {
            return Ok(bytes);
        }
        let mut damaged = bytes.to_vec();
        let place = self.link.roll(damaged.len());
        damaged[place] ^= 1 << self.link.roll(8);
        Ok(damaged.into())
    }

    async fn put_pack(&self, org: &Org, pack: PackId, bytes: Bytes) -> Result<(), StoreError> {
        self.link.store(self.store.put_pack(org, pack, bytes)).await
    }

    async fn publish(&self, slot: &Slot, over: Generation, facts: &Facts, manifest: Bytes) -> Result<(), StoreError> {
        self.link
            .store(async {
                let before = self.store.head(slot).await?;
                self.store.publish(slot, over, facts, manifest).await?;
                self.inspect(slot, &before).await;
                Ok(())
            })
            .await
    }

    async fn delete(&self, org: &Org) -> Result<u64, StoreError> {
        self.link.store(self.store.delete(org)).await
    }

    async fn retire(&self, slot: &Slot, over: Generation) -> Result<(), StoreError> {
        self.link.store(self.store.retire(slot, over)).await
    }

    async fn acquire(&self, org: &Org, owner: SnapshotId, ttl: Duration) -> Result<Option<Lease>, StoreError> {
        self.link.store(self.store.acquire(org, owner, ttl)).await
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        self.link.store(self.store.renew(lease, ttl)).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.link.store(self.store.release(lease)).await
    }

    async fn declare(&self, lease: &Lease, slot: &Slot, snapshot: SnapshotId) -> Result<(), StoreError> {
        self.link.store(self.store.declare(lease, slot, snapshot)).await
    }

    async fn declared(&self, slot: &Slot) -> Result<Option<SnapshotId>, StoreError> {
        self.link.store(self.store.declared(slot)).await
    }

    async fn announce(&self, org: &Org, snapshot: SnapshotId, number: u32, piece: Bytes) -> Result<(), StoreError> {
        self.link.store(self.store.announce(org, snapshot, number, piece)).await
    }

    async fn announced(&self, org: &Org, snapshot: SnapshotId, number: u32) -> Result<Option<Bytes>, StoreError> {
        self.link.store(self.store.announced(org, snapshot, number)).await
    }

    async fn sweep(&self) -> Result<u64, StoreError> {
        self.link.store(self.store.sweep()).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.link.store(self.store.ping()).await
    }
}
