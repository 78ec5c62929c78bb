//! The columns that rows are asked by, and their values as parameters.
//!
//! A look-up serves many callers, so no value that one of them sent may fail it: what the column's type can't hold is
//! found here and left out. Parameters are of the column's own type, so that its indexes serve: a B-tree for a scalar, GIN
//! for an array. The few types whose values can't be checked here (dates, enums, domains over arrays' elements and so
//! on) are compared by their texts.

use std::borrow::Cow;
use std::error::Error;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{IsNull, Kind, ToSql, Type};

use crate::model::key::canonical;
use crate::source::postgres::columns::GroupValue;
use crate::source::postgres::encode::Malformed;
use crate::source::postgres::encode::array::Elements;
use crate::source::postgres::tables::Column;
use crate::source::postgres::types::{Codec, Types};
use crate::source::sql::{Form, KeyTest, Output};

/// A column rows are asked by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyColumn {
    column: String,
    /// How it is selected.
    form: Form,
    /// What one value is when it is selected so.
    value: GroupValue,
    /// Whether it holds arrays.
    is_array: bool,
    compared: Compared,
}

/// What a value is compared as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compared {
    Uuid,
    Int2,
    Int4,
    Int8,
    Text,
    /// As the elements of a `varchar[]`, which is no `text[]`.
    Varchar,
    /// The column's values are cast to text.
    TextOf,
}

impl KeyColumn {
    /// How values of this column are asked for and read.
    pub fn new(column: &Column, types: &Types) -> Self {
        let element = types.element(column.oid);
        let scalar = element.unwrap_or(column.oid);
        let is_plain = types.base(scalar) == scalar || element.is_none();
        let compared = match types.codec(scalar) {
            _ if !is_plain || types.is_enum(scalar) || types.is_padded(scalar) => Compared::TextOf,
            Codec::Uuid => Compared::Uuid,
            Codec::Int2 => Compared::Int2,
            Codec::Int4 => Compared::Int4,
            Codec::Int8 => Compared::Int8,
            Codec::Text => match Type::from_oid(types.base(scalar)) {
                Some(Type::VARCHAR) if element.is_some() => Compared::Varchar,
                Some(Type::NAME) if element.is_some() => Compared::TextOf,
                _ => Compared::Text,
            },
            _ => Compared::TextOf,
        };
        let form = match (compared, element) {
            (Compared::TextOf, None) => Form::Text,
            (Compared::TextOf, Some(_)) => Form::TextArray,
            _ => Form::Plain,
        };
        let value = match compared {
            Compared::Uuid => GroupValue::Uuid,
            Compared::Int2 | Compared::Int4 | Compared::Int8 => GroupValue::Integer,
            Compared::Text | Compared::Varchar | Compared::TextOf => GroupValue::Text,
        };
        Self { column: column.name.clone(), form, value, is_array: element.is_some(), compared }
    }

    /// How it is selected, for [`Self::texts`].
    pub fn output(&self) -> Output<'_> {
        Output { column: &self.column, form: self.form }
    }

    /// How a look-up tests it.
    pub fn test(&self) -> KeyTest<'_> {
        KeyTest {
            column: &self.column,
            is_array: self.is_array,
            as_text: self.compared == Compared::TextOf,
            array_type: match self.compared {
                Compared::Uuid => "pg_catalog.uuid[]",
                Compared::Int2 => "pg_catalog.int2[]",
                Compared::Int4 => "pg_catalog.int4[]",
                Compared::Int8 => "pg_catalog.int8[]",
                Compared::Varchar => "pg_catalog.varchar[]",
                Compared::Text | Compared::TextOf => "pg_catalog.text[]",
            },
        }
    }

    /// A value as PostgreSQL prints it, or `None` when the column can't hold it.
    pub fn canonical(&self, text: &str) -> Option<String> {
        let sql_type = match self.compared {
            Compared::Uuid => "uuid",
            Compared::Int2 => "smallint",
            Compared::Int4 => "integer",
            Compared::Int8 => "bigint",
            Compared::Text | Compared::Varchar | Compared::TextOf => "text",
        };
        canonical(sql_type, text)
    }

    /// Values in their canonical form as the parameter of [`Self::test`].
    pub fn parameter<'a>(&self, values: impl IntoIterator<Item = &'a str>) -> KeyArray {
        KeyArray(values.into_iter().filter_map(|value| self.binary(value)).collect())
    }

    fn binary(&self, text: &str) -> Option<Box<[u8]>> {
        let number = || text.parse::<i64>().ok();
        Some(match self.compared {
            Compared::Uuid => {
                let digits = u128::from_str_radix(&text.replace('-', ""), 16).ok()?;
                Box::from(digits.to_be_bytes())
            }
            Compared::Int2 => Box::from(i16::try_from(number()?).ok()?.to_be_bytes()),
            Compared::Int4 => Box::from(i32::try_from(number()?).ok()?.to_be_bytes()),
            Compared::Int8 => Box::from(number()?.to_be_bytes()),
            Compared::Text | Compared::Varchar | Compared::TextOf => Box::from(text.as_bytes()),
        })
    }

    /// Calls back with the text of each value that a row holds, given in binary; a null is none.
    ///
    /// # Errors
    /// [`Malformed`] when it is no value of the column.
    pub fn texts(&self, raw: Option<&[u8]>, mut each: impl FnMut(Cow<'_, str>)) -> Result<(), Malformed> {
        let Some(raw) = raw else { return Ok(()) };
        if !self.is_array {
            each(self.value.text(raw)?);
            return Ok(());
        }
        for element in Elements::new(raw)? {
            if let Some(raw) = element? {
                each(self.value.text(raw)?);
            }
        }
        Ok(())
    }
}

/// An array of values, in binary.
#[derive(Debug)]
pub struct KeyArray(Vec<Box<[u8]>>);

impl ToSql for KeyArray {
    /// What `array_recv` in PostgreSQL's `src/backend/utils/adt/arrayfuncs.c` reads: dimensions, a flag for nulls, the
    /// type of the elements, length and lower bound, then each element with its length.
    fn to_sql(&self, array: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let Kind::Array(element) = array.kind() else { return Err(format!("{array} is no array").into()) };
        out.put_i32(1);
        out.put_i32(0);
        out.put_u32(element.oid());
        out.put_i32(i32::try_from(self.0.len())?);
        out.put_i32(1);
        for value in &self.0 {
            out.put_i32(i32::try_from(value.len())?);
            out.put_slice(value);
        }
        Ok(IsNull::No)
    }

    fn accepts(array: &Type) -> bool {
        matches!(array.kind(), Kind::Array(_))
    }

    tokio_postgres::types::to_sql_checked!();
}
