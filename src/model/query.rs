//! What clients ask for, parsed from the query string. Pure, so that it can be fuzzed.

use std::collections::BTreeSet;

use crate::model::ids::{Epoch, SchemaHash, SyncGroup, SyncId};

/// The longest list a query may name. URLs are bounded before; this bounds the work per name.
const MAX_NAMES: usize = 1000;

/// A parsed `GET /sync/bootstrap`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootstrapQuery {
    /// Whether `type=partial`.
    pub partial: bool,
    /// Only these models, by name.
    pub only_models: Option<BTreeSet<String>>,
    /// Only rows that carry one of these groups.
    pub sync_groups: Option<BTreeSet<SyncGroup>>,
    /// The answer must be true at this sync id or later.
    pub first_sync_id: Option<SyncId>,
    /// The schema the client was made for.
    pub schema_hash: Option<SchemaHash>,
    /// A dump started after this request is wanted.
    pub no_cache: bool,
    /// The sync actions after the snapshot are not wanted.
    pub no_sync_packets: bool,
}

/// A query that makes no sense: the field and what it should hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {fault}")]
pub struct QueryError {
    /// The parameter, or the pair of them that contradict each other.
    pub field: String,
    /// What is wrong.
    pub fault: String,
}

impl QueryError {
    /// With both.
    pub fn new(field: &str, fault: impl Into<String>) -> Self {
        Self { field: field.into(), fault: fault.into() }
    }
}

impl BootstrapQuery {
    /// The names of all parameters; any other is refused.
    pub const PARAMETERS: [&str; 7] =
        ["type", "onlyModels", "syncGroups", "firstSyncId", "schemaHash", "noCache", "noSyncPackets"];

    /// Reads decoded name and value pairs. Unknown names are refused: a misspelt filter must not pass for none.
    ///
    /// # Errors
    /// The first field that makes no sense.
    pub fn parse<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, QueryError> {
        let mut query = Self::default();
        let mut seen = BTreeSet::new();
        for (name, value) in pairs {
            known(name, &Self::PARAMETERS, &mut seen)?;
            match name {
                "type" => match value {
                    "full" => query.partial = false,
                    "partial" => query.partial = true,
                    _ => return Err(QueryError::new(name, "is `full` or `partial`")),
                },
                "onlyModels" => query.only_models = Some(list(name, value, |text| Some(text.to_owned()))?),
                "syncGroups" => query.sync_groups = Some(list(name, value, SyncGroup::parse)?),
                "firstSyncId" => query.first_sync_id = Some(sync_id(name, value)?),
                "schemaHash" => query.schema_hash = Some(SchemaHash::new(value)),
                "noCache" => query.no_cache = flag(name, value)?,
                "noSyncPackets" => query.no_sync_packets = flag(name, value)?,
                _ => return Err(unknown(name)),
            }
        }
        if query.partial && query.only_models.is_none() && query.sync_groups.is_none() {
            return Err(QueryError::new("type", "`partial` needs `onlyModels` or `syncGroups`"));
        }
        if !query.partial && query.sync_groups.is_some() {
            return Err(QueryError::new("syncGroups", "goes with `type=partial`"));
        }
        Ok(query)
    }
}

/// A parsed `GET /sync/delta`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaQuery {
    /// What the client has: everything up to here,
    pub last_sync_id: SyncId,
    /// in this history.
    pub epoch: Epoch,
    /// Nothing beyond this is wanted; `None`: up to the watermark.
    pub to_sync_id: Option<SyncId>,
    /// The schema the client was made for.
    pub schema_hash: Option<SchemaHash>,
}

impl DeltaQuery {
    /// The names of all parameters; any other is refused.
    pub const PARAMETERS: [&str; 4] = ["lastSyncId", "epoch", "toSyncId", "schemaHash"];

    /// Reads decoded name and value pairs. Unknown names are refused.
    ///
    /// # Errors
    /// The first field that makes no sense, or that is missing.
    pub fn parse<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, QueryError> {
        let (mut last, mut epoch, mut to, mut schema_hash) = (None, None, None, None);
        let mut seen = BTreeSet::new();
        for (name, value) in pairs {
            known(name, &Self::PARAMETERS, &mut seen)?;
            match name {
                "lastSyncId" => last = Some(sync_id(name, value)?),
                "epoch" if value.is_empty() => return Err(QueryError::new(name, "is empty")),
                "epoch" => epoch = Some(Epoch::new(value)),
                "toSyncId" => to = Some(sync_id(name, value)?),
                "schemaHash" => schema_hash = Some(SchemaHash::new(value)),
                _ => return Err(unknown(name)),
            }
        }
        let missing = |name| QueryError::new(name, "is needed: the metadata of the last answer has it");
        let last_sync_id = last.ok_or_else(|| missing("lastSyncId"))?;
        let epoch = epoch.ok_or_else(|| missing("epoch"))?;
        if to.is_some_and(|to| to < last_sync_id) {
            return Err(QueryError::new("toSyncId", "lies before `lastSyncId`"));
        }
        Ok(Self { last_sync_id, epoch, to_sync_id: to, schema_hash })
    }
}

/// Refuses a name that is none of these, or that stands twice.
fn known<'a>(name: &'a str, names: &[&str], seen: &mut BTreeSet<&'a str>) -> Result<(), QueryError> {
    if !names.contains(&name) {
        return Err(unknown(name));
    }
    if seen.insert(name) { Ok(()) } else { Err(QueryError::new(name, "stands twice")) }
}

fn unknown(name: &str) -> QueryError {
    QueryError::new(name, "is no parameter of this call")
}

fn sync_id(name: &str, value: &str) -> Result<SyncId, QueryError> {
    value.parse().map_err(|error| QueryError::new(name, format!("{error}")))
}

fn flag(name: &str, value: &str) -> Result<bool, QueryError> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(QueryError::new(name, "is `true` or `false`")),
    }
}

/// A comma-separated list without empty names.
fn list<T: Ord>(name: &str, value: &str, read: impl Fn(&str) -> Option<T>) -> Result<BTreeSet<T>, QueryError> {
    if value.split(',').count() > MAX_NAMES {
        return Err(QueryError::new(name, format!("names more than {MAX_NAMES}")));
    }
    value
        .split(',')
        .map(|text| {
            let text = text.trim();
            read(text)
                .filter(|_| !text.is_empty())
                .ok_or_else(|| QueryError::new(name, format!("`{text}` can't stand in this list")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&'static str, &'static str)]) -> Result<BootstrapQuery, String> {
        BootstrapQuery::parse(pairs.iter().copied()).map_err(|error| error.field)
    }

    #[test]
    fn every_field_is_read() {
        let query = parse(&[
            ("type", "partial"),
            ("onlyModels", "Issue, Comment"),
            ("syncGroups", "team:1,team:2"),
            ("firstSyncId", "42"),
            ("schemaHash", "abc"),
            ("noCache", "true"),
            ("noSyncPackets", "false"),
        ])
        .unwrap();
        assert!(query.partial && query.no_cache && !query.no_sync_packets);
        assert_eq!(query.only_models.unwrap().len(), 2);
        assert_eq!(query.sync_groups.unwrap().len(), 2);
        assert_eq!(query.first_sync_id, Some(SyncId(42)));
        assert_eq!(parse(&[]), Ok(BootstrapQuery::default()));
    }

    #[test]
    fn nonsense_names_its_field() {
        for (pairs, field) in [
            (&[("type", "half")][..], "type"),
            (&[("type", "partial")], "type"),
            (&[("syncGroups", "team:1")], "syncGroups"),
            (&[("type", "partial"), ("syncGroups", "team")], "syncGroups"),
            (&[("onlyModels", "")], "onlyModels"),
            (&[("onlyModels", "A,,B")], "onlyModels"),
            (&[("firstSyncId", "-1")], "firstSyncId"),
            (&[("firstSyncId", "x")], "firstSyncId"),
            (&[("noCache", "1")], "noCache"),
            (&[("noCache", "true"), ("noCache", "true")], "noCache"),
            (&[("onlyModel", "A")], "onlyModel"),
        ] {
            assert_eq!(parse(pairs), Err(field.to_owned()), "{pairs:?}");
        }
    }

    #[test]
    fn a_delta_needs_a_cursor() {
        let parse = |pairs: &[(&'static str, &'static str)]| {
            DeltaQuery::parse(pairs.iter().copied()).map_err(|error| error.field)
        };
        let query = parse(&[("lastSyncId", "5"), ("epoch", "e"), ("toSyncId", "5")]).unwrap();
        assert_eq!((query.last_sync_id, query.to_sync_id), (SyncId(5), Some(SyncId(5))));
        for (pairs, field) in [
            (&[("epoch", "e")][..], "lastSyncId"),
            (&[("lastSyncId", "5")], "epoch"),
            (&[("lastSyncId", "5"), ("epoch", "")], "epoch"),
            (&[("lastSyncId", "-5"), ("epoch", "e")], "lastSyncId"),
            (&[("lastSyncId", "5"), ("epoch", "e"), ("toSyncId", "4")], "toSyncId"),
            (&[("lastSyncId", "5"), ("epoch", "e"), ("firstSyncId", "4")], "firstSyncId"),
        ] {
            assert_eq!(parse(pairs), Err(field.to_owned()), "{pairs:?}");
        }
    }
}
