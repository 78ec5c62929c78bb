"""A snapshot that is stored, but not in memory: a fresh process for each answer, from MongoDB and from a folder.

What the operating system has cached stays cached, for everyone.
"""

import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass

import machine
from client import built
from results import Goal, Section, spread, work_table
from servers import Headstart, metric
from turns import Case, middle, ratios, take_turns


@dataclass
class Read:
    """What a loop over the packs took, on the clock and of the bench's own process, in which it runs."""

    took: float
    processor: float
    bytes: int


class Fresh:
    """A service that is started anew for each turn, with nothing in its cache."""

    def __init__(self, bench, headstart, token):
        self.bench, self.headstart, self.token, self.server = bench, headstart, token, None

    def before(self):
        self.server = self.headstart.serve()
        # What a process that runs has: connections, prepared statements, the manifest. No pack is loaded.
        headers = {"Authorization": f"Bearer {self.token}", "Accept-Encoding": "zstd"}
        with urllib.request.urlopen(urllib.request.Request(f"{self.server.url}/sync/bootstrap", method="HEAD", headers=headers)):
            pass
        if metric(self.server, "pack_cache_loads_total") > 1:
            sys.exit("more than the manifest was loaded")

    def after(self):
        self.server.stop()

    def seconds(self):
        return self.server.seconds()

    def work(self):
        return self.bench.client.run(self.server.url, "/sync/bootstrap", token=self.token)

    def case(self, name, **behind):
        return Case(name, self.work, self.seconds, behind, self.before, self.after)


class CountedFresh(Fresh):
    """The same, which also counts what MongoDB sends meanwhile."""

    def work(self):
        mongo = self.bench.mongo
        zero = mongo.sent()
        before = mongo.sent()
        gave = super().work()
        # Less what the question itself was answered with.
        gave.loaded = mongo.sent() - before - (before - zero)
        return gave


def driver_loop(mongo, database):
    """The packs as the driver gives them, whole and not looked into."""
    packs = mongo.client[database].packs

    def work():
        began, processor = time.monotonic(), time.process_time()
        count = sum(len(batch) for batch in packs.find_raw_batches({}, {"data": 1, "_id": 0}))
        return Read(time.monotonic() - began, time.process_time() - processor, count)

    return work


class FileServer:
    """Answers every connection with a head and what a program makes of some files, which writes into the socket itself."""

    def __init__(self, program, files):
        self.program, self.files, self.socket = program, files, socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.bytes = sum(file.stat().st_size for file in files)
        # Processor time of the programs so far.
        self.processor = 0.0
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {self.bytes}\r\n\r\n".encode())
                self.processor += machine.waited(subprocess.Popen([self.program, *self.files], stdout=connection))

    def seconds(self):
        return self.processor

    def case(self, name, client):
        return Case(name, lambda: client.run(self.url, "/"), self.seconds)

    def close(self):
        self.socket.close()


def measure(bench):
    store = bench.mongo.url("packs")
    from_mongo = Headstart(bench, "cold-mongo", bench.database, store)
    from_mongo.command("dump", "--org", bench.org)
    from_folder = bench.headstart("cold-folder")
    whole, few = Fresh(bench, from_mongo, bench.token), CountedFresh(bench, from_mongo, bench.token_of_few)
    folder = Fresh(bench, from_folder, bench.token)
    packs = sorted((bench.work / "store").rglob("packs/*"))
    one_byte = bench.work / "one-byte"
    one_byte.write_text("\n")
    served = [FileServer("cat", packs), FileServer("cat", [one_byte]), FileServer(built(bench.work, "keep"), packs)]
    cat, begin, keep = served
    loop = driver_loop(bench.mongo, "packs")
    # Once for nothing: what the first connection and the first read cost.
    loop()
    mongo, postgres = {"MongoDB": bench.mongo.seconds}, {"PostgreSQL": bench.database.seconds}
    cases = [
        whole.case("Headstart, from MongoDB", **mongo, **postgres),
        Case("driver loop over the packs", loop, behind=mongo),
        few.case("Headstart, from MongoDB, 3 of 60 teams", **mongo, **postgres),
        folder.case("Headstart, from the folder", **postgres),
        cat.case("`cat` of the packs to a socket", bench.client),
        begin.case("`cat` of one byte to a socket", bench.client),
        keep.case("a program that keeps and sums what it reads", bench.client),
    ]
    measured = take_turns(bench.rounds, cases)
    for server in served:
        server.close()
    bench.mongo.client.drop_database("packs")

    ours, its, part, ours_folder, its_cat, its_begin, its_keep = (measured[case.name] for case in cases)
    loaded = [run.gave.loaded / run.gave.all_bytes for run in part]
    # Bytes per second: each of its own bytes, which are the same packs.
    goals = [
        Goal("cold pack cache, from MongoDB, whole org, bytes per second", "bare driver loop", "≥", 0.9, ratios(ours, its, pace)),
        Goal("cold, a user in 3 of 60 teams: bytes loaded from the store", "bytes sent", "≤", 2, loaded),
        Goal("cold, from the folder store, bytes per second", "`cat` of the packs to a socket", "≥", 0.8, ratios(ours_folder, its_cat, pace)),
    ]
    text = f"""### A snapshot that is stored, and not in memory

A fresh process for each answer of one client, asked once for the head of it: it has connected, prepared its statements and read the
manifest (once in the life of a snapshot), and no pack. The driver loop is pymongo's `find_raw_batches`, in Python, to nowhere;
the driver and the network are most of it, and what it takes of a processor stands under "client". A user in 3 of 60
teams is sent {middle(part, lambda run: run.gave.all_bytes) / 1e6:.2f} MB, for which MongoDB sends {middle(part, lambda run: run.gave.loaded) / 1e6:.2f} MB (`network.bytesOut`). What the operating system has cached stays cached.

`cat` has one buffer; its processor time stands under "server". Its time includes that Python starts it, once the client has asked:
a file of one byte takes {middle(its_begin, lambda run: run.took()) * 1000:.1f} ms. A plain program that keeps what it reads, and sums it before it is sent (`benches/keep.rs`: one thread
reads, another writes; started in the same way), has {spread(ratios(its_keep, its_cat, pace))} of the pace of `cat`; the service against the program: {spread(ratios(ours_folder, its_keep, pace))}.

{work_table(measured, lambda name, runs: middle(runs, size) / 1e6)}"""
    return Section(goals, text)


def size(run):
    return run.gave.bytes


def pace(run):
    return size(run) / run.took()
