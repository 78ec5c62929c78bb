"""The load client, download.rs, and what it measured."""

import json
import statistics
import subprocess
from pathlib import Path

import machine

HERE = Path(__file__).resolve().parent


def built(work, name):
    """Compiles a program of one file: the standard library is all it needs."""
    program = work / name
    subprocess.run(["rustc", "-O", "--edition", "2024", "-o", program, HERE / f"{name}.rs"], check=True)
    return program


class Downloaded:
    """What came: figures of one run of the client."""

    def __init__(self, printed, processor):
        self.bytes, self.seconds = printed["bytes"], printed["seconds"]
        # With what came after the time was up.
        self.all_bytes, self.took = printed["all_bytes"], printed["took"]
        self.first = [answer[0] for answer in printed["answers"]]
        self.last = [answer[1] for answer in printed["answers"]]
        self.answers = len(self.last)
        self.size = self.all_bytes / self.answers
        # Processor time of the client itself.
        self.processor = processor

    @property
    def rate(self):
        """MB a second, all connections together."""
        return self.bytes / self.seconds / 1e6

    @property
    def share(self):
        """The client's, of one core."""
        return self.processor / self.took

    def first_quantile(self, percent):
        return quantile(self.first, percent)

    def last_quantile(self, percent):
        return quantile(self.last, percent)


def quantile(values, percent):
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


class Client:
    def __init__(self, work):
        self.program = built(work, "download")

    def run(self, url, path, *, connections=1, seconds=None, answers=None, save=None, token=None, encoding="zstd"):
        """Downloads until the client has had enough. Ends the bench when an answer is not whole."""
        until = ["seconds", seconds] if seconds else ["save", save] if save else ["answers", answers or 1]
        headers = [f"Accept-Encoding: {encoding}"] + ([f"Authorization: Bearer {token}"] if token else [])
        command = [self.program, url.removeprefix("http://"), path, connections, *until, *headers]
        process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)
        printed = process.stdout.read()
        processor = machine.waited(process)
        return Downloaded(json.loads(printed), processor)
