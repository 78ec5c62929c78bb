//! What the change log says happened to an object.

use std::fmt;

/// The letter of a sync action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Letter {
    /// A row appeared.
    Insert,
    /// A row changed, or who sees it did.
    Update,
    /// A row is gone.
    Delete,
    /// A user's memberships changed.
    Groups,
}

impl Letter {
    /// As it stands in the log and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "I",
            Self::Update => "U",
            Self::Delete => "D",
            Self::Groups => "G",
        }
    }

    /// Reads a letter of the log.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Insert, Self::Update, Self::Delete, Self::Groups].into_iter().find(|letter| letter.as_str() == text)
    }
}

impl fmt::Display for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
