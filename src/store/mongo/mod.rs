//! Snapshots in MongoDB: a replica set, or a cluster sharded by `org`.
//!
//! Collections `heads`, `packs`, `manifests`, `leases` and `announcements`; every document carries its `org` and every statement names
//! it, but for those of the sweep and the listing of all heads. Written with majority write concern, read on the
//! primary with majority read concern. Every time is the server's `$$NOW`.
//!
//! # Publishing
//! A blob (a pack or a manifest) is either *held*, or carries an expiry mark and is removed by a TTL index when that
//! time has come. What a head names is held, always. There is no transaction; the order does it:
//!
//! | step | what a death after it leaves | who mends it |
//! |---|---|---|
//! | 1. packs are put, marked to expire after `unpublished` | marked blobs that no head names | the mark |
//! | 2. the manifest is put, marked likewise | the same | the mark |
//! | 3. the new packs and the manifest are held and *touched* (`touchedAt` is now) | held blobs that no head names | the sweep, once they are *orphaned* |
//! | 4. all packs are counted: whole and held, or the publisher marks its own again and fails | the same | the sweep |
//! | 5. the head is moved by compare-and-set | the replaced snapshot is held, though no head names it | the sweep |
//! | 6. what the replaced snapshot alone needed is marked to expire after `grace` | nothing | |
//!
//! So the mark of a pack is gone before the head that names it appears. A publisher that loses step 5 marks its blobs
//! again; one that does not learn how step 5 ended looks at the head, finds its own snapshot's id there and has won,
//! or leaves its blobs to the sweep, because the compare-and-set may still be on its way.
//!
//! # Against the sweep
//! The sweep reads the heads of an org, then marks what is held, named by none of them, and *orphaned*: untouched for
//! an hour, or for `unpublished` if that is shorter; this is part of the very update. A publisher touches its blobs at
//! step 3 and gives up unless it reaches step 5 within half of that time, so none of its blobs can be marked before its
//! head names them. Packs it
//! takes over are named by the head it replaces: who replaced that one first makes step 5 fail. Should a process stop
//! for hours in the middle of all that, the publisher takes marks off once more after step 5, and the sweep begins
//! with taking them off whatever a head names; marks are `grace` long, so that is in time.

mod blobs;
mod heads;
mod leases;
mod publish;
mod sweep;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mongodb::bson::{Document, doc};
use mongodb::error::{ErrorKind, WriteFailure};
use mongodb::options::{Acknowledgment, ClientOptions, ReadConcern, ReadPreference, SelectionCriteria, WriteConcern};
use mongodb::{Client, Database};
use serde::{Deserialize, Serialize};
use tokio::sync::{OnceCell, Semaphore, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::model::{Generation, Org, SnapshotId};
use crate::snapshot::{PackEntry, PackId};
use crate::store::mongo::blobs::Blobs;
use crate::store::mongo::heads::Heads;
use crate::store::mongo::leases::Leases;
use crate::store::{
    Facts, Head, Lease, OpenError, Retention, Slot, SnapshotStore, StoreError, check, off_runtime, pages,
};
use crate::task::Tasks;

/// The database when the URL names none.
const DEFAULT_DATABASE: &str = "headstart";

/// How MongoDB is used. What the URL says of TLS, authentication and compression holds; the concerns and the
/// read preference are always the ones this store relies on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MongoSettings {
    /// Milliseconds for one call. Publishing, deleting, listing all heads and each org of a sweep may take six times
    /// as long.
    pub timeout_ms: u64,
    /// Milliseconds to connect, TLS included.
    pub connect_timeout_ms: u64,
    /// Milliseconds to find the primary; what a call takes to fail while there is none.
    pub server_selection_timeout_ms: u64,
    /// Calls, and so connections, at once; further calls wait. Each that moves a pack costs the pack's size in memory.
    pub max_connections: u32,
}

impl Default for MongoSettings {
    fn default() -> Self {
        Self { timeout_ms: 10_000, connect_timeout_ms: 5_000, server_selection_timeout_ms: 5_000, max_connections: 16 }
    }
}

/// Snapshots in MongoDB. Holds no snapshot in memory.
///
/// The driver does not take it well when its futures are dropped midway (jira.mongodb.org/browse/RUST-937), so every
/// call runs to its end as a task of its own, and the caller waits for that: a call whose future is dropped, or that
/// timed out, may still have its effect.
#[derive(Debug)]
pub struct MongoStore {
    collections: Collections,
    /// Calls that may run at once.
    calls: Arc<Semaphore>,
    /// Those of them that may load a pack: clients wait for the others before their first byte.
    loads: Arc<Semaphore>,
    timeout: Duration,
    tasks: Tasks,
}

/// What a call's task works with.
#[derive(Clone, Debug)]
struct Collections {
    database: Database,
    heads: Heads,
    packs: Blobs,
    manifests: Blobs,
    leases: Leases,
    announcements: Blobs,
    retention: Retention,
    indexed: Arc<OnceCell<()>>,
}

impl MongoStore {
    /// A store at this URL. The server need not answer yet; only `mongodb+srv` URLs are looked up at once.
    ///
    /// # Errors
    /// [`OpenError::Mongo`].
    pub async fn open(
        url: &str,
        settings: &MongoSettings,
        retention: Retention,
        tasks: Tasks,
    ) -> Result<Self, OpenError> {
        let mut options = ClientOptions::parse(url).await.map_err(|error| OpenError::Mongo(error.into()))?;
        let majority = WriteConcern::builder()
            .w(Acknowledgment::Majority)
            .journal(true)
            .w_timeout(Duration::from_millis(settings.timeout_ms))
            .build();
        options.write_concern = Some(majority);
        options.read_concern = Some(ReadConcern::majority());
        options.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
        options.retry_reads = Some(true);
        options.retry_writes = Some(true);
        options.connect_timeout = Some(Duration::from_millis(settings.connect_timeout_ms));
        options.server_selection_timeout = Some(Duration::from_millis(settings.server_selection_timeout_ms));
        options.max_pool_size = Some(settings.max_connections);
        options.app_name.get_or_insert_with(|| "headstart".to_owned());
        let database = options.default_database.clone().unwrap_or_else(|| DEFAULT_DATABASE.to_owned());
        let client = Client::with_options(options).map_err(|error| OpenError::Mongo(error.into()))?;
        let database = client.database(&database);
        let connections = settings.max_connections as usize;
        Ok(Self {
            collections: Collections {
                heads: Heads::new(&database),
                packs: Blobs::new(&database, "packs", "pack"),
                manifests: Blobs::new(&database, "manifests", "manifest"),
                leases: Leases::new(&database),
                announcements: Blobs::new(&database, "announcements", "announcement"),
                database,
                retention,
                indexed: Arc::default(),
            },
            calls: Arc::new(Semaphore::new(connections)),
            loads: Arc::new(Semaphore::new((connections - connections / 4).max(1))),
            timeout: Duration::from_millis(settings.timeout_ms),
            tasks,
        })
    }

    /// Runs a call to its end, however long the caller waits for it.
    async fn call<T, F>(&self, limit: Duration, work: impl FnOnce(Collections) -> F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let late = |_| StoreError::unavailable(TooLate(limit));
        let deadline = Instant::now() + limit;
        let permit = timeout_at(deadline, self.calls.clone().acquire_owned()).await.map_err(late)?;
        let permit = permit.map_err(StoreError::unavailable)?;
        let (sender, answer) = oneshot::channel();
        let work = work(self.collections.clone());
        self.tasks.spawn("mongodb call", async move {
            let _permit = permit;
            // Nobody waits for it any more when the caller has gone; the effect is what counts. Statements to a server
            // that vanished without a word are ended by the driver, once its own look at that server gets no answer.
            let _ = sender.send(work.await);
        });
        timeout_at(deadline, answer).await.map_err(late)?.map_err(StoreError::unavailable)?
    }

    /// The limit of a call of several statements.
    fn long(&self) -> Duration {
        self.timeout * 6
    }
}

impl Collections {
    /// Creates the indexes once for each process, before the first write: without them nothing would expire.
    async fn create_indexes(&self) -> Result<(), StoreError> {
        let created = self.indexed.get_or_try_init(async || {
            self.heads.create_indexes().await?;
            self.packs.create_indexes().await?;
            self.manifests.create_indexes().await?;
            self.announcements.create_indexes().await?;
            self.leases.create_indexes().await
        });
        created.await.copied()
    }

    /// How long a blob that no head names may be held before it counts as left behind.
    fn orphaned(&self) -> Duration {
        self.retention.unpublished.min(Duration::from_secs(60 * 60))
    }
}

impl MongoStore {
    /// A pack in pages of its own, so that the reply it came in is not kept; checked, if its entry is given.
    async fn load(&self, org: &Org, pack: PackId, entry: Option<PackEntry>) -> Result<Bytes, StoreError> {
        let (org, key) = (org.clone(), pack.to_string());
        let named = org.clone();
        let began = Instant::now();
        let late = |_| StoreError::unavailable(TooLate(self.timeout));
        let place = timeout(self.timeout, self.loads.clone().acquire_owned()).await.map_err(late)?;
        let place = place.map_err(StoreError::unavailable)?;
        let get = async move |store: Collections| {
            let _place = place;
            store.packs.get(&named, &key).await
        };
        let read = self.call(self.timeout.saturating_sub(began.elapsed()), get).await?;
        let len = read.len();
        let copy = move || {
            let copied = pages::filled(len, |pages| {
                pages.copy_from_slice(&read);
                Ok(())
            });
            check(&org, entry, copied.map_err(StoreError::unavailable)?)
        };
        off_runtime(len, copy).await
    }
}

#[async_trait]
impl SnapshotStore for MongoStore {
    async fn head(&self, slot: &Slot) -> Result<Head, StoreError> {
        let slot = slot.clone();
        self.call(self.timeout, async move |store| store.heads.read(&slot).await).await
    }

    async fn heads(&self) -> Result<Vec<(Slot, Head)>, StoreError> {
        self.call(self.long(), async move |store| store.heads.all().await).await
    }

    async fn manifest(&self, slot: &Slot, snapshot: SnapshotId) -> Result<Bytes, StoreError> {
        let (org, key) = (slot.org.clone(), snapshot.to_string());
        self.call(self.timeout, async move |store| store.manifests.get(&org, &key).await).await
    }

    async fn pack(&self, org: &Org, pack: PackId) -> Result<Bytes, StoreError> {
        self.load(org, pack, None).await
    }

    async fn whole_pack(&self, org: &Org, entry: PackEntry) -> Result<Bytes, StoreError> {
        self.load(org, entry.id, Some(entry)).await
    }

    async fn put_pack(&self, org: &Org, pack: PackId, bytes: Bytes) -> Result<(), StoreError> {
        let (org, key) = (org.clone(), pack.to_string());
        let put = async move |store: Collections| {
            store.create_indexes().await?;
            store.packs.put(&org, &key, bytes, store.retention.unpublished).await
        };
        self.call(self.timeout, put).await
    }

    async fn publish(&self, slot: &Slot, over: Generation, facts: &Facts, manifest: Bytes) -> Result<(), StoreError> {
        let (slot, facts) = (slot.clone(), facts.clone());
        self.call(self.long(), async move |store| store.publish(&slot, over, &facts, manifest).await).await
    }

    async fn delete(&self, org: &Org) -> Result<u64, StoreError> {
        let org = org.clone();
        self.call(self.long(), async move |store| store.delete(&org).await).await
    }

    async fn retire(&self, slot: &Slot, over: Generation) -> Result<(), StoreError> {
        let slot = slot.clone();
        self.call(self.long(), async move |store| store.retire(&slot, over).await).await
    }

    async fn acquire(&self, org: &Org, owner: SnapshotId, ttl: Duration) -> Result<Option<Lease>, StoreError> {
        let named = org.clone();
        let token = self.call(self.timeout, async move |store| store.leases.acquire(&named, owner, ttl).await).await?;
        Ok(token.map(|token| Lease { org: org.clone(), owner, token }))
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        let lease = lease.clone();
        self.call(self.timeout, async move |store| store.leases.renew(&lease, ttl).await).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let lease = lease.clone();
        self.call(self.timeout, async move |store| store.leases.release(&lease).await).await
    }

    async fn declare(&self, lease: &Lease, slot: &Slot, snapshot: SnapshotId) -> Result<(), StoreError> {
        let (lease, schema) = (lease.clone(), slot.schema.clone());
        self.call(self.timeout, async move |store| store.leases.declare(&lease, &schema, snapshot).await).await
    }

    async fn declared(&self, slot: &Slot) -> Result<Option<SnapshotId>, StoreError> {
        let slot = slot.clone();
        self.call(self.timeout, async move |store| store.leases.declared(&slot).await).await
    }

    async fn announce(&self, org: &Org, snapshot: SnapshotId, number: u32, piece: Bytes) -> Result<(), StoreError> {
        let (org, key) = (org.clone(), PackId { snapshot, number }.to_string());
        let put = async move |store: Collections| {
            store.create_indexes().await?;
            store.announcements.put(&org, &key, piece, store.retention.unpublished).await
        };
        self.call(self.timeout, put).await
    }

    async fn announced(&self, org: &Org, snapshot: SnapshotId, number: u32) -> Result<Option<Bytes>, StoreError> {
        let (org, key) = (org.clone(), PackId { snapshot, number }.to_string());
        match self.call(self.timeout, async move |store| store.announcements.get(&org, &key).await).await {
            Err(StoreError::Missing(_)) => Ok(None),
            other => other.map(Some),
        }
    }

    async fn sweep(&self) -> Result<u64, StoreError> {
        for org in self.call(self.long(), async move |store| store.orgs().await).await? {
            self.call(self.long(), async move |store| store.sweep_org(&org).await).await?;
        }
        self.call(self.long(), async move |store| store.remove_expired().await).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        let ping = async move |store: Collections| store.database.run_command(doc! { "ping": 1 }).await.map_err(fault);
        self.call(self.timeout, ping).await.map(|_| ())
    }
}

/// A call that was not answered within its time.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} ms", .0.as_millis())]
struct TooLate(Duration);

/// A reply that can't be one to the statement that was sent.
#[derive(Debug, thiserror::Error)]
#[error("MongoDB's reply makes no sense")]
struct MalformedReply;

/// The server's time, so much later.
fn from_now(later: Duration) -> Document {
    doc! { "$add": ["$$NOW", millis(later)] }
}

fn millis(duration: Duration) -> i64 {
    duration.as_millis().try_into().unwrap_or(i64::MAX)
}

/// What an error of the driver means to the service.
fn fault(error: mongodb::error::Error) -> StoreError {
    if is_full(&error) { StoreError::Full(Arc::new(error)) } else { StoreError::Unavailable(Arc::new(error)) }
}

/// OutOfDiskSpace; Atlas answers its own code 8000 with words when a cluster is over its quota.
fn is_full(error: &mongodb::error::Error) -> bool {
    codes(error).any(|(code, message)| code == 14031 || (code == 8000 && message.contains("quota")))
}

/// DuplicateKey.
fn is_duplicate(error: &mongodb::error::Error) -> bool {
    codes(error).any(|(code, _)| code == 11000)
}

/// The codes and messages the server gave.
fn codes(error: &mongodb::error::Error) -> impl Iterator<Item = (i32, &str)> {
    let code = match error.kind.as_ref() {
        ErrorKind::Command(command) => Some((command.code, command.message.as_str())),
        ErrorKind::Write(WriteFailure::WriteError(write)) => Some((write.code, write.message.as_str())),
        ErrorKind::Write(WriteFailure::WriteConcernError(concern)) => Some((concern.code, concern.message.as_str())),
        _ => None,
    };
    code.into_iter()
}
