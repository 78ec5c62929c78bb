//! From PostgreSQL's types to what encodes their values.
//!
//! `to_json` looks through domains, writes arrays as arrays, and honours a cast to `json` for types made by users
//! (`json_categorize_type` in PostgreSQL's `src/backend/utils/adt/json.c`, `jsonfuncs.c` since 17). [`Types::codec`]
//! follows it: what it can't follow is a [`Codec::Fallback`], which lets PostgreSQL itself write the JSON.

use std::collections::HashMap;

use tokio_postgres::types::{Oid, Type};
use tokio_postgres::{GenericClient, Row};

use crate::model::schema::JsonKind;
use crate::source::SourceError;
use crate::source::postgres::error::classify;

/// The oid of the first object that is not built in (`FirstNormalObjectId`).
const FIRST_NORMAL_OID: Oid = 16384;

/// How deep a type may be made of others; PostgreSQL sets no limit, real schemas have two or three levels.
const MAX_DEPTH: usize = 8;

/// How a value in PostgreSQL's binary format becomes JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Codec {
    /// `true`, `false`.
    Bool,
    /// `smallint`.
    Int2,
    /// `integer`.
    Int4,
    /// `bigint`.
    Int8,
    /// `oid`, a string to `to_json`.
    Oid,
    /// `real`.
    Float4,
    /// `double precision`.
    Float8,
    /// `numeric`.
    Numeric,
    /// Everything whose binary form is its text: text, varchar, char(n), name, citext, enums.
    Text,
    /// `uuid`.
    Uuid,
    /// `date`.
    Date,
    /// `time`.
    Time,
    /// `timetz`.
    TimeTz,
    /// `timestamp`.
    Timestamp,
    /// `timestamptz`.
    TimestampTz,
    /// `interval`.
    Interval {
        /// Whether the extreme values mean infinity, as they do from PostgreSQL 17 on.
        infinite: bool,
    },
    /// `json`.
    Json,
    /// `jsonb`.
    Jsonb,
    /// `bytea`.
    Bytea,
    /// `inet` and `cidr`.
    Inet,
    /// `macaddr`.
    MacAddr,
    /// An array, of any number of dimensions.
    Array(Box<Codec>),
    /// Selected as `to_json(column)::text`.
    Fallback,
}

impl Codec {
    /// What clients find in the line.
    pub fn json_kind(&self) -> JsonKind {
        match self {
            Self::Bool => JsonKind::Boolean,
            Self::Int2 | Self::Int4 | Self::Int8 | Self::Float4 | Self::Float8 | Self::Numeric => JsonKind::Number,
            Self::Array(_) => JsonKind::Array,
            Self::Json | Self::Jsonb | Self::Fallback => JsonKind::Any,
            _ => JsonKind::String,
        }
    }

    /// Whether a value that is not null in PostgreSQL can still be `null` in JSON.
    pub fn may_hold_null(&self) -> bool {
        matches!(self, Self::Json | Self::Jsonb | Self::Fallback)
    }

    /// Whether PostgreSQL has to write the JSON for this type or for a part of it.
    pub fn needs_fallback(&self) -> bool {
        match self {
            Self::Fallback => true,
            Self::Array(element) => element.needs_fallback(),
            _ => false,
        }
    }
}

/// What the types in use are made of, as `pg_type` says.
#[derive(Debug, Default)]
pub struct Types {
    by_oid: HashMap<Oid, TypeEntry>,
    server_version: u32,
}

#[derive(Debug)]
struct TypeEntry {
    shape: Shape,
    /// Whether a user made a cast to `json`, which `to_json` then uses.
    cast_to_json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Domain(Oid),
    Array(Oid),
    Enum,
    /// citext's values are text to the binary format.
    Citext,
    Other,
}

impl Types {
    /// Reads the types with these oids and those they are made of.
    ///
    /// # Errors
    /// What keeps the database from answering.
    pub async fn read(client: &impl GenericClient, oids: &[Oid]) -> Result<Self, SourceError> {
        let types = [(&oids as &(dyn tokio_postgres::types::ToSql + Sync), Type::OID_ARRAY)];
        let rows = client.query_typed(TYPES, &types).await.map_err(|error| classify("reading the types", error))?;
        let by_oid = rows.iter().map(|row| (row.get::<_, Oid>("oid"), TypeEntry::of(row))).collect();
        let server_version = rows.first().map_or(0, |row| row.get::<_, i32>("server_version").unsigned_abs());
        Ok(Self { by_oid, server_version })
    }

    /// How values of a type are encoded. [`Codec::Fallback`] for all that is not known.
    pub fn codec(&self, oid: Oid) -> Codec {
        let codec = self.resolve(oid, MAX_DEPTH);
        if codec.needs_fallback() { Codec::Fallback } else { codec }
    }

    /// The type under all domains.
    pub fn base(&self, oid: Oid) -> Oid {
        let mut base = oid;
        for _ in 0..MAX_DEPTH {
            match self.by_oid.get(&base).map(|entry| entry.shape) {
                Some(Shape::Domain(of)) => base = of,
                _ => break,
            }
        }
        base
    }

    /// The type of an array's elements; `None` when it is no array.
    pub fn element(&self, oid: Oid) -> Option<Oid> {
        match self.by_oid.get(&self.base(oid)).map(|entry| entry.shape) {
            Some(Shape::Array(of)) => Some(of),
            _ => None,
        }
    }

    /// Whether the type, under all domains, is citext.
    pub fn is_citext(&self, oid: Oid) -> bool {
        self.by_oid.get(&self.base(oid)).is_some_and(|entry| entry.shape == Shape::Citext)
    }

    /// Whether the type, under all domains, is an enum.
    pub fn is_enum(&self, oid: Oid) -> bool {
        self.by_oid.get(&self.base(oid)).is_some_and(|entry| entry.shape == Shape::Enum)
    }

    /// Whether the type, under all domains, is `char(n)`, whose trailing blanks don't count when compared.
    pub fn is_padded(&self, oid: Oid) -> bool {
        self.base(oid) == Type::BPCHAR.oid()
    }

    fn resolve(&self, oid: Oid, depth: usize) -> Codec {
        let base = self.base(oid);
        let (Some(entry), false) = (self.by_oid.get(&base), depth == 0) else { return Codec::Fallback };
        match entry.shape {
            Shape::Array(element) => Codec::Array(Box::new(self.resolve(element, depth - 1))),
            Shape::Domain(_) => Codec::Fallback,
            _ if base >= FIRST_NORMAL_OID && entry.cast_to_json => Codec::Fallback,
            Shape::Enum | Shape::Citext => Codec::Text,
            Shape::Other => Type::from_oid(base).map_or(Codec::Fallback, |built_in| self.scalar(&built_in)),
        }
    }

    fn scalar(&self, of: &Type) -> Codec {
        match *of {
            Type::BOOL => Codec::Bool,
            Type::INT2 => Codec::Int2,
            Type::INT4 => Codec::Int4,
            Type::INT8 => Codec::Int8,
            Type::OID => Codec::Oid,
            Type::FLOAT4 => Codec::Float4,
            Type::FLOAT8 => Codec::Float8,
            Type::NUMERIC => Codec::Numeric,
            Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME => Codec::Text,
            Type::UUID => Codec::Uuid,
            Type::DATE => Codec::Date,
            Type::TIME => Codec::Time,
            Type::TIMETZ => Codec::TimeTz,
            Type::TIMESTAMP => Codec::Timestamp,
            Type::TIMESTAMPTZ => Codec::TimestampTz,
            Type::INTERVAL => Codec::Interval { infinite: self.server_version >= 170_000 },
            Type::JSON => Codec::Json,
            Type::JSONB => Codec::Jsonb,
            Type::BYTEA => Codec::Bytea,
            Type::INET | Type::CIDR => Codec::Inet,
            Type::MACADDR => Codec::MacAddr,
            _ => Codec::Fallback,
        }
    }
}

impl TypeEntry {
    fn of(row: &Row) -> Self {
        let (base, element): (Oid, Oid) = (row.get("typbasetype"), row.get("typelem"));
        let shape = match (row.get::<_, &str>("kind"), row.get::<_, &str>("send")) {
            ("d", _) => Shape::Domain(base),
            ("e", _) => Shape::Enum,
            // Not int2vector and the like, which have elements and a format of their own.
            (_, "array_send") => Shape::Array(element),
            (_, "citextsend") => Shape::Citext,
            _ => Shape::Other,
        };
        Self { shape, cast_to_json: row.get("cast_to_json") }
    }
}

/// `send` is the bare name of the function that writes the binary format. 114 is the oid of `json`.
const TYPES: &str = "
WITH RECURSIVE used(oid) AS (
    SELECT pg_catalog.unnest($1::pg_catalog.oid[])
    UNION
    SELECT part.oid
    FROM used
    JOIN pg_catalog.pg_type AS t ON t.oid = used.oid
    CROSS JOIN LATERAL (VALUES (t.typbasetype), (t.typelem)) AS part(oid)
    WHERE part.oid <> 0
)
SELECT t.oid, t.typtype::text AS kind, t.typbasetype, t.typelem,
       coalesce(p.proname::text, '') AS send,
       EXISTS (SELECT FROM pg_catalog.pg_cast AS c
               WHERE c.castsource = t.oid AND c.casttarget = 114 AND c.castmethod = 'f') AS cast_to_json,
       pg_catalog.current_setting('server_version_num')::int4 AS server_version
FROM used
JOIN pg_catalog.pg_type AS t ON t.oid = used.oid
LEFT JOIN pg_catalog.pg_proc AS p ON p.oid = t.typsend";

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(shape: Shape, cast_to_json: bool) -> TypeEntry {
        TypeEntry { shape, cast_to_json }
    }

    #[test]
    fn domains_arrays_and_casts_are_followed() {
        let by_oid = HashMap::from([
            (Type::INT4.oid(), entry(Shape::Other, true)),
            (Type::INT4_ARRAY.oid(), entry(Shape::Array(Type::INT4.oid()), false)),
            (20_000, entry(Shape::Domain(Type::INT4_ARRAY.oid()), false)),
            (20_001, entry(Shape::Array(20_000), false)),
            (20_002, entry(Shape::Enum, false)),
            (20_003, entry(Shape::Enum, true)),
            (20_004, entry(Shape::Array(20_003), false)),
            (20_005, entry(Shape::Other, false)),
        ]);
        let types = Types { by_oid, server_version: 150_000 };
        let ints = Codec::Array(Box::new(Codec::Int4));
        assert_eq!(types.codec(20_000), ints, "a cast from a built-in type does not count");
        assert_eq!(types.codec(20_001), Codec::Array(Box::new(ints)));
        assert_eq!(types.codec(20_002), Codec::Text);
        assert_eq!(types.codec(20_004), Codec::Fallback, "a fallback within an array makes the whole one");
        assert_eq!(types.codec(20_005), Codec::Fallback);
        assert_eq!(types.codec(9), Codec::Fallback);
        assert_eq!(types.element(20_000), Some(Type::INT4.oid()));
    }
}
