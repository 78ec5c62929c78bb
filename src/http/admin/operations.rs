//! The operations API: what operators see and do, org by org.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::http::admin::api::{Api, Call};
use crate::http::admin::{Admin, feed, render};
use crate::http::error::{Code, HttpError};
use crate::model::{Org, QueryError, SchemaHash, SnapshotId};
use crate::serve::inspect::{FramePage, GroupPage, SnapshotContent, SnapshotName};
use crate::serve::operate::DumpList;
use crate::serve::survey::{OrgOrder, OrgPage, OrgSelection};

/// How old a look at all orgs may be that a page of them is taken from.
pub const LOOK_AGE: Duration = Duration::from_secs(2);

/// What a look at orgs and snapshots may fail with.
const LOOKS: [Code; 5] =
    [Code::InvalidQuery, Code::NoSnapshot, Code::DatabaseUnavailable, Code::CatalogMismatch, Code::StoreUnavailable];

/// How many of a list are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u16")]
struct Limit(u16);

impl Limit {
    const MOST: u16 = 500;
}

impl Default for Limit {
    fn default() -> Self {
        Self(100)
    }
}

impl TryFrom<u16> for Limit {
    type Error = String;

    fn try_from(limit: u16) -> Result<Self, String> {
        let fits = (1..=Self::MOST).contains(&limit);
        fits.then_some(Self(limit)).ok_or_else(|| format!("`limit` is from 1 to {}", Self::MOST))
    }
}

/// No parameters.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OrgsQuery {
    /// Only orgs whose id holds this text, whatever the case of ASCII letters.
    #[serde(default)]
    search: String,
    /// Their order.
    #[serde(default)]
    order: OrgOrder,
    /// How many to leave out.
    #[serde(default)]
    #[schemars(range(max = 4_294_967_295_u32))]
    offset: u32,
    /// How many to give at most.
    #[serde(default)]
    #[schemars(range(min = 1, max = 500))]
    limit: Limit,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OrgQuery {
    /// The org's id, as it is listed.
    #[schemars(length(min = 1))]
    org: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SnapshotQuery {
    /// The org's id, as it is listed.
    #[schemars(length(min = 1))]
    org: String,
    /// The hash of the snapshot's schema; without it the present one.
    schema: Option<String>,
    /// The snapshot's id, also of one that was replaced and is still kept; without it the current one.
    #[schemars(regex(pattern = r"^[0-9a-f]{32}$"))]
    snapshot: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PartQuery {
    /// The org's id, as it is listed.
    #[schemars(length(min = 1))]
    org: String,
    /// The hash of the snapshot's schema; without it the present one.
    schema: Option<String>,
    /// The snapshot's id, also of one that was replaced and is still kept; without it the current one.
    #[schemars(regex(pattern = r"^[0-9a-f]{32}$"))]
    snapshot: Option<String>,
    /// How many to leave out.
    #[serde(default)]
    #[schemars(range(max = 4_294_967_295_u32))]
    offset: u32,
    /// How many to give at most.
    #[serde(default)]
    #[schemars(range(min = 1, max = 500))]
    limit: Limit,
}

/// A dump that will be made.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Refreshing {
    /// The id of the snapshot it will be.
    #[schemars(with = "String")]
    snapshot: SnapshotId,
}

/// What was deleted.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Deleted {
    /// How many snapshots, of all schemas.
    snapshots: u64,
}

/// All calls, and the document that describes them.
pub fn routes() -> (Router<Arc<Admin>>, Bytes) {
    let get_call =
        Call { method: "GET", path: "", id: "", summary: "", answer: "", status: StatusCode::OK, codes: &LOOKS };
    Api::new()
        .call(
            Call {
                path: "/operations/orgs",
                id: "orgs",
                summary: "Every org with its snapshot's age, pending actions and size, those that need an eye first.",
                answer: "A page of orgs.",
                ..get_call
            },
            orgs,
        )
        .call(
            Call {
                path: "/operations/dumps",
                id: "dumps",
                summary: "The dumps of this instance: in progress, and the last that ended.",
                answer: "The dumps.",
                codes: &[Code::InvalidQuery],
                ..get_call
            },
            dumps,
        )
        .call(
            Call {
                path: "/operations/snapshot",
                id: "snapshot",
                summary: "What an org's snapshot consists of.",
                answer: "Its models and their sizes.",
                ..get_call
            },
            snapshot,
        )
        .call(
            Call {
                path: "/operations/frames",
                id: "frames",
                summary: "The frames of an org's snapshot.",
                answer: "A page of frames.",
                ..get_call
            },
            frames,
        )
        .call(
            Call {
                path: "/operations/groups",
                id: "groups",
                summary: "The sets of sync groups in an org's snapshot, the largest first.",
                answer: "A page of group sets.",
                ..get_call
            },
            groups,
        )
        .call(
            Call {
                method: "POST",
                path: "/operations/refresh",
                id: "refresh",
                summary: "Starts a dump of an org whose read begins after this request, or joins one that waits.",
                answer: "The dump is in progress.",
                status: StatusCode::ACCEPTED,
                codes: &[
                    Code::InvalidQuery,
                    Code::UnknownOrg,
                    Code::DatabaseUnavailable,
                    Code::CatalogMismatch,
                    Code::Stopping,
                ],
            },
            refresh,
        )
        .call(
            Call {
                method: "DELETE",
                path: "/operations/snapshots",
                id: "deleteSnapshots",
                summary: "Takes an org's snapshots away, in all schemas. The next request, or the background job, makes a new one.",
                answer: "They are gone.",
                codes: &[Code::InvalidQuery, Code::StoreUnavailable],
                ..get_call
            },
            delete,
        )
        .other(
            Call {
                path: "/operations/events",
                id: "events",
                summary: "What the dashboard shows, as server-sent events: `history` and `point` (traffic), `dumps`, `orgs`. \
                          Ends when the service is told to stop.",
                codes: &[Code::Stopping],
                ..get_call
            },
            json!({"description": "Events, each with JSON.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}),
            get(feed::events),
        )
        .other(
            Call {
                path: "/metrics",
                id: "metrics",
                summary: "All metrics, for Prometheus.",
                codes: &[],
                ..get_call
            },
            json!({"description": "OpenMetrics.", "content": {"application/openmetrics-text": {"schema": {"type": "string"}}}}),
            get(render),
        )
        .finish(&probes())
}

/// What probes ask without a token, on the same listener.
fn probes() -> Value {
    let part = json!({
        "type": "object",
        "required": ["name", "status"],
        "properties": {
            "name": {"type": "string"},
            "status": {"enum": ["ok", "degraded", "down"]},
            "reason": {"type": "string"}
        }
    });
    let readiness = json!({"application/json": {"schema": {
        "type": "object",
        "required": ["status"],
        "properties": {
            "status": {"enum": ["ok", "degraded", "down"]},
            "parts": {"type": "array", "items": part, "description": "For operators only."}
        }
    }}});
    json!({
        "/livez": {"get": {
            "operationId": "livez",
            "summary": "Whether the process lives.",
            "security": [],
            "responses": {"200": {"description": "It does.", "content": {"text/plain": {"schema": {"const": "ok\n"}}}}}
        }},
        "/readyz": {"get": {
            "operationId": "readyz",
            "summary": "Whether clients can be served.",
            "security": [],
            "responses": {
                "200": {"description": "They can, if only some of them.", "content": readiness},
                "503": {"description": "They can't.", "content": readiness}
            }
        }}
    })
}

async fn orgs(admin: Arc<Admin>, query: OrgsQuery) -> Result<OrgPage, HttpError> {
    let OrgsQuery { search, order, offset, limit } = query;
    let selection = OrgSelection { search, order, offset: offset as usize, limit: limit.0.into() };
    Ok(admin.service.orgs(selection, LOOK_AGE).await?)
}

async fn dumps(admin: Arc<Admin>, _: Nothing) -> Result<DumpList, HttpError> {
    Ok(admin.service.dump_list())
}

async fn snapshot(admin: Arc<Admin>, query: SnapshotQuery) -> Result<SnapshotContent, HttpError> {
    let name = name(query.org, query.schema, query.snapshot)?;
    Ok(admin.service.snapshot(&name).await?)
}

async fn frames(admin: Arc<Admin>, query: PartQuery) -> Result<FramePage, HttpError> {
    let name = name(query.org, query.schema, query.snapshot)?;
    Ok(admin.service.frames(&name, query.offset as usize, query.limit.0.into()).await?)
}

async fn groups(admin: Arc<Admin>, query: PartQuery) -> Result<GroupPage, HttpError> {
    let name = name(query.org, query.schema, query.snapshot)?;
    Ok(admin.service.groups(&name, query.offset as usize, query.limit.0.into()).await?)
}

async fn refresh(admin: Arc<Admin>, query: OrgQuery) -> Result<Refreshing, HttpError> {
    let org = org(query.org)?;
    Ok(Refreshing { snapshot: admin.service.refresh(org.as_str()).await? })
}

async fn delete(admin: Arc<Admin>, query: OrgQuery) -> Result<Deleted, HttpError> {
    let org = org(query.org)?;
    Ok(Deleted { snapshots: admin.service.delete_snapshots(&org).await? })
}

fn org(text: String) -> Result<Org, HttpError> {
    if text.is_empty() { Err(QueryError::new("org", "is empty").into()) } else { Ok(Org::new(text)) }
}

fn name(of: String, schema: Option<String>, id: Option<String>) -> Result<SnapshotName, HttpError> {
    let id = id.map(|id| id.parse::<SnapshotId>().map_err(|fault| QueryError::new("snapshot", fault.to_string())));
    Ok(SnapshotName { org: org(of)?, schema: schema.map(SchemaHash::new), id: id.transpose()? })
}
