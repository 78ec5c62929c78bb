"""How cost grows: dump, refresh and bootstrap of orgs of more and more rows, and of more and more orgs.

Orgs of its own, made by growth.sql. Draws growth.svg beside the results.
"""

import hashlib
import math
import shutil
import statistics
import sys
import uuid
from dataclasses import astuple, dataclass

import machine
import plot
from machine import Meter
from results import Section, number, table
from servers import ROOT, Headstart

ROWS = [10_000, 100_000, 1_000_000]
ORGS = [1, 100, 10_000]
# Rows of each of many orgs.
SMALL = 100
# So often is everything done, but for what takes longer than so many seconds: that is done once.
TIMES, LONG = 3, 20


@dataclass
class Cost:
    """Of one operation: seconds on the clock, of all processors, of them PostgreSQL's, and the most MiB."""

    wall: float
    processor: float
    postgres: float
    memory: float


def identifier(kind, org, n):
    return str(uuid.UUID(hashlib.md5(f"growth {kind} {org}/{n}".encode()).hexdigest()))


def make(database, first, last, size):
    sql = (ROOT / "benches/growth.sql").read_text()
    database.run(f"\\set first {first}\n\\set last {last}\n\\set size {size}\n{sql}")


def migrate(bench, name, database):
    """The change log, once the rows are there: they are not in it."""
    Headstart(bench, name, database, f"file://{bench.work}/none").command("migrate", "--apply")
    database.ask("VACUUM ANALYZE", "CHECKPOINT")


def dumped(headstart, database, *which):
    """What `headstart dump` takes, PostgreSQL's part of it included."""
    with Meter(PostgreSQL=database.seconds) as meter:
        wall, processor, memory = headstart.used("dump", *which)
    postgres = meter.seconds["PostgreSQL"]
    return Cost(wall, processor + postgres, postgres, memory)


def repeated(work):
    """Medians of several times, each figure by itself. `work` is told which time it is."""
    found = [work(0)]
    while len(found) < TIMES and found[0].wall <= LONG:
        found.append(work(len(found)))
    return Cost(*(statistics.median(figures) for figures in zip(*(astuple(cost) for cost in found))))


def touch(database, first, last, turn):
    """Changes one comment in a hundred of these orgs, and one at least; others each time."""
    orgs = ", ".join(f"'{identifier('org', 0, org)}'" for org in range(first, last + 1))
    # Ten thousand orgs are longer than an argument may be.
    database.run(
        f"""UPDATE comment SET edited_at = now() FROM (
                SELECT c.id, row_number() OVER (PARTITION BY i.organization_id ORDER BY c.id) AS place
                FROM comment c JOIN issue i ON i.id = c.issue_id WHERE i.organization_id IN ({orgs})) counted
            WHERE counted.id = comment.id AND place % 100 = {turn + 1}"""
    )


def bootstrapped(bench, headstart, org):
    """What one answer costs the service, with the packs in memory."""
    token = headstart.command("token", "--org", identifier("org", 0, org), "--user", identifier("user", org, 1), "--ttl", "1d")
    with headstart.serve() as server:
        bench.client.run(server.url, "/sync/bootstrap", token=token)
        machine.forget_peak(server.pid)
        # The clock of /proc counts hundredths of a second: as many answers as there is time for.
        with Meter(service=server.seconds) as meter:
            gave = bench.client.run(server.url, "/sync/bootstrap", seconds=max(1, bench.seconds), token=token)
        return Cost(gave.last_quantile(50) / 1000, meter.seconds["service"] / gave.answers, 0.0, machine.peak(server.pid))


def costs(bench, name, database, org, which, touched):
    store = bench.work / f"{name}-store"
    # The log is not trimmed: for that a service looks at the snapshots of all orgs, when it starts and once a minute.
    headstart = Headstart(bench, name, database, f"file://{store}", freshness_soft_pending=0, trim_keep_s=0)

    def dump_all(_):
        shutil.rmtree(store, ignore_errors=True)
        return dumped(headstart, database, *which)

    def refresh_all(turn):
        touch(database, *touched, turn)
        return dumped(headstart, database, *which)

    dump = repeated(dump_all)
    # Before anything changes: its answers are the snapshot alone.
    bootstrap = repeated(lambda _: bootstrapped(bench, headstart, org))
    refresh = repeated(refresh_all)
    print(f"  {name}: dump {dump.wall:.1f} s, refresh {refresh.wall:.1f} s, bootstrap {bootstrap.wall * 1000:.1f} ms", file=sys.stderr)
    shutil.rmtree(store)
    return {"dump": dump, "refresh": refresh, "bootstrap": bootstrap}


def prepared(bench, name):
    """A database with the tables of the workspace, and nothing in them."""
    database = bench.database.other(name)
    Headstart(bench, name, database, f"file://{bench.work}/none").command("seed", "--scale", "small")
    database.ask("SET client_min_messages = warning", "TRUNCATE organization CASCADE")
    return database


def measure(bench):
    rows = [size for size in ROWS if size <= bench.most_rows]
    orgs = [count for count in ORGS if count <= bench.most_orgs]
    by_rows, by_orgs = {}, {}
    database = prepared(bench, "growth-rows")
    for place, size in enumerate(rows, start=1):
        make(database, place, place, size)
    migrate(bench, "growth-rows", database)
    for place, size in enumerate(rows, start=1):
        by_rows[size] = costs(bench, f"rows-{size}", database, place, ["--org", identifier("org", 0, place)], (place, place))
    bench.database.ask('DROP DATABASE "growth-rows"')
    for count in orgs:
        database = prepared(bench, f"growth-orgs-{count}")
        make(database, 1, count, SMALL)
        migrate(bench, f"growth-orgs-{count}", database)
        by_orgs[count] = costs(bench, f"orgs-{count}", database, 1, ["--all"], (1, count))
        bench.database.ask(f'DROP DATABASE "growth-orgs-{count}"')

    panels = [plot.Panel(f"{title} by {unit}", unit, {kind: {at: figure(found[kind]) for at, found in by.items()} for kind in plot.KINDS})
              for unit, by in [("rows of one org", by_rows), (f"orgs of {SMALL} rows", by_orgs)]
              for title, figure in [("seconds", lambda cost: cost.wall), ("CPU seconds", lambda cost: cost.processor), ("most MiB", lambda cost: cost.memory)]]
    bench.plot.write_text(plot.drawn(panels, columns=3))
    missing = len(rows) + len(orgs) < len(ROWS) + len(ORGS)
    left_out = f"\nLeft out: more than {bench.most_rows:,} rows (`ROWS`) or {bench.most_orgs:,} orgs (`ORGS`).\n" if missing else ""
    text = f"""### How cost grows

![seconds, CPU seconds and memory, by rows and by orgs, on logarithmic scales](growth.svg)

All is done {TIMES} times, but once where it takes more than {LONG} s; figures are medians, each by itself. A dump is `headstart dump` into an
empty folder store; a refresh is the same after one comment in a hundred has changed, others each time, into the store as the one
before left it; a bootstrap is one answer in zstd to the only client, of one org, from memory, of as many as it gets in {max(1, bench.seconds):g} s.
CPU of dumps is the command's and PostgreSQL's, of bootstraps the service's. Between two sizes stands by what power the cost grew:
1 is a straight line, 0 does not grow.

What bends at the left is what any dump costs, however small: a process, its connections, the catalog, a watermark, a statement for
each model; a dump of many small orgs is almost nothing else, and so is a refresh of few rows. That of more grows with what changed,
which is a hundredth of the rows here, but stands in nearly every frame, so nearly all is taken apart and compressed anew. Its memory
is that of what changed, and of the packs under way. Memory of a dump grows until its buffers are full (`dump.open_bytes`), that of a
service with the packs in its cache (`store.cache.limit_mib`); then both stay. Where seconds are more than CPU seconds, there is
waiting, for a disk or for an answer; where they are fewer, several cores work at once. A bootstrap looks at one org, so the number of
orgs does not show in it.
{left_out}
{growth_table("rows", by_rows)}
{growth_table(f"orgs of {SMALL} rows", by_orgs)}"""
    return Section([], text)


def growth_table(sizes, by):
    rows = []
    for kind in plot.KINDS:
        unit, parts = ("ms", 1000) if kind == "bootstrap" else ("s", 1)
        costs = {size: found[kind] for size, found in by.items()}
        processors = with_powers({size: cost.processor * parts for size, cost in costs.items()})
        if kind != "bootstrap":
            processors = [f"{cell}, of that PostgreSQL {number(cost.postgres)}" for cell, cost in zip(processors, costs.values())]
        rows.append([f"{kind}, {unit}", *with_powers({size: cost.wall * parts for size, cost in costs.items()})])
        rows.append([f"{kind}, CPU {unit}", *processors])
        rows.append([f"{kind}, most MiB", *with_powers({size: cost.memory for size, cost in costs.items()})])
    return table([sizes, *(f"{size:,}" for size in by)], rows)


def with_powers(values):
    """Figures by their sizes; each but the first with the power by which it grew."""
    cells, before = [], None
    for size, value in values.items():
        power = "" if before is None else f" (power {math.log(value / before[1]) / math.log(size / before[0]):.2f})"
        cells.append(f"{number(value)}{power}")
        before = size, value
    return cells
