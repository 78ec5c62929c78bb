//! Two transactions, one that writes a child and one that moves a parent, in every order of their steps and at every
//! pair of isolation levels: no client misses the child, none keeps it, and no single-row writer deadlocks.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::audience::Audience;
use crate::support::postgres::Database;
use crate::support::session::{Progress, Session};
use crate::tracker;

const READ_COMMITTED: &str = "READ COMMITTED";
const REPEATABLE_READ: &str = "REPEATABLE READ";
const SERIALIZABLE: &str = "SERIALIZABLE";

/// `#` stands for the round's own prefix. The children of `i1` are `c1` and, below it, `r1`; those of `i2` likewise.
const ROWS: &str = "
    INSERT INTO issue VALUES ('#i1', '#x', 'a'), ('#i2', '#x', 'b');
    INSERT INTO comment VALUES ('#c1', '#i1'), ('#c2', '#i2');
    INSERT INTO reaction VALUES ('#r1', '#c1'), ('#r2', '#c2')";

const CHILD_WRITES: [&str; 9] = [
    "INSERT INTO comment VALUES ('#c9', '#i1')",
    "UPDATE comment SET body = 'new' WHERE id = '#c1'",
    "DELETE FROM comment WHERE id = '#c1'",
    "UPDATE comment SET issue_id = '#i2' WHERE id = '#c1'",
    "UPDATE comment SET issue_id = '#i1' WHERE id = '#c2'",
    "INSERT INTO reaction VALUES ('#r9', '#c1')",
    "UPDATE reaction SET emoji = 'new' WHERE id = '#r1'",
    "DELETE FROM reaction WHERE id = '#r1'",
    "UPDATE reaction SET comment_id = '#c1' WHERE id = '#r2'",
];

const MOVES: [&str; 5] = [
    "UPDATE issue SET team_id = 'c' WHERE id = '#i1'",
    "UPDATE issue SET organization_id = '#y' WHERE id = '#i1'",
    "DELETE FROM issue WHERE id = '#i1'",
    "UPDATE issue SET id = '#i7', team_id = 'c' WHERE id = '#i1'",
    "UPDATE comment SET issue_id = '#i2' WHERE id = '#c1'",
];

/// Children of a parent that does not stand yet.
const ORPHAN_WRITES: [&str; 4] = [
    "INSERT INTO comment VALUES ('#c9', '#i3')",
    "UPDATE comment SET issue_id = '#i3' WHERE id = '#c1'",
    "UPDATE comment SET body = 'new' WHERE id = '#c3'",
    "INSERT INTO reaction VALUES ('#r9', '#c3')",
];

const ARRIVALS: [&str; 2] =
    ["INSERT INTO issue VALUES ('#i3', '#x', 'c')", "UPDATE issue SET id = '#i3' WHERE id = '#i1'"];

/// One transaction: begins (and takes its snapshot, where that counts), writes, commits.
struct Writer {
    session: Session,
    steps: Vec<String>,
    next: usize,
    failed: Option<SqlState>,
}

struct Arena {
    database: Database,
    observer: Client,
    rounds: usize,
    retries: usize,
}

impl Arena {
    async fn new(tables: &str) -> Self {
        let (database, observer) = tracker::with(tables, tracker::CATALOG).await;
        Self { database, observer, rounds: 0, retries: 0 }
    }

    async fn session(&self) -> Session {
        let session = Session::open(&self.database).await;
        session.client().batch_execute("SET deadlock_timeout = '10ms'").await.unwrap();
        session
    }

    /// All orders of one pair of statements at one pair of levels.
    async fn play(&mut self, setup: &str, statements: [&str; 2], levels: [&str; 2]) {
        let mut sessions = Some([self.session().await, self.session().await]);
        for order in orders(levels.map(step_count)) {
            self.rounds += 1;
            let prefix = format!("n{}", self.rounds);
            let here = |sql: &str| sql.replace('#', &prefix);
            self.observer.batch_execute(&here(setup)).await.unwrap();
            let orgs = [format!("{prefix}x"), format!("{prefix}y")];
            let mut audience = Audience::new(&orgs, &["team:a", "team:b", "team:c"]);
            let about = format!("{statements:?} at {levels:?} in the order {order:?}");
            let [first, second] = sessions.take().expect("given back after each round");
            let mut writers = [
                Writer::new(first, levels[0], &here(statements[0])),
                Writer::new(second, levels[1], &here(statements[1])),
            ];
            self.run(&mut writers, &order, &mut audience).await.unwrap_or_else(|fault| panic!("{about}: {fault}"));
            for index in 0..2 {
                if let Some(code) = writers[index].failed.clone() {
                    self.judge(&code, levels[index], &about);
                    self.retry(&mut writers[index], &about).await;
                    audience.turn(&self.observer).await.unwrap_or_else(|fault| panic!("{about}, retried: {fault}"));
                }
            }
            sessions = Some(writers.map(|writer| writer.session));
        }
    }

    /// Takes the steps in order. A writer that blocks misses its turns until the other lets it go on.
    async fn run(&self, writers: &mut [Writer; 2], order: &[usize], audience: &mut Audience) -> Result<(), String> {
        audience.turn(&self.observer).await?;
        let mut order = order.iter().copied();
        while let Some(index) = next_turn(writers, &mut order) {
            let open = writers.iter().filter(|writer| !writer.ended()).count();
            writers[index].advance(&self.observer).await;
            if writers[1 - index].session.is_running() {
                writers[1 - index].advance(&self.observer).await;
            }
            // What clients can see changes only when a transaction ends.
            if writers.iter().filter(|writer| !writer.ended()).count() < open {
                audience.turn(&self.observer).await?;
            }
        }
        Ok(())
    }

    fn judge(&mut self, code: &SqlState, level: &str, about: &str) {
        match code {
            code if *code == SqlState::T_R_SERIALIZATION_FAILURE => {
                assert_ne!(level, READ_COMMITTED, "{about}: a serialization failure");
                self.retries += 1;
            }
            code if *code == SqlState::FOREIGN_KEY_VIOLATION => {}
            code if *code == SqlState::T_R_DEADLOCK_DETECTED => panic!("{about}: a deadlock"),
            code => panic!("{about}: {code:?}"),
        }
    }

    async fn retry(&mut self, writer: &mut Writer, about: &str) {
        let again = writer.steps.join("; ");
        let Err(error) = writer.session.client().batch_execute(&again).await else { return };
        assert_eq!(error.code(), Some(&SqlState::FOREIGN_KEY_VIOLATION), "{about}: the retry failed: {error:?}");
        writer.session.client().batch_execute("ROLLBACK").await.unwrap();
    }
}

/// Whose turn it is: as planned, then whoever is left, first of all one that is not blocked.
fn next_turn(writers: &[Writer; 2], order: &mut impl Iterator<Item = usize>) -> Option<usize> {
    let planned = order.find(|index| !writers[*index].ended());
    let free = || (0..2).find(|index| !writers[*index].ended() && !writers[*index].session.is_running());
    planned.or_else(free).or_else(|| (0..2).find(|index| !writers[*index].ended()))
}

impl Writer {
    /// At READ COMMITTED a beginning without a statement changes nothing, so it is no step of its own.
    fn new(session: Session, level: &str, statement: &str) -> Self {
        let begin = format!("BEGIN ISOLATION LEVEL {level}");
        let steps = if level == READ_COMMITTED {
            vec![format!("{begin}; {statement}"), "COMMIT".into()]
        } else {
            vec![format!("{begin}; SELECT 1 FROM issue LIMIT 1"), statement.into(), "COMMIT".into()]
        };
        Self { session, steps, next: 0, failed: None }
    }

    fn ended(&self) -> bool {
        self.next == self.steps.len() && !self.session.is_running()
    }

    /// Takes the next step, or looks whether the one that had blocked goes on.
    async fn advance(&mut self, observer: &Client) {
        let progress = if self.session.is_running() {
            self.session.follow(observer).await
        } else {
            self.next += 1;
            self.session.start(&self.steps[self.next - 1], observer).await
        };
        if let Progress::Done(Err(error)) = progress {
            self.failed = Some(error.code().unwrap_or_else(|| panic!("{error:?}")).clone());
            self.next = self.steps.len();
            self.session.client().batch_execute("ROLLBACK").await.unwrap();
        }
    }
}

/// How many steps a writer takes at a level.
fn step_count(level: &str) -> usize {
    if level == READ_COMMITTED { 2 } else { 3 }
}

/// Every order in which two writers can take their steps.
fn orders(steps: [usize; 2]) -> Vec<Vec<usize>> {
    let total = steps[0] + steps[1];
    (0..1_u32 << total)
        .filter(|bits| bits.count_ones() as usize == steps[1])
        .map(|bits| (0..total).map(|place| (bits >> place & 1) as usize).collect())
        .collect()
}

/// Lets a child's writer stop after it has read its parent and before it draws an id, for as long as someone holds the
/// advisory lock 77.
const GATE: &str = "
    ALTER FUNCTION headstart_write RENAME TO headstart_write_now;
    CREATE FUNCTION headstart_write(model text, a text, b text, c text[], d text, e text, f text[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        IF current_setting('test.gate', true) = 'on' THEN PERFORM pg_advisory_xact_lock_shared(77); END IF;
        PERFORM public.headstart_write_now(model, a, b, c, d, e, f);
    END $$";

impl Arena {
    /// The child's writer stops in the middle of its statement; the mover does all it can meanwhile.
    async fn play_gated(&mut self, statements: [&str; 2], gate: &Client) {
        self.rounds += 1;
        let prefix = format!("n{}", self.rounds);
        let here = |sql: &str| sql.replace('#', &prefix);
        self.observer.batch_execute(&here(ROWS)).await.unwrap();
        let mut audience =
            Audience::new(&[format!("{prefix}x"), format!("{prefix}y")], &["team:a", "team:b", "team:c"]);
        let about = format!("{statements:?} with the first one stopped");
        let [mut child, mut mover] = [self.session().await, self.session().await];
        child.client().batch_execute("SET test.gate = 'on'").await.unwrap();
        let fail = |fault| panic!("{about}: {fault}");
        audience.turn(&self.observer).await.unwrap_or_else(fail);
        gate.batch_execute("SELECT pg_advisory_lock(77)").await.unwrap();
        let begun = child.start(&format!("BEGIN; {}", here(statements[0])), &self.observer).await;
        assert!(matches!(begun, Progress::Blocked), "{about}: {begun:?}");
        let moved = mover.start(&format!("BEGIN; {}", here(statements[1])), &self.observer).await;
        if let Progress::Done(done) = &moved {
            done.as_ref().unwrap_or_else(|error| panic!("{about}: {error:?}"));
            mover.client().batch_execute("COMMIT").await.unwrap();
            audience.turn(&self.observer).await.unwrap_or_else(fail);
        }
        gate.batch_execute("SELECT pg_advisory_unlock(77)").await.unwrap();
        child.end().await.unwrap_or_else(|error| panic!("{about}: {error:?}"));
        child.client().batch_execute("COMMIT").await.unwrap();
        audience.turn(&self.observer).await.unwrap_or_else(fail);
        if let Progress::Blocked = moved {
            mover.end().await.unwrap_or_else(|error| panic!("{about}: {error:?}"));
            mover.client().batch_execute("COMMIT").await.unwrap();
            audience.turn(&self.observer).await.unwrap_or_else(fail);
        }
    }
}

#[tokio::test]
async fn nobody_misses_a_child_whose_writer_is_stopped_halfway() {
    let mut arena = Arena::new(tracker::TABLES).await;
    arena.observer.batch_execute(GATE).await.unwrap();
    let gate = arena.database.connect().await;
    for child in CHILD_WRITES {
        for moved in MOVES {
            arena.play_gated([child, moved], &gate).await;
        }
    }
}

/// PostgreSQL (15.20 at least) loses a FOR KEY SHARE lock that is taken while an UPDATE writes the row's new version to
/// another page or its large values aside: the lock is no part of what the UPDATE then stores. Here the parent's update
/// is slow enough for a child to come in between, and the child's transaction outlives it.
#[tokio::test]
async fn nobody_misses_a_child_whose_lock_was_lost() {
    let slow = "UPDATE issue SET title = repeat('x', 60000000)";
    lose_lock(slow, Some("UPDATE issue SET team_id = 'c'")).await;
    lose_lock(slow, Some("DELETE FROM issue")).await;
    lose_lock(&format!("{slow}, team_id = 'c'"), None).await;
}

/// The slow update loses the child's lock; then another, or it itself, moves the parent.
async fn lose_lock(slow: &str, moved: Option<&str>) {
    let arena = Arena::new(tracker::TABLES).await;
    let client = &arena.observer;
    client.batch_execute("ALTER TABLE issue ALTER title SET STORAGE external").await.unwrap();
    client.batch_execute("INSERT INTO issue VALUES ('i1', 'x', 'a')").await.unwrap();
    let mut audience = Audience::new(&["x".into()], &["team:a", "team:c"]);
    audience.turn(client).await.unwrap();
    let [child, mut mover, updater] = [arena.session().await, arena.session().await, arena.session().await];
    let slow = slow.to_owned();
    let updating = tokio::spawn(async move { updater.client().batch_execute(&slow).await });
    let size = "SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE relname = 'issue'";
    while client.query_one(size, &[]).await.unwrap().get::<_, i64>(0) < 2_000_000 {}
    child.client().batch_execute("BEGIN; INSERT INTO comment VALUES ('c1', 'i1')").await.unwrap();
    assert!(!updating.is_finished(), "the update was over before the child came: this shows nothing");
    if let Some(moved) = moved {
        updating.await.unwrap().unwrap();
        let begun = mover.start(moved, client).await;
        assert!(matches!(begun, Progress::Blocked), "{moved} did not wait for the child: {begun:?}");
        child.client().batch_execute("COMMIT").await.unwrap();
        mover.end().await.unwrap();
    } else {
        child.client().batch_execute("COMMIT").await.unwrap();
        updating.await.unwrap().unwrap();
    }
    audience.turn(client).await.unwrap();
}

async fn all(tables: &str, setup: &str, children: &[&str], moves: &[&str], levels: &[[&str; 2]]) {
    let mut arena = Arena::new(tables).await;
    for child in children {
        for moved in moves {
            for pair in levels {
                arena.play(setup, [child, moved], *pair).await;
            }
        }
    }
    println!("{} rounds, {} retries", arena.rounds, arena.retries);
}

#[tokio::test]
async fn nobody_misses_a_child_at_read_committed() {
    all(tracker::TABLES, ROWS, &CHILD_WRITES, &MOVES, &[[READ_COMMITTED; 2]]).await;
}

#[tokio::test]
async fn nobody_misses_a_child_at_mixed_levels() {
    let levels = [[READ_COMMITTED, REPEATABLE_READ], [REPEATABLE_READ, READ_COMMITTED]];
    all(tracker::TABLES, ROWS, &CHILD_WRITES, &MOVES, &levels).await;
}

#[tokio::test]
async fn nobody_misses_a_child_at_repeatable_read() {
    all(tracker::TABLES, ROWS, &CHILD_WRITES, &MOVES, &[[REPEATABLE_READ; 2]]).await;
}

#[tokio::test]
async fn nobody_misses_a_child_without_foreign_keys() {
    let levels = [[READ_COMMITTED; 2], [READ_COMMITTED, REPEATABLE_READ], [REPEATABLE_READ, READ_COMMITTED]];
    let moves = [MOVES[0], MOVES[2], MOVES[3]];
    all(&tracker::loose_tables(), ROWS, &CHILD_WRITES, &moves, &levels).await;
}

#[tokio::test]
async fn nobody_misses_an_orphan_whose_parent_arrives() {
    let setup = format!("{ROWS}; INSERT INTO comment VALUES ('#c3', '#i3')");
    let levels = [
        [READ_COMMITTED; 2],
        [READ_COMMITTED, REPEATABLE_READ],
        [REPEATABLE_READ, READ_COMMITTED],
        [REPEATABLE_READ; 2],
    ];
    all(&tracker::loose_tables(), &setup, &ORPHAN_WRITES, &ARRIVALS, &levels).await;
}

#[tokio::test]
async fn nobody_misses_a_child_at_serializable() {
    let levels = [[SERIALIZABLE; 2], [READ_COMMITTED, SERIALIZABLE], [SERIALIZABLE, READ_COMMITTED]];
    all(tracker::TABLES, ROWS, &CHILD_WRITES[..6], &MOVES[..1], &levels).await;
}
