"""What scrub and compaction cost those who are being served.

Run as `python3 bench/background`; bench/README.md says what is measured and how to read it.
"""

import argparse
import datetime
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median

sys.dont_write_bytecode = True  # nothing is left behind beside the scripts
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "compare"))
import clients
import machine
import servers
from summary import spread

REPOSITORY = Path(__file__).resolve().parents[2]
SIZES = {"4KiB": 4 << 10, "1MiB": 1 << 20}
SERVER_CORE = 0
CLIENT_CORE = 1
# Ballast: what is scrubbed or compacted while other blobs are served.
BALLAST_SIZE = 1 << 20
PURGE_SECONDS_MAX = 120
READ = "entrepot_compaction_read_bytes_total"
WRITTEN = "entrepot_compaction_written_bytes_total"


class Cache(servers.Entrepot):
    """entrepot with one shard and ballast beside the blobs that are served."""

    def __init__(self, programs, directory, core, name, store):
        self.name = name
        self.store = store
        super().__init__(programs, directory, core)

    def start(self, origin, blobs):
        self.admin = servers.free_port()
        text = f"""\
listen = ["127.0.0.1:{self.port}"]
admin = "127.0.0.1:{self.admin}"

[store]
paths = ["{self.directory}/store"]
capacity = "16GiB"
{self.store}

[project.{servers.PROJECT}]

[[project.{servers.PROJECT}.upstream]]
url = "{origin.url}"
"""
        self.file = self.directory / "entrepot.toml"
        self.file.write_text(text)
        self.configuration = ("toml", text)
        self.log = open(self.directory / "log", "w")
        command = [self.programs.entrepot, "serve", "--config", self.file, "--shards", "1"]
        command += ["--set", "log.level=warn"]
        self.start_process(command, self.core, stderr=self.log)
        servers.wait_until_open(self.port, self.process, self.directory / "log")

    def start_process(self, command, core, **options):
        """The compactor may use either core, as it may on a larger machine; the shard pins itself."""
        super().start_process(command, f"{SERVER_CORE},{CLIENT_CORE}", **options)

    def pull(self, blob):
        with urllib.request.urlopen(self.url(blob)) as answer:
            while answer.read(1 << 20):
                pass

    def purge(self, repository):
        name = f"{servers.PROJECT}/{repository}"
        command = [self.programs.entrepot, "purge", "repository", name, "--config", self.file]
        subprocess.run(command, check=True, timeout=PURGE_SECONDS_MAX, stdout=sys.stderr)

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def stop(self):
        self.go_on()
        super().stop()


def main():
    arguments = parse_arguments()
    if not arguments.no_build:
        build()
    programs = servers.Programs(REPOSITORY / "target" / arguments.profile)
    rate = f'background_rate = "{arguments.rate}"'
    with tempfile.TemporaryDirectory(prefix="entrepot-background-", dir=arguments.dir) as directory:
        directory = Path(directory)
        with servers.Origin(programs, CLIENT_CORE) as origin:
            blobs = [origin.put_blob(name, size) for name, size in SIZES.items()]
            count = arguments.ballast_mib
            make = lambda name, store: Cache(programs, directory, SERVER_CORE, name, store)
            quiet = make("quiet", rate + '\nscrub_every = "3650d"')
            scrub = make("scrub", rate + '\nscrub_every = "1s"')
            compact = make("compact", rate + '\nscrub_every = "3650d"')
            started = []
            try:
                for server in [quiet, scrub, compact]:
                    server.start(origin, blobs)
                    started.append(server)
                    server.check(blobs)
                    fill(server, origin, count)
                    server.check(blobs)
                    server.freeze()
                compact.go_on()
                compact.purge("drop")
                compact.freeze()
                records = measure(arguments, started, blobs)
                facts = machine.facts(REPOSITORY, programs, arguments.profile)
            finally:
                for server in started:
                    server.stop()
    out = arguments.out or default_out(facts)
    write(arguments, out, facts, records)
    print((out / "summary.md").read_text())
    print(f"written to {out}")


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python3 bench/background", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="each measures everything once")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--rate", default="256MiB", help="store.background_rate")
    parser.add_argument("--ballast-mib", type=int, default=4096, help="bodies of 1 MiB in each store")
    parser.add_argument("--connections", type=lambda t: [int(n) for n in t.split(",")], default=[1, 16])
    parser.add_argument("--profile", default="release", help="of cargo: release or debug")
    parser.add_argument("--no-build", action="store_true", help="take the programs as they are")
    parser.add_argument("--dir", default="/var/tmp", help="for the stores; not a tmpfs")
    parser.add_argument("--out", type=Path, help="default bench/results/<date>-<machine>-background")
    return parser.parse_args()


def build():
    command = ["cargo", "build", "--release", "-p", "entrepot", "-p", "entrepot-tools"]
    subprocess.run(command, cwd=REPOSITORY, check=True)


def fill(server, origin, count):
    """Bodies of two repositories in turn, so that a purge of one leaves every segment half empty."""
    for number in range(count):
        repository = "drop" if number % 2 else "keep"
        asked = {"repositories": [repository], "size": BALLAST_SIZE, "seed": 1_000_000 + number}
        body = json.dumps(asked).encode()
        request = urllib.request.Request(f"{origin.control}/_origin/blobs", body, method="POST")
        with urllib.request.urlopen(request) as answer:
            digest = json.load(answer)["digest"]
        server.pull(servers.Blob("ballast", BALLAST_SIZE, digest, repository))


def measure(arguments, started, blobs):
    """One record for each measurement; the servers in turn, all others standing still."""
    client = clients.Load(started[0].programs, CLIENT_CORE)
    records = []
    for turn in range(arguments.rounds):
        shift = turn % len(started)
        for blob in blobs:
            for connections in arguments.connections:
                for server in started[shift:] + started[:shift]:
                    server.go_on()
                    server.pull(blob)
                    before, since = server.metrics(), time.monotonic()
                    result = client.measure(server, blob, connections, arguments.seconds)
                    after, took = server.metrics(), time.monotonic() - since
                    server.freeze()
                    moved = sum(after[name] - before[name] for name in (READ, WRITTEN))
                    record = {
                        "round": turn,
                        "server": server.name,
                        "size": blob.name,
                        "connections": connections,
                        "background_mb_per_s": moved / took / 1e6,
                        **result,
                    }
                    records.append(record)
                    print(line(record), file=sys.stderr)
    return records


def line(record):
    return (
        f"round {record['round']:2} {record['server']:8} {record['size']:>5} "
        f"c={record['connections']:<3} {record['requests_per_s']:8.0f} req/s "
        f"p50 {record['p50_ms']:7.3f} p99 {record['p99_ms']:7.3f} ms "
        f"background {record['background_mb_per_s']:6.0f} MB/s errors {record['errors']}"
    )


def default_out(facts):
    date = datetime.date.today().isoformat()
    return REPOSITORY / "bench" / "results" / f"{date}-{facts['name']}-background"


def write(arguments, out, facts, records):
    out.mkdir(parents=True, exist_ok=True)
    facts["arguments"] = sys.argv[1:]
    (out / "machine.json").write_text(json.dumps(facts, indent=2) + "\n")
    with open(out / "runs.jsonl", "w") as file:
        for record in records:
            record.pop("command")
            file.write(json.dumps(record) + "\n")
    (out / "summary.md").write_text(page(arguments, facts, records))


def page(arguments, facts, records):
    lines = [
        "# What scrub and compaction cost those who are being served\n",
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB, "
        f"{facts['distribution']}, kernel {facts['kernel']}. Commit {facts['commit']}, "
        f"profile {facts['profile']}. One shard on core {SERVER_CORE}, the client on core "
        f"{CLIENT_CORE}, the compactor on either. `background_rate` {arguments.rate}, read and "
        f"written together; {arguments.rounds} rounds, the servers in turn within each, all "
        "others stopped. Command: "
        f"`python3 bench/background {' '.join(facts['arguments'])}`".rstrip() + "\n",
        "| size | c | busy with | p99 / quiet's | p50 / quiet's | req/s / quiet's | p99 ms | quiet p99 ms | background MB/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    pick = lambda **wanted: [r for r in records if all(r[k] == v for k, v in wanted.items())]
    for size in SIZES:
        for connections in arguments.connections:
            quiet = pick(server="quiet", size=size, connections=connections)
            for name in ["scrub", "compact"]:
                runs = pick(server=name, size=size, connections=connections)
                # A round in which there was nothing left to do says nothing.
                pairs = [(b, q) for b, q in zip(runs, quiet) if b["background_mb_per_s"] > 1]
                ratio = lambda key: spread([b[key] / q[key] for b, q in pairs], "{:.2f}")
                cells = [
                    size,
                    str(connections),
                    f"{name} ({len(pairs)} rounds)",
                    ratio("p99_ms"),
                    ratio("p50_ms"),
                    ratio("requests_per_s"),
                    spread([b["p99_ms"] for b, _ in pairs], "{:.3f}"),
                    spread([q["p99_ms"] for _, q in pairs], "{:.3f}"),
                    spread([b["background_mb_per_s"] for b, _ in pairs], "{:.0f}"),
                ]
                lines.append(f"| {' | '.join(cells)} |")
    lines.append("\nMedians over the rounds of the ratio within a round, in brackets the lowest and highest.\n")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
