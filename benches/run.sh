#!/usr/bin/env bash
# `make bench`: how Headstart compares, side by side in one run, on servers of its own on loopback that are thrown away.
# Writes its section of loadtests/RESULTS.md, and loadtests/growth.svg.
#
#   SCALE=medium|large     the demonstration workspace (default large)
#   ROUNDS=5               rounds of everything, in turns
#   SECONDS_EACH=3         how long each of those who serve is loaded in a round
#   MILLION=million        the workspace whose dump's memory is looked at, and that is refreshed; empty to leave the first out
#   ROWS=1000000           how far growth is measured, in rows of one org
#   ORGS=10000             and in orgs; 10,000 of them take about ten minutes, 100 a few seconds
#   PARTS="hot scan"       only these (hot cold scan gzip batch delta memory refresh wire growth); then results are printed only, and the
#                          plot goes to .dev/growth.svg
#   BINARY=path            a build to measure instead of one of the present code
#   SCAN=path              a build of benches/scan.rs (cargo build --release --example scan), which is built otherwise
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/dev/machine.sh
scale=${SCALE:-large} rounds=${ROUNDS:-5} seconds=${SECONDS_EACH:-3} million=${MILLION-million} rows=${ROWS:-1000000} orgs=${ORGS:-10000}
read -r -a parts <<<"${PARTS:-}"
# What else the machine was doing.
read -r busy _ </proc/loadavg

has curl || install_packages curl curl
has python3 || install_packages Python python3
has wrk || install_packages "wrk, the load client" wrk
has npm || install_packages "Node and npm" nodejs npm
has zstd || install_packages zstd zstd
has gzip || install_packages gzip gzip
need_rust
bin=$(deploy/dev/postgres.sh bin)
binary=${BINARY:-}
if [ -z "$binary" ]; then
    cargo build --release --locked --bin headstart
    binary=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)/release/headstart
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/headstart-bench.XXXXXX")
chmod 755 "$work"

finish() {
    local status=$? file
    trap - EXIT INT TERM HUP
    # What bench.py could not end itself.
    for file in "$work"/*.pid; do
        [ ! -e "$file" ] || end_process "$file" "" 40
    done
    [ ! -e "$work/postgres" ] || deploy/dev/postgres.sh remove "$work/postgres" || say "PostgreSQL in $work was not stopped"
    [ ! -e "$work/mongod" ] || deploy/dev/mongod.sh stop "$work/mongod" || say "MongoDB in $work was not stopped"
    [ "$status" = 0 ] || tail -n 5 "$work"/*.log >&2 || true
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Stores, spools and files are below it, and so is what the servers of the bench say.
port=$(deploy/dev/postgres.sh start "$work/postgres" \
    shared_preload_libraries=pg_stat_statements track_activity_query_size=16384 max_connections=200 max_wal_size=4GB)
postmaster=$(head -n 1 "$(readlink -f "$work/postgres")/postmaster.pid")
"$bin/createdb" -h 127.0.0.1 -p "$port" -U postgres headstart
"$bin/psql" -qX -h 127.0.0.1 -p "$port" -U postgres postgres -c 'CREATE EXTENSION pg_stat_statements'
mongo_port=$(deploy/dev/mongod.sh start "$work/mongod")
# What else was set, so that who reads the results can run the same.
also="${MILLION+ MILLION=$MILLION}${BINARY:+ BINARY=$BINARY}${SCAN:+ SCAN=$SCAN}${PARTS:+ PARTS=\"$PARTS\"}"
results=()
[ "${#parts[@]}" != 0 ] || results=(--results loadtests/RESULTS.md)
PYTHONPATH=$PWD/.dev/mongodb PYTHONDONTWRITEBYTECODE=1 python3 benches/bench.py --work "$work" --binary "$binary" \
    --scan-program "${SCAN:-}" --pg-bin "$bin" --pg-port "$port" --postmaster "$postmaster" --mongo-port "$mongo_port" \
    --mongo-pid "$(cat "$work/mongod/mongod.pid")" --scale "$scale" --rounds "$rounds" --seconds "$seconds" \
    --million "$million" --most-rows "$rows" --most-orgs "$orgs" --busy "$busy" \
    --command "make bench SCALE=$scale ROUNDS=$rounds SECONDS_EACH=$seconds ROWS=$rows ORGS=$orgs$also" "${results[@]}" "${parts[@]}"
