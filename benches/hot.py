"""A snapshot that is there and in memory: against nginx with the same bytes, and a dump server written by hand."""

from results import Goal, Section, counted, download_table, spread
from servers import node
from turns import Case, middle, ratios, take_turns

CONNECTIONS = [1, 10, 50]


def measure(bench):
    service, files, two_workers = bench.service(), bench.nginx(), bench.nginx(workers=2)
    make = {"QUERIES": str(bench.queries), "ORG": bench.org, "DATABASE_URL": bench.database.url, "MONGODB_URL": bench.mongo.url("node")}
    bench.make_dump_by_hand(make)
    by_hand = node(bench, "node", "node-dump", make)

    def downloads(server, path, connections, token=None):
        return lambda: bench.client.run(server.url, path, connections=connections, seconds=bench.seconds, token=token)

    databases, dumps = {"PostgreSQL": bench.database.seconds}, {"MongoDB": bench.mongo.seconds}
    cases = []
    for count in CONNECTIONS:
        cases += [
            Case(f"Headstart, {count}", downloads(service, "/sync/bootstrap", count, bench.token), service.seconds, databases),
            Case(f"nginx, {count}", downloads(files, "/whole", count), files.seconds),
            Case(f"Node + Mongo dump, {count}", downloads(by_hand, "/dump", count, bench.token), by_hand.seconds, dumps),
        ]
    cases += [
        *(Case(f"nginx, two workers, {count}", downloads(two_workers, "/whole", count), two_workers.seconds) for count in CONNECTIONS[1:]),
        Case("Headstart, 3 of 60 teams, 10", downloads(service, "/sync/bootstrap", 10, bench.token_of_few), service.seconds, databases),
        Case("nginx, the same bytes, 10", downloads(files, "/few", 10), files.seconds),
    ]
    with by_hand:
        measured = take_turns(bench.rounds, cases)

    def against(name, figure):
        """Ratios for each count of clients that the other was measured with, too."""
        counts = (count for count in CONNECTIONS if f"{name}, {count}" in measured)
        return {count: ratios(measured[f"Headstart, {count}"], measured[f"{name}, {count}"], figure) for count in counts}

    goals = []
    for count, found in against("nginx", lambda run: run.rate).items():
        goals.append(Goal(f"hot snapshot, whole org, zstd, {counted(count, 'client')}, bytes per second", "nginx, same bytes", "≥", 1.5, found))
    for count, found in against("Node + Mongo dump", lambda run: run.per_answer(run.server)).items():
        what = f"hot snapshot, whole org, zstd, {counted(count, 'client')}, CPU seconds of the server per bootstrap"
        goals.append(Goal(what, "the Node + Mongo dump server", "≤", 0.25, found))
    ours, its, dump, few = (measured[name] for name in ["Headstart, 10", "nginx, 10", "Node + Mongo dump, 10", "Headstart, 3 of 60 teams, 10"])
    first = ratios(ours, its, lambda run: run.gave.first_quantile(99))
    goals.append(Goal("hot snapshot, first byte, p99 at 10 clients", "nginx", "≤", 3, first))
    goals.append(Goal("a user in 3 of 60 teams, 10 clients: bytes per second", "the whole org's", "≥", 0.8, ratios(few, ours, lambda run: run.rate)))
    same = ratios(few, measured["nginx, the same bytes, 10"], lambda run: run.rate)

    two = against("nginx, two workers", lambda run: run.rate)
    two = ", ".join(f"{spread(found)} with {counted(count, 'client')}" for count, found in two.items())
    raw = bench.whole_bytes / middle(ours, lambda run: run.gave.size)
    text = f"""### A snapshot that is there

{counted(bench.rounds, "round")} of {bench.seconds:g} s each; the figure behind a name is how many clients. Bytes are those on the wire: {bench.sent_bytes / 1e6:.1f} MB for the
whole org, which is {bench.whole_bytes / 1e6:.1f} MB of NDJSON, so 1 MB/s is {raw:.2f} MB/s of lines. The client is `benches/download.rs`, a thread a connection, which
reads into 256 KiB and throws away; where it and the server together fill the cores, they are the limit of each other. nginx has
sendfile on and no log, and one worker where nothing else is said, which has no more than one core: where that is full, the
worker is the limit, and a core may be idle. So it is measured with two workers, too; bytes per second of Headstart against
those: {two}. The dump server is one Node process (`benches/node/`);
it sends {middle(dump, lambda run: run.gave.size) / 1e6:.1f} MB. A user in 3 of 60 teams gets {middle(few, lambda run: run.gave.size) / 1e6:.2f} MB; bytes per second against nginx with
these bytes: {spread(same)}.

{download_table(measured)}"""
    return Section(goals, text)
