//! The change log and what fills it.

use tokio_postgres::Client;

use super::{Finding, Severity};
use crate::model::catalog::Catalog;
use crate::source::SourceError;
use crate::source::migrate::names::{marks_table, quote_ident, quote_table};
use crate::source::migrate::{Found, plan};
use crate::source::postgres::error::classify;
use crate::source::postgres::log::{Log, Unlogged, unlogged};

const MIGRATE: &str = "run `headstart migrate --apply`";

/// The log's table, its sequence, its index and its triggers.
pub async fn log(client: &Client, catalog: &Catalog, found: &Found) -> Result<Vec<Finding>, SourceError> {
    let mut findings = Vec::new();
    match Log::find(client, catalog.log()).await {
        Ok(log) => {
            findings.extend(table(client, catalog).await?);
            findings.extend(sequence(client, &log).await?);
        }
        Err(SourceError::Schema(fault)) => {
            let (place, fault) = fault.split_once(": ").unwrap_or(("log", &fault));
            let (fault, mend) = fault.rsplit_once(": ").unwrap_or((fault, ""));
            findings.push(Finding::error(place, fault, mend));
        }
        Err(error) => return Err(error),
    }
    if catalog.log().managed && found.floor && found.marks {
        findings.extend(trimmable(client, catalog).await?);
    }
    findings.extend(filled(client, catalog, found).await?);
    Ok(findings)
}

/// Whether this role can keep the log from growing without end.
async fn trimmable(client: &Client, catalog: &Catalog) -> Result<Option<Finding>, SourceError> {
    let log = catalog.log();
    let (table, marks, floor) = (quote_table(&log.table), quote_table(&marks_table(log)), quote_table(&log.floor));
    let sql = "SELECT has_table_privilege(to_regclass($1), 'DELETE') AND has_table_privilege(to_regclass($2), 'SELECT')
                  AND has_table_privilege(to_regclass($2), 'DELETE') AND has_table_privilege(to_regclass($3), 'UPDATE')";
    let row = client.query_one(sql, &[&table, &marks, &floor]).await;
    let may = row.map_err(|error| classify("looking at the rights on the log", error))?.get::<_, Option<bool>>(0);
    Ok((may == Some(false)).then(|| {
        Finding::warning(
            "trim.keep_s",
            "this role may not trim the change log, so it grows without end",
            format!("GRANT SELECT, DELETE ON {table}, {marks} TO this role; GRANT UPDATE ON {floor} TO this role"),
        )
    }))
}

async fn table(client: &Client, catalog: &Catalog) -> Result<Vec<Finding>, SourceError> {
    let log = catalog.log();
    let mut findings = Vec::new();
    let sql = "SELECT c.relpersistence = 'p',
                      EXISTS (SELECT FROM pg_catalog.pg_index i
                              WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND i.indnkeyatts >= 2
                                AND i.indkey[0] = (SELECT attnum FROM pg_catalog.pg_attribute
                                                   WHERE attrelid = c.oid AND attname = $2)
                                AND i.indkey[1] = (SELECT attnum FROM pg_catalog.pg_attribute
                                                   WHERE attrelid = c.oid AND attname = $3)),
                      (SELECT array_agg(w.name || ' ' || w.type ORDER BY w.place)
                       FROM unnest($4::text[], $5::text[]) WITH ORDINALITY AS w(name, type, place)
                       WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid
                           AND a.attname = w.name AND format_type(a.atttypid, NULL) = w.type)),
                      CASE WHEN to_regclass($6) IS NOT NULL THEN has_table_privilege(to_regclass($6), 'SELECT') END
               FROM pg_catalog.pg_class c WHERE c.oid = to_regclass($1)";
    let names = [&log.id, &log.org, &log.model, &log.model_id, &log.groups];
    let types = ["bigint", "text", "text", "text", "text[]"];
    let floor = quote_table(&log.floor);
    let row = client
        .query_one(sql, &[&quote_table(&log.table), &log.org, &log.id, &&names[..], &&types[..], &floor])
        .await
        .map_err(|error| classify("looking at the change log", error))?;
    if !row.get::<_, bool>(0) {
        let mend = format!("ALTER TABLE {} SET LOGGED", quote_table(&log.table));
        findings.push(Finding::error("log.table", "the log is an unlogged table: a crash empties it", mend));
    }
    if !row.get::<_, bool>(1) {
        let (table, org, id) = (quote_table(&log.table), quote_ident(&log.org), quote_ident(&log.id));
        let mend = if log.managed {
            MIGRATE.to_owned()
        } else {
            format!("CREATE INDEX CONCURRENTLY ON {table} ({org}, {id})")
        };
        findings.push(Finding::warning(
            "log.table",
            "the log has no valid index by org and id: it is read whole",
            mend,
        ));
    }
    if let Some(missing) = row.get::<_, Option<Vec<String>>>(2) {
        let fault = format!("the log `{}` has no column {}", log.table, missing.join(", no column "));
        findings.push(Finding::error("log", fault, "map the log's columns under [log]"));
    }
    match row.get::<_, Option<bool>>(3) {
        Some(false) => {
            let fault = format!("the log's floor `{}` may not be read", log.floor);
            findings.push(Finding::error("log.floor", fault, format!("GRANT SELECT ON {floor} to this role")));
        }
        None if log.managed => {
            findings.push(Finding::error("log.floor", format!("there is no table `{}`", log.floor), MIGRATE));
        }
        _ => {}
    }
    Ok(findings)
}

async fn sequence(client: &Client, log: &Log) -> Result<Vec<Finding>, SourceError> {
    let sql = "SELECT seqcache, seqincrement, seqcycle, has_sequence_privilege(seqrelid, 'SELECT')
               FROM pg_catalog.pg_sequence WHERE seqrelid = to_regclass($1)";
    let failed = |error| classify("looking at the log's sequence", error);
    let row = client.query_one(sql, &[&log.sequence]).await.map_err(failed)?;
    let (cache, increment, cycle, readable): (i64, i64, bool, bool) = (row.get(0), row.get(1), row.get(2), row.get(3));
    let name = &log.sequence;
    let mut findings = Vec::new();
    if cache != 1 {
        let fault = format!("the sequence {name} has a cache of {cache}: sessions draw ids long before they use them");
        findings.push(Finding::error("log.id", fault, format!("ALTER SEQUENCE {name} CACHE 1, and reconnect writers")));
    }
    if increment != 1 {
        let fault = format!("the sequence {name} counts by {increment}");
        findings.push(Finding::error("log.id", fault, format!("ALTER SEQUENCE {name} INCREMENT 1")));
    }
    if cycle {
        let fault = format!("the sequence {name} begins anew at its end");
        findings.push(Finding::error("log.id", fault, format!("ALTER SEQUENCE {name} NO CYCLE")));
    }
    if !readable {
        let fault = format!("the sequence {name} may not be read, so there is no watermark");
        findings.push(Finding::error("log.id", fault, format!("GRANT SELECT ON {name} to this role")));
    }
    Ok(findings)
}

/// Whether every change gets into the log.
async fn filled(client: &Client, catalog: &Catalog, found: &Found) -> Result<Vec<Finding>, SourceError> {
    let mut findings = Vec::new();
    let planned = match plan(catalog, found) {
        Ok(planned) => planned,
        Err(faults) => {
            let finding = |fault: String| {
                let (place, fault) = fault.split_once(": ").unwrap_or(("log", &fault));
                Finding::error(place, fault, "")
            };
            return Ok(faults.into_iter().map(finding).collect());
        }
    };
    if catalog.log().managed {
        for note in planned.notes {
            let (place, fault) = note.split_once(": ").unwrap_or(("log", &note));
            findings.push(Finding::error(place, fault, ""));
        }
    }
    let left_out = |what: &Unlogged| {
        let place = match what {
            Unlogged::Model(index) => format!("models.{}", catalog.models()[*index].name),
            Unlogged::Membership(index) => format!("access.memberships[{index}]"),
        };
        findings.iter().any(|finding| finding.place == place)
    };
    let missing: Vec<_> = unlogged(client, catalog).await?.into_iter().filter(|(what, _)| !left_out(what)).collect();
    let mended = !missing.is_empty();
    for (_, error) in missing {
        let fault = error.to_string();
        let (place, fault) = fault.split_once(": ").unwrap_or(("log", &fault));
        let (fault, mend) = fault.rsplit_once(": ").unwrap_or((fault, ""));
        findings.push(Finding::error(place, fault, mend));
    }
    if found.log.is_some() && !mended {
        findings.extend(planned.steps.iter().map(|step| {
            let fault = format!("the log is not what the catalog wants now: {}", step.description);
            Finding::new(Severity::Error, "log", fault, MIGRATE)
        }));
    }
    Ok(findings)
}
