//! Who belongs where: a user's groups by the membership tables, and which orgs exist.

use std::collections::BTreeSet;
use std::error::Error;

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use crate::model::key::canonical;
use crate::model::{Org, SyncGroup, User};
use crate::source::postgres::columns::Layout;
use crate::source::postgres::error::classify;
use crate::source::postgres::pool::Lease;
use crate::source::{SourceError, sql};

/// The groups of users, in their order: one statement for all. A text that the user column's type can't hold belongs to
/// nobody, so it has no groups; it never reaches the server where others wait for the statement.
///
/// Whoever is alone is asked for by values in place of lists. PostgreSQL's generic plan supposes lists of ten, so it plans
/// shorter ones anew with each execution (PostgreSQL docs, PREPARE: custom plans), which takes it longer than reading what one
/// user belongs to by an index.
///
/// # Errors
/// What keeps the database from answering.
pub async fn memberships(
    lease: &Lease,
    layout: &Layout,
    members: &[(Org, User)],
) -> Result<Vec<Vec<SyncGroup>>, SourceError> {
    if layout.memberships.iter().all(|types| is_known(&types.org) && is_known(&types.user)) {
        return groups_of(lease, layout, members).await;
    }
    // Only the server can tell whether such a text fits, so each is asked for alone.
    let mut groups = Vec::with_capacity(members.len());
    for member in members {
        match groups_of(lease, layout, std::slice::from_ref(member)).await {
            Ok(found) => groups.extend(found),
            Err(SourceError::Failed { cause, .. }) if is_misfit(&*cause) => groups.push(Vec::new()),
            Err(error) => return Err(error),
        }
    }
    Ok(groups)
}

/// Whether the server refused a value: class 22, data exceptions (PostgreSQL docs, appendix A).
fn is_misfit(cause: &(dyn Error + 'static)) -> bool {
    let code = cause.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
    code.is_some_and(|code| code.code().starts_with("22"))
}

async fn groups_of(
    lease: &Lease,
    layout: &Layout,
    members: &[(Org, User)],
) -> Result<Vec<Vec<SyncGroup>>, SourceError> {
    let mut groups = vec![Vec::new(); members.len()];
    let is_one = members.len() == 1;
    let mut selects = Vec::new();
    let mut columns: Vec<(Vec<i32>, Vec<&str>, Vec<&str>)> = Vec::new();
    for (membership, types) in layout.schema.catalog.access().memberships.iter().zip(&layout.memberships) {
        let mut asked = (Vec::new(), Vec::new(), Vec::new());
        for (place, (org, user)) in (0..).zip(members) {
            if fits(&types.org, org.as_str()) && fits(&types.user, user.as_str()) {
                asked.0.push(place);
                asked.1.push(org.as_str());
                asked.2.push(user.as_str());
            }
        }
        if asked.0.is_empty() {
            continue;
        }
        let first = columns.len() * 3 + 1;
        columns.push(asked);
        let [places, orgs, users] = [first, first + 1, first + 2];
        let asked = if is_one {
            format!("(SELECT ${places}::pg_catalog.int4, ${orgs}::pg_catalog.text, ${users}::pg_catalog.text)")
        } else {
            format!(
                "ROWS FROM (pg_catalog.unnest(${places}::pg_catalog.int4[]), pg_catalog.unnest(${orgs}::pg_catalog.text[]), \
                            pg_catalog.unnest(${users}::pg_catalog.text[]))"
            )
        };
        // The kind is the catalog's: a letter, then letters, digits, `_` and `-` (checked when it is parsed).
        selects.push(format!(
            "SELECT asked.place, '{}' AS kind, held.{}::pg_catalog.text AS id \
             FROM {asked} AS asked(place, org, member) \
             JOIN {} AS held ON held.{} = asked.org::{} AND held.{} = asked.member::{}",
            membership.kind,
            sql::ident(&membership.group),
            sql::table(&membership.table),
            sql::ident(&membership.org),
            types.org,
            sql::ident(&membership.user),
            types.user,
        ));
    }
    if selects.is_empty() {
        return Ok(groups);
    }
    let failed = |error| classify("reading the memberships", error);
    // Prepared, because parsing and planning it takes PostgreSQL longer than reading a few rows by an index.
    let statement = lease.prepared(layout.schema.hash.as_str(), &selects.join(" UNION ALL ")).await.map_err(failed)?;
    let mut parameters: Vec<&(dyn ToSql + Sync)> = Vec::new();
    for (places, orgs, users) in &columns {
        let asked: [&(dyn ToSql + Sync); 3] =
            if is_one { [&places[0], &orgs[0], &users[0]] } else { [places, orgs, users] };
        parameters.extend(asked);
    }
    for row in lease.query(&statement, &parameters).await.map_err(failed)? {
        let place = usize::try_from(row.get::<_, i32>(0)).ok().and_then(|place| groups.get_mut(place));
        if let (Some(groups), Some(id)) = (place, row.get::<_, Option<&str>>(2)) {
            groups.push(SyncGroup::of(row.get(1), id));
        }
    }
    Ok(groups)
}

/// Whether it is known here which texts a type can hold.
fn is_known(cast_type: &str) -> bool {
    matches!(cast_type, "uuid" | "smallint" | "integer" | "bigint" | "text" | "character varying")
}

/// Whether a text may be cast to this type. Types whose texts are not known here are left to the server.
fn fits(cast_type: &str, text: &str) -> bool {
    !text.contains('\0') && (!is_known(cast_type) || canonical(cast_type, text).is_some())
}

/// Every org that exists. A model whose id is its org is the table of orgs; without one, an org exists while a row of
/// any model names it.
///
/// # Errors
/// What keeps the database from answering.
pub async fn orgs(client: &Client, layout: &Layout) -> Result<Vec<Org>, SourceError> {
    let models = layout.schema.catalog.models();
    let register = models.iter().find(|model| model.org.as_ref() == Some(&model.id));
    let holders = match register {
        Some(model) => vec![model],
        None => models.iter().filter(|model| model.org.is_some()).collect(),
    };
    let selects: BTreeSet<String> = (holders.iter())
        .filter_map(|model| {
            let column = sql::ident(model.org.as_ref()?);
            let table = sql::table(&model.table);
            Some(format!("SELECT {column}::pg_catalog.text FROM {table} WHERE {column} IS NOT NULL"))
        })
        .collect();
    let statement = selects.into_iter().collect::<Vec<_>>().join(" UNION ");
    let statement = format!("SELECT DISTINCT org FROM ({statement}) AS orgs(org)");
    let rows = client.query_typed(&statement, &[]).await.map_err(|error| classify("listing the orgs", error))?;
    Ok(rows.iter().map(|row| Org::new(row.get::<_, &str>(0))).collect())
}
