"""What scrub and compaction cost those who are being served.

Run as `python3 bench/background`; bench/README.md says what is measured and how to read it.
"""

import subprocess
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True  # nothing is left behind beside the scripts
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness import run
from harness.clients import Load
from harness.entrepot import Entrepot
from harness.origin import PROJECT, Origin
from harness.page import paired, pick, spread, table

SIZES = {"4KiB": 4 << 10, "1MiB": 1 << 20}
# Ballast: what is scrubbed or compacted while other blobs are served.
BALLAST_SIZE = 1 << 20
PURGE_SECONDS_MAX = 120
READ = "entrepot_compaction_read_bytes_total"
WRITTEN = "entrepot_compaction_written_bytes_total"
# A round in which less was moved had nothing left to do, and says nothing.
BUSY_MB_PER_S = 1


class Cache(Entrepot):
    """With ballast beside the blobs that are served."""

    capacity = "16GiB"

    def __init__(self, programs, directory, name, store):
        # The compactor may use either core, as it may on a larger machine; the shard pins itself.
        super().__init__(programs, directory, f"{run.SERVER_CORE},{run.CLIENT_CORE}", name)
        self.store = store

    def purge(self, repository):
        name = f"{PROJECT}/{repository}"
        command = [self.programs.entrepot, "purge", "repository", name, "--config", self.file]
        subprocess.run(command, check=True, timeout=PURGE_SECONDS_MAX, stdout=sys.stderr)

    def moved(self):
        metrics = self.metrics()
        return metrics[READ] + metrics[WRITTEN]


def main():
    arguments = parse_arguments()
    programs = run.programs(arguments)
    with run.directory("background", arguments) as directory:
        with Origin(programs, run.CLIENT_CORE) as origin:
            records = caches(arguments, programs, directory, origin)
        facts = run.facts(arguments, programs)
    for record in records:
        record.pop("command")
    files = {"runs.jsonl": run.jsonl(records), "summary.md": page(arguments, facts, records)}
    run.write(arguments, facts, files, "background")


def parse_arguments():
    parser = run.parser("background", __doc__, rounds=10, seconds=2.0)
    add = parser.add_argument
    add("--rate", default="256MiB", help="store.background_rate")
    add("--ballast-mib", type=int, default=4096, help="bodies of 1 MiB in each store")
    add("--connections", type=run.numbers, default=[1, 16])
    return parser.parse_args()


def caches(arguments, programs, directory, origin):
    """Three with the same bytes, all but one of them stopped at any time."""
    bodies = [origin.put_blob(name, size) for name, size in SIZES.items()]
    ballast = put_ballast(origin, arguments.ballast_mib)
    rate = f'background_rate = "{arguments.rate}"'
    started = []
    try:
        for name, every in [("quiet", "3650d"), ("scrub", "1s"), ("compact", "3650d")]:
            store = f'{rate}\nscrub_every = "{every}"'
            cache = Cache(programs, directory, name, store)
            cache.start(origin, bodies)
            started.append(cache)
            for body in ballast:
                cache.pull(body)
            cache.settle(bodies)
            cache.freeze()
        compact = started[-1]
        compact.go_on()
        compact.purge("drop")
        compact.freeze()
        return measure(arguments, started, bodies)
    finally:
        for cache in started:
            cache.stop()


def put_ballast(origin, count):
    """Bodies of two repositories in turn, so that a purge of one leaves every segment half empty."""
    return [
        origin.put_blob(
            "ballast", BALLAST_SIZE, seed=1_000_000 + number, repository=["keep", "drop"][number % 2]
        )
        for number in range(count)
    ]


def measure(arguments, started, bodies):
    """One record for each measurement; the caches in turn, all others standing still."""
    client = Load(started[0].programs, run.CLIENT_CORE)
    records = []
    for turn in range(arguments.rounds):
        shift = turn % len(started)
        for body in bodies:
            for connections in arguments.connections:
                for cache in started[shift:] + started[:shift]:
                    cache.go_on()
                    cache.pull(body)
                    before, since = cache.moved(), time.monotonic()
                    result = client.measure(cache, body, connections, arguments.seconds)
                    moved, took = cache.moved() - before, time.monotonic() - since
                    cache.freeze()
                    record = {
                        "round": turn,
                        "server": cache.name,
                        "size": body.name,
                        "connections": connections,
                        "background_mb_per_s": moved / took / 1e6,
                        **result,
                    }
                    records.append(record)
                    print(line(record), file=sys.stderr)
    return records


def line(record):
    latency = record["latency_ms"]
    return (
        f"round {record['round']:2} {record['server']:8} {record['size']:>5} "
        f"c={record['connections']:<3} {record['requests_per_s']:8.0f} req/s "
        f"p50 {latency['p50']:7.3f} p99 {latency['p99']:7.3f} ms "
        f"background {record['background_mb_per_s']:6.0f} MB/s errors {record['errors']}"
    )


def page(arguments, facts, records):
    header = ["size", "c", "busy with", "p99 / quiet's", "p50 / quiet's", "req/s / quiet's"]
    header += ["p99 ms", "quiet p99 ms", "background MB/s"]
    rows = []
    for size in SIZES:
        for connections in arguments.connections:
            quiet = pick(records, server="quiet", size=size, connections=connections)
            for name in ["scrub", "compact"]:
                runs = pick(records, server=name, size=size, connections=connections)
                runs = [run for run in runs if run["background_mb_per_s"] > BUSY_MB_PER_S]
                rows.append([size, connections, f"{name} ({len(runs)} rounds)", *cells(runs, quiet)])
    return "\n".join([
        run.heading("background", "What scrub and compaction cost those who are being served", facts),
        f"One shard on core {run.SERVER_CORE}, the client on core {run.CLIENT_CORE}, the compactor "
        f"on either. `background_rate` {arguments.rate}, read and written together; "
        f"{arguments.rounds} rounds, the servers in turn within each, all others stopped.\n",
        table(header, rows),
        "Medians over the rounds of the ratio within a round, in brackets the lowest and highest.\n",
    ])


def cells(runs, quiet):
    latency = lambda at: lambda record: record["latency_ms"][at]
    over = lambda of: spread(paired(runs, quiet, lambda one, other: of(one) / of(other)), "{:.2f}")
    return [
        over(latency("p99")),
        over(latency("p50")),
        over(lambda record: record["requests_per_s"]),
        spread([latency("p99")(record) for record in runs], "{:.3f}"),
        spread([latency("p99")(record) for record in quiet], "{:.3f}"),
        spread([record["background_mb_per_s"] for record in runs], "{:.0f}"),
    ]


if __name__ == "__main__":
    main()
