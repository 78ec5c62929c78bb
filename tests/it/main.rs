//! Tests through the doors users use, against real servers. `make test` starts those and says where they are.

mod audience;
mod check;
mod chorus;
mod migrate;
mod races;
mod support;
mod tracker;
mod triggers;
mod watermark;
