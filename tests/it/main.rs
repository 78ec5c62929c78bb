//! Tests through the doors users use, against real servers. `make test` starts those and says where they are.

mod cli;
mod config;
mod encode;
mod scan;
mod seed;
mod service;
mod store;
mod support;
