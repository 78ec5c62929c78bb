-- What people do while others read, one turn of pgbench: an issue is edited, now and then commented, its newest comment
-- deleted, or the issue moved to another team. Over the demonstration workspace, whose ids follow from their numbers;
-- pgbench -D issues=… -D teams=… says how many there are in its first organization.
\set issue random_exponential(1, :issues, 3)
\set team random(1, :teams)
\set kind random(1, 100)
UPDATE issue SET title = left(title, 60) || ' ' || :kind, updated_at = now() WHERE id = md5('issue 1/' || :issue)::uuid;
\if :kind <= 20
INSERT INTO comment (id, issue_id, user_id, body, created_at)
SELECT gen_random_uuid(), id, creator_id, 'Seen again today, now in build ' || :kind || '.', now()
FROM issue WHERE id = md5('issue 1/' || :issue)::uuid;
\elif :kind <= 24
DELETE FROM comment WHERE id = (
    SELECT id FROM comment WHERE issue_id = md5('issue 1/' || :issue)::uuid ORDER BY created_at DESC LIMIT 1);
\elif :kind <= 26
UPDATE issue SET team_id = md5('team 1/' || :team)::uuid, number = 1000000 + floor(random() * 1e9)::integer
WHERE id = md5('issue 1/' || :issue)::uuid;
\endif
