//! Rows as they are compared: which object a line is, and a digest of it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use serde_json::value::RawValue;

use super::VerifyError;
use crate::model::{GroupSet, Schema};
use crate::source::Object;

/// A row of the snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Of its line.
    pub digest: u64,
    /// Index into the manifest's group sets.
    pub set: u32,
}

/// A row that is not as the snapshot has it.
#[derive(Clone, Debug)]
pub struct Change {
    /// Which.
    pub object: Object,
    /// The groups it carried; `None`: it was not there.
    pub was: Option<GroupSet>,
    /// The groups it carries; `None`: it is gone.
    pub now: Option<GroupSet>,
}

/// Reads the ids of lines.
pub struct Ids {
    /// For each model its name and the wire name of its id; no wire name for one that is not compared.
    models: Vec<(String, Option<String>)>,
    hasher: RandomState,
}

impl Ids {
    /// For the models of a schema.
    pub fn new(schema: &Schema) -> Self {
        let models = schema.catalog.models().iter().zip(&schema.models).map(|(model, columns)| {
            let id = columns.fields.iter().find(|field| field.column == model.id);
            // The log has PostgreSQL's text of it, lines have ISO 8601.
            let id = id.filter(|field| !field.sql_type.starts_with("timestamp"));
            (model.name.clone(), id.map(|field| field.name.clone()))
        });
        Self { models: models.collect(), hasher: RandomState::new() }
    }

    /// Which object a line of a model is; `None` when the model is not compared.
    ///
    /// # Errors
    /// When the line has no id.
    pub fn object(&self, model: usize, line: &[u8]) -> Result<Option<Object>, VerifyError> {
        let Some((name, Some(id))) = self.models.get(model) else { return Ok(None) };
        let nameless = || VerifyError::Line(name.clone());
        let fields: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_slice(line).map_err(|_| nameless())?;
        let raw = fields.get(id.as_str()).ok_or_else(nameless)?.get();
        let id = match raw.as_bytes() {
            [b'"', ..] => serde_json::from_str::<String>(raw).map_err(|_| nameless())?,
            _ => raw.to_owned(),
        };
        Ok(Some(Object { model, id: id.into() }))
    }

    /// The digest of a line: 64 bits under a key of this comparison's own, so two lines meet by chance once in 2^64.
    pub fn digest(&self, line: &[u8]) -> u64 {
        self.hasher.hash_one(line)
    }
}
