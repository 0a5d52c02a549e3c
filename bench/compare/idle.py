"""What connections cost that ask for nothing."""

import sys
import time

from bench import SERVERS, in_turn
from harness.connection import Connection
from harness.page import pick, spread, table, unique

NAMES = ["nginx", "entrepot"]
# Memory hardly differs between rounds.
ROUNDS_MAX = 3
SETTLE_SECONDS = 3
# Open before and closed again: what is allocated once is no cost of a connection.
WARM = 200


def run(bench):
    arguments = bench.arguments
    servers = [SERVERS[name] for name in NAMES if name in arguments.servers]
    body = bench.origin.put_blob("4KiB", 4 << 10)
    for turn in range(min(ROUNDS_MAX, arguments.rounds)):
        for make in in_turn(servers, turn):
            with bench.serving([make], [body]) as (server,):
                server.settle([body])
                close_all(open_all(server, body, WARM))
                record = {"scenario": "idle", "round": turn, "server": server.name}
                record |= measure(server, body, arguments)
                print(line(record), file=sys.stderr)
                yield record


def measure(server, body, arguments):
    time.sleep(SETTLE_SECONDS)
    before = server.rss_mib()
    connections = open_all(server, body, arguments.idle_connections)
    time.sleep(SETTLE_SECONDS)
    after, cpu, since = server.rss_mib(), server.cpu_seconds(), time.monotonic()
    time.sleep(arguments.idle_seconds)
    share = (server.cpu_seconds() - cpu) / (time.monotonic() - since)
    close_all(connections)
    return {
        "connections": len(connections),
        "rss_before_mib": before,
        "rss_after_mib": after,
        "kib_per_connection": (after - before) * 1024 / len(connections),
        "cpu_share": share,
    }


def open_all(server, body, count):
    """Each has asked once."""
    connections = []
    for _ in range(count):
        connection = Connection(f"http://127.0.0.1:{server.port}")
        connection.get(body.path)
        connections.append(connection)
    return connections


def close_all(connections):
    for connection in connections:
        connection.close()


def line(record):
    return (
        f"round {record['round']:2} {record['server']:15} {record['connections']} idle: "
        f"{record['kib_per_connection']:.2f} KiB each, {record['cpu_share']:.3%} of a core"
    )


def section(records):
    lines = []
    for server in unique(record["server"] for record in records):
        runs = pick(records, server=server)
        of = lambda name, form: spread([run[name] for run in runs], form)
        lines.append([server, runs[0]["connections"], of("kib_per_connection", "{:.2f}")])
        lines[-1] += [of("cpu_share", "{:.3%}"), of("rss_after_mib", "{:.1f}"), len(runs)]
    header = ["server", "connections", "KiB of RSS each", "of a core", "RSS MiB", "rounds"]
    return (
        "## Idle connections\n\n"
        f"{table(header, lines)}\n"
        "Kept alive after one request each. The kernel's memory for sockets is in no RSS.\n"
    )
