#!/usr/bin/env bash
# A private PostgreSQL cluster in a directory of its own: on a free port, on loopback only, no password.
#
#   postgres.sh bin                             prints where the server's programs are; installs them if missing
#   postgres.sh start DIR [setting=value ...]   prints the port; one that runs already is left as it is
#   postgres.sh stop DIR
#   postgres.sh remove DIR                      stops it and deletes its data
set -euo pipefail
. "$(dirname "$0")/machine.sh"

# PostgreSQL refuses to run as root: then the clusters belong to the user its package makes.
as_owner() {
    if [ "$(id -u)" = 0 ]; then
        (cd / && runuser -u postgres -- "$@")
    else
        (cd / && "$@")
    fi
}

find_bin() {
    local pg_ctl
    pg_ctl=$(find /usr/lib/postgresql/*/bin -name pg_ctl 2>/dev/null | sort -V | tail -n 1)
    [ -n "$pg_ctl" ] || pg_ctl=$(command -v pg_ctl) || return 1
    dirname "$pg_ctl"
}

# The package's own default cluster is neither wanted nor made: another may stand on this machine already.
install_server() {
    local settings=/etc/postgresql-common/createcluster.d
    if has apt-get && can_be_root && [ ! -e "$settings/headstart.conf" ]; then
        as_root mkdir -p "$settings"
        as_root sh -c "echo 'create_main_cluster = false' > $settings/headstart.conf"
        trap 'as_root rm -f /etc/postgresql-common/createcluster.d/headstart.conf' EXIT
    fi
    install_packages "a PostgreSQL server" postgresql
}

bin() {
    find_bin || {
        install_server
        find_bin || die "PostgreSQL is installed, but pg_ctl is not to be found"
    }
}

# Makes DIR the owner's. Where the owner can't reach it (a home closed to others), DIR becomes a link to /var/tmp.
make_directory() {
    mkdir -p "$1"
    [ "$(id -u)" = 0 ] || return 0
    chown postgres: "$1"
    if ! as_owner test -w "$(readlink -f "$1")"; then
        local elsewhere
        elsewhere=$(mktemp -d /var/tmp/headstart-postgres.XXXXXX)
        chown postgres: "$elsewhere"
        rmdir "$1"
        ln -s "$elsewhere" "$1"
    fi
}

is_up() { [ -e "$1/PG_VERSION" ] && as_owner "$bin/pg_ctl" -D "$1" status >/dev/null 2>&1; }

start() {
    local link=$1 data port options setting try
    shift
    [ -e "$link/" ] || make_directory "$link"
    data=$(readlink -f "$link")
    if is_up "$data"; then
        sed -n 4p "$data/postmaster.pid"
        return
    fi
    if [ ! -e "$data/PG_VERSION" ]; then
        as_owner "$bin/initdb" -D "$data" --username=postgres --auth=trust --encoding=UTF8 --locale=C.UTF-8 >"$data.init" ||
            die "initdb failed: see $data.init"
        rm -f "$data.init"
    fi
    options="-c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
    for setting in "$@"; do
        options+=" -c $setting"
    done
    port=54320
    # Another process may take the port between the look and the start.
    for try in 1 2 3; do
        port=$(free_port "$port")
        if as_owner "$bin/pg_ctl" -D "$data" -l "$data/server.log" -o "-p $port $options" -w -t 60 start >/dev/null; then
            echo "$port"
            return
        fi
        port=$((port + try))
    done
    as_owner tail -n 20 "$data/server.log" >&2
    die "PostgreSQL in $data did not start"
}

stop() {
    local data
    data=$(readlink -f "$1")
    if is_up "$data"; then
        as_owner "$bin/pg_ctl" -D "$data" -m "${2:-fast}" -w stop >/dev/null
    fi
}

remove() {
    local data
    data=$(readlink -f "$1")
    stop "$1" immediate
    rm -rf "$data" "$1"
}

command=${1:-}
bin=$(bin)
case $command in
    bin) echo "$bin" ;;
    start | stop | remove) "$@" ;;
    *) die "usage: postgres.sh bin | start DIR [setting=value ...] | stop DIR | remove DIR" ;;
esac
