"""Batches side by side: Headstart, a Node server written by hand (server.mjs), and pgbench with the loader's own statement.

64 connections ask for 20 keys each. In a third of the rounds the keys of each request are drawn from 1,000 (comments by their
issue), in another all requests ask for the same 20, and in the last each asks for keys that none before it did, until all
issues have had their turn and it begins again. Those who speak HTTP get the same requests from the same client (wrk,
load.lua), and must have given the same rows before anything is measured. Everyone has a turn in each round; figures are
medians of the rounds, ratios medians of each round's ratio. Writes a section of loadtests/RESULTS.md, and beside it (.json)
its rows for the table of goals.

Started by benches/others.py, which starts the servers.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import machine
from results import counted
from turns import rotated

CONNECTIONS = 64
KEYS = 20
HOT = 1000
BODIES = 2000
# Processes of pgbench, which share the connections. Each has keys of its own: pgbench can't draw any but numbers.
PROCESSES = 16
HERE = Path(__file__).resolve().parent


class Database:
    def __init__(self, given):
        self.bin, self.port, self.postmaster = given.pg_bin, given.pg_port, given.postmaster

    def ask(self, sql, database="headstart"):
        command = [f"{self.bin}/psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", self.port, "-U", "postgres"]
        return subprocess.run([*command, database, "-c", sql], check=True, capture_output=True, text=True).stdout.strip()

    def statements(self):
        """Statements that the database has answered. Asked in another database, which is not counted."""
        sql = """SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements
                 WHERE dbid = (SELECT oid FROM pg_database WHERE datname = 'headstart')"""
        return int(self.ask(sql, "postgres"))


class Keys:
    """The issues of the first organization and how many comments of each are there to be seen. Some are hot."""

    def __init__(self, database, org):
        sql = f"""SELECT i.id, count(c.id) FROM issue i LEFT JOIN comment c ON c.issue_id = i.id AND c.deleted_at IS NULL
                  WHERE i.organization_id = '{org}' AND i.archived_at IS NULL GROUP BY i.id ORDER BY i.id"""
        self.rows = {issue: int(rows) for issue, rows in (line.split("|") for line in database.ask(sql).splitlines())}
        if len(self.rows) < HOT:
            sys.exit(f"the workspace has {len(self.rows)} issues, fewer than {HOT}: take a larger one")
        drawn, issues = random.Random(1), list(self.rows)
        self.sets = [drawn.sample(issues[:HOT], KEYS) for _ in range(BODIES)]
        drawn.shuffle(issues)
        self.each_once = [issues[first : first + KEYS] for first in range(0, len(issues) - KEYS + 1, KEYS)]

    def rows_of(self, issues):
        return sum(self.rows[issue] for issue in issues)


def body_of(issues):
    asks = [{"modelName": "Comment", "indexedKey": "issueId", "keyValue": issue} for issue in issues]
    return json.dumps({"requests": asks}, separators=(",", ":"))


class OverHttp:
    """One of those who speak HTTP, asked by wrk."""

    def __init__(self, name, url, pid, token):
        self.name, self.url, self.pid, self.token = name, url, pid, token

    def server_seconds(self):
        return machine.process_seconds(self.pid)

    def begin(self, bodies, seconds):
        environment = {**os.environ, "BODIES": str(bodies.file), "TOKEN": self.token}
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s", "-s", str(HERE / "load.lua"), self.url]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def run(self, bodies, seconds):
        process = self.begin(bodies, seconds)
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        measured = json.loads(printed.strip().splitlines()[-1])
        if process.returncode or measured["failed"] or not measured["answers"]:
            sys.exit(f"{self.name}: wrk says {printed}")
        per_second = measured["answers"] / measured["seconds"]
        return {
            "answers": measured["answers"],
            "per_second": per_second,
            "rows_per_second": per_second * bodies.rows,
            "p50_ms": measured["p50_ms"],
            "p99_ms": measured["p99_ms"],
            "bytes": measured["bytes"] / measured["answers"],
            "client_seconds": used.ru_utime + used.ru_stime,
        }

    def rows(self, body, token):
        """What it answers, without the last line and without nulls, in an order of its own."""
        request = urllib.request.Request(f"{self.url}/sync/batch", body.encode(), method="POST")
        request.add_header("Content-Type", "application/json")
        request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            lines = [json.loads(line) for line in answer.read().splitlines()]
        if lines.pop()["__class"] != "_metadata_":
            sys.exit(f"{self.name}: an answer without its last line")
        kept = ({name: value for name, value in line.items() if value is not None} for line in lines)
        return sorted(json.dumps(line, sort_keys=True) for line in kept)


class Pgbench:
    """The loader's own statement, prepared, on as many connections."""

    name = "pgbench, the loader's statement"

    def __init__(self, database, keys, org, statement, work):
        self.database, self.keys, self.org, self.work = database, keys, org, work
        self.script = work / "lookup.sql"
        self.script.write_text(re.sub(r"\s+", " ", statement).replace("$1", ":org").replace("$2", ":keys") + ";\n")

    def server_seconds(self):
        return 0.0

    def run(self, bodies, seconds):
        for log in self.work.glob("pgbench.*"):
            log.unlink()
        command = [f"{self.database.bin}/pgbench", "-n", "-M", "prepared", "-T", str(seconds), "-l", "-f", str(self.script)]
        command += ["-c", str(CONNECTIONS // PROCESSES), "-h", "127.0.0.1", "-p", self.database.port, "-U", "postgres", "-D", f"org={self.org}"]
        processes, sets = [], bodies.sets[:PROCESSES]
        for place, issues in enumerate(sets):
            own = ["-D", f"keys={{{','.join(issues)}}}", "--log-prefix", str(self.work / f"pgbench.{place}"), "headstart"]
            processes.append(subprocess.Popen([*command, *own], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        client_seconds = 0.0
        for process in processes:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                sys.exit(f"pgbench ended with {process.returncode}")
            client_seconds += used.ru_utime + used.ru_stime
        ran = [self._read(place) for place in range(len(sets))]
        # Only while all of them ran.
        begin, end = max(min(times)[0] for times in ran), min(max(times)[0] for times in ran)
        inside = [[took for at, took in times if begin <= at <= end] for times in ran]
        waits = statistics.quantiles([took for times in inside for took in times], n=100)
        rows = sum(len(times) * self.keys.rows_of(issues) for times, issues in zip(inside, sets))
        return {
            "answers": sum(len(times) for times in ran),
            "per_second": sum(len(times) for times in inside) / (end - begin),
            "rows_per_second": rows / (end - begin),
            "p50_ms": waits[49] * 1000,
            "p99_ms": waits[98] * 1000,
            "bytes": None,
            "client_seconds": client_seconds,
        }

    def _read(self, place):
        """Seconds: when each statement ended, and how long it took (PostgreSQL docs, pgbench, per-transaction logging)."""
        log = next(self.work.glob(f"pgbench.{place}.*"))
        lines = (line.split() for line in log.read_text().splitlines())
        return [(int(line[4]) + int(line[5]) / 1e6, int(line[2]) / 1e6) for line in lines]


class Bodies:
    """The requests of a round: a batch for each set of keys."""

    def __init__(self, name, file, sets, keys):
        self.name, self.file, self.sets = name, file, sets
        self.rows = statistics.mean(keys.rows_of(issues) for issues in sets)
        file.write_text("".join(f"{body_of(issues)}\n" for issues in sets))


def loader_statement(database, headstart, bodies):
    """The text of the statement that the loader prepares, as the server shows it while the service works."""
    sql = """SELECT query FROM pg_stat_activity WHERE application_name = 'headstart' AND query LIKE '%ANY (%' AND query LIKE '%comment%'
             AND query LIKE '%$2%' AND query NOT LIKE '%unnest%' LIMIT 1"""
    process = headstart.begin(bodies, 2)
    found = ""
    while not found and process.poll() is None:
        found = database.ask(sql)
    process.communicate()
    return found or sys.exit("the loader's statement was not seen")


def compare(servers, keys, tokens):
    """Everyone gives the same rows for the same request, to a user of all teams and to one of few."""
    seen = []
    for token in tokens:
        count = 0
        for issues in keys.sets[:50]:
            answers = [server.rows(body_of(issues), token) for server in servers]
            count += len(answers[0])
            for server, answer in zip(servers, answers):
                if answer != answers[0]:
                    different = sorted(set(answer) ^ set(answers[0]))
                    sys.exit(f"{server.name} and {servers[0].name} differ: {different[:2]}")
        seen.append(count)
    if seen[0] != sum(keys.rows_of(issues) for issues in keys.sets[:50]) or not 0 < seen[1] < seen[0]:
        sys.exit(f"the rows are not those of the database: {seen}")
    return seen


def measure(who, bodies, seconds, database):
    before = database.statements(), who.server_seconds(), machine.cluster_seconds(database.postmaster), machine.busy_seconds()
    began = time.monotonic()
    run = who.run(bodies, seconds)
    took = time.monotonic() - began
    # Sessions that end give their times to the postmaster when they are gone.
    time.sleep(0.2)
    server = who.server_seconds() - before[1]
    cluster = machine.cluster_seconds(database.postmaster) - before[2]
    others = machine.busy_seconds() - before[3] - server - cluster - run["client_seconds"]
    run["statements"] = (database.statements() - before[0]) / run["answers"]
    run["server_ms"] = server * 1000 / run["answers"]
    run["cluster_ms"] = cluster * 1000 / run["answers"]
    run["client_ms"] = run["client_seconds"] * 1000 / run["answers"]
    run["client_share"] = run["client_seconds"] / took
    run["others_share"] = others / (took + 0.2)
    return run


def row_of(who, runs, reference):
    def middle(figure):
        return statistics.median(run[figure] for run in runs)

    rates = [run["per_second"] for run in runs]
    ratio = statistics.median(run["per_second"] / other["per_second"] for run, other in zip(runs, reference))
    is_http = isinstance(who, OverHttp)
    cells = [
        who.name,
        f"**{middle('per_second'):,.0f}** ({min(rates):,.0f} to {max(rates):,.0f})",
        f"**{ratio:.2f}**",
        f"{middle('rows_per_second'):,.0f}",
        f"{middle('p50_ms'):.1f}",
        f"{middle('p99_ms'):.1f}",
        f"{middle('statements'):.3f}",
        f"{middle('per_second') * middle('statements'):,.0f}",
        f"{middle('server_ms'):.3f}" if is_http else "–",
        f"{middle('cluster_ms'):.3f}",
        f"{middle('client_ms'):.3f}",
        f"{middle('client_share'):.0%}",
        f"{middle('others_share'):.0%}",
    ]
    return "| " + " | ".join(cells) + " |"


def main():
    given = argparse.ArgumentParser()
    for name in ["headstart", "node-request", "node-shared"]:
        given.add_argument(f"--{name}", nargs=2, metavar=("URL", "PID"), required=True)
    for name in ["pg-bin", "pg-port", "org", "token", "token-of-few", "work", "out"]:
        given.add_argument(f"--{name}", required=True)
    given.add_argument("--postmaster", type=int, required=True)
    given.add_argument("--rounds", type=int, default=5)
    given.add_argument("--seconds", type=int, default=4)
    given = given.parse_args()

    work = Path(given.work)
    database = Database(given)
    keys = Keys(database, given.org)
    names = ["Headstart", "Node, a dataloader for each request", "Node, one dataloader for all"]
    addresses = [given.headstart, given.node_request, given.node_shared]
    servers = [OverHttp(name, url, int(pid), given.token) for name, (url, pid) in zip(names, addresses)]
    seen = compare(servers, keys, [given.token, given.token_of_few])
    print(f"the same rows from all: {seen[0]} to a user of all teams, {seen[1]} to one of few", file=sys.stderr)

    hot = Bodies("hot", work / "hot.jsonl", keys.sets, keys)
    same = Bodies("same", work / "same.jsonl", keys.sets[:1] * CONNECTIONS, keys)
    fresh = Bodies("fresh", work / "fresh.jsonl", keys.each_once, keys)
    all_bodies = [hot, same, fresh]
    statement = loader_statement(database, servers[0], hot)
    contenders = [*servers, Pgbench(database, keys, given.org, statement, work)]
    for server in servers[1:]:
        server.run(hot, given.seconds)

    measured = {(bodies.name, who.name): [] for bodies in all_bodies for who in contenders}
    for turn in range(given.rounds):
        for bodies in all_bodies:
            for who in rotated(contenders, turn):
                run = measure(who, bodies, given.seconds, database)
                measured[bodies.name, who.name].append(run)
                print(f"round {turn + 1}, {bodies.name}: {who.name}: {run['per_second']:,.0f}/s, others used {run['others_share']:.0%}", file=sys.stderr)

    Path(given.out).write_text(section(contenders, measured, hot, same, fresh, seen, given))
    Path(given.out).with_suffix(".json").write_text(json.dumps(goals(measured, servers[0].name, len(fresh.sets) * KEYS)))


def goals(measured, name, all_keys):
    """Rows for the table of goals, as `Goal` of benches/results.py takes them."""

    def of_pgbench(bodies):
        return [run["per_second"] / other["per_second"] for run, other in zip(measured[bodies, name], measured[bodies, Pgbench.name])]

    what = f"batches of {KEYS} of {HOT:,} hot keys, {CONNECTIONS} connections, requests per second"
    return [
        {"what": what, "against": "pgbench, the loader's statement", "sense": "≥", "bound": 1, "rounds": of_pgbench("hot")},
        {"what": f"batches of {KEYS} of {HOT:,} hot keys, {CONNECTIONS} connections, SQL statements, membership lookups included", "against": "", "unit": "a request", "sense": "≤", "bound": 0.1, "rounds": [run["statements"] for run in measured["hot", name]]},
        {"what": f"batches of {KEYS} keys, all {all_keys:,} in turn, {CONNECTIONS} connections, requests per second", "against": "pgbench, the loader's statement", "sense": "≥", "bound": 0.6, "rounds": of_pgbench("fresh")},
    ]


HEAD = (
    "| who | requests/s (least to most) | of pgbench | rows/s | p50 ms | p99 ms | statements a request | statements/s "
    "| server: CPU ms a request | PostgreSQL: the same | client: the same | client, of a core | others, of a core |\n"
    "| --- |" + " --: |" * 12 + "\n"
)


def section(contenders, measured, hot, same, fresh, seen, given):
    size = measured["hot", contenders[0].name][0]["bytes"] / 1000
    text = f"""## Batches

{CONNECTIONS} connections, {KEYS} keys a request, comments by issue, without compression; {hot.rows:.0f} rows and {size:.1f} kB an
answer. {counted(given.rounds, "round")} of {given.seconds} s each, in which everyone has a turn; figures are medians, a ratio is the median of
each round's. Before, all who speak HTTP gave the same rows for the same 50 requests, to a user of all teams ({seen[0]} rows) and
to one of few ({seen[1]}). Their client is wrk with one thread; pgbench runs in {PROCESSES} processes, each of which asks for the same {KEYS} keys
again and again: {PROCESSES * KEYS} in all, however many the others ask for, and {KEYS} where those do. Headstart may give rows that it has read to
others, too, for 50 ms (`loader.share_ms`, as it is by default); the one dataloader for all waits 5 ms for company. Statements are all
that PostgreSQL counted, memberships and watermarks among them; the servers written by hand look at no watermark. "Others" is what
processes outside of the bench used of the machine meanwhile.
"""
    often = {who.name: times_round(measured[fresh.name, who.name], fresh) for who in contenders if isinstance(who, OverHttp)}
    in_turn = f"""Each request asks for other keys, until all {len(fresh.sets):,} requests have had their turn and come again. So often they came in {given.seconds} s, at
the median: {"; ".join(f"{name}, {times:.1f}" for name, times in often.items())}. Of
Headstart each was asked every {given.seconds * 1000 / often[contenders[0].name]:,.0f} ms, then.

"""
    kinds = [
        (hot, f"{KEYS} of {HOT:,} keys", ""),
        (same, f"The same {KEYS} keys for all", ""),
        (fresh, f"{KEYS} keys, all {len(fresh.sets) * KEYS:,} in turn", in_turn),
    ]
    for bodies, title, before in kinds:
        reference = measured[bodies.name, Pgbench.name]
        rows = [row_of(who, measured[bodies.name, who.name], reference) for who in contenders]
        text += f"\n### {title}\n\n{before}{HEAD}" + "\n".join(rows) + "\n"
    return text


def times_round(runs, bodies):
    """How often all requests had their turn in a round."""
    return statistics.median(run["answers"] for run in runs) / len(bodies.sets)


if __name__ == "__main__":
    main()
