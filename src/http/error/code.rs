//! The names of what can go wrong, each with its status, and which name each cause has.

use axum::http::StatusCode;
use serde::Serialize;

use crate::dump::DumpError;
use crate::serve::ServeError;
use crate::serve::batch::LoadError;
use crate::source::SourceError;
use crate::store::StoreError;

/// The names of what can go wrong, for programs. They never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// No token, or one that is not taken.
    Unauthenticated,
    /// The issuer's keys can't be had, so it can't be told whether a token is good.
    IssuerUnavailable,
    /// A parameter makes no sense.
    InvalidQuery,
    /// There is no such model.
    UnknownModel,
    /// The model is loaded by batch only.
    ExplicitModel,
    /// A group was asked for that the caller does not hold.
    GroupNotHeld,
    /// The client was made for another schema.
    SchemaMismatch,
    /// `noCache` is turned off.
    NoCacheRefused,
    /// The client has to bootstrap: its cursor is of another epoch, too old, or catching up is dearer.
    ResyncRequired,
    /// The body is not what this call takes.
    InvalidBody,
    /// A batch asks by a field that is no key, or for a value that can't be one.
    InvalidKey,
    /// The body is too long, or asks for too much at once.
    RequestTooLarge,
    /// What is asked for is more than one answer may hold.
    AnswerTooLarge,
    /// The body is of another media type than this call takes.
    UnsupportedMediaType,
    /// No offered content coding is accepted.
    NotAcceptable,
    /// The range lies behind the end.
    RangeNotSatisfiable,
    /// A page of another origin asked, or a name that is not this service's.
    CrossSite,
    /// The database knows no such org.
    UnknownOrg,
    /// There is no such snapshot, or not any more.
    NoSnapshot,
    /// Nothing is at this path.
    NotFound,
    /// The path is not asked with this method.
    MethodNotAllowed,
    /// Path and query are too long.
    UriTooLong,
    /// The headers are too long.
    HeadersTooLarge,
    /// The database is not yet where the request wants it.
    WatermarkHeld,
    /// The database does not answer, or not in time.
    DatabaseUnavailable,
    /// The database's tables don't fit the service's catalog.
    CatalogMismatch,
    /// The snapshot store does not answer.
    StoreUnavailable,
    /// More work waits than is allowed to.
    Overloaded,
    /// The org has more requests in progress than one org may have.
    TooManyRequests,
    /// The service is stopping.
    Stopping,
    /// A fault of the service.
    Internal,
}

impl Code {
    /// All of them, for the API's description.
    pub const ALL: [Self; 31] = [
        Self::Unauthenticated,
        Self::IssuerUnavailable,
        Self::InvalidQuery,
        Self::UnknownModel,
        Self::ExplicitModel,
        Self::GroupNotHeld,
        Self::SchemaMismatch,
        Self::NoCacheRefused,
        Self::ResyncRequired,
        Self::InvalidBody,
        Self::InvalidKey,
        Self::RequestTooLarge,
        Self::AnswerTooLarge,
        Self::UnsupportedMediaType,
        Self::NotAcceptable,
        Self::RangeNotSatisfiable,
        Self::CrossSite,
        Self::UnknownOrg,
        Self::NoSnapshot,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::UriTooLong,
        Self::HeadersTooLarge,
        Self::WatermarkHeld,
        Self::DatabaseUnavailable,
        Self::CatalogMismatch,
        Self::StoreUnavailable,
        Self::Overloaded,
        Self::TooManyRequests,
        Self::Stopping,
        Self::Internal,
    ];

    /// The status it is sent with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::InvalidQuery => StatusCode::BAD_REQUEST,
            Self::UnknownModel | Self::ExplicitModel | Self::InvalidBody | Self::InvalidKey => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::RequestTooLarge | Self::AnswerTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::GroupNotHeld | Self::NoCacheRefused | Self::CrossSite => StatusCode::FORBIDDEN,
            Self::SchemaMismatch => StatusCode::CONFLICT,
            Self::ResyncRequired => StatusCode::GONE,
            Self::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::RangeNotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::UnknownOrg | Self::NoSnapshot | Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::IssuerUnavailable
            | Self::WatermarkHeld
            | Self::DatabaseUnavailable
            | Self::CatalogMismatch
            | Self::StoreUnavailable
            | Self::Overloaded
            | Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// A sentence that fits every error of this code.
    pub(super) fn meaning(self) -> &'static str {
        match self {
            Self::Unauthenticated => "a valid bearer token is needed",
            Self::IssuerUnavailable => "the keys that tokens are checked with can't be had",
            Self::NotAcceptable => "zstd, gzip and identity are offered; `accept-encoding` refuses them",
            Self::CrossSite => {
                "only the service's own page and programs may ask this; with admin.token set, by any name"
            }
            Self::UnknownOrg => "the database knows no org with this id",
            Self::NoSnapshot => "the store holds no such snapshot of this org",
            Self::NotFound => "there is nothing at this path",
            Self::UnsupportedMediaType => "the body is `application/json`, without a content coding",
            Self::MethodNotAllowed => "this path is asked with another method",
            Self::WatermarkHeld => "an open transaction keeps the database from where the request wants it",
            Self::DatabaseUnavailable => "the database does not answer in time",
            Self::CatalogMismatch => "the database's tables do not fit the service's catalog",
            Self::StoreUnavailable => "the snapshot store does not answer in time",
            Self::Overloaded => "more work waits than is allowed to",
            Self::TooManyRequests => "the org has as many requests of this kind in progress as one org may have",
            Self::Stopping => "the service is stopping",
            _ => "the service failed; its log has the cause under this request id",
        }
    }
}

/// The fault of the service as a whole, by what failed underneath.
pub(super) fn serve_code(error: &ServeError) -> Code {
    match error {
        ServeError::UnknownModel(_) => Code::UnknownModel,
        ServeError::ExplicitModel(_) => Code::ExplicitModel,
        ServeError::GroupNotHeld(_) => Code::GroupNotHeld,
        ServeError::SchemaMismatch { .. } => Code::SchemaMismatch,
        ServeError::NoCacheRefused => Code::NoCacheRefused,
        ServeError::Resync(_) => Code::ResyncRequired,
        ServeError::Ahead { .. } => Code::WatermarkHeld,
        ServeError::ForeignClaim { .. } => Code::Unauthenticated,
        ServeError::Source(error) => source_code(error),
        ServeError::Store(error) => store_code(error),
        ServeError::Dump(error) => dump_code(error),
        ServeError::NoSuchModel(_) => Code::UnknownModel,
        ServeError::NoSuchKey(_) => Code::InvalidKey,
        ServeError::TooMuch(_) => Code::AnswerTooLarge,
        ServeError::UnknownOrg => Code::UnknownOrg,
        ServeError::NoSnapshot => Code::NoSnapshot,
        ServeError::Load(error) => load_code(error),
    }
}

fn load_code(error: &LoadError) -> Code {
    match error {
        LoadError::Source(error) => source_code(error),
        LoadError::Ahead { .. } => Code::WatermarkHeld,
        LoadError::Overloaded | LoadError::Unsettled => Code::Overloaded,
        LoadError::TooLarge { .. } => Code::AnswerTooLarge,
        LoadError::Deadline => Code::DatabaseUnavailable,
        LoadError::Stopping => Code::Stopping,
        LoadError::Broken => Code::Internal,
    }
}

fn source_code(error: &SourceError) -> Code {
    match error {
        SourceError::Unavailable(_) | SourceError::Busy(_) => Code::DatabaseUnavailable,
        SourceError::Held { .. } => Code::WatermarkHeld,
        SourceError::Schema(_) => Code::CatalogMismatch,
        // The org is the token's.
        SourceError::Org(_) => Code::Unauthenticated,
        // Whoever asked for actions has made of it what it means; nobody else asks.
        SourceError::Trimmed { .. } | SourceError::Failed { .. } | SourceError::TooLarge(_) => Code::Internal,
    }
}

fn store_code(error: &StoreError) -> Code {
    match error {
        // What is missing was replaced while it was read: the next request finds what replaced it.
        StoreError::Unavailable(_) | StoreError::Full(_) | StoreError::Missing(_) => Code::StoreUnavailable,
        StoreError::NoRoom => Code::Overloaded,
        StoreError::Conflict | StoreError::Damaged { .. } => Code::Internal,
    }
}

fn dump_code(error: &DumpError) -> Code {
    match error {
        DumpError::Source(error) => source_code(error),
        DumpError::Spool(_) | DumpError::SpoolFull { .. } | DumpError::Overloaded => Code::Overloaded,
        // The tables keep changing, or the dump has gone elsewhere: the next request finds where things stand.
        DumpError::SchemaChanged | DumpError::Elsewhere | DumpError::Orphaned => Code::Overloaded,
        DumpError::Stopping => Code::Stopping,
        DumpError::Frame(_) | DumpError::Broken => Code::Internal,
    }
}
