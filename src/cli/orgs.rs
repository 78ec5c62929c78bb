//! What the subcommands that go through orgs share: which ones, and a bar for each.

use indicatif::{ProgressBar, ProgressStyle};

use crate::app::Rooms;
use crate::cli::CliError;
use crate::model::Org;

/// The org that was named, or every one that exists, in order.
pub(super) async fn chosen(rooms: &Rooms, named: Option<&str>) -> Result<Vec<Org>, CliError> {
    let mut orgs = rooms.source.orgs().await?;
    orgs.sort_unstable();
    if let Some(org) = named {
        orgs.retain(|other| other.as_str() == org);
        if orgs.is_empty() {
            return Err(CliError::Nothing(format!("the database knows no org {org}")));
        }
    }
    Ok(orgs)
}

/// The bar of an org, whose length is not known yet. Drawn on standard error, and only if that is a terminal.
pub(super) fn bar(org: &Org) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:20} {bar:40} {human_pos:>12} of about {human_len} rows, {eta} left")
        .expect("a template that was tried")
        .progress_chars("=> ");
    ProgressBar::no_length().with_style(style).with_message(format!("org {org}"))
}
