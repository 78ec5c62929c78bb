//! Who a caller is, as a verified token says it.
//!
//! Floor 3. Clients bring a JSON Web Token (RFC 7519) that the application's own login has signed. This room checks
//! the signature and the claims that every token has, and maps the rest to [`Claims`]: an org, a user and, if the token
//! lists them, the groups. The time is an argument.
//!
//! Keys come from the settings, as secrets (HS256) or as PEM (RS256, ES256, `EdDSA`), or from the issuer's URL. The last
//! is the room's only I/O: `published` keeps the set, `fetch` gets it.
//!
//! Three rules keep it safe:
//! - The algorithm belongs to the key. A token's header can only disagree with it, never choose; keys and URLs that it
//!   brings along (`jwk`, `jku`, `x5c`, `x5u`) are not looked at.
//! - What is not understood is refused: an unknown critical header, a claim that stands twice, a group without a kind.
//! - A secret is never shorter than the digest it makes (RFC 7518, section 3.2), and never printed.

mod fetch;
mod jwk;
mod key;
pub mod keys;
mod pem;
mod published;
#[cfg(test)]
mod samples;
pub mod token;

pub use fetch::{FetchError, UrlFault};
pub use jwk::SetError;
pub use key::KeyFault;
pub use keys::{AuthSettings, KeyError, Keys, Secret};
pub use pem::PemError;
pub use token::{Claims, TokenError};
