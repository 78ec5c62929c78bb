//! Tests through the doors users use, against real servers. `make test` starts those and says where they are.

mod migrate;
mod support;
mod tracker;
mod triggers;
