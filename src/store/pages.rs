//! Memory for packs, from the system and back to it.
//!
//! An allocator keeps what is freed for the next who asks, for a while at least; packs of 4 MiB that come and go all day would
//! make it keep more than what is in use. Pages of their own are gone with the last slice of the pack. They are asked
//! for as huge ones where the system has those for who asks (madvise(2), `MADV_HUGEPAGE`): a pack is then two faults, not a
//! thousand. A pack that is shorter than one of them gets its small ones all at once (`MADV_POPULATE_WRITE`).

use std::io;

use bytes::Bytes;
use memmap2::MmapMut;

/// Shorter packs are left to the allocator: a page holds more than they need, and a process may have 65,530 mappings
/// (proc_sys_vm(5), `max_map_count`).
const SMALL: usize = 128 << 10;

/// What a huge page takes.
#[cfg(target_os = "linux")]
const HUGE: usize = 2 << 20;

/// `len` bytes that are filled in place. Blocks for as long as that takes.
///
/// # Errors
/// Those of `fill`.
pub fn filled(len: usize, fill: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<Bytes> {
    let pages = if len < SMALL { None } else { MmapMut::map_anon(len).ok() };
    let Some(mut pages) = pages else {
        let mut bytes = vec![0; len];
        fill(&mut bytes)?;
        return Ok(bytes.into());
    };
    #[cfg(target_os = "linux")]
    {
        let advice = if len < HUGE { memmap2::Advice::PopulateWrite } else { memmap2::Advice::HugePage };
        if let Err(error) = pages.advise(advice) {
            tracing::trace!(%error, "a pack takes a fault for each small page");
        }
    }
    fill(&mut pages)?;
    Ok(Bytes::from_owner(pages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_in_stays_and_what_fails_is_an_error() {
        let sevens = |bytes: &mut [u8]| {
            bytes.fill(7);
            Ok(())
        };
        let filled_in = |len| filled(len, sevens).unwrap();
        assert_eq!((filled_in(5), filled_in(0)), (Bytes::from_static(&[7; 5]), Bytes::new()));
        assert_eq!(filled_in(5 << 20).slice(3..).len(), (5 << 20) - 3);
        assert!(filled(5, |_| Err(io::ErrorKind::UnexpectedEof.into())).is_err());
    }
}
