#!/usr/bin/env bash
# What the change log's triggers cost the application: the same writes with them and without, in two databases of one
# private PostgreSQL, in alternating rounds. Prints a table of medians and ratios.
#
#   ROUNDS=5 SECONDS_EACH=4 benches/write_cost.sh
#   BINARY=path   a build to take the triggers of, instead of one of the present code
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/dev/machine.sh
rounds=${ROUNDS:-5} seconds=${SECONDS_EACH:-4}

work=$(mktemp -d "${TMPDIR:-/tmp}/headstart-bench.XXXXXX")
chmod 755 "$work"
trap 'deploy/dev/postgres.sh remove "$work/postgres" || true; rm -rf "$work"' EXIT

binary=${BINARY:-}
if [ -z "$binary" ]; then
    need_rust
    cargo build --release --locked --bin headstart
    binary=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)/release/headstart
fi
bin=$(deploy/dev/postgres.sh bin)
port=$(deploy/dev/postgres.sh start "$work/postgres")
url() { echo "postgres://postgres@127.0.0.1:$port/$1?sslmode=disable"; }
sql() { "$bin/psql" -qAtX -v ON_ERROR_STOP=1 "$(url "$1")" -c "$2"; }

"$bin/createdb" -h 127.0.0.1 -p "$port" -U postgres plain
export HEADSTART_CATALOG_PATH=config/catalog.toml HEADSTART_STORE_URL=memory: HEADSTART_AUTH_HS256_SECRET=not-used-but-long-enough-to-be-taken
HEADSTART_POSTGRES_URL=$(url plain) "$binary" seed --scale medium >&2
# An issue with 1,000 comments, and 10,000 comments to change at once.
sql plain "
    CREATE TABLE bench_issue AS SELECT id, team_id, organization_id FROM issue ORDER BY id LIMIT 64;
    CREATE TABLE bench_user AS SELECT id FROM app_user ORDER BY id LIMIT 1;
    INSERT INTO comment (id, issue_id, user_id, body, created_at)
    SELECT gen_random_uuid(), (SELECT id FROM bench_issue LIMIT 1), u.id, 'One of a thousand', now()
      FROM bench_user AS u, generate_series(1, 1000);
    CREATE TABLE bench_many AS SELECT id FROM comment ORDER BY id LIMIT 10000;
    ALTER TABLE bench_many ADD PRIMARY KEY (id);
    CREATE TABLE bench_team AS
    SELECT array_agg(t.id) AS ids FROM team AS t WHERE t.organization_id = (SELECT organization_id FROM bench_issue LIMIT 1);
    CHECKPOINT"
# The seed migrates: the plain database is the one whose triggers are dropped.
"$bin/createdb" -h 127.0.0.1 -p "$port" -U postgres -T plain logged
HEADSTART_POSTGRES_URL=$(url logged) "$binary" migrate --apply >&2
sql plain "
    DO \$\$ DECLARE it record; BEGIN
      FOR it IN SELECT tgname, tgrelid::regclass AS tbl FROM pg_trigger WHERE tgname ILIKE 'headstart%' LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', it.tgname, it.tbl);
      END LOOP;
    END \$\$"
for database in plain logged; do sql "$database" "VACUUM ANALYZE"; done

insert="INSERT INTO comment (id, issue_id, user_id, body, created_at)
    SELECT gen_random_uuid(), i.id, u.id, 'Measured', now() FROM bench_user AS u,
    (SELECT id FROM bench_issue ORDER BY id OFFSET :place LIMIT 1) AS i"
flat() { tr '\n' ' ' <<<"$1"; }
echo "\\set place random(0, 63)
$(flat "$insert");" >"$work/insert-any.sql"
echo "$(flat "${insert/:place/0}");" >"$work/insert-one.sql"
echo "\\set place random(0, 63)
UPDATE issue SET sort_order = sort_order + 1 WHERE id = (SELECT id FROM bench_issue ORDER BY id OFFSET :place LIMIT 1);" >"$work/update.sql"
echo "UPDATE comment SET edited_at = now() WHERE id IN (SELECT id FROM bench_many);" >"$work/update-many.sql"
echo "\\set place random(1, 2000000000)
UPDATE issue SET number = :place, team_id = (SELECT ids[1 + :place % array_length(ids, 1)] FROM bench_team)
 WHERE id = (SELECT id FROM bench_issue LIMIT 1);" >"$work/move.sql"

# Milliseconds a transaction, as its client sees it.
latency() { # database script clients
    "$bin/pgbench" -n -h 127.0.0.1 -p "$port" -U postgres -M prepared -c "$3" -j 2 -T "$seconds" -f "$work/$2.sql" "$1" |
        sed -n 's/^latency average = \([0-9.]*\) ms$/\1/p'
}
median() { sort -g | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }

measure() { # title script clients
    local round database
    : >"$work/plain" && : >"$work/logged"
    for ((round = 0; round < rounds; round++)); do
        for database in plain logged; do latency "$database" "$2" "$3" >>"$work/$database"; done
    done
    awk -v title="$1" -v plain="$(median <"$work/plain")" -v logged="$(median <"$work/logged")" \
        'BEGIN { printf "| %s | %.3f ms | %.3f ms | %.2f |\n", title, plain, logged, logged / plain }'
}

echo "| write | without triggers | with triggers | ratio |"
echo "|---|--:|--:|--:|"
measure "insert one comment, 1 writer" insert-any 1
measure "insert one comment, 8 writers, 64 issues" insert-any 8
measure "insert one comment, 8 writers, all below one issue" insert-one 8
measure "update one issue, its team unchanged" update 1
measure "update 10,000 comments in one statement" update-many 1
measure "move an issue with 1,000 comments to another team" move 1
