"""How long a small answer takes while as much as the server can send goes to others."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from bench import alone, in_turn, settle
from harness.page import middle, pick, spread, table, unique

SMALL = 4 << 10
LARGE = 64 << 20
CONNECTIONS = [16, 256]
# Small answers asked for in a second, each due at its time whatever the others do; on so many
# connections that none waits for one.
RATE = 200
SMALL_CONNECTIONS = 256
# Until those who pull large bodies are under way, and how long they go on after the last question.
LEAD_S, TAIL_S = 0.5, 2.0


def run(bench):
    arguments = bench.arguments
    small = bench.origin.put_blob("4KiB", SMALL)
    large = bench.origin.put_blob("64MiB", LARGE)
    with bench.serving(bench.chosen(), [small, large]) as servers:
        settle(servers, [small, large])
        for turn in range(arguments.rounds):
            for connections in CONNECTIONS:
                for server in in_turn(servers, turn):
                    record = {"scenario": "beside", "round": turn, "connections": connections}
                    with alone(server):
                        measured = measure(bench, server, small, large, connections)
                    record |= {"server": server.name, **measured}
                    print(line(record), file=sys.stderr)
                    yield record


def measure(bench, server, small, large, connections):
    seconds = bench.arguments.seconds
    with ThreadPoolExecutor() as pullers:
        whole = LEAD_S + seconds + TAIL_S
        puller = pullers.submit(bench.load.measure, server, large, connections, whole)
        time.sleep(LEAD_S)
        how = ["-d", str(seconds), "--rate", str(RATE)]
        asked = bench.load.run(server.url(small), small, SMALL_CONNECTIONS, how)
        pulled = puller.result()
    return {
        "command": asked["command"],
        "answered": asked["requests"],
        "small_ms": asked["latency_ms"],
        "large_gb_per_s": pulled["gb_per_s"],
        "errors": asked["errors"] + pulled["errors"],
    }


def line(record):
    small = record["small_ms"]
    return (
        f"round {record['round']:2} {record['server']:15} small beside c={record['connections']:<3} "
        f"p50 {small['p50']:9.3f} ms p99 {small['p99']:9.3f} ms, "
        f"large {record['large_gb_per_s']:.2f} GB/s"
    )


def section(records):
    rows = []
    for connections in unique(record["connections"] for record in records):
        for server in unique(record["server"] for record in records):
            mine = pick(records, connections=connections, server=server)
            answered = [run for run in mine if run["answered"]]
            small = lambda which: [run["small_ms"][which] for run in answered]
            rows.append([
                connections,
                server,
                spread(small("p50"), "{:.2f}"),
                spread(small("p99"), "{:.2f}"),
                middle([run["large_gb_per_s"] for run in mine], "{:.2f}"),
                sum(run["errors"] for run in mine),
            ])
    header = ["large", "server", "p50 ms", "p99 ms", "large GB/s", "errors"]
    return (
        "## Small answers beside large ones\n\n"
        f"{table(header, rows)}\n"
        f"A body of 4 KiB asked for {RATE} times a second while as many clients as `large` says pull "
        "bodies of 64 MiB as fast as they get them; times from when each was due. All clients share "
        "a core.\n"
    )
