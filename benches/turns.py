"""Everyone has a turn in each round: what they do, what it takes, and ratios of the same round."""

import statistics
import sys
from dataclasses import dataclass, field
from typing import Callable

from machine import Meter


def nothing():
    pass


@dataclass
class Case:
    """One of those who are compared. `work` is measured, `before` and `after` are not."""

    name: str
    work: Callable
    # What the server of this case has used so far, where that can be told, and the databases behind it.
    server: Callable | None = None
    behind: dict = field(default_factory=dict)
    before: Callable = nothing
    after: Callable = nothing


@dataclass
class Run:
    """One turn: seconds on the clock, processor seconds of everyone (None where nobody measured them), and what the work gave."""

    wall: float
    server: float | None
    behind: dict
    client: float | None
    others: float
    gave: object

    @property
    def rate(self):
        return self.gave.rate

    def per_answer(self, seconds):
        """Milliseconds of each answer. The client lets every answer come to its end, and the meter runs until then."""
        return None if seconds is None else seconds * 1000 / self.gave.answers

    def took(self):
        """Seconds to the last byte, where there was one answer; else those of the whole work."""
        return self.gave.took if hasattr(self.gave, "took") else self.wall


def rotated(things, turn):
    """Their order in a round: who is first changes with each."""
    first = turn % len(things)
    return things[first:] + things[:first]


def take_turns(rounds, cases):
    """Runs by the case's name."""
    measured = {case.name: [] for case in cases}
    for turn in range(rounds):
        for case in rotated(cases, turn):
            case.before()
            own = {"server": case.server} if case.server else {}
            with Meter(**own, **case.behind) as meter:
                gave = case.work()
            behind = {name: meter.seconds[name] for name in case.behind}
            client = getattr(gave, "processor", None)
            run = Run(meter.wall, meter.seconds.get("server"), behind, client, meter.others(client or 0.0), gave)
            case.after()
            measured[case.name].append(run)
            print(f"  round {turn + 1}, {case.name}: {told(run)}", file=sys.stderr)
    return measured


def told(run):
    """A run in a few words, for who watches the bench."""
    is_download = hasattr(run.gave, "rate")
    rate = f", {run.rate:.0f} MB/s" if is_download else ""
    each = f", {run.per_answer(run.server):.2f} ms each" if is_download and run.server is not None else ""
    server = "" if run.server is None else f", server {run.server:.2f} s"
    return f"{run.took():.3f} s{rate}{server}{each}, others {run.others:.0%}"


def middle(runs, figure):
    """The median; None where it was not measured."""
    values = [figure(run) for run in runs]
    return None if None in values else statistics.median(values)


def ratios(runs, others, figure, other_figure=None):
    """Of each round."""
    return [figure(run) / (other_figure or figure)(other) for run, other in zip(runs, others)]
