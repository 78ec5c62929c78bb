"""Refreshing the snapshot of the million-row org after changes, against dumping it as a whole in the same state."""

import os
import subprocess
import sys
import time

import machine
from results import Goal, Section, number, table
from servers import Headstart

# Parts of the org's rows that change, in percent.
PARTS = [0.01, 0.1, 1, 10]
# What an update of each table touches, and how its rows are found; the largest tables of the org.
TABLES = {
    "issue": ("title = title || '.'", "t.organization_id = '{org}' AND t.archived_at IS NULL"),
    "comment": ("body = body || '.'", "t.deleted_at IS NULL AND t.issue_id IN (SELECT id FROM issue WHERE organization_id = '{org}')"),
    "issue_history": ("changes = changes || '{{\"seen\": true}}'", "t.organization_id = '{org}'"),
    "notification": ("read_at = now()", "t.organization_id = '{org}'"),
}


class Workspace:
    """The million-row org, its store, and which of its rows come next to be changed."""

    def __init__(self, bench):
        self.bench, self.database = bench, bench.database.other("refresh")
        bench.seed(self.database, bench.million or "million")
        self.store = bench.work / "refresh-store"
        settings = {"freshness_soft_pending": 0, "dump_refresh_max_percent": 100}
        self.headstart = Headstart(bench, "refresh", self.database, f"file://{self.store}", **settings)
        self.tables = {name: (change.format(), where.format(org=bench.org)) for name, (change, where) in TABLES.items()}
        # In the order in which they were written: the newest stand last.
        for name, (_, where) in self.tables.items():
            self.database.ask(f"CREATE TABLE bench_{name} AS SELECT id, row_number() OVER (ORDER BY ctid) AS place FROM {name} t WHERE {where}", f"CREATE INDEX ON bench_{name} (place)")
        self.counts = {name: int(self.database.ask(f"SELECT count(*) FROM bench_{name}")) for name in self.tables}
        self.database.ask("ANALYZE")

    def change(self, percent, is_recent):
        """Updates so many rows, each table by its size; says how many."""
        changed, rows = 0, sum(self.counts.values())
        for name, (change, _) in self.tables.items():
            count = round(rows * percent / 100 * self.counts[name] / rows)
            order = "place DESC" if is_recent else "random()"
            self.database.ask(f"UPDATE {name} SET {change} WHERE id IN (SELECT id FROM bench_{name} ORDER BY {order} LIMIT {count})")
            changed += count
        # What the changes themselves leave to be done is no part of what is measured.
        self.database.ask("VACUUM", "CHECKPOINT")
        return changed

    def files(self):
        return {file: file.stat().st_size for file in self.store.rglob("*") if file.is_file()}

    def dump(self, *arguments):
        """One dump by the command: what it prints, seconds, PostgreSQL's processor time, its own, and bytes put in the store."""
        before, processor, began = self.files(), self.database.seconds(), time.monotonic()
        own = subprocess.Popen(
            [self.bench.binary, "dump", "--org", self.bench.org, *arguments],
            env={**os.environ, **self.headstart.environment}, stdout=subprocess.PIPE, text=True,
        )
        printed = own.stdout.read().strip().split("\t")
        own_processor = machine.waited(own)
        took = time.monotonic() - began
        time.sleep(0.3)
        processor = self.database.seconds() - processor
        written = sum(size for file, size in self.files().items() if file not in before)
        return printed, took, processor, own_processor, written


def measure(bench):
    workspace = Workspace(bench)
    workspace.dump("--full")
    rows, found = [], {}
    for percent in PARTS:
        for is_recent in (True, False):
            runs = []
            for _ in range(min(bench.rounds, 3)):
                changed = workspace.change(percent, is_recent)
                refreshed, full = workspace.dump(), workspace.dump("--full")
                if refreshed[0][1] != "refreshed":
                    sys.exit(f"not refreshed: {refreshed[0]}")
                read = int(refreshed[0][4])
                runs.append({"changed": changed, "read": read / changed, "took": refreshed[1], "of_full": refreshed[1] / full[1], "postgres": refreshed[2],
                             "of_postgres": refreshed[2] / full[2], "own": refreshed[3], "written": refreshed[4], "full": full})
                print(f"  {percent} %, {'recent' if is_recent else 'random'}: {runs[-1]}", file=sys.stderr)
            found[percent, is_recent] = runs
            middle = sorted(runs, key=lambda run: run["of_full"])[len(runs) // 2]
            full = middle["full"]
            rows.append([f"{percent:g} %, {'the newest' if is_recent else 'any'}", f"{middle['changed']:,}", number(middle["read"]), number(middle["took"]), number(full[1]),
                         f"**{number(middle['of_full'])}**", number(middle["postgres"]), number(full[2]), number(middle["of_postgres"]), number(middle["own"]), number(full[3]),
                         number(middle["written"] / 1e6), number(full[4] / 1e6)])
    bench.database.ask('DROP DATABASE "refresh"')
    subprocess.run(["rm", "-rf", workspace.store], check=True)

    def goal(what, bound, key, *cases):
        return Goal(what, "a full dump" if key != "read" else "rows changed", "≤", bound, [run[key] for case in cases for run in found[case]])

    goals = [
        goal("refresh: rows read from PostgreSQL", 1.2, "read", *found),
        goal("refresh after 1 % of any rows changed: PostgreSQL CPU seconds", 0.1, "of_postgres", (1, False)),
        goal("refresh after 1 % of any rows changed: seconds", 1, "of_full", (1, False)),
        goal("refresh after the newest 1 % changed: seconds", 1 / 3, "of_full", (1, True)),
        goal("refresh after the newest 0.01 % changed: seconds", 1 / 20, "of_full", (0.01, True)),
    ]
    heads = ["changed", "rows", "read for each", "refresh: s", "full: s", "ratio", "refresh: PostgreSQL CPU s", "full: the same", "ratio", "refresh: own CPU s", "full: the same", "refresh: MB written", "full: the same"]
    text = f"""### Refreshing

`headstart dump --org` after some rows were updated, and then `headstart dump --org --full` of the same state, both with the start of the
program, into a folder. The {bench.million or "million"} workspace; the rows are those of {', '.join(workspace.tables)} ({sum(workspace.counts.values()):,}), each table by its size: the newest of each, or any by chance.

{table(heads, rows)}"""
    return Section(goals, text)
