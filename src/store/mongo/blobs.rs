//! Packs and manifests: bytes of any size under a key, split over documents, with an expiry mark.
//!
//! ```text
//! { _id: { org, key, part }, org, key, part, parts, data, held, touchedAt, expireAt? }
//! ```
//! `held` says that a head names it or is about to; then there is no `expireAt`, and a TTL index removes no document
//! without one. Both change together. A document is a few MiB, so whatever only asks about documents is answered by
//! the index, which covers all small fields.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, Document, doc};
use mongodb::options::{FindOptions, IndexOptions};
use mongodb::raw_batch_cursor::RawBatch;
use mongodb::{Collection, Database, IndexModel};
use serde::Deserialize;

use crate::model::Org;
use crate::store::StoreError;

use super::{MalformedReply, fault, from_now, millis};

/// Bytes a document holds at most; MongoDB takes documents up to 16 MiB.
const PART_LEN: usize = 15 << 20;
/// Keys in one statement.
const KEYS_AT_ONCE: usize = 1000;

/// One collection of blobs.
#[derive(Clone, Debug)]
pub struct Blobs {
    documents: Collection<Document>,
    /// What its blobs are called in errors.
    noun: &'static str,
}

/// The small fields of a document, from the index alone.
#[derive(Deserialize)]
struct Part {
    key: String,
    part: u32,
    parts: u32,
    held: bool,
}

impl Blobs {
    /// The collection of this name.
    pub fn new(database: &Database, name: &str, noun: &'static str) -> Self {
        Self { documents: database.collection(name), noun }
    }

    /// The small fields, so that no document needs to be loaded to learn them. Begins with the org, so that it can
    /// serve as the shard key's index.
    fn covering() -> Document {
        doc! { "org": 1, "key": 1, "part": 1, "parts": 1, "held": 1, "touchedAt": 1 }
    }

    /// Creates the indexes; nothing happens when they are there.
    pub async fn create_indexes(&self) -> Result<(), StoreError> {
        let expiry = IndexOptions::builder().expire_after(Duration::ZERO).build();
        let indexes = [
            IndexModel::builder().keys(Self::covering()).build(),
            IndexModel::builder().keys(doc! { "expireAt": 1 }).options(expiry).build(),
        ];
        self.documents.create_indexes(indexes).await.map(|_| ()).map_err(fault)
    }

    /// Keeps bytes until they expire, or replaces them.
    pub async fn put(&self, org: &Org, key: &str, bytes: Bytes, keep: Duration) -> Result<(), StoreError> {
        let parts = bytes.len().div_ceil(PART_LEN).max(1);
        for part in 0..parts {
            let end = bytes.len().min((part + 1) * PART_LEN);
            let data = Binary { subtype: BinarySubtype::Generic, bytes: bytes[part * PART_LEN..end].to_vec() };
            // Only pipelines know the server's time. Constants are literals, or a leading $ would be a field's name.
            let set = doc! {
                "key": key, "part": part as i64, "parts": parts as i64, "held": false,
                "data": { "$literal": data }, "touchedAt": "$$NOW", "expireAt": from_now(keep),
            };
            self.documents
                .update_one(filter(org, key, part as i64), vec![doc! { "$set": set }])
                .upsert(true)
                .await
                .map_err(fault)?;
        }
        Ok(())
    }

    /// The bytes, as the socket read them: a blob of one document is not copied.
    pub async fn get(&self, org: &Org, key: &str) -> Result<Bytes, StoreError> {
        let (first, parts) = self.part(org, key, 0).await?;
        if parts == 1 {
            return Ok(first);
        }
        let mut whole = Vec::with_capacity(parts as usize * PART_LEN);
        whole.extend_from_slice(&first);
        for part in 1..parts {
            whole.extend_from_slice(&self.part(org, key, part).await?.0);
        }
        Ok(whole.into())
    }

    async fn part(&self, org: &Org, key: &str, part: u32) -> Result<(Bytes, u32), StoreError> {
        let options = FindOptions::builder().limit(-1).projection(doc! { "_id": 0, "parts": 1, "data": 1 }).build();
        let mut found =
            self.documents.find(filter(org, key, part.into())).with_options(options).batch().await.map_err(fault)?;
        match found.try_next().await.map_err(fault)?.map(PartBytes::of).transpose()?.flatten() {
            Some((data, parts)) => Ok((Bytes::from_owner(data), parts)),
            None => Err(self.missing(key)),
        }
    }

    /// The error for a blob that is not there.
    pub fn missing(&self, key: &str) -> StoreError {
        StoreError::Missing(format!("{} {key}", self.noun))
    }

    /// Keeps these for good, if they are there.
    pub async fn hold(&self, org: &Org, keys: &[String]) -> Result<(), StoreError> {
        self.hold_where(doc! { "org": org.as_str() }, keys).await
    }

    /// Keeps these for good; only those with an expiry mark are touched, so it costs nothing when there is none.
    pub async fn unmark(&self, org: &Org, keys: &[String]) -> Result<(), StoreError> {
        self.hold_where(doc! { "org": org.as_str(), "held": false }, keys).await
    }

    async fn hold_where(&self, filter: Document, keys: &[String]) -> Result<(), StoreError> {
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let mut filter = filter.clone();
            filter.insert("key", doc! { "$in": keys });
            // Plain operators change the small fields in place, where a pipeline would write the document anew.
            let update = doc! {
                "$set": { "held": true }, "$unset": { "expireAt": "" }, "$currentDate": { "touchedAt": true },
            };
            self.documents.update_many(filter, update).await.map_err(fault)?;
        }
        Ok(())
    }

    /// Lets these expire, those of them that are held.
    pub async fn expire(&self, org: &Org, keys: &[String], after: Duration) -> Result<(), StoreError> {
        self.expire_where(doc! { "org": org.as_str(), "held": true }, keys, after).await
    }

    /// Lets these expire, those of them that are held and were not touched for this long.
    pub async fn expire_old(
        &self,
        org: &Org,
        keys: &[String],
        untouched: Duration,
        after: Duration,
    ) -> Result<(), StoreError> {
        let filter = doc! { "org": org.as_str(), "held": true, "$expr": older_than(untouched) };
        self.expire_where(filter, keys, after).await
    }

    async fn expire_where(&self, filter: Document, keys: &[String], after: Duration) -> Result<(), StoreError> {
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let mut filter = filter.clone();
            filter.insert("key", doc! { "$in": keys });
            let set = doc! { "held": false, "touchedAt": "$$NOW", "expireAt": from_now(after) };
            let update = vec![doc! { "$set": set }];
            self.documents.update_many(filter, update).await.map_err(fault)?;
        }
        Ok(())
    }

    /// The first of these that is not whole, or not held.
    pub async fn first_lacking(&self, org: &Org, keys: &[String]) -> Result<Option<String>, StoreError> {
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let fields = doc! { "_id": 0, "key": 1, "part": 1, "parts": 1, "held": 1 };
            let stages =
                [doc! { "$match": { "org": org.as_str(), "key": { "$in": keys } } }, doc! { "$project": fields }];
            let found = self.documents.aggregate(stages).await.map_err(fault)?;
            let mut lacking: HashMap<&str, Option<u32>> = keys.iter().map(|key| (key.as_str(), None)).collect();
            let mut found = found.with_type::<Part>();
            while let Some(part) = found.try_next().await.map_err(fault)? {
                if let Some(left) = lacking.get_mut(part.key.as_str())
                    && part.held
                    && part.part < part.parts
                {
                    *left = Some(left.unwrap_or(part.parts).saturating_sub(1));
                }
            }
            if let Some(key) = keys.iter().find(|key| lacking.get(key.as_str()) != Some(&Some(0))) {
                return Ok(Some(key.clone()));
            }
        }
        Ok(None)
    }

    /// The orgs that have blobs here.
    pub async fn orgs(&self) -> Result<Vec<Org>, StoreError> {
        // Sorted, it skips from org to org in the index.
        let stages = [doc! { "$sort": { "org": 1 } }, doc! { "$group": { "_id": "$org" } }];
        let found = self.documents.aggregate(stages).await.map_err(fault)?;
        let ids = found.map_ok(|group| Org::new(group.get_str("_id").unwrap_or_default()));
        ids.try_collect().await.map_err(fault)
    }

    /// The blobs of an org that are held and were not touched for this long.
    pub async fn held(&self, org: &Org, untouched: Duration) -> Result<Vec<String>, StoreError> {
        let stages = [
            doc! { "$match": { "org": org.as_str(), "part": 0, "held": true } },
            doc! { "$project": { "_id": 0, "key": 1, "old": older_than(untouched) } },
            doc! { "$match": { "old": true } },
        ];
        let found = self.documents.aggregate(stages).await.map_err(fault)?;
        let keys = found.map_ok(|found| found.get_str("key").unwrap_or_default().to_owned());
        keys.try_collect().await.map_err(fault)
    }

    /// Removes what has expired, as the server's own monitor does once a minute; says how many blobs.
    pub async fn remove_expired(&self) -> Result<u64, StoreError> {
        let expired = |part: Bson| {
            doc! { "part": part, "expireAt": { "$type": "date" }, "$expr": { "$lte": ["$expireAt", "$$NOW"] } }
        };
        let rest = doc! { "$gt": 0 }.into();
        self.documents.delete_many(expired(rest)).await.map_err(fault)?;
        let removed = self.documents.delete_many(expired(0.into())).await.map_err(fault)?;
        Ok(removed.deleted_count)
    }
}

/// One document. The org stands beside the id for clusters sharded by org.
fn filter(org: &Org, key: &str, part: i64) -> Document {
    doc! { "_id": { "org": org.as_str(), "key": key, "part": part }, "org": org.as_str() }
}

/// Whether a document was last touched longer ago than this, by the server's clock.
fn older_than(age: Duration) -> Document {
    doc! { "$lt": ["$touchedAt", { "$subtract": ["$$NOW", millis(age)] }] }
}

/// The server's reply, of which only the data is shown.
struct PartBytes {
    reply: RawBatch,
    data: Range<usize>,
}

impl PartBytes {
    /// The data of the only document and how many parts there are; `None` when there is no document.
    fn of(reply: RawBatch) -> Result<Option<(Self, u32)>, StoreError> {
        let Some(document) = reply.doc_slices().map_err(fault)?.into_iter().next() else { return Ok(None) };
        let document = document.map_err(StoreError::unavailable)?;
        let document = document.as_document().ok_or(MalformedReply).map_err(StoreError::unavailable)?;
        let parts = document.get_i64("parts").map_err(StoreError::unavailable)?;
        let data = document.get_binary("data").map_err(StoreError::unavailable)?.bytes;
        let start = data.as_ptr() as usize - reply.as_raw_document().as_bytes().as_ptr() as usize;
        let data = start..start + data.len();
        Ok(Some((Self { reply, data }, parts.try_into().map_err(StoreError::unavailable)?)))
    }
}

impl AsRef<[u8]> for PartBytes {
    fn as_ref(&self) -> &[u8] {
        &self.reply.as_raw_document().as_bytes()[self.data.clone()]
    }
}
