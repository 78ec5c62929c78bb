//! Bytes that lie in a file as well as in memory, so that a socket can be given them without a copy.
//!
//! An answer of 40 MB that is written to a socket is copied into the kernel, which takes longer than all the rest of it;
//! `sendfile` of the same bytes hands over references to their pages. HTTP is spoken by hyper, which knows slices of
//! memory and no files. So what answers are made of (packs in the cache, frames in a spool) is mapped, and whoever
//! writes slices to a socket asks [`locate`] which file a slice lies in. What lies in none is written as ever: where
//! there is no file, or on a system without these calls, answers are the same, only dearer.
//!
//! Memory: a mapping costs address space. The pages are those of the file; those of an anonymous one count as the
//! process's shared memory. Each file costs a descriptor.
//!
//! # Why the `unsafe` below is sound
//! A mapping of a file is as sound as the promise that nobody changes what is read through it, or cuts the file off.
//! [`anonymous`] seals its file before it maps it: the kernel refuses to write to it, and to make it shorter, ever after
//! (`memfd_create(2)`, `F_SEAL_WRITE`, `F_SEAL_SHRINK`). [`Mapping::of`] is given a file without a name that its owner
//! only appends to, and slices of it are made of what was written before.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};

/// Shorter slices are written: a copy of a few pages costs less than the calls that save it.
pub const WORTHWHILE: usize = 32 << 10;

/// How many anonymous files there may be at once, and what share of the files that the process may open. Further bytes stay
/// in plain memory, so that descriptors are left for connections.
const MOST_FILES: usize = 4096;
const MOST_SHARE: usize = 2;

/// What is mapped now, by where it begins. A property of the process's address space, and so of the process.
static REGIONS: RwLock<BTreeMap<usize, Region>> = RwLock::new(BTreeMap::new());

/// Anonymous files that are open now.
static FILES: AtomicUsize = AtomicUsize::new(0);

/// How many there may be, once that is known.
static LIMIT: OnceLock<usize> = OnceLock::new();

/// Lets the process have as many files open as the system allows: every connection and most packs are one, and many
/// systems begin with 1024. To be called before the first file is mapped.
///
/// # Errors
/// The system's; then there are as many as before.
pub fn allow_many_files() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// How many anonymous files there may be: a share of what the process may open now.
fn limit() -> usize {
    let allowed = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let share = allowed.and_then(|allowed| usize::try_from(allowed).ok()).map(|allowed| allowed / MOST_SHARE);
    share.map_or(MOST_FILES, |share| share.min(MOST_FILES))
}

struct Region {
    len: usize,
    file: Arc<File>,
}

/// A file in memory. Unmapped when the last slice of it is dropped.
#[derive(Debug)]
pub struct Mapping {
    map: Mmap,
    _file: Arc<File>,
    /// Counts the file while it is there, if it is anonymous.
    _counted: Option<Counted>,
}

impl Mapping {
    /// The first `len` bytes of a file, those that it does not have yet included. Nothing is read.
    ///
    /// The file must have no name and its owner must only ever append to it: that is what makes the slices sound.
    ///
    /// # Errors
    /// What the system says, also when there is not so much address space.
    pub fn of(file: File, len: usize) -> io::Result<Arc<Self>> {
        Self::new(file, len, None)
    }

    fn new(file: File, len: usize, counted: Option<Counted>) -> io::Result<Arc<Self>> {
        let mut options = MmapOptions::new();
        options.len(len);
        #[expect(unsafe_code, reason = "the module's documentation says why it is sound, and what it saves")]
        // SAFETY: nobody writes to what is read through it, and the file does not become shorter; see above. Private,
        // because kernels before 6.7 take a shared mapping of a sealed file for one that could be written to.
        let map = unsafe { options.map_copy_read_only(&file) }?;
        let file = Arc::new(file);
        write().insert(map.as_ptr() as usize, Region { len, file: file.clone() });
        Ok(Arc::new(Self { map, _file: file, _counted: counted }))
    }

    /// A part of it, which must have been written. It keeps the mapping.
    ///
    /// # Panics
    /// When the range reaches outside the mapping.
    pub fn slice(self: &Arc<Self>, range: Range<usize>) -> Bytes {
        assert!(range.start <= range.end && range.end <= self.map.len(), "a slice within the mapping");
        Bytes::from_owner(Slice { mapping: self.clone(), range })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Before the address can be somebody else's.
        write().remove(&(self.map.as_ptr() as usize));
    }
}

struct Slice {
    mapping: Arc<Mapping>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        &self.mapping.map[self.range.clone()]
    }
}

/// The same bytes, in an anonymous file that is mapped, if that is worthwhile and can be had. Copies them.
pub fn anonymous(bytes: Bytes) -> Bytes {
    if bytes.len() < WORTHWHILE {
        return bytes;
    }
    let Some(counted) = Counted::new() else { return bytes };
    let mapping = sealed(&bytes).and_then(|file| Mapping::new(file, bytes.len(), Some(counted)));
    match mapping {
        Ok(mapping) => mapping.slice(0..bytes.len()),
        Err(error) => {
            tracing::debug!(%error, "bytes stay in plain memory");
            bytes
        }
    }
}

/// An anonymous file that holds these bytes and never changes.
#[cfg(target_os = "linux")]
fn sealed(bytes: &[u8]) -> io::Result<File> {
    use std::io::Write;

    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

    let mut file = File::from(memfd_create("headstart", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    Ok(file)
}

#[cfg(not(target_os = "linux"))]
fn sealed(_: &[u8]) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Where in a file a slice lies.
pub struct Place {
    file: Arc<File>,
    offset: u64,
    len: usize,
}

/// The file that a slice lies in, if it lies in one and is long enough for that to be of use.
pub fn locate(slice: &[u8]) -> Option<Place> {
    if slice.len() < WORTHWHILE {
        return None;
    }
    let start = slice.as_ptr() as usize;
    let regions = read();
    let (begin, region) = regions.range(..=start).next_back()?;
    let offset = start - begin;
    let within = offset.checked_add(slice.len())? <= region.len;
    within.then(|| Place { file: region.file.clone(), offset: offset as u64, len: slice.len() })
}

impl Place {
    /// Gives a socket as much of the slice as it takes, at most `most` bytes, and says how much that was.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` when a non-blocking socket takes nothing now.
    #[cfg(target_os = "linux")]
    pub fn send(&self, socket: impl std::os::fd::AsFd, most: usize) -> io::Result<usize> {
        let mut offset = self.offset;
        Ok(rustix::fs::sendfile(socket, &*self.file, Some(&mut offset), self.len.min(most))?)
    }

    /// Gives a socket nothing: this system has no such call.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(target_os = "linux"))]
    pub fn send(&self, _: impl std::os::fd::AsFd, _: usize) -> io::Result<usize> {
        let _ = (&self.file, self.offset, self.len);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Writes to a socket what comes right before a slice that will be [sent](Place::send) from its file, and says how much
/// of it: the kernel waits for that and puts both into one packet.
///
/// # Errors
/// The kernel's; `WouldBlock` when a non-blocking socket takes nothing now.
#[cfg(target_os = "linux")]
pub fn send_before(socket: impl std::os::fd::AsFd, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
    use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

    let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
    Ok(sendmsg(socket, bufs, &mut SendAncillaryBuffer::default(), flags)?)
}

/// Writes nothing: nothing is sent from files on this system.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn send_before(_: impl std::os::fd::AsFd, _: &[io::IoSlice<'_>]) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// One of the anonymous files.
#[derive(Debug)]
struct Counted;

impl Counted {
    fn new() -> Option<Self> {
        let limit = *LIMIT.get_or_init(limit);
        let fits = |files: usize| (files < limit).then_some(files + 1);
        FILES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok().map(|_| Self)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        FILES.fetch_sub(1, Ordering::Relaxed);
    }
}

fn read() -> RwLockReadGuard<'static, BTreeMap<usize, Region>> {
    REGIONS.read().unwrap_or_else(PoisonError::into_inner)
}

fn write() -> RwLockWriteGuard<'static, BTreeMap<usize, Region>> {
    REGIONS.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
