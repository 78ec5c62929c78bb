//! PostgreSQL (to come).
