#!/usr/bin/env bash
# `make load`: every load test of loadtests/ in its short form, against a release build of the service with a PostgreSQL
# and a MongoDB of its own, all on loopback and thrown away. Fails when a threshold fails or memory grows.
#
#   SCALE=small|medium|large   the demonstration workspace (default medium)
#   USERS, DURATION_S          clients at once (10), seconds of each scenario (10; the soak takes six times that)
#   STORE=mongo|folder         where snapshots are kept (default mongo)
#   SCRIPTS="bootstrap …"      only these
#   BINARY=path                a build to test instead of one of the present code
#   FIRST_BYTE_MS              what the 95th percentile to the first byte is held against (500; 2000 when large)
#
# Reports, one page with charts and one of k6's for each script: .dev/load/index.html. A run of all scripts also
# writes its section of loadtests/RESULTS.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/machine.sh
has curl || install_packages curl curl
k6=$(deploy/dev/k6.sh bin)

all="bootstrap stampede batch delta mixed soak"
export SCALE=${SCALE:-medium} USERS=${USERS:-10} DURATION_S=${DURATION_S:-10} FIRST_BYTE_MS=${FIRST_BYTE_MS:-}
read -r -a scripts <<<"${SCRIPTS:-$all}"
store=${STORE:-mongo}
if [ "$SCALE" = large ]; then
    # Lines are counted while that does not cost more than what is measured, and a dump takes seconds.
    export CHECK=${CHECK:-last} FIRST_BYTE_MS=${FIRST_BYTE_MS:-2000} WEEK=${WEEK:-10000}
fi
# How many actions behind the log lets a client be. More than this costs a small workspace more than a bootstrap.
export WEEK=${WEEK:-1000}

work=$(mktemp -d "${TMPDIR:-/tmp}/headstart-load.XXXXXX")
chmod 755 "$work"
reports=$PWD/.dev/load
rm -rf "$reports"
mkdir -p "$reports" "$work/spool"

finish() {
    local status=$?
    trap - EXIT INT TERM HUP
    [ ! -e "$work/watcher.pid" ] || end_process "$work/watcher.pid" load.sh 5
    [ ! -e "$work/service.pid" ] || end_process "$work/service.pid" "$binary serve" 40
    [ ! -e "$work/postgres" ] || deploy/dev/postgres.sh remove "$work/postgres" || say "PostgreSQL in $work was not stopped"
    [ ! -e "$work/mongod" ] || deploy/dev/mongod.sh stop "$work/mongod" || say "MongoDB in $work was not stopped"
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

start_service() {
    local port
    bin=$(deploy/dev/postgres.sh bin)
    port=$(deploy/dev/postgres.sh start "$work/postgres")
    "$bin/createdb" -h 127.0.0.1 -p "$port" -U postgres headstart
    export HEADSTART_POSTGRES_URL="postgres://postgres@127.0.0.1:$port/headstart?sslmode=disable"
    pgbench=("$bin/pgbench" --no-vacuum --host 127.0.0.1 --port "$port" --username postgres)
    case $store in
        mongo)
            port=$(deploy/dev/mongod.sh start "$work/mongod")
            export HEADSTART_STORE_URL="mongodb://127.0.0.1:$port/headstart?replicaSet=rs0"
            ;;
        folder) export HEADSTART_STORE_URL="file://$work/store" ;;
        *) die "STORE is mongo or folder, not $store" ;;
    esac
    # The build's own defaults, whatever stands in the working directory.
    : >"$work/headstart.toml"
    export HEADSTART_CONFIG=$work/headstart.toml
    export HEADSTART_CATALOG_PATH=$PWD/config/catalog.toml HEADSTART_DUMP_SPOOL_DIR=$work/spool
    HEADSTART_AUTH_HS256_SECRET=$(od -An -N 32 -t x1 /dev/urandom | tr -d ' \n')
    export HEADSTART_AUTH_HS256_SECRET SECRET=$HEADSTART_AUTH_HS256_SECRET
    HEADSTART_HTTP_LISTEN=127.0.0.1:$(free_port 8090)
    HEADSTART_ADMIN_LISTEN=127.0.0.1:$(free_port $((${HEADSTART_HTTP_LISTEN#*:} + 1)))
    export HEADSTART_HTTP_LISTEN HEADSTART_ADMIN_LISTEN URL=http://$HEADSTART_HTTP_LISTEN

    "$binary" seed --scale "$SCALE" >/dev/null
    "$binary" migrate --apply >/dev/null
    "$binary" serve </dev/null >"$reports/service.log" 2>&1 &
    echo $! >"$work/service.pid"
    service=$!
    wait_ready "$work/service.pid" "$HEADSTART_ADMIN_LISTEN" "$reports/service.log"
}

# People who edit: as much as the arguments say, which are pgbench's.
edit_rows() {
    local of_first="WHERE organization_id = md5('organization 0/1')::uuid" issues teams
    issues=$("$bin/psql" -qAt "$HEADSTART_POSTGRES_URL" -c "SELECT count(*) FROM issue $of_first")
    teams=$("$bin/psql" -qAt "$HEADSTART_POSTGRES_URL" -c "SELECT count(*) FROM team $of_first")
    "${pgbench[@]}" -D issues="$issues" -D teams="$teams" --file loadtests/writers.sql --client 2 "$@" headstart \
        >>"$reports/writers.log" 2>&1
}

# What the service's process has used: seconds of processor time, and the most memory since the last look, in KiB.
processor_seconds() { awk -v tick="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); print ($12 + $13) / tick }' "/proc/$service/stat"; }
most_memory() { awk '/^VmHWM/ { print $2 }' "/proc/$service/status"; }

# Its memory once a second, until told to stop.
watch_memory() {
    while kill -0 "$service" 2>/dev/null; do
        awk -v now="$EPOCHREALTIME" '/^VmRSS/ { print now, $2 }' "/proc/$service/status"
        sleep 1
    done >"$1"
}

run_script() {
    local script=$1 seconds=$DURATION_S before started status=0
    say "$script.js: $USERS clients"
    case $script in
        # What clients have missed.
        delta) edit_rows --transactions $((WEEK / 2 + 1)) ;;
        mixed)
            edit_rows --rate 20 --time $((DURATION_S + DURATION_S / 10 + 1)) &
            writers=$!
            ;;
        soak) seconds=$((DURATION_S * 6)) ;;
    esac
    # Forgets the peak so far.
    echo 5 >"/proc/$service/clear_refs"
    before=$(processor_seconds)
    started=$EPOCHREALTIME
    watch_memory "$reports/$script.memory" &
    echo $! >"$work/watcher.pid"
    DURATION_S=$seconds K6_NO_USAGE_REPORT=true K6_WEB_DASHBOARD=true K6_WEB_DASHBOARD_PORT=-1 \
        K6_WEB_DASHBOARD_PERIOD=1s K6_WEB_DASHBOARD_EXPORT=$reports/$script.html \
        "$k6" run --quiet --summary-export "$reports/$script.json" "loadtests/$script.js" >"$reports/$script.log" 2>&1 ||
        status=$?
    end_process "$work/watcher.pid" load.sh 5
    [ "$script" != mixed ] || wait "$writers" || failed+=" writers"
    printf '{"status": %s, "seconds": %s, "processor_seconds": %s, "memory_kib": %s}\n' "$status" \
        "$(awk -v a="$started" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }')" \
        "$(awk -v a="$before" -v b="$(processor_seconds)" 'BEGIN { print b - a }')" "$(most_memory)" >"$reports/$script.run"
    if [ "$status" != 0 ]; then
        grep -E '✗|level=(error|warning)' "$reports/$script.log" | head -n 10 | cut -c 1-300 >&2 || true
        say "$script.js failed with $status: see $reports/$script.log"
        failed+=" $script"
    fi
}

binary=${BINARY:-}
if [ -z "$binary" ]; then
    need_rust
    cargo build --release --locked --bin headstart
    binary=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)/release/headstart
fi
start_service
# What else the machine was doing.
read -r busy _ </proc/loadavg
failed=
for script in "${scripts[@]}"; do
    run_script "$script"
done
results=()
[ "${scripts[*]}" != "$all" ] || results=(--results loadtests/RESULTS.md)
python3 -B loadtests/report.py "$reports" --scale "$SCALE" --command "make load SCALE=$SCALE USERS=$USERS DURATION_S=$DURATION_S STORE=$store" \
    --k6 "$("$k6" version)" --postgres "$("$bin/postgres" --version)" \
    --service "$("$binary" --version)" --busy "$busy" "${results[@]}" "${scripts[@]}" || failed+=" report"
say "charts: $reports/index.html"
[ -z "$failed" ] || die "failed:$failed"
