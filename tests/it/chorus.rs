//! Many writers at once, of every kind and at every isolation level, against clients that follow the log meanwhile:
//! after each round every client holds exactly what SQL says it may see.
//!
//! `HEADSTART_TEST_SEED` replays a run's choices, `HEADSTART_TEST_ROUNDS` makes it longer.

use std::sync::Arc;
use std::time::Duration;

use headstart::source::postgres::log::Log;
use headstart::source::postgres::watermark::probe;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::audience::Audience;
use crate::support::dice::Dice;
use crate::tracker;

const WRITERS: u64 = 6;
const TRANSACTIONS: usize = 8;

/// What became of the transactions.
#[derive(Debug, Default)]
struct Tally {
    committed: usize,
    rolled_back: usize,
    conflicts: usize,
    deadlocks: usize,
}

/// What writers do.
#[derive(Clone, Copy)]
enum Manner {
    /// Anything, a few statements at once.
    Free,
    /// One row by one statement at READ COMMITTED, as most applications do most of the time. (A parent takes its
    /// children along where a key cascades.)
    Plain,
    /// Children of one parent that is moved all the time, half of it in vain: where PostgreSQL loses locks.
    Hot,
}

fn statement(dice: &mut Dice, manner: Manner) -> String {
    let mut pick = |of: &[&str]| of[dice.below(of.len())].to_owned();
    let issue = pick(&["i0", "i1", "i2", "i3"]);
    let other = pick(&["i0", "i1", "i2", "i3"]);
    let comment = pick(&["c0", "c1", "c2", "c3", "c4", "c5"]);
    let reaction = pick(&["r0", "r1", "r2", "r3", "r4", "r5"]);
    let (org, team) = (pick(&["x", "x", "x", "y"]), pick(&["'a'", "'b'", "'c'", "NULL"]));
    let text = pick(&["k", "l", "m", "n"]);
    if let Manner::Hot = manner {
        return match dice.below(4) {
            0 | 1 => format!("UPDATE issue SET team_id = {team} WHERE id = 'i0'"),
            2 => format!("INSERT INTO comment VALUES ('{comment}', 'i0', '{text}') ON CONFLICT DO NOTHING"),
            _ => format!("DELETE FROM comment WHERE id = '{comment}'"),
        };
    }
    // The last ones write several rows, or want an id that another has.
    let kinds = if let Manner::Plain = manner { 15 } else { 17 };
    match dice.below(kinds) {
        0 | 1 => format!("INSERT INTO issue VALUES ('{issue}', '{org}', {team}) ON CONFLICT DO NOTHING"),
        2 => format!("UPDATE issue SET title = '{text}' WHERE id = '{issue}'"),
        3 => format!("UPDATE issue SET team_id = {team}, watchers = '{{{text}}}' WHERE id = '{issue}'"),
        4 => format!("UPDATE issue SET organization_id = '{org}' WHERE id = '{issue}'"),
        5 => format!("DELETE FROM issue WHERE id = '{issue}'"),
        6 => format!("UPDATE issue SET archived = NOT archived WHERE id = '{issue}'"),
        7 | 8 => format!("INSERT INTO comment VALUES ('{comment}', '{issue}', '{text}') ON CONFLICT DO NOTHING"),
        9 => format!("UPDATE comment SET body = '{text}' WHERE id = '{comment}'"),
        10 => format!("UPDATE comment SET issue_id = '{issue}' WHERE id = '{comment}'"),
        11 => format!("DELETE FROM comment WHERE id = '{comment}'"),
        12 => format!("INSERT INTO reaction VALUES ('{reaction}', '{comment}', '{text}') ON CONFLICT DO NOTHING"),
        13 => format!("UPDATE reaction SET comment_id = '{comment}', emoji = '{text}' WHERE id = '{reaction}'"),
        14 => format!("DELETE FROM reaction WHERE id = '{reaction}'"),
        15 => format!("UPDATE issue SET id = '{other}' WHERE id = '{issue}'"),
        _ => format!(
            "WITH gone AS (DELETE FROM comment WHERE issue_id = '{issue}')
             UPDATE issue SET team_id = {team} WHERE id = '{issue}'"
        ),
    }
}

async fn write(client: &Client, dice: &mut Dice, manner: Manner, tally: &mut Tally) {
    let (level, count) = match manner {
        Manner::Plain | Manner::Hot => ("READ COMMITTED", 1),
        Manner::Free => {
            let levels = ["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"];
            (levels[dice.below(levels.len())], [1, 1, 1, 2, 3][dice.below(5)])
        }
    };
    let statements: Vec<String> = (0..count).map(|_| statement(dice, manner)).collect();
    let holds = dice.below(6);
    let in_vain = if let Manner::Hot = manner { 2 } else { 8 };
    let end = if dice.below(in_vain) == 0 { "ROLLBACK" } else { "COMMIT" };
    loop {
        let run = async {
            client.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}; SELECT 1 FROM issue LIMIT 1")).await?;
            for statement in &statements {
                client.batch_execute(statement).await?;
                for _ in 0..holds {
                    client.batch_execute("SELECT 1").await?;
                }
            }
            client.batch_execute(end).await
        };
        let Err(error) = run.await else {
            if end == "COMMIT" {
                tally.committed += 1;
            } else {
                tally.rolled_back += 1;
            }
            return;
        };
        client.batch_execute("ROLLBACK").await.unwrap();
        match error.code() {
            Some(code) if *code == SqlState::T_R_SERIALIZATION_FAILURE => {
                assert_ne!(level, "READ COMMITTED", "{statements:?}: {error:?}");
                tally.conflicts += 1;
            }
            Some(code) if *code == SqlState::T_R_DEADLOCK_DETECTED => tally.deadlocks += 1,
            Some(code) if *code == SqlState::FOREIGN_KEY_VIOLATION || *code == SqlState::UNIQUE_VIOLATION => return,
            _ => panic!("{statements:?} at {level}: {error:?}"),
        }
    }
}

async fn sing(tables: &str, manner: Manner) -> Tally {
    let dice = Dice::seeded();
    println!("seed {}", dice.seed());
    let rounds = std::env::var("HEADSTART_TEST_ROUNDS").map_or(8, |rounds| rounds.parse().expect("a number"));
    let (database, observer) = tracker::with(tables, tracker::CATALOG).await;
    let log = Log::find(&observer, tracker::catalog(tracker::CATALOG).log()).await.unwrap();
    observer.batch_execute("INSERT INTO issue VALUES ('i0', 'x', 'a')").await.unwrap();
    let mut audience = Audience::new(&["x".into(), "y".into()], &["team:a", "team:b", "team:c", "user:k", "user:l"]);
    let mut clients = Vec::new();
    for _ in 0..WRITERS {
        let client = database.connect().await;
        client.batch_execute("SET deadlock_timeout = '20ms'").await.unwrap();
        clients.push(Arc::new(client));
    }
    let mut tally = Tally::default();
    for round in 0..rounds {
        let writers: Vec<_> = (0_u64..)
            .zip(&clients)
            .map(|(number, client)| {
                let (client, mut dice) = (Arc::clone(client), dice.fork(round * WRITERS + number));
                tokio::spawn(async move {
                    let mut tally = Tally::default();
                    for _ in 0..TRANSACTIONS {
                        write(&client, &mut dice, manner, &mut tally).await;
                    }
                    tally
                })
            })
            .collect();
        while writers.iter().any(|writer| !writer.is_finished()) {
            let found = probe(&observer, &log, Duration::from_secs(30)).await.unwrap();
            audience.live_turn(&observer, i64::try_from(found.sync_id.0).unwrap()).await;
        }
        for writer in writers {
            let part = writer.await.unwrap();
            tally.committed += part.committed;
            tally.rolled_back += part.rolled_back;
            tally.conflicts += part.conflicts;
            tally.deadlocks += part.deadlocks;
        }
        audience.turn(&observer).await.unwrap_or_else(|fault| {
            panic!("seed {}, round {round}, {:?}: {fault}", dice.seed(), database.config().get_dbname())
        });
        audience.forget_all_but(40);
    }
    println!("{rounds} rounds: {tally:?}");
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_ends_with_what_it_may_see() {
    sing(tracker::TABLES, Manner::Free).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_ends_with_what_it_may_see_without_foreign_keys() {
    sing(&tracker::loose_tables(), Manner::Free).await;
}

/// A child that waited for a mover who then rolled back holds a lock that the next mover does not meet: PostgreSQL (15.20
/// at least) locks the version that it had waited at and the one before, not the one that came meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_misses_a_child_of_a_parent_that_moves_in_vain() {
    sing(tracker::TABLES, Manner::Hot).await;
}

/// Not never: where PostgreSQL loses a child's lock on its parent (see races.rs), the mark that it leaves and the mover's
/// lock may wait for each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_single_rows_hardly_ever_deadlock() {
    let tally = sing(tracker::TABLES, Manner::Plain).await;
    assert!(tally.deadlocks * 50 <= tally.committed + tally.rolled_back, "{tally:?}");
}
