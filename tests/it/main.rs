//! Tests through the doors users use, against real servers. `make test` starts those and says where they are.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a panic is a test's answer, and tests against servers run on real time"
)]

mod app;
mod audience;
mod batch;
mod bootstrap;
mod check;
mod chorus;
mod cli;
mod columns;
mod config;
mod cors;
mod dashboard;
mod deaths;
mod delta;
mod deploy;
mod encode;
mod faults;
mod fire;
mod http;
mod init;
mod issuer;
mod load;
mod lookup;
mod metrics;
mod migrate;
mod newcomer;
mod nginx;
mod operations;
mod outage;
mod pool;
mod probes;
mod races;
mod refresh;
mod replica;
mod scan;
mod seed;
mod service;
mod start;
mod store;
mod support;
mod tls;
mod together;
mod traces;
mod tracker;
mod triggers;
mod verify;
mod watching;
mod watermark;
