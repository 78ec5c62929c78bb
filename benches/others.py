"""Batches and deltas, which are measured by programs of their own.

Each writes its tables, and beside them (.json) its rows for the table of goals: a list of `Goal`s as objects.
"""

import json
import re
import subprocess
import sys

from results import Goal, Section
from servers import ROOT, node


def measured(bench, name, program, arguments):
    """Runs it; its section becomes one of this bench's."""
    out = bench.work / f"{name}.md"
    service = bench.service()
    common = ["--pg-bin", bench.database.bin, "--pg-port", bench.database.port, "--postmaster", bench.database.postmaster]
    common += ["--org", bench.org, "--token", bench.token, "--rounds", bench.rounds, "--out", out]
    command = [sys.executable, ROOT / "benches" / program, *arguments(service), *common]
    if subprocess.run([str(word) for word in command]).returncode:
        sys.exit(f"benches/{program} failed")
    rows = out.with_suffix(".json")
    goals = [Goal(**row) for row in json.loads(rows.read_text())] if rows.exists() else []
    return Section(goals, re.sub(r"^#", "##", out.read_text(), flags=re.M))


def measure_batch(bench):
    environment = {"DATABASE_URL": f"postgres://postgres@127.0.0.1:{bench.database.port}/headstart"}
    bench.database.ask("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    with node(bench, "batch", "node-request", {**environment, "LOADER": "request"}) as request:
        with node(bench, "batch", "node-shared", {**environment, "LOADER": "shared"}) as shared:

            def arguments(service):
                servers = ["--headstart", service.url, service.pid, "--node-request", request.url, request.pid]
                servers += ["--node-shared", shared.url, shared.pid]
                return [*servers, "--token-of-few", bench.token_of_few, "--work", bench.work, "--seconds", round(bench.seconds)]

            return measured(bench, "batch", "batch/measure.py", arguments)


def measure_delta(bench):
    return measured(bench, "delta", "delta.py", lambda service: ["--url", service.url, "--pid", service.pid, "--seconds", round(bench.seconds)])
