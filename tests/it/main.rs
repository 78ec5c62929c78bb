//! Tests through the doors users use, against real servers. `make test` starts those and says where they are.

mod columns;
mod encode;
mod pool;
mod scan;
mod support;
