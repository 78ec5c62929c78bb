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

. deploy/dev/workspace.sh

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

export HEADSTART_DUMP_BACKGROUND=false
start_service "${SCALE:-small}"
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
