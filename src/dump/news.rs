//! What the look-ups of a refresh brought. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::dump::taken::Gone;
use crate::source::{Found, GroupSets, RowBatch, RowRef, SetId};

/// What the look-ups brought.
#[derive(Default)]
pub(super) struct News {
    /// Rows read.
    pub read: u64,
    /// The objects found, as the database names them.
    found: HashSet<(usize, Arc<str>)>,
    /// Models and sets of rows that are put in.
    keys: HashSet<(u32, SetId)>,
}

impl News {
    /// The rows of a look-up that somebody sees, each object once.
    pub fn take(&mut self, model: usize, found: Found, sets: &GroupSets) -> Option<RowBatch> {
        let mut batch = RowBatch { model, lines: Vec::new(), rows: Vec::new(), by_set: false };
        for row in found.rows {
            self.read += 1;
            if !self.found.insert((model, row.id.clone())) || row.groups.as_slice().is_empty() {
                continue;
            }
            let set = sets.intern(row.groups);
            self.keys.insert((u32::try_from(model).ok()?, set));
            batch.lines.extend_from_slice(&row.line);
            batch.rows.push(RowRef { end: u32::try_from(batch.lines.len()).ok()?, set });
        }
        (!batch.rows.is_empty()).then_some(batch)
    }

    /// The models and sets that are written, where the manifest has them, by its index.
    pub fn written(&self, set_ids: &[SetId]) -> HashSet<(u32, u32)> {
        let places: HashMap<SetId, u32> = set_ids.iter().zip(0..).map(|(set, place)| (*set, place)).collect();
        self.keys.iter().filter_map(|(model, set)| Some((*model, *places.get(set)?))).collect()
    }

    /// What has to be taken out of the old frames.
    pub fn gone(&self, changed: &[(usize, Vec<Arc<str>>)]) -> Gone {
        let mut gone = Gone::default();
        for (model, ids) in changed {
            gone.entry(*model).or_default().extend(ids.iter().cloned());
        }
        for (model, id) in &self.found {
            gone.entry(*model).or_default().insert(id.clone());
        }
        gone
    }
}
