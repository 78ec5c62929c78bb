-- The demonstration workspace: an issue tracker as teams build them, for several tenants in one database.
-- Plain PostgreSQL, in schema public. config/catalog.toml maps these tables to models; it and this file change together.
--
-- What it shows on purpose: children that carry neither tenant nor team (comment, reaction, attachment), a child with
-- a tenant of its own (issue_history), arrays as groups (project.team_ids) and as keys (issue.label_ids), rows of one
-- user (favourite, notification), rows that may or may not belong to a team (label), columns that must never leave
-- (app_user.password_hash, issue.search_vector), rows that are archived rather than deleted.

CREATE TYPE workflow_kind AS ENUM ('triage', 'backlog', 'unstarted', 'started', 'completed', 'canceled');
CREATE TYPE project_health AS ENUM ('on_track', 'at_risk', 'off_track');

CREATE TABLE organization (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    url_key text NOT NULL UNIQUE,
    plan text NOT NULL,
    settings jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

CREATE TABLE app_user (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization ON DELETE CASCADE,
    name text NOT NULL,
    display_name text NOT NULL,
    email text NOT NULL UNIQUE,
    password_hash text NOT NULL,
    admin boolean NOT NULL,
    active boolean NOT NULL,
    timezone text NOT NULL,
    avatar_url text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX app_user_organization_id ON app_user (organization_id);

CREATE TABLE team (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization ON DELETE CASCADE,
    key varchar(8) NOT NULL,
    name text NOT NULL,
    description text,
    color char(7) NOT NULL,
    cycle_days smallint,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    UNIQUE (organization_id, key)
);

CREATE TABLE team_membership (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization ON DELETE CASCADE,
    team_id uuid NOT NULL REFERENCES team ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES app_user ON DELETE CASCADE,
    owner boolean NOT NULL,
    sort_order double precision NOT NULL,
    created_at timestamptz NOT NULL,
    UNIQUE (team_id, user_id)
);
CREATE INDEX team_membership_organization_id_user_id ON team_membership (organization_id, user_id);
CREATE INDEX team_membership_user_id ON team_membership (user_id);

CREATE TABLE workflow_state (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization ON DELETE CASCADE,
    team_id uuid NOT NULL REFERENCES team ON DELETE CASCADE,
    name text NOT NULL,
    kind workflow_kind NOT NULL,
    color char(7) NOT NULL,
    position real NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX workflow_state_organization_id ON workflow_state (organization_id);
CREATE INDEX workflow_state_team_id ON workflow_state (team_id);

-- A label without a team belongs to the whole organization.
CREATE TABLE label (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization ON DELETE CASCADE,
    team_id uuid REFERENCES team ON DELETE CASCADE,
    name text NOT NULL,
    color char(7) NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX label_organization_id ON label (organization_id);
CREATE INDEX label_team_id ON label (team_id);

-- Seen by every team in team_ids. An empty list is a draft that nobody sees yet.
CREATE TABLE project (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization ON DELETE CASCADE,
    team_ids uuid[] NOT NULL,
    lead_id uuid REFERENCES app_user,
    name text NOT NULL,
    description text NOT NULL,
    health project_health,
    progress double precision NOT NULL,
    budget numeric(12, 2),
    start_date date,
    target_date date,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX project_organization_id ON project (organization_id);
CREATE INDEX project_team_ids ON project USING gin (team_ids);

CREATE TABLE project_update (
    id uuid PRIMARY KEY,
    project_id uuid NOT NULL REFERENCES project ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES app_user,
    health project_health NOT NULL,
    body text NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX project_update_project_id ON project_update (project_id);

CREATE TABLE issue (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization ON DELETE CASCADE,
    team_id uuid NOT NULL REFERENCES team ON DELETE CASCADE,
    number integer NOT NULL,
    title text NOT NULL,
    description text,
    state_id uuid NOT NULL REFERENCES workflow_state,
    project_id uuid REFERENCES project,
    creator_id uuid NOT NULL REFERENCES app_user,
    assignee_id uuid REFERENCES app_user,
    parent_id uuid REFERENCES issue,
    label_ids uuid[] NOT NULL DEFAULT '{}',
    priority smallint NOT NULL,
    estimate smallint,
    sort_order double precision NOT NULL,
    due_date date,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    started_at timestamptz,
    completed_at timestamptz,
    archived_at timestamptz,
    search_vector tsvector GENERATED ALWAYS AS (to_tsvector('simple', title || ' ' || coalesce(description, ''))) STORED,
    UNIQUE (team_id, number)
);
CREATE INDEX issue_organization_id ON issue (organization_id);
CREATE INDEX issue_project_id ON issue (project_id);
CREATE INDEX issue_assignee_id ON issue (assignee_id);
CREATE INDEX issue_parent_id ON issue (parent_id);
CREATE INDEX issue_label_ids ON issue USING gin (label_ids);
CREATE INDEX issue_search_vector ON issue USING gin (search_vector);

CREATE TABLE comment (
    id uuid PRIMARY KEY,
    issue_id uuid NOT NULL REFERENCES issue ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES app_user,
    body text NOT NULL,
    created_at timestamptz NOT NULL,
    edited_at timestamptz,
    deleted_at timestamptz
);
CREATE INDEX comment_issue_id ON comment (issue_id);

CREATE TABLE reaction (
    id uuid PRIMARY KEY,
    comment_id uuid NOT NULL REFERENCES comment ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES app_user,
    emoji text NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX reaction_comment_id ON reaction (comment_id);

CREATE TABLE issue_history (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization ON DELETE CASCADE,
    issue_id uuid NOT NULL REFERENCES issue ON DELETE CASCADE,
    actor_id uuid REFERENCES app_user,
    changes jsonb NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX issue_history_organization_id ON issue_history (organization_id);
CREATE INDEX issue_history_issue_id ON issue_history (issue_id);

CREATE TABLE attachment (
    id uuid PRIMARY KEY,
    issue_id uuid NOT NULL REFERENCES issue ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES app_user,
    file_name text NOT NULL,
    media_type text NOT NULL,
    size_bytes bigint NOT NULL,
    sha256 bytea NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX attachment_issue_id ON attachment (issue_id);

CREATE TABLE favourite (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES app_user ON DELETE CASCADE,
    issue_id uuid REFERENCES issue ON DELETE CASCADE,
    project_id uuid REFERENCES project ON DELETE CASCADE,
    sort_order double precision NOT NULL,
    created_at timestamptz NOT NULL,
    CHECK (num_nonnulls(issue_id, project_id) = 1)
);
CREATE INDEX favourite_organization_id ON favourite (organization_id);
CREATE INDEX favourite_user_id ON favourite (user_id);
CREATE INDEX favourite_issue_id ON favourite (issue_id);
CREATE INDEX favourite_project_id ON favourite (project_id);

CREATE TABLE notification (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organization ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES app_user ON DELETE CASCADE,
    issue_id uuid NOT NULL REFERENCES issue ON DELETE CASCADE,
    kind text NOT NULL,
    snoozed_for interval,
    read_at timestamptz,
    created_at timestamptz NOT NULL
);
CREATE INDEX notification_organization_id ON notification (organization_id);
CREATE INDEX notification_user_id ON notification (user_id);
CREATE INDEX notification_issue_id ON notification (issue_id);
