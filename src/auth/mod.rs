//! Who a caller is, as a verified token says it.
//!
//! Floor 3. Clients bring a JSON Web Token (RFC 7519) that the application's own login has signed. This room checks
//! the signature and the claims that every token has, and maps the rest to [`Claims`]: an org, a user and, if the token
//! lists them, the groups. It does no I/O; the time is an argument.
//!
//! Three rules keep it safe:
//! - The algorithm belongs to the key. A token's header can only disagree with it, never choose.
//! - What is not understood is refused: an unknown critical header, a claim that stands twice, a group without a kind.
//! - A secret is never shorter than the digest it makes (RFC 7518, section 3.2), and never printed.

pub mod keys;
pub mod token;

pub use keys::{AuthSettings, KeyError, Keys, Secret};
pub use token::{Claims, TokenError};
