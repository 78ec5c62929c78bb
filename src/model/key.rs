//! Keys from outside, brought to the form PostgreSQL prints them in.
//!
//! Tokens and requests name orgs and rows by text. Two texts that PostgreSQL reads as the same value must become the
//! same key before anything is shared between callers, and one that it can't read must be found here, not by a
//! statement that others wait for.

/// The canonical text of a value of this type (as `format_type` names it), or `None` when it can't be one. Types that
/// are not listed can't be keys.
pub fn canonical(sql_type: &str, text: &str) -> Option<String> {
    match sql_type {
        "uuid" => uuid(text),
        "smallint" => integer(text, i16::MIN.into(), i16::MAX.into()),
        "integer" => integer(text, i32::MIN.into(), i32::MAX.into()),
        "bigint" => integer(text, i64::MIN, i64::MAX),
        "text" | "character varying" | "name" => plain(text),
        _ if sql_type.starts_with("character varying(") => plain(text),
        _ => None,
    }
}

/// The canonical text of a value that a column of this type is asked by: an array by one of its elements. `None` when it
/// can't be one. Values of types that are not listed in [`canonical`] are known by the very text that PostgreSQL prints.
pub fn asked(sql_type: &str, text: &str) -> Option<String> {
    let scalar = sql_type.strip_suffix("[]").unwrap_or(sql_type);
    let listed = matches!(scalar, "uuid" | "smallint" | "integer" | "bigint");
    if listed { canonical(scalar, text) } else { plain(text) }
}

/// Any text but one with a NUL, which PostgreSQL can't hold.
fn plain(text: &str) -> Option<String> {
    (!text.contains('\0')).then(|| text.to_owned())
}

fn integer(text: &str, min: i64, max: i64) -> Option<String> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: i64 = text.parse().ok()?;
    (min..=max).contains(&number).then(|| number.to_string())
}

/// Accepts what PostgreSQL's `uuid_in` does: 32 hexadecimal digits of either case, a hyphen after any group of four,
/// braces around the whole.
fn uuid(text: &str) -> Option<String> {
    let body = match text.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}')?,
        None => text,
    };
    let mut canonical = String::with_capacity(36);
    let mut digits = 0;
    let mut hyphen_may_follow = false;
    for byte in body.bytes() {
        match byte {
            b'-' if hyphen_may_follow => hyphen_may_follow = false,
            byte if byte.is_ascii_hexdigit() && digits < 32 => {
                if matches!(digits, 8 | 12 | 16 | 20) {
                    canonical.push('-');
                }
                canonical.push(byte.to_ascii_lowercase().into());
                digits += 1;
                hyphen_may_follow = digits % 4 == 0 && digits < 32;
            }
            _ => return None,
        }
    }
    (digits == 32).then_some(canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_have_equal_texts() {
        let uuid = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
        for text in [
            uuid,
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            "{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
        ] {
            assert_eq!(canonical("uuid", text).as_deref(), Some(uuid), "{text}");
        }
        assert_eq!(canonical("bigint", "007").as_deref(), Some("7"));
        assert_eq!(canonical("integer", "-0").as_deref(), Some("0"));
        assert_eq!(canonical("text", "A b").as_deref(), Some("A b"));
        assert_eq!(asked("integer[]", "+07").as_deref(), Some("7"));
        assert_eq!(asked("character varying(9)[]", "007").as_deref(), Some("007"));
        assert_eq!(asked("date", "2024-02-29").as_deref(), Some("2024-02-29"));
    }

    #[test]
    fn what_postgresql_can_not_read_is_refused() {
        for text in ["", "not-a-uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1", "a0eebc99--9c0b4ef8bb6d6bb9bd380a11"] {
            assert_eq!(canonical("uuid", text), None, "{text}");
        }
        assert_eq!(canonical("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11-"), None);
        assert_eq!(canonical("uuid", "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"), None);
        for text in ["", "-", "1.0", "99999999999999999999", "32768", " 1"] {
            assert_eq!(canonical("smallint", text), None, "{text}");
        }
        assert_eq!(canonical("text", "a\0b"), None);
        assert_eq!(canonical("citext", "a"), None);
        assert_eq!(asked("integer[]", "1.0"), None);
        assert_eq!(asked("date", "a\0b"), None);
    }
}
