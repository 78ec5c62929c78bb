//! The lines of sync actions.

use std::io::Write as _;

use crate::model::{Letter, SyncGroup, SyncId};

/// The `__class` of sync actions.
pub const CLASS: &str = "SyncAction";

/// Writes the action of an object. `row` is its line as it stands in a bootstrap, with or without the line break; it goes
/// into `data` as it is. Without a row nothing does.
pub fn object(out: &mut Vec<u8>, id: SyncId, letter: Letter, model: &str, model_id: &str, row: Option<&[u8]>) {
    begin(out, id, letter);
    out.extend_from_slice(b",\"modelName\":");
    text(out, model);
    out.extend_from_slice(b",\"modelId\":");
    text(out, model_id);
    if let Some(row) = row {
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(row.strip_suffix(b"\n").unwrap_or(row));
    }
    out.extend_from_slice(b"}\n");
}

/// Writes a change of the caller's memberships: all groups the answer is filtered by.
pub fn groups(out: &mut Vec<u8>, id: SyncId, groups: &[SyncGroup]) {
    begin(out, id, Letter::Groups);
    out.extend_from_slice(b",\"data\":{\"syncGroups\":");
    serde_json::to_writer(&mut *out, groups).expect("texts always serialize, and memory takes them");
    out.extend_from_slice(b"}}\n");
}

fn begin(out: &mut Vec<u8>, id: SyncId, letter: Letter) {
    write!(out, "{{\"__class\":\"{CLASS}\",\"id\":{id},\"action\":\"{letter}\"").expect("memory takes it");
}

fn text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("texts always serialize, and memory takes them");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_one_line() {
        let mut out = Vec::new();
        let row = b"{\"__class\":\"Issue\",\"id\":1}\n";
        object(&mut out, SyncId(7), Letter::Update, "Issue", "1", Some(row));
        object(&mut out, SyncId(8), Letter::Delete, "Issue", "a\"b", None);
        groups(&mut out, SyncId(9), &[SyncGroup::of("team", "1")]);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"__class\":\"SyncAction\",\"id\":7,\"action\":\"U\",\"modelName\":\"Issue\",\"modelId\":\"1\",\
             \"data\":{\"__class\":\"Issue\",\"id\":1}}\n\
             {\"__class\":\"SyncAction\",\"id\":8,\"action\":\"D\",\"modelName\":\"Issue\",\"modelId\":\"a\\\"b\"}\n\
             {\"__class\":\"SyncAction\",\"id\":9,\"action\":\"G\",\"data\":{\"syncGroups\":[\"team:1\"]}}\n"
        );
    }
}
