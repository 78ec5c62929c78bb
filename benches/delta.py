"""What an action of a delta costs against a row of a stored bootstrap: the ratio that `delta.action_cost` stands for. And what a
delta costs against PostgreSQL alone.

Changes 10,000 comments in one statement, then takes the delta from before it, bootstraps of the stored snapshot, and the same
rows by COPY as row_to_json, in turns. Then 64 connections ask for a delta in which there is nothing new, in turns with pgbench
and one row by its id. Processor time is that of the service and of PostgreSQL. Writes a section of loadtests/RESULTS.md, and
beside it (.json) its rows for the table of goals.

Started by benches/others.py; its service has limits that let both be asked for.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import machine

CHANGES = 10_000
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

    def __init__(self, given, rows):
        self.bin, self.port, self.seconds, self.out = given.pg_bin, given.pg_port, given.seconds, Path(given.out)
        self.rows = rows
        self.server = ["-h", "127.0.0.1", "-p", given.pg_port, "-U", "postgres"]

    def ask(self, *commands):
        psql = [f"{self.bin}/psql", "-qAtX", "-v", "ON_ERROR_STOP=1", *self.server, "headstart"]
        given = [word for command in commands for word in ("-c", command)]
        return subprocess.run([*psql, *given], check=True, capture_output=True, text=True).stdout

    def copy_seconds(self, times):
        """How long COPY takes for the rows as JSON, on the clock of psql."""
        copy = f"COPY (SELECT row_to_json(c) FROM comment c WHERE c.id IN ({self.rows})) TO STDOUT"
        return statistics.median(float(re.findall(r"^Time: ([\d.]+) ms", self.ask("\\timing on", copy), re.M)[-1]) / 1000 for _ in range(times))

    def lookups_per_second(self):
        """One row by its id, prepared, on as many connections."""
        script = self.out.with_suffix(".sql")
        script.write_text("SELECT * FROM issue WHERE id = :id;\n")
        one = self.ask("SELECT id FROM issue LIMIT 1").strip()
        command = [f"{self.bin}/pgbench", "-n", "-M", "prepared", "-T", str(self.seconds), "-f", str(script), "-c", str(CONNECTIONS), "-j", "2"]
        done = subprocess.run([*command, "-D", f"id={one}", *self.server, "headstart"], check=True, capture_output=True, text=True)
        return float(re.search(r"^tps = ([\d.]+)", done.stdout, re.M)[1])


def idle_per_second(service, path, seconds):
    """Deltas with nothing new, by wrk."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s", "-H", f"Authorization: Bearer {service.token}", f"{service.url}{path}"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in told or "Socket errors" in told:
        sys.exit(f"wrk says {told}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1])


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
    postgres = Postgres(given, changed)
    postgres.ask(f"UPDATE comment SET edited_at = now() WHERE id IN ({changed})", "VACUUM ANALYZE comment")
    delta = f"/sync/delta?lastSyncId={before['lastSyncId']}&epoch={before['epoch']}"
    actions = service.metadata(delta)["returnedModelsCount"]["SyncAction"]
    if actions != CHANGES:
        sys.exit(f"the delta has {actions} actions, not {CHANGES}")

    asked = {
        "delta, zstd": (delta, "zstd", DELTAS, actions),
        "bootstrap, zstd": (bootstrap, "zstd", BOOTSTRAPS, rows),
        "delta, identity": (delta, "identity", DELTAS, actions),
        "bootstrap, identity": (bootstrap, "identity", 2, rows),
    }
    measured = {name: [] for name in asked}
    copies, idle, lookups = [], [], []
    newest = service.metadata(delta)
    nothing = f"/sync/delta?lastSyncId={newest['lastSyncId']}&epoch={newest['epoch']}"
    for turn in range(given.rounds):
        for name, (path, encoding, times, _) in asked.items():
            measured[name].append(service.measure(path, encoding, times))
            print(f"round {turn + 1}, {name}: {measured[name][-1]}", file=sys.stderr)
        copies.append(postgres.copy_seconds(DELTAS))
        idle.append(idle_per_second(service, nothing, given.seconds))
        lookups.append(postgres.lookups_per_second())
        print(f"round {turn + 1}: COPY {copies[-1]:.3f} s, nothing new {idle[-1]:,.0f}/s, pgbench {lookups[-1]:,.0f}/s", file=sys.stderr)
    if service.metadata(bootstrap)["lastSyncId"] != before["lastSyncId"]:
        sys.exit("the snapshot was refreshed meanwhile")

    def middle(name, figure):
        return statistics.median(figure(run) for run in measured[name])

    def processor(run):
        return run["service"] + run["cluster"]

    table, each = "", {}
    for name, (*_, count) in asked.items():
        wall, cpu = middle(name, lambda run: run["wall"]), middle(name, processor)
        each[name] = wall * 1e6 / count, cpu * 1e6 / count
        table += (
            f"| {name} | {count:,} | {middle(name, lambda run: run['bytes']) / 1e6:.1f} | {wall * 1000:,.0f} | {middle(name, lambda run: run['service']) * 1000:,.0f} "
            f"| {middle(name, lambda run: run['cluster']) * 1000:,.0f} | {each[name][0]:.2f} | {each[name][1]:.2f} |\n"
        )
    ratios = {
        encoding: [action / row for action, row in zip(each[f"delta, {encoding}"], each[f"bootstrap, {encoding}"])]
        for encoding in ["zstd", "identity"]
    }
    goals = [
        {"what": f"delta of {CHANGES:,} objects, time", "against": "COPY of the same rows as row_to_json", "sense": "≤", "bound": 0.8, "rounds": [run["wall"] / copy for run, copy in zip(measured["delta, identity"], copies)]},
        {"what": "delta with nothing new, requests per second", "against": "pgbench, one row by its id", "sense": "≥", "bound": 0.5, "rounds": [ours / theirs for ours, theirs in zip(idle, lookups)]},
    ]
    Path(given.out).with_suffix(".json").write_text(json.dumps(goals))
    Path(given.out).write_text(
        f"""## An action of a delta against a row of a stored bootstrap

{CHANGES:,} comments changed in one statement; one client; {given.rounds} rounds in turns, medians. Processor time is that of the service and of
PostgreSQL.

| what | lines | MB sent | wall ms | service: CPU ms | PostgreSQL: CPU ms | wall µs a line | CPU µs a line |
| --- | --: | --: | --: | --: | --: | --: | --: |
{table}
One action costs as much as so many rows: {ratios["zstd"][1]:.0f} in processor time and {ratios["zstd"][0]:.0f} on the clock in zstd,
{ratios["identity"][1]:.0f} and {ratios["identity"][0]:.0f} in identity.

COPY of the same rows as row_to_json took {statistics.median(copies) * 1000:,.0f} ms. With nothing new, {CONNECTIONS} connections got
{statistics.median(idle):,.0f} deltas a second; pgbench on as many, {statistics.median(lookups):,.0f} rows by their id.
"""
    )


if __name__ == "__main__":
    main()
