"""No snapshot: a dump that is made while it is sent, against `COPY` of the same rows by psql."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass

import machine
from results import Goal, Section, work_table
from servers import ROOT, Headstart, metric, node, wait_until
from turns import Case, middle, ratios, take_turns

CROWD = 200
# Each request is for a dump of its own.
ANEW = "/sync/bootstrap?noCache=true"
# What a scan of the service may sort and hash in (`ROOM_FOR_JOINS` in src/source/sql.rs).
WORK_MEM = "64MB"


@dataclass
class Copied:
    """What psql, or a program of the bench, did."""

    took: float
    processor: float
    bytes: int


def copy(bench, selects, form):
    """psql with a COPY for each model, on one connection, to /dev/null."""
    commands = [word for select in selects for word in ("-c", f"COPY ({select}) TO STDOUT{form}")]

    def work():
        began = time.monotonic()
        environment = {**os.environ, "PGOPTIONS": f"-c work_mem={WORK_MEM}"}
        process = subprocess.Popen([*bench.database.psql(), *commands], env=environment, stdout=subprocess.DEVNULL)
        processor = machine.waited(process)
        return Copied(time.monotonic() - began, processor, 0)

    return work


class Dumping:
    """A service that has no snapshot: each answer is a dump."""

    def __init__(self, bench, name, database=None):
        self.bench = bench
        self.headstart = Headstart(bench, name, database or bench.database, f"file://{bench.work}/{name}")
        self.server = self.headstart.serve()

    def answer(self, encoding):
        """To the last byte of the answer."""
        return self.bench.client.run(self.server.url, ANEW, token=self.bench.token, encoding=encoding)

    def published(self, encoding):
        """Until the dump is stored and published as well."""
        before, began = metric(self.server, "dumps_finished_total"), time.monotonic()
        gave = self.answer(encoding)
        wait_until(lambda: metric(self.server, "dumps_finished_total") > before, "publishing")
        gave.took = time.monotonic() - began
        return gave

    def settle(self):
        """Until no dump is under way, and the service holds nothing of the last."""
        wait_until(lambda: metric(self.server, "live_dumps") == 0, "the end of a dump")

    def forget(self):
        self.settle()
        self.headstart.delete(self.bench.org)
        # A look at what is published is shared for freshness_ms.
        time.sleep(0.5)

    def crowd(self):
        return self.bench.client.run(self.server.url, "/sync/bootstrap", connections=CROWD, token=self.bench.token)


def scan_alone(bench, program):
    """benches/scan.rs: the library's scan, to nowhere, on one connection."""
    environment = {**os.environ, **bench.headstart("scan", scan_connections=1).environment}

    def work():
        process = subprocess.Popen([program, bench.org], env=environment, stdout=subprocess.PIPE, text=True)
        printed = process.stdout.read()
        processor = machine.waited(process)
        printed = json.loads(printed)
        return Copied(printed["seconds"], processor, printed["bytes"])

    return work


def build_scan(bench):
    """The program of benches/scan.rs, unless one was given. A release build takes minutes."""
    if bench.scan_program:
        return bench.scan_program
    print("building benches/scan.rs", file=sys.stderr)
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "--example", "scan"], cwd=ROOT, check=True, stdout=sys.stderr)
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    return f"{target}/release/examples/scan"


def measure(bench):
    program = build_scan(bench)
    database = bench.database
    postgres = {"PostgreSQL": database.seconds}
    named, bare = bench.catalog.selects(bench.org), bench.catalog.selects(bench.org, named=False)
    as_json = [f"SELECT row_to_json(o) FROM ({select}) o" for select in named]
    rows = sum(int(database.ask(f"SELECT count(*) FROM ({select}) o")) for select in bare)
    dumping, files = Dumping(bench, "dumping"), bench.nginx()
    environment = {"QUERIES": str(bench.queries), "ORG": bench.org, "DATABASE_URL": database.url, "MONGODB_URL": bench.mongo.url("node")}
    by_hand = node(bench, "node", "node-cursor", environment)
    cursor = Case("Node, cursor + JSON.stringify", lambda: bench.client.run(by_hand.url, "/cursor", token=bench.token), by_hand.seconds, postgres)

    def ours(name, work, before=dumping.settle):
        return Case(name, work, dumping.server.seconds, postgres, before)

    cases = [
        ours("Headstart, identity", lambda: dumping.answer("identity")),
        ours("Headstart, zstd", lambda: dumping.answer("zstd")),
        ours("Headstart, zstd, until it is published", lambda: dumping.published("zstd")),
        Case("scan and encode alone, 1 connection", scan_alone(bench, program), behind=postgres),
        Case("COPY of row_to_json by psql", copy(bench, as_json, ""), behind=postgres),
        Case("bare binary COPY by psql", copy(bench, bare, " (FORMAT binary)"), behind=postgres),
        ours(f"Headstart, {CROWD} clients at once", dumping.crowd, dumping.forget),
        Case(f"nginx, {CROWD} clients at once", lambda: bench.client.run(files.url, "/whole", connections=CROWD), files.seconds),
        cursor,
    ]
    measured = take_turns(bench.rounds, cases)
    by_hand.stop()
    dumping.settle()
    dumping.server.stop()

    identity, zstd, stored, alone, json_copy, binary, crowd, crowd_of_nginx, _ = (measured[case.name] for case in cases)
    cpu = ratios(alone, json_copy, lambda run: run.behind["PostgreSQL"])
    both = [ours.took() / (its.took() + one.took()) for ours, its, one in zip(crowd, crowd_of_nginx, zstd)]
    goals = [
        Goal("no snapshot, identity NDJSON, 1 client, to the last byte", "COPY of row_to_json by psql", "≤", 0.4, ratios(identity, json_copy, took)),
        Goal("no snapshot, zstd, 1 client, dump stored and published as well", "COPY of row_to_json by psql", "≤", 0.5, ratios(stored, json_copy, took)),
        Goal("PostgreSQL CPU seconds of a scan", "COPY of row_to_json", "≤", 0.3, cpu),
        Goal("scan and encode alone (no compression), one connection", "bare binary COPY", "≤", 1.25, ratios(alone, binary, took)),
        Goal(f"{CROWD} clients at once, no snapshot, to the last byte of the last", f"the same {CROWD} from nginx + one scan", "≤", 1.3, both),
    ]
    scanned = middle(alone, lambda run: run.gave.bytes)
    text = f"""### No snapshot

One client but where it says {CROWD}, and a dump for each answer, with the service's default of connections for a scan. `scan and encode
alone` is `benches/scan.rs`, the library's scan to nowhere; its processor time, as that of psql, stands under "client". psql asks
with a COPY for each model on one connection, the same models with the same filters and joins and as much `work_mem`, to /dev/null;
the bare COPY is of the same columns in binary. Its clock begins before it connects. "One scan" is the zstd answer of one client. A
dump is stored and published whatever its answer's encoding is; what of that comes after the last byte counts where it says so.

All but nginx read the {rows:,} rows of the org, {scanned / 1e6:.0f} MB as lines. Headstart sends {bench.rows:,} of them, {bench.whole_bytes / 1e6:.0f} MB: its client
is a user of all teams, and the others are those of other users alone. The MB of what sends nothing over HTTP are all those lines,
those of the binary COPY too: it is not its own bytes that are shown.

{work_table(measured, lambda name, runs: megabytes(runs, scanned))}"""
    return Section(goals, text)


def megabytes(runs, scanned):
    """As sent; where nothing is sent over HTTP, as lines."""
    return (getattr(runs[0].gave, "all_bytes", 0) or scanned) / 1e6


def took(run):
    return run.took()
