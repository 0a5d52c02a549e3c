"""What a hit costs when there are more shards: calls into the kernel, futexes among them, messages.

Counts, not rates: they say how a hit scales on a machine that has too few cores to show it.
"""

import functools
import re
import signal
import subprocess
import sys

from bench import alone, in_turn, settle
from harness.entrepot import Entrepot
from harness.page import divided, middle, pick, spread, table, unique
from harness.process import program
from harness.run import ALL_CORES
from pages import wait_until_traced

SIZES = {"4KiB": 4 << 10, "1MiB": 1 << 20}
# More than the shards, so that the kernel spreads them over all.
CONNECTIONS = 64
# Requests of one measurement; a thousand bodies of 1 MiB take a fifth of a second.
REQUESTS = {"4KiB": 20_000, "1MiB": 2_000}
COUNTED = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", re.M)


class Sharded(Entrepot):
    """Its threads may use both cores, so that they can meet at a lock."""

    def __init__(self, shards, programs, directory, cores):
        del cores
        super().__init__(programs, directory, ALL_CORES, f"entrepot-{shards}")
        self.shards = shards


def run(bench):
    bodies = {name: bench.origin.put_blob(name, size) for name, size in SIZES.items()}
    makes = [functools.partial(Sharded, shards) for shards in bench.arguments.shards]
    with bench.serving(makes) as servers:
        settle(servers, bodies.values())
        for turn in range(bench.arguments.rounds):
            for row, body in bodies.items():
                for server in in_turn(servers, turn):
                    record = {"scenario": "shards", "round": turn, "row": row, "shards": server.shards}
                    with alone(server):
                        record |= measure(bench, server, row, body)
                    print(line(record), file=sys.stderr)
                    yield record
        if program("strace"):
            for row, body in bodies.items():
                for server in servers:
                    with alone(server):
                        calls = traced(bench, server, row, body)
                    record = {"scenario": "shards-traced", "row": row, "shards": server.shards}
                    yield record | {"calls_per_request": calls}


def measure(bench, server, row, body):
    before, cpu = messages(server), server.cpu_seconds()
    asked = ask(bench, server, row, body)
    return {
        "command": asked["command"],
        "requests": asked["requests"],
        "errors": asked["errors"],
        "server_cpu_s": server.cpu_seconds() - cpu,
        "messages": messages(server) - before,
    }


def ask(bench, server, row, body):
    return bench.load.run(server.url(body), body, CONNECTIONS, ["-n", str(REQUESTS[row])])


def messages(server):
    found = server.metrics().items()
    return sum(value for name, value in found if name.startswith("entrepot_messages_total"))


def traced(bench, server, row, body):
    """Calls for each request, by name."""
    file = bench.directory / f"calls-{server.name}-{row}"
    command = ["strace", "-f", "-c", "-o", str(file), "-p", str(server.process.pid)]
    strace = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until_traced(server, strace)
    requests = ask(bench, server, row, body)["requests"]
    strace.send_signal(signal.SIGINT)
    strace.wait()
    counted = COUNTED.findall(file.read_text())
    return {name: int(count) / requests for count, name in counted if name != "total"}


def line(record):
    each = (divided(record["server_cpu_s"], record["requests"]) or 0) * 1e6
    return (
        f"round {record['round']:2} {record['shards']:3} shards {record['row']:>5} "
        f"{each:7.2f} µs CPU, {record['messages']:.0f} messages, errors {record['errors']}"
    )


def section(records):
    lines = []
    for row in unique(record["row"] for record in records):
        for shards in sorted(unique(record["shards"] for record in records)):
            runs = pick(records, scenario="shards", row=row, shards=shards)
            runs = [run for run in runs if run["requests"]]
            each = [run["server_cpu_s"] / run["requests"] * 1e6 for run in runs]
            sent = [run["messages"] / run["requests"] for run in runs]
            traces = pick(records, scenario="shards-traced", row=row, shards=shards)
            calls = dict(traces[0]["calls_per_request"]) if traces else {}
            futexes = calls.pop("futex", 0.0)
            lines.append([
                row,
                shards,
                spread(each, "{:.1f}"),
                middle(sent, "{:.4f}"),
                f"{futexes:.4f}" if traces else "-",
                ", ".join(f"{name} {count:.2f}" for name, count in frequent(calls)) or "-",
            ])
    header = ["row", "shards", "CPU µs/request", "messages/request", "futex/request", "calls/request"]
    return (
        "## A hit with more shards\n\n"
        f"{table(header, lines)}\n"
        f"{CONNECTIONS} connections spread over the shards by the kernel, which share both cores with "
        "the client. Calls by strace, in a pass of its own, of all threads, what runs by the clock "
        "included; below one in a hundred they are left out. A futex is a wait for a lock or the wake of a "
        "thread: with none of them no lock was contended.\n"
    )


def frequent(calls):
    return sorted(((name, count) for name, count in calls.items() if count >= 0.01), key=lambda c: -c[1])
