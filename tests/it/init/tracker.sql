-- An issue tracker in schemas of its own, every key led by the company, history in partitions.
CREATE SCHEMA core;
CREATE SCHEMA work;
CREATE TABLE core.companies (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text NOT NULL);
CREATE TABLE core.people (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), company_id uuid NOT NULL REFERENCES core.companies,
    email text NOT NULL, display_name text, password_digest text, UNIQUE (company_id, id));
CREATE TABLE core.squads (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), company_id uuid NOT NULL REFERENCES core.companies,
    name text NOT NULL, lead_id uuid REFERENCES core.people, UNIQUE (company_id, id));
CREATE TABLE core.squad_members (
    company_id uuid NOT NULL, squad_id uuid NOT NULL, person_id uuid NOT NULL, joined_at timestamptz DEFAULT now(),
    PRIMARY KEY (squad_id, person_id),
    FOREIGN KEY (company_id, squad_id) REFERENCES core.squads (company_id, id) ON DELETE CASCADE,
    FOREIGN KEY (company_id, person_id) REFERENCES core.people (company_id, id) ON DELETE CASCADE,
    FOREIGN KEY (company_id) REFERENCES core.companies);
CREATE TABLE core.api_tokens (
    id uuid PRIMARY KEY, person_id uuid NOT NULL REFERENCES core.people, digest text NOT NULL);
CREATE TABLE work.epics (
    id uuid PRIMARY KEY, company_id uuid NOT NULL REFERENCES core.companies, title text NOT NULL, squad_ids uuid[] NOT NULL);
CREATE INDEX ON work.epics USING gin (squad_ids);
CREATE TABLE work.tickets (
    id uuid PRIMARY KEY, company_id uuid NOT NULL, squad_id uuid, epic_id uuid REFERENCES work.epics,
    assignee_id uuid, title text NOT NULL, deleted boolean NOT NULL DEFAULT false, UNIQUE (company_id, id),
    FOREIGN KEY (company_id) REFERENCES core.companies,
    FOREIGN KEY (company_id, squad_id) REFERENCES core.squads (company_id, id),
    FOREIGN KEY (company_id, assignee_id) REFERENCES core.people (company_id, id));
CREATE INDEX ON work.tickets (squad_id);
CREATE INDEX ON work.tickets (assignee_id);
CREATE TABLE work.comments (
    id uuid PRIMARY KEY, company_id uuid NOT NULL, ticket_id uuid NOT NULL, author_id uuid NOT NULL, body text NOT NULL,
    FOREIGN KEY (company_id, ticket_id) REFERENCES work.tickets (company_id, id) ON DELETE CASCADE,
    FOREIGN KEY (company_id, author_id) REFERENCES core.people (company_id, id));
CREATE INDEX ON work.comments (ticket_id);
CREATE TABLE work.comment_reactions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, comment_id uuid NOT NULL REFERENCES work.comments ON DELETE CASCADE,
    person_id uuid NOT NULL REFERENCES core.people, emoji text NOT NULL, UNIQUE (comment_id, person_id, emoji));
CREATE TABLE work.ticket_watchers (
    ticket_id uuid REFERENCES work.tickets ON DELETE CASCADE, person_id uuid REFERENCES core.people, PRIMARY KEY (ticket_id, person_id));
CREATE TABLE work.ticket_history (
    id uuid NOT NULL, at timestamptz NOT NULL, ticket_id uuid NOT NULL REFERENCES work.tickets, field text NOT NULL,
    PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE work.ticket_history_2025 PARTITION OF work.ticket_history FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE work.ticket_history_2026 PARTITION OF work.ticket_history FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE work.files (
    id uuid PRIMARY KEY, ticket_id uuid NOT NULL REFERENCES work.tickets, name text NOT NULL, content bytea NOT NULL);
CREATE TABLE work.bookmarks (
    id uuid PRIMARY KEY, company_id uuid NOT NULL REFERENCES core.companies, person_id uuid NOT NULL REFERENCES core.people,
    ticket_id uuid NOT NULL REFERENCES work.tickets);
CREATE VIEW work.open_tickets AS SELECT * FROM work.tickets WHERE NOT deleted;
CREATE MATERIALIZED VIEW work.velocity AS SELECT squad_id, count(*) FROM work.tickets GROUP BY 1;
