//! A client that follows the rules of the API and nothing more.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::header::{ACCEPT_ENCODING, CONTENT_TYPE};
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::support::dice::Dice;
use crate::support::server::{Server, decode};
use crate::workspace::Rows;

type Key = (String, String);

/// How often what was done, for the end of the test to see that all of it was.
pub type Tally = BTreeMap<&'static str, u64>;

pub struct Client {
    pub org: &'static str,
    pub user: &'static str,
    token: String,
    rows: Rows,
    /// What was applied to an object since the last bootstrap, for who has to find a fault.
    history: BTreeMap<Key, Vec<String>>,
    /// The sync id of the last action that was applied to an object, gone ones included.
    applied: BTreeMap<Key, u64>,
    groups: BTreeSet<String>,
    epoch: String,
    /// Everything up to here is applied; 0: there was no bootstrap yet.
    cursor: u64,
    /// Where the last full bootstrap began from.
    base: u64,
    /// How often the list of groups changed.
    moves: u64,
    /// Batches that have not been applied yet, with `moves` as it was when they were asked for.
    late: Vec<(Answer, u64)>,
    /// How many answers were asked for.
    asked: usize,
    pub tally: Tally,
}

struct Answer {
    lines: Vec<Value>,
    metadata: Value,
}

impl Answer {
    fn at(&self) -> u64 {
        self.metadata["lastSyncId"].as_u64().expect("a sync id")
    }

    fn groups(&self) -> BTreeSet<String> {
        serde_json::from_value(self.metadata["subscribedSyncGroups"].clone()).expect("a list")
    }
}

impl Client {
    pub fn new((org, user): (&'static str, &'static str), token: String) -> Self {
        Self {
            org,
            user,
            token,
            rows: Rows::new(),
            history: BTreeMap::new(),
            applied: BTreeMap::new(),
            groups: BTreeSet::new(),
            epoch: String::new(),
            cursor: 0,
            base: 0,
            moves: 0,
            late: Vec::new(),
            asked: 0,
            tally: Tally::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    pub fn is_born(&self) -> bool {
        self.cursor > 0
    }

    /// One thing a client may do at any moment.
    pub async fn act(&mut self, server: &Server, dice: &mut Dice) {
        match dice.below(10) {
            _ if !self.is_born() => self.bootstrap(server, dice).await,
            0 => self.bootstrap(server, dice).await,
            1 => self.partial(server, dice).await,
            2 | 3 => self.ask_batch(server, dice).await,
            4 => self.apply_late(),
            _ => drop(self.delta(server).await),
        }
    }

    /// Catches up with everything, and applies what came late.
    pub async fn catch_up(&mut self, server: &Server, dice: &mut Dice) {
        loop {
            if !self.is_born() {
                self.bootstrap(server, dice).await;
            } else if self.delta(server).await {
                break;
            }
        }
        self.apply_late();
    }

    /// Whether it holds exactly these rows.
    pub fn compare(&mut self, expected: &Rows) -> Result<(), String> {
        self.count("compared");
        if self.rows == *expected {
            return Ok(());
        }
        let missing: Vec<_> = expected.iter().filter(|(key, row)| self.rows.get(*key) != Some(row)).collect();
        let wrong: Vec<_> = self.rows.iter().filter(|(key, row)| expected.get(*key) != Some(row)).collect();
        let keys: BTreeSet<&Key> = missing.iter().chain(&wrong).map(|(key, _)| *key).collect();
        let history: Vec<_> = keys.into_iter().filter_map(|key| self.history.get(key)).flatten().collect();
        Err(format!(
            "{} of {} at {} (bootstrapped at {}, groups {:?}) lacks {missing:?} and has {wrong:?} after {history:#?}",
            self.user, self.org, self.cursor, self.base, self.groups
        ))
    }

    async fn bootstrap(&mut self, server: &Server, dice: &mut Dice) {
        let query = ["", "", "?noSyncPackets=true", "?noCache=true"][dice.below(4)];
        let Some(full) = self.ask(server.get(&format!("/sync/bootstrap{query}"), &self.token)).await else { return };
        // The models that a full bootstrap leaves out. Who sees a reaction is known by its comment, so both answers must
        // be of the same groups.
        let path = format!("/sync/bootstrap?type=partial&onlyModels=Comment&firstSyncId={}", full.at());
        let Some(rest) = self.ask(server.get(&path, &self.token)).await else { return };
        if rest.groups() != full.groups() {
            return;
        }
        self.rows.clear();
        self.applied.clear();
        self.history.clear();
        (self.cursor, self.base) = (full.at(), full.at());
        self.epoch = full.metadata["epoch"].as_str().expect("an epoch").to_owned();
        self.groups = full.groups();
        self.moves += 1;
        self.apply(&full);
        self.apply(&rest);
    }

    /// Loads again what it has, by group or by model.
    async fn partial(&mut self, server: &Server, dice: &mut Dice) {
        let groups: Vec<&String> = self.groups.iter().collect();
        let what = match dice.below(2) {
            0 => format!("syncGroups={}", groups[dice.below(groups.len())]),
            _ => "onlyModels=Reaction,Issue".to_owned(),
        };
        let path = format!("/sync/bootstrap?type=partial&{what}&firstSyncId={}", self.cursor);
        let Some(answer) = self.ask(server.get(&path, &self.token)).await else { return };
        self.take(server, &answer).await;
    }

    async fn ask_batch(&mut self, server: &Server, dice: &mut Dice) {
        let requests: Vec<Value> = (0..1 + dice.below(3))
            .map(|_| match dice.below(3) {
                0 => json!({"modelName": "Issue", "id": format!("i{}", dice.below(8))}),
                1 => json!({"modelName": "Comment", "indexedKey": "issueId", "keyValue": format!("i{}", dice.below(8))}),
                _ => json!({"modelName": "Reaction", "indexedKey": "commentId", "keyValue": format!("c{}", dice.below(16))}),
            })
            .collect();
        let body = json!({"firstSyncId": self.cursor, "requests": requests});
        let request = server.client.post(format!("{}/sync/batch", server.base)).bearer_auth(&self.token);
        let request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        let moves = self.moves;
        if let Some(answer) = self.ask(request).await {
            self.late.push((answer, moves));
        }
    }

    fn apply_late(&mut self) {
        for (answer, moves) in std::mem::take(&mut self.late) {
            // Asked for under another list of groups, or true before the last bootstrap: to be asked for anew.
            if moves == self.moves && answer.groups() == self.groups && answer.at() >= self.base {
                self.count("late");
                self.apply(&answer);
            }
        }
    }

    /// Whether nothing is left to be done.
    async fn delta(&mut self, server: &Server) -> bool {
        let path = format!("/sync/delta?lastSyncId={}&epoch={}", self.cursor, self.epoch);
        let Some(answer) = self.ask(server.get(&path, &self.token)).await else {
            return false;
        };
        self.count("deltas");
        let settled = answer.groups() == self.groups;
        self.cursor = answer.at();
        self.take(server, &answer).await;
        settled
    }

    /// Applies an answer. Any difference between the lists is a leave or a join. Whoever leaves begins anew, which is
    /// always allowed; whoever joins loads the group.
    async fn take(&mut self, server: &Server, answer: &Answer) {
        let groups = answer.groups();
        let mut joined: Vec<String> = groups.difference(&self.groups).cloned().collect();
        let mut left = self.groups.difference(&groups).next().is_some();
        self.moves += u64::from(self.groups != groups);
        self.groups = groups;
        self.apply(answer);
        while let Some(group) = joined.last().filter(|_| !left) {
            let path = format!("/sync/bootstrap?type=partial&syncGroups={group}&firstSyncId={}", self.cursor);
            let request = server.get(&path, &self.token).header(ACCEPT_ENCODING, "identity");
            let response = request.send().await.expect("the service answers");
            if response.status() == StatusCode::FORBIDDEN {
                // Left again.
                return self.begin_anew();
            }
            if let Some(answer) = self.read(response).await {
                self.count("joined");
                joined.pop();
                // What came after the rows is filtered by all that is held by now, which may be more, or less, again.
                let groups = answer.groups();
                joined.extend(groups.difference(&self.groups).cloned());
                left = self.groups.difference(&groups).next().is_some();
                self.moves += u64::from(self.groups != groups);
                self.groups = groups;
                self.apply(&answer);
            }
        }
        if left {
            self.begin_anew();
        }
    }

    /// Forgets everything: the next thing to do is a bootstrap.
    fn begin_anew(&mut self) {
        self.count("left");
        self.cursor = 0;
        self.rows.clear();
    }

    fn apply(&mut self, answer: &Answer) {
        let at = answer.at();
        for line in &answer.lines {
            let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
            let told = format!("{line} of an answer at {at} for {:?}", answer.groups());
            if line["__class"] != "SyncAction" {
                let key = (text("__class"), text("id"));
                self.history.entry(key.clone()).or_default().push(told);
                // A row never replaces or revives an object whose last applied action is above the answer's sync id.
                if self.applied.get(&key).is_none_or(|applied| *applied <= at) {
                    self.rows.insert(key, line.clone());
                }
                continue;
            }
            self.count("actions");
            let key = (text("modelName"), text("modelId"));
            self.history.entry(key.clone()).or_default().push(told);
            match line["action"].as_str() {
                Some("I" | "U") => drop(self.rows.insert(key.clone(), line["data"].clone())),
                Some("D") => drop(self.rows.remove(&key)),
                Some("G") => continue,
                other => panic!("{other:?}"),
            }
            self.applied.insert(key, line["id"].as_u64().expect("a sync id"));
        }
    }

    /// An answer; `None` when there is none now, and what then is to be done was done.
    async fn ask(&mut self, request: RequestBuilder) -> Option<Answer> {
        self.asked += 1;
        let encoding = ["identity", "gzip", "zstd"][self.asked % 3];
        let response = request.header(ACCEPT_ENCODING, encoding).send().await.expect("the service answers");
        self.read(response).await
    }

    async fn read(&mut self, response: reqwest::Response) -> Option<Answer> {
        let status = response.status();
        let encoding = response.headers().get("content-encoding").map(|value| value.to_str().unwrap().to_owned());
        let body = response.bytes().await.expect("an answer to its end");
        if !status.is_success() {
            let problem: Value = serde_json::from_slice(&body).expect("a problem");
            match problem["code"].as_str() {
                Some("RESYNC_REQUIRED") => {
                    self.count("resyncs");
                    self.cursor = 0;
                }
                Some("WATERMARK_HELD" | "GROUP_NOT_HELD") => self.count("held"),
                _ => panic!("{problem}"),
            }
            return None;
        }
        let raw = decode(encoding.as_deref().unwrap_or_default(), &body);
        let text = String::from_utf8(raw).expect("UTF-8");
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let metadata = lines.pop().expect("a last line");
        assert_eq!(metadata["__class"], "_metadata_");
        match metadata["method"].as_str() {
            Some("snapshot") => self.count("snapshots"),
            _ if metadata["snapshotSyncId"].is_null() => {}
            _ => self.count("live"),
        }
        Some(Answer { lines, metadata })
    }
}
