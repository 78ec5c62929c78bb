//! A small world on the two seams in memory: what the dumps and the service do, without servers.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use headstart::dump::policy::Limits;
use headstart::dump::runner::Runner;
use headstart::dump::{DumpSettings, Dumps};
use headstart::metrics::Metrics;
use headstart::model::schema::{Field, JsonKind};
use headstart::model::{
    BootstrapQuery, Caller, Catalog, Grants, GroupSet, ModelSchema, Org, Schema, SyncGroup, SyncId, User,
};
use headstart::serve::batch::answer::BatchSettings;
use headstart::serve::batch::{Loader, LoaderSettings};
use headstart::serve::bootstrap::BootstrapSettings;
use headstart::serve::delta::DeltaSettings;
use headstart::serve::{Answer, Content, Part, ServeError, ServeSettings, Service};
use headstart::snapshot::frame;
use headstart::source::memory::MemorySource;
use headstart::store::{MemoryStore, PackCache, Retention, Slot, SnapshotStore};
use headstart::task::Tasks;

/// Issues (instant), comments (partial) and attachments (explicit).
pub const CATALOG: &str = r#"
    [[models]]
    name = "Issue"
    table = "issue"
    id = "id"
    org = "org_id"
    groups = { team = "team_id" }
    load = "instant"

    [[models]]
    name = "Comment"
    table = "comment"
    id = "id"
    from = { model = "Issue", by = "issue_id" }
    load = "partial"

    [[models]]
    name = "Attachment"
    table = "attachment"
    id = "id"
    from = { model = "Issue", by = "issue_id" }
    load = "explicit"
"#;

pub const LIMITS: Limits = Limits { soft_pending: 5, hard_pending: 20, soft_age_s: 3600, hard_age_s: 7200 };

/// A service over memory.
pub struct World {
    pub source: Arc<MemorySource>,
    pub store: Arc<dyn SnapshotStore>,
    pub dumps: Dumps,
    pub service: Service,
    pub tasks: Tasks,
    pub schema: Arc<Schema>,
}

impl World {
    pub fn new() -> Self {
        Self::with(DumpSettings::default(), Arc::new(MemoryStore::new(retention())))
    }

    pub fn with(settings: DumpSettings, store: Arc<dyn SnapshotStore>) -> Self {
        Self::loading(settings, store, LoaderSettings::default())
    }

    pub fn loading(settings: DumpSettings, store: Arc<dyn SnapshotStore>, loader: LoaderSettings) -> Self {
        let schema = schema("uuid");
        let source = Arc::new(MemorySource::new(schema.clone()));
        let tasks = Tasks::new();
        let dumps = Dumps::new(source.clone(), store.clone(), tasks.clone(), settings, Metrics::new());
        let cache = PackCache::new(store.clone(), &Default::default(), tasks.clone(), Default::default());
        // Looks are not shared beyond those who ask at the same time, so that a test sees its own changes at once.
        let loader = Loader::new(source.clone(), tasks.clone(), loader, Metrics::new());
        let bootstrap = BootstrapSettings { freshness_ms: 0, ..BootstrapSettings::default() };
        let settings = ServeSettings {
            freshness: LIMITS,
            bootstrap,
            delta: DeltaSettings::default(),
            batch: BatchSettings::default(),
        };
        let service =
            Service::new(source.clone(), store.clone(), cache, dumps.clone(), loader, settings, Metrics::new());
        Self { source, store, dumps, service, tasks, schema }
    }

    pub fn runner(&self) -> Runner {
        let (source, store, dumps) = (self.source.clone(), self.store.clone(), self.dumps.clone());
        Runner::new(source, store, dumps, LIMITS, None, self.tasks.clone(), Metrics::new())
    }

    /// Puts `count` issues into a team, with ids from `from` on.
    pub fn issues(&self, org: &Org, team: &str, from: usize, count: usize) {
        for id in from..from + count {
            let line = format!("{{\"__class\":\"Issue\",\"id\":\"{id}\",\"teamId\":\"{team}\"}}\n");
            self.source.put(org, 0, &id.to_string(), team_set(team), line);
        }
    }

    pub fn comment(&self, org: &Org, team: &str, id: &str) -> SyncId {
        let line = format!("{{\"__class\":\"Comment\",\"id\":\"{id}\",\"issueId\":\"1\"}}\n");
        self.source.put(org, 1, id, team_set(team), line)
    }

    pub fn slot(&self, org: &Org) -> Slot {
        Slot { org: org.clone(), schema: self.schema.hash.clone() }
    }

    /// A whole answer: its facts are in `Answer`; this gives the lines, sorted, and the trailer.
    pub async fn bootstrap(&self, caller: &Caller, query: &BootstrapQuery) -> Result<Received, ServeError> {
        receive(self.service.bootstrap(caller, query).await?).await
    }

    /// What SQL would say: the lines of these models that the caller sees.
    pub fn expected(&self, caller: &Caller, models: &[usize]) -> Vec<String> {
        self.source.lines(&caller.org, |model, groups| models.contains(&model) && caller.grants.sees(groups))
    }
}

/// A received answer.
#[derive(Debug)]
pub struct Received {
    pub lines: Vec<String>,
    pub trailer: serde_json::Value,
}

impl Received {
    pub fn method(&self) -> &str {
        self.trailer["method"].as_str().unwrap_or_default()
    }
}

/// Reads an answer to its end.
pub async fn receive(answer: Answer) -> Result<Received, ServeError> {
    let mut raw = Vec::new();
    let rows = match answer.content {
        Content::Stored(stored) => {
            let slices: Vec<_> = stored.clone().read(0).try_collect().await?;
            assert_eq!(slices.len(), stored.slices().len());
            for (slice, len) in slices.iter().zip(stored.slices()) {
                assert_eq!(slice.len() as u64, len.len);
                let before = raw.len();
                decode(slice, &mut raw);
                assert_eq!((raw.len() - before) as u64, len.raw_len);
            }
            stored.rows().to_vec()
        }
        Content::Nothing => Vec::new(),
        Content::Live(mut parts) => loop {
            match parts.next().await.expect("a live answer does not just stop")? {
                Part::Frames(frames) => decode(&frames.read(0..frames.len()).await?, &mut raw),
                Part::End(rows) => break rows,
            }
        },
    };
    let mut lines: Vec<String> = String::from_utf8(raw).unwrap().lines().map(str::to_owned).collect();
    lines.sort_unstable();
    assert_eq!(rows.iter().sum::<u64>(), lines.len() as u64, "the counts are true");
    let trailer = serde_json::from_slice(&answer.facts.trailer(&rows, None)).unwrap();
    Ok(Received { lines, trailer })
}

fn decode(frames: &[u8], out: &mut Vec<u8>) {
    for frame in frame::frames(frames) {
        let (bytes, raw_len) = frame.unwrap();
        out.extend(frame::decompress(bytes, raw_len).unwrap());
    }
}

pub fn org(name: &str) -> Org {
    Org::new(name)
}

pub fn caller(org: &Org, groups: &[&str]) -> Caller {
    let grants = Grants::new(groups.iter().map(|group| SyncGroup::new(*group)).collect());
    Caller { org: org.clone(), user: User::new("u"), grants }
}

pub fn team_set(team: &str) -> GroupSet {
    GroupSet::new(vec![SyncGroup::of("team", team)])
}

pub fn retention() -> Retention {
    Retention { grace: std::time::Duration::from_secs(60), unpublished: std::time::Duration::from_secs(600) }
}

/// The schema of [`CATALOG`], with ids of some type.
pub fn schema(id_type: &str) -> Arc<Schema> {
    let catalog = Arc::new(Catalog::parse(CATALOG).unwrap());
    let field = |column: &str| Field {
        column: column.into(),
        name: headstart::model::catalog::camel_case(column),
        sql_type: id_type.into(),
        json: JsonKind::String,
        nullable: false,
    };
    let models = [&["id", "team_id"][..], &["id", "issue_id"], &["id", "issue_id"]];
    let models =
        models.iter().map(|columns| ModelSchema { fields: columns.iter().map(|column| field(column)).collect() });
    Arc::new(Schema::new(catalog, models.collect()))
}
