//! Clients of every sync group that follow the log by the rules of the API and nothing more: what they hold is compared
//! with what SQL says they may see.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

/// Every row that exists for clients, with who sees it: the oracle, written without any of the service's code.
const ROWS: &str = "
    WITH issues AS (
        SELECT i.*, organization_id AS org,
               array_remove(ARRAY['team:' || team_id], NULL)
               || ARRAY(SELECT 'user:' || w FROM unnest(watchers) w WHERE w IS NOT NULL) AS groups
        FROM issue i)
    SELECT 'Issue' AS model, id, org, groups, concat_ws('|', id, organization_id, team_id, title) AS row
    FROM issues WHERE NOT archived AND org = ANY($1)
    UNION ALL
    SELECT 'Comment', c.id, i.org, i.groups, concat_ws('|', c.id, c.issue_id, c.body)
    FROM comment c JOIN issues i ON i.id = c.issue_id WHERE i.org = ANY($1)
    UNION ALL
    SELECT 'Reaction', r.id, i.org, i.groups, concat_ws('|', r.id, r.comment_id, r.emoji)
    FROM reaction r JOIN comment c ON c.id = r.comment_id JOIN issues i ON i.id = c.issue_id WHERE i.org = ANY($1)";

type Key = (String, String);

/// One client: a user of one org who holds one group.
#[derive(Clone)]
struct Follower {
    org: String,
    group: String,
    born: usize,
    since: i64,
    cursor: i64,
    rows: BTreeMap<Key, String>,
}

struct Line {
    id: i64,
    org: String,
    key: Key,
    groups: Vec<String>,
}

struct Row {
    org: String,
    groups: Vec<String>,
    text: String,
}

/// All clients of some orgs. New ones come at every turn, the others catch up whenever the watermark lets them.
pub struct Audience {
    orgs: Vec<String>,
    groups: Vec<String>,
    followers: Vec<Follower>,
    watermark: i64,
    turns: usize,
}

impl Audience {
    /// No client yet.
    pub fn new(orgs: &[String], groups: &[&str]) -> Self {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        Self { orgs: orgs.to_vec(), groups, followers: Vec::new(), watermark: 0, turns: 0 }
    }

    /// Lets clients catch up, if no writer is open that has drawn an id, and compares each with the database; then a
    /// new client of every group makes its bootstrap. No session may make progress meanwhile.
    pub async fn turn(&mut self, observer: &Client) -> Result<(), String> {
        let sql =
            "SELECT (SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM sync_actions_id_seq),
                          (SELECT count(*) FROM pg_locks WHERE relation = 'sync_actions'::regclass
                           AND mode = 'RowExclusiveLock' AND granted)";
        let row = observer.query_one(sql, &[]).await.expect("read the watermark");
        let free = row.get::<_, i64>(1) == 0;
        if free {
            self.watermark = row.get(0);
            let rows = self.catch_up(observer).await;
            for follower in &self.followers {
                follower.compare(&rows)?;
            }
        }
        self.bootstrap(observer).await;
        Ok(())
    }

    /// The same while writers are at work, up to a watermark that was found just before. Nothing can be compared: the
    /// rows are newer than the watermark.
    pub async fn live_turn(&mut self, observer: &Client, watermark: i64) {
        self.watermark = watermark;
        self.catch_up(observer).await;
        self.bootstrap(observer).await;
    }

    /// Clients of so many turns are enough: the oldest go.
    pub fn forget_all_but(&mut self, turns: usize) {
        let oldest = self.turns.saturating_sub(turns);
        self.followers.retain(|follower| follower.born > oldest);
    }

    async fn catch_up(&mut self, observer: &Client) -> BTreeMap<Key, Row> {
        let from = self.followers.iter().map(|follower| follower.cursor).min().unwrap_or(self.watermark);
        let lines = self.lines(observer, from).await;
        let rows = self.rows(observer).await;
        for follower in &mut self.followers {
            follower.catch_up(&lines, &rows, self.watermark);
        }
        rows
    }

    async fn bootstrap(&mut self, observer: &Client) {
        let rows = self.rows(observer).await;
        self.turns += 1;
        for org in &self.orgs {
            for group in &self.groups {
                let mut follower = Follower {
                    org: org.clone(),
                    group: group.clone(),
                    born: self.turns,
                    since: self.watermark,
                    cursor: self.watermark,
                    rows: BTreeMap::new(),
                };
                follower.rows = follower.visible(&rows);
                self.followers.push(follower);
            }
        }
    }

    async fn lines(&self, observer: &Client, from: i64) -> Vec<Line> {
        let sql = "SELECT id, org, model, model_id, groups FROM sync_actions
                   WHERE id > $1 AND id <= $2 AND org = ANY($3) AND model IS NOT NULL ORDER BY id";
        let rows = observer.query(sql, &[&from, &self.watermark, &self.orgs]).await.expect("read the log");
        rows.iter()
            .map(|row| Line { id: row.get(0), org: row.get(1), key: (row.get(2), row.get(3)), groups: row.get(4) })
            .collect()
    }

    async fn rows(&self, observer: &Client) -> BTreeMap<Key, Row> {
        let rows = observer.query(ROWS, &[&self.orgs]).await.expect("read the rows");
        rows.iter()
            .map(|row| {
                let key: Key = (row.get(0), row.get(1));
                (key, Row { org: row.get(2), groups: row.get(3), text: row.get(4) })
            })
            .collect()
    }
}

impl Follower {
    fn sees(&self, row: &Row) -> bool {
        row.org == self.org && row.groups.contains(&self.group)
    }

    fn visible(&self, rows: &BTreeMap<Key, Row>) -> BTreeMap<Key, String> {
        rows.iter().filter(|(_, row)| self.sees(row)).map(|(key, row)| (key.clone(), row.text.clone())).collect()
    }

    fn catch_up(&mut self, lines: &[Line], rows: &BTreeMap<Key, Row>, watermark: i64) {
        let mine = |line: &&Line| line.id > self.cursor && line.org == self.org && line.groups.contains(&self.group);
        let named: BTreeSet<&Key> = lines.iter().filter(mine).map(|line| &line.key).collect();
        for key in named {
            match rows.get(key).filter(|row| self.sees(row)) {
                Some(row) => self.rows.insert(key.clone(), row.text.clone()),
                None => self.rows.remove(key),
            };
        }
        self.cursor = watermark;
    }

    fn compare(&self, rows: &BTreeMap<Key, Row>) -> Result<(), String> {
        let visible = self.visible(rows);
        if self.rows == visible {
            return Ok(());
        }
        Err(format!(
            "a client of {} in {} that began at turn {} (sync id {}) holds {:?}, but the database says {:?}",
            self.group, self.org, self.born, self.since, self.rows, visible
        ))
    }
}
