#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use super::*;

fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

#[test]
fn a_socket_is_given_any_part_without_a_write() {
    let bytes = noise(3 * WORTHWHILE);
    let mapped = anonymous(bytes.clone().into());
    assert_eq!(mapped, bytes);
    let part = mapped.slice(1000..1000 + 2 * WORTHWHILE);
    drop(mapped);
    let place = locate(&part).expect("a file");
    assert_eq!(place.offset, 1000);
    let (mut there, here) = UnixStream::pair().unwrap();
    let sent = place.send(&here, WORTHWHILE).unwrap();
    drop(here);
    let mut got = Vec::new();
    there.read_to_end(&mut got).unwrap();
    assert!(sent > 0 && got == part[..sent]);
}

#[test]
fn what_was_unmapped_is_found_no_more() {
    let mapped = anonymous(noise(WORTHWHILE).into());
    let address = mapped.as_ptr() as usize;
    assert!(read().contains_key(&address) && locate(&mapped).is_some());
    // What is around it is not taken for it.
    assert!(locate(&mapped[1..]).is_none(), "too short");
    assert!(locate(&noise(WORTHWHILE)).is_none(), "plain memory");
    drop(mapped);
    assert!(!read().contains_key(&address));
}

#[test]
fn nobody_can_change_what_is_mapped() {
    let file = sealed(&noise(100)).unwrap();
    assert!(file.write_all_at(b"x", 0).is_err() && file.set_len(10).is_err() && (&file).write_all(b"x").is_err());
}

#[test]
fn a_file_is_mapped_before_it_has_grown() {
    let file = tempfile::tempfile().unwrap();
    let mapping = Mapping::of(file.try_clone().unwrap(), 1 << 30).unwrap();
    let bytes = noise(2 * WORTHWHILE);
    file.write_all_at(&bytes, 0).unwrap();
    let slice = mapping.slice(7..bytes.len());
    assert_eq!((&slice[..], locate(&slice).map(|place| place.offset)), (&bytes[7..], Some(7)));
}
