//! One client of one instance: it bootstraps, perhaps catches up, and holds each whole answer against the history.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures_util::StreamExt;
use headstart::auth::{AuthSettings, Claims};
use headstart::model::{Grants, Org, SyncGroup, SyncId};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use tokio::time::sleep;

use super::history::{CLASSES, History, Key, ORGS, TEAMS};
use crate::support::dice::Dice;

/// What a visit came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Answered from a published snapshot, whole and true.
    Snapshot,
    /// Answered from a dump, whole and true.
    Dump,
    /// The same, and then a delta.
    CaughtUp,
    /// Refused with a clear error before the first byte.
    Refused,
    /// The connection broke.
    Broken,
    /// The client went away.
    Left,
}

pub struct Visitor {
    pub router: Router,
    pub auth: Arc<AuthSettings>,
    pub history: History,
    pub dice: Dice,
    /// Reads without pause and never leaves.
    pub patient: bool,
}

/// The lines of a whole answer, and its metadata.
struct Whole {
    rows: BTreeMap<Key, String>,
    actions: Vec<Value>,
    metadata: Value,
}

enum Read {
    Whole(Whole),
    Refused(StatusCode, String),
    Broken,
    Left,
}

impl Visitor {
    pub async fn visit(mut self) -> Outcome {
        let org = Org::new(ORGS[self.dice.below(ORGS.len())]);
        let mut groups = vec![SyncGroup::of("org", org.as_str())];
        groups.extend(TEAMS.iter().filter(|_| self.dice.below(2) == 0).map(|team| SyncGroup::of("team", team)));
        let claims = Claims { org: org.to_string(), user: "u".into(), groups: Some(groups.clone()) };
        let token = self.auth.mint(&claims, SystemTime::now(), Duration::from_secs(600)).unwrap();
        let grants = Grants::new(groups);
        let (models, only): (&[usize], &str) = match self.dice.below(3) {
            0 => (&[0], ""),
            1 => (&[1], "&onlyModels=Comment"),
            _ => (&[0, 1], "&onlyModels=Issue,Comment"),
        };
        let plain = self.dice.below(2) == 0;
        let fresh = if self.dice.below(8) == 0 { "&noCache=true" } else { "" };
        let begun = self.history.now();
        let query = format!("/sync/bootstrap?noSyncPackets={plain}{only}{fresh}");
        let whole = match self.read(&query, &token).await {
            Read::Whole(whole) => whole,
            Read::Refused(status, why) => {
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{query}: {why}");
                return Outcome::Refused;
            }
            Read::Broken => return Outcome::Broken,
            Read::Left => return Outcome::Left,
        };
        let number =
            |name: &str| SyncId(whole.metadata[name].as_u64().unwrap_or_else(|| panic!("{:?}", whole.metadata)));
        let (at, caught_up) = (number("snapshotSyncId"), number("lastSyncId"));
        // A scan shows one moment; a refresh may have read rows later.
        match whole.metadata["method"].as_str() {
            Some("postgres") => {
                assert_eq!(whole.rows, self.history.at(&org, &grants, models, at), "the rows of {query} at {at}");
            }
            _ => self.compare(&org, &grants, models, at, &whole.rows, &query),
        }
        assert!(!fresh.is_empty() <= (at >= begun), "{query} is from {at}, before {begun}");
        assert!(if plain { caught_up == at } else { caught_up >= at }, "{query}: {:?}", whole.metadata);
        let mut state = whole.rows;
        apply(&mut state, &whole.actions, models, caught_up);
        self.compare(&org, &grants, models, caught_up, &state, &query);
        let method = whole.metadata["method"].as_str().unwrap().to_owned();
        if self.dice.below(2) == 0 {
            sleep(Duration::from_secs(self.dice.below(20) as u64)).await;
            let epoch = whole.metadata["epoch"].as_str().unwrap();
            let query = format!("/sync/delta?lastSyncId={caught_up}&epoch={epoch}");
            match self.read(&query, &token).await {
                Read::Whole(delta) => {
                    let to = SyncId(delta.metadata["lastSyncId"].as_u64().unwrap());
                    assert!(to >= caught_up, "{query} went back to {to}");
                    apply(&mut state, &delta.actions, models, to);
                    self.compare(&org, &grants, models, to, &state, &query);
                    return Outcome::CaughtUp;
                }
                Read::Refused(status, why) => {
                    let clear = matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::GONE);
                    assert!(clear, "{query}: {status}, {why}");
                }
                Read::Broken | Read::Left => {}
            }
        }
        match method.as_str() {
            "snapshot" => Outcome::Snapshot,
            "postgres" => Outcome::Dump,
            other => panic!("the method is {other}"),
        }
    }

    /// What a client ends with is what it may have seen of every object since the sync id it was told.
    fn compare(
        &self,
        org: &Org,
        grants: &Grants,
        models: &[usize],
        at: SyncId,
        state: &BTreeMap<Key, String>,
        query: &str,
    ) {
        let seen = self.history.since(org, grants, models, at);
        for (key, lines) in &seen {
            let held = state.get(key).cloned();
            assert!(lines.contains(&held), "{query} at {at}: {key:?} is {held:?}, but was {lines:?}");
        }
        for (key, line) in state {
            assert!(seen.contains_key(key), "{query} at {at}: {key:?} is {line:?}, but was not there");
        }
    }

    async fn read(&mut self, query: &str, token: &str) -> Read {
        let request = Request::get(query)
            .header("authorization", format!("Bearer {token}"))
            .header("accept-encoding", "identity")
            .body(Body::empty())
            .unwrap();
        // The service's own future never fails.
        let answer = TowerToHyperService::new(self.router.clone()).call(request).await.unwrap();
        let status = answer.status();
        let mut body = answer.into_body().into_data_stream();
        let mut bytes = Vec::new();
        let leaves = !self.patient && self.dice.below(8) == 0;
        while let Some(piece) = body.next().await {
            let Ok(piece) = piece else { return Read::Broken };
            bytes.extend_from_slice(&piece);
            if leaves {
                return Read::Left;
            }
            if !self.patient && self.dice.below(3) == 0 {
                sleep(Duration::from_millis(self.dice.below(3000) as u64)).await;
            }
        }
        if status != StatusCode::OK {
            return Read::Refused(status, String::from_utf8_lossy(&bytes).into_owned());
        }
        Read::Whole(parse(&bytes))
    }
}

/// Every clean end has metadata whose counts hold.
fn parse(bytes: &[u8]) -> Whole {
    let text = std::str::from_utf8(bytes).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    let last = lines.pop().unwrap_or_else(|| panic!("an empty answer ended well"));
    let metadata: Value = serde_json::from_str(last).unwrap();
    assert_eq!(metadata["__class"], "_metadata_", "an answer without metadata ended well: {last}");
    let (mut rows, mut actions) = (BTreeMap::new(), Vec::new());
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for line in lines {
        let value: Value = serde_json::from_str(line).unwrap();
        let class = value["__class"].as_str().unwrap();
        *counts.entry(class.to_owned()).or_default() += 1;
        if class == "SyncAction" {
            actions.push(value);
            continue;
        }
        let model = CLASSES.iter().position(|name| *name == class).unwrap();
        let twice = rows.insert((model, value["id"].as_str().unwrap().to_owned()), line.to_owned());
        assert!(twice.is_none(), "{line} came twice");
    }
    let told: BTreeMap<String, u64> = serde_json::from_value(metadata["returnedModelsCount"].clone()).unwrap();
    let told: BTreeMap<String, u64> = told.into_iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counts, told, "the counts");
    Whole { rows, actions, metadata }
}

/// Follows the actions, which come oldest first.
fn apply(state: &mut BTreeMap<Key, String>, actions: &[Value], models: &[usize], to: SyncId) {
    let mut before = 0;
    for action in actions {
        let id = action["id"].as_u64().unwrap();
        assert!(before < id && id <= to.0, "{id} after {before}, up to {to}");
        before = id;
        let Some(model) = CLASSES.iter().position(|name| action["modelName"] == **name) else { continue };
        if !models.contains(&model) {
            continue;
        }
        let key = (model, action["modelId"].as_str().unwrap().to_owned());
        match action["action"].as_str().unwrap() {
            "D" => drop(state.remove(&key)),
            _ => drop(state.insert(key, line_of(&action["data"]))),
        }
    }
}

/// The data of an action as the line it was made of: the order of its fields is the order of the line.
fn line_of(data: &Value) -> String {
    format!(
        "{{\"__class\":{},\"id\":{},\"version\":{},\"text\":{}}}",
        data["__class"], data["id"], data["version"], data["text"]
    )
}
