//! Rows by id or by key: one prepared statement for a model and a column, its rows in binary, encoded as a scan does.
//!
//! A look-up takes no locks ahead and no snapshot of its own: one statement sees one state. Its columns are those of
//! the layout at hand; when the tables have changed since, the statement can't be prepared, gives other types, or is
//! refused because its result would change, and the caller reads the layout anew.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, ToSql, Type};

use crate::source::postgres::columns::Layout;
use crate::source::postgres::error::classify;
use crate::source::postgres::groups::GroupReader;
use crate::source::postgres::keys::KeyColumn;
use crate::source::postgres::pool::Lease;
use crate::source::postgres::row::{RowEncoder, RowPlan};
use crate::source::sql::{Access, Form, ModelSelect};
use crate::source::{BoxError, By, Found, FoundRow, GroupSets, Lookup, SetId, SourceError};

/// Columns that are selected between the fields and the groups: the id, and the column that is asked by.
const NAMES: usize = 2;

/// Why a look-up has no answer.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The tables no longer are what the layout says: read it again and try once more.
    #[error("the tables have changed since their columns were read")]
    Changed(#[source] SourceError),
    /// Anything else.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// Reads the rows, on a connection that is in no transaction.
///
/// Cancel safe: a lease that is dropped with the future cancels its statement.
///
/// # Errors
/// [`LookupError::Changed`] when the tables are not as in `layout`; [`SourceError::Org`] when the id is not the text of
/// one; [`SourceError::TooLarge`].
pub async fn find(lease: &Lease, layout: &Layout, lookup: &Lookup) -> Result<Found, LookupError> {
    let catalog = &*layout.schema.catalog;
    let class = &catalog.models()[lookup.model].name;
    let doing = format!("looking up rows of {class}");
    let refused = |error| refusal(&doing, lookup, error);

    let own = &layout.models[lookup.model];
    let by = match lookup.by {
        By::Id => &own.id,
        By::Key(index) => &own.keys[index],
    };
    let lineage = catalog.lineage(lookup.model);
    let owner = lineage.chain[lineage.groups];
    let groups = &layout.models[owner].groups;
    let fields = &layout.schema.models[lookup.model];
    let mut plan = RowPlan::new(class, fields, &own.codecs, groups, owner != lookup.model);
    let width = plan.fields.len();
    plan.fields.extend([own.id.output(), by.output()]);
    let select = ModelSelect {
        catalog,
        lineage: &lineage,
        fields: &plan.fields,
        groups: &plan.groups,
        org_type: &layout.org_type,
        access: Access::Planned,
        order: Vec::new(),
    };
    let version = layout.schema.hash.as_str();
    let statement = lease.prepared(version, &select.lookup(by.test())).await.map_err(refused)?;
    let told = statement.columns().iter().zip(&plan.fields).zip(&own.types);
    for ((column, field), known) in told {
        if field.form == Form::Plain && column.type_().oid() != *known {
            let fault = format!("`{}` has another type than when the columns were read", field.column);
            return Err(LookupError::Changed(SourceError::failed(doing, fault)));
        }
    }

    let places = places(by, &lookup.values);
    let keys = by.parameter(places.keys().map(String::as_str));
    let sets = GroupSets::default();
    let groups = GroupReader::new(groups.clone(), catalog.models()[owner].ungrouped, &lookup.org, &sets);
    let mut reader = RowReader {
        width,
        id: &own.id,
        by,
        places,
        encoder: plan.encoder,
        groups,
        sets,
        tuple: Vec::new(),
        lines: Vec::new(),
        rows: Vec::new(),
        matches: vec![Vec::new(); lookup.values.len()],
    };
    let parameters: [&(dyn ToSql + Sync); 2] = [&lookup.org.as_str(), &keys];
    let rows = lease.query_raw(&statement, parameters).await.map_err(refused)?;
    let mut rows = pin!(rows);
    while let Some(row) = rows.try_next().await.map_err(refused)? {
        reader.take(&row).map_err(|cause| SourceError::failed(&*doing, cause))?;
        if reader.lines.len() > lookup.max_bytes {
            return Err(SourceError::TooLarge(lookup.max_bytes).into());
        }
    }
    Ok(reader.found(layout))
}

/// What the database's refusal of a look-up means.
fn refusal(doing: &str, lookup: &Lookup, error: tokio_postgres::Error) -> LookupError {
    let changed = [
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_COLUMN,
        SqlState::INVALID_SCHEMA_NAME,
        SqlState::WRONG_OBJECT_TYPE,
        // "cached plan must not change result type"
        SqlState::FEATURE_NOT_SUPPORTED,
        // A column of another type has no such operator.
        SqlState::UNDEFINED_FUNCTION,
        SqlState::DATATYPE_MISMATCH,
    ];
    match error.code() {
        Some(code) if changed.contains(code) => LookupError::Changed(classify(doing, error)),
        // Class 22, data exceptions. The keys are values of their type, so it is the org that is none.
        Some(code)
            if *code == SqlState::INVALID_TEXT_REPRESENTATION || *code == SqlState::NUMERIC_VALUE_OUT_OF_RANGE =>
        {
            SourceError::Org(lookup.org.to_string()).into()
        }
        _ => classify(doing, error).into(),
    }
}

/// Canonical values and where they stand among those that are asked for; two texts may be one value. What the column
/// can't hold is left out.
fn places(by: &KeyColumn, values: &[Arc<str>]) -> HashMap<String, Vec<usize>> {
    let mut places: HashMap<String, Vec<usize>> = HashMap::with_capacity(values.len());
    for (place, value) in values.iter().enumerate() {
        if let Some(value) = by.canonical(value) {
            places.entry(value).or_default().push(place);
        }
    }
    places
}

/// Reads row after row into one arena.
struct RowReader<'a> {
    /// How many columns are fields.
    width: usize,
    id: &'a KeyColumn,
    by: &'a KeyColumn,
    places: HashMap<String, Vec<usize>>,
    encoder: RowEncoder,
    groups: GroupReader,
    sets: GroupSets,
    /// A row as COPY would give it.
    tuple: Vec<u8>,
    lines: Vec<u8>,
    /// For each row its id, where its line ends, and its set.
    rows: Vec<(Arc<str>, usize, Option<SetId>)>,
    matches: Vec<Vec<usize>>,
}

impl RowReader<'_> {
    fn take(&mut self, row: &Row) -> Result<(), BoxError> {
        let raw = |column: usize| row.try_get::<_, Raw<'_>>(column).map(|raw| raw.0);
        self.tuple.clear();
        self.tuple.extend(i16::try_from(row.len() - NAMES)?.to_be_bytes());
        for column in (0..row.len()).filter(|column| !(self.width..self.width + NAMES).contains(column)) {
            let value = raw(column)?;
            self.tuple.extend(value.map_or(Ok(-1), |value| i32::try_from(value.len()))?.to_be_bytes());
            self.tuple.extend(value.unwrap_or_default());
        }
        let mut id = None;
        self.id.texts(raw(self.width)?, |text| id = Some(Arc::from(text)))?;
        // A view may have rows without an id; nobody could name them.
        let Some(id) = id else { return Ok(()) };
        let (place, matches, places) = (self.rows.len(), &mut self.matches, &self.places);
        self.by.texts(raw(self.width + 1)?, |text| {
            for value in places.get(&*text).into_iter().flatten() {
                // An array may hold an element twice.
                if matches[*value].last() != Some(&place) {
                    matches[*value].push(place);
                }
            }
        })?;
        self.encoder.line(&self.tuple, &mut self.lines)?;
        let set = self.groups.set(&self.tuple, self.encoder.places(), &self.sets)?;
        self.rows.push((id, self.lines.len(), set));
        Ok(())
    }

    fn found(self, layout: &Layout) -> Found {
        let arena = Bytes::from(self.lines);
        let mut start = 0;
        let rows = self.rows.into_iter().map(|(id, end, set)| {
            let line = arena.slice(start..end);
            start = end;
            FoundRow { id, line, groups: set.map(|set| self.sets.get(set)).unwrap_or_default() }
        });
        Found { rows: rows.collect(), schema: layout.schema.clone(), matches: self.matches }
    }
}

/// A value as it came, whatever its type; `None` for a null.
struct Raw<'a>(Option<&'a [u8]>);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, BoxError> {
        Ok(Self(Some(raw)))
    }

    fn from_sql_null(_: &Type) -> Result<Self, BoxError> {
        Ok(Self(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}
