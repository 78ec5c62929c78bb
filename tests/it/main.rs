//! Tests through the doors users use, against real servers. `make test` starts those and says where they are.

mod audience;
mod bootstrap;
mod cli;
mod columns;
mod config;
mod encode;
mod http;
mod migrate;
mod pool;
mod races;
mod scan;
mod seed;
mod service;
mod store;
mod support;
mod tracker;
mod triggers;
mod watermark;
