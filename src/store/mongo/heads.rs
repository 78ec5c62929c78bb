//! The heads of slots: one document each, moved by compare-and-set on its generation.
//!
//! ```text
//! { _id: { org, schema }, org, generation, facts | null, at }
//! ```

use std::time::Duration;

use futures_util::TryStreamExt;
use mongodb::bson::{Document, doc, serialize_to_document};
use mongodb::options::ReturnDocument;
use mongodb::{Collection, Database, IndexModel};
use serde::Deserialize;

use crate::model::{Generation, Org, SchemaHash};
use crate::store::record::FactsRecord;
use crate::store::{Facts, Head, Published, Slot, StoreError};

use super::{fault, is_duplicate, millis};

/// The collection of heads.
#[derive(Clone, Debug)]
pub struct Heads(Collection<Document>);

#[derive(Deserialize)]
struct HeadRecord {
    #[serde(rename = "_id")]
    slot: SlotRecord,
    generation: u64,
    facts: Option<FactsRecord>,
    /// By the server's clock; negative if that went back.
    #[serde(default)]
    age_ms: i64,
}

#[derive(Deserialize)]
struct SlotRecord {
    org: String,
    schema: String,
}

impl Heads {
    /// The collection in this database.
    pub fn new(database: &Database) -> Self {
        Self(database.collection("heads"))
    }

    /// Creates the index; nothing happens when it is there.
    pub async fn create_indexes(&self) -> Result<(), StoreError> {
        self.0.create_index(IndexModel::builder().keys(doc! { "org": 1 }).build()).await.map(|_| ()).map_err(fault)
    }

    /// The state of a slot.
    pub async fn read(&self, slot: &Slot) -> Result<Head, StoreError> {
        Ok(self.matching(filter(slot)).await?.pop().map(|(_, head)| head).unwrap_or_default())
    }

    /// The states of all slots of an org that were ever moved.
    pub async fn of_org(&self, org: &Org) -> Result<Vec<(Slot, Head)>, StoreError> {
        self.matching(doc! { "org": org.as_str() }).await
    }

    /// The states of all slots that hold a snapshot.
    pub async fn all(&self) -> Result<Vec<(Slot, Head)>, StoreError> {
        self.matching(doc! { "facts": { "$ne": null } }).await
    }

    async fn matching(&self, filter: Document) -> Result<Vec<(Slot, Head)>, StoreError> {
        let fields = doc! { "generation": 1, "facts": 1, "age_ms": { "$subtract": ["$$NOW", "$at"] } };
        let stages = [doc! { "$match": filter }, doc! { "$project": fields }];
        let found = self.0.aggregate(stages).with_type::<HeadRecord>().await.map_err(fault)?;
        found.map_err(fault).and_then(async |record| record.read()).try_collect().await
    }

    /// Publishes over a generation; `false` when the slot is at another one.
    pub async fn advance(&self, slot: &Slot, over: Generation, facts: &Facts) -> Result<bool, StoreError> {
        let mut filter = filter(slot);
        filter.insert("generation", number(over)?);
        let facts = serialize_to_document(&FactsRecord::from(facts)).map_err(StoreError::unavailable)?;
        let set = doc! { "generation": number(over.next())?, "facts": { "$literal": facts }, "at": "$$NOW" };
        // A slot that was never moved has no document. When it has one of another generation, the filter does not
        // find it, and inserting runs into its id.
        let update = self.0.update_one(filter, vec![doc! { "$set": set }]).upsert(over == Generation::NONE);
        match update.await {
            Ok(done) => Ok(done.matched_count == 1 || done.upserted_id.is_some()),
            Err(error) if is_duplicate(&error) => Ok(false),
            Err(error) => Err(fault(error)),
        }
    }

    /// Moves a slot that was moved before to a next generation that holds nothing, if it is at generation `over` or
    /// that does not matter; gives what it held.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when there is no such slot, or it is at another generation.
    pub async fn bury(&self, slot: &Slot, over: Option<Generation>) -> Result<Option<Facts>, StoreError> {
        let mut filter = filter(slot);
        if let Some(over) = over {
            filter.insert("generation", number(over)?);
        }
        let next = doc! { "$add": ["$generation", 1_i64] };
        let update = vec![doc! { "$set": { "generation": next, "facts": null, "at": "$$NOW" } }];
        let buried = self.0.find_one_and_update(filter, update).return_document(ReturnDocument::Before);
        let before = buried.await.map_err(fault)?.ok_or(StoreError::Conflict)?;
        let record: HeadRecord = mongodb::bson::deserialize_from_document(before).map_err(StoreError::unavailable)?;
        Ok(record.read()?.1.current.map(|current| current.facts))
    }

    /// Removes tombstones older than any dump that could want to publish over them.
    pub async fn forget(&self, older_than: Duration) -> Result<(), StoreError> {
        let old = doc! { "$lt": ["$at", { "$subtract": ["$$NOW", millis(older_than)] }] };
        self.0.delete_many(doc! { "facts": null, "$expr": old }).await.map(|_| ()).map_err(fault)
    }
}

impl HeadRecord {
    fn read(self) -> Result<(Slot, Head), StoreError> {
        let slot = Slot { org: Org::new(self.slot.org), schema: SchemaHash::new(self.slot.schema) };
        let age = Duration::from_millis(self.age_ms.try_into().unwrap_or(0));
        let current = self.facts.map(Facts::try_from).transpose().map_err(|fault| StoreError::Damaged {
            what: format!("the head of org {:?}, schema {}", slot.org, slot.schema),
            fault: fault.to_string(),
        })?;
        Ok((
            slot,
            Head { generation: Generation(self.generation), current: current.map(|facts| Published { facts, age }) },
        ))
    }
}

/// The id names the slot; the org stands beside it for clusters sharded by org.
fn filter(slot: &Slot) -> Document {
    let id = doc! { "org": slot.org.as_str(), "schema": slot.schema.as_str() };
    doc! { "_id": id, "org": slot.org.as_str() }
}

fn number(generation: Generation) -> Result<i64, StoreError> {
    i64::try_from(generation.0).map_err(StoreError::unavailable)
}
