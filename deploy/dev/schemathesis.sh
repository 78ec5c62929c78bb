#!/usr/bin/env bash
# Holds the running service against both of its OpenAPI documents, the clients' and the operators': random requests that
# fit them and random ones that do not, no 500, no answer outside the document (schemathesis, in a virtual environment
# under .dev/ with every version pinned in schemathesis.txt). Everything else is thrown away.
#
#   EXAMPLES   requests for each call and kind, about (60)
#   SEED       what they are drawn from (the run prints it)
#   BINARY     a build to test instead of one of the present code
# What stands in HEADSTART_TEST_POSTGRES_URL is used instead of a PostgreSQL of its own, in a database of its own.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/machine.sh
has curl || install_packages curl curl
tester=$PWD/.dev/schemathesis
examples=${EXAMPLES:-60}
# Longer than the examples take; a hanging run ends.
most_seconds=300

. deploy/dev/workspace.sh

install_tester() {
    python3 -m venv --help >/dev/null 2>&1 || install_packages "Python's venv" python3 python3-venv
    cmp -s deploy/dev/schemathesis.txt "$tester/installed.txt" && return
    say "installing schemathesis into $tester"
    rm -rf "$tester"
    python3 -m venv "$tester"
    "$tester/bin/python" -m pip install --quiet --no-deps --disable-pip-version-check -r deploy/dev/schemathesis.txt
    cp deploy/dev/schemathesis.txt "$tester/installed.txt"
}

# check NAME URL TOKEN CONFIG [ARGUMENTS]: holds the service against the document at URL/openapi.json.
check() {
    say "schemathesis: the $1 document"
    # Where it runs it leaves files.
    (
        cd "$work"
        timeout "$most_seconds" "$tester/bin/schemathesis" --config-file "$4" run "$2/openapi.json" \
            --max-examples "$examples" --seed "${SEED:-$((RANDOM * 32768 + RANDOM))}" --no-color \
            --header "Authorization: Bearer $3" "${@:5}"
    )
    ! grep -q ' panicked' "$work/service.log" || die "something panicked"
}

install_tester
HEADSTART_ADMIN_TOKEN=$(od -An -N 32 -t x1 /dev/urandom | tr -d ' \n')
export HEADSTART_ADMIN_TOKEN
start_service small
org=$("$bin/psql" -qAt "$HEADSTART_POSTGRES_URL" -c "SELECT id FROM organization ORDER BY id LIMIT 1")
user=$("$bin/psql" -qAt "$HEADSTART_POSTGRES_URL" -c "SELECT user_id FROM team_membership WHERE organization_id = '$org' LIMIT 1")
# What does not fit the document may also be too long for a URI or a header.
refused='[checks]
negative_data_rejection.expected-statuses = ["400", "401", "403", "404", "405", "406", "409", "414", "415", "422", "428", "429", "431", "5xx"]'
printf '%s\n' "$refused" >"$work/any.toml"
# Random orgs are found nowhere: a second round asks of one that is there.
printf '%s\n[parameters]\norg = "%s"\n' "$refused" "$org" >"$work/known.toml"
operators=http://$HEADSTART_ADMIN_LISTEN
# Its answer does not end; tests/it/operations.rs reads it.
endless=(--exclude-path /operations/events)
curl -fsS -o /dev/null -X POST -H "Authorization: Bearer $HEADSTART_ADMIN_TOKEN" "$operators/operations/refresh?org=$org"
check operators "$operators" "$HEADSTART_ADMIN_TOKEN" "$work/any.toml" "${endless[@]}"
check operators "$operators" "$HEADSTART_ADMIN_TOKEN" "$work/known.toml" "${endless[@]}"
# What a document can't say: which parameters go together, which models and epochs there are. Such requests fit the schema
# and are refused all the same, by codes that the document tells.
cat >"$work/clients.toml" <<END
$refused
positive_data_acceptance.expected-statuses = ["2xx", "3xx", "400", "401", "403", "404", "406", "409", "410", "413", "416", "422", "429", "5xx"]
# A sync id that is far ahead is waited for, in vain: 503 is an answer of the document, 500 is none.
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503"]
END
check clients "http://$HEADSTART_HTTP_LISTEN" "$("$binary" token --org "$org" --user "$user")" "$work/clients.toml"
