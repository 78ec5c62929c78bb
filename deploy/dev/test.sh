#!/usr/bin/env bash
# `make test`: cargo test against a PostgreSQL and a MongoDB of its own, in a directory that is thrown away.
# What stands in HEADSTART_TEST_POSTGRES_URL (with HEADSTART_TEST_POSTGRES_BIN) or HEADSTART_TEST_MONGODB_URL is used
# instead; replica sets of three nodes are made of the program in HEADSTART_TEST_MONGOD. Arguments go to cargo test.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/machine.sh
need_rust
# Throw-away certificates are made with it.
has openssl || install_packages openssl openssl

work=$(mktemp -d "${TMPDIR:-/tmp}/headstart-test.XXXXXX")
chmod 755 "$work"

finish() {
    local status=$?
    trap - EXIT INT TERM HUP
    [ ! -e "$work/postgres" ] || deploy/dev/postgres.sh remove "$work/postgres" || say "PostgreSQL in $work was not stopped"
    [ ! -e "$work/mongod" ] || deploy/dev/mongod.sh stop "$work/mongod" || say "MongoDB in $work was not stopped"
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

if [ -z "${HEADSTART_TEST_POSTGRES_BIN:-}" ]; then
    HEADSTART_TEST_POSTGRES_BIN=$(deploy/dev/postgres.sh bin)
fi
if [ -z "${HEADSTART_TEST_POSTGRES_URL:-}" ]; then
    # None of it has to survive a power cut. The rest is what tests ask for: many databases, standbys, prepared transactions.
    port=$(deploy/dev/postgres.sh start "$work/postgres" fsync=off wal_level=replica \
        max_connections=300 max_prepared_transactions=20 shared_preload_libraries=pg_stat_statements)
    HEADSTART_TEST_POSTGRES_URL="postgres://postgres@127.0.0.1:$port/postgres?sslmode=disable"
fi
if [ -z "${HEADSTART_TEST_MONGODB_URL:-}" ]; then
    port=$(deploy/dev/mongod.sh start "$work/mongod")
    HEADSTART_TEST_MONGODB_URL="mongodb://127.0.0.1:$port/?replicaSet=rs0"
fi
if [ -z "${HEADSTART_TEST_MONGOD:-}" ]; then
    HEADSTART_TEST_MONGOD=$(deploy/dev/mongod.sh bin)
fi
export HEADSTART_TEST_MONGOD HEADSTART_TEST_POSTGRES_BIN HEADSTART_TEST_POSTGRES_URL HEADSTART_TEST_MONGODB_URL
say "tests against $HEADSTART_TEST_POSTGRES_URL and $HEADSTART_TEST_MONGODB_URL"

cargo test "$@"
