//! A TOML file as a flat list of leaves, each with its place.

use serde::Deserialize;
use toml::Value;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// One `key = value` of a TOML file.
#[derive(Debug, Clone, PartialEq)]
pub struct Leaf {
    /// Sections and key, joined by dots.
    pub path: String,
    /// What stands behind the `=`. Never a table.
    pub value: Value,
    /// Where the key begins, in bytes of the text.
    pub offset: usize,
}

/// All leaves of a file, in the order they are written. An array is one leaf, whatever it holds.
///
/// # Errors
/// What keeps the text from being TOML, with its place.
pub fn leaves(text: &str) -> Result<Vec<Leaf>, toml::de::Error> {
    let mut leaves = Vec::new();
    walk("", DeTable::parse(text)?.into_inner(), &mut leaves)?;
    leaves.sort_by_key(|leaf| leaf.offset);
    Ok(leaves)
}

fn walk(prefix: &str, table: DeTable<'_>, leaves: &mut Vec<Leaf>) -> Result<(), toml::de::Error> {
    for (key, value) in table {
        let offset = key.span().start;
        let path = format!("{prefix}{}", key.into_inner());
        if value.get_ref().is_table() {
            if let DeValue::Table(table) = value.into_inner() {
                walk(&format!("{path}."), table, leaves)?;
            }
        } else {
            leaves.push(Leaf { path, value: Value::deserialize(ValueDeserializer::from(value))?, offset });
        }
    }
    Ok(())
}

/// The number of the line, from 1, that holds this byte.
pub fn line_number(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_keep_order_and_place() {
        let text = "top = 1\n[b]\ny = \"t\"\nx = [1, 2]\n[a.deep]\nz = true\n";
        let found = leaves(text).unwrap();
        let seen: Vec<_> = found.iter().map(|leaf| (leaf.path.as_str(), line_number(text, leaf.offset))).collect();
        assert_eq!(seen, [("top", 1), ("b.y", 3), ("b.x", 4), ("a.deep.z", 6)]);
        assert_eq!(found[1].value, Value::String("t".into()));
        assert!(leaves("a = ").is_err());
    }
}
