//! Every org and how its snapshot is doing, found out in one look for all who watch.
//!
//! A look takes one call of the store and one statement of the database, however many orgs there are, and some 300 bytes an
//! org. It is made only when somebody asks, shared by all who ask meanwhile, and a service that needs long for it rests ten
//! times as long before the next one: so watching never takes more than a tenth of a connection.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use crate::dump::policy::{Candidate, Limits, Reason, Verdict, judge};
use crate::model::{Epoch, Generation, Org, SnapshotId, SyncId};
use crate::serve::{ServeError, Service};
use crate::source::SourceError;
use crate::store::{Head, Published, Slot};
use crate::task;

/// How many times as long as a look takes nobody looks again.
const REST: u32 = 10;

/// How long the database may take to say what came after the snapshots; past it they are shown without.
const DATABASE_WAIT: Duration = Duration::from_secs(10);

/// What one look found.
pub struct Survey {
    /// When it ended, and how long it had taken.
    ended: Instant,
    took: Duration,
    /// The orgs, those that need an eye first.
    orgs: Vec<Surveyed>,
    places: HashMap<Org, usize>,
    totals: OrgTotals,
}

struct Surveyed {
    org: Org,
    standing: Standing,
    reason: Option<Reason>,
    kept: Option<KeptSnapshot>,
}

struct KeptSnapshot {
    id: SnapshotId,
    generation: Generation,
    sync_id: SyncId,
    age: Duration,
    pending: Option<u64>,
    rows: u64,
    len: u64,
    raw_len: u64,
}

/// How fresh an org's snapshot is, from worst to best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// There is none: the next client waits for a dump.
    Missing,
    /// It is not served any more: the next client waits for a dump.
    Unusable,
    /// It is served, and due for a refresh.
    Stale,
    /// The database does not tell what came after it.
    Unchecked,
    /// It is served.
    Fresh,
}

/// In which order orgs are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OrgOrder {
    /// Those that need an eye first.
    #[default]
    Attention,
    /// By id.
    Org,
    /// The oldest snapshot first.
    Age,
    /// The most pending actions first.
    Pending,
    /// The largest snapshot first.
    Size,
}

/// One org.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrgState {
    /// Its id.
    #[schemars(with = "String")]
    pub org: Org,
    /// How fresh its snapshot is.
    pub standing: Standing,
    /// Why it is not fresh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its current snapshot in the present schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotState>,
    /// The last bootstrap that this instance answered for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_answer: Option<LastAnswerState>,
}

/// A current snapshot.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotState {
    /// Its id.
    #[schemars(with = "String")]
    pub id: SnapshotId,
    /// How often the org's snapshot was replaced.
    pub generation: u64,
    /// What it is true at.
    pub sync_id: u64,
    /// Seconds since it was published.
    pub age_s: u64,
    /// Actions after it, counted up to `pendingLimit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<u64>,
    /// Its rows.
    pub rows: u64,
    /// Bytes of its frames, as they are stored and sent.
    pub bytes: u64,
    /// Bytes of its lines.
    pub raw_bytes: u64,
}

/// How an org was answered last.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastAnswerState {
    /// `snapshot` or `postgres`.
    pub method: &'static str,
    /// Why from there, in one word.
    pub why: &'static str,
    /// Seconds since it began.
    pub ago_s: u64,
}

/// All orgs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrgTotals {
    /// How many there are.
    pub orgs: u64,
    /// Those without a snapshot.
    pub missing: u64,
    /// Those whose snapshot is not served any more.
    pub unusable: u64,
    /// Those whose snapshot is due for a refresh.
    pub stale: u64,
    /// Those that could not be checked.
    pub unchecked: u64,
    /// Those whose snapshot is fresh.
    pub fresh: u64,
    /// Rows in their snapshots.
    pub rows: u64,
    /// Bytes of the frames.
    pub bytes: u64,
    /// Bytes of the lines.
    pub raw_bytes: u64,
    /// Snapshots kept in other schemas than the present one.
    pub other_schemas: u64,
}

/// A part of all orgs.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrgPage {
    /// The orgs of this page.
    pub orgs: Vec<OrgState>,
    /// How many match what was asked for.
    pub matched: u64,
    /// All orgs together, whether they match or not.
    pub totals: OrgTotals,
    /// Pending actions are counted up to here.
    pub pending_limit: u64,
    /// Seconds since this was looked at.
    pub looked_s: u64,
}

/// Which part of all orgs is wanted.
#[derive(Clone, Debug, Default)]
pub struct OrgSelection {
    /// Only orgs whose id holds this, whatever the case of ASCII letters.
    pub search: String,
    /// Their order.
    pub order: OrgOrder,
    /// How many to leave out.
    pub offset: usize,
    /// How many to give at most.
    pub limit: usize,
}

/// Looks at all orgs.
#[derive(Default)]
pub(super) struct Surveyor {
    /// Held while somebody looks.
    turn: tokio::sync::Mutex<Option<KnownOrgs>>,
    latest: Mutex<Option<Arc<Survey>>>,
    /// Something was changed by hand since.
    outdated: AtomicBool,
}

/// Which orgs the database knows. Memory: some 50 bytes each.
struct KnownOrgs {
    at: Instant,
    orgs: Arc<BTreeSet<Org>>,
}

impl Surveyor {
    fn latest(&self) -> Option<Arc<Survey>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The next survey is a new one.
    pub fn outdate(&self) {
        self.outdated.store(true, Ordering::Relaxed);
    }
}

impl Survey {
    /// Rows of an org's snapshot, as far as is known.
    pub(super) fn rows_of(&self, org: &Org) -> Option<u64> {
        self.orgs[*self.places.get(org)?].kept.as_ref().map(|kept| kept.rows)
    }
}

impl Service {
    /// How all orgs are doing: a look no older than `age`, or as old as the rest after an expensive one.
    ///
    /// # Errors
    /// The store's; the source's, before it has told the schema for a first time.
    pub async fn survey(&self, age: Duration) -> Result<Arc<Survey>, ServeError> {
        let surveyor = &self.shared.surveyor;
        let mut known = surveyor.turn.lock().await;
        let outdated = surveyor.outdated.swap(false, Ordering::Relaxed);
        let recent = |survey: &Arc<Survey>| survey.ended.elapsed() < age.max(survey.took * REST);
        if let Some(survey) = surveyor.latest().filter(|survey| !outdated && recent(survey)) {
            return Ok(survey);
        }
        let began = Instant::now();
        let schema = self.schema().await?;
        let heads = self.shared.store.heads().await?;
        let (present, other): (Vec<_>, Vec<_>) = heads.into_iter().partition(|(slot, _)| slot.schema == schema.hash);
        self.know_orgs(&mut known).await;
        let orgs = known.as_ref().map(|known| known.orgs.clone()).unwrap_or_default();
        let (epoch, pending) = self.pending_of(&present).await;
        let limits = *self.limits();
        let other = other.len() as u64;
        let survey = task::blocking(move || assemble(present, &orgs, epoch.as_ref(), pending, &limits, other)).await;
        let survey = Arc::new(Survey { ended: Instant::now(), took: began.elapsed(), ..survey });
        *surveyor.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(survey.clone());
        Ok(survey)
    }

    /// What the last survey found, if there was one.
    pub(super) fn latest_survey(&self) -> Option<Arc<Survey>> {
        self.shared.surveyor.latest()
    }

    /// Whether the database knows an org, now if it did not a while ago.
    pub(super) async fn knows(&self, org: &Org) -> Result<bool, ServeError> {
        let mut known = self.shared.surveyor.turn.lock().await;
        if known.as_ref().is_some_and(|known| known.orgs.contains(org)) {
            return Ok(true);
        }
        let orgs: BTreeSet<Org> = self.source().orgs().await?.into_iter().collect();
        let found = orgs.contains(org);
        *known = Some(KnownOrgs { at: Instant::now(), orgs: Arc::new(orgs) });
        Ok(found)
    }

    /// Looks which orgs there are, as seldom as the background job does. While the database does not tell, the last answer
    /// stands.
    async fn know_orgs(&self, known: &mut Option<KnownOrgs>) {
        let every = Duration::from_secs(self.dumps().settings().orgs_interval_s);
        if known.as_ref().is_some_and(|known| known.at.elapsed() < every) {
            return;
        }
        if let Ok(Ok(orgs)) = timeout(DATABASE_WAIT, self.source().orgs()).await {
            *known = Some(KnownOrgs { at: Instant::now(), orgs: Arc::new(orgs.into_iter().collect()) });
        }
    }

    /// The database's history and the actions after each of these snapshots; nothing while it does not answer.
    async fn pending_of(&self, heads: &[(Slot, Head)]) -> (Option<Epoch>, Vec<u64>) {
        let found = async {
            let epoch = self.source().epoch().await?;
            let since = |(slot, head): &(Slot, Head)| {
                let current = head.current.as_ref().filter(|current| current.facts.epoch == epoch);
                (slot.org.clone(), current.map_or(SyncId::MAX, |current| current.facts.sync_id))
            };
            let since: Vec<(Org, SyncId)> = heads.iter().map(since).collect();
            let pending = self.source().pending(&since, self.limits().count_cap()).await?;
            Ok::<_, SourceError>((epoch, pending))
        };
        match timeout(DATABASE_WAIT, found).await {
            Ok(Ok((epoch, pending))) => (Some(epoch), pending),
            Ok(Err(_)) | Err(_) => (None, Vec::new()),
        }
    }

    /// A part of all orgs, by a look no older than `age`.
    ///
    /// # Errors
    /// As [`Self::survey`].
    pub async fn orgs(&self, selection: OrgSelection, age: Duration) -> Result<OrgPage, ServeError> {
        let survey = self.survey(age).await?;
        let (places, survey) = task::blocking(move || (selection.places(&survey), survey)).await;
        let (places, matched) = places;
        Ok(OrgPage {
            orgs: places.into_iter().map(|place| self.state_of(&survey, &survey.orgs[place])).collect(),
            matched,
            totals: survey.totals,
            pending_limit: self.limits().hard_pending,
            looked_s: survey.ended.elapsed().as_secs(),
        })
    }

    fn state_of(&self, survey: &Survey, surveyed: &Surveyed) -> OrgState {
        let since = survey.ended.elapsed();
        OrgState {
            org: surveyed.org.clone(),
            standing: surveyed.standing,
            reason: surveyed.reason.map(|reason| reason.to_string()),
            snapshot: surveyed.kept.as_ref().map(|kept| SnapshotState {
                id: kept.id,
                generation: kept.generation.0,
                sync_id: kept.sync_id.0,
                age_s: (kept.age + since).as_secs(),
                pending: kept.pending,
                rows: kept.rows,
                bytes: kept.len,
                raw_bytes: kept.raw_len,
            }),
            last_answer: self.shared.last.of(&surveyed.org).map(|last| LastAnswerState {
                method: last.method.as_str(),
                why: last.why,
                ago_s: last.at.elapsed().as_secs(),
            }),
        }
    }
}

impl OrgSelection {
    /// The places of the wanted orgs, and how many match.
    fn places(&self, survey: &Survey) -> (Vec<usize>, u64) {
        let needle = self.search.to_ascii_lowercase();
        let matches = |org: &Org| needle.is_empty() || org.as_str().to_ascii_lowercase().contains(&needle);
        let mut places: Vec<usize> = (0..survey.orgs.len()).filter(|place| matches(&survey.orgs[*place].org)).collect();
        let of = |place: &usize| &survey.orgs[*place];
        let figure = |place: &usize, figure: fn(&KeptSnapshot) -> u64| Reverse(of(place).kept.as_ref().map(figure));
        // Sorts are stable: what is equal stays in the order of attention.
        match self.order {
            OrgOrder::Attention => {}
            OrgOrder::Org => places.sort_by_key(|place| of(place).org.clone()),
            OrgOrder::Age => places.sort_by_key(|place| figure(place, |kept| kept.age.as_secs())),
            OrgOrder::Pending => places.sort_by_key(|place| figure(place, |kept| kept.pending.unwrap_or_default())),
            OrgOrder::Size => places.sort_by_key(|place| figure(place, |kept| kept.len)),
        }
        let matched = places.len() as u64;
        (places.into_iter().skip(self.offset).take(self.limit).collect(), matched)
    }
}

/// Judges every org. `pending` is empty when the database did not tell.
fn assemble(
    heads: Vec<(Slot, Head)>,
    known: &BTreeSet<Org>,
    epoch: Option<&Epoch>,
    pending: Vec<u64>,
    limits: &Limits,
    other_schemas: u64,
) -> Survey {
    let pending = pending.into_iter().map(Some).chain(std::iter::repeat(None));
    let mut orgs: Vec<Surveyed> = (heads.into_iter().zip(pending))
        .filter_map(|((slot, head), pending)| {
            let Published { facts, age } = head.current?;
            let (standing, reason) = match (epoch, pending) {
                (Some(epoch), Some(pending)) => {
                    let candidate = Candidate { epoch: &facts.epoch, sync_id: facts.sync_id, age, pending };
                    match judge(Some(&candidate), epoch, limits) {
                        Verdict::Fresh => (Standing::Fresh, None),
                        Verdict::Stale(reason) => (Standing::Stale, Some(reason)),
                        Verdict::Unusable(reason) => (Standing::Unusable, Some(reason)),
                    }
                }
                _ => (Standing::Unchecked, None),
            };
            let pending = pending.filter(|_| epoch == Some(&facts.epoch));
            let kept = KeptSnapshot {
                id: facts.id,
                generation: head.generation,
                sync_id: facts.sync_id,
                age,
                pending,
                rows: facts.rows,
                len: facts.len,
                raw_len: facts.raw_len,
            };
            Some(Surveyed { org: slot.org, standing, reason, kept: Some(kept) })
        })
        .collect();
    let kept: BTreeSet<Org> = orgs.iter().map(|surveyed| surveyed.org.clone()).collect();
    let missing = |org: &Org| Surveyed {
        org: org.clone(),
        standing: Standing::Missing,
        reason: Some(Reason::Missing),
        kept: None,
    };
    orgs.extend(known.difference(&kept).map(missing));
    orgs.sort_by(|a, b| {
        let urgency = |it: &Surveyed| (it.standing, Reverse(it.kept.as_ref().map(|kept| (kept.pending, kept.age))));
        urgency(a).cmp(&urgency(b)).then_with(|| a.org.cmp(&b.org))
    });
    let totals = totals(&orgs, other_schemas);
    let places = orgs.iter().enumerate().map(|(place, surveyed)| (surveyed.org.clone(), place)).collect();
    Survey { ended: Instant::now(), took: Duration::ZERO, orgs, places, totals }
}

fn totals(orgs: &[Surveyed], other_schemas: u64) -> OrgTotals {
    let mut totals = OrgTotals { orgs: orgs.len() as u64, other_schemas, ..OrgTotals::default() };
    for surveyed in orgs {
        *match surveyed.standing {
            Standing::Missing => &mut totals.missing,
            Standing::Unusable => &mut totals.unusable,
            Standing::Stale => &mut totals.stale,
            Standing::Unchecked => &mut totals.unchecked,
            Standing::Fresh => &mut totals.fresh,
        } += 1;
        if let Some(kept) = &surveyed.kept {
            totals.rows += kept.rows;
            totals.bytes += kept.len;
            totals.raw_bytes += kept.raw_len;
        }
    }
    totals
}
