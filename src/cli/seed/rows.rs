//! The rows of the workspace, one statement a table, in the order their references need.
//!
//! Each takes an organization's number and the first and the last row to make ($1, $2, $3), so that a large table comes
//! in pieces and the progress bar moves. Rows follow from their number alone: every run makes the same ones. The
//! functions are those of `words.sql`.

use super::plan::Plan;

/// How one table is filled.
pub(super) struct Step {
    /// The table, for the progress bar.
    pub table: &'static str,
    /// How many numbers to count through for an organization.
    pub count: fn(&Plan) -> i64,
    /// Makes the rows of a span of numbers.
    pub sql: &'static str,
}

/// Organizations, people, teams and projects.
pub(super) const FRAME: [Step; 8] = [
    Step {
        table: "organization",
        count: |_| 1,
        sql: "
INSERT INTO organization (id, name, url_key, plan, settings, created_at, updated_at)
SELECT organization_id, name, lower(replace(name, ' ', '-')), CASE org WHEN 1 THEN 'enterprise' ELSE 'team' END,
       jsonb_build_object('locale', 'en', 'fiscalYearStart', 4, 'sso', NULL, 'limits', jsonb_build_object('seats', users * 2)),
       pg_temp.moment(0), pg_temp.moment(pg_temp.share(r, 2))
FROM pg_temp.span($1, $2, $3),
     LATERAL (SELECT (ARRAY['Lumen Works', 'Harbor Pine', 'Quill Street', 'Fjord Labs', 'Kite Foundry', 'Otter Bay'])[org] AS name) named",
    },
    Step {
        table: "app_user",
        count: |plan| plan.users,
        sql: "
INSERT INTO app_user (id, organization_id, name, display_name, email, password_hash, admin, active, timezone, avatar_url,
                      created_at, updated_at)
SELECT pg_temp.uid('user', org, n), organization_id, first || ' ' || last, lower(first), 'user' || n || '@org' || org || '.example',
       'scrypt$' || md5(r::text), n = 1, n <= 2 OR pg_temp.roll(r, 3, 20) > 0,
       pg_temp.pick(ARRAY['Europe/Berlin', 'America/New_York', 'Asia/Tokyo', 'Africa/Nairobi', 'America/Sao_Paulo'], r, 4),
       CASE pg_temp.roll(r, 5, 3) WHEN 0 THEN NULL ELSE 'https://avatars.example/' || md5(r::text) || '.png' END,
       pg_temp.moment(pg_temp.share(r, 6) * 0.5), pg_temp.moment(0.5 + pg_temp.share(r, 7) * 0.5)
FROM pg_temp.span($1, $2, $3), LATERAL (SELECT pg_temp.first_name(r) AS first, pg_temp.last_name(r) AS last) named",
    },
    Step {
        table: "team",
        count: |plan| plan.teams,
        sql: "
INSERT INTO team (id, organization_id, key, name, description, color, cycle_days, created_at, updated_at)
SELECT pg_temp.uid('team', org, n), organization_id, upper(left(area, 3)) || (ARRAY['', '2', '3'])[round],
       area || (ARRAY['', ' Europe', ' Asia'])[round],
       CASE pg_temp.roll(r, 2, 3) WHEN 0 THEN NULL ELSE pg_temp.sentence(r) END, pg_temp.color(r),
       CASE pg_temp.roll(r, 3, 3) WHEN 0 THEN NULL ELSE 14 END, pg_temp.moment(0), pg_temp.moment(pg_temp.share(r, 4))
FROM pg_temp.span($1, $2, $3), LATERAL (SELECT pg_temp.area(n - 1 + org - 1) AS area, 1 + (n - 1) / 30 AS round) named",
    },
    // The first user is in every team, the second in few: at most three.
    Step {
        table: "team_membership",
        count: |plan| plan.users,
        sql: "
INSERT INTO team_membership (id, organization_id, team_id, user_id, owner, sort_order, created_at)
SELECT pg_temp.uid('membership', org, n * 1000 + k), organization_id, pg_temp.uid('team', org, 1 + (start + k * 17) % teams),
       pg_temp.uid('user', org, n), pg_temp.roll(r + k, 2, 8) = 0, k * 1000.5, pg_temp.moment(pg_temp.share(r + k, 3))
FROM pg_temp.span($1, $2, $3),
     LATERAL (SELECT CASE WHEN n <= 2 THEN 7 ELSE pg_temp.roll(r, 4, teams) END AS start) begun,
     generate_series(0, CASE n WHEN 1 THEN teams WHEN 2 THEN least(3, greatest(1, teams / 4))
                               ELSE least(teams, 1 + pg_temp.roll(r, 5, 5)) END - 1) k",
    },
    Step {
        table: "workflow_state",
        count: |plan| plan.teams * 6,
        sql: "
INSERT INTO workflow_state (id, organization_id, team_id, name, kind, color, position, created_at)
SELECT pg_temp.uid('state', org, n), organization_id, pg_temp.uid('team', org, 1 + (n - 1) / 6),
       (ARRAY['Triage', 'Backlog', 'Todo', 'In Progress', 'Done', 'Canceled'])[place],
       (enum_range(NULL::workflow_kind))[place], pg_temp.color(place), place * 0.1, pg_temp.moment(0)
FROM pg_temp.span($1, $2, $3), LATERAL (SELECT 1 + (n - 1) % 6 AS place) placed",
    },
    // The first eight belong to no team.
    Step {
        table: "label",
        count: |plan| 8 + plan.teams * 4,
        sql: "
INSERT INTO label (id, organization_id, team_id, name, color, created_at)
SELECT pg_temp.uid('label', org, n), organization_id, CASE WHEN n > 8 THEN pg_temp.uid('team', org, 1 + (n - 9) / 4) END,
       CASE WHEN n > 8 THEN (ARRAY['blocked', 'customer', 'good first issue', 'needs design'])[1 + (n - 9) % 4]
       ELSE (ARRAY['bug', 'feature', 'chore', 'security', 'performance', 'regression', 'question', 'tech debt'])[n] END,
       pg_temp.color(n), pg_temp.moment(0)
FROM pg_temp.span($1, $2, $3)",
    },
    // Seen by up to three teams; one in forty by none.
    Step {
        table: "project",
        count: |plan| plan.projects,
        sql: "
INSERT INTO project (id, organization_id, team_ids, lead_id, name, description, health, progress, budget, start_date,
                     target_date, created_at, updated_at)
SELECT pg_temp.uid('project', org, n), organization_id,
       CASE n % 40 WHEN 0 THEN '{}' ELSE ARRAY(
           SELECT DISTINCT pg_temp.uid('team', org, 1 + (n - 1 + k * pg_temp.roll(r, 2, teams)) % teams)
           FROM generate_series(0, pg_temp.roll(r, 3, 3)) k) END,
       CASE pg_temp.roll(r, 4, 5) WHEN 0 THEN NULL ELSE pg_temp.uid('user', org, 1 + pg_temp.roll(r, 5, users)) END,
       pg_temp.title(r), pg_temp.prose(r, 2 + pg_temp.roll(r, 6, 8)),
       CASE pg_temp.roll(r, 7, 4) WHEN 0 THEN NULL ELSE pg_temp.pick(enum_range(NULL::project_health), r, 8) END,
       pg_temp.share(r, 10), CASE pg_temp.roll(r, 11, 2) WHEN 0 THEN NULL ELSE pg_temp.roll(r, 12, 90000000) / 100.0 END,
       created::date, CASE pg_temp.roll(r, 13, 4) WHEN 0 THEN NULL ELSE created::date + 90 END, created, created + interval '20 days'
FROM pg_temp.span($1, $2, $3), LATERAL (SELECT pg_temp.moment(n / projects::double precision * 0.9) AS created) begun",
    },
    Step {
        table: "project_update",
        count: |plan| plan.projects * 4,
        sql: "
INSERT INTO project_update (id, project_id, user_id, health, body, created_at)
SELECT pg_temp.uid('project update', org, n), pg_temp.uid('project', org, project), pg_temp.uid('user', org, 1 + pg_temp.roll(r, 2, users)),
       pg_temp.pick(enum_range(NULL::project_health), r, 3), pg_temp.prose(r, 1 + pg_temp.roll(r, 4, 6)),
       pg_temp.moment(project / projects::double precision * 0.9) + (1 + n % 4) * interval '9 days 03:20:10.5'
FROM pg_temp.span($1, $2, $3), LATERAL (SELECT 1 + (n - 1) / 4 AS project) chosen",
    },
];

/// What each team has, gathered once so that issues and what hangs on them can pick from it.
pub(super) const TEAM_PLAN: &str = "
CREATE TEMPORARY TABLE team_plan ON COMMIT DROP AS
SELECT plan.org, t AS team, pg_temp.uid('team', plan.org, t) AS team_id,
       ARRAY(SELECT pg_temp.uid('state', plan.org, (t - 1) * 6 + k) FROM generate_series(1, 6) k) AS state_ids,
       ARRAY(SELECT pg_temp.uid('label', plan.org, k) FROM generate_series(1, 8) k)
           || ARRAY(SELECT pg_temp.uid('label', plan.org, 8 + (t - 1) * 4 + k) FROM generate_series(1, 4) k) AS label_ids,
       ARRAY(SELECT id FROM project WHERE team_ids @> ARRAY[pg_temp.uid('team', plan.org, t)] ORDER BY created_at, id) AS project_ids,
       ARRAY(SELECT user_id FROM team_membership WHERE team_id = pg_temp.uid('team', plan.org, t) ORDER BY user_id) AS member_ids
FROM plan, generate_series(1, plan.teams) t;
ALTER TABLE team_plan ADD PRIMARY KEY (org, team);
ANALYZE team_plan";

/// Issues and what hangs on them. Each joins the team of its issue.
pub(super) const WORK: [Step; 7] = [
    Step {
        table: "issue",
        count: |plan| plan.issues,
        sql: "
INSERT INTO issue (id, organization_id, team_id, number, title, description, state_id, project_id, creator_id, assignee_id,
                   parent_id, label_ids, priority, estimate, sort_order, due_date, metadata, created_at, updated_at,
                   started_at, completed_at, archived_at)
SELECT pg_temp.uid('issue', org, n), organization_id, team_id, n, pg_temp.title(r),
       CASE pg_temp.roll(r, 50, 7) WHEN 0 THEN NULL ELSE pg_temp.prose(r, 1 + floor(16 * pg_temp.share(r, 51) ^ 2)::bigint) END,
       state_ids[state], CASE pg_temp.roll(r, 52, 3) WHEN 0 THEN NULL ELSE pg_temp.pick(project_ids, r, 53) END,
       pg_temp.pick(member_ids, r, 54), CASE pg_temp.roll(r, 55, 4) WHEN 0 THEN NULL ELSE pg_temp.pick(member_ids, r, 56) END,
       CASE WHEN n > 1 AND pg_temp.roll(r, 57, 12) = 0 THEN pg_temp.uid('issue', org, n - 1 - pg_temp.roll(r, 58, least(n - 1, 50))) END,
       CASE pg_temp.roll(r, 59, 5) WHEN 0 THEN '{}' WHEN 1 THEN ARRAY[team_plan.label_ids[1 + pg_temp.roll(r, 60, 4)], team_plan.label_ids[5 + pg_temp.roll(r, 61, 8)]]
       ELSE ARRAY[team_plan.label_ids[1 + pg_temp.roll(r, 60, 12)]] END,
       pg_temp.roll(r, 62, 5), CASE pg_temp.roll(r, 63, 2) WHEN 0 THEN pg_temp.pick(ARRAY[1, 2, 3, 5, 8], r, 64) END,
       (pg_temp.share(r, 65) - 0.5) * 100000, CASE pg_temp.roll(r, 66, 6) WHEN 0 THEN created::date + 30 END,
       CASE pg_temp.roll(r, 67, 3) WHEN 0 THEN '{}' WHEN 1 THEN jsonb_build_object('source', 'web', 'watchers', pg_temp.roll(r, 68, 12))
       ELSE jsonb_build_object('source', 'support', 'customer', jsonb_build_object('tier',
           pg_temp.pick(ARRAY['free', 'team', 'enterprise'], r, 69), 'seats', pg_temp.roll(r, 70, 900), 'churnRisk', NULL),
           'links', jsonb_build_array('https://desk.example/tickets/' || pg_temp.roll(r, 71, 1000000))) END,
       created, created + interval '1 minute' + interval '12 days' * pg_temp.share(r, 72),
       CASE WHEN state IN (4, 5) THEN created + interval '2 days' * pg_temp.share(r, 73) END,
       CASE WHEN state = 5 THEN created + interval '2 days' + interval '9 days' * pg_temp.share(r, 74) END,
       CASE WHEN state >= 5 AND pg_temp.roll(r, 75, 16) = 0 THEN created + interval '60 days' END
FROM pg_temp.span($1, $2, $3) JOIN team_plan USING (org),
     LATERAL (SELECT pg_temp.moment((n + pg_temp.share(r, 76)) / issues) AS created,
                     (ARRAY[1, 2, 2, 3, 4, 5, 5, 5, 5, 6])[1 + pg_temp.roll(r, 77, 10)] AS state) drawn
WHERE team = pg_temp.team_of(org, n, teams)",
    },
    Step {
        table: "comment",
        count: |plan| plan.comments(),
        sql: "
INSERT INTO comment (id, issue_id, user_id, body, created_at, edited_at, deleted_at)
SELECT pg_temp.uid('comment', org, n), pg_temp.uid('issue', org, issue), pg_temp.pick(member_ids, r, 2),
       pg_temp.prose(-r, 1 + floor(6 * pg_temp.share(r, 3) ^ 2)::bigint), created,
       CASE pg_temp.roll(r, 4, 10) WHEN 0 THEN created + interval '4 minutes' END,
       CASE pg_temp.roll(r, 5, 50) WHEN 0 THEN created + interval '1 day' END
FROM pg_temp.span($1, $2, $3) JOIN team_plan USING (org), LATERAL (SELECT 1 + pg_temp.roll(r, 6, issues) AS issue) chosen,
     LATERAL (SELECT pg_temp.moment(issue / issues::double precision) + interval '6 days' * pg_temp.share(r, 7) AS created) said
WHERE team = pg_temp.team_of(org, issue, teams)",
    },
    Step {
        table: "reaction",
        count: |plan| plan.comments() / 4,
        sql: "
INSERT INTO reaction (id, comment_id, user_id, emoji, created_at)
SELECT pg_temp.uid('reaction', org, n), pg_temp.uid('comment', org, 1 + pg_temp.roll(r, 2, comments)),
       pg_temp.uid('user', org, 1 + pg_temp.roll(r, 3, users)), pg_temp.pick(ARRAY['👍', '🎉', '👀', '❤️', '🚀', '👩‍💻'], r, 4),
       pg_temp.moment(n * 4.0 / comments)
FROM pg_temp.span($1, $2, $3)",
    },
    Step {
        table: "issue_history",
        count: |plan| plan.issues * 2,
        sql: "
INSERT INTO issue_history (id, organization_id, issue_id, actor_id, changes, created_at)
SELECT pg_temp.uid('history', org, n), organization_id, pg_temp.uid('issue', org, issue),
       CASE pg_temp.roll(r, 2, 12) WHEN 0 THEN NULL ELSE pg_temp.pick(member_ids, r, 3) END,
       CASE pg_temp.roll(r, 4, 3)
           WHEN 0 THEN jsonb_build_array(jsonb_build_object('field', 'stateId', 'from', state_ids[1 + pg_temp.roll(r, 5, 3)], 'to', state_ids[4]))
           WHEN 1 THEN jsonb_build_array(jsonb_build_object('field', 'assigneeId', 'from', NULL, 'to', pg_temp.pick(member_ids, r, 6)),
                                         jsonb_build_object('field', 'priority', 'from', 0, 'to', 1 + pg_temp.roll(r, 7, 4)))
           ELSE jsonb_build_array(jsonb_build_object('field', 'title', 'from', pg_temp.title(-r), 'to', pg_temp.title(r))) END,
       pg_temp.moment(issue / issues::double precision) + interval '11 days' * pg_temp.share(r, 8)
FROM pg_temp.span($1, $2, $3) JOIN team_plan USING (org), LATERAL (SELECT 1 + pg_temp.roll(r, 9, issues) AS issue) chosen
WHERE team = pg_temp.team_of(org, issue, teams)",
    },
    Step {
        table: "attachment",
        count: |plan| plan.issues / 3,
        sql: "
INSERT INTO attachment (id, issue_id, user_id, file_name, media_type, size_bytes, sha256, created_at)
SELECT pg_temp.uid('attachment', org, n), pg_temp.uid('issue', org, issue), pg_temp.uid('user', org, 1 + pg_temp.roll(r, 2, users)),
       replace(lower(pg_temp.title(r)), ' ', '-') || '.' || kind, 'image/' || kind, 1000 + pg_temp.roll(r, 3, 8000000000),
       sha256(r::text::bytea), pg_temp.moment(issue / issues::double precision) + interval '1 hour'
FROM pg_temp.span($1, $2, $3),
     LATERAL (SELECT 1 + pg_temp.roll(r, 4, issues) AS issue, pg_temp.pick(ARRAY['png', 'jpeg', 'gif'], r, 5) AS kind) chosen",
    },
    Step {
        table: "favourite",
        count: |plan| plan.users * 6,
        sql: "
INSERT INTO favourite (id, organization_id, user_id, issue_id, project_id, sort_order, created_at)
SELECT pg_temp.uid('favourite', org, n), organization_id, pg_temp.uid('user', org, 1 + (n - 1) % users),
       CASE WHEN n % 3 > 0 THEN pg_temp.uid('issue', org, 1 + pg_temp.roll(r, 2, issues)) END,
       CASE WHEN n % 3 = 0 THEN pg_temp.uid('project', org, 1 + pg_temp.roll(r, 3, projects)) END,
       n, pg_temp.moment(pg_temp.share(r, 4))
FROM pg_temp.span($1, $2, $3)",
    },
    Step {
        table: "notification",
        count: |plan| plan.issues / 2,
        sql: "
INSERT INTO notification (id, organization_id, user_id, issue_id, kind, snoozed_for, read_at, created_at)
SELECT pg_temp.uid('notification', org, n), organization_id, pg_temp.pick(member_ids, r, 2), pg_temp.uid('issue', org, issue),
       pg_temp.pick(ARRAY['issueAssigned', 'issueCommented', 'issueMentioned', 'issueDue'], r, 3),
       CASE pg_temp.roll(r, 4, 9) WHEN 0 THEN interval '1 day 02:30' END,
       CASE pg_temp.roll(r, 5, 2) WHEN 0 THEN happened + interval '3 hours' END, happened
FROM pg_temp.span($1, $2, $3) JOIN team_plan USING (org), LATERAL (SELECT 1 + pg_temp.roll(r, 6, issues) AS issue) chosen,
     LATERAL (SELECT pg_temp.moment(issue / issues::double precision) + interval '5 days' * pg_temp.share(r, 7) AS happened) begun
WHERE team = pg_temp.team_of(org, issue, teams)",
    },
];
