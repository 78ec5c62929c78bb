//! PostgreSQL: reads rows in binary and writes them as JSON, equal to what `to_json` gives.

pub mod columns;
pub mod copy;
pub mod encode;
pub mod error;
pub mod faults;
pub mod groups;
pub mod plan;
pub mod pool;
pub mod row;
pub mod scan;
pub mod tables;
pub mod tls;
pub mod types;
