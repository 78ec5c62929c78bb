//! The heads of slots: one object for each generation, made only if it is not there yet. The newest one rules.

use std::time::SystemTime;

use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};
use serde::{Deserialize, Serialize};

use crate::model::{Generation, Org, SchemaHash};
use crate::store::object::clock::age;
use crate::store::object::paths;
use crate::store::record::FactsRecord;
use crate::store::{Facts, Head, Published, Slot, StoreError};

use super::fault;

/// How many heads are read at once.
const AT_ONCE: usize = 16;

/// The newest state of a slot.
#[derive(Debug)]
pub struct Newest {
    /// How often the slot was moved.
    pub generation: Generation,
    /// When the store says that this was written.
    pub at: SystemTime,
    /// The slot in the publisher's own words, and what it published.
    pub current: Option<(Slot, Facts)>,
}

/// What a head object holds.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadRecord {
    /// `None` is a tombstone.
    published: Option<PublishedRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PublishedRecord {
    org: String,
    schema: String,
    facts: FactsRecord,
}

impl Newest {
    /// The head a reader sees; `now` is the store's time.
    pub fn head(self, now: SystemTime) -> Head {
        let age = age(now, self.at);
        Head { generation: self.generation, current: self.current.map(|(_, facts)| Published { facts, age }) }
    }
}

/// The newest state of the slot whose heads are here; `None` when it was never moved.
pub async fn newest(store: &dyn ObjectStore, slot_root: &Path) -> Result<Option<Newest>, StoreError> {
    loop {
        let listed: Vec<_> = store.list(Some(slot_root)).try_collect().await.map_err(fault)?;
        let Some(newest) = listed.into_iter().max_by(|a, b| a.location.cmp(&b.location)) else { return Ok(None) };
        let Some(generation) = newest.location.filename().and_then(|name| name.parse().ok()) else { return Ok(None) };
        match read(store, &newest.location).await {
            Ok(current) => {
                return Ok(Some(Newest {
                    generation: Generation(generation),
                    at: newest.last_modified.into(),
                    current,
                }));
            }
            // It was the newest no more and was swept between the listing and the reading: look again.
            Err(StoreError::Missing(_)) => {}
            Err(error) => return Err(error),
        }
    }
}

/// What a head object says. One that can't be read counts as a tombstone, so that a next dump mends the slot.
pub async fn read(store: &dyn ObjectStore, location: &Path) -> Result<Option<(Slot, Facts)>, StoreError> {
    let bytes = store.get(location).await.map_err(fault)?.bytes().await.map_err(fault)?;
    let damage: Box<dyn std::error::Error> = match serde_json::from_slice::<HeadRecord>(&bytes) {
        Ok(HeadRecord { published: None }) => return Ok(None),
        Ok(HeadRecord { published: Some(PublishedRecord { org, schema, facts }) }) => match Facts::try_from(facts) {
            Ok(facts) => return Ok(Some((Slot { org: Org::new(org), schema: SchemaHash::new(schema) }, facts))),
            Err(error) => error.into(),
        },
        Err(error) => error.into(),
    };
    tracing::error!(%location, %damage, "a head in the snapshot store is damaged; its snapshot is not used");
    Ok(None)
}

/// Makes the head of a generation; `false` when it is there already.
pub async fn create(
    store: &dyn ObjectStore,
    slot_root: &Path,
    generation: Generation,
    published: Option<(&Slot, &Facts)>,
) -> Result<bool, StoreError> {
    let published = published.map(|(slot, facts)| PublishedRecord {
        org: slot.org.as_str().to_owned(),
        schema: slot.schema.as_str().to_owned(),
        facts: facts.into(),
    });
    let json = serde_json::to_vec(&HeadRecord { published }).map_err(StoreError::unavailable)?;
    create_object(store, &paths::head(slot_root, generation), json).await
}

/// Makes an object only if it is not there yet; `false` when it is.
pub async fn create_object(store: &dyn ObjectStore, location: &Path, bytes: Vec<u8>) -> Result<bool, StoreError> {
    match store.put_opts(location, bytes.into(), PutMode::Create.into()).await {
        Ok(_) => Ok(true),
        Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
        Err(error) => Err(fault(error)),
    }
}

/// The slots of an org that were ever moved, as the folders of their heads.
pub async fn slots(store: &dyn ObjectStore, org_root: &Path) -> Result<Vec<Path>, StoreError> {
    let heads = paths::heads(org_root);
    Ok(store.list_with_delimiter(Some(&heads)).await.map_err(fault)?.common_prefixes)
}

/// The newest states of all slots that hold a snapshot.
pub async fn all(store: &dyn ObjectStore) -> Result<Vec<(Slot, Newest)>, StoreError> {
    let orgs = store.list_with_delimiter(Some(&paths::orgs())).await.map_err(fault)?.common_prefixes;
    let found = futures_util::stream::iter(orgs).map(|org_root| of_org(store, org_root)).buffer_unordered(AT_ONCE);
    Ok(found.try_collect::<Vec<_>>().await?.into_iter().flatten().collect())
}

async fn of_org(store: &dyn ObjectStore, org_root: Path) -> Result<Vec<(Slot, Newest)>, StoreError> {
    let mut found = Vec::new();
    for slot_root in slots(store, &org_root).await? {
        if let Some(newest) = newest(store, &slot_root).await?
            && let Some((slot, _)) = &newest.current
        {
            found.push((slot.clone(), newest));
        }
    }
    Ok(found)
}
