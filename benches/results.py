"""The tables of the bench, and their place in loadtests/RESULTS.md."""

import datetime
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import machine
from turns import middle

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "loadtests"))
import sections

HEADING = "Side by side"


@dataclass
class Goal:
    """A row of the first table: what was measured in each round, and what it should be.

    A ratio of `what` to `against`, unless it has a unit.
    """

    what: str
    against: str
    # "≥" or "≤", and the number.
    sense: str
    bound: float
    rounds: list
    unit: str = ""

    def row(self):
        value = statistics.median(self.rounds)
        met = value >= self.bound if self.sense == "≥" else value <= self.bound
        unit = f" {self.unit}" if self.unit else ""
        goal = f"{self.sense} {round(self.bound, 2):g}{unit}"
        return [self.what, self.against or "–", goal, spread(self.rounds, unit, "**"), "yes" if met else "**no**"]


@dataclass
class Section:
    """What one part of the bench found."""

    goals: list
    text: str


def spread(values, unit="", mark=""):
    """The median, and where there are several the least and the most."""
    most = f" ({number(min(values))} to {number(max(values))})" if len(values) > 1 else ""
    return f"{mark}{number(statistics.median(values))}{unit}{mark}{most}"


def counted(count, unit):
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


def number(value):
    """A figure as it is printed. None is one that nobody measured."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def table(heads, rows, words=1):
    """The first columns are words, the others are figures."""
    marks = ["---"] * words + ["--:"] * (len(heads) - words)
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, marks, *rows]) + "\n"


def download_table(measured):
    """Of runs whose work was downloads for some time."""
    behind = sorted({name for runs in measured.values() for name in runs[0].behind})
    heads = ["who", "MB/s (least to most)", "answers/s", "first byte ms: p50", "p99", "last byte ms: p50", "p99", "server: CPU ms an answer"]
    heads += [f"{name}: the same" for name in behind] + ["client: the same", "client, of a core", "others, of a core"]
    rows = []
    for name, runs in measured.items():
        rates = [run.rate for run in runs]
        rows.append(
            [name, f"**{number(statistics.median(rates))}** ({number(min(rates))} to {number(max(rates))})"]
            + [number(middle(runs, lambda run: run.rate * 1e6 / run.gave.size))]
            + [number(middle(runs, lambda run: run.gave.first_quantile(at))) for at in (50, 99)]
            + [number(middle(runs, lambda run: run.gave.last_quantile(at))) for at in (50, 99)]
            + [number(middle(runs, lambda run: run.per_answer(run.server)))]
            + [number(middle(runs, lambda run: run.per_answer(run.behind[each]))) if each in runs[0].behind else "–" for each in behind]
            + [number(middle(runs, lambda run: run.per_answer(run.client)))]
            + [f"{middle(runs, lambda run: run.gave.share):.0%}", f"{middle(runs, lambda run: run.others):.0%}"]
        )
    return table(heads, rows)


def work_table(measured, mega_bytes):
    """Of runs that did one thing to its end. `mega_bytes` gives for each name what was handled, as NDJSON or as sent."""
    behind = sorted({name for runs in measured.values() for name in runs[0].behind})
    heads = ["what", "seconds (least to most)", "MB", "MB/s", "server: CPU s", *(f"{name}: CPU s" for name in behind), "client: CPU s", "others, of a core"]
    rows = []
    for name, runs in measured.items():
        took = [run.took() for run in runs]
        size = mega_bytes(name, runs)
        rows.append(
            [name, f"**{statistics.median(took):.3f}** ({min(took):.3f} to {max(took):.3f})", number(size)]
            + [number(size / statistics.median(took)), number(middle(runs, lambda run: run.server))]
            + [number(middle(runs, lambda run: run.behind[each])) if each in runs[0].behind else "–" for each in behind]
            + [number(middle(runs, lambda run: run.client)), f"{middle(runs, lambda run: run.others):.0%}"]
        )
    return table(heads, rows)


def whole(found, facts):
    """The bench's section: the goals of all parts in one table, then what each part says."""
    goals = [goal.row() for section in found for goal in section.goals]
    lines = "\n".join(f"- {name}: {value}" for name, value in facts)
    texts = "\n\n".join(section.text.strip() for section in found)
    return f"""{HEADING}

{lines}

{table(["what", "against", "goal", "measured, median of rounds (least to most)", "met?"], goals, words=2)}
Written by `make bench`. Everyone shares the cores of one machine, the load client among them; all servers are of this run,
on loopback. What was measured is a ratio, of the first named to the second, unless a unit is shown. Each ratio is the median of
those of the rounds, in which everyone has a turn. CPU is processor time from /proc; a dash is what was not measured, or is not
there. "Others" is what processes outside of what is measured used of the machine meanwhile.

{texts}
"""


def facts(commit, command, busy, versions, data):
    now = datetime.datetime.now(datetime.timezone.utc)
    return [
        ("date", f"{now:%Y-%m-%d %H:%M} UTC"),
        *([("commit of the working tree", commit)] if commit else []),
        ("command", f"`{command}`"),
        ("machine", f"{machine.described()}; load average before the run {busy}"),
        ("versions", "; ".join(version for version in versions if version)),
        ("data", data),
    ]


def keep(path, text):
    sections.keep(Path(path), text)
