//! `GET /sync/schema` and `GET /sync/groups`: what a client needs to know before it asks for rows.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{CACHE_CONTROL, HeaderName};
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::Serialize;

use crate::http::Http;
use crate::http::admission::Kind;
use crate::http::error::HttpError;
use crate::http::request::RequestContext;
use crate::model::catalog::Load;
use crate::model::schema::JsonKind;
use crate::model::{Org, Schema, SchemaHash, SyncGroup, User};

/// Answers depend on the token, so only the client's own cache may keep them, and it must ask.
const PRIVATE: [(HeaderName, &str); 1] = [(CACHE_CONTROL, "private, no-cache")];

/// What a caller holds now.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupsDocument {
    /// The caller's org, in canonical form.
    #[schemars(with = "String")]
    org: Org,
    /// The caller, likewise.
    #[schemars(with = "String")]
    user: User,
    /// The groups, sorted.
    #[schemars(with = "Vec<String>")]
    sync_groups: Vec<SyncGroup>,
}

/// How rows look, for clients that make their own tables or types of it.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SchemaDocument<'a> {
    /// What `schemaHash` of a request is compared with.
    #[schemars(with = "String")]
    schema_hash: &'a SchemaHash,
    /// The models, in the order of the catalog.
    models: Vec<ModelDocument<'a>>,
}

/// One model.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct ModelDocument<'a> {
    /// The class of its lines.
    name: &'a str,
    /// When clients get its rows.
    #[schemars(extend("enum" = [Load::Instant, Load::Lazy, Load::Partial, Load::Explicit]), with = "String")]
    load_strategy: Load,
    /// The field that holds the id; its text is the model id.
    id_field: &'a str,
    /// The fields a batch may ask by, besides the id.
    batch_keys: &'a [String],
    /// The fields, in the order they stand on the wire.
    fields: Vec<FieldDocument<'a>>,
}

/// One field.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct FieldDocument<'a> {
    /// Its key.
    name: &'a str,
    /// The JSON type of its values; `any` for those that hold JSON themselves.
    #[serde(rename = "type")]
    #[schemars(extend("enum" = [JsonKind::Boolean, JsonKind::Number, JsonKind::String, JsonKind::Array, JsonKind::Any]), with = "String")]
    json: JsonKind,
    /// PostgreSQL's name of the type.
    sql_type: &'a str,
    /// Whether it may be null, and the key then absent.
    nullable: bool,
}

impl<'a> SchemaDocument<'a> {
    fn new(schema: &'a Schema) -> Self {
        let models = schema.catalog.models().iter().zip(&schema.models).map(|(model, columns)| ModelDocument {
            name: &model.name,
            load_strategy: model.load,
            // The id is never excluded; if it was renamed, its field says how.
            id_field: columns.fields.iter().find(|field| field.column == model.id).map_or(&model.id, |id| &id.name),
            batch_keys: &model.keys,
            fields: (columns.fields.iter())
                .map(|field| FieldDocument {
                    name: &field.name,
                    json: field.json,
                    sql_type: &field.sql_type,
                    nullable: field.nullable,
                })
                .collect(),
        });
        Self { schema_hash: &schema.hash, models: models.collect() }
    }
}

/// Tells the caller which groups it holds.
pub async fn groups(
    State(http): State<Arc<Http>>,
    Extension(request): Extension<Arc<RequestContext>>,
    headers: HeaderMap,
) -> Result<([(HeaderName, &'static str); 1], Json<GroupsDocument>), HttpError> {
    let (claims, _place) = http.admit(Kind::Delta, &headers).await?;
    let caller = http.caller(&claims, &request).await?;
    let sync_groups = caller.grants.as_slice().to_vec();
    Ok((PRIVATE, Json(GroupsDocument { org: caller.org, user: caller.user, sync_groups })))
}

/// Tells the caller how rows look.
pub async fn schema(
    State(http): State<Arc<Http>>,
    Extension(request): Extension<Arc<RequestContext>>,
    headers: HeaderMap,
) -> Result<([(HeaderName, &'static str); 1], Json<serde_json::Value>), HttpError> {
    let (claims, _place) = http.admit(Kind::Delta, &headers).await?;
    http.caller(&claims, &request).await?;
    let schema = http.service.schema().await?;
    let document = serde_json::to_value(SchemaDocument::new(&schema)).expect("plain data always serializes");
    Ok((PRIVATE, Json(document)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Catalog;
    use crate::model::schema::{Field, ModelSchema};

    #[test]
    fn the_document_names_everything_as_it_stands_on_the_wire() {
        let catalog = "[[models]]\nname = \"Issue\"\ntable = \"app.issue\"\nid = \"issue_id\"\norg = \"org\"\n\
                       load = \"lazy\"\nkeys = [\"teamId\"]\nrename = { issue_id = \"key\" }\n";
        let field = |column: &str, name: &str, nullable| Field {
            column: column.into(),
            name: name.into(),
            sql_type: "uuid".into(),
            json: JsonKind::String,
            nullable,
        };
        let fields = vec![field("issue_id", "key", false), field("team_id", "teamId", true)];
        let schema = Schema::new(Arc::new(Catalog::parse(catalog).unwrap()), vec![ModelSchema { fields }]);
        let document = serde_json::to_value(SchemaDocument::new(&schema)).unwrap();
        let expected = serde_json::json!({
            "schemaHash": schema.hash.as_str(),
            "models": [{
                "name": "Issue", "loadStrategy": "lazy", "idField": "key", "batchKeys": ["teamId"],
                "fields": [
                    {"name": "key", "type": "string", "sqlType": "uuid", "nullable": false},
                    {"name": "teamId", "type": "string", "sqlType": "uuid", "nullable": true},
                ]
            }]
        });
        assert_eq!(document, expected);
    }
}
