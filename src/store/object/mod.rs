//! Snapshots as objects: a folder, the embedded default, through the `object_store` crate.
//!
//! The crate's calls reach cloud buckets just as well, and nothing here is particular to a folder but [`folder`] and how its
//! packs are read: all that is asked of a bucket is create-if-absent, strong listings and modification times.
//!
//! # Publishing
//! A slot is a log: one head object for each generation, of which the newest rules. To publish over generation n is to
//! create object n + 1, which only one can do. The order makes a death between any two steps harmless:
//!
//! | step | dies after it |
//! |---|---|
//! | 1. packs are put, while the dump runs | nothing names them; swept once twice [`Retention::unpublished`] old |
//! | 2. the slot is seen to be at `over` | the same |
//! | 3. the manifest is put | the same, the manifest too |
//! | 4. every pack is seen to be there, the new ones younger than `unpublished` | the same |
//! | 5. head `over` + 1 is created | published |
//!
//! A sweep removes what a head that is still needed does not name: at once when a replaced head names it, else only at
//! twice `unpublished`. So a publisher would have to hang between steps 4 and 5 for a whole `unpublished` to lose a
//! pack. A replaced head is needed for the grace period, and stays for another `unpublished` as a fence: without it a
//! publisher that slept since step 2 could create that generation a second time and believe that it rules.
//!
//! A head that can't be read counts as a tombstone, so a next dump mends the slot.
//!
//! # What stays
//! Of an org that is gone: a tombstone for each slot and one lease entry, about 100 bytes each, and its folders.

mod clock;
mod folder;
mod heads;
mod leases;
mod paths;
mod sweep;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::model::{Generation, Org, SnapshotId};
use crate::snapshot::{PackEntry, PackId};
use crate::store::object::clock::{Clock, age};
use crate::store::object::folder::Folder;
use crate::store::object::heads::Newest;
use crate::store::object::leases::Leases;
use crate::store::object::paths::Name;
use crate::store::{
    Facts, Head, Lease, Retention, Slot, SnapshotStore, StoreError, check, check_len, cut, off_runtime, pages,
};
use crate::task;

pub use folder::FolderSettings;

/// A store over any bucket of the `object_store` crate. Holds no snapshot in memory.
///
/// A call whose future is dropped may still have its effect: the file operation that has begun runs to its end.
#[derive(Debug)]
pub struct BucketStore {
    bucket: Arc<dyn ObjectStore>,
    clock: Clock,
    retention: Retention,
    /// The folder that the bucket is, if it is one.
    folder: Option<Folder>,
}

impl BucketStore {
    /// A store in this bucket, which must support create-if-absent.
    pub fn new(bucket: Arc<dyn ObjectStore>, retention: Retention) -> Self {
        Self { bucket, clock: Clock::new(), retention, folder: None }
    }

    async fn now(&self) -> Result<SystemTime, StoreError> {
        self.clock.now(&*self.bucket).await.map_err(fault)
    }

    async fn read(&self, location: &Path, what: impl FnOnce() -> String) -> Result<Bytes, StoreError> {
        let read = async { self.bucket.get(location).await?.bytes().await };
        read.await.map_err(|error| wrong(error, what))
    }

    /// A pack; checked, if its entry is given. Of a folder, all on one thread: for a thousand packs a second, handing over
    /// takes as long as reading.
    async fn load(&self, org: &Org, pack: PackId, entry: Option<PackEntry>) -> Result<Bytes, StoreError> {
        let (location, missing) = (paths::pack(&paths::org(org), pack), move || format!("pack {pack}"));
        let org = org.clone();
        let Some(folder) = &self.folder else {
            let bytes = self.read(&location, missing).await?;
            let unchecked = if entry.is_some() { bytes.len() } else { 0 };
            return off_runtime(unchecked, move || check(&org, entry, bytes)).await;
        };
        let file = folder.file(&location);
        let broken = move |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Missing(missing()),
            _ => StoreError::unavailable(error),
        };
        let read = move || {
            let mut file = File::open(file).map_err(broken)?;
            let len = file.metadata().map_err(broken)?.len();
            // Before room is made for it.
            entry.map_or(Ok(()), |entry| check_len(&org, entry, len))?;
            let bytes = pages::filled(len as usize, |bytes| file.read_exact(bytes)).map_err(broken)?;
            check(&org, entry, bytes)
        };
        task::blocking(read).await
    }

    async fn newest(&self, slot: &Slot) -> Result<Option<Newest>, StoreError> {
        let newest = heads::newest(&*self.bucket, &paths::slot(slot)).await?;
        // Only a digest stands in the path of a long name, so the names inside are compared.
        Ok(newest.map(|mut newest| {
            newest.current = newest.current.filter(|(named, _)| named == slot);
            newest
        }))
    }

    /// Step 4 of publishing.
    async fn check_packs(&self, org_root: &Path, facts: &Facts) -> Result<(), StoreError> {
        let now = self.now().await?;
        let listed = self.bucket.list(Some(&paths::packs(org_root)));
        let written: HashMap<PackId, SystemTime> = listed
            .try_filter_map(|meta| async move {
                Ok(match paths::parse(org_root, &meta.location) {
                    Some(Name::Pack(pack)) => Some((pack, meta.last_modified.into())),
                    _ => None,
                })
            })
            .try_collect()
            .await
            .map_err(fault)?;
        for pack in &facts.packs {
            let fit = written
                .get(pack)
                .is_some_and(|written| pack.snapshot != facts.id || age(now, *written) < self.retention.unpublished);
            if !fit {
                return Err(StoreError::Missing(format!("pack {pack}")));
            }
        }
        Ok(())
    }

    fn leases(&self, org: &Org) -> Leases<'_> {
        Leases { store: &*self.bucket, clock: &self.clock, org_root: paths::org(org) }
    }
}

#[async_trait]
impl SnapshotStore for BucketStore {
    async fn head(&self, slot: &Slot) -> Result<Head, StoreError> {
        match self.newest(slot).await? {
            Some(newest) => Ok(newest.head(self.now().await?)),
            None => Ok(Head::default()),
        }
    }

    async fn heads(&self) -> Result<Vec<(Slot, Head)>, StoreError> {
        let all = heads::all(&*self.bucket).await?;
        let now = self.now().await?;
        Ok(all.into_iter().map(|(slot, newest)| (slot, newest.head(now))).collect())
    }

    async fn manifest(&self, slot: &Slot, snapshot: SnapshotId) -> Result<Bytes, StoreError> {
        let location = paths::manifest(&paths::org(&slot.org), snapshot);
        self.read(&location, || format!("manifest {snapshot}")).await
    }

    async fn pack(&self, org: &Org, pack: PackId) -> Result<Bytes, StoreError> {
        self.load(org, pack, None).await
    }

    async fn whole_pack(&self, org: &Org, entry: PackEntry) -> Result<Bytes, StoreError> {
        self.load(org, entry.id, Some(entry)).await
    }

    async fn pack_parts(&self, org: &Org, pack: PackId, parts: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        let missing = || format!("pack {pack}");
        match self.bucket.get_ranges(&paths::pack(&paths::org(org), pack), parts).await {
            Ok(read) if read.iter().map(Bytes::len).eq(parts.iter().map(|part| (part.end - part.start) as usize)) => {
                Ok(read)
            }
            Err(error @ object_store::Error::NotFound { .. }) => Err(wrong(error, missing)),
            // Not every bucket says of a range that goes too far what is wrong.
            _ => cut(org, pack, &self.pack(org, pack).await?, parts),
        }
    }

    async fn put_pack(&self, org: &Org, pack: PackId, bytes: Bytes) -> Result<(), StoreError> {
        let location = paths::pack(&paths::org(org), pack);
        self.bucket.put(&location, bytes.into()).await.map(|_| ()).map_err(fault)
    }

    async fn publish(&self, slot: &Slot, over: Generation, facts: &Facts, manifest: Bytes) -> Result<(), StoreError> {
        let (org_root, slot_root) = (paths::org(&slot.org), paths::slot(slot));
        let is_ours = |newest: Option<Newest>| {
            newest.is_some_and(|newest| {
                newest.generation == over.next() && newest.current.is_some_and(|(_, current)| current.id == facts.id)
            })
        };
        let newest = self.newest(slot).await?;
        if newest.as_ref().map_or(Generation::NONE, |newest| newest.generation) != over {
            return if is_ours(newest) { Ok(()) } else { Err(StoreError::Conflict) };
        }
        facts.check_reuse(newest.as_ref().and_then(|newest| newest.current.as_ref()).map(|(_, facts)| facts))?;
        self.bucket.put(&paths::manifest(&org_root, facts.id), manifest.into()).await.map_err(fault)?;
        if let Err(error) = self.check_packs(&org_root, facts).await {
            // A pack to take over is gone when another publisher was faster.
            let moved = self.newest(slot).await?.map_or(Generation::NONE, |newest| newest.generation) != over;
            return Err(if moved { StoreError::Conflict } else { error });
        }
        if heads::create(&*self.bucket, &slot_root, over.next(), Some((slot, facts))).await? {
            return Ok(());
        }
        // A bucket that retries by itself may find its own first attempt.
        if is_ours(self.newest(slot).await?) { Ok(()) } else { Err(StoreError::Conflict) }
    }

    async fn delete(&self, org: &Org) -> Result<u64, StoreError> {
        let mut deleted = 0;
        for slot_root in heads::slots(&*self.bucket, &paths::org(org)).await? {
            // A publisher that is faster moves the slot; then what it published is taken away.
            while let Some(newest) = heads::newest(&*self.bucket, &slot_root).await? {
                if heads::create(&*self.bucket, &slot_root, newest.generation.next(), None).await? {
                    deleted += u64::from(newest.current.is_some());
                    break;
                }
            }
        }
        Ok(deleted)
    }

    async fn retire(&self, slot: &Slot, over: Generation) -> Result<(), StoreError> {
        let at = self.newest(slot).await?.map_or(Generation::NONE, |newest| newest.generation);
        if at == over && heads::create(&*self.bucket, &paths::slot(slot), over.next(), None).await? {
            return Ok(());
        }
        Err(StoreError::Conflict)
    }

    async fn acquire(&self, org: &Org, owner: SnapshotId, ttl: Duration) -> Result<Option<Lease>, StoreError> {
        let token = self.leases(org).acquire(owner, ttl).await?;
        Ok(token.map(|token| Lease { org: org.clone(), owner, token }))
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        self.leases(&lease.org).extend(lease, ttl).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.leases(&lease.org).extend(lease, Duration::ZERO).await.map(|_| ())
    }

    async fn sweep(&self) -> Result<u64, StoreError> {
        let now = self.now().await?;
        let removed = sweep::run(&*self.bucket, now, &self.retention).await?;
        if let Some(folder) = &self.folder {
            folder.remove_leftovers(now, self.retention.unpublished).await?;
        }
        Ok(removed)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        match self.bucket.head(&Path::from(folder::FORMAT)).await {
            Ok(_) => Ok(()),
            // Buckets that were not opened as a folder have no such object; they answered all the same.
            Err(object_store::Error::NotFound { .. }) if self.folder.is_none() => Ok(()),
            Err(error) => Err(fault(error)),
        }
    }
}

/// [`fault`], in which what is missing is called by its own name.
fn wrong(error: object_store::Error, what: impl FnOnce() -> String) -> StoreError {
    match fault(error) {
        StoreError::Missing(_) => StoreError::Missing(what()),
        other => other,
    }
}

/// What an error of the crate means to the service.
fn fault(error: object_store::Error) -> StoreError {
    if let object_store::Error::NotFound { path, .. } = error {
        return StoreError::Missing(path);
    }
    if is_full(&error) { StoreError::Full(Arc::new(error)) } else { StoreError::Unavailable(Arc::new(error)) }
}

/// Whether any cause is a full disk or a full quota.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| matches!(error.kind(), StorageFull | QuotaExceeded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        // ENOSPC, EDQUOT, EIO.
        for (code, full) in [(28, true), (122, true), (5, false)] {
            let source = Box::new(io::Error::from_raw_os_error(code));
            let error = fault(object_store::Error::Generic { store: "LocalFileSystem", source });
            assert_eq!(matches!(error, StoreError::Full(_)), full, "{error:?}");
        }
    }
}
