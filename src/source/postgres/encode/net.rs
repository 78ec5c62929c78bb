//! Network addresses. IPv6 follows PostgreSQL's `inet_net_ntop`, whose short forms differ from the standard library's.

use std::io::Write as _;

use super::text::hex;
use super::{Malformed, integer};

const IPV4: u8 = 2;
const IPV6: u8 = 3;

/// `inet_send`: family, bits of the netmask, whether it is a cidr, length, address.
pub(super) fn inet(raw: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let (family, bits, is_cidr, address) = match raw {
        [family, bits, is_cidr @ (0 | 1), length, address @ ..] if address.len() == usize::from(*length) => {
            (*family, *bits, *is_cidr == 1, address)
        }
        _ => return Err(Malformed("not an address")),
    };
    out.push(b'"');
    let all = match (family, address.len()) {
        (IPV4, 4) => {
            dotted(address, out);
            32
        }
        (IPV6, 16) => {
            ipv6(address, out);
            128
        }
        _ => return Err(Malformed("not an address of IPv4 or IPv6")),
    };
    if bits > all {
        return Err(Malformed("a netmask longer than the address"));
    }
    if is_cidr || bits < all {
        out.push(b'/');
        integer(bits, out);
    }
    out.push(b'"');
    Ok(())
}

fn dotted(octets: &[u8], out: &mut Vec<u8>) {
    for (index, octet) in octets.iter().enumerate() {
        if index > 0 {
            out.push(b'.');
        }
        integer(*octet, out);
    }
}

fn ipv6(address: &[u8], out: &mut Vec<u8>) {
    let mut words = [0_u16; 8];
    for (word, bytes) in words.iter_mut().zip(address.chunks_exact(2)) {
        *word = u16::from_be_bytes([bytes[0], bytes[1]]);
    }
    let (zeros, run) = longest_zeros(&words);
    let end = zeros + run;
    for (index, word) in words.iter().enumerate() {
        if run > 0 && (zeros..end).contains(&index) {
            if index == zeros {
                out.push(b':');
            }
            continue;
        }
        if index > 0 {
            out.push(b':');
        }
        if index == 6 && zeros == 0 && (run == 6 || (run == 5 && words[5] == 0xffff)) {
            return dotted(&address[12..], out);
        }
        write!(out, "{word:x}").expect("writing to memory does not fail");
    }
    if run > 0 && end == words.len() {
        out.push(b':');
    }
}

/// Where the first of the longest runs of at least two zeros begins, and how long it is; 0 if there is none.
fn longest_zeros(words: &[u16; 8]) -> (usize, usize) {
    let (mut best, mut run) = ((0, 0), 0);
    for (index, word) in words.iter().enumerate() {
        run = if *word == 0 { run + 1 } else { 0 };
        if run > best.1 {
            best = (index + 1 - run, run);
        }
    }
    if best.1 < 2 { (0, 0) } else { best }
}

pub(super) fn macaddr(raw: &[u8; 6], out: &mut Vec<u8>) {
    out.push(b'"');
    for (index, byte) in raw.iter().enumerate() {
        if index > 0 {
            out.push(b':');
        }
        out.extend_from_slice(&hex(*byte));
    }
    out.push(b'"');
}
