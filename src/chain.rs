//! An error with its causes on one line, for logs. What callers are told stands in `http::error`.

use std::error::Error;
use std::fmt;

/// Prints an error and, behind colons, what caused it.
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            // Transparent wrappers repeat the words of what they wrap.
            if text != said {
                write!(f, ": {text}")?;
                said = text;
            }
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the scan failed")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_follow() {
        let error = Outer(std::io::Error::other("no space left"));
        assert_eq!(Chain(&error).to_string(), "the scan failed: no space left");
    }
}
