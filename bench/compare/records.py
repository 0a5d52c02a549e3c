"""What a hit costs when the store knows more: the same bodies beside 10^3 to 10^6 records."""

import functools
import subprocess
import sys

from bench import alone, in_turn, settle
from harness.clients import Wrk
from harness.entrepot import Entrepot
from harness.page import divided, middle, paired, pick, spread, table
from harness.run import CLIENT_CORE

HOT = 1_000
HOT_SIZE = 4 << 10
CONNECTIONS = 16


class Laden(Entrepot):
    """Over a store that `entrepot-ballast` filled with records of bodies that nobody asks for."""

    # Ballast takes 8 KiB of it for each body, and nothing on disk.
    capacity = "16GiB"
    store = 'scrub_every = "3650d"'

    def __init__(self, count, programs, directory, cores):
        super().__init__(programs, directory, cores, f"entrepot-{count}")
        self.count = count

    def start(self, origin, bodies):
        command = [self.programs.ballast, self.directory / "store", str(self.count)]
        subprocess.run(command, check=True)
        super().start(origin, bodies)


def run(bench):
    arguments = bench.arguments
    put = functools.partial(bench.origin.put_blob, "hot", HOT_SIZE, repository="hot")
    bodies = [put(seed=HOT_SIZE + number) for number in range(HOT)]
    paths = bench.directory / "paths"
    paths.write_text("".join(f"{body.path}\n" for body in bodies))
    client = Wrk(bench.programs, CLIENT_CORE)
    makes = [functools.partial(Laden, count) for count in arguments.records]
    with bench.serving(makes) as servers:
        settle(servers, bodies)
        for turn in range(arguments.rounds):
            for server in in_turn(servers, turn):
                record = {"scenario": "records", "round": turn, "server": server.name}
                record["records"] = server.count
                with alone(server):
                    record |= measure(server, client, bodies[0], arguments.seconds, paths)
                print(line(record), file=sys.stderr)
                yield record


def measure(server, client, body, seconds, paths):
    cpu = server.cpu_seconds()
    result = client.measure(server, body, CONNECTIONS, seconds, paths)
    result["server_cpu_s"] = server.cpu_seconds() - cpu
    result["server_rss_mib"] = server.rss_mib()
    return result


def cost(record):
    """CPU seconds for 1,000 requests."""
    return divided(record["server_cpu_s"], record["requests"] / 1e3)


def line(record):
    return (
        f"round {record['round']:2} {record['records']:>8} records "
        f"{record['requests_per_s']:9.0f} req/s, CPU {1e3 * (cost(record) or 0):.2f} us each"
    )


def growth(records, count):
    """Cost with so many records over the cost with the fewest, for each round."""
    fewest = min(record["records"] for record in records)
    dearer = lambda one, other: divided(cost(one), cost(other))
    return paired(pick(records, records=count), pick(records, records=fewest), dearer)


def section(records):
    lines = []
    for count in sorted({record["records"] for record in records}):
        runs = pick(records, records=count)
        lines.append([
            f"{count:,}",
            middle([run["requests_per_s"] for run in runs], "{:.0f}"),
            spread([cost(run) for run in runs], "{:.4f}"),
            spread(growth(records, count), "{:.3f}"),
            middle([run["server_rss_mib"] for run in runs], "{:.0f}"),
        ])
    header = ["records", "req/s", "CPU s/1,000 req", "over the fewest", "RSS MiB"]
    return (
        "## Cost of a hit by the number of records\n\n"
        f"{table(header, lines)}\n"
        f"{HOT:,} bodies of {HOT_SIZE >> 10} KiB asked for in turn on {CONNECTIONS} connections, "
        "the same beside every number of records. The others are records as the store writes "
        "them, of bodies that are holes and not asked for.\n"
    )
