"""What an action of a delta costs against a row of a stored bootstrap: the ratio that `delta.action_cost` stands for. And what a
delta costs against PostgreSQL alone.

Changes 10,000 comments in one statement, then takes the delta from before it, bootstraps of the stored snapshot, and the same
rows by COPY as row_to_json, with their ids in a table and from the log. 64 connections ask for a delta in which there is nothing
new, and pgbench for one row by its id. Everyone has a turn in each round, and who is first changes. Processor time is that of
the service and of PostgreSQL. Writes a section of loadtests/RESULTS.md, and beside it (.json) its rows for the table of goals.

Started by benches/others.py; its service has limits that let both be asked for.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import machine
from results import counted, spread
from turns import rotated

# Where there are so many.
CHANGES = 10_000
# The ids of what was changed.
CHANGED = "bench_changed"
# A stored bootstrap takes so little that several are counted together.
BOOTSTRAPS = 30
DELTAS = 2
# Of those who ask for nothing new.
CONNECTIONS = 64


class Service:
    def __init__(self, given):
        self.url, self.pid, self.postmaster, self.token = given.url, given.pid, given.postmaster, given.token

    def get(self, path, encoding):
        """The whole body, decoded. By curl, in a process of its own, whose time is not counted."""
        command = ["curl", "-fsS", "-H", f"Authorization: Bearer {self.token}", "-H", f"Accept-Encoding: {encoding}"]
        return subprocess.run([*command, f"{self.url}{path}"], check=True, capture_output=True).stdout

    def metadata(self, path):
        return json.loads(self.get(path, "identity").splitlines()[-1])

    def measure(self, path, encoding, times):
        """Seconds of one answer: on the clock, of the service's processor time, of PostgreSQL's."""
        before = machine.process_seconds(self.pid), machine.cluster_seconds(self.postmaster)
        command = ["curl", "-fsS", "-o", "/dev/null", "-w", "%{time_total} %{size_download}\n"]
        command += ["-H", f"Authorization: Bearer {self.token}", "-H", f"Accept-Encoding: {encoding}", f"{self.url}{path}"]
        walls = []
        for _ in range(times):
            wall, size = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            walls.append(float(wall))
        time.sleep(0.1)
        service = machine.process_seconds(self.pid) - before[0]
        cluster = machine.cluster_seconds(self.postmaster) - before[1]
        return {"wall": statistics.median(walls), "service": service / times, "cluster": cluster / times, "bytes": int(size)}


class Postgres:
    """PostgreSQL without a service in front of it."""

    def __init__(self, given):
        self.bin, self.postmaster, self.seconds, self.out = given.pg_bin, given.postmaster, given.seconds, Path(given.out)
        self.server = ["-h", "127.0.0.1", "-p", given.pg_port, "-U", "postgres"]

    def ask(self, *commands, rows_to=None):
        """What psql prints, the rows among it unless they go elsewhere."""
        psql = [f"{self.bin}/psql", "-qAtX", "-v", "ON_ERROR_STOP=1", *self.server, "headstart", *(["-o", rows_to] if rows_to else [])]
        given = [word for command in commands for word in ("-c", command)]
        return subprocess.run([*psql, *given], check=True, capture_output=True, text=True).stdout

    def size(self, copy, changes):
        """Bytes of a COPY, which is to give so many rows."""
        lines = self.ask(copy)
        if lines.count("\n") != changes:
            sys.exit(f"not {changes} rows by {copy}")
        return len(lines.encode())

    def measure(self, copy, size, times):
        """Seconds of one COPY, to nowhere: on the clock of psql, of PostgreSQL's processor time."""
        before = machine.cluster_seconds(self.postmaster)
        walls = [self.seconds_of(copy) for _ in range(times)]
        time.sleep(0.1)
        cluster = machine.cluster_seconds(self.postmaster) - before
        self.settle()
        return {"wall": statistics.median(walls), "service": None, "cluster": cluster / times, "bytes": size}

    def seconds_of(self, copy):
        told = self.ask("\\timing on", copy, rows_to="/dev/null")
        return float(re.findall(r"^Time: ([\d.]+) ms", told, re.M)[-1]) / 1000

    def lookups_per_second(self):
        """One row by its id, prepared, on as many connections."""
        script = self.out.with_suffix(".sql")
        script.write_text("SELECT id, updated_at FROM issue WHERE id = :id;\n")
        one = self.ask("SELECT id FROM issue LIMIT 1").strip()
        command = [f"{self.bin}/pgbench", "-n", "-M", "prepared", "-T", str(self.seconds), "-f", str(script), "-c", str(CONNECTIONS), "-j", "2"]
        done = subprocess.run([*command, "-D", f"id={one}", *self.server, "headstart"], check=True, capture_output=True, text=True)
        self.settle()
        return float(re.search(r"^tps = ([\d.]+)", done.stdout, re.M)[1])

    def settle(self):
        """Until the sessions of pgbench and psql have ended: what their end costs belongs to nobody who comes next."""
        left = "SELECT count(*) FROM pg_stat_activity WHERE application_name IN ('pgbench', 'psql') AND pid <> pg_backend_pid()"
        while self.ask(left).strip() != "0":
            time.sleep(0.02)
        # They leave that view before they are gone.
        time.sleep(0.3)


def idle_per_second(service, path, seconds):
    """Deltas with nothing new, by wrk."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s", "-H", f"Authorization: Bearer {service.token}", f"{service.url}{path}"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in told or "Socket errors" in told:
        sys.exit(f"wrk says {told}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1])


def in_turns(rounds, works):
    """What each gave in each round."""
    measured = {name: [] for name in works}
    for turn in range(rounds):
        for name, work in rotated(list(works.items()), turn):
            measured[name].append(work())
            print(f"round {turn + 1}, {name}: {measured[name][-1]}", file=sys.stderr)
    return measured


def main():
    given = argparse.ArgumentParser()
    for name in ["url", "pg-bin", "pg-port", "org", "token", "out"]:
        given.add_argument(f"--{name}", required=True)
    given.add_argument("--pid", type=int, required=True)
    given.add_argument("--postmaster", type=int, required=True)
    given.add_argument("--rounds", type=int, default=5)
    given.add_argument("--seconds", type=int, default=3)
    given = given.parse_args()
    service = Service(given)

    bootstrap = "/sync/bootstrap?noSyncPackets=true"
    before = service.metadata(bootstrap)
    if before["method"] != "snapshot":
        sys.exit("the bootstrap is not from a stored snapshot")
    rows = sum(before["returnedModelsCount"].values())
    changed = f"""SELECT c.id FROM comment c JOIN issue i ON i.id = c.issue_id WHERE i.organization_id = '{given.org}'
        AND c.deleted_at IS NULL AND i.archived_at IS NULL ORDER BY c.id LIMIT {CHANGES}"""
    postgres = Postgres(given)
    postgres.ask(f"CREATE TABLE {CHANGED} AS {changed}", f"ALTER TABLE {CHANGED} ADD PRIMARY KEY (id)", f"VACUUM ANALYZE {CHANGED}")
    postgres.ask(f"UPDATE comment SET edited_at = now() WHERE id IN (SELECT id FROM {CHANGED})", "VACUUM ANALYZE comment, sync_actions")
    changes = int(postgres.ask(f"SELECT count(*) FROM {CHANGED}"))
    delta = f"/sync/delta?lastSyncId={before['lastSyncId']}&epoch={before['epoch']}"
    actions = service.metadata(delta)["returnedModelsCount"]["SyncAction"]
    if actions != changes:
        sys.exit(f"the delta has {actions} actions, not {changes}")

    asked = {
        "delta, zstd": (delta, "zstd", DELTAS, actions),
        "bootstrap, zstd": (bootstrap, "zstd", BOOTSTRAPS, rows),
        "delta, identity": (delta, "identity", DELTAS, actions),
        "bootstrap, identity": (bootstrap, "identity", 2, rows),
    }
    logged = f"SELECT DISTINCT model_id::uuid FROM sync_actions WHERE org = '{given.org}' AND model = 'Comment' AND id > {before['lastSyncId']}"
    copies = {
        name: f"COPY (SELECT row_to_json(c) FROM comment c WHERE c.id IN ({ids})) TO STDOUT"
        for name, ids in {"COPY, ids in a table": f"SELECT id FROM {CHANGED}", "COPY, ids from the log": logged}.items()
    }
    newest = service.metadata(delta)
    nothing = f"/sync/delta?lastSyncId={newest['lastSyncId']}&epoch={newest['epoch']}"
    measured = in_turns(given.rounds, {
        **{name: partial(service.measure, path, encoding, times) for name, (path, encoding, times, _) in asked.items()},
        **{name: partial(postgres.measure, copy, postgres.size(copy, changes), DELTAS) for name, copy in copies.items()},
        "nothing new": partial(idle_per_second, service, nothing, given.seconds),
        "pgbench": postgres.lookups_per_second,
    })
    if service.metadata(bootstrap)["lastSyncId"] != before["lastSyncId"]:
        sys.exit("the snapshot was refreshed meanwhile")
    postgres.ask(f"DROP TABLE {CHANGED}")

    def middle(name, figure):
        return statistics.median(figure(run) for run in measured[name])

    def milliseconds(name, figure):
        """As it is printed; a dash where the service has no part in it."""
        values = [run[figure] for run in measured[name]]
        return "–" if None in values else f"{statistics.median(values) * 1000:,.0f}"

    table, each = "", {}
    for name, count in {**{name: count for name, (*_, count) in asked.items()}, **dict.fromkeys(copies, changes)}.items():
        wall, cpu = middle(name, lambda run: run["wall"]), middle(name, lambda run: (run["service"] or 0) + run["cluster"])
        each[name] = wall * 1e6 / count, cpu * 1e6 / count
        table += (
            f"| {name} | {count:,} | {middle(name, lambda run: run['bytes']) / 1e6:.1f} | {wall * 1000:,.0f} | {milliseconds(name, 'service')} "
            f"| {milliseconds(name, 'cluster')} | {each[name][0]:.2f} | {each[name][1]:.2f} |\n"
        )
    ratios = {
        encoding: [action / row for action, row in zip(each[f"delta, {encoding}"], each[f"bootstrap, {encoding}"])]
        for encoding in ["zstd", "identity"]
    }

    def of_copy(encoding, copy):
        return [run["wall"] / other["wall"] for run, other in zip(measured[f"delta, {encoding}"], measured[copy])]

    in_table, from_log = copies
    against = {(encoding, copy): spread(of_copy(encoding, copy)) for encoding in ["identity", "zstd"] for copy in copies}
    idle = [ours / theirs for ours, theirs in zip(measured["nothing new"], measured["pgbench"])]
    goals = [
        *(
            {"what": f"delta of {changes:,} objects, identity, time", "against": f"COPY of the same rows as row_to_json, {ids}", "sense": "≤", "bound": 0.8, "rounds": of_copy("identity", copy)}
            for copy, ids in {from_log: "which finds their ids in the log, too", in_table: "which is told their ids"}.items()
        ),
        {"what": f"delta with nothing new, {CONNECTIONS} connections, requests per second", "against": "pgbench, one row by its id", "sense": "≥", "bound": 0.5, "rounds": idle},
    ]
    Path(given.out).with_suffix(".json").write_text(json.dumps(goals))
    Path(given.out).write_text(
        f"""## An action of a delta against a row of a stored bootstrap

{changes:,} comments changed in one statement; one client; {counted(given.rounds, "round")}, medians. Everyone has a turn in each, and nobody begins before
the sessions of the one before have ended. Processor time is that of the service and of PostgreSQL.

| what | lines | MB sent | wall ms | service: CPU ms | PostgreSQL: CPU ms | wall µs a line | CPU µs a line |
| --- | --: | --: | --: | --: | --: | --: | --: |
{table}
One action costs as much as so many rows: {ratios["zstd"][1]:.0f} in processor time and {ratios["zstd"][0]:.0f} on the clock in zstd,
{ratios["identity"][1]:.0f} and {ratios["identity"][0]:.0f} in identity.

COPY is of the same rows as row_to_json, to /dev/null, on the clock of psql once it is connected; processor time has the session's
beginning in it. It is told their ids, in a table of its own with a primary key; or it has to find them, as somebody without Headstart
would, in the change log: the distinct ids of comments in the org's actions after the client's sync id. Either way it looks at
nobody's groups, and does not say what happened to a row. The time of the delta against that of COPY:

| delta | COPY, ids in a table | COPY, ids from the log |
| --- | --: | --: |
| identity | {against["identity", in_table]} | {against["identity", from_log]} |
| zstd | {against["zstd", in_table]} | {against["zstd", from_log]} |

With nothing new, {CONNECTIONS} connections got {statistics.median(measured["nothing new"]):,.0f} deltas a second; pgbench on as many, {statistics.median(measured["pgbench"]):,.0f} rows by their id
(two columns of one issue).
"""
    )


if __name__ == "__main__":
    main()
