#!/usr/bin/env bash
# `make bench`: how Headstart compares, side by side in one run, on servers of its own on loopback that are thrown away.
# Writes benches/RESULTS.md.
#
#   SCALE=medium|large     the demonstration workspace (default large)
#   ROUNDS=5               rounds of everything, in turns
#   SECONDS_EACH=4         how long each of those who serve batches is loaded in a round
#   PARTS="batch delta"    only these; then nothing is written but what is printed
#   BINARY=path            a build to measure instead of one of the present code
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/dev/machine.sh
scale=${SCALE:-large} rounds=${ROUNDS:-5} seconds=${SECONDS_EACH:-4}
all="batch delta"
read -r -a parts <<<"${PARTS:-$all}"
org=157f2db9-0deb-29ee-5125-6fbed10a9ceb
everywhere=75bf78a9-83b2-9911-5189-3d27abe5daa5
somewhere=dcf89d61-0581-444f-a5ea-243a2ab445a4

has curl || install_packages curl curl
has python3 || install_packages Python python3
has wrk || install_packages "wrk, the load client" wrk
has npm || install_packages "Node and npm" nodejs npm
bin=$(deploy/dev/postgres.sh bin)
binary=${BINARY:-}
if [ -z "$binary" ]; then
    need_rust
    cargo build --release --locked --bin headstart
    binary=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)/release/headstart
fi
# What else the machine was doing.
read -r busy _ </proc/loadavg

work=$(mktemp -d "${TMPDIR:-/tmp}/headstart-bench.XXXXXX")
chmod 755 "$work"
mkdir "$work/spool"

finish() {
    local status=$? file
    trap - EXIT INT TERM HUP
    for file in "$work"/*.pid; do
        [ ! -e "$file" ] || end_process "$file" "" 40
    done
    [ ! -e "$work/postgres" ] || deploy/dev/postgres.sh remove "$work/postgres" || say "PostgreSQL in $work was not stopped"
    [ "$status" = 0 ] || tail -n 5 "$work"/*.log >&2 || true
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

start_database() {
    port=$(deploy/dev/postgres.sh start "$work/postgres" \
        shared_preload_libraries=pg_stat_statements track_activity_query_size=16384 max_connections=200)
    postmaster=$(head -n 1 "$(readlink -f "$work/postgres")/postmaster.pid")
    "$bin/createdb" -h 127.0.0.1 -p "$port" -U postgres headstart
    "$bin/psql" -qX -h 127.0.0.1 -p "$port" -U postgres postgres -c 'CREATE EXTENSION pg_stat_statements'
    export HEADSTART_POSTGRES_URL="postgres://postgres@127.0.0.1:$port/headstart?sslmode=disable"
    # The build's own defaults, whatever stands in the working directory.
    : >"$work/headstart.toml"
    export HEADSTART_CONFIG=$work/headstart.toml HEADSTART_CATALOG_PATH=$PWD/config/catalog.toml
    export HEADSTART_STORE_URL=file://$work/store HEADSTART_DUMP_SPOOL_DIR=$work/spool
    HEADSTART_AUTH_HS256_SECRET=$(od -An -N 32 -t x1 /dev/urandom | tr -d ' \n')
    export HEADSTART_AUTH_HS256_SECRET
    "$binary" seed --scale "$scale" >/dev/null
    "$binary" migrate --apply >/dev/null
    "$bin/psql" -qX -h 127.0.0.1 -p "$port" -U postgres headstart -c 'VACUUM ANALYZE' -c CHECKPOINT
    "$binary" dump --org "$org" >/dev/null
    token=$("$binary" token --org "$org" --user "$everywhere" --ttl 1d)
    token_of_few=$("$binary" token --org "$org" --user "$somewhere" --ttl 1d)
}

# The service, with the snapshot that is stored: none is made while something is measured.
start_service() {
    HEADSTART_HTTP_LISTEN=127.0.0.1:$(free_port 8190)
    HEADSTART_ADMIN_LISTEN=127.0.0.1:$(free_port $((${HEADSTART_HTTP_LISTEN#*:} + 1)))
    export HEADSTART_HTTP_LISTEN HEADSTART_ADMIN_LISTEN
    HEADSTART_DUMP_BACKGROUND=false HEADSTART_FRESHNESS_SOFT_PENDING=40000 HEADSTART_DELTA_ACTION_COST=1 \
        "$binary" serve </dev/null >"$work/service.log" 2>&1 &
    echo $! >"$work/service.pid"
    wait_ready "$work/service.pid" "$HEADSTART_ADMIN_LISTEN" "$work/service.log"
}

# The batch server written by hand, with its packages under .dev/.
start_node() {
    local loader=$1 packages=$PWD/.dev/bench-node node_port
    mkdir -p "$packages"
    cp benches/batch/{package.json,package-lock.json,server.mjs} "$packages"
    [ -e "$packages/node_modules" ] || (cd "$packages" && npm ci --silent --no-audit --no-fund >&2)
    node_port=$(free_port 8290)
    DATABASE_URL=postgres://postgres@127.0.0.1:$port/headstart SECRET=$HEADSTART_AUTH_HS256_SECRET PORT=$node_port \
        LOADER=$loader NODE_ENV=production node "$packages/server.mjs" </dev/null >"$work/node-$loader.log" 2>&1 &
    echo $! >"$work/node-$loader.pid"
    for ((tenths = 0; tenths < 100; tenths++)); do
        ! is_taken "$node_port" || break
        sleep 0.1
    done
    node=("http://127.0.0.1:$node_port" "$(cat "$work/node-$loader.pid")")
}

batch() {
    start_node request
    local per_request=("${node[@]}")
    start_node shared
    python3 benches/batch/measure.py --headstart "http://$HEADSTART_HTTP_LISTEN" "$(cat "$work/service.pid")" \
        --node-request "${per_request[@]}" --node-shared "${node[@]}" --pg-bin "$bin" --pg-port "$port" \
        --postmaster "$postmaster" --org "$org" --token "$token" --token-of-few "$token_of_few" --work "$work" \
        --rounds "$rounds" --seconds "$seconds" --out "$work/batch.md"
}

delta() {
    python3 benches/delta.py --url "http://$HEADSTART_HTTP_LISTEN" --pid "$(cat "$work/service.pid")" --pg-bin "$bin" \
        --pg-port "$port" --postmaster "$postmaster" --org "$org" --token "$token" --rounds "$rounds" --out "$work/delta.md"
}

start_database
start_service
for part in "${parts[@]}"; do
    say "measuring: $part"
    "$part"
done
{
    printf '# Side by side\n\nWritten by `make bench`. Everyone shares the cores of one machine, the load client among them.\n\n'
    python3 benches/machine.py --command "make bench SCALE=$scale ROUNDS=$rounds SECONDS_EACH=$seconds" --busy "$busy" \
        "$("$binary" --version)" "$("$bin/postgres" --version)" "Node $(node --version)" \
        "$(wrk --version 2>&1 | grep -o '^wrk [^ ]*' || true)" "dataloader 2.2.3" "pg 8.23.1"
    for part in "${parts[@]}"; do
        echo
        cat "$work/$part.md"
    done
} >"$work/results.md"
if [ "${parts[*]}" = "$all" ]; then
    cp "$work/results.md" benches/RESULTS.md
else
    cat "$work/results.md"
fi
