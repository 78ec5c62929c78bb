"""Refreshing the snapshot of the million-row org after changes, against dumping it as a whole in the same state.

Then reading one that was refreshed again and again, against one that was made as a whole.
"""

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import machine
from cold import Fresh
from results import Goal, Section, counted, download_table, number, table, work_table
from servers import Headstart
from turns import Case, middle, ratios, take_turns

# Parts of the org's rows that change, in percent.
PARTS = [0.01, 0.1, 1, 10]
# Before it is read, so often is a snapshot refreshed; each time after so many percent of the rows changed, the newest: they leave
# the most out of use in packs.
GENERATIONS, CHANGED = 24, 0.25
# So often at most each refresh is measured; it takes a full dump before it and one after.
TIMES = 3
# Reading from the folder takes a twentieth of a second and differs from one time to the next: so many times as often as the rest.
OFTEN = 4
# What an update of each table touches, and how its rows are found; the largest tables of the org.
TABLES = {
    "issue": ("title = title || '.'", "t.organization_id = '{org}' AND t.archived_at IS NULL"),
    "comment": ("body = body || '.'", "t.deleted_at IS NULL AND t.issue_id IN (SELECT id FROM issue WHERE organization_id = '{org}')"),
    "issue_history": ("changes = changes || '{{\"seen\": true}}'", "t.organization_id = '{org}'"),
    "notification": ("read_at = now()", "t.organization_id = '{org}'"),
}


@dataclass
class Dump:
    """What a dump printed, its seconds until it was published, those of the program's start and end, PostgreSQL's and its own processor time, the most MiB it had resident, and the bytes it put into the store."""

    printed: list
    took: float
    around: float
    postgres: float
    own: float
    memory: float
    written: int


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
        """Updates so many rows, each table by its size and one of it at least; says how many."""
        changed = 0
        for name, (change, _) in self.tables.items():
            count = max(1, round(self.counts[name] * percent / 100))
            order = "place DESC" if is_recent else "random()"
            self.database.ask(f"UPDATE {name} SET {change} WHERE id IN (SELECT id FROM bench_{name} ORDER BY {order} LIMIT {count})")
            changed += count
        # What the changes themselves leave to be done is no part of what is measured.
        self.database.ask("VACUUM", "CHECKPOINT")
        return changed

    def files(self):
        return {file: file.stat().st_size for file in self.store.rglob("*") if file.is_file()}

    def begin(self):
        """A snapshot that was made as a whole, and nothing else in the store."""
        subprocess.run(["rm", "-rf", self.store], check=True)
        self.dump("--full")

    def dump(self, *arguments):
        """One dump by the command."""
        before, processor, began = self.files(), self.database.seconds(), time.monotonic()
        own = subprocess.Popen(
            [self.bench.binary, "dump", "--org", self.bench.org, *arguments],
            env={**os.environ, **self.headstart.environment}, stdout=subprocess.PIPE, text=True,
        )
        memory, own_processor = machine.watched(own)
        took = time.monotonic() - began
        printed = own.stdout.read().strip().split("\t")
        time.sleep(0.3)
        processor = self.database.seconds() - processor
        written = sum(size for file, size in self.files().items() if file not in before)
        return Dump(printed, float(printed[3]), took - float(printed[3]), processor, own_processor, memory, written)

    def refresh(self):
        refreshed = self.dump()
        if refreshed.printed[1] != "refreshed":
            sys.exit(f"not refreshed: {refreshed.printed}")
        return refreshed


def measure(bench):
    workspace = Workspace(bench)
    rows, found = [], {}
    # PostgreSQL writes a new version of a row where there is room. So the newest come first: while they still stand together.
    for is_recent in (True, False):
        for percent in PARTS:
            runs = []
            for _ in range(min(bench.rounds, TIMES)):
                workspace.begin()
                changed = workspace.change(percent, is_recent)
                refreshed, full = workspace.refresh(), workspace.dump("--full")
                runs.append({"changed": changed, "read": int(refreshed.printed[4]) / changed, "of_full": refreshed.took / full.took,
                             "of_postgres": refreshed.postgres / full.postgres, "refreshed": refreshed, "full": full})
                print(f"  {percent} %, {'recent' if is_recent else 'random'}: {runs[-1]}", file=sys.stderr)
            found[percent, is_recent] = runs
            middle_run = sorted(runs, key=lambda run: run["of_full"])[len(runs) // 2]
            refreshed, full = middle_run["refreshed"], middle_run["full"]
            rows.append([f"{percent:g} %, {'the newest' if is_recent else 'any'}", f"{middle_run['changed']:,}", number(middle_run["read"]),
                         number(refreshed.took), number(full.took), f"**{number(middle_run['of_full'])}**",
                         number(refreshed.postgres), number(full.postgres), number(middle_run["of_postgres"]), number(refreshed.own), number(full.own),
                         number(refreshed.written / 1e6), number(full.written / 1e6), number(refreshed.memory), number(full.memory)])
    around = statistics.median(run["refreshed"].around for runs in found.values() for run in runs)
    read, sizes, measured = reads(bench, workspace)
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
    heads = ["changed", "rows", "read for each", "refresh: s", "full: s", "ratio", "refresh: PostgreSQL CPU s", "full: the same", "ratio", "refresh: own CPU s", "full: the same", "refresh: MB written", "full: the same", "refresh: most MiB", "full: the same"]
    text = f"""### Refreshing

`headstart dump --org` after some rows were updated, and then `headstart dump --org --full` of the same state, into a folder;
{counted(min(bench.rounds, TIMES), "round")} each, of which the one with the middle ratio of seconds is shown. Seconds are those it prints, to the published
snapshot; a running service needs no more, the command {number(around)} s for its start and end. Processor time and memory are the whole
program's. The {bench.million or "million"} workspace; the rows are those of {', '.join(workspace.tables)} ({sum(workspace.counts.values()):,}), each table by its size: the newest of each, or any by chance.

{table(heads, rows)}

A snapshot that was refreshed {GENERATIONS} times, each time after {CHANGED} % of the rows had changed, the newest, and one of the same
state that was made as a whole: read by one client, from memory for {bench.seconds:g} s in each of {counted(bench.rounds, "round")}, and from the folder by a
fresh process in {counted(OFTEN * bench.rounds, "round")}.

{download_table({name: measured[name] for name in HOT})}

{work_table({name: measured[name] for name in COLD}, lambda name, runs: middle(runs, lambda run: run.gave.bytes) / 1e6)}"""
    return Section(goals + read + sizes, text)


HOT = ["refreshed, in memory", "made as a whole, in memory"]
COLD = ["refreshed, from the folder", "made as a whole, from the folder"]


def reads(bench, workspace):
    """Goals of reading and of size, and the runs."""
    workspace.begin()
    for _ in range(GENERATIONS):
        workspace.change(CHANGED, True)
        workspace.refresh()
    store = bench.work / "refreshed-store"
    subprocess.run(["cp", "-r", workspace.store, store], check=True)
    workspace.dump("--full")
    # What was just written is on its way to the disk, and what was written long ago may have to be read from there.
    os.sync()
    subprocess.run(f"find {store} {workspace.store} -type f -exec cat {{}} + >/dev/null", shell=True, check=True)
    stores = {"refreshed": Headstart(bench, "refreshed", workspace.database, f"file://{store}"), "whole": Headstart(bench, "whole", workspace.database, f"file://{workspace.store}")}
    servers = [headstart.serve() for headstart in stores.values()]

    def hot(server):
        return lambda: bench.client.run(server.url, "/sync/bootstrap", seconds=bench.seconds, token=bench.token)

    postgres = {"PostgreSQL": bench.database.seconds}
    in_memory = [Case(name, hot(server), server.seconds, postgres) for name, server in zip(HOT, servers)]
    measured = take_turns(bench.rounds, in_memory)
    from_folder = [Fresh(bench, headstart, bench.token).case(name, **postgres) for name, headstart in zip(COLD, stores.values())]
    measured |= take_turns(OFTEN * bench.rounds, from_folder)
    for server in servers:
        server.stop()
    in_store = [in_packs(headstart, bench.org) for headstart in stores.values()]
    subprocess.run(["rm", "-rf", store], check=True)
    refreshed, whole = HOT
    against, times = "one made as a whole", f"a snapshot refreshed {GENERATIONS} times"
    read = [Goal(f"{times}, in memory: answers per second", against, "≥", 0.9, ratios(measured[refreshed], measured[whole], lambda run: run.rate / run.gave.size))]
    refreshed, whole = COLD
    read.append(Goal(f"{times}, from the folder: answers per second", against, "≥", 0.9, ratios(measured[whole], measured[refreshed], lambda run: run.took())))
    return read, [Goal(f"{times}: bytes in the store", against, "≤", 1.3, [in_store[0] / in_store[1]])], measured


def in_packs(headstart, org):
    """Bytes of the packs of an org's newest snapshot, with what in them is out of use."""
    facts = dict(line.split("\t") for line in headstart.command("snapshots", "show", "--org", org).splitlines() if line.count("\t") == 1)
    return int(facts["in packs"])
