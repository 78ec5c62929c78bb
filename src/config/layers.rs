//! The layers: embedded defaults, then a file, then the environment. Later wins, setting by setting, and every value
//! remembers where it came from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::config::leaf::{Leaf, leaves, line_number};
use crate::config::secret;
use crate::config::setting::{Setting, settings};
use crate::config::{ConfigError, ConfigErrors};

/// The file that is read when none is named, if it exists.
pub const DEFAULT_FILE: &str = "config/headstart.toml";

/// Names that begin like settings and are none: what the command line reads itself.
const OTHER_NAMES: [&str; 1] = ["HEADSTART_CONFIG"];
const PREFIX: &str = "HEADSTART_";
const TEST_PREFIX: &str = "HEADSTART_TEST_";

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The embedded file.
    Default,
    /// A file, and the line in it.
    File(PathBuf, usize),
    /// The environment, by this name.
    Environment(String),
    /// A file with this one value.
    SecretFile(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::SecretFile(path) => write!(f, "secret file {}", path.display()),
        }
    }
}

/// A setting with the value in force.
#[derive(Debug, Clone)]
pub struct InForce {
    /// The setting.
    pub setting: Setting,
    /// Its value, unhidden.
    pub value: Value,
    /// Who said so.
    pub origin: Origin,
}

impl InForce {
    /// Whether it is another value than the default.
    pub fn is_changed(&self) -> bool {
        self.value != self.setting.default
    }

    /// The value as it may be shown, in TOML's notation.
    pub fn shown(&self) -> Value {
        match &self.value {
            Value::String(text) => Value::String(self.setting.secrecy.mask(text)),
            other => other.clone(),
        }
    }
}

/// All settings in force.
#[derive(Debug)]
pub struct Layers {
    in_force: Vec<InForce>,
    warnings: Vec<String>,
}

impl Layers {
    /// The embedded defaults alone.
    pub fn defaults() -> Self {
        let in_force = settings()
            .into_iter()
            .map(|setting| InForce { value: setting.default.clone(), setting, origin: Origin::Default })
            .collect();
        Self { in_force, warnings: Vec::new() }
    }

    /// Reads all layers. `file` was named by someone and must exist; without one [`DEFAULT_FILE`] is read if it is
    /// there, and its absence is no fault.
    ///
    /// # Errors
    /// Every fault of the file and of the environment, all at once.
    pub fn read(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigErrors> {
        let mut layers = Self::defaults();
        let mut faults = Vec::new();
        let default_file = Path::new(DEFAULT_FILE);
        match file {
            Some(path) => layers.add_file(path, &mut faults),
            None if default_file.is_file() => layers.add_file(default_file, &mut faults),
            None => {}
        }
        layers.add_environment(environment, &mut faults);
        if faults.is_empty() { Ok(layers) } else { Err(ConfigErrors(faults)) }
    }

    /// Every setting, in the order of the embedded file.
    pub fn in_force(&self) -> &[InForce] {
        &self.in_force
    }

    /// What is odd and no fault: names in the environment that no setting has.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The settings as one TOML table, taking from each entry what `value` picks. A text that is empty by default and
    /// still is stands for "not set" and is left out, so that a room sees its own word for that, such as `None`.
    pub(super) fn table<'a>(&'a self, value: impl Fn(&'a InForce) -> &'a Value) -> Table {
        let is_set = |text: &Value| text.as_str() != Some("");
        let mut root = Table::new();
        for entry in self.in_force.iter().filter(|entry| is_set(&entry.setting.default) || is_set(value(entry))) {
            let mut sections: Vec<&str> = entry.setting.path.split('.').collect();
            let key = sections.pop().expect("a split gives one part at least");
            let table = sections.into_iter().fold(&mut root, |table, section| {
                let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
                inner.as_table_mut().expect("TOML has no key that is a table and a value")
            });
            table.insert(key.to_owned(), value(entry).clone());
        }
        root
    }

    fn add_file(&mut self, path: &Path, faults: &mut Vec<ConfigError>) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(cause) => return faults.push(ConfigError::File { path: path.into(), cause }),
        };
        match leaves(&text) {
            Ok(leaves) => self.add_leaves(path, &text, leaves, faults),
            Err(cause) => faults.push(ConfigError::Syntax { path: path.into(), cause: Box::new(cause) }),
        }
    }

    fn add_leaves(&mut self, path: &Path, text: &str, leaves: Vec<Leaf>, faults: &mut Vec<ConfigError>) {
        let mut given: BTreeMap<usize, String> = BTreeMap::new();
        for leaf in leaves {
            let origin = Origin::File(path.into(), line_number(text, leaf.offset));
            let found = self.position(|setting| setting.path == leaf.path);
            let found = found.map(|index| (index, false)).or_else(|| {
                let index = self.position(|setting| setting.is_secret() && setting.file_path() == leaf.path)?;
                Some((index, true))
            });
            let Some((index, is_file)) = found else {
                let known = self.in_force.iter().map(|entry| entry.setting.path.as_str());
                let near = nearest(&leaf.path, known);
                faults.push(ConfigError::Unknown { key: leaf.path, origin, near });
                continue;
            };
            if let Some(other) = given.insert(index, leaf.path.clone()) {
                faults.push(ConfigError::Twice { one: other, other: leaf.path, origin });
            } else if !is_file {
                self.set(index, Some(leaf.value), origin, faults);
            } else if let Value::String(secret_path) = &leaf.value {
                self.set_from_file(index, Path::new(secret_path), origin, faults);
            } else {
                faults.push(ConfigError::Value { key: leaf.path, origin, fault: "it takes the name of a file".into() });
            }
        }
    }

    fn add_environment(
        &mut self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        faults: &mut Vec<ConfigError>,
    ) {
        let mut names: BTreeMap<String, OsString> = environment
            .into_iter()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(PREFIX) && !name.starts_with(TEST_PREFIX))
            .filter(|(name, _)| !OTHER_NAMES.contains(&name.as_str()))
            .collect();
        for index in 0..self.in_force.len() {
            let setting = &self.in_force[index].setting;
            let (name, file_name) = (setting.env.clone(), setting.file_env());
            // An empty name of a file is none: that is what a compose file passes on for a variable that is not set.
            let file = match setting.is_secret() {
                true => names.remove(&file_name).filter(|path| !path.is_empty()),
                false => None,
            };
            let origin = Origin::Environment(name.clone());
            match (names.remove(&name), file) {
                (None, None) => {}
                (Some(_), Some(_)) => faults.push(ConfigError::Twice { one: name, other: file_name, origin }),
                (Some(value), None) => {
                    let value = value.to_str().and_then(|text| self.in_force[index].setting.read(text));
                    self.set(index, value, origin, faults);
                }
                (None, Some(path)) => {
                    self.set_from_file(index, Path::new(&path), Origin::Environment(file_name), faults);
                }
            }
        }
        for name in names.into_keys() {
            let known = self.in_force.iter().map(|entry| entry.setting.env.as_str());
            let hint = nearest(&name, known).map(|near| format!("; {near} is one")).unwrap_or_default();
            self.warnings.push(format!("{name} stands in the environment and is no setting{hint}"));
        }
    }

    /// Takes a value over, or says what is wrong with it. `None`: it could not even be read.
    fn set(&mut self, index: usize, value: Option<Value>, origin: Origin, faults: &mut Vec<ConfigError>) {
        let entry = &mut self.in_force[index];
        match value.filter(|value| entry.setting.accepts(value)) {
            Some(value) => {
                entry.value = value;
                entry.origin = origin;
            }
            None => faults.push(ConfigError::Value {
                key: entry.setting.path.clone(),
                origin,
                fault: format!("it takes {}", entry.setting.expected()),
            }),
        }
    }

    fn set_from_file(&mut self, index: usize, path: &Path, named_by: Origin, faults: &mut Vec<ConfigError>) {
        if path.as_os_str().is_empty() {
            return;
        }
        match secret::read_file(path) {
            Ok(text) => self.set(index, Some(Value::String(text)), Origin::SecretFile(path.into()), faults),
            Err(cause) => {
                let key = self.in_force[index].setting.path.clone();
                faults.push(ConfigError::SecretFile { key, path: path.into(), named_by, cause });
            }
        }
    }

    fn position(&self, is_it: impl Fn(&Setting) -> bool) -> Option<usize> {
        self.in_force.iter().position(|entry| is_it(&entry.setting))
    }
}

/// The known name that a wrong one was most likely meant to be.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let scored = known.map(|known| (strsim::normalized_damerau_levenshtein(name, known), known));
    let (score, near) = scored.max_by(|(one, _), (other, _)| one.total_cmp(other))?;
    (score > 0.6).then(|| near.to_owned())
}
