-- Organizations :first to :last, each of about :size rows: a fifth issues, the rest their comments, up to twenty teams, one
-- user who is in all of them. Without checks of references, so that a million rows take a minute.
SET session_replication_role = replica;
SET synchronous_commit = off;
CREATE FUNCTION pg_temp.uid(kind text, org bigint, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS
$$ SELECT md5('growth ' || kind || ' ' || org || '/' || n)::uuid $$;
CREATE TEMPORARY TABLE sized AS
    SELECT org, :size / 5 AS issues, :size * 4 / 5 AS comments, least(20, greatest(1, :size / 50)) AS teams
    FROM generate_series(:first, :last) org;
INSERT INTO organization
    SELECT pg_temp.uid('org', 0, org), 'Org ' || org, 'growth-' || org, 'team', '{}', '2024-01-01', '2024-01-01' FROM sized;
INSERT INTO app_user
    SELECT pg_temp.uid('user', org, 1), pg_temp.uid('org', 0, org), 'User', 'user', org || '@growth.example', '', true, true,
           'Europe/Berlin', NULL, '2024-01-01', '2024-01-01' FROM sized;
INSERT INTO team
    SELECT pg_temp.uid('team', org, t), pg_temp.uid('org', 0, org), 'T' || t, 'Team ' || t, NULL, '#5e6ad2', 14, '2024-01-01', '2024-01-01'
    FROM sized, generate_series(1, teams) t;
INSERT INTO team_membership
    SELECT pg_temp.uid('membership', org, t), pg_temp.uid('org', 0, org), pg_temp.uid('team', org, t), pg_temp.uid('user', org, 1),
           true, t, '2024-01-01' FROM sized, generate_series(1, teams) t;
INSERT INTO workflow_state
    SELECT pg_temp.uid('state', org, t), pg_temp.uid('org', 0, org), pg_temp.uid('team', org, t), 'Todo', 'unstarted', '#5e6ad2', 1, '2024-01-01'
    FROM sized, generate_series(1, teams) t;
INSERT INTO issue (id, organization_id, team_id, number, title, state_id, creator_id, priority, sort_order, created_at, updated_at)
    SELECT pg_temp.uid('issue', org, n), pg_temp.uid('org', 0, org), pg_temp.uid('team', org, 1 + n % teams), n,
           'Look into ' || md5(n::text), pg_temp.uid('state', org, 1 + n % teams), pg_temp.uid('user', org, 1), n % 5, n * 1.5,
           timestamptz '2024-01-01' + n * interval '7 seconds', timestamptz '2024-01-02' + n * interval '7 seconds'
    FROM sized, generate_series(1, issues) n;
INSERT INTO comment
    SELECT pg_temp.uid('comment', org, n), pg_temp.uid('issue', org, 1 + n % issues), pg_temp.uid('user', org, 1),
           'What we see is ' || md5(n::text) || repeat(' and the customer is waiting for an answer', 1 + (n % 7)::integer) || '.',
           timestamptz '2024-01-03' + n * interval '3 seconds', NULL, NULL
    FROM sized, generate_series(1, comments) n;
