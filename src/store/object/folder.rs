//! A folder of this machine as the bucket.
//!
//! # What survives
//! Objects appear whole or not at all: they are written beside their name and then linked to it. A process that is
//! killed loses nothing that was answered. With `fsync` (the default) nor does a machine that loses power: files and
//! the folders that name them are flushed before a call returns. Without it a power cut can take the last half minute,
//! and leave files that are empty though a later head names them; those are found when they are read.
//!
//! # Who can read it
//! Objects live in the folder `v1`, which only this user can enter (0700); it is made so, and put so when it is not.
//!
//! The file system must know hard links (FAT and some network mounts don't): create-if-absent is one.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use object_store::ObjectStoreExt;
use object_store::local::LocalFileSystem;
use serde::{Deserialize, Serialize};

use crate::store::object::clock::age;
use crate::store::object::{BucketStore, fault, heads};
use crate::store::{Retention, StoreError};
use crate::task;

/// The object that says in which layout the others are.
pub const FORMAT: &str = "format";
const FORMAT_TEXT: &[u8] = b"headstart snapshots 1\n";

/// How a folder is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FolderSettings {
    /// Flushes every object and its folder to the disk before a call returns, so that a power cut takes nothing. Costs
    /// a few disk flushes a pack; without it a power cut may cost dumps anew.
    pub fsync: bool,
}

impl Default for FolderSettings {
    fn default() -> Self {
        Self { fsync: true }
    }
}

impl BucketStore {
    /// A store in this folder, which is created if need be.
    ///
    /// # Errors
    /// When it can't be created, written to, or holds another layout.
    pub async fn folder(root: &Path, settings: &FolderSettings, retention: Retention) -> Result<Self, StoreError> {
        let objects = root.join("v1");
        let made = objects.clone();
        let opened = task::blocking(move || {
            make_private(&made)?;
            // As the crate does: a link that is turned elsewhere later changes nothing.
            let root = made.canonicalize()?;
            Ok((LocalFileSystem::new_with_prefix(&root).map_err(io::Error::from)?, root))
        });
        let (bucket, root) = opened.await.map_err(|error: io::Error| StoreError::unavailable(error))?;
        let bucket = bucket.with_fsync(settings.fsync);
        let format = object_store::path::Path::from(FORMAT);
        let found = match bucket.get(&format).await {
            Ok(object) => object.bytes().await.map_err(fault)?,
            Err(object_store::Error::NotFound { .. }) => {
                heads::create_object(&bucket, &format, FORMAT_TEXT.to_vec()).await?;
                FORMAT_TEXT.into()
            }
            Err(error) => return Err(fault(error)),
        };
        if found != FORMAT_TEXT {
            let fault = format!("it says {:?}", String::from_utf8_lossy(&found));
            return Err(StoreError::Damaged { what: format!("{}/{FORMAT}", objects.display()), fault });
        }
        let folder = Some(Folder { root });
        Ok(Self { folder, ..Self::new(Arc::new(bucket), retention) })
    }
}

fn make_private(folder: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut permissions = std::fs::metadata(folder)?.permissions();
    if permissions.mode() & 0o077 != 0 {
        permissions.set_mode(0o700);
        std::fs::set_permissions(folder, permissions)?;
    }
    Ok(())
}

/// What a folder is besides a bucket.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Where an object is.
    pub fn file(&self, location: &object_store::path::Path) -> PathBuf {
        self.root.join(location.as_ref())
    }

    /// Removes files of writes that a killed process did not finish, if they were not written to for this long: their names
    /// end in `#` and digits, and the bucket hides them.
    pub async fn remove_leftovers(&self, now: SystemTime, older_than: Duration) -> Result<(), StoreError> {
        let root = self.root.clone();
        task::blocking(move || remove_below(&root, now, older_than)).await.map_err(StoreError::unavailable)
    }
}

fn remove_below(folder: &Path, now: SystemTime, older_than: Duration) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_below(&entry.path(), now, older_than)?;
            continue;
        }
        let name = entry.file_name();
        let staged = name
            .to_str()
            .and_then(|name| name.rsplit_once('#'))
            .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
        if !staged {
            continue;
        }
        // Its writer may finish it at this moment; then it is no leftover.
        let removed = match entry.metadata() {
            Ok(metadata) if age(now, metadata.modified()?) > older_than => std::fs::remove_file(entry.path()),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
