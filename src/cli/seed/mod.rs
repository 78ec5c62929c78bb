//! `headstart seed`: a demonstration workspace, an issue tracker with several tenants.
//!
//! `schema.sql` holds its tables, which `config/catalog.toml` maps; `words.sql` and `rows` make the rows, inside the
//! database and the same on every run. All of it is one transaction, so a workspace is there as a whole or not at all.
//! This is the one command that writes business data, so it is careful: tables of these names that it did not make
//! itself are never touched.

mod plan;
mod rows;

use std::fmt;

use indicatif::{ProgressBar, ProgressStyle};
use tokio_postgres::{Client, NoTls, Transaction};

use plan::Plan;
pub use plan::Scale;
use rows::{FRAME, Step, TEAM_PLAN, WORK};

use crate::model::{Org, User};

/// The tables of the workspace, as SQL.
pub const SCHEMA: &str = include_str!("schema.sql");
const WORDS: &str = include_str!("words.sql");

/// The names of its tables.
const TABLES: [&str; 15] = [
    "organization",
    "app_user",
    "team",
    "team_membership",
    "workflow_state",
    "label",
    "project",
    "project_update",
    "issue",
    "comment",
    "reaction",
    "issue_history",
    "attachment",
    "favourite",
    "notification",
];
/// The names of its types.
const TYPES: [&str; 2] = ["workflow_kind", "project_health"];

/// Begins the comment of each table that this command made; the scale ends it.
const MARK: &str = "Made by `headstart seed --scale ";

/// How many rows one statement makes: about a tenth of a second, so that the bar moves.
const SPAN: i64 = 2_000;

/// The arguments of `headstart seed`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct SeedArgs {
    /// How big the workspace becomes.
    #[arg(long, value_enum)]
    pub scale: Scale,
    /// Delete the workspace of an earlier run first, with its change log.
    #[arg(long)]
    pub reset: bool,
}

/// What was made.
#[derive(Debug)]
pub struct Workspace {
    /// How big.
    pub scale: Scale,
    /// Its organizations, the big one first.
    pub orgs: Vec<Tenant>,
}

/// One organization, and two users to try it with.
#[derive(Debug)]
pub struct Tenant {
    /// Its id.
    pub org: Org,
    /// Its name.
    pub name: String,
    /// How many teams it has.
    pub teams: i64,
    /// Its rows in `issue`.
    pub issues: i64,
    /// A user of every team.
    pub everywhere: User,
    /// A user of few teams, and how many: three at most.
    pub somewhere: (User, i64),
}

/// Why there is no workspace.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The database can't be reached.
    #[error("the database does not answer; is HEADSTART_POSTGRES_URL right?")]
    Connect(#[source] tokio_postgres::Error),
    /// Tables of the same names stand there, and they are someone's.
    #[error(
        "tables that this command did not make are in its way: {}; it never touches those, give it a database of its own",
        .0.join(", ")
    )]
    Foreign(Vec<String>),
    /// A workspace of another scale stands there.
    #[error("a workspace of scale {found} is already here: `--reset` deletes it and makes a new one")]
    Occupied {
        /// The scale of the one that is there.
        found: String,
    },
    /// A statement failed; nothing was changed.
    #[error("{doing} failed; nothing was changed")]
    Failed {
        /// What was being done.
        doing: String,
        /// The database's word.
        #[source]
        cause: tokio_postgres::Error,
    },
}

/// Makes the workspace in schema `public` of the database, or finds it there from an earlier run.
///
/// `reset` first deletes the workspace of an earlier run, with its change log: the epoch then changes, and no client
/// or snapshot of the old one passes for one of the new.
///
/// Needs the right to create tables. Cancel safe: when the future is dropped the connection breaks and PostgreSQL
/// rolls the transaction back.
///
/// # Errors
/// Those of [`SeedError`]; each leaves the database as it was.
pub async fn seed(url: &str, scale: Scale, reset: bool, progress: &ProgressBar) -> Result<Workspace, SeedError> {
    let (mut client, connection) = tokio_postgres::connect(url, NoTls).await.map_err(SeedError::Connect)?;
    // The connection is driven here rather than by a task: it has nothing to do once the work is over.
    let (lost, made) = tokio::join!(connection, async move { build(&mut client, scale, reset, progress).await });
    let workspace = made?;
    lost.map_err(SeedError::Connect)?;
    Ok(workspace)
}

async fn build(client: &mut Client, scale: Scale, reset: bool, progress: &ProgressBar) -> Result<Workspace, SeedError> {
    let transaction = client.transaction().await.map_err(failed("begin"))?;
    match found(&transaction).await? {
        Some(_) if reset => drop_workspace(&transaction).await?,
        Some(found) if found == scale.to_string() => return workspace(&transaction, scale).await,
        Some(found) => return Err(SeedError::Occupied { found }),
        None => {}
    }
    transaction.batch_execute(SCHEMA).await.map_err(failed("creating the tables"))?;
    for table in TABLES {
        let comment = format!("COMMENT ON TABLE {table} IS '{MARK}{scale}`'");
        transaction.batch_execute(&comment).await.map_err(failed("marking the tables"))?;
    }
    fill(&transaction, &scale.plans(), progress).await?;
    let workspace = workspace(&transaction, scale).await?;
    transaction.commit().await.map_err(failed("commit"))?;
    // So that the first reads are planned for the rows that are there.
    let analyze = format!("ANALYZE {}", TABLES.join(", "));
    client.batch_execute(&analyze).await.map_err(failed("ANALYZE"))?;
    progress.finish_and_clear();
    Ok(workspace)
}

/// The scale of the workspace that is there, if one is.
async fn found(transaction: &Transaction<'_>) -> Result<Option<String>, SeedError> {
    let sql = "SELECT relname::text, coalesce(obj_description(oid, 'pg_class'), '') FROM pg_class
               WHERE relnamespace = 'public'::regnamespace AND relname = ANY($1) ORDER BY relname";
    let tables = transaction.query(sql, &[&TABLES.as_slice()]).await.map_err(failed("looking for tables"))?;
    let mut scale = None;
    let mut foreign = Vec::new();
    for table in &tables {
        let comment: &str = table.get(1);
        match comment.strip_prefix(MARK) {
            Some(rest) => scale = Some(rest.trim_end_matches('`').to_owned()),
            None => foreign.push(table.get(0)),
        }
    }
    if foreign.is_empty() { Ok(scale) } else { Err(SeedError::Foreign(foreign)) }
}

async fn drop_workspace(transaction: &Transaction<'_>) -> Result<(), SeedError> {
    let sql = format!(
        "DROP TABLE {}; DROP TYPE {}; DROP TABLE IF EXISTS sync_actions, sync_actions_floor, sync_actions_marks",
        TABLES.join(", "),
        TYPES.join(", ")
    );
    transaction.batch_execute(&sql).await.map_err(failed("deleting the workspace"))
}

async fn fill(transaction: &Transaction<'_>, plans: &[Plan], progress: &ProgressBar) -> Result<(), SeedError> {
    transaction.batch_execute(WORDS).await.map_err(failed("preparing the words"))?;
    for (org, plan) in (1i32..).zip(plans) {
        let sql = format!(
            "INSERT INTO plan VALUES ({org}, {}, {}, {}, {}, {})",
            plan.teams,
            plan.users,
            plan.projects,
            plan.issues,
            plan.comments()
        );
        transaction.batch_execute(&sql).await.map_err(failed("planning"))?;
    }
    let counts = FRAME.iter().chain(&WORK).flat_map(|step| plans.iter().map(|plan| (step.count)(plan)));
    progress.set_length(counts.sum::<i64>().unsigned_abs());
    for step in &FRAME {
        run(transaction, step, plans, progress).await?;
    }
    transaction.batch_execute(TEAM_PLAN).await.map_err(failed("gathering the teams"))?;
    for step in &WORK {
        run(transaction, step, plans, progress).await?;
    }
    Ok(())
}

async fn run(
    transaction: &Transaction<'_>,
    step: &Step,
    plans: &[Plan],
    progress: &ProgressBar,
) -> Result<(), SeedError> {
    progress.set_message(step.table);
    let doing = || format!("filling {}", step.table);
    let statement = transaction.prepare(step.sql).await.map_err(failed(doing()))?;
    for (org, plan) in (1i32..).zip(plans) {
        let count = (step.count)(plan);
        let mut first = 1;
        while first <= count {
            let last = count.min(first + SPAN - 1);
            transaction.execute(&statement, &[&org, &first, &last]).await.map_err(failed(doing()))?;
            progress.inc((last - first + 1).unsigned_abs());
            first = last + 1;
        }
    }
    Ok(())
}

/// What stands in the tables, for people.
async fn workspace(transaction: &Transaction<'_>, scale: Scale) -> Result<Workspace, SeedError> {
    let sql = "
        SELECT o.id::text, o.name, (SELECT count(*) FROM team WHERE organization_id = o.id),
               (SELECT count(*) FROM issue WHERE organization_id = o.id), first.id::text, second.id::text,
               (SELECT count(*) FROM team_membership WHERE user_id = second.id)
        FROM generate_series(1, (SELECT count(*) FROM organization)) org
        JOIN organization o ON o.id = md5('organization 0/' || org)::uuid
        JOIN app_user first ON first.id = md5('user ' || org || '/1')::uuid
        JOIN app_user second ON second.id = md5('user ' || org || '/2')::uuid
        ORDER BY org";
    let rows = transaction.query(sql, &[]).await.map_err(failed("reading the workspace"))?;
    let orgs = rows.iter().map(|row| Tenant {
        org: Org::new(row.get::<_, String>(0)),
        name: row.get(1),
        teams: row.get(2),
        issues: row.get(3),
        everywhere: User::new(row.get::<_, String>(4)),
        somewhere: (User::new(row.get::<_, String>(5)), row.get(6)),
    });
    Ok(Workspace { scale, orgs: orgs.collect() })
}

fn failed(doing: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> SeedError {
    move |cause| SeedError::Failed { doing: doing.into(), cause }
}

/// A bar for a terminal; elsewhere nothing is drawn.
pub fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:18} {bar:40} {pos:>7}/{len} rows, {elapsed}")
        .expect("a template that was tried")
        .progress_chars("=> ");
    ProgressBar::no_length().with_style(style)
}

impl fmt::Display for Workspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "The {} workspace, by organization:", self.scale)?;
        for tenant in &self.orgs {
            let Tenant { org, name, teams, issues, everywhere, somewhere: (second, few) } = tenant;
            writeln!(f, "\n  {name}: org {org}, {issues} issues, {teams} teams")?;
            writeln!(f, "    user {everywhere} is in all of them, user {second} in {few}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Catalog;

    #[test]
    fn the_lists_name_what_the_schema_makes() {
        let made = |what: &str| -> Vec<&str> {
            SCHEMA.lines().filter_map(|line| line.strip_prefix(what)?.split(' ').next()).collect()
        };
        assert_eq!(made("CREATE TABLE "), TABLES);
        assert_eq!(made("CREATE TYPE "), TYPES);
        let filled: Vec<&str> = FRAME.iter().chain(&WORK).map(|step| step.table).collect();
        assert_eq!(filled, TABLES);
    }

    #[test]
    fn the_catalog_maps_every_table() {
        let catalog = Catalog::parse(include_str!("../../../config/catalog.toml")).unwrap();
        let mut mapped: Vec<&str> = catalog.models().iter().map(|model| model.table.name.as_str()).collect();
        let mut tables = TABLES.to_vec();
        mapped.sort_unstable();
        tables.sort_unstable();
        assert_eq!(mapped, tables);
    }
}
