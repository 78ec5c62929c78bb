//! Headstart (the map comes with the rooms).
#![forbid(unsafe_code)]

pub mod app;
pub mod auth;
pub mod chain;
pub mod cli;
pub mod config;
pub mod dump;
pub mod http;
pub mod metrics;
pub mod model;
pub mod serve;
pub mod snapshot;
pub mod source;
pub mod store;
pub mod task;
pub mod telemetry;
pub mod wire;
