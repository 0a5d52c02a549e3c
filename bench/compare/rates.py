"""How fast what is cached is served: manifests, HEAD, tags, blobs of every size."""

import dataclasses
import sys
from dataclasses import dataclass
from statistics import median

from bench import alone, in_turn, settle
from harness.clients import BY_NAME
from harness.origin import Body
from harness.page import divided, middle, paired, pick, spread, table, unique
from harness.run import CLIENT_CORE

BLOBS = {"4KiB": 4 << 10, "64KiB": 64 << 10, "1MiB": 1 << 20, "64MiB": 64 << 20, "1GiB": 1 << 30}
ROWS = ["manifest", "head", "tag", *BLOBS]
# Above this the client's core decides how fast, and CPU per request says what the server could.
CLIENT_BUSY = 0.90
# From this size on bytes are counted, below it requests.
LARGE = 1 << 20
# From this size on a measurement takes twice as long: bodies are to come to their end.
LONG = 64 << 20
# Bring the manifest to about 2 KB.
LAYERS = 10
TAG = "1.27"


@dataclass(frozen=True)
class Row:
    name: str
    body: Body
    # wrk knows no HEAD; of bodies it would measure its own copying.
    client: str = "entrepot-load"
    head: bool = False


def rows(bench):
    manifest = bench.origin.put_manifest("app", TAG, LAYERS)
    tagged = dataclasses.replace(manifest, name="tag", tag=TAG)
    made = {
        "manifest": lambda: Row("manifest", manifest, "wrk"),
        "head": lambda: Row("head", manifest, head=True),
        "tag": lambda: Row("tag", tagged, "wrk"),
    }
    blob = lambda name: Row(name, bench.origin.put_blob(name, BLOBS[name]))
    return [made[name]() if name in made else blob(name) for name in bench.arguments.rows]


def run(bench):
    asked = rows(bench)
    bodies = unique(row.body for row in asked)
    with bench.serving(bench.chosen(), bodies) as servers:
        settle(servers, bodies)
        yield from measure(bench, servers, asked)
        for server in servers:
            with alone(server):
                bench.counters[server.name] = server.counters()


def measure(bench, servers, asked):
    arguments = bench.arguments
    works = [
        (row, connections, client)
        for row in asked
        for connections in arguments.connections
        for client in arguments.clients or [row.client]
        if not (row.head and client == "wrk")
    ]
    for turn in range(arguments.rounds):
        for row, connections, client in works:
            for server in in_turn(servers, turn):
                with alone(server):
                    result = measure_one(bench, server, row, connections, client)
                record = {
                    "scenario": "rates",
                    "round": turn,
                    "row": row.name,
                    "connections": connections,
                    "client": client,
                    "server": server.name,
                    **result,
                }
                print(line(record), file=sys.stderr)
                yield record


def measure_one(bench, server, row, connections, client, seconds=None):
    run = BY_NAME[client](bench.programs, CLIENT_CORE)
    how = {"head": True} if row.head else {}
    seconds = seconds or bench.arguments.seconds * (2 if row.body.size >= LONG else 1)
    cpu = server.cpu_seconds()
    result = run.measure(server, row.body, connections, seconds, **how)
    result["server_cpu_s"] = server.cpu_seconds() - cpu
    result["server_rss_mib"] = server.rss_mib()
    return result


def line(record):
    return (
        f"round {record['round']:2} {record['server']:15} {record['row']:>8} "
        f"c={record['connections']:<3} {record['client']:13} {record['gb_per_s']:7.3f} GB/s "
        f"{record['requests_per_s']:9.0f} req/s client {record['client_cpu_share']:4.0%} "
        f"errors {record['errors']}"
    )


def is_large(row):
    return BLOBS.get(row, 0) >= LARGE


def speed(record):
    return record["gb_per_s"] if is_large(record["row"]) else record["requests_per_s"]


def cost(record):
    """CPU seconds of the server for a GB, or for 1,000 requests; `None` if nothing came."""
    large = is_large(record["row"])
    return divided(record["server_cpu_s"], record["bytes"] / 1e9 if large else per_1000(record))


def per_1000(record):
    return record["requests"] / 1e3


def works(records):
    return unique((r["row"], r["connections"], r["client"]) for r in records)


def of_work(records, work, server):
    row, connections, client = work
    return pick(records, row=row, connections=connections, client=client, server=server)


def is_client_busy(runs):
    return bool(runs) and median(run["client_cpu_share"] for run in runs) > CLIENT_BUSY


def faster(one, other):
    return divided(speed(one), speed(other))


def cheaper(one, other):
    return divided(cost(one), cost(other))


def section(records):
    servers = unique(record["server"] for record in records)
    parts = [
        "## What is cached\n",
        measured(records, servers),
        "Medians over the rounds, in brackets the lowest and highest. CPU is the server's, from "
        "the scheduler; `-`: nothing came to its end. `!`: the client's core was busy for more "
        f"than {CLIENT_BUSY:.0%} of the time, so that CPU per request says more than the rate.\n",
    ]
    if "nginx" in servers and len(servers) > 1:
        parts.append(ratios(records, [name for name in servers if name != "nginx"]))
        parts.append("Over nginx serving files in the same round: the rates, and the CPU.\n")
    return "\n".join(parts)


def measured(records, servers):
    header = ["row", "c", "client", "server", "req/s", "GB/s", "p50 ms", "p99 ms"]
    header += ["CPU s/GB", "CPU s/1,000 req", "RSS MiB", "client busy", "errors"]
    lines = []
    for work in works(records):
        for server in servers:
            runs = of_work(records, work, server)
            mark = " !" if is_client_busy(runs) else ""
            of = lambda value: [value(run) for run in runs]
            latency = lambda at: of(lambda run: run["latency_ms"].get(at) if run["requests"] else None)
            per_gb = lambda run: divided(run["server_cpu_s"], run["bytes"] / 1e9)
            lines.append([
                *work,
                server,
                spread(of(lambda run: run["requests_per_s"]), "{:.0f}"),
                spread(of(lambda run: run["gb_per_s"]), "{:.3g}"),
                middle(latency("p50"), "{:.3f}"),
                middle(latency("p99"), "{:.3f}"),
                middle(of(per_gb), "{:.3f}"),
                middle(of(lambda run: divided(run["server_cpu_s"], per_1000(run))), "{:.4f}"),
                middle(of(lambda run: run["server_rss_mib"]), "{:.0f}"),
                middle(of(lambda run: run["client_cpu_share"]), "{:.0%}") + mark,
                sum(run["errors"] for run in runs),
            ])
    return table(header, lines)


def ratios(records, others):
    lines = []
    for work in works(records):
        base = of_work(records, work, "nginx")
        cells = []
        for name in others:
            runs = of_work(records, work, name)
            mark = " !" if is_client_busy(runs) else ""
            cells.append(spread(paired(runs, base, faster), "{:.2f}") + mark)
            cells.append(spread(paired(runs, base, cheaper), "{:.2f}"))
        lines.append([*work, *cells])
    names = [title for name in others for title in (f"{name}, rate", f"{name}, CPU")]
    return table(["row", "c", "client", *names], lines)
