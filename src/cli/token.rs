//! `headstart token`: a token for development, signed with the configured secret.

use std::io::Write;
use std::time::{Duration, SystemTime};

use clap::Args;

use crate::auth::Claims;
use crate::cli::CliError;
use crate::config::Config;
use crate::model::SyncGroup;

/// The longest life of a token that this command makes.
const MAX_DAYS: u64 = 366;

/// Arguments of `headstart token`.
#[derive(Args)]
pub struct TokenArgs {
    /// The org
    #[arg(long)]
    org: String,
    /// The user
    #[arg(long)]
    user: String,
    /// Exactly these groups, as kind:id,kind:id; empty for none. Left out: the org's, the user's and the memberships
    #[arg(long, value_parser = parse_groups)]
    groups: Option<Groups>,
    /// How long it is valid: a number and s, m, h or d
    #[arg(long, default_value = "1h", value_parser = parse_ttl)]
    ttl: Duration,
}

/// A list of groups; a type of its own, because clap reads a `Vec` as "may be given many times".
#[derive(Clone)]
struct Groups(Vec<SyncGroup>);

/// Prints a token and a line break.
pub fn run(args: TokenArgs, config: &Config) -> Result<(), CliError> {
    let claims = Claims { org: args.org, user: args.user, groups: args.groups.map(|groups| groups.0) };
    let token = config.auth.mint(&claims, SystemTime::now(), args.ttl)?;
    writeln!(std::io::stdout().lock(), "{token}")?;
    Ok(())
}

fn parse_groups(text: &str) -> Result<Groups, String> {
    let names = text.split(',').map(str::trim).filter(|_| !text.is_empty());
    let group = |name| SyncGroup::parse(name).ok_or_else(|| format!("`{name}` is no group: write kind:id"));
    names.map(group).collect::<Result<_, _>>().map(Groups)
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 60 * 60,
        Some('d') => 24 * 60 * 60,
        _ => return Err("write a number and s, m, h or d, as in 90m".into()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| "the part before the unit is no whole number")?;
    let ttl = Duration::from_secs(count.saturating_mul(unit));
    let longest = Duration::from_secs(MAX_DAYS * 24 * 60 * 60);
    if ttl > longest { Err(format!("at most {MAX_DAYS}d")) } else { Ok(ttl) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_have_a_unit_and_an_end() {
        let seconds = |text| parse_ttl(text).map(|ttl| ttl.as_secs()).ok();
        assert_eq!(
            [seconds("90s"), seconds("2m"), seconds("1h"), seconds("366d")],
            [90, 120, 3600, 31_622_400].map(Some)
        );
        for bad in ["", "h", "1", "-1h", "1.5h", "367d", "99999999999999999999d", "1é"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn groups_have_a_kind_and_may_be_none_at_all() {
        let count = |text| parse_groups(text).map(|groups| groups.0.len()).ok();
        assert_eq!([count(""), count("team:1"), count("team:1, user:2")], [0, 1, 2].map(Some));
        assert_eq!([count("team"), count("team:1,"), count(",")], [None; 3]);
    }
}
