"""Side by side: entrepot serving cached blobs, nginx serving the same bytes as files.

Run as `python3 bench/compare`; bench/README.md says what is measured and how to read it.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True  # nothing is left behind beside the scripts
import clients
import machine
import servers
import summary

REPOSITORY = Path(__file__).resolve().parents[2]
SIZES = {"4KiB": 4 << 10, "64KiB": 64 << 10, "1MiB": 1 << 20, "64MiB": 64 << 20, "1GiB": 1 << 30}
SERVER_CORE = 0
CLIENT_CORE = 1


def main():
    arguments = parse_arguments()
    if not arguments.no_build:
        build()
    programs = servers.Programs(REPOSITORY / "target" / arguments.profile)
    with tempfile.TemporaryDirectory(prefix="entrepot-compare-", dir=arguments.dir) as directory:
        directory = Path(directory)
        directory.chmod(0o755)  # nginx's worker is another user when we are root
        with servers.Origin(programs, CLIENT_CORE) as origin:
            blobs = [origin.put_blob(name, SIZES[name]) for name in arguments.sizes]
            started = [start(name, programs, directory, origin, blobs) for name in arguments.servers]
            try:
                for server in started:
                    server.check(blobs)
                records = measure(arguments, started, blobs)
                facts = machine.facts(REPOSITORY, programs, arguments.profile)
                facts["nginx"] = machine.output([servers.nginx_program(), "-v"])
                facts["wrk"] = machine.output(["wrk", "-v"]).split(" Copyright")[0]
                facts["counters"] = {server.name: server.counters() for server in started}
                facts["commands"] = commands(started, directory, records)
                facts["configurations"] = {server.name: server.configuration for server in started}
            finally:
                for server in started:
                    server.stop()
    out = arguments.out or default_out(facts)
    write(out, facts, records, hide(directory))
    print((out / "summary.md").read_text())
    print(f"written to {out}")


def parse_arguments():
    parser = argparse.ArgumentParser(prog="python3 bench/compare", description=__doc__)
    names = lambda text: text.split(",")
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser.add_argument("--rounds", type=int, default=10, help="each measures everything once")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--sizes", type=names, default=["4KiB", "1MiB", "64MiB"], help=" ".join(SIZES))
    parser.add_argument("--connections", type=numbers, default=[1, 16])
    parser.add_argument("--clients", type=names, default=["wrk", "entrepot-load"])
    parser.add_argument("--servers", type=names, default=["nginx", "entrepot"])
    parser.add_argument("--profile", default="release", help="of cargo: release or debug")
    parser.add_argument("--no-build", action="store_true", help="take the programs as they are")
    parser.add_argument("--dir", default="/var/tmp", help="for files and store; not a tmpfs")
    parser.add_argument("--out", type=Path, help="default bench/results/<date>-<machine>")
    arguments = parser.parse_args()
    for given, known in [
        (arguments.sizes, SIZES),
        (arguments.clients, clients.BY_NAME),
        (arguments.servers, servers.BY_NAME),
    ]:
        for name in given:
            if name not in known:
                parser.error(f"{name}: expected one of {', '.join(known)}")
    return arguments


def build():
    command = ["cargo", "build", "--release", "-p", "entrepot", "-p", "entrepot-tools"]
    subprocess.run(command, cwd=REPOSITORY, check=True)


def start(name, programs, directory, origin, blobs):
    server = servers.BY_NAME[name](programs, directory, SERVER_CORE)
    server.start(origin, blobs)
    return server


def measure(arguments, started, blobs):
    """One record for each measurement; servers take turns in going first."""
    works = [
        (blob, connections, client)
        for blob in blobs
        for connections in arguments.connections
        for client in arguments.clients
    ]
    records = []
    for turn in range(arguments.rounds):
        order = started if turn % 2 == 0 else list(reversed(started))
        for blob, connections, client in works:
            for server in order:
                run = clients.BY_NAME[client](server.programs, CLIENT_CORE)
                cpu = server.cpu_seconds()
                result = run.measure(server, blob, connections, arguments.seconds)
                result["server_cpu_s"] = server.cpu_seconds() - cpu
                record = {
                    "round": turn,
                    "server": server.name,
                    "size": blob.name,
                    "connections": connections,
                    "client": client,
                    **result,
                }
                records.append(record)
                print(summary.line(record), file=sys.stderr)
    return records


def commands(started, directory, records):
    hidden = hide(directory)
    seen = {server.name: hidden(" ".join(server.command)) for server in started}
    for record in records:
        name = f"{record['client']}, {record['size']}, {record['connections']} connections"
        seen.setdefault(name, hidden(record["command"]))
    return seen


def hide(directory):
    """Paths of this machine say nothing to a reader."""
    return lambda text: text.replace(str(directory), "$DIR").replace(f"{REPOSITORY}/", "")


def default_out(facts):
    date = datetime.date.today().isoformat()
    return REPOSITORY / "bench" / "results" / f"{date}-{facts['name']}"


def write(out, facts, records, hidden):
    out.mkdir(parents=True, exist_ok=True)
    facts["arguments"] = [hidden(argument) for argument in sys.argv[1:]]
    configurations = facts.pop("configurations")
    for name, (suffix, text) in configurations.items():
        (out / f"{name}.{suffix}").write_text(hidden(text))
    (out / "machine.json").write_text(json.dumps(facts, indent=2) + "\n")
    with open(out / "runs.jsonl", "w") as file:
        for record in records:
            file.write(hidden(json.dumps(record)) + "\n")
    (out / "summary.md").write_text(summary.page(facts, records))


if __name__ == "__main__":
    main()
