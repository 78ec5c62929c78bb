# A service over a demonstration workspace, for scripts that look at it from outside; all of it is thrown away in the end.
# Sourced, after machine.sh. $work is a folder for whatever else there is, and processes whose ids stand in $work/*.pid are
# ended with it; $bin is where PostgreSQL's programs are, $binary the service.
# shellcheck shell=bash

work=$(mktemp -d "${TMPDIR:-/tmp}/headstart-workspace.XXXXXX")
chmod 755 "$work"

finish() {
    local status=$? file
    trap - EXIT INT TERM HUP
    for file in "$work"/*.pid; do
        [ ! -e "$file" ] || end_process "$file" "" 40
    done
    [ -z "${database:-}" ] || "$bin/psql" -qAt "$HEADSTART_TEST_POSTGRES_URL" -c "DROP DATABASE IF EXISTS $database WITH (FORCE)" || true
    [ ! -e "$work/postgres" ] || deploy/dev/postgres.sh remove "$work/postgres" || say "PostgreSQL in $work was not stopped"
    [ "$status" = 0 ] || tail -n 30 "$work/service.log" >&2 || true
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# start_service SCALE: over a workspace in a database of its own, where HEADSTART_TEST_POSTGRES_URL says or in a PostgreSQL of
# its own; the build is BINARY, or one of the present code. Settings that stand in the environment are kept.
start_service() {
    local port
    binary=${BINARY:-}
    if [ -z "$binary" ]; then
        need_rust
        cargo build -q --locked --bin headstart
        binary=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)/debug/headstart
    fi
    bin=${HEADSTART_TEST_POSTGRES_BIN:-$(deploy/dev/postgres.sh bin)}
    database=workspace_$(od -An -N 6 -t x1 /dev/urandom | tr -d ' \n')
    if [ -z "${HEADSTART_TEST_POSTGRES_URL:-}" ]; then
        port=$(deploy/dev/postgres.sh start "$work/postgres" fsync=off)
        HEADSTART_TEST_POSTGRES_URL="postgres://postgres@127.0.0.1:$port/postgres?sslmode=disable"
    fi
    "$bin/psql" -qAt "$HEADSTART_TEST_POSTGRES_URL" -c "CREATE DATABASE $database"
    HEADSTART_POSTGRES_URL=$(sed -E "s|(://[^/]*/)[^?]*|\1$database|" <<<"$HEADSTART_TEST_POSTGRES_URL")
    : >"$work/headstart.toml"
    mkdir "$work/spool"
    HEADSTART_AUTH_HS256_SECRET=$(od -An -N 32 -t x1 /dev/urandom | tr -d ' \n')
    HEADSTART_HTTP_LISTEN=127.0.0.1:$(free_port 8190)
    HEADSTART_ADMIN_LISTEN=127.0.0.1:$(free_port $((${HEADSTART_HTTP_LISTEN#*:} + 1)))
    export HEADSTART_POSTGRES_URL HEADSTART_AUTH_HS256_SECRET HEADSTART_HTTP_LISTEN HEADSTART_ADMIN_LISTEN
    export HEADSTART_CONFIG=$work/headstart.toml HEADSTART_CATALOG_PATH=$PWD/config/catalog.toml
    export HEADSTART_STORE_URL=file://$work/store HEADSTART_DUMP_SPOOL_DIR=$work/spool
    "$binary" seed --scale "$1" >/dev/null
    "$binary" migrate --apply >/dev/null
    "$binary" serve </dev/null >"$work/service.log" 2>&1 &
    echo $! >"$work/service.pid"
    wait_ready "$work/service.pid" "$HEADSTART_ADMIN_LISTEN" "$work/service.log"
}
