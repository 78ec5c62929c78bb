//! Who belongs where: a user's groups by the membership tables, and which orgs exist.

use std::collections::BTreeSet;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use crate::model::key::canonical;
use crate::model::{Org, SyncGroup, User};
use crate::source::postgres::columns::Layout;
use crate::source::postgres::error::classify;
use crate::source::{SourceError, sql};

/// The groups of a user, in one statement. A text that the user column's type can't hold belongs to nobody, so it has
/// no groups; it never reaches the server.
///
/// # Errors
/// What keeps the database from answering.
pub async fn memberships(
    client: &Client,
    layout: &Layout,
    org: &Org,
    user: &User,
) -> Result<Vec<SyncGroup>, SourceError> {
    let access = layout.schema.catalog.access();
    let mut selects = Vec::new();
    for (membership, types) in access.memberships.iter().zip(&layout.memberships) {
        if !fits(&types.org, org.as_str()) || !fits(&types.user, user.as_str()) {
            continue;
        }
        // The kind is the catalog's: a letter, then letters, digits, `_` and `-` (checked when it is parsed).
        selects.push(format!(
            "SELECT '{}' AS kind, {}::pg_catalog.text AS id FROM {} \
             WHERE {} = $1::pg_catalog.text::{} AND {} = $2::pg_catalog.text::{}",
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
        return Ok(Vec::new());
    }
    let statement = selects.join(" UNION ALL ");
    let (org, user) = (org.as_str(), user.as_str());
    let rows = texts(client, &statement, &[&org, &user], "reading the memberships").await?;
    let group = |row: &Row| Some(SyncGroup::of(row.get(0), row.get::<_, Option<&str>>(1)?));
    Ok(rows.iter().filter_map(group).collect())
}

/// Whether a text may be cast to this type. Types whose texts are not known here are left to the server.
fn fits(cast_type: &str, text: &str) -> bool {
    let known = matches!(cast_type, "uuid" | "smallint" | "integer" | "bigint" | "text" | "character varying");
    !text.contains('\0') && (!known || canonical(cast_type, text).is_some())
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
    let rows = texts(client, &statement, &[], "listing the orgs").await?;
    Ok(rows.iter().map(|row| Org::new(row.get::<_, &str>(0))).collect())
}

async fn texts(client: &Client, statement: &str, texts: &[&&str], doing: &str) -> Result<Vec<Row>, SourceError> {
    let parameters: Vec<(&(dyn ToSql + Sync), Type)> = texts.iter().map(|text| (*text as _, Type::TEXT)).collect();
    client.query_typed(statement, &parameters).await.map_err(|error| classify(doing, error))
}
