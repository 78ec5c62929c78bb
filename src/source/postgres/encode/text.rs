//! Texts and what is written like them: strings, uuids, bytes, and JSON that PostgreSQL wrote.

use super::Malformed;

/// A JSON string. Escapes what PostgreSQL's `escape_json` escapes: quotes, backslashes and control characters.
pub(super) fn string(raw: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    utf8(raw)?;
    out.reserve(raw.len() + 2);
    out.push(b'"');
    let mut rest = raw;
    loop {
        let (clean, special) = rest.split_at(clean_prefix(rest));
        out.extend_from_slice(clean);
        let [byte, after @ ..] = special else { break };
        escape(*byte, out);
        rest = after;
    }
    out.push(b'"');
    Ok(())
}

/// How many bytes at the front need no escape.
fn clean_prefix(text: &[u8]) -> usize {
    let mut clean = 0;
    // Whole chunks first: the compiler turns the loop over a chunk into a few vector instructions.
    for chunk in text.chunks_exact(16) {
        if chunk.iter().fold(false, |found, byte| found | is_special(*byte)) {
            break;
        }
        clean += chunk.len();
    }
    let rest = &text[clean..];
    clean + rest.iter().position(|byte| is_special(*byte)).unwrap_or(rest.len())
}

fn is_special(byte: u8) -> bool {
    byte < b' ' || byte == b'"' || byte == b'\\'
}

fn escape(byte: u8, out: &mut Vec<u8>) {
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        _ => {
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&hex(byte));
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// JSON as PostgreSQL stores or writes it. Line breaks can only stand between its tokens, and would break ours.
pub(super) fn json(raw: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    utf8(raw)?;
    if raw.trim_ascii().is_empty() {
        return Err(Malformed("JSON without a value"));
    }
    let start = out.len();
    out.extend_from_slice(raw);
    for byte in &mut out[start..] {
        if *byte == b'\n' || *byte == b'\r' {
            *byte = b' ';
        }
    }
    Ok(())
}

pub(super) fn uuid(raw: &[u8; 16], out: &mut Vec<u8>) {
    /// Where the digits of each byte stand between quotes and hyphens.
    const PLACES: [usize; 16] = [1, 3, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 29, 31, 33, 35];
    let mut text = *b"\"00000000-0000-0000-0000-000000000000\"";
    for (byte, place) in raw.iter().zip(PLACES) {
        [text[place], text[place + 1]] = hex(*byte);
    }
    out.extend_from_slice(&text);
}

/// `bytea_output` hex: `\x` and the digits, the backslash escaped.
pub(super) fn bytea(raw: &[u8], out: &mut Vec<u8>) {
    out.reserve(raw.len() * 2 + 5);
    out.extend_from_slice(b"\"\\\\x");
    out.extend(raw.iter().flat_map(|byte| hex(*byte)));
    out.push(b'"');
}

/// Two lower-case hexadecimal digits.
pub(super) fn hex(byte: u8) -> [u8; 2] {
    HEX[usize::from(byte)]
}

/// The digits of every byte: one look-up, and uuids are everywhere.
static HEX: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut table = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    table
};

/// PostgreSQL checks what it sends as UTF-8, so this never fails unless a type was taken wrong.
fn utf8(raw: &[u8]) -> Result<(), Malformed> {
    std::str::from_utf8(raw).map_err(|_| Malformed("not UTF-8")).map(drop)
}
