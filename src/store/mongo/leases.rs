//! Leases: one document for each org, changed by single updates that compare times on the server.
//!
//! ```text
//! { _id: org, org, owner | null, token, grant, until, makes: { schema, snapshot } | null }
//! ```
//! `makes` is what the holder says of its dump, for those who would follow it; it ends with the lease.

use std::time::Duration;

use mongodb::bson::{DateTime, Document, doc};
use mongodb::options::{IndexOptions, ReturnDocument};
use mongodb::{Collection, Database, IndexModel};

use crate::model::{Org, SchemaHash, SnapshotId};
use crate::store::{Lease, Slot, StoreError};

use super::{fault, from_now, is_duplicate};

/// How long a document stays after its lease ended. Tokens begin anew then; nobody dumps for that long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The collection of leases.
#[derive(Clone, Debug)]
pub struct Leases(Collection<Document>);

impl Leases {
    /// The collection in this database.
    pub fn new(database: &Database) -> Self {
        Self(database.collection("leases"))
    }

    /// Creates the index; nothing happens when it is there.
    pub async fn create_indexes(&self) -> Result<(), StoreError> {
        let expiry = IndexOptions::builder().expire_after(FORGOTTEN_AFTER).build();
        let index = IndexModel::builder().keys(doc! { "until": 1 }).options(expiry).build();
        self.0.create_index(index).await.map(|_| ()).map_err(fault)
    }

    /// Takes the lease; the token, or `None` while somebody holds it.
    pub async fn acquire(&self, org: &Org, owner: SnapshotId, ttl: Duration) -> Result<Option<u64>, StoreError> {
        // Names this very call, so that the document tells whether it was the one that took the lease.
        let grant = SnapshotId::random().to_string();
        let free = doc! { "$lte": [{ "$ifNull": ["$until", DateTime::MIN] }, "$$NOW"] };
        let choose = |taken: Document, kept: &str| doc! { "$cond": ["$free", taken, kept] };
        let set = doc! {
            "owner": choose(doc! { "$literal": owner.to_string() }, "$owner"),
            "token": choose(doc! { "$add": [{ "$ifNull": ["$token", 0_i64] }, 1_i64] }, "$token"),
            "grant": choose(doc! { "$literal": &grant }, "$grant"),
            "until": choose(from_now(ttl), "$until"),
            "makes": { "$cond": ["$free", null, "$makes"] },
        };
        let update = vec![doc! { "$set": { "free": free } }, doc! { "$set": set }, doc! { "$unset": "free" }];
        let filter = doc! { "_id": org.as_str(), "org": org.as_str() };
        let updated = self.0.find_one_and_update(filter, update).upsert(true).return_document(ReturnDocument::After);
        match updated.await {
            Ok(Some(lease)) if lease.get_str("grant").is_ok_and(|taken| taken == grant) => {
                let token = lease.get_i64("token").map_err(StoreError::unavailable)?;
                Ok(Some(token.try_into().map_err(StoreError::unavailable)?))
            }
            Ok(_) => Ok(None),
            // Two inserted the first lease of the org at once.
            Err(error) if is_duplicate(&error) => Ok(None),
            Err(error) => Err(fault(error)),
        }
    }

    /// Holds a lease for longer; `false` when it was lost.
    pub async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<bool, StoreError> {
        let update = vec![doc! { "$set": { "until": from_now(ttl) } }];
        Ok(self.0.update_one(filter(lease)?, update).await.map_err(fault)?.matched_count == 1)
    }

    /// Says what the holder makes; nothing happens when the lease was lost.
    pub async fn declare(&self, lease: &Lease, schema: &SchemaHash, snapshot: SnapshotId) -> Result<(), StoreError> {
        let makes = doc! { "schema": schema.as_str(), "snapshot": snapshot.to_string() };
        let update = doc! { "$set": { "makes": makes } };
        self.0.update_one(filter(lease)?, update).await.map(|_| ()).map_err(fault)
    }

    /// What the holder of the lease makes in this slot.
    pub async fn declared(&self, slot: &Slot) -> Result<Option<SnapshotId>, StoreError> {
        let org = slot.org.as_str();
        let live = doc! { "$gt": ["$until", "$$NOW"] };
        let filter = doc! { "_id": org, "org": org, "makes.schema": slot.schema.as_str(), "$expr": live };
        let Some(lease) = self.0.find_one(filter).await.map_err(fault)? else { return Ok(None) };
        let makes = lease.get_document("makes").map_err(StoreError::unavailable)?;
        let snapshot = makes.get_str("snapshot").map_err(StoreError::unavailable)?;
        snapshot.parse().map(Some).map_err(StoreError::unavailable)
    }

    /// Gives a lease back. Its document stays, so that tokens go on growing.
    pub async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let update = vec![doc! { "$set": { "owner": null, "until": "$$NOW", "makes": null } }];
        self.0.update_one(filter(lease)?, update).await.map(|_| ()).map_err(fault)
    }
}

fn filter(lease: &Lease) -> Result<Document, StoreError> {
    let token = i64::try_from(lease.token).map_err(StoreError::unavailable)?;
    let org = lease.org.as_str();
    Ok(doc! { "_id": org, "org": org, "owner": lease.owner.to_string(), "token": token })
}
