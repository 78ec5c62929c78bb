//! What a failed statement means to the rest of the service.

use tokio_postgres::error::SqlState;

use crate::source::SourceError;

/// Sorts a driver's error: gone, busy, or refused. `doing` completes "… failed", for the log.
pub fn classify(doing: impl Into<String>, error: tokio_postgres::Error) -> SourceError {
    let Some(code) = error.code() else {
        // No SQLSTATE: the socket, TLS or the protocol, not the statement.
        return SourceError::unavailable(error);
    };
    // Class 08: connection exceptions. PostgreSQL docs, appendix A.
    let gone = [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW];
    let busy = [
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::TOO_MANY_CONNECTIONS,
        SqlState::QUERY_CANCELED,
        // A read-only transaction below SERIALIZABLE sees this only when a standby had to cancel it.
        SqlState::T_R_SERIALIZATION_FAILURE,
    ];
    if gone.contains(code) || code.code().starts_with("08") {
        SourceError::unavailable(error)
    } else if busy.contains(code) {
        let message = error.as_db_error().map_or_else(|| error.to_string(), |refusal| refusal.message().to_owned());
        SourceError::Busy(format!("{}: {message}", doing.into()))
    } else {
        SourceError::failed(doing, error)
    }
}
