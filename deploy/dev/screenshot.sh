#!/usr/bin/env bash
# `make screenshot`: the dashboard as a browser shows it, over a demonstration workspace with traffic and a dump in progress:
# light, dark, on a phone, and with a snapshot inspected. Pictures go to .dev/screenshots/.
#
#   BINARY     a build to take instead of one of the present code
# What stands in HEADSTART_TEST_POSTGRES_URL is used instead of a PostgreSQL of its own, in a database of its own.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/machine.sh
has curl || install_packages curl curl
browser=$(deploy/dev/chromium.sh bin)
pictures=$PWD/.dev/screenshots

work=$(mktemp -d "${TMPDIR:-/tmp}/headstart-screenshot.XXXXXX")
chmod 755 "$work"

finish() {
    local status=$?
    trap - EXIT INT TERM HUP
    [ ! -e "$work/traffic.pid" ] || end_process "$work/traffic.pid" screenshot.sh 5
    [ ! -e "$work/service.pid" ] || end_process "$work/service.pid" "$binary serve" 40
    [ -z "${database:-}" ] || "$bin/psql" -qAt "$HEADSTART_TEST_POSTGRES_URL" -c "DROP DATABASE IF EXISTS $database WITH (FORCE)" || true
    [ ! -e "$work/postgres" ] || deploy/dev/postgres.sh remove "$work/postgres" || say "PostgreSQL in $work was not stopped"
    [ "$status" = 0 ] || tail -n 30 "$work/service.log" >&2 || true
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

start_service() {
    local port
    bin=${HEADSTART_TEST_POSTGRES_BIN:-$(deploy/dev/postgres.sh bin)}
    database=shot_$(od -An -N 6 -t x1 /dev/urandom | tr -d ' \n')
    if [ -z "${HEADSTART_TEST_POSTGRES_URL:-}" ]; then
        port=$(deploy/dev/postgres.sh start "$work/postgres" fsync=off)
        HEADSTART_TEST_POSTGRES_URL="postgres://postgres@127.0.0.1:$port/postgres?sslmode=disable"
    fi
    "$bin/psql" -qAt "$HEADSTART_TEST_POSTGRES_URL" -c "CREATE DATABASE $database"
    HEADSTART_POSTGRES_URL=$(sed -E "s|(://[^/]*/)[^?]*|\1$database|" <<<"$HEADSTART_TEST_POSTGRES_URL")
    : >"$work/headstart.toml"
    mkdir "$work/spool"
    HEADSTART_AUTH_HS256_SECRET=$(od -An -N 32 -t x1 /dev/urandom | tr -d ' \n')
    HEADSTART_HTTP_LISTEN=127.0.0.1:$(free_port 8290)
    HEADSTART_ADMIN_LISTEN=127.0.0.1:$(free_port $((${HEADSTART_HTTP_LISTEN#*:} + 1)))
    export HEADSTART_POSTGRES_URL HEADSTART_AUTH_HS256_SECRET HEADSTART_HTTP_LISTEN HEADSTART_ADMIN_LISTEN
    export HEADSTART_CONFIG=$work/headstart.toml HEADSTART_CATALOG_PATH=$PWD/config/catalog.toml
    export HEADSTART_STORE_URL=file://$work/store HEADSTART_DUMP_SPOOL_DIR=$work/spool HEADSTART_DUMP_BACKGROUND=false
    "$binary" seed --scale "${SCALE:-small}" >/dev/null
    "$binary" migrate --apply >/dev/null
    "$binary" serve </dev/null >"$work/service.log" 2>&1 &
    echo $! >"$work/service.pid"
    wait_ready "$work/service.pid" "$HEADSTART_ADMIN_LISTEN" "$work/service.log"
}

# Clients that bootstrap and load issues, until told to stop.
make_traffic() {
    local token base=http://$HEADSTART_HTTP_LISTEN ids body
    token=$("$binary" token --org "$1" --user "$2")
    ids=$("$bin/psql" -qAt "$HEADSTART_POSTGRES_URL" -c "SELECT string_agg(format('{\"modelName\":\"Issue\",\"id\":\"%s\"}', id), ',') FROM (SELECT id FROM issue WHERE organization_id = '$1' LIMIT 40) AS i")
    body="{\"requests\":[$ids]}"
    while true; do
        for ((n = 0; n <= RANDOM % 6; n++)); do
            curl -s -o /dev/null -H "Authorization: Bearer $token" "$base/sync/bootstrap" &
            curl -s -o /dev/null -H "Authorization: Bearer $token" -H "content-type: application/json" -d "$body" "$base/sync/batch" &
        done
        [ $((RANDOM % 5)) != 0 ] || curl -s -o /dev/null "$base/sync/groups"
        wait
        sleep 0.3
    done
}

binary=${BINARY:-}
if [ -z "$binary" ]; then
    need_rust
    cargo build -q --locked --bin headstart
    binary=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)/debug/headstart
fi
start_service
query() { "$bin/psql" -qAt "$HEADSTART_POSTGRES_URL" -c "$1"; }
org=$(query "SELECT organization_id FROM issue GROUP BY 1 ORDER BY count(*) DESC LIMIT 1")
user=$(query "SELECT user_id FROM team_membership WHERE organization_id = '$org' GROUP BY 1 ORDER BY count(*) DESC LIMIT 1")
"$binary" dump --org "$org" >/dev/null
query "UPDATE issue SET title = title || '.' WHERE organization_id = '$org'" >/dev/null
make_traffic "$org" "$user" &
echo $! >"$work/traffic.pid"
mkdir -p "$pictures"
say "half a minute of traffic"
python3 deploy/dev/screenshot.py "$browser" "http://$HEADSTART_ADMIN_LISTEN/" "$org" "$pictures"
say "pictures: $pictures"
