//! Leases out of nothing but create-if-absent: a log of numbered entries, of which the newest rules.
//!
//! Taking, renewing and giving back each append the entry after the one that was read, so two that read the same entry
//! can't both succeed. Time is that of the entries' objects. Whoever appended looks once more: entries below the newest
//! are removed, so a late appender could fill a hole, and it sees then that its entry does not rule.
//!
//! The newest entry stays for ever (about 100 bytes an org): numbers that began anew could be granted twice.

use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};

use crate::model::SnapshotId;
use crate::store::object::clock::{Clock, age};
use crate::store::object::heads::create_object;
use crate::store::object::paths;
use crate::store::{Lease, StoreError};

use super::fault;

/// An entry of the log.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    owner: String,
    token: u64,
    /// For how long it holds from the moment it was written; 0 gives the lease back.
    ttl_ms: u64,
}

impl Entry {
    fn is_of(&self, lease: &Lease) -> bool {
        self.token == lease.token && self.owner == lease.owner.to_string() && self.ttl_ms > 0
    }
}

/// The leases of one org.
pub struct Leases<'a> {
    /// The objects.
    pub store: &'a dyn ObjectStore,
    /// Their clock.
    pub clock: &'a Clock,
    /// Everything of the org.
    pub org_root: Path,
}

impl Leases<'_> {
    /// Takes the lease; the token, or `None` while somebody holds it.
    pub async fn acquire(&self, owner: SnapshotId, ttl: Duration) -> Result<Option<u64>, StoreError> {
        let number = match self.newest().await? {
            None => 0,
            Some((number, meta, entry)) => {
                let now = self.clock.now(self.store).await.map_err(fault)?;
                let ttl = Duration::from_millis(entry.map_or(0, |entry| entry.ttl_ms));
                if age(now, meta.last_modified.into()) < ttl {
                    return Ok(None);
                }
                number
            }
        };
        let token = number + 1;
        let entry = Entry { owner: owner.to_string(), token, ttl_ms: milliseconds(ttl) };
        Ok(self.append(number + 1, &entry).await?.then_some(token))
    }

    /// Holds the lease for longer, or gives it back with a `ttl` of zero; `false` when it was lost.
    pub async fn extend(&self, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        let next = Entry { owner: lease.owner.to_string(), token: lease.token, ttl_ms: milliseconds(ttl) };
        while let Some((number, _, Some(entry))) = self.newest().await?
            && entry.is_of(lease)
        {
            if self.append(number + 1, &next).await? {
                return Ok(true);
            }
            // Another call for the same lease, or a taker once it ended, was faster: look who rules now.
        }
        Ok(false)
    }

    /// Adds an entry; whether it rules now.
    async fn append(&self, number: u64, entry: &Entry) -> Result<bool, StoreError> {
        let json = serde_json::to_vec(entry).map_err(StoreError::unavailable)?;
        if !create_object(self.store, &paths::lease(&self.org_root, number), json).await? {
            return Ok(false);
        }
        let listed = self.list().await?;
        let rules = listed.iter().all(|(other, _)| *other <= number);
        for (_, meta) in listed.iter().filter(|(other, _)| *other < number) {
            // What stays is swept.
            if let Err(error) = self.store.delete(&meta.location).await {
                tracing::debug!(%error, "an old lease entry stays for the sweep");
            }
        }
        Ok(rules)
    }

    /// The entry that rules: its number, its object and what it says; `None` inside when it is damaged, which no
    /// lease survives.
    async fn newest(&self) -> Result<Option<(u64, ObjectMeta, Option<Entry>)>, StoreError> {
        loop {
            let Some((number, meta)) = self.list().await?.into_iter().max_by_key(|(number, _)| *number) else {
                return Ok(None);
            };
            let read = match self.store.get(&meta.location).await {
                Ok(object) => object.bytes().await,
                Err(error) => Err(error),
            };
            match read {
                Ok(bytes) => return Ok(Some((number, meta, serde_json::from_slice(&bytes).ok()))),
                // A newer one was written and this one removed meanwhile.
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(fault(error)),
            }
        }
    }

    async fn list(&self) -> Result<Vec<(u64, ObjectMeta)>, StoreError> {
        let listed = self.store.list(Some(&paths::leases(&self.org_root)));
        let numbered = listed.try_filter_map(|meta| async {
            let number = meta.location.filename().and_then(|name| name.parse().ok());
            Ok(number.map(|number| (number, meta)))
        });
        numbered.try_collect().await.map_err(fault)
    }
}

fn milliseconds(ttl: Duration) -> u64 {
    ttl.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::model::Org;

    #[tokio::test]
    async fn who_fills_a_hole_below_the_newest_entry_has_nothing() {
        let (bucket, clock) = (InMemory::new(), Clock::new());
        let leases = Leases { store: &bucket, clock: &clock, org_root: paths::org(&Org::new("o")) };
        let (owner, ttl) = (SnapshotId::random(), Duration::from_secs(3600));
        let token = leases.acquire(owner, ttl).await.unwrap().unwrap();
        let lease = Lease { org: Org::new("o"), owner, token };
        for _ in 0..3 {
            assert!(leases.extend(&lease, ttl).await.unwrap());
        }
        let numbers: Vec<u64> = leases.list().await.unwrap().into_iter().map(|(number, _)| number).collect();
        assert_eq!(numbers, [4], "what was replaced is gone");
        // One that read entry 1 long ago, when it had ended, and creates the next only now.
        let late = Entry { owner: SnapshotId::random().to_string(), token: 2, ttl_ms: 3_600_000 };
        assert!(!leases.append(2, &late).await.unwrap());
        assert!(leases.extend(&lease, ttl).await.unwrap(), "the holder does not notice");
    }
}
