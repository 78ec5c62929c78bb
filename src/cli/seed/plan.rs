//! How much of everything there is at each scale.

use std::fmt;

/// How big the workspace becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scale {
    /// A few hundred rows, made in a moment: for tests.
    Small,
    /// About 20,000 rows.
    Medium,
    /// About 440,000 rows, 240 MB as NDJSON, in the first organization; made in a minute or two.
    Large,
    /// About a million rows, 550 MB as NDJSON, in the first organization; made in some minutes.
    Million,
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Large => "large",
            Self::Million => "million",
        })
    }
}

/// The size of one organization. What is not named here follows from it.
pub(super) struct Plan {
    pub teams: i64,
    pub users: i64,
    pub projects: i64,
    pub issues: i64,
}

impl Plan {
    /// Comments.
    pub(super) fn comments(&self) -> i64 {
        self.issues * 2
    }
}

impl Scale {
    /// The organizations, the big one first.
    pub(super) fn plans(self) -> Vec<Plan> {
        let (big, others) = match self {
            Self::Small => (Plan { teams: 4, users: 12, projects: 6, issues: 50 }, 1),
            Self::Medium => (Plan { teams: 60, users: 120, projects: 90, issues: 2_450 }, 4),
            Self::Large => (Plan { teams: 60, users: 400, projects: 500, issues: 75_000 }, 5),
            Self::Million => (Plan { teams: 60, users: 400, projects: 500, issues: 172_000 }, 5),
        };
        let other = || Plan { teams: 3, users: 8, projects: 4, issues: (big.issues / 40).clamp(12, 120) };
        let others: Vec<Plan> = (0..others).map(|_| other()).collect();
        std::iter::once(big).chain(others).collect()
    }
}
