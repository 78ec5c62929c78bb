"""A snapshot that is there and in memory: against nginx with the same bytes, and a dump server written by hand."""

from results import Goal, Section, download_table
from servers import node
from turns import Case, middle, ratios, take_turns

CONNECTIONS = [1, 10, 50]


def measure(bench):
    service, files = bench.service(), bench.nginx()
    make = {"QUERIES": str(bench.queries), "ORG": bench.org, "DATABASE_URL": bench.database.url, "MONGODB_URL": bench.mongo.url("node")}
    bench.make_dump_by_hand(make)
    by_hand = node(bench, "node", "node-dump", make)

    def downloads(server, path, connections, token=None):
        return lambda: bench.client.run(server.url, path, connections=connections, seconds=bench.seconds, token=token)

    databases = {"PostgreSQL": bench.database.seconds}
    cases = []
    for count in CONNECTIONS:
        cases += [
            Case(f"Headstart, {count}", downloads(service, "/sync/bootstrap", count, bench.token), service.seconds, databases),
            Case(f"nginx, {count}", downloads(files, "/whole", count), files.seconds),
        ]
    cases += [
        Case("Node + Mongo dump, 10", downloads(by_hand, "/dump", 10, bench.token), by_hand.seconds, {"MongoDB": bench.mongo.seconds}),
        Case("Headstart, 3 of 60 teams, 10", downloads(service, "/sync/bootstrap", 10, bench.token_of_few), service.seconds, databases),
        Case("nginx, the same bytes, 10", downloads(files, "/few", 10), files.seconds),
    ]
    with by_hand:
        measured = take_turns(bench.rounds, cases)

    goals = []
    for count in CONNECTIONS:
        found = ratios(measured[f"Headstart, {count}"], measured[f"nginx, {count}"], lambda run: run.rate)
        clients = "1 client" if count == 1 else f"{count} clients"
        goals.append(Goal(f"hot snapshot, whole org, zstd, {clients}, bytes per second", "nginx, same bytes", "≥", 1.5, found))
    ours, its, dump, few = (measured[name] for name in ["Headstart, 10", "nginx, 10", "Node + Mongo dump, 10", "Headstart, 3 of 60 teams, 10"])
    each = ratios(ours, dump, lambda run: run.per_answer(run.server))
    goals.append(Goal("the same, 10 clients, CPU seconds of the server per bootstrap", "the Node + Mongo dump server", "≤", 0.25, each))
    first = ratios(ours, its, lambda run: run.gave.first_quantile(99))
    goals.append(Goal("hot snapshot, first byte, p99 at 10 clients", "nginx", "≤", 3, first))
    goals.append(Goal("a user in 3 of 60 teams, 10 clients: bytes per second", "the whole org's", "≥", 0.8, ratios(few, ours, lambda run: run.rate)))
    same = ratios(few, measured["nginx, the same bytes, 10"], lambda run: run.rate)

    raw = bench.whole_bytes / middle(ours, lambda run: run.gave.size)
    text = f"""### A snapshot that is there

{bench.rounds} rounds of {bench.seconds:g} s each; the figure behind a name is how many clients. Bytes are those on the wire: {bench.sent_bytes / 1e6:.1f} MB for the
whole org, which is {bench.whole_bytes / 1e6:.1f} MB of NDJSON, so 1 MB/s is {raw:.2f} MB/s of lines. The client is `benches/download.rs`, a thread a connection, which
reads into 256 KiB and throws away; where it and the server together fill the cores, the client is the limit of both. nginx has
one worker, sendfile on, no log. The dump server is one Node process (`benches/node/`); it sends {middle(dump, lambda run: run.gave.size) / 1e6:.1f} MB. A user in 3 of 60
teams gets {middle(few, lambda run: run.gave.size) / 1e6:.2f} MB; bytes per second against nginx with these bytes: {middle_of(same):.2f}.

{download_table(measured)}"""
    return Section(goals, text)


def middle_of(values):
    return sorted(values)[len(values) // 2]
