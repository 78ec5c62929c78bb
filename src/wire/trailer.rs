//! The last line of every complete answer.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::{Epoch, SchemaHash, SyncGroup, SyncId};

/// Where the rows of an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// A published snapshot.
    Snapshot,
    /// PostgreSQL, through a dump in progress or one that could not be stored yet.
    Postgres,
}

impl Method {
    /// As it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Postgres => "postgres",
        }
    }
}

/// What an answer says of itself. An answer without this line is not complete.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata<'a> {
    /// Where the rows came from.
    pub method: Method,
    /// The history the sync ids belong to.
    pub epoch: &'a Epoch,
    /// The answer holds everything up to here.
    pub last_sync_id: SyncId,
    /// The watermark of the snapshot it began from; none for answers that are made of no snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_sync_id: Option<SyncId>,
    /// How the rows look.
    pub schema_hash: &'a SchemaHash,
    /// The groups this answer was filtered by.
    pub subscribed_sync_groups: &'a [SyncGroup],
    /// Lines of each class in this answer; classes that were asked for and have none count 0.
    pub returned_models_count: BTreeMap<&'a str, u64>,
}

impl Metadata<'_> {
    /// The line, with its break.
    pub fn line(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Line<'a> {
            #[serde(rename = "__class")]
            class: &'static str,
            #[serde(flatten)]
            metadata: &'a Metadata<'a>,
        }
        // Groups are mostly a kind and a uuid, and make up most of it.
        let mut line = Vec::with_capacity(384 + self.subscribed_sync_groups.len() * 48);
        serde_json::to_writer(&mut line, &Line { class: "_metadata_", metadata: self })
            .expect("plain data with text keys always serializes");
        line.push(b'\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_stands_first_and_the_line_ends() {
        let metadata = Metadata {
            method: Method::Snapshot,
            epoch: &Epoch::new("e"),
            last_sync_id: SyncId(9),
            snapshot_sync_id: Some(SyncId(7)),
            schema_hash: &SchemaHash::new("h"),
            subscribed_sync_groups: &[SyncGroup::of("team", "1")],
            returned_models_count: BTreeMap::from([("Issue", 3)]),
        };
        let line = String::from_utf8(metadata.line()).unwrap();
        assert_eq!(
            line,
            "{\"__class\":\"_metadata_\",\"method\":\"snapshot\",\"epoch\":\"e\",\"lastSyncId\":9,\
             \"snapshotSyncId\":7,\"schemaHash\":\"h\",\"subscribedSyncGroups\":[\"team:1\"],\
             \"returnedModelsCount\":{\"Issue\":3}}\n"
        );
    }
}
