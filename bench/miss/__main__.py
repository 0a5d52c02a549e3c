"""What a miss costs over asking the origin directly.

Run as `python3 bench/miss`; bench/README.md says what is measured and how to read it.
"""

import argparse
import datetime
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urlsplit

sys.dont_write_bytecode = True  # nothing is left behind beside the scripts
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "compare"))
import machine
import servers

REPOSITORY = Path(__file__).resolve().parents[2]
SERVER_CORE = 0
# Of the client and the origin: on two cores there is no other.
CLIENT_CORE = 1
# A little more than what is withheld, so that first bytes leave before the digest is known.
SIZE = (1 << 20) + (128 << 10)
READ = 1 << 20


class Client:
    """One keep-alive connection, as plain as can be: what it adds, it adds to both sides."""

    def __init__(self, url):
        at = urlsplit(url)
        self.host = at.netloc
        self.socket = socket.create_connection((at.hostname, at.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get(self, path, expected):
        """Seconds to the first byte of the body, and to the last."""
        started = time.perf_counter()
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode())
        received = b""
        while b"\r\n\r\n" not in received or received.endswith(b"\r\n\r\n"):
            piece = self.socket.recv(READ)
            if not piece:
                raise SystemExit(f"{self.host}: closed before an answer to {path}")
            received += piece
        first = time.perf_counter() - started
        head, body = received.split(b"\r\n\r\n", 1)
        if not head.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"{self.host}: {head.decode()}")
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        hasher = hashlib.sha256(body) if expected else None
        taken = len(body)
        buffer = memoryview(bytearray(READ))
        while taken < length:
            count = self.socket.recv_into(buffer)
            if not count:
                raise SystemExit(f"{self.host}: {path} is cut short")
            if hasher:
                hasher.update(buffer[:count])
            taken += count
        whole = time.perf_counter() - started
        if hasher and f"sha256:{hasher.hexdigest()}" != expected:
            raise SystemExit(f"{self.host}: wrong bytes of {path}")
        return first, whole


def put(origin, seed, size):
    asked = {"repositories": ["miss"], "size": size, "seed": seed}
    request = urllib.request.Request(
        f"{origin.control}/_origin/blobs", json.dumps(asked).encode(), method="POST"
    )
    with urllib.request.urlopen(request) as answer:
        return servers.Blob("miss", size, json.load(answer)["digest"], "miss")


def direct_path(blob):
    return f"/v2/{blob.repository}/blobs/{blob.digest}"


def call(origin, name, body):
    request = urllib.request.Request(
        f"{origin.control}/_origin/{name}", json.dumps(body).encode(), method="POST"
    )
    with urllib.request.urlopen(request) as answer:
        answer.read()


def first_bytes(arguments, origin, cache):
    """Interleaved: each body is asked of the origin and through the cache, first this, then that."""
    direct, through = Client(origin.url), Client(f"http://127.0.0.1:{cache.port}")
    took = {"direct": [], "through": []}
    for sample in range(arguments.samples + arguments.warm):
        blob = put(origin, 1_000_000 + sample, SIZE)
        asks = [
            ("direct", lambda: direct.get(direct_path(blob), None)),
            ("through", lambda: through.get(blob.path, None)),
        ]
        for name, ask in asks if sample % 2 else reversed(asks):
            first, _ = ask()
            if sample >= arguments.warm:
                took[name].append(first * 1e3)
    return took


def large(arguments, origin, cache):
    """Whole bodies from a paced origin, each verified, in turn."""
    size = arguments.large_mib << 20
    call(origin, "rate", {"bytes_per_second": arguments.rate_mb * 1_000_000})
    took = {"direct": [], "through": []}
    for turn in range(arguments.rounds):
        blob = put(origin, 1 + turn, size)
        sides = [("direct", origin.url, direct_path(blob))]
        sides.append(("through", f"http://127.0.0.1:{cache.port}", blob.path))
        for name, url, path in sides if turn % 2 else reversed(sides):
            _, whole = Client(url).get(path, blob.digest)
            took[name].append(whole)
            print(f"round {turn} {name:8} {whole:7.3f} s", file=sys.stderr)
    call(origin, "rate", {"bytes_per_second": None})
    return took


def page(arguments, facts, firsts, wholes):
    at = lambda samples, share: quantiles(samples, n=1000, method="inclusive")[round(share * 10) - 1]
    lines = [
        "# What a miss costs over asking the origin directly\n",
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB, "
        f"{facts['distribution']}, kernel {facts['kernel']}. Commit {facts['commit']}, profile "
        f"{facts['profile']}. entrepot with one shard on core {SERVER_CORE}; the origin and the "
        f"client, one thread each, on core {CLIENT_CORE}. Command: "
        f"`python3 bench/miss {' '.join(facts['arguments'])}`".rstrip() + "\n",
        f"Time to the first byte of a body of {SIZE} bytes, one connection, "
        f"{len(firsts['direct'])} bodies, each asked of both:\n",
        "| | p50, ms | p90 | p99 | p99.9 |",
        "|---|---|---|---|---|",
    ]
    for name in ["direct", "through"]:
        cells = [f"{at(firsts[name], share):.3f}" for share in [50, 90, 99, 99.9]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    added = [through - direct for direct, through in zip(firsts["direct"], firsts["through"])]
    cells = [f"{at(added, share):.3f}" for share in [50, 90, 99, 99.9]]
    lines.append(f"| through − direct, for each body | {' | '.join(cells)} |")
    if wholes["direct"]:
        ratios = [through / direct for direct, through in zip(wholes["direct"], wholes["through"])]
        lines.append(
            f"\nA body of {arguments.large_mib} MiB from an origin paced at {arguments.rate_mb} MB/s, "
            f"hashed by the client: direct {median(wholes['direct']):.3f} s, through "
            f"{median(wholes['through']):.3f} s; ratio {median(ratios):.3f} "
            f"({min(ratios):.3f}–{max(ratios):.3f}) in {len(ratios)} rounds.\n"
        )
    return "\n".join(lines) + "\n"


def main():
    arguments = parse_arguments()
    if not arguments.no_build:
        command = ["cargo", "build", "--release", "-p", "entrepot", "-p", "entrepot-tools"]
        subprocess.run(command, cwd=REPOSITORY, check=True)
    programs = servers.Programs(REPOSITORY / "target" / arguments.profile)
    os.sched_setaffinity(0, {CLIENT_CORE})
    with tempfile.TemporaryDirectory(prefix="entrepot-miss-", dir=arguments.dir) as directory:
        with servers.Origin(programs, CLIENT_CORE) as origin:
            cache = servers.Entrepot(programs, Path(directory), SERVER_CORE)
            cache.start(origin, [])
            try:
                firsts = first_bytes(arguments, origin, cache)
                wholes = large(arguments, origin, cache)
                facts = machine.facts(REPOSITORY, programs, arguments.profile)
            finally:
                cache.stop()
    facts["arguments"] = sys.argv[1:]
    date = datetime.date.today().isoformat()
    out = arguments.out or REPOSITORY / "bench" / "results" / f"{date}-{facts['name']}-miss"
    out.mkdir(parents=True, exist_ok=True)
    (out / "machine.json").write_text(json.dumps(facts, indent=2) + "\n")
    samples = {"first_byte_ms": firsts, "whole_s": wholes}
    (out / "samples.json").write_text(json.dumps(samples) + "\n")
    (out / "summary.md").write_text(page(arguments, facts, firsts, wholes))
    print((out / "summary.md").read_text())
    print(f"written to {out}")


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python3 bench/miss", description=__doc__)
    parser.add_argument("--samples", type=int, default=5000, help="bodies for the first byte")
    parser.add_argument("--warm", type=int, default=50, help="bodies before those")
    parser.add_argument("--rounds", type=int, default=3, help="of the large body; 0: none")
    parser.add_argument("--large-mib", type=int, default=4096)
    parser.add_argument("--rate-mb", type=int, default=400, help="MB/s of the origin for it")
    parser.add_argument("--profile", default="release", help="of cargo: release or debug")
    parser.add_argument("--no-build", action="store_true", help="take the programs as they are")
    parser.add_argument("--dir", default="/var/tmp", help="for the store; not a tmpfs")
    parser.add_argument("--out", type=Path, help="default bench/results/<date>-<machine>-miss")
    return parser.parse_args()


if __name__ == "__main__":
    main()
