//! What keeps a database from being served by a catalog, found before a client finds it: `headstart check`.
//!
//! Looks with the role and through the door that the service itself uses. Reads catalogs and counts rows; the only thing
//! it makes is a temporary table, in a transaction that is rolled back, to let PostgreSQL read the filters. Missing
//! tables and columns, and columns that can't be keys, are found where the schema is resolved.

mod log;
mod models;
mod server;

use std::fmt;

use tokio_postgres::Client;

use crate::model::catalog::Catalog;
use crate::source::SourceError;
use crate::source::migrate::Found;
use crate::source::postgres::error::classify;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Must be mended before anything can be served truly.
    Error,
    /// Works, but slowly, or not for long.
    Warning,
    /// Worth knowing.
    Note,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Where: a place in the catalog or the settings, or a part of the server.
    pub place: String,
    /// What is wrong.
    pub fault: String,
    /// How to mend it; empty where there is nothing to do.
    pub mend: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.fault)?;
        if self.mend.is_empty() { Ok(()) } else { write!(f, ": {}", self.mend) }
    }
}

impl Finding {
    fn new(severity: Severity, place: impl Into<String>, fault: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { severity, place: place.into(), fault: fault.into(), mend: mend.into() }
    }

    fn error(place: impl Into<String>, fault: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::new(Severity::Error, place, fault, mend)
    }

    fn warning(place: impl Into<String>, fault: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::new(Severity::Warning, place, fault, mend)
    }
}

/// Checks a database against a catalog. Both connections come from the same settings, two so that a pooler between shows
/// itself. Reads the tables of grouped models whole, to count. Not cancel safe: close the connections of a call that was
/// dropped.
///
/// # Errors
/// What keeps the database from being asked at all. What is wrong with it is the result, worst first.
pub async fn check(client: &Client, other: &Client, catalog: &Catalog) -> Result<Vec<Finding>, SourceError> {
    // Through a pooler, statements of one connection reach several sessions: nothing else could be believed.
    if let Some(pooler) = server::pooler(client, other).await? {
        return Ok(vec![pooler]);
    }
    let mut findings = server::server(client).await?;
    if findings.iter().any(|finding| finding.severity == Severity::Error) {
        return Ok(findings);
    }
    let mut found = Found::read(client, catalog).await.map_err(|error| classify("reading what there is", error))?;
    // Rights to migrate are not what is asked here.
    for table in found.tables.values_mut() {
        (table.permitted, table.hidden) = (true, false);
    }
    findings.extend(models::models(client, catalog, &found).await?);
    findings.extend(log::log(client, catalog, &found).await?);
    findings.sort_by_key(|finding| finding.severity);
    Ok(findings)
}
