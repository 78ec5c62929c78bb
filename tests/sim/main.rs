//! The promise: bootstrap, then deltas, equals the database, for every user, always.
//!
//! The real service over a real PostgreSQL, writers that do everything that goes wrong elsewhere, and clients that follow
//! the rules of the API and nothing more. After every round each client's rows must be what SQL says they may see.
//!
//! `HEADSTART_TEST_SECONDS` says for how long (default 10), `HEADSTART_TEST_SEED` replays the choices of a run.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a panic is a test's answer, and tests against servers run on real time"
)]

mod client;
mod refresh;
mod seams;
#[allow(dead_code, reason = "shared with the other tests")]
#[path = "../it/support/mod.rs"]
mod support;
mod workspace;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Client, Tally};
use support::dice::Dice;
use support::postgres::Database;
use support::server::Setup;
use workspace::{ORGS, USERS};

/// Writers at once.
const WRITERS: u64 = 4;
/// Transactions of each in a round.
const TRANSACTIONS: usize = 25;
/// Clients at once.
const CLIENTS: u64 = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bootstrap_then_deltas_equals_the_database() {
    let mut dice = Dice::seeded();
    println!("seed {}", dice.seed());
    let seconds = std::env::var("HEADSTART_TEST_SECONDS").map_or(10, |text| text.parse().expect("a number"));
    let until = Instant::now() + Duration::from_secs(seconds);

    let database = Database::create().await;
    let observer = database.connect().await;
    observer.batch_execute(workspace::TABLES).await.unwrap();
    let mut setup = Setup::new(&database.url(), workspace::CATALOG);
    setup.must(&["migrate", "--apply"]);
    // Snapshots of every age are served: fresh, followed by actions, and too old.
    setup.set("HEADSTART_FRESHNESS_SOFT_PENDING", "8").set("HEADSTART_FRESHNESS_HARD_PENDING", "150");
    // Of so few rows every change is a large share.
    setup.set("HEADSTART_DUMP_REFRESH_MAX_PERCENT", "100");
    setup.set("HEADSTART_DUMP_BACKGROUND", "true").set("HEADSTART_DUMP_INTERVAL_S", "1");
    let server = Arc::new(setup.serve().await);

    let mut tokens = BTreeMap::new();
    for (org, user) in ORGS.iter().flat_map(|org| USERS.iter().map(move |user| (*org, *user))) {
        tokens.insert((org, user), setup.token(org, user, None));
    }
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let writer = database.connect().await;
        writer.batch_execute("SET deadlock_timeout = '20ms'").await.unwrap();
        writers.push(Arc::new(writer));
    }
    let mut clients: Vec<Client> = Vec::new();
    let (mut rounds, mut tally) = (0_u64, Tally::new());
    let mut add = |of: Client| of.tally.into_iter().for_each(|(what, times)| *tally.entry(what).or_default() += times);
    while Instant::now() < until {
        while clients.len() < usize::try_from(CLIENTS).unwrap() {
            let who = *tokens.keys().nth(dice.below(tokens.len())).unwrap();
            clients.push(Client::new(who, tokens[&who].clone()));
        }
        let writing: Vec<_> = (0..)
            .zip(&writers)
            .map(|(number, writer)| {
                let (writer, mut dice) = (Arc::clone(writer), dice.fork(rounds * 100 + number));
                tokio::spawn(async move {
                    for _ in 0..TRANSACTIONS {
                        workspace::write(&writer, &mut dice).await;
                    }
                })
            })
            .collect();
        let reading: Vec<_> = (WRITERS..)
            .zip(clients.drain(..))
            .map(|(number, mut client)| {
                let (server, mut dice) = (Arc::clone(&server), dice.fork(rounds * 100 + number));
                tokio::spawn(async move {
                    for _ in 0..dice.below(6) {
                        client.act(&server, &mut dice).await;
                    }
                    client
                })
            })
            .collect();
        for writer in writing {
            writer.await.unwrap();
        }
        for client in reading {
            clients.push(client.await.unwrap());
        }
        for client in &mut clients {
            // Some stay away, and come back much later.
            if !client.is_born() || dice.below(4) == 0 {
                continue;
            }
            client.catch_up(&server, &mut dice).await;
            let expected = workspace::visible(&observer, client.org, client.user).await;
            client.compare(&expected).unwrap_or_else(|fault| {
                panic!("seed {}, round {rounds}, database {:?}: {fault}", dice.seed(), database.config().get_dbname())
            });
        }
        // Now and then one is replaced.
        if dice.below(3) == 0 {
            add(clients.swap_remove(dice.below(clients.len())));
        }
        rounds += 1;
    }
    clients.into_iter().for_each(add);
    let (refreshed, full) = (server.metric("headstart_refreshes_total").await, server.metrics().await);
    println!("{rounds} rounds, {tally:?}, {refreshed} refreshes");
    full.lines().filter(|line| line.starts_with("headstart_full_dumps_total{")).for_each(|line| println!("{line}"));
    assert!(refreshed > 0.0, "no snapshot was refreshed");
    for what in ["compared", "deltas", "snapshots", "actions"] {
        assert!(tally.contains_key(what), "nothing {what}: {tally:?}");
    }
}
