//! Tests through the doors users use, against real servers. `make test` starts those and says where they are.

mod audience;
mod bootstrap;
mod cli;
mod config;
mod encode;
mod migrate;
mod races;
mod http;
mod columns;
mod encode;
mod pool;
mod scan;
mod seed;
mod service;
mod store;
mod support;
mod tracker;
mod triggers;
