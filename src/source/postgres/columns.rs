//! How the tables hold the models: the schema clients see, and what reading needs to know beyond it.

use std::sync::Arc;

use tokio_postgres::GenericClient;
use tokio_postgres::types::Oid;

use crate::model::catalog::{Catalog, Model, camel_case};
use crate::model::{Field, ModelSchema, Schema};
use crate::source::SourceError;
use crate::source::postgres::faults::{Fault, faults};
use crate::source::postgres::keys::KeyColumn;
use crate::source::postgres::tables::{Column, Live};
use crate::source::postgres::types::{Codec, Types};
use crate::source::sql::Form;

/// A catalog resolved against a database that fits it.
#[derive(Debug)]
pub struct Layout {
    /// What clients see.
    pub schema: Arc<Schema>,
    /// What reading needs to know, by model index.
    pub models: Vec<ModelLayout>,
    /// The type an org's id is compared as, as SQL; the same for all org columns.
    pub org_type: String,
    /// What the membership tables are asked by, in the catalog's order.
    pub memberships: Vec<MembershipTypes>,
}

/// The types of a membership table's columns, as a cast takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipTypes {
    /// The org column's.
    pub org: String,
    /// The user column's.
    pub user: String,
}

/// What reading one model needs to know.
#[derive(Debug)]
pub struct ModelLayout {
    /// How each of the schema's fields is encoded.
    pub codecs: Vec<Codec>,
    /// The model's own group columns.
    pub groups: Vec<GroupColumn>,
    /// The types of the fields under all domains, as a statement that selects them says.
    pub types: Vec<Oid>,
    /// The column that rows are named by.
    pub id: KeyColumn,
    /// The columns a batch may ask by, in the order of the catalog's `keys`.
    pub keys: Vec<KeyColumn>,
}

/// A column that gives a row sync groups of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupColumn {
    /// The kind of the groups.
    pub kind: String,
    /// The column.
    pub column: String,
    /// How it is selected.
    pub form: Form,
    /// What one value is.
    pub value: GroupValue,
    /// Whether the column holds arrays of such values.
    pub array: bool,
}

/// A group's id in binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupValue {
    /// Text.
    Text,
    /// `uuid`.
    Uuid,
    /// `smallint`, `integer` or `bigint`: as many bytes as there are.
    Integer,
}

/// Reads how the tables hold the models now.
///
/// # Errors
/// The inner one: every fault of the catalog against this database. The outer one: what keeps it from answering.
pub async fn read(
    client: &impl GenericClient,
    catalog: &Arc<Catalog>,
) -> Result<Result<Layout, Vec<Fault>>, SourceError> {
    let live = Live::read(client, catalog).await?;
    let faults = faults(catalog, &live);
    Ok(if faults.is_empty() { Ok(Layout::new(catalog, &live)) } else { Err(faults) })
}

/// All faults as one error.
pub fn unfit(faults: &[Fault]) -> SourceError {
    SourceError::Schema(faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

/// The columns of a model that leave the database, with their wire names, in the order of the table.
pub(super) fn visible<'a>(model: &'a Model, columns: &'a [Column]) -> impl Iterator<Item = (String, &'a Column)> {
    columns.iter().filter(|column| !model.exclude.contains(&column.name)).map(|column| {
        let renamed = model.rename.get(&column.name).cloned();
        (renamed.unwrap_or_else(|| camel_case(&column.name)), column)
    })
}

impl Layout {
    /// Joins a catalog with tables that have no faults.
    fn new(catalog: &Arc<Catalog>, live: &Live) -> Self {
        let mut schemas = Vec::new();
        let mut models = Vec::new();
        for model in catalog.models() {
            let columns = live.table(&model.table).map_or(&[][..], |table| &table.columns);
            let mut fields = Vec::new();
            let (mut codecs, mut types) = (Vec::new(), Vec::new());
            for (name, column) in visible(model, columns) {
                let codec = live.types.codec(column.oid);
                fields.push(Field {
                    column: column.name.clone(),
                    name,
                    sql_type: column.sql_type.clone(),
                    json: codec.json_kind(),
                    nullable: column.nullable || codec.may_hold_null(),
                });
                codecs.push(codec);
                types.push(live.types.base(column.oid));
            }
            let groups = model.groups.iter().filter_map(|(kind, name)| {
                let column = columns.iter().find(|column| column.name == *name)?;
                Some(GroupColumn::new(kind, column, &live.types))
            });
            let key = |name: &str| {
                let column = columns.iter().find(|column| column.name == name);
                KeyColumn::new(column.expect("a catalog without faults names columns that exist"), &live.types)
            };
            let schema = ModelSchema { fields };
            let keys = model.keys.iter().map(|name| {
                key(&schema.field(name).expect("a catalog without faults names keys that are sent").column)
            });
            let (groups, keys) = (groups.collect(), keys.collect());
            models.push(ModelLayout { codecs, groups, types, id: key(&model.id), keys });
            schemas.push(schema);
        }
        let org = catalog.models().iter().find_map(|model| live.table(&model.table)?.column(model.org.as_ref()?));
        let org_type = org.map_or_else(String::new, |column| org_type(column, &live.types));
        let cast_type = |table, name: &str| {
            let column = live.table(table).and_then(|table| table.column(name));
            column.map(|column| column.cast_type.clone()).unwrap_or_default()
        };
        let memberships = (catalog.access().memberships.iter())
            .map(|membership| MembershipTypes {
                org: cast_type(&membership.table, &membership.org),
                user: cast_type(&membership.table, &membership.user),
            })
            .collect();
        Self { schema: Arc::new(Schema::new(catalog.clone(), schemas)), models, org_type, memberships }
    }
}

impl GroupColumn {
    fn new(kind: &str, column: &Column, types: &Types) -> Self {
        let element = types.element(column.oid);
        let scalar = element.unwrap_or(column.oid);
        let binary = match types.codec(scalar) {
            // The cast to text strips the padding of char(n), as the log's triggers do.
            Codec::Text if !types.is_padded(scalar) => Some(GroupValue::Text),
            Codec::Uuid => Some(GroupValue::Uuid),
            Codec::Int2 | Codec::Int4 | Codec::Int8 => Some(GroupValue::Integer),
            _ => None,
        };
        let form = match (binary, element) {
            (Some(_), _) => Form::Plain,
            (None, None) => Form::Text,
            (None, Some(_)) => Form::TextArray,
        };
        Self {
            kind: kind.to_owned(),
            column: column.name.clone(),
            form,
            value: binary.unwrap_or(GroupValue::Text),
            array: element.is_some(),
        }
    }
}

/// The widest type of the family, so that one org id fits columns of different widths; indexes serve it as well.
fn org_type(column: &Column, types: &Types) -> String {
    match types.codec(column.oid) {
        Codec::Int2 | Codec::Int4 | Codec::Int8 => "pg_catalog.int8".to_owned(),
        Codec::Text if !types.is_enum(column.oid) => "pg_catalog.text".to_owned(),
        _ => column.cast_type.clone(),
    }
}
