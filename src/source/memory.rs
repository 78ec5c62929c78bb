//! A source in memory, for tests and simulations: rows are put and removed by hand, each change draws a sync id.
//!
//! It keeps the contract of [`Source`] with the simplest means: one lock over everything, a scan is a copy.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::Value;
use tokio::sync::Notify;

use crate::model::{Epoch, GroupSet, Letter, Org, Schema, SyncGroup, SyncId, User, Watermark};
use crate::source::{
    Action, ActionRange, By, Found, FoundRow, GroupSets, LogSize, Lookup, Object, RowBatch, RowRef, Scan, Source,
    SourceError,
};

/// How many rows a batch holds; small, so that tests see several.
const BATCH_ROWS: usize = 16;

/// A database of lines.
pub struct MemorySource {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Wakes scans that wait before a batch.
    changed: Notify,
}

struct State {
    schema: Arc<Schema>,
    epoch: Epoch,
    last: SyncId,
    /// The watermark that an open writer holds back.
    held: Option<SyncId>,
    /// By org, model and model id: the groups and the line.
    rows: BTreeMap<(Org, usize, String), (GroupSet, Vec<u8>)>,
    log: Vec<Entry>,
    /// The highest sync id that was trimmed away.
    floor: SyncId,
    memberships: HashMap<(Org, User), Vec<SyncGroup>>,
    scans: u64,
    failing: bool,
    /// How many batches of all scans may still pass; `None`: any number.
    allowance: Option<usize>,
    /// Every look-up that began.
    lookups: Vec<Lookup>,
    /// How many users each read of memberships asked for.
    membership_reads: Vec<usize>,
    /// What happens to look-ups and reads of memberships.
    fate: Fate,
}

/// One entry of the log.
struct Entry {
    org: Org,
    action: Action,
    groups: Vec<SyncGroup>,
}

/// What a look-up, or a read of memberships, meets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fate {
    /// It is answered.
    #[default]
    Answered,
    /// It is answered once the fate is another, as things are then.
    Held,
    /// It fails.
    Refused,
    /// It panics.
    Panics,
}

impl MemorySource {
    /// An empty one. Every explicit model stays out of scans, as the contract says.
    pub fn new(schema: Arc<Schema>) -> Self {
        let state = State {
            schema,
            epoch: Epoch::new("memory-1"),
            last: SyncId::ZERO,
            held: None,
            rows: BTreeMap::new(),
            log: Vec::new(),
            floor: SyncId::ZERO,
            memberships: HashMap::new(),
            scans: 0,
            failing: false,
            allowance: None,
            lookups: Vec::new(),
            membership_reads: Vec::new(),
            fate: Fate::Answered,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }

    fn answering(&self) -> Result<MutexGuard<'_, State>, SourceError> {
        let state = self.lock();
        if state.failing { Err(switched_off()) } else { Ok(state) }
    }

    /// Puts or replaces a row. `line` is one JSON object with its line break. Gives the sync id of the change.
    pub fn put(&self, org: &Org, model: usize, id: &str, groups: GroupSet, line: impl Into<Vec<u8>>) -> SyncId {
        let mut state = self.lock();
        let was = state.rows.insert((org.clone(), model, id.to_owned()), (groups.clone(), line.into()));
        let letter = if was.is_some() { Letter::Update } else { Letter::Insert };
        let both = was.iter().flat_map(|(was, _)| was.as_slice()).chain(groups.as_slice()).cloned().collect();
        state.draw(org, letter, Some(Object { model, id: id.into() }), both)
    }

    /// Removes a row. Gives the sync id of the change.
    pub fn remove(&self, org: &Org, model: usize, id: &str) -> SyncId {
        let mut state = self.lock();
        let was = state.rows.remove(&(org.clone(), model, id.to_owned()));
        let groups = was.map(|(was, _)| was.as_slice().to_vec()).unwrap_or_default();
        state.draw(org, Letter::Delete, Some(Object { model, id: id.into() }), groups)
    }

    /// Sets what the membership tables give a user.
    pub fn set_memberships(&self, org: &Org, user: &User, groups: Vec<SyncGroup>) {
        let mut state = self.lock();
        state.memberships.insert((org.clone(), user.clone()), groups);
        let told = vec![SyncGroup::of(SyncGroup::USER, user.as_str())];
        state.draw(org, Letter::Groups, None, told);
    }

    /// The lines of an org that meet a condition, sorted: what any answer is compared with.
    pub fn lines(&self, org: &Org, keep: impl Fn(usize, &GroupSet) -> bool) -> Vec<String> {
        let state = self.lock();
        let mut lines: Vec<String> = (state.rows.iter())
            .filter(|((of, model, _), (groups, _))| of == org && keep(*model, groups))
            .map(|(_, (_, line))| String::from_utf8_lossy(line).trim_end().to_owned())
            .collect();
        lines.sort_unstable();
        lines
    }

    /// How many scans were opened.
    pub fn scans(&self) -> u64 {
        self.lock().scans
    }

    /// Every look-up that began, in order.
    pub fn lookups(&self) -> Vec<Lookup> {
        self.lock().lookups.clone()
    }

    /// How many users each read of memberships asked for, in order.
    pub fn membership_reads(&self) -> Vec<usize> {
        self.lock().membership_reads.clone()
    }

    /// Decides what look-ups and reads of memberships meet from now on, and those that are held.
    pub fn set_fate(&self, fate: Fate) {
        self.lock().fate = fate;
        self.shared.changed.notify_waiters();
    }

    /// A writer holds the watermark back at what was committed last, until it ends; others go on.
    pub fn hold_watermark(&self, held: bool) {
        let mut state = self.lock();
        state.held = held.then_some(state.last);
    }

    /// Another history begins, as after a failover.
    pub fn change_epoch(&self, epoch: &str) {
        self.lock().epoch = Epoch::new(epoch);
    }

    /// The tables change.
    pub fn change_schema(&self, schema: Arc<Schema>) {
        self.lock().schema = schema;
    }

    /// While switched off every call fails, and so do scans in progress at their next batch.
    pub fn switch_off(&self, off: bool) {
        self.lock().failing = off;
        self.shared.changed.notify_waiters();
    }

    /// From now on only this many batches of all scans pass, until the next call; `None`: any number.
    pub fn allow(&self, batches: Option<usize>) {
        self.lock().allowance = batches;
        self.shared.changed.notify_waiters();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a batch may pass.
    async fn pass(&self) -> Result<(), SourceError> {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                if state.failing {
                    return Err(switched_off());
                }
                match &mut state.allowance {
                    None => return Ok(()),
                    Some(0) => {}
                    Some(batches) => {
                        *batches -= 1;
                        return Ok(());
                    }
                }
            }
            changed.await;
        }
    }
}

impl Shared {
    /// Waits until a look-up may be answered.
    async fn fate(&self) -> Result<(), SourceError> {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let (fate, failing) = {
                let state = self.lock();
                (state.fate, state.failing)
            };
            match fate {
                _ if failing => return Err(switched_off()),
                Fate::Answered => return Ok(()),
                Fate::Refused => return Err(SourceError::failed("looking up", "refused by the test")),
                Fate::Panics => panic!("by the test"),
                Fate::Held => changed.await,
            }
        }
    }
}

fn switched_off() -> SourceError {
    SourceError::unavailable("switched off by the test")
}

fn batch(model: usize, rows: &[(GroupSet, Vec<u8>)], sets: &GroupSets) -> RowBatch {
    let mut batch = RowBatch { model, lines: Vec::new(), rows: Vec::new(), by_set: false };
    for (groups, line) in rows {
        batch.lines.extend_from_slice(line);
        let end = u32::try_from(batch.lines.len()).expect("tests keep batches small");
        batch.rows.push(RowRef { end, set: sets.intern(groups.clone()) });
    }
    batch
}

/// The texts of a key in a line: a string, a number, or those of an array.
fn key_texts(line: &[u8], name: &str) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let line: Value = serde_json::from_slice(line).unwrap_or_default();
    match &line[name] {
        Value::Array(elements) => elements.iter().filter_map(text).collect(),
        one => text(one).into_iter().collect(),
    }
}

impl State {
    fn find(&self, lookup: &Lookup) -> Result<Found, SourceError> {
        let mut found =
            Found { schema: self.schema.clone(), rows: Vec::new(), matches: vec![Vec::new(); lookup.values.len()] };
        let mut bytes = 0;
        for ((org, model, id), (groups, line)) in &self.rows {
            if (org, *model) != (&lookup.org, lookup.model) {
                continue;
            }
            let keys = match lookup.by {
                By::Id => vec![id.clone()],
                By::Key(index) => key_texts(line, &self.schema.catalog.models()[*model].keys[index]),
            };
            let matched: Vec<usize> = (0..lookup.values.len())
                .filter(|value| keys.iter().any(|key| **key == *lookup.values[*value]))
                .collect();
            if matched.is_empty() {
                continue;
            }
            bytes += line.len();
            if bytes > lookup.max_bytes {
                return Err(SourceError::TooLarge(lookup.max_bytes));
            }
            matched.into_iter().for_each(|value| found.matches[value].push(found.rows.len()));
            let line = Bytes::copy_from_slice(line);
            found.rows.push(FoundRow { id: id.as_str().into(), line, groups: groups.clone() });
        }
        Ok(found)
    }

    fn watermark(&self) -> Watermark {
        Watermark { epoch: self.epoch.clone(), sync_id: self.held.unwrap_or(self.last) }
    }

    fn draw(&mut self, org: &Org, letter: Letter, object: Option<Object>, groups: Vec<SyncGroup>) -> SyncId {
        self.last.0 += 1;
        self.log.push(Entry { org: org.clone(), action: Action { id: self.last, letter, object }, groups });
        self.last
    }
}

#[async_trait]
impl Source for MemorySource {
    async fn schema(&self) -> Result<Arc<Schema>, SourceError> {
        Ok(self.answering()?.schema.clone())
    }

    async fn schema_now(&self) -> Result<Arc<Schema>, SourceError> {
        self.schema().await
    }

    async fn watermark(&self) -> Result<Watermark, SourceError> {
        let state = self.answering()?;
        Ok(state.watermark())
    }

    async fn epoch(&self) -> Result<Epoch, SourceError> {
        Ok(self.answering()?.epoch.clone())
    }

    async fn scan(&self, org: &Org) -> Result<Scan, SourceError> {
        let mut state = self.answering()?;
        state.scans += 1;
        let sets = Arc::new(GroupSets::default());
        let mut by_model: BTreeMap<usize, Vec<(GroupSet, Vec<u8>)>> = BTreeMap::new();
        for ((of, model, _), row) in &state.rows {
            if of == org && state.schema.catalog.models()[*model].load.in_snapshot() && !row.0.as_slice().is_empty() {
                by_model.entry(*model).or_default().push(row.clone());
            }
        }
        let estimated_rows = by_model.values().map(Vec::len).sum::<usize>() as u64;
        let batches: Vec<RowBatch> = (by_model.iter())
            .flat_map(|(model, rows)| rows.chunks(BATCH_ROWS).map(|rows| batch(*model, rows, &sets)))
            .collect();
        let watermark = state.watermark();
        let schema = state.schema.clone();
        let shared = self.shared.clone();
        let batches = stream::iter(batches)
            .then(move |batch| {
                let shared = shared.clone();
                async move { shared.pass().await.map(|()| batch) }
            })
            .boxed();
        Ok(Scan { watermark, schema, sets, estimated_rows, batches })
    }

    async fn lookup(&self, lookup: &Lookup) -> Result<Found, SourceError> {
        self.lock().lookups.push(lookup.clone());
        self.shared.fate().await?;
        self.answering()?.find(lookup)
    }

    async fn actions(&self, range: &ActionRange) -> Result<Vec<Action>, SourceError> {
        let state = self.answering()?;
        if range.after < state.floor {
            return Err(SourceError::Trimmed { floor: state.floor });
        }
        let within = |id: SyncId| range.after < id && id <= range.to;
        let mut last: BTreeMap<Option<&Object>, &Action> = BTreeMap::new();
        for Entry { org, action, groups } in &state.log {
            if *org == range.org && within(action.id) && groups.iter().any(|group| range.groups.holds(group)) {
                last.insert(action.object.as_ref(), action);
            }
        }
        let mut actions: Vec<Action> = last.into_values().cloned().collect();
        actions.sort_unstable_by_key(|action| action.id);
        actions.truncate(range.limit);
        Ok(actions)
    }

    async fn changed(&self, range: &ActionRange) -> Result<Vec<Object>, SourceError> {
        let state = self.answering()?;
        if range.after < state.floor {
            return Err(SourceError::Trimmed { floor: state.floor });
        }
        let models = state.schema.catalog.models();
        let told = state
            .log
            .iter()
            .filter(|Entry { org, action, .. }| *org == range.org && range.after < action.id && action.id <= range.to);
        let objects: BTreeSet<&Object> = told.filter_map(|entry| entry.action.object.as_ref()).collect();
        let kept = objects.into_iter().filter(|object| models[object.model].load.in_snapshot());
        Ok(kept.take(range.limit).cloned().collect())
    }

    async fn memberships(&self, members: &[(Org, User)]) -> Result<Vec<Vec<SyncGroup>>, SourceError> {
        self.lock().membership_reads.push(members.len());
        self.shared.fate().await?;
        let state = self.answering()?;
        Ok(members.iter().map(|member| state.memberships.get(member).cloned().unwrap_or_default()).collect())
    }

    async fn pending(&self, orgs: &[(Org, SyncId)], cap: u64) -> Result<Vec<u64>, SourceError> {
        let state = self.answering()?;
        let count = |(org, after): &(Org, SyncId)| {
            if *after < state.floor {
                return cap;
            }
            let actions = state.log.iter().filter(|entry| entry.org == *org && entry.action.id > *after).count() as u64;
            actions.min(cap)
        };
        Ok(orgs.iter().map(count).collect())
    }

    async fn trim(&self, up_to: SyncId, _age: Duration, most: u64) -> Result<u64, SourceError> {
        let mut state = self.answering()?;
        let old = state
            .log
            .iter()
            .take_while(|entry| entry.action.id <= up_to)
            .take(usize::try_from(most).unwrap_or(usize::MAX));
        let trimmed: Vec<SyncId> = old.map(|entry| entry.action.id).collect();
        state.floor = trimmed.last().copied().unwrap_or(state.floor);
        state.log.drain(..trimmed.len());
        Ok(trimmed.len() as u64)
    }

    async fn log_size(&self) -> Result<LogSize, SourceError> {
        let actions = self.answering()?.log.len();
        Ok(LogSize { actions: actions as u64, bytes: (actions * size_of::<Entry>()) as u64 })
    }

    async fn unlogged(&self) -> Result<Arc<BTreeMap<usize, SourceError>>, SourceError> {
        self.answering().map(|_| Arc::default())
    }

    async fn orgs(&self) -> Result<Vec<Org>, SourceError> {
        let state = self.answering()?;
        let orgs: BTreeSet<Org> = state.rows.keys().map(|(org, ..)| org.clone()).collect();
        Ok(orgs.into_iter().collect())
    }
}
