//! How the facts of a snapshot are written down: the same fields as JSON (object store) and as BSON (MongoDB).

use serde::{Deserialize, Serialize};

use crate::model::{Epoch, SnapshotId, SyncId};
use crate::snapshot::PackId;
use crate::store::Facts;

/// [`Facts`] with every id as its text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FactsRecord {
    id: String,
    epoch: String,
    sync_id: u64,
    rows: u64,
    raw_len: u64,
    len: u64,
    packs: Vec<String>,
}

/// A record that is not what this service writes.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("a snapshot or pack id in it is malformed")]
pub struct MalformedRecord;

impl From<&Facts> for FactsRecord {
    fn from(facts: &Facts) -> Self {
        Self {
            id: facts.id.to_string(),
            epoch: facts.epoch.as_str().to_owned(),
            sync_id: facts.sync_id.0,
            rows: facts.rows,
            raw_len: facts.raw_len,
            len: facts.len,
            packs: facts.packs.iter().map(PackId::to_string).collect(),
        }
    }
}

impl TryFrom<FactsRecord> for Facts {
    type Error = MalformedRecord;

    fn try_from(record: FactsRecord) -> Result<Self, MalformedRecord> {
        let packs: Option<Vec<PackId>> = record.packs.iter().map(|text| parse_pack(text, '/')).collect();
        Ok(Self {
            id: record.id.parse().map_err(|_| MalformedRecord)?,
            epoch: Epoch::new(record.epoch),
            sync_id: SyncId(record.sync_id),
            rows: record.rows,
            raw_len: record.raw_len,
            len: record.len,
            packs: packs.ok_or(MalformedRecord)?,
        })
    }
}

/// Reads a pack's snapshot and number, written with this character between them.
pub fn parse_pack(text: &str, separator: char) -> Option<PackId> {
    let (snapshot, number) = text.split_once(separator)?;
    Some(PackId { snapshot: snapshot.parse::<SnapshotId>().ok()?, number: number.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_survive_as_json() {
        let id = SnapshotId::random();
        let facts = Facts {
            id,
            epoch: Epoch::new("7/1/x"),
            sync_id: SyncId::MAX,
            rows: 1,
            raw_len: 2,
            len: 3,
            packs: vec![
                PackId { snapshot: id, number: u32::MAX },
                PackId { snapshot: SnapshotId::random(), number: 0 },
            ],
        };
        let json = serde_json::to_string(&FactsRecord::from(&facts)).unwrap();
        let record: FactsRecord = serde_json::from_str(&json).unwrap();
        assert_eq!(Facts::try_from(record).unwrap(), facts);
    }

    #[test]
    fn malformed_packs_are_refused() {
        for bad in ["", "0", "zz/1", "00000000000000000000000000000000/", "00000000000000000000000000000000/4294967296"]
        {
            assert_eq!(parse_pack(bad, '/'), None, "{bad:?}");
        }
    }
}
