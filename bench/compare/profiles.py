"""Where the CPU time of a hit goes: samples of the whole server, kernel included."""

import subprocess
import sys

import rates
from bench import SERVERS, alone, settle
from harness.page import pick, table, unique
from harness.process import program

NAMES = ["nginx", "entrepot"]
ROWS = [("head", 16), ("manifest", 16), ("64KiB", 16), ("1MiB", 1), ("1MiB", 16), ("64MiB", 16)]
SECONDS = 3.0
# Cycles can't be counted on most virtual machines; this samples by the clock.
EVENT, HERTZ = "cpu-clock", 1999
# Per cent below which a symbol is left out.
LIMIT = 0.5


def run(bench):
    perf = program("perf")
    if not perf:
        print("no profiles: perf is missing", file=sys.stderr)
        return
    all_rows = {row.name: row for row in rates.rows(bench)}
    wanted = [(all_rows[name], connections) for name, connections in ROWS if name in all_rows]
    bodies = unique(row.body for row, _ in wanted)
    servers = [SERVERS[name] for name in NAMES if name in bench.arguments.servers]
    with bench.serving(servers, bodies) as servers:
        settle(servers, bodies)
        for row, connections in wanted:
            for server in servers:
                with alone(server):
                    record = measure(bench, perf, server, row, connections)
                print(line(record), file=sys.stderr)
                yield record


def measure(bench, perf, server, row, connections):
    data = bench.directory / f"perf-{server.name}-{row.name}-{connections}"
    pids = ",".join(map(str, server.pids()))
    command = ["taskset", "-c", str(rates.CLIENT_CORE), perf, "record", "-q", "-o", data]
    command += ["-e", EVENT, "-F", str(HERTZ), "-p", pids, "--", "sleep", str(SECONDS)]
    sampler = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
    result = rates.measure_one(bench, server, row, connections, row.client, SECONDS)
    _, said = sampler.communicate()
    if sampler.returncode:
        raise SystemExit(f"perf record: {said.strip()}")
    report = [perf, "report", "--stdio", "-q", "-i", data]
    symbols = told([*report, "--percent-limit", str(LIMIT)], "dso,symbol")
    inside = kernel_share(told(report, "dso"))
    if not inside:
        raise SystemExit("perf saw nothing of the kernel: sysctl kernel.perf_event_paranoid=1")
    name = f"profile-{row.name}-c{connections}-{server.name}"
    bench.configurations[name] = ("txt", symbols)
    return {
        "scenario": "profiles",
        "row": row.name,
        "connections": connections,
        "server": server.name,
        "requests": result["requests"],
        "server_cpu_s": result["server_cpu_s"],
        "kernel_share": inside,
    }


def told(report, sort):
    command = [*map(str, report), "--sort", sort]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = (text.rstrip() for text in done.stdout.splitlines())
    return "".join(f"{text.rstrip(' -')}\n" for text in lines if text)


def kernel_share(text):
    """Of the kernel and its modules."""
    parts = [line.split(maxsplit=1) for line in text.splitlines()]
    inside = [each for each, dso in parts if dso[0] == "[" and dso not in ("[vdso]", "[vsyscall]")]
    return sum(float(each.rstrip("%")) for each in inside) / 100


def line(record):
    return (
        f"{record['server']:15} {record['row']:>8} c={record['connections']:<3} "
        f"{each(record):8.2f} µs CPU, {record['kernel_share']:.0%} in the kernel"
    )


def each(record):
    return record["server_cpu_s"] / record["requests"] * 1e6


def section(records):
    lines = [
        [
            record["row"],
            record["connections"],
            record["server"],
            f"{each(record):.1f}",
            f"{each(record) * (1 - record['kernel_share']):.1f}",
            f"{record['kernel_share']:.0%}",
        ]
        for record in pick(records, scenario="profiles")
    ]
    header = ["row", "c", "server", "CPU µs/request", "of it not in the kernel", "in the kernel"]
    return (
        "## Where the time goes\n\n"
        f"{table(header, lines)}\n"
        f"`perf record -e {EVENT} -F {HERTZ}`, which slows what it watches; the symbols of each row "
        "are in `profile-*.txt`.\n"
    )
