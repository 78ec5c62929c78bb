//! PostgreSQL (to come).

pub mod check;
pub mod log;
pub mod watermark;
