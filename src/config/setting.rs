//! The settings there are. The embedded default file defines them: every `key = value` in it is a setting, the value
//! its default and its type, the comment above it what people read, and two marks in that comment are rules:
//! `Range: a to b.` on a line of its own bounds a number; `Secret.` or `Secret URL.` at the end of a line hides the
//! value, or what is secret in it, and lets it come from a file.

use std::ops::RangeInclusive;

use toml::Value;

use crate::config::leaf::leaves;
use crate::config::secret::Secrecy;

/// `config/headstart.toml` as it was when this binary was built.
pub const EMBEDDED: &str = include_str!("../../config/headstart.toml");

/// One setting: its names, its default and what it accepts.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Section and key: `postgres.url`.
    pub path: String,
    /// Its name in the environment: `HEADSTART_POSTGRES_URL`.
    pub env: String,
    /// What it does, its cost, when to change it.
    pub help: String,
    /// The value when nobody says another. Its type is the type of the setting.
    pub default: Value,
    /// What a number must be within.
    pub range: Option<RangeInclusive<i64>>,
    /// What of the value is hidden. What is not open may come from a file.
    pub secrecy: Secrecy,
}

/// Every setting, in the order of the embedded file.
pub fn settings() -> Vec<Setting> {
    let leaves = leaves(EMBEDDED).expect("the embedded file is TOML: a test reads it");
    leaves
        .into_iter()
        .map(|leaf| {
            let help = comment_above(EMBEDDED, leaf.offset);
            Setting {
                env: format!("HEADSTART_{}", leaf.path.replace('.', "_").to_uppercase()),
                path: leaf.path,
                default: leaf.value,
                range: help.lines().find_map(read_range),
                secrecy: help.lines().find_map(read_secrecy).unwrap_or(Secrecy::Open),
                help,
            }
        })
        .collect()
}

impl Setting {
    /// Whether the value is hidden, and may come from a file.
    pub fn is_secret(&self) -> bool {
        self.secrecy != Secrecy::Open
    }

    /// The key in a file that names the file with the value; for secrets.
    pub fn file_path(&self) -> String {
        format!("{}_file", self.path)
    }

    /// The name in the environment of the file with the value; for secrets.
    pub fn file_env(&self) -> String {
        format!("{}_FILE", self.env)
    }

    /// What the setting takes, for people.
    pub fn expected(&self) -> String {
        let kind = match self.default {
            Value::Boolean(_) => "true or false",
            Value::Integer(_) => "a whole number",
            Value::Array(_) => "a list of texts",
            _ => "a text",
        };
        match &self.range {
            Some(range) => format!("{kind} from {} to {}", range.start(), range.end()),
            None => kind.to_owned(),
        }
    }

    /// Whether a value is of the right type and within the range.
    pub fn accepts(&self, value: &Value) -> bool {
        match (&self.default, value) {
            (Value::Integer(_), Value::Integer(number)) => {
                self.range.as_ref().is_none_or(|range| range.contains(number))
            }
            (Value::Array(_), Value::Array(items)) => items.iter().all(Value::is_str),
            (default, value) => default.same_type(value),
        }
    }

    /// Reads a value as it stands in the environment; `None` when it is not of the setting's type.
    pub fn read(&self, text: &str) -> Option<Value> {
        Some(match self.default {
            Value::Boolean(_) => Value::Boolean(text.parse().ok()?),
            Value::Integer(_) => Value::Integer(text.parse().ok()?),
            Value::Array(_) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Value::Array(items.map(|item| Value::String(item.to_owned())).collect())
            }
            _ => Value::String(text.to_owned()),
        })
    }
}

/// The comment lines that end right above the line with this byte, without their `#`.
fn comment_above(text: &str, offset: usize) -> String {
    let mut lines: Vec<&str> = text[..offset].lines().rev().map_while(|line| line.strip_prefix('#')).collect();
    lines.reverse();
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join("\n")
}

/// Reads `Range: a to b.`.
fn read_range(line: &str) -> Option<RangeInclusive<i64>> {
    let (from, to) = line.strip_prefix("Range: ")?.strip_suffix('.')?.split_once(" to ")?;
    Some(from.parse().ok()?..=to.parse().ok()?)
}

fn read_secrecy(line: &str) -> Option<Secrecy> {
    if line.ends_with("Secret URL.") {
        Some(Secrecy::Url)
    } else if line.ends_with("Secret.") {
        Some(Secrecy::Whole)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_setting_says_what_it_is_for() {
        for setting in settings() {
            assert!(setting.help.len() > 20, "{} has no comment", setting.path);
            assert_eq!(setting.default.is_integer(), setting.range.is_some(), "{}: numbers have a range", setting.path);
            assert_eq!(setting.help.contains("Range:"), setting.range.is_some(), "{}: a range is read", setting.path);
            assert_eq!(setting.help.contains("Secret"), setting.is_secret(), "{}: a secret is marked", setting.path);
            assert!(setting.accepts(&setting.default), "{}: the default is accepted", setting.path);
        }
    }

    #[test]
    fn names_in_the_environment_never_meet() {
        let settings = settings();
        let mut names = BTreeSet::from(["HEADSTART_CONFIG".to_owned()]);
        for setting in &settings {
            assert!(names.insert(setting.env.clone()), "{} is taken", setting.env);
            if setting.is_secret() {
                assert!(names.insert(setting.file_env()), "{} is taken", setting.file_env());
            }
        }
    }

    #[test]
    fn values_are_read_by_type_and_range() {
        let setting = |default: Value, range| Setting {
            path: "a.b".into(),
            env: "HEADSTART_A_B".into(),
            help: String::new(),
            default,
            range,
            secrecy: Secrecy::Open,
        };
        let number = setting(Value::Integer(5), Some(1..=9));
        assert_eq!(number.read("7"), Some(Value::Integer(7)));
        assert_eq!(number.read("seven"), None);
        assert!(number.accepts(&Value::Integer(9)) && !number.accepts(&Value::Integer(10)));
        assert!(!number.accepts(&Value::String("7".into())));
        assert_eq!(number.expected(), "a whole number from 1 to 9");
        let list = setting(Value::Array(Vec::new()), None);
        let two = Value::Array(vec![Value::String("x".into()), Value::String("y".into())]);
        assert_eq!(list.read(" x, y,"), Some(two));
        assert!(!list.accepts(&Value::Array(vec![Value::Integer(1)])));
        assert_eq!(setting(Value::Boolean(true), None).read("yes"), None);
    }
}
