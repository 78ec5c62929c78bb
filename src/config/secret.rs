//! Values that must not be seen: how they are read from files and how they are shown.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// What stands in place of a hidden value.
const HIDDEN: &str = "***";

/// More than any key or URL takes. A file beyond it is the wrong file.
const MAX_BYTES: u64 = 64 * 1024;

/// Reads a secret from a file, without the line breaks at its end.
///
/// # Errors
/// Those of reading it, and when it is empty, too long to be a secret, or not UTF-8.
pub fn read_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if read as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {MAX_BYTES} bytes")));
    }
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    if text.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty"));
    }
    Ok(text)
}

/// How much of a value is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrecy {
    /// Nothing.
    Open,
    /// All of it.
    Whole,
    /// The password in it and other parameters that give access; in doubt more.
    Url,
}

impl Secrecy {
    /// The value as it may be shown. An empty one stays empty.
    pub fn mask(self, value: &str) -> String {
        match self {
            Self::Open => value.to_owned(),
            _ if value.is_empty() => String::new(),
            Self::Whole => HIDDEN.to_owned(),
            Self::Url => mask_url(value),
        }
    }
}

fn mask_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) else {
        // `memory:` hides nothing; a list of keywords and values may.
        return if url.strip_suffix(':').is_some_and(is_scheme) { url.to_owned() } else { HIDDEN.to_owned() };
    };
    // The last `@`, because a password that was not percent-encoded may hold one, or a `/`.
    let (user, place) = match rest.rsplit_once('@') {
        Some((credentials, place)) => match credentials.split_once(':') {
            Some((user, _password)) => (format!("{user}:{HIDDEN}@"), place),
            None => (format!("{credentials}@"), place),
        },
        None => (String::new(), rest),
    };
    let Some((place, query)) = place.split_once('?') else { return format!("{scheme}://{user}{place}") };
    let query: Vec<String> = query.split('&').map(mask_parameter).collect();
    format!("{scheme}://{user}{place}?{}", query.join("&"))
}

fn mask_parameter(parameter: &str) -> String {
    const TELLING: [&str; 5] = ["pass", "secret", "token", "key", "credential"];
    match parameter.split_once('=') {
        Some((name, _)) if TELLING.iter().any(|word| name.to_ascii_lowercase().contains(word)) => {
            format!("{name}={HIDDEN}")
        }
        _ => parameter.to_owned(),
    }
}

fn is_scheme(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secret_part_of_a_url_is_hidden() {
        for (secret, shown) in [
            ("", ""),
            ("hunter2", "***"),
            ("memory:", "memory:"),
            ("file:///var/lib/headstart", "file:///var/lib/headstart"),
            ("postgres://app@db:5432/app?sslmode=require", "postgres://app@db:5432/app?sslmode=require"),
            ("postgres://app:hunter2@db/app", "postgres://app:***@db/app"),
            ("postgres://app:hun/t@r?2@db/app", "postgres://app:***@db/app"),
            ("postgres://db/app?user=a&password=hunter2", "postgres://db/app?user=a&password=***"),
            (
                "mongodb://u:p@a,b/db?tlsCertificateKeyFilePassword=x&w=1",
                "mongodb://u:***@a,b/db?tlsCertificateKeyFilePassword=***&w=1",
            ),
            ("host=db password=hunter2", "***"),
            ("host=db password=a://b", "***"),
        ] {
            assert_eq!(Secrecy::Url.mask(secret), shown);
        }
        assert_eq!(Secrecy::Whole.mask("hunter2://x"), "***");
        assert_eq!(Secrecy::Open.mask("postgres://u:p@h"), "postgres://u:p@h");
    }
}
