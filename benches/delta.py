"""What an action of a delta costs against a row of a stored bootstrap: the ratio that `delta.action_cost` stands for.

Changes 10,000 comments in one statement, then takes the delta from before it, and bootstraps of the stored snapshot, in turns.
Processor time is that of the service and of PostgreSQL. Writes a section of loadtests/RESULTS.md.

Started by benches/others.py; its service has limits that let both be asked for.
"""

import argparse
import json
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


def main():
    given = argparse.ArgumentParser()
    for name in ["url", "pg-bin", "pg-port", "org", "token", "out"]:
        given.add_argument(f"--{name}", required=True)
    given.add_argument("--pid", type=int, required=True)
    given.add_argument("--postmaster", type=int, required=True)
    given.add_argument("--rounds", type=int, default=5)
    given = given.parse_args()
    service = Service(given)

    bootstrap = "/sync/bootstrap?noSyncPackets=true"
    before = service.metadata(bootstrap)
    if before["method"] != "snapshot":
        sys.exit("the bootstrap is not from a stored snapshot")
    rows = sum(before["returnedModelsCount"].values())
    change = f"""UPDATE comment SET edited_at = now() WHERE id IN (
        SELECT c.id FROM comment c JOIN issue i ON i.id = c.issue_id WHERE i.organization_id = '{given.org}'
           AND c.deleted_at IS NULL AND i.archived_at IS NULL ORDER BY c.id LIMIT {CHANGES})"""
    psql = [f"{given.pg_bin}/psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", given.pg_port, "-U", "postgres"]
    subprocess.run([*psql, "headstart", "-c", change, "-c", "VACUUM ANALYZE comment"], check=True)
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
    for turn in range(given.rounds):
        for name, (path, encoding, times, _) in asked.items():
            measured[name].append(service.measure(path, encoding, times))
            print(f"round {turn + 1}, {name}: {measured[name][-1]}", file=sys.stderr)
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
    Path(given.out).write_text(
        f"""## An action of a delta against a row of a stored bootstrap

{CHANGES:,} comments changed in one statement; one client; {given.rounds} rounds in turns, medians. Processor time is that of the service and of
PostgreSQL.

| what | lines | MB sent | wall ms | service: CPU ms | PostgreSQL: CPU ms | wall µs a line | CPU µs a line |
| --- | --: | --: | --: | --: | --: | --: | --: |
{table}
One action costs as much as so many rows: {ratios["zstd"][1]:.0f} in processor time and {ratios["zstd"][0]:.0f} on the clock in zstd,
{ratios["identity"][1]:.0f} and {ratios["identity"][0]:.0f} in identity.
"""
    )


if __name__ == "__main__":
    main()
