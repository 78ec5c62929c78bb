//! Tests through the doors users use, against real servers. `make test` starts those and says where they are.

mod store;
mod support;
