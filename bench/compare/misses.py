"""What is not cached: one client of a cold body, and a herd of them. Every cache starts empty."""

import sys

from bench import in_turn
from harness.page import middle, pick, spread, table, unique
from harness.run import ALL_CORES, SERVER_CORE

DIRECT = "direct"
HERD_CLIENTS = 64
# Comes first: connections to upstream and memory are there when it counts.
WARM_SIZE = 1 << 20
SCENARIOS = ["cold", "cold-shared", "herd"]


def cold(bench):
    return run(bench, "cold", bench.arguments.cold_mib << 20, 1)


def cold_shared(bench):
    return run(bench, "cold-shared", bench.arguments.cold_mib << 20, 1, ALL_CORES)


def herd(bench):
    return run(bench, "herd", bench.arguments.herd_mib << 20, HERD_CLIENTS)


def run(bench, scenario, size, clients, cores=SERVER_CORE):
    caches = [server for server in bench.chosen() if server.caches]
    warm = bench.origin.put_blob("warm", WARM_SIZE)
    for turn in range(bench.arguments.rounds):
        body = bench.origin.put_blob(scenario, size, seed=size + turn, repository=scenario)
        # The origin makes its digest now, not under the first client.
        for server in in_turn([DIRECT, *caches], turn):
            if server == DIRECT:
                result = ask(bench, bench.origin.url + body.upstream_path, body, clients)
                name = DIRECT
            else:
                name = server.name
                with bench.serving([server], cores=cores) as (started,):
                    started.pull(warm)
                    result = miss(bench, started, body, clients)
            record = {"scenario": scenario, "round": turn, "server": name, "size": size, **result}
            print(line(record), file=sys.stderr)
            yield record


def ask(bench, url, body, clients):
    before = bench.origin.sent(body)
    result = bench.load.once_each(url, body, clients)
    after = bench.origin.sent(body)
    result["upstream_gets"] = after[0] - before[0]
    result["upstream_times"] = (after[1] - before[1]) / body.size
    return result


def miss(bench, server, body, clients):
    before, cpu = server.rss_mib(), server.cpu_seconds()
    result = ask(bench, server.url(body), body, clients)
    result["server_cpu_s"] = server.cpu_seconds() - cpu
    result["rss_before_mib"], result["rss_peak_mib"] = before, server.peak_rss_mib()
    server.check([body])
    return result


def line(record):
    return (
        f"round {record['round']:2} {record['server']:15} {record['scenario']:>5} "
        f"{record['seconds']:7.3f} s, first byte p50 {record['first_byte_ms']['p50']:8.2f} ms, "
        f"upstream x {record['upstream_times']:.2f}, errors {record['errors']}"
    )


def section(records, scenario):
    mine = pick(records, scenario=scenario)
    mib = mine[0]["size"] >> 20
    clients = HERD_CLIENTS if scenario == "herd" else 1
    header = ["server", "seconds", "first byte p50 ms", "p99", "CPU s"]
    header += ["RSS before → peak MiB", "upstream GETs", "upstream bytes ÷ size", "errors"]
    lines = []
    for server in unique(record["server"] for record in mine):
        runs = pick(mine, server=server)
        first = lambda at: [run["first_byte_ms"][at] for run in runs]
        of = lambda name, form: middle([run.get(name) for run in runs], form)
        lines.append([
            server,
            spread([run["seconds"] for run in runs], "{:.3f}"),
            spread(first("p50"), "{:.2f}"),
            middle(first("p99"), "{:.2f}"),
            of("server_cpu_s", "{:.2f}"),
            f"{of('rss_before_mib', '{:.0f}')} → {of('rss_peak_mib', '{:.0f}')}",
            of("upstream_gets", "{:.0f}"),
            spread([run["upstream_times"] for run in runs], "{:.2f}"),
            sum(run["errors"] for run in runs),
        ])
    who = f"{clients} clients at once" if clients > 1 else "One client"
    where = "the origin on the client's core"
    if scenario == "cold-shared":
        where += ", which the server may use as well"
    return (
        f"## {scenario.capitalize()}: {who.lower()}, {mib} MiB that nobody has\n\n"
        f"{table(header, lines)}\n"
        f"{who}, {where}; `direct`: no cache between. A fresh cache for "
        "each measurement, after one body of 1 MiB. Clients discard; afterwards the body is read "
        "again and hashed, and was right each time. entrepot verifies before the end of a body "
        "goes out, docker-registry what it stores, nginx and Varnish nothing.\n"
    )
