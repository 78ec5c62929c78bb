//! (to come)
pub mod seed;
