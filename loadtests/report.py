"""Makes the reports of `make load` readable: a page with charts, and the table in RESULTS.md.

Reads, for each script, what k6 exported (NAME.json), what the service's process used (NAME.run) and its memory over time
(NAME.memory). Exits with 1 when the soak's memory grew. The page needs nothing from outside.
"""

import argparse
import datetime
import html
import json
import math
import os
import platform
import re
import statistics
import sys
from pathlib import Path

import sections

# The soak's memory may grow from its second quarter to its last by this factor and this many MiB.
GROWTH = (1.2, 32)

# Below this many MiB growth is not judged: a short run only fills the cache of packs (store.cache.limit_mib, 256), and
# allocators keep what they got.
FILLING = 400

WORDS = {
    "hot": "snapshot there, user of all teams",
    "few": "snapshot there, users of few teams",
    "resume": "two halves of a download",
    "cold": "a dump of its own for each client",
    "stampede": "everyone at once, nothing prepared",
    "batch: hot": "the comments of the same ten issues",
    "batch: cold": "the comments of any twenty issues",
    "batch: boards": "a team's states, issues and comments",
    "nothing_new": "nothing has changed",
    "a_minute": "100 actions behind",
    "a_week": "1000 actions behind; 10,000 when large",
    "arrival": "bootstraps, while others write",
    "reconnect": "deltas, while others write",
    "board": "batches, while others write",
    "soak": "a mix, with pauses",
}


class Run:
    """One script: what k6 measured, what the service used."""

    def __init__(self, folder, name):
        self.name = name
        self.used = json.loads((folder / f"{name}.run").read_text())
        exported = folder / f"{name}.json"
        self.metrics = json.loads(exported.read_text())["metrics"] if exported.exists() else {}
        samples = [line.split() for line in (folder / f"{name}.memory").read_text().splitlines()]
        self.memory = [(float(at), int(kib) / 1024) for at, kib in samples]

    def count(self, metric):
        return self.metrics.get(metric, {}).get("count", 0)

    def passed(self):
        return self.used["status"] == 0

    def parts(self):
        """The parts that the script tells apart: (name, answers, first byte, whole answer)."""
        for key, first in sorted(self.metrics.items()):
            found = re.fullmatch(r"first_byte_ms\{\w+:(\w+)\}", key)
            tag = key[len("first_byte_ms") :]
            if found and self.count(f"answers{tag}"):
                yield found[1], self.count(f"answers{tag}"), first, self.metrics[f"answer_ms{tag}"]

    def growth(self):
        """Medians of the memory in the second quarter and in the last, in MiB."""
        values = [mib for _, mib in self.memory]
        quarter = max(1, len(values) // 4)
        return statistics.median(values[quarter : 2 * quarter] or values), statistics.median(values[-quarter:])


def milliseconds(value):
    if value < 1000:
        return f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"
    return f"{value / 1000:.2f} s" if value < 10_000 else f"{value / 1000:.0f} s"


def size(value):
    return f"{value / 1e6:.1f} MB" if value < 1e9 else f"{value / 1e9:.2f} GB"


def machine():
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[1]) / 1024**2
    return f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory"


def facts(arguments):
    release = Path("/etc/os-release")
    system = re.search(r'PRETTY_NAME="(.*)"', release.read_text())[1] if release.exists() else platform.system()
    return [
        ("date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("command", f"`{arguments.command}`"),
        ("machine", f"{machine()}; load average before the run {arguments.busy}"),
        ("system", f"{system}, Linux {platform.release()}"),
        ("versions", f"{arguments.service}; {arguments.postgres}; {arguments.k6.split(' (')[0]}"),
    ]


def part_rows(runs):
    for run in runs:
        for name, answers, first, whole in run.parts():
            times = [first["med"], first["p(95)"], whole["med"], whole["p(95)"]]
            yield [f"{run.name}: {name}", WORDS.get(f"{run.name}: {name}", WORDS.get(name, "")), str(answers), *map(milliseconds, times)]


def script_rows(runs):
    for run in runs:
        answers = run.count("answers") or 1
        seconds, processor = run.used["seconds"], run.used["processor_seconds"]
        yield [
            run.name,
            "passed" if run.passed() else "FAILED",
            f"{seconds:.0f} s",
            str(run.count("answers")),
            size(run.count("raw_bytes")),
            size(run.count("data_received")),
            f"{processor:.1f} s",
            milliseconds(1000 * processor / answers),
            f"{run.used['memory_kib'] / 1024:.0f} MiB",
        ]


PARTS = ["what", "", "answers", "first byte, median", "95 %", "whole answer, median", "95 %"]
SCRIPTS = ["script", "", "took", "answers", "as NDJSON", "received", "service's processor", "an answer", "service's memory, most"]


def markdown_table(heads, rows):
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])


def section(runs, arguments, verdict):
    lines = [f"- {name}: {value}" for name, value in facts(arguments)]
    return f"""The {arguments.scale} workspace

{chr(10).join(lines)}

{markdown_table(PARTS, part_rows(runs))}

What the service's process used meanwhile:

{markdown_table(SCRIPTS, script_rows(runs))}

{verdict}
"""


AXIS = ["1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"]


def bars(runs):
    """Median and 95 % of the first byte and the whole answer, a part a row, on one logarithmic scale."""
    parts = [(f"{run.name}: {name}", first, whole) for run in runs for name, _, first, whole in run.parts()]
    decades, left, width, row = len(AXIS) - 1, 190, 700, 44
    place = lambda ms: left + width * min(max(0.0, decades_of(ms)), decades) / decades
    out = [f'<svg viewBox="0 0 {left + width + 90} {len(parts) * row + 30}" role="img">']
    for power in range(decades + 1):
        x = left + width * power / decades
        out.append(f'<line class="grid" x1="{x}" y1="0" x2="{x}" y2="{len(parts) * row}"/>')
        out.append(f'<text x="{x}" y="{len(parts) * row + 18}" text-anchor="middle">{AXIS[power]}</text>')
    for index, (name, first, whole) in enumerate(parts):
        y = index * row + 4
        out.append(f'<text x="{left - 8}" y="{y + 22}" text-anchor="end">{html.escape(name)}</text>')
        for offset, kind, trend in [(0, "first", first), (18, "whole", whole)]:
            median, most = place(trend["med"]), place(trend["p(95)"])
            title = f"<title>{kind}: median {milliseconds(trend['med'])}, 95 % {milliseconds(trend['p(95)'])}</title>"
            out.append(f'<rect class="{kind} most" x="{left}" y="{y + offset}" width="{most - left}" height="15">{title}</rect>')
            out.append(f'<rect class="{kind}" x="{left}" y="{y + offset}" width="{median - left}" height="15">{title}</rect>')
            out.append(f'<text x="{most + 5}" y="{y + offset + 12}">{milliseconds(trend["p(95)"])}</text>')
    return "\n".join([*out, "</svg>"])


def decades_of(ms):
    """Decades above one millisecond."""
    return math.log10(max(ms, 1e-3))


def line(run):
    """The service's memory over the run."""
    if len(run.memory) < 2:
        return ""
    left, width, height = 60, 740, 120
    start, end = run.memory[0][0], run.memory[-1][0]
    top = max(mib for _, mib in run.memory) * 1.1
    points = " ".join(
        f"{left + width * (at - start) / (end - start):.1f},{height - height * mib / top:.1f}" for at, mib in run.memory
    )
    return f"""<svg viewBox="0 0 {left + width + 40} {height + 24}" role="img">
<line class="grid" x1="{left}" y1="{height}" x2="{left + width}" y2="{height}"/>
<polyline points="{points}"/>
<text x="{left - 6}" y="12" text-anchor="end">{top:.0f} MiB</text><text x="{left - 6}" y="{height}" text-anchor="end">0</text>
<text x="{left + width}" y="{height + 18}" text-anchor="end">{end - start:.0f} s</text></svg>"""


def link(folder, run):
    """To k6's own report, which it writes of runs that are long enough for charts."""
    there = (folder / f"{run.name}.html").exists()
    return f'<small><a href="{run.name}.html">k6\'s own report</a></small>' if there else ""


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #1b1f24; background: #fff }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .25em .8em; border-bottom: 1px solid #d7dbe0; text-align: left }
td { font-variant-numeric: tabular-nums; white-space: nowrap } svg { width: 100%; font-size: 11px } svg text { fill: #59636e }
.grid { stroke: #e3e6ea } .first { fill: #0b7285 } .whole { fill: #5f3dc4 } .most { opacity: .35 }
polyline { fill: none; stroke: #0b7285; stroke-width: 1.5 } .key { font-weight: 600 } .FAILED { color: #c92a2a; font-weight: 600 }
"""


def html_table(heads, rows):
    cell = lambda kind, text: f'<{kind} class="{text if text == "FAILED" else ""}">{html.escape(text)}</{kind}>'
    body = ["<tr>" + "".join(cell("td", text) for text in row) + "</tr>" for row in rows]
    return "<table><tr>" + "".join(cell("th", text) for text in heads) + "</tr>" + "".join(body) + "</table>"


def page(runs, arguments, verdict):
    lines = "".join(f"<li>{name}: {html.escape(value.strip('`'))}</li>" for name, value in facts(arguments))
    memory = "".join(f"<h3>{run.name} {link(arguments.folder, run)}</h3>{line(run)}" for run in runs)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Load tests of Headstart</title><style>{STYLE}</style>
<h1>Load tests of Headstart</h1><ul>{lines}</ul>
<h2>Times</h2>
<p>Dark: median, light: 95 %. <span class="key" style="color:#0b7285">first byte</span>,
<span class="key" style="color:#5f3dc4">whole answer</span>; the scale is logarithmic.</p>
{bars(runs)}{html_table(PARTS, part_rows(runs))}
<h2>What the service used</h2>{html_table(SCRIPTS, script_rows(runs))}<p>{html.escape(verdict)}</p>
<h2>The service's memory</h2>{memory}</html>
"""


def judge(runs):
    """Whether memory stayed flat in the soak, and the words for it."""
    for run in runs:
        if run.name == "soak":
            before, after = run.growth()
            flat = after <= max(before * GROWTH[0] + GROWTH[1], FILLING)
            words = f"Memory in the soak: {before:.0f} MiB in its second quarter, {after:.0f} MiB in its last"
            return flat, f"{words}{'.' if flat else ': it GREW.'}"
    return True, ""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("scripts", nargs="+")
    for name in ["scale", "command", "k6", "postgres", "service", "busy"]:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    runs = [Run(arguments.folder, name) for name in arguments.scripts]
    flat, verdict = judge(runs)
    (arguments.folder / "index.html").write_text(page(runs, arguments, verdict))
    text = section(runs, arguments, verdict).strip() + "\n"
    print(text)
    if arguments.results and flat and all(run.passed() for run in runs):
        sections.keep(arguments.results, text)
    sys.exit(0 if flat else verdict)


main()
