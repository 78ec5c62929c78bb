//! PostgreSQL (to come).

pub mod log;
pub mod watermark;
