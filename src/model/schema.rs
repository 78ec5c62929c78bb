//! The schema: the catalog with the columns and types the database has now, and the hash that names it.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::model::catalog::{Catalog, Model};
use crate::model::ids::{Org, SchemaHash};
use crate::model::key::canonical;

/// Part of every schema hash. Raise it when the bytes of rows, frames, packs or manifests change their meaning.
pub const FORMAT_VERSION: u32 = 1;

/// A catalog resolved against a database. Immutable; a new one is made when tables change.
#[derive(Debug)]
pub struct Schema {
    /// The catalog it was made from. Model indexes are the same in both.
    pub catalog: Arc<Catalog>,
    /// The models, in the order of the catalog.
    pub models: Vec<ModelSchema>,
    /// What decides how rows look and who sees them, digested.
    pub hash: SchemaHash,
}

/// The columns of one model as clients see them.
#[derive(Clone, Debug, Serialize)]
pub struct ModelSchema {
    /// The fields in the order they stand on the wire.
    pub fields: Vec<Field>,
}

/// One column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Field {
    /// The column's name.
    pub column: String,
    /// The key on the wire.
    pub name: String,
    /// PostgreSQL's name of the type, as `format_type` prints it.
    pub sql_type: String,
    /// What a client finds in the line.
    pub json: JsonKind,
    /// Whether the column may be null, and the key then absent.
    pub nullable: bool,
}

/// The JSON type of a field's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JsonKind {
    /// `true`, `false`.
    Boolean,
    /// A number; a float's NaN and infinities are strings.
    Number,
    /// A string.
    String,
    /// An array, possibly of arrays.
    Array,
    /// Whatever the column holds.
    Any,
}

impl Schema {
    /// Joins a catalog with the columns found for each of its models, in the catalog's order.
    ///
    /// # Panics
    /// When `models` has another length than the catalog.
    pub fn new(catalog: Arc<Catalog>, models: Vec<ModelSchema>) -> Self {
        assert_eq!(catalog.models().len(), models.len(), "one schema for each model");
        let hash = digest(&catalog, &models);
        Self { catalog, models, hash }
    }

    /// The model of this name, with its index.
    pub fn model(&self, name: &str) -> Option<(usize, &Model)> {
        self.catalog.model(name)
    }

    /// The org with the id that this text is read as, or `None` when it can't be one. Where no model shows its org
    /// column, the text is taken as it is.
    pub fn org(&self, text: &str) -> Option<Org> {
        let mut types = (self.catalog.models().iter().zip(&self.models)).filter_map(|(model, schema)| {
            let column = model.org.as_ref()?;
            schema.fields.iter().find(|field| field.column == *column)
        });
        match types.next() {
            Some(field) => canonical(&field.sql_type, text).map(Org::new),
            None => Some(Org::new(text)),
        }
    }

    /// The names of all models, by index.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.catalog.models().iter().map(|model| model.name.as_str())
    }
}

impl ModelSchema {
    /// The field with this wire name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// Wire names to fields.
    pub fn by_name(&self) -> HashMap<&str, &Field> {
        self.fields.iter().map(|field| (field.name.as_str(), field)).collect()
    }
}

/// Digests the canonical JSON of everything that counts: object keys are written in a fixed order by the types' own
/// declarations and by ordered maps, so equal catalogs give equal bytes.
fn digest(catalog: &Catalog, models: &[ModelSchema]) -> SchemaHash {
    let canonical = serde_json::to_vec(&(FORMAT_VERSION, catalog.models(), catalog.access(), models))
        .expect("plain data always serializes");
    let digest = Sha256::digest(&canonical);
    // 128 bits are enough to never meet by chance, and keep keys and headers short.
    SchemaHash::new(digest[..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(text: &str, sql_type: &str) -> Schema {
        let field = Field {
            column: "id".into(),
            name: "id".into(),
            sql_type: sql_type.into(),
            json: JsonKind::String,
            nullable: false,
        };
        Schema::new(Arc::new(Catalog::parse(text).unwrap()), vec![ModelSchema { fields: vec![field] }])
    }

    const ONE: &str = "[[models]]\nname = \"A\"\ntable = \"a\"\nid = \"id\"\norg = \"org\"\nload = \"lazy\"\n";

    #[test]
    fn the_hash_covers_entries_and_types() {
        let hash = schema(ONE, "uuid").hash;
        assert_eq!(hash.as_str().len(), 32);
        assert_eq!(schema(ONE, "uuid").hash, hash);
        assert_ne!(schema(ONE, "text").hash, hash);
        assert_ne!(schema(&ONE.replace("lazy", "partial"), "uuid").hash, hash);
        assert_ne!(schema(&format!("{ONE}filter = \"true\"\n"), "uuid").hash, hash);
        let member = "\n[[access.memberships]]\nkind=\"t\"\ntable=\"m\"\norg=\"o\"\nuser=\"u\"\ngroup=\"g\"\n";
        assert_ne!(schema(&format!("{ONE}{member}"), "uuid").hash, hash);
    }
}
