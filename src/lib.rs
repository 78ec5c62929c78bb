//! Headstart gives the clients of a local-first application a head start: the whole state of their organization as one
//! fast HTTP stream, exactly up to a known change, made from the application's own PostgreSQL and kept as compressed
//! snapshots. It never writes business data.
//!
//! This page is the map.
//!
//! # Floors
//! Imports go down only, never up and never sideways; `tests/floors.rs` reads the sources and fails otherwise. It also
//! knows in which room each foreign crate is at home.
//!
//! | floor | rooms | what they are |
//! |--:|---|---|
//! | 7 | [`app`], [`config`], [`telemetry`], [`cli`] | assembly, settings, the command line |
//! | 6 | [`http`] | HTTP in, a stream of lines out; the only place with status codes |
//! | 5 | [`serve`] | what the service does for a caller, without a word of HTTP |
//! | 4 | [`dump`], [`verify`] | making snapshots: one scan an org, any number of readers; holding them against the live rows |
//! | 3 | [`source`], [`store`], [`auth`] | the two seams (the database, the snapshot store) and who a caller is |
//! | 2 | [`snapshot`], [`wire`] | the formats: frames, packs, manifests; lines. Pure |
//! | 1 | [`model`], [`metrics`], [`task`], [`chain`], [`trace`], [`outbound`] | the words, and what every room needs |
//!
//! # Rules
//! - Two seams only, [`source::Source`] and [`store::SnapshotStore`], each with a real second implementation. Below
//!   them everything is a function or a struct.
//! - Pure where it can be: the policy, the selection, the formats, the SQL and the tokens are tested without a server.
//! - Only [`task`] spawns; every task has a name and ends with the service. Every queue and buffer has a bound, and its
//!   documentation says what happens past it.
//! - One error enum a room. Causes are kept for the log and never shown to callers.
//! - Wall-clock time is an argument or the store's. Elapsed time is tokio's, so that tests can pause it.
//! - An answer without its metadata line is not complete: after the first byte an error breaks the connection.
//!
//! # The walks
//! Each goes straight down and comes back up as a return value.
//! - **Bootstrap from a snapshot**: [`http`] → [`serve::access`] (who asks) → [`serve::freshness`] (what is published)
//!   → [`dump::policy`] (is it fresh enough) → [`snapshot::select`](mod@snapshot::select) (which frames) →
//!   [`store::PackCache`] (the packs) → [`http::body`].
//! - **Bootstrap without one**: the same door; the policy says no → [`dump::Dumps::join`] → follow the dump's frames
//!   from the first one on → [`http::body`].
//! - **Bootstrap while another instance dumps the org**: the same door; the lease is taken, so [`dump`] follows the pieces
//!   that the other one announces in the [`store`], into a spool of its own.
//! - **Refresh**: [`dump::runner`] → [`dump::policy`] (is it due) → lease → [`dump::course`] (by what changed, or as a whole).
//!   By what changed: [`source::Source::changed`] → [`source::Source::lookup`] → [`snapshot::index`] (which frames they may
//!   stand in) → [`dump::reuse`] (what stays) → new frames and packs → [`store::SnapshotStore::publish`]. As a whole:
//!   [`dump::build`] → [`source::Source::scan`] → frames → spool → packs → publish.
//! - **Batch**: [`http`] → [`serve::batch`] (claim a key or join who loads it) → [`serve::batch::plan`] (what the next
//!   statement asks for) → [`source::Source::lookup`] → [`serve::batch::answer`] (what this caller sees) →
//!   [`http::lines`].
//! - **Delta**: [`http::delta`] → [`serve::delta`] → who asks, and meanwhile the watermark → [`source::Source::actions`] (the last of each object) →
//!   [`serve::batch`] (the rows as they are now) → [`http::body`]. The actions after a bootstrap's snapshot go the same way.
//! - **Verify**: [`verify::Verifier`] → the packs → [`source::Source::scan`] → what differs → [`source::Source::actions`]: does
//!   the log tell each group of it?
//! - **Operators**: [`http::admin`] → [`serve::survey`] (all orgs in one look), [`serve::inspect`] (one snapshot),
//!   [`serve::operate`] (refresh, delete, dumps in progress); the dashboard follows what its feed makes once for all pages.
//! - **The log's end**: [`dump::trim`] → [`source::Source::trim`], never below what a kept snapshot needs.
//!
//! # Where the bytes are
//! Rows leave PostgreSQL in binary ([`source::postgres::scan`]), become lines in an arena
//! ([`source::postgres::encode`]), are copied once into the open frame of their model and group set
//! ([`dump::frames`]), compressed, and written to a spool file ([`dump::spool`]). From there readers and the upload take
//! them, each at its own pace. A published pack is loaded once into the cache, verified, and sliced without copying into
//! every answer that needs it. What goes out in zstd is copied once, into the socket, a MiB at a time ([`http::pace`]): packs lie
//! in the cache, spools are mapped ([`dump::mapping`]), and both are shared by all who are sent of them.

pub mod app;
pub mod auth;
pub mod chain;
pub mod cli;
pub mod config;
pub mod dump;
pub mod http;
pub mod metrics;
pub mod model;
pub mod outbound;
pub mod serve;
pub mod snapshot;
pub mod source;
pub mod store;
pub mod task;
pub mod telemetry;
pub mod trace;
pub mod verify;
pub mod wire;
