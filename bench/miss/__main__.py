"""What a miss costs over asking the origin directly.

Run as `python3 bench/miss`; bench/README.md says what is measured and how to read it.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from statistics import median, quantiles

sys.dont_write_bytecode = True  # nothing is left behind beside the scripts
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness import run
from harness.connection import Connection
from harness.entrepot import Entrepot
from harness.origin import Origin
from harness.page import spread, table

# A little more than what is withheld, so that first bytes leave before the digest is known.
SIZE = (1 << 20) + (128 << 10)
SIDES = ["direct", "through"]
SHARES = [50, 90, 99, 99.9]


def main():
    arguments = parse_arguments()
    programs = run.programs(arguments)
    os.sched_setaffinity(0, {run.CLIENT_CORE})
    with run.directory("miss", arguments) as directory, Origin(programs, run.CLIENT_CORE) as origin:
        cache = Entrepot(programs, directory, run.SERVER_CORE)
        cache.start(origin, [])
        try:
            firsts = first_bytes(arguments, origin, cache)
            wholes = large(arguments, origin, cache)
        finally:
            cache.stop()
        facts = run.facts(arguments, programs)
    samples = {"first_byte_ms": firsts, "whole_s": wholes}
    files = {"samples.json": json.dumps(samples) + "\n"}
    files["summary.md"] = page(arguments, facts, firsts, wholes)
    run.write(arguments, facts, files, "miss")


def parse_arguments():
    parser = run.parser("miss", __doc__, rounds=3)
    add = parser.add_argument
    add("--samples", type=int, default=5000, help="bodies for the first byte")
    add("--warm", type=int, default=50, help="bodies before those")
    add("--large-mib", type=int, default=4096, help="of the body that is asked for in --rounds")
    add("--rate-mb", type=int, default=400, help="MB/s of the origin for it")
    return parser.parse_args()


def sides(origin, cache, body):
    """Where each side asks, and for what."""
    return {
        "direct": (origin.url, body.upstream_path),
        "through": (f"http://127.0.0.1:{cache.port}", body.path),
    }


def in_turn(turn):
    return SIDES if turn % 2 else SIDES[::-1]


def first_bytes(arguments, origin, cache):
    """Interleaved: each body is asked of the origin and through the cache, first this, then that."""
    connections, took = {}, {side: [] for side in SIDES}
    for sample in range(arguments.samples + arguments.warm):
        body = origin.put_blob("miss", SIZE, seed=1_000_000 + sample, repository="miss")
        at = sides(origin, cache, body)
        for side in in_turn(sample):
            url, path = at[side]
            if side not in connections:
                connections[side] = Connection(url)
            first, _ = connections[side].get(path)
            if sample >= arguments.warm:
                took[side].append(first * 1e3)
    return took


def large(arguments, origin, cache):
    """Whole bodies from a paced origin, each verified, in turn."""
    origin.call("rate", {"bytes_per_second": arguments.rate_mb * 1_000_000})
    took = {side: [] for side in SIDES}
    for turn in range(arguments.rounds):
        body = origin.put_blob("miss", arguments.large_mib << 20, seed=1 + turn, repository="miss")
        at = sides(origin, cache, body)
        for side in in_turn(turn):
            url, path = at[side]
            hasher = hashlib.sha256()
            _, whole = Connection(url).get(path, hasher)
            if f"sha256:{hasher.hexdigest()}" != body.digest:
                raise SystemExit(f"{side}: wrong bytes of {path}")
            took[side].append(whole)
            print(f"round {turn} {side:8} {whole:7.3f} s", file=sys.stderr)
    origin.call("rate", {"bytes_per_second": None})
    return took


def page(arguments, facts, firsts, wholes):
    added = [through - direct for direct, through in zip(firsts["direct"], firsts["through"])]
    named = {**firsts, "through − direct, for each body": added}
    rows = [[name, *[f"{at(times, share):.3f}" for share in SHARES]] for name, times in named.items()]
    parts = [
        run.heading("miss", "What a miss costs over asking the origin directly", facts),
        f"entrepot with one shard on core {run.SERVER_CORE}; the origin and the client, one thread "
        f"each, on core {run.CLIENT_CORE}. Time to the first byte of a body of {SIZE} bytes, one "
        f"connection, {len(added)} bodies, each asked of both:\n",
        table(["", "p50, ms", "p90", "p99", "p99.9"], rows),
    ]
    if wholes["direct"]:
        ratios = [through / direct for direct, through in zip(wholes["direct"], wholes["through"])]
        parts.append(
            f"A body of {arguments.large_mib} MiB from an origin paced at {arguments.rate_mb} MB/s, "
            f"hashed by the client: direct {median(wholes['direct']):.3f} s, through "
            f"{median(wholes['through']):.3f} s; ratio {spread(ratios, '{:.3f}')} "
            f"in {len(ratios)} rounds.\n"
        )
    return "\n".join(parts)


def at(samples, share):
    return quantiles(samples, n=1000, method="inclusive")[round(share * 10) - 1]


if __name__ == "__main__":
    main()
