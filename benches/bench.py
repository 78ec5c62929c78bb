"""All of `make bench` but the two servers that run.sh starts: PostgreSQL and MongoDB.

Each part is a module that measures and gives a Section: rows for the table of goals, and its own tables.
"""

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import machine
import results
import servers
from catalog import Catalog, bench_catalog
from client import Client
from servers import ROOT, Headstart, Mongo, Postgres

# In the order of the table of goals; each is a module and its function.
PARTS = {
    "hot": "hot.measure",
    "cold": "cold.measure",
    "scan": "scan.measure",
    "gzip": "wire.measure_gzip",
    "batch": "others.measure_batch",
    "delta": "others.measure_delta",
    "memory": "memory.measure",
    "refresh": "refresh.measure",
    "wire": "wire.measure_wire",
    "growth": "growth.measure",
}
# Batches and deltas change rows, so they come last of those that use the workspace.
ORDER = ["wire", "hot", "cold", "scan", "gzip", "memory", "refresh", "batch", "delta", "growth"]

# The first organization of every workspace, a user of all its teams, one of three; as in deploy/dev/demo.sh.
ORG = "157f2db9-0deb-29ee-5125-6fbed10a9ceb"
EVERYWHERE = "75bf78a9-83b2-9911-5189-3d27abe5daa5"
SOMEWHERE = "dcf89d61-0581-444f-a5ea-243a2ab445a4"


class Bench:
    """What the parts share: the workspace, its snapshot in a folder, the client, and servers that several of them use."""

    def __init__(self, given):
        self.binary, self.scan_program = given.binary, given.scan_program
        self.rounds, self.seconds, self.scale, self.million = given.rounds, given.seconds, given.scale, given.million
        self.most_rows, self.most_orgs = given.most_rows, given.most_orgs
        self.work, self.org = given.work, ORG
        # Of a run that is not kept, it is not kept either.
        self.plot = (given.results.parent if given.results else ROOT / ".dev") / "growth.svg"
        self.database = Postgres(given.pg_bin, given.pg_port, given.postmaster)
        self.mongo = Mongo(given.mongo_port, given.mongo_pid)
        self.empty, self.spool, self.files = self.work / "headstart.toml", self.work / "spool", self.work / "files"
        self.empty.touch()
        self.spool.mkdir()
        self.files.mkdir()
        self.catalog_file = self.work / "catalog.toml"
        self.catalog_file.write_text(bench_catalog((ROOT / "config/catalog.toml").read_text()))
        self.secret = servers.new_secret()
        self.client = Client(self.work)
        self.running = {}
        self.is_dumped_by_hand = False

    def prepare(self):
        """The workspace, its snapshot, and the answers of two users as files."""
        self.database.ask("SELECT 1")
        self.seed(self.database, self.scale)
        self.catalog = Catalog(self.catalog_file, self.database)
        self.queries = self.work / "queries.json"
        self.queries.write_text(servers.as_json(self.catalog.selects(self.org)))
        headstart = self.headstart("prepare")
        headstart.command("dump", "--org", ORG)
        self.token, self.token_of_few = (headstart.command("token", "--org", ORG, "--user", user, "--ttl", "1d") for user in (EVERYWHERE, SOMEWHERE))
        service = self.service()
        for name, token in [("whole", self.token), ("few", self.token_of_few)]:
            self.client.run(service.url, "/sync/bootstrap", save=self.files / name, token=token)
        self.sent_bytes = (self.files / "whole").stat().st_size
        self.whole_bytes = self.client.run(service.url, "/sync/bootstrap", token=self.token, encoding="identity").all_bytes
        counted = subprocess.run(f"zstd -q -dc <{self.files}/whole | wc -l", shell=True, check=True, stdout=subprocess.PIPE, text=True)
        self.rows = int(counted.stdout) - 1

    def seed(self, database, scale):
        began = time.monotonic()
        headstart = Headstart(self, "seed", database, f"file://{self.work}/none")
        headstart.command("seed", "--scale", scale)
        headstart.command("migrate", "--apply")
        database.ask("VACUUM ANALYZE", "CHECKPOINT")
        print(f"the {scale} workspace was made in {time.monotonic() - began:.0f} s", file=sys.stderr)

    def headstart(self, name, **settings):
        """The program over the workspace, and over the folder in which its snapshot is."""
        return Headstart(self, name, self.database, f"file://{self.work}/store", **settings)

    def service(self):
        """The service with the stored snapshot, as several parts use it."""
        if "service" not in self.running:
            # Limits that let a delta of 10,000 actions and the snapshot before it both be asked for, however late in the run.
            limits = {"freshness_soft_pending": 40_000, "freshness_soft_age_s": 80_000, "delta_action_cost": 1}
            self.running["service"] = self.headstart("service", **limits).serve()
        return self.running["service"]

    def nginx(self, workers=1):
        name = f"nginx-{workers}"
        if name not in self.running:
            self.running[name] = servers.nginx(self, self.files, workers)
        return self.running[name]

    def lines(self):
        """The whole org as NDJSON, in a file."""
        file = self.work / "whole.ndjson"
        if not file.exists():
            subprocess.run(["zstd", "-q", "-d", self.files / "whole", "-o", file], check=True)
        return file

    def make_dump_by_hand(self, environment):
        if not self.is_dumped_by_hand:
            program = servers.packages("node") / "server.mjs"
            subprocess.run(["node", program, "make"], env={**os.environ, "SECRET": self.secret, **environment}, check=True)
            self.is_dumped_by_hand = True

    def stop(self):
        for server in self.running.values():
            server.stop()


def main():
    given = argparse.ArgumentParser()
    for name in ["binary", "pg-bin", "command", "busy", "scale"]:
        given.add_argument(f"--{name}", required=True)
    for name in ["pg-port", "postmaster", "mongo-port", "mongo-pid"]:
        given.add_argument(f"--{name}", type=int, required=True)
    given.add_argument("--work", type=Path, required=True)
    given.add_argument("--scan-program", default="")
    given.add_argument("--rounds", type=int, default=5)
    given.add_argument("--seconds", type=float, default=3)
    given.add_argument("--million", default="million")
    given.add_argument("--most-rows", type=int, default=1_000_000)
    given.add_argument("--most-orgs", type=int, default=10_000)
    given.add_argument("--results", type=Path)
    given.add_argument("parts", nargs="*")
    given = given.parse_args()
    unknown = set(given.parts) - set(PARTS)
    if unknown:
        sys.exit(f"no such part: {' '.join(sorted(unknown))}; there are {' '.join(PARTS)}")

    began = time.monotonic()
    # Before the bench itself changes the plot.
    commit = machine.commit()
    bench = Bench(given)
    found = {}
    try:
        bench.prepare()
        for name in (name for name in ORDER if name in (given.parts or PARTS)):
            print(f"measuring: {name} (after {time.monotonic() - began:.0f} s)", file=sys.stderr)
            module, function = PARTS[name].split(".")
            found[name] = getattr(importlib.import_module(module), function)(bench)
    finally:
        bench.stop()
    versions = [
        servers.version(given.binary, "--version"),
        servers.version(f"{given.pg_bin}/postgres", "--version"),
        f"MongoDB {bench.mongo.client.server_info()['version']}",
        "Node " + servers.version("node", "--version"),
        servers.version(servers.nginx_program(), "-v").replace("nginx version: ", ""),
        servers.version("zstd", "--version").strip("* ").split(", by")[0],
    ]
    data = f"the {bench.scale} workspace; its first org has {bench.rows:,} rows for a user of all teams, {bench.whole_bytes / 1e6:.0f} MB of NDJSON"
    facts = results.facts(commit, given.command, given.busy, versions, f"{data}; the whole run took {(time.monotonic() - began) / 60:.0f} minutes")
    text = results.whole([found[name] for name in PARTS if name in found], facts)
    print(text)
    if given.results:
        results.keep(given.results, text)


if __name__ == "__main__":
    main()
