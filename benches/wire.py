"""Gzip from stored zstd, and how many bytes the whole org takes on the wire."""

import shutil
import subprocess
import time

import machine
from results import Goal, Section, number, table, work_table
from scan import Copied
from turns import Case, middle, ratios, take_turns

FRAMES = [64 << 10, 256 << 10, 1 << 20, 4 << 20]
LEVELS = [1, 3, 6, 9]


def piped(command):
    """A pipeline of the shell to /dev/null, with the processor time of all of it."""

    def work():
        began = time.monotonic()
        process = subprocess.Popen(["bash", "-o", "pipefail", "-c", command], stdout=subprocess.DEVNULL)
        processor = machine.waited(process)
        return Copied(time.monotonic() - began, processor, 0)

    return work


def measure_gzip(bench):
    service = bench.service()
    file = bench.files / "whole"

    def ours(encoding):
        def answer():
            return bench.client.run(service.url, "/sync/bootstrap", token=bench.token, encoding=encoding)

        return Case(f"Headstart, {encoding}", answer, service.seconds, {"PostgreSQL": bench.database.seconds})

    cases = [
        ours("gzip"),
        ours("identity"),
        Case("`zstd -dc` piped into `gzip -1`", piped(f"zstd -q -dc <{file} | gzip -1 >/dev/null")),
        Case("`zstd -dc`", piped(f"zstd -q -dc <{file} >/dev/null")),
    ]
    measured = take_turns(bench.rounds, cases)
    gzip, _, its, _ = (measured[case.name] for case in cases)
    speed = ratios(its, gzip, lambda run: run.took())
    counted = subprocess.run(f"zstd -q -dc <{file} | gzip -1 | wc -c", shell=True, check=True, stdout=subprocess.PIPE, text=True)
    goal = Goal("gzip from stored zstd, 1 client, lines per second", "`zstd -dc \\| gzip -1`", "≥", 0.9, speed)
    text = f"""### Other encodings than the stored one

One client; the pipeline reads the same bytes from a file and writes to nowhere, and its processor time stands under "client". MB
are those of the lines.

{work_table(measured, lambda name, runs: bench.whole_bytes / 1e6)}
The answer in gzip is {middle(gzip, lambda run: run.gave.all_bytes) / 1e6:.1f} MB, that of `gzip -1` {int(counted.stdout) / 1e6:.1f} MB; in zstd, as it is stored, {bench.sent_bytes / 1e6:.1f} MB.
"""
    return Section([goal], text)


def compressed_size(level, files):
    """Bytes of one frame for each file, and the most memory that took, in MiB."""
    process = subprocess.Popen(["zstd", "-q", f"-{level}", "--single-thread", "-c", *files], stdout=subprocess.PIPE)
    size, memory = 0, 0.0
    while piece := process.stdout.read(1 << 18):
        size += len(piece)
        memory = max(memory, machine.peak(process.pid))
    machine.waited(process)
    return size, memory


def measure_wire(bench):
    lines = bench.lines()
    one, _ = compressed_size(3, [lines])
    goal = Goal("wire bytes of the whole org", "one `zstd -3` file of it", "≤", 1.25, [bench.sent_bytes / one])

    pieces, rows = bench.work / "pieces", []
    for frame in FRAMES:
        pieces.mkdir()
        subprocess.run(["split", "-a", "4", "-C", str(frame), lines, f"{pieces}/"], check=True)
        files = sorted(pieces.iterdir())
        rows.append([f"{frame >> 10} KiB", *(cell(level, files, one) for level in LEVELS)])
        shutil.rmtree(pieces)
    rows.append(["one frame", *(cell(level, [lines], one) for level in LEVELS)])
    text = f"""### Bytes on the wire

The whole org is {bench.whole_bytes / 1e6:.1f} MB as lines, {bench.sent_bytes / 1e6:.2f} MB as it is sent in zstd, {one / 1e6:.2f} MB as one file of `zstd -3`. What frames cost,
by `zstd` over the very lines of the answer in their order, cut into pieces of so many bytes, each a frame: times the one file of level 3,
and the memory of the program while it does that. A frame of the service holds rows of one model and one set of groups.

{table(["frame, as lines", *(f"level {level}" for level in LEVELS)], rows)}"""
    return Section([goal], text)


def cell(level, files, one):
    size, memory = compressed_size(level, files)
    return f"{number(size / one)}, {memory:.0f} MiB"
