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
    # What the server of this case has used so far, and the databases behind it.
    server: Callable = lambda: 0.0
    behind: dict = field(default_factory=dict)
    before: Callable = nothing
    after: Callable = nothing


@dataclass
class Run:
    """One turn: seconds on the clock, processor seconds of everyone, and what the work gave."""

    wall: float
    server: float
    behind: dict
    client: float
    others: float
    gave: object

    @property
    def rate(self):
        return self.gave.rate

    def per_answer(self, seconds):
        """Of what an answer's bytes took: an answer that was cut by the end of the time counts in part."""
        return seconds * 1000 * self.gave.size / self.gave.all_bytes

    def took(self):
        """Seconds to the last byte, where there was one answer; else those of the whole work."""
        return self.gave.took if hasattr(self.gave, "took") else self.wall


def take_turns(rounds, cases):
    """Runs by the case's name. Who is first changes with each round."""
    measured = {case.name: [] for case in cases}
    for turn in range(rounds):
        first = turn % len(cases)
        for case in cases[first:] + cases[:first]:
            case.before()
            with Meter(server=case.server, **case.behind) as meter:
                gave = case.work()
            behind = {name: meter.seconds[name] for name in case.behind}
            client = getattr(gave, "processor", 0.0)
            run = Run(meter.wall, meter.seconds["server"], behind, client, meter.others(client), gave)
            case.after()
            measured[case.name].append(run)
            rate = f", {run.rate:.0f} MB/s, server {run.per_answer(run.server):.2f} ms each" if hasattr(gave, "rate") else ""
            print(f"  round {turn + 1}, {case.name}: {run.took():.3f} s, server {run.server:.2f} s{rate}, others {run.others:.0%}", file=sys.stderr)
    return measured


def middle(runs, figure):
    return statistics.median(figure(run) for run in runs)


def ratios(runs, others, figure, other_figure=None):
    """Of each round."""
    return [figure(run) / (other_figure or figure)(other) for run, other in zip(runs, others)]
