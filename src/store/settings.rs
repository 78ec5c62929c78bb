//! Which store, by its URL, and the settings of all of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use crate::store::{
    BucketStore, CacheSettings, FolderSettings, MemoryStore, MongoSettings, MongoStore, Retention, SnapshotStore,
    StoreError,
};
use crate::task::Tasks;

/// Settings `[store]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSettings {
    /// Where snapshots are kept: `file:///folder` on this machine, `mongodb://…` or `mongodb+srv://…` shared by many
    /// instances, `memory:` until the process ends. May hold a password.
    pub url: String,
    /// Seconds a replaced or deleted snapshot stays readable. Longer than the longest answer, or slow readers break.
    /// Costs the space of the packs replaced meanwhile.
    pub grace_s: u64,
    /// Seconds that packs may wait to be published; a dump that takes longer can't be. Costs the space of the packs of
    /// failed dumps for up to twice as long.
    pub unpublished_s: u64,
    /// Milliseconds a client waits for the store to say what is published; a slower store counts as down, and clients are
    /// served from the cache and the database until it answers again.
    pub patience_ms: u64,
    /// Settings `[store.folder]`.
    pub folder: FolderSettings,
    /// Settings `[store.mongo]`.
    pub mongo: MongoSettings,
    /// Settings `[store.cache]`.
    pub cache: CacheSettings,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            url: "file:///var/lib/headstart".to_owned(),
            grace_s: 2 * 60 * 60,
            unpublished_s: 6 * 60 * 60,
            patience_ms: 2_000,
            folder: FolderSettings::default(),
            mongo: MongoSettings::default(),
            cache: CacheSettings::default(),
        }
    }
}

impl StoreSettings {
    /// For how long a client waits.
    pub fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_ms)
    }

    /// The two times as the stores take them.
    pub fn retention(&self) -> Retention {
        Retention { grace: Duration::from_secs(self.grace_s), unpublished: Duration::from_secs(self.unpublished_s) }
    }
}

/// Opens the store this URL names: `file:///folder`, `mongodb://…`, `mongodb+srv://…` or `memory:`.
///
/// A folder is created and written to. A MongoDB need not be reachable yet: calls fail until it is.
///
/// # Errors
/// [`OpenError`]. No text of the URL is in it, since that may hold a password.
pub async fn open(url: &str, settings: &StoreSettings, tasks: &Tasks) -> Result<Arc<dyn SnapshotStore>, OpenError> {
    let retention = settings.retention();
    match url.split_once(':') {
        Some(("memory", "")) => Ok(Arc::new(MemoryStore::new(retention))),
        Some(("file", rest)) => {
            let folder = folder_path(rest).ok_or(OpenError::Folder)?;
            Ok(Arc::new(BucketStore::folder(&folder, &settings.folder, retention).await?))
        }
        Some(("mongodb" | "mongodb+srv", _)) => {
            Ok(Arc::new(MongoStore::open(url, &settings.mongo, retention, tasks.clone()).await?))
        }
        _ => Err(OpenError::Scheme),
    }
}

/// The path of what follows `file:`. Only paths of this machine, from the root on.
fn folder_path(rest: &str) -> Option<PathBuf> {
    let path = rest.strip_prefix("//")?;
    let path = path.strip_prefix("localhost").unwrap_or(path);
    let path = percent_decode_str(path).decode_utf8().ok()?;
    (path.len() > 1 && path.starts_with('/') && !path.contains('\0')).then(|| PathBuf::from(&*path))
}

/// Why there is no store at this URL.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No store has such URLs.
    #[error("the store URL must begin with file:///, mongodb:// or mongodb+srv://, or be memory:")]
    Scheme,
    /// A `file:` URL without a usable path.
    #[error("a file: store URL names a folder from the root on, as in file:///var/lib/headstart")]
    Folder,
    /// The MongoDB URL is malformed or asks for what the driver can't do.
    #[error("the MongoDB store URL is not usable")]
    Mongo(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The folder can't be used.
    #[error("the store can't be opened")]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_paths_from_the_root() {
        let path = |url| folder_path(url).map(|path| path.display().to_string());
        assert_eq!(path("///var/lib/head%20start").as_deref(), Some("/var/lib/head start"));
        assert_eq!(path("//localhost/a").as_deref(), Some("/a"));
        for bad in ["", "/a", "//host/a", "///", "//", "///a%00", "///%ff", "relative"] {
            assert_eq!(path(bad), None, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn other_urls_are_refused() {
        for url in ["", "memory", "memory:x", "s3://bucket", "/var/lib", "postgres://x", "file:x"] {
            let refused = open(url, &StoreSettings::default(), &Tasks::new()).await;
            assert!(matches!(refused, Err(OpenError::Scheme | OpenError::Folder)), "{url:?}");
        }
        assert!(open("memory:", &StoreSettings::default(), &Tasks::new()).await.is_ok());
    }
}
