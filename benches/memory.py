"""Resident memory: of a service that streams to many, and of dumps of the million-row org."""

import subprocess
import sys

import machine
from results import Goal, Section, counted, table
from scan import Dumping
from servers import Headstart

CLIENTS = 50
# MiB of the pack cache: less than the packs of the large org, so that it is full and packs come and go while all read; the first
# is the least it may be set to.
LIMITS = [16, 32]
# So often at most the million-row org is dumped in each way.
DUMPS = 3


def streaming(bench, limit):
    """The most a service holds beyond its cache's limit, each round, while many stream; and a client that is alone."""
    headstart = bench.headstart(f"memory-{limit}", store_cache_limit_mib=limit)
    with headstart.serve() as server:
        machine.forget_peak(server.pid)
        bench.client.run(server.url, "/sync/bootstrap", token=bench.token)
        alone, peaks = machine.peak(server.pid), []
        for _ in range(bench.rounds):
            machine.forget_peak(server.pid)
            bench.client.run(server.url, "/sync/bootstrap", connections=CLIENTS, seconds=bench.seconds, token=bench.token)
            peaks.append(machine.peak(server.pid))
            print(f"  {CLIENTS} clients, cache of {limit} MiB: {peaks[-1]:.0f} MiB", file=sys.stderr)
    return alone, peaks


def of_million(bench):
    """Peaks of a dump of the million-row org: by the command, and in a service that streams it to one client."""
    database = bench.database.other("million")
    bench.seed(database, bench.million)
    store = f"file://{bench.work}/million-store"
    headstart = Headstart(bench, "million", database, store)
    peaks = {"command": [], "service": []}
    for _ in range(min(bench.rounds, DUMPS)):
        wall, _, peak = headstart.used("dump", "--org", bench.org, "--full")
        peaks["command"].append(peak)
        print(f"  dump of the {bench.million} workspace: {wall:.1f} s, {peak:.0f} MiB", file=sys.stderr)
    rows = int(headstart.command("dump", "--org", bench.org, "--full").split("\t")[2])
    dumping = Dumping(bench, "million-service", database)
    for _ in range(min(bench.rounds, DUMPS)):
        machine.forget_peak(dumping.server.pid)
        dumping.answer("zstd")
        dumping.settle()
        peaks["service"].append(machine.peak(dumping.server.pid))
    dumping.server.stop()
    bench.database.ask('DROP DATABASE "million"')
    subprocess.run(["rm", "-rf", bench.work / "million-store", bench.work / "million-service"], check=True)
    return rows, peaks


def measure(bench):
    rows, goals = [], []
    packs = sum(file.stat().st_size for file in (bench.work / "store").rglob("packs/*"))
    for limit in LIMITS:
        alone, peaks = streaming(bench, limit)
        beyond = [peak - limit for peak in peaks]
        rows.append([f"serving, pack cache of {limit} MiB", f"{alone:.0f}", f"{max(peaks):.0f}", f"{max(beyond):.0f}"])
        goals.append(Goal(f"resident memory, {CLIENTS} clients streaming the whole org", f"pack cache limit of {limit} MiB + this", "≤", 64, beyond, "MiB"))
    text = ""
    if bench.million:
        count, peaks = of_million(bench)
        rows += [[f"a dump of {count:,} rows, {who}", "–", f"{max(found):.0f}", "–"] for who, found in peaks.items()]
        goals.append(Goal(f"resident memory of a dump of {count:,} rows, the command", "", "≤", 96, peaks["command"], "MiB"))
        goals.append(Goal(f"resident memory of a dump of {count:,} rows, the service, one client", "", "≤", 96, peaks["service"], "MiB"))
        text = f"\nEach dump was made {counted(min(bench.rounds, DUMPS), 'time')}.\n"
    else:
        text = "\nThe million-row org was left out (`MILLION=`).\n"
    heads = ["what", "one client: most MiB", f"{CLIENTS} clients or the dump: most MiB", "beyond the cache's limit"]
    return Section(goals, f"""### Memory

The most that was resident (VmHWM of /proc, forgotten before each round) in {counted(bench.rounds, "round")} of {CLIENTS} clients, {bench.seconds:g} s each. The packs of
the org take {packs / 2**20:.0f} MiB: a cache with a lower limit is full, and packs come and go while all read. What the kernel keeps of answers in
the buffers of sockets is in no process's resident memory, and is not counted.

{table(heads, rows)}{text}""")
