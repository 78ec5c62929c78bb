//! Tests through the doors users use, against real servers. `make test` starts those and says where they are.

mod encode;
mod http;
mod scan;
mod seed;
mod service;
mod support;
