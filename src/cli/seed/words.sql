-- What the rows are made of: temporary functions, gone with the connection. Everything follows from a row's number, so
-- that every run makes the same workspace. Names follow the words of rows.rs.

-- One line for each organization; the first is the big one.
CREATE TEMPORARY TABLE plan (
    org integer PRIMARY KEY,
    teams integer NOT NULL,
    users integer NOT NULL,
    projects integer NOT NULL,
    issues integer NOT NULL,
    comments integer NOT NULL
);

-- A row's id.
CREATE FUNCTION pg_temp.uid(kind text, org bigint, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS
$$ SELECT md5(kind || ' ' || org || '/' || n)::uuid $$;

-- A number below the bound, or null when nothing is below it. hashint8extended keeps its values across versions: hash partitions depend on them.
CREATE FUNCTION pg_temp.roll(r bigint, salt integer, bound bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS
$$ SELECT (hashint8extended(r, salt) & 9223372036854775807) % nullif(bound, 0) $$;

-- A number from 0 up to 1.
CREATE FUNCTION pg_temp.share(r bigint, salt integer) RETURNS double precision LANGUAGE sql IMMUTABLE AS
$$ SELECT pg_temp.roll(r, salt, 1000000) / 1000000.0::double precision $$;

-- One element.
CREATE FUNCTION pg_temp.pick(list anyarray, r bigint, salt integer) RETURNS anyelement LANGUAGE sql IMMUTABLE AS
$$ SELECT list[1 + pg_temp.roll(r, salt, cardinality(list))] $$;

-- Rows first to last of an organization: n counts within it, r is of all organizations, for rolls.
CREATE FUNCTION pg_temp.span(org integer, first bigint, last bigint)
RETURNS TABLE (n bigint, r bigint, org integer, organization_id uuid,
               teams integer, users integer, projects integer, issues integer, comments integer)
LANGUAGE sql STABLE AS
$$
    SELECT n, plan.org * 1000000000::bigint + n, plan.org, pg_temp.uid('organization', 0, plan.org),
           plan.teams, plan.users, plan.projects, plan.issues, plan.comments
    FROM plan, generate_series(first, last) n WHERE plan.org = span.org
$$;

-- The team of an issue: a few teams have most of them.
CREATE FUNCTION pg_temp.team_of(org integer, issue bigint, teams integer) RETURNS integer LANGUAGE sql IMMUTABLE AS
$$ SELECT 1 + floor(teams * pg_temp.share(org * 1000000000::bigint + issue, 1) ^ 1.6)::integer $$;

-- When the part of a thousand days after the workspace's first morning is over.
CREATE FUNCTION pg_temp.moment(part double precision) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS
$$ SELECT timestamptz '2023-01-09 08:00:00+00' + interval '86400000.123457 seconds' * part $$;

CREATE FUNCTION pg_temp.color(r bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT pg_temp.pick(ARRAY['#5e6ad2', '#26b5ce', '#4cb782', '#f2c94c', '#f2994a', '#eb5757', '#95a2b3', '#bb87fc'], r, 9) $$;

CREATE FUNCTION pg_temp.area(r bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$$
    SELECT (ARRAY[
        'Payments', 'Search', 'Mobile', 'Growth', 'Infrastructure', 'Design', 'Billing', 'Onboarding', 'Security', 'Data',
        'Editor', 'Sync', 'Notifications', 'Integrations', 'Reliability', 'Support', 'Localization', 'Accounts',
        'Analytics', 'Web', 'Marketplace', 'Quality', 'Trust', 'Checkout', 'Messaging', 'Video', 'Hardware', 'Firmware',
        'Documentation', 'Partners'
    ])[1 + r % 30]
$$;

CREATE FUNCTION pg_temp.first_name(r bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$$
    SELECT pg_temp.pick(ARRAY[
        'Ada', 'Björn', 'Chiara', 'Dmitri', 'Elif', 'Farah', 'Grace', 'Hiro', 'Inês', 'Jonas', 'Kofi', 'Léa', 'Marek',
        'Nadia', 'Oluwaseun', 'Priya', 'Quentin', 'Rosa', 'Søren', 'Tuấn', 'Ulla', 'Veronika', 'Wanjiru', 'Ximena',
        'Yusuf', 'Zoë', '美咲', '지훈', 'Łukasz', 'Siobhán'
    ], r, 11)
$$;

CREATE FUNCTION pg_temp.last_name(r bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$$
    SELECT pg_temp.pick(ARRAY[
        'Andersen', 'Bianchi', 'Castillo', 'D''Souza', 'Eriksson', 'Fernández', 'García', 'Haddad', 'Ivanova', 'Jansen',
        'Kowalski', 'Lindqvist', 'Mbeki', 'Nguyen', 'O''Brien', 'Papadopoulos', 'Quispe', 'Rossi', 'Schäfer', 'Tanaka',
        'Ueda', 'Virtanen', 'Weiß', 'Xu', 'Yılmaz', 'Zielińska', 'Okafor', 'Rahman', 'Silva', 'Novák'
    ], r, 12)
$$;

-- What an issue, a branch or a file is called.
CREATE FUNCTION pg_temp.title(r bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$$
    SELECT pg_temp.pick(ARRAY[
        'Fix', 'Investigate', 'Remove', 'Speed up', 'Document', 'Redesign', 'Add tests for', 'Migrate', 'Simplify',
        'Roll out', 'Measure', 'Support', 'Deprecate', 'Harden', 'Rename', 'Cache', 'Localize', 'Audit', 'Retry', 'Batch'
    ], r, 21) || ' ' || pg_temp.pick(ARRAY[
        'the invoice export', 'keyboard shortcuts', 'the “recent items” menu', 'webhook deliveries', 'session refresh',
        'the import wizard', 'offline drafts', 'avatar uploads', 'the audit log', 'rate limits', 'CSV parsing',
        'the command palette', 'time zone handling', 'push tokens', 'inline comments', 'the billing portal',
        'search ranking', 'role changes', 'the empty state', 'link previews', 'drag & drop', 'bulk edits',
        'two-factor setup', 'the onboarding checklist'
    ], r, 22) || ' ' || pg_temp.pick(ARRAY[
        'on slow connections', 'for guests', 'after a failed payment', 'in Safari', 'when a team is archived',
        'for very large workspaces', 'on Android', 'during a deploy', 'across time zones', 'with screen readers',
        'when the token expires', 'in dark mode', 'behind a proxy', 'for imported data', 'after sign-out',
        'while offline', 'in right-to-left languages', 'for enterprise plans', 'under load', 'on first launch'
    ], r, 23)
$$;

CREATE FUNCTION pg_temp.sentence(r bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$$
    SELECT pg_temp.pick(ARRAY[
        'Steps to reproduce:', 'What we see is that', 'According to support,', 'Since the last release,',
        'It turns out that', 'As discussed on Thursday,', 'In the logs of this week,', 'Customers told us that',
        'I can confirm that', 'Not sure why, but', 'After a closer look,', 'On my machine', 'Under load', 'Every night',
        'For about 2 % of requests', 'If nobody objects,', 'Before we ship this,', 'To be honest,', '> quoted:',
        'Update:'
    ], r, 31) || ' ' || pg_temp.pick(ARRAY[
        'the client', 'the importer', 'our cache', 'the second replica', 'a background job', 'the settings page',
        'the mobile app', 'the "undo" stack', 'the legacy endpoint', 'the retry queue', 'the new editor', 'a stale tab',
        'the rate limiter', 'the export', 'the parser', 'the feature flag', 'the migration', 'the scheduler',
        'the sidebar', 'the sync engine'
    ], r, 32) || ' ' || pg_temp.pick(ARRAY[
        'drops the last change', 'waits for a lock', 'returns a 502', 'shows the old title', 'loses the selection',
        'sends the same mail twice', 'ignores the filter', 'takes more than 4 s', 'forgets the cursor', 'works as intended',
        'needs one more review', 'should be behind a flag', 'renders nothing at all', 'keeps retrying', 'runs out of memory',
        'breaks the layout', 'is hard to explain', 'stays on "loading…"', 'writes to C:\temp', 'wants a better name'
    ], r, 33) || ' ' || pg_temp.pick(ARRAY[
        'when two people edit at once', 'as soon as the list is longer than a page', 'if the name has an emoji 🎉',
        'until the page is reloaded', 'on the first try only', 'for accounts made before 2021', 'after an hour of idling',
        'and nobody noticed', 'so we should fix it first', 'which is what the spec says', 'unless the proxy is bypassed',
        'in every browser we tried', 'with the default settings', 'because the index is missing',
        'although the tests are green', 'and then recovers by itself', 'in about one of ten runs',
        'even with `--verbose`', 'and the customer is waiting', 'whatever the locale'
    ], r, 34) || CASE pg_temp.roll(r, 35, 6)
        WHEN 0 THEN ' (build ' || pg_temp.roll(r, 36, 90000) || ').'
        WHEN 1 THEN ' (see ' || left(md5(r::text), 10) || ').'
        ELSE '.'
    END
$$;

-- Sentences, now and then a new paragraph. A loop, because a query of its own for each text takes thirty times as long.
CREATE FUNCTION pg_temp.prose(r bigint, sentences bigint) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
$$
DECLARE
    prose text := pg_temp.sentence(r * 32);
BEGIN
    FOR k IN 1 .. sentences - 1 LOOP
        prose := prose || CASE pg_temp.roll(r * 32 + k, 41, 5) WHEN 0 THEN E'\n\n' ELSE ' ' END || pg_temp.sentence(r * 32 + k);
    END LOOP;
    RETURN prose;
END
$$;
