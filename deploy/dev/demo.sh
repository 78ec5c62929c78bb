#!/usr/bin/env bash
# `make demo`: the service over a demonstration workspace, with what it needs, all under .dev/. Run again, it finds what
# is there, and starts the service anew with the present code and settings.
#
#   demo.sh         SCALE=small|medium|large|million (default medium), STORE=mongo for a real MongoDB as the snapshot store;
#                   HEADSTART_POSTGRES_URL and HEADSTART_STORE_URL, where given, are used instead of servers of its own
#   demo.sh stop    stops what it started; the data stays
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/machine.sh
root=$PWD

# The first organization of every workspace, a user of all its teams and one of few; a test compares them with the seed.
org=157f2db9-0deb-29ee-5125-6fbed10a9ceb
everywhere=75bf78a9-83b2-9911-5189-3d27abe5daa5
somewhere=dcf89d61-0581-444f-a5ea-243a2ab445a4

stop_service() { end_process .dev/headstart.pid "headstart serve" 40; }

stop() {
    stop_service
    [ ! -e .dev/mongod ] || deploy/dev/mongod.sh stop .dev/mongod
    [ ! -e .dev/postgres ] || deploy/dev/postgres.sh stop .dev/postgres
    say "stopped; the data stays in .dev/"
}

start_postgres() {
    local port bin
    port=$(deploy/dev/postgres.sh start .dev/postgres)
    bin=$(deploy/dev/postgres.sh bin)
    postgres_url="postgres://postgres@127.0.0.1:$port/headstart?sslmode=disable"
    "$bin/psql" -qAt "$postgres_url" -c "" 2>/dev/null || "$bin/createdb" -h 127.0.0.1 -p "$port" -U postgres headstart
}

# The binary with the demonstration's settings, for this script and for people.
write_command() {
    [ -s .dev/secret ] || (umask 077 && od -An -N 32 -t x1 /dev/urandom | tr -d ' \n' >.dev/secret)
    cat >.dev/headstart <<END
#!/bin/sh
# The service's commands with the settings of the demonstration. Written by make demo.
export HEADSTART_POSTGRES_URL='$postgres_url'
export HEADSTART_STORE_URL='$store_url'
export HEADSTART_CATALOG_PATH='$root/config/catalog.toml'
export HEADSTART_HTTP_LISTEN='$http'
export HEADSTART_ADMIN_LISTEN='$admin'
export HEADSTART_AUTH_HS256_SECRET='$(cat .dev/secret)'
exec '$binary' "\$@"
END
    chmod 700 .dev/headstart
}

start_service() {
    nohup .dev/headstart serve </dev/null >>.dev/headstart.log 2>&1 &
    echo $! >.dev/headstart.pid
    wait_ready .dev/headstart.pid "$admin" .dev/headstart.log
}

bootstrap() {
    echo "curl -sS -H \"Authorization: Bearer \$(.dev/headstart token --org $org --user $1)\" http://$http/sync/bootstrap"
}

if [ "${1:-}" = stop ]; then
    stop
    exit
fi

need_rust
has curl || install_packages curl curl
cargo build --release --locked --bin headstart
binary=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)/release/headstart

mkdir -p .dev
stop_service
postgres_url=${HEADSTART_POSTGRES_URL:-}
[ -n "$postgres_url" ] || start_postgres
store_url=${HEADSTART_STORE_URL:-}
if [ -z "$store_url" ]; then
    case ${STORE:-} in
        "") store_url="file://$root/.dev/store" ;;
        mongo)
            port=$(deploy/dev/mongod.sh start .dev/mongod)
            store_url="mongodb://127.0.0.1:$port/headstart?replicaSet=rs0"
            ;;
        *) die "STORE is empty (a folder) or mongo, not $STORE" ;;
    esac
fi
http=127.0.0.1:$(free_port 8080)
admin=127.0.0.1:$(free_port $((${http#*:} + 1)))
write_command

.dev/headstart seed --scale "${SCALE:-medium}"
.dev/headstart migrate --apply
start_service

cat <<END

Headstart serves on http://$http, for operators on http://$admin.

All that a user of every team sees, counted, and what the last line says of it:
  $(bootstrap $everywhere) | wc -l
  $(bootstrap $everywhere) | tail -n 1

A user of few teams sees less:
  $(bootstrap $somewhere) | wc -l

Every subcommand with these settings:  .dev/headstart --help
The log:                               tail -f .dev/headstart.log
Stop it:                               make demo-stop
END
