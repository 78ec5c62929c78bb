//! One tuple of a binary COPY becomes one line.

use std::ops::Range;

use crate::model::ModelSchema;
use crate::source::postgres::columns::GroupColumn;
use crate::source::postgres::encode::{self, Malformed};
use crate::source::postgres::types::Codec;
use crate::source::sql::{Form, Output};

/// Writes the lines of one model.
#[derive(Debug)]
pub struct RowEncoder {
    /// `{"__class":"Issue"`
    head: Vec<u8>,
    columns: Vec<ColumnEncoder>,
    /// Where in the last tuple each group column stood, its length word included.
    places: Vec<Range<usize>>,
}

#[derive(Debug)]
struct ColumnEncoder {
    /// `,"title":`, and how the value is written; `None` for a column that is only selected for the groups.
    field: Option<(Vec<u8>, Codec)>,
    /// Which of the group columns this is.
    group: Option<usize>,
}

/// A tuple that can't be written.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// A value is not of its column's type.
    #[error("column {column:?}")]
    Value {
        /// The key on the wire.
        column: String,
        /// What is wrong with it.
        #[source]
        cause: Malformed,
    },
    /// The tuple does not have the columns that were selected.
    #[error("the tuple does not have the columns that were selected")]
    Shape,
}

/// What to select for a model and how to write it.
#[derive(Debug)]
pub struct RowPlan<'a> {
    /// Columns of the model's own table.
    pub fields: Vec<Output<'a>>,
    /// Columns of the table that holds the groups, after the fields.
    pub groups: Vec<Output<'a>>,
    /// Writes the rows.
    pub encoder: RowEncoder,
}

impl<'a> RowPlan<'a> {
    /// `codecs` are those of the schema's fields. `groups` are those of the model that owns them; `inherited` says whether that is another one. A group column of
    /// the row's own table that is sent anyway, in the form the groups need, is not selected twice.
    pub fn new(
        class: &str,
        schema: &'a ModelSchema,
        codecs: &[Codec],
        groups: &'a [GroupColumn],
        inherited: bool,
    ) -> Self {
        let mut fields = Vec::new();
        let mut columns = Vec::new();
        for (field, codec) in schema.fields.iter().zip(codecs) {
            let form = if *codec == Codec::Fallback { Form::Json } else { Form::Plain };
            fields.push(Output { column: &field.column, form });
            let mut key = vec![b','];
            key.extend_from_slice(json_string(&field.name).as_bytes());
            key.push(b':');
            columns.push(ColumnEncoder { field: Some((key, codec.clone())), group: None });
        }
        let mut extra = Vec::new();
        for (index, group) in groups.iter().enumerate() {
            let output = Output { column: &group.column, form: group.form };
            let sent = fields.iter().position(|field| *field == output);
            match sent.filter(|at| !inherited && columns[*at].group.is_none()) {
                Some(at) => columns[at].group = Some(index),
                None => {
                    extra.push(output);
                    columns.push(ColumnEncoder { field: None, group: Some(index) });
                }
            }
        }
        let head = format!("{{\"__class\":{}", json_string(class)).into_bytes();
        let encoder = RowEncoder { head, columns, places: vec![0..0; groups.len()] };
        Self { fields, groups: extra, encoder }
    }
}

fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl RowEncoder {
    /// Appends the line of a tuple, with its line break. The tuple is the number of columns and each column's length
    /// and bytes (PostgreSQL docs, COPY, "Binary Format"). On an error the buffer may end in half a line.
    ///
    /// # Errors
    /// [`RowError`] when the tuple is not of this model.
    pub fn line(&mut self, tuple: &[u8], out: &mut Vec<u8>) -> Result<(), RowError> {
        let count = tuple.first_chunk().map(|count| i16::from_be_bytes(*count));
        if count.and_then(|count| usize::try_from(count).ok()) != Some(self.columns.len()) {
            return Err(RowError::Shape);
        }
        out.extend_from_slice(&self.head);
        let mut at = 2;
        for column in &self.columns {
            let start = at;
            let length = tuple[at..].first_chunk().map(|length| i32::from_be_bytes(*length)).ok_or(RowError::Shape)?;
            at += 4;
            let raw = if length == -1 {
                None
            } else {
                let end =
                    usize::try_from(length).ok().and_then(|length| at.checked_add(length)).ok_or(RowError::Shape)?;
                let raw = tuple.get(at..end).ok_or(RowError::Shape)?;
                at = end;
                Some(raw)
            };
            if let Some(group) = column.group {
                self.places[group] = start..at;
            }
            if let (Some(raw), Some((key, codec))) = (raw, &column.field) {
                write_field(key, codec, raw, out)?;
            }
        }
        if at != tuple.len() {
            return Err(RowError::Shape);
        }
        out.extend_from_slice(b"}\n");
        Ok(())
    }

    /// Where in the last tuple each group column stood, its length word included.
    pub fn places(&self) -> &[Range<usize>] {
        &self.places
    }
}

fn write_field(key: &[u8], codec: &Codec, raw: &[u8], out: &mut Vec<u8>) -> Result<(), RowError> {
    let before = out.len();
    out.extend_from_slice(key);
    let value = out.len();
    encode::value(codec, raw, out).map_err(|cause| {
        let column = String::from_utf8_lossy(key).trim_matches([',', ':', '"']).to_owned();
        RowError::Value { column, cause }
    })?;
    // Absent means null, also for a null within JSON.
    if codec.may_hold_null() && out[value..].trim_ascii() == b"null" {
        out.truncate(before);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Field;
    use crate::model::schema::JsonKind;
    use crate::source::postgres::columns::GroupValue;

    fn field(name: &str) -> Field {
        let json = JsonKind::Any;
        Field { column: name.into(), name: name.into(), sql_type: "x".into(), json, nullable: true }
    }

    #[test]
    fn nulls_are_left_out_and_groups_are_not_sent_twice() {
        let schema = ModelSchema { fields: vec![field("a"), field("b"), field("c")] };
        let codecs = [Codec::Int4, Codec::Jsonb, Codec::Fallback];
        let group = |column: &str, form| GroupColumn {
            kind: "k".into(),
            column: column.into(),
            form,
            value: GroupValue::Integer,
            array: false,
        };
        let groups = [group("a", Form::Plain), group("b", Form::Text)];
        let mut plan = RowPlan::new("It", &schema, &codecs, &groups, false);
        assert_eq!(plan.fields[2].form, Form::Json);
        assert_eq!(plan.groups, [Output { column: "b", form: Form::Text }]);
        assert_eq!(RowPlan::new("It", &schema, &codecs, &groups, true).groups.len(), 2);

        let mut tuple = 4_i16.to_be_bytes().to_vec();
        tuple.extend([0, 0, 0, 4, 0, 0, 0, 9]);
        tuple.extend(b"\0\0\0\x07\x01 null ");
        tuple.extend(b"\0\0\0\x04null");
        tuple.extend([255; 4]);
        let mut out = Vec::new();
        plan.encoder.line(&tuple, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "{\"__class\":\"It\",\"a\":9}\n");
        assert_eq!(plan.encoder.places(), [2..10, 29..33]);

        for cut in 0..tuple.len() {
            assert!(plan.encoder.line(&tuple[..cut], &mut Vec::new()).is_err(), "cut at {cut}");
        }
        tuple.push(0);
        assert!(matches!(plan.encoder.line(&tuple, &mut Vec::new()), Err(RowError::Shape)));
    }
}
