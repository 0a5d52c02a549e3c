"""Side by side: entrepot, nginx and other caches, with the same bytes in the same run.

Scenarios (default: all of them)
  rates       what is cached: manifest, HEAD, tag, blobs of 4 KiB to 1 GiB
  cold        one client of a body that nobody has yet
  cold-shared the same, and the server may use the client's core as well
  herd        64 clients at once of a body that nobody has yet
  idle        10,000 connections that ask for nothing
  beside      small answers while large ones go to others
  cold-pages  bodies that were evicted from the page cache
  records     the cost of a hit beside 10^3 to 10^6 records
  shards      what a hit costs with more shards, counted
  profiles    where the CPU time of a hit goes

bench/README.md says how to read what comes out.
"""

import sys
from pathlib import Path

sys.dont_write_bytecode = True  # nothing is left behind beside the scripts
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import beside
import bounds
import idle
import losses
import misses
import pages
import profiles
import rates
import records
import shards
from bench import SERVERS, Bench
from harness import clients, machine, run
from harness.origin import Origin
from harness.page import pick
from harness.process import needed

SCENARIOS = {
    "rates": rates.run,
    "cold": misses.cold,
    "cold-shared": misses.cold_shared,
    "herd": misses.herd,
    "idle": idle.run,
    "beside": beside.run,
    "cold-pages": pages.run,
    "records": records.run,
    "shards": shards.run,
    "profiles": profiles.run,
}
DEFAULT_SERVERS = ["nginx", "nginx-proxy", "nginx-sendfile", "docker-registry", "varnish", "entrepot"]
# Whether it works, not how fast it is.
QUICK = {
    "rounds": 1,
    "seconds": 0.3,
    "rows": ["manifest", "head", "tag", "64KiB", "1MiB"],
    "connections": [1, 16],
    "cold_mib": 64,
    "herd_mib": 8,
    "idle_connections": 1000,
    "idle_seconds": 2.0,
    "pages_count": 16,
    "pages_mib": 4,
    "records": [1_000, 10_000],
    "shards": [1, 2],
}


def main():
    arguments = parse_arguments()
    programs = run.programs(arguments, ["entrepot", "entrepot-tools", "entrepot-bench"])
    measured = []
    with run.directory("compare", arguments) as directory:
        with Origin(programs, run.CLIENT_CORE) as origin:
            bench = Bench(arguments, programs, directory, origin)
            try:
                for scenario in arguments.scenarios or SCENARIOS:
                    measured.extend(SCENARIOS[scenario](bench))
            finally:
                # Of a run that broke off as well.
                if measured:
                    write(arguments, programs, bench, measured)


def parse_arguments():
    parser = run.parser("compare", __doc__, rounds=10, seconds=1.0)
    add = parser.add_argument
    add("scenarios", nargs="*", metavar="SCENARIO", help=" ".join(SCENARIOS))
    add("--quick", action="store_true", help="one short round of little: whether it works")
    add("--servers", type=run.names, default=DEFAULT_SERVERS, help=",".join(DEFAULT_SERVERS))
    add("--rows", type=run.names, default=rates.ROWS, help=",".join(rates.ROWS))
    add("--connections", type=run.numbers, default=[1, 16, 256])
    add("--clients", type=run.names, help="of every row, instead of the row's own: wrk,entrepot-load")
    add("--cold-mib", type=int, default=1024, help="size of the cold body")
    add("--herd-mib", type=int, default=256, help="size of the herd's body")
    add("--idle-connections", type=int, default=10_000)
    add("--idle-seconds", type=float, default=20.0)
    add("--pages-count", type=int, default=32, help="evicted bodies")
    add("--pages-mib", type=int, default=64, help="size of each")
    add("--records", type=run.numbers, default=[1_000, 10_000, 100_000, 1_000_000])
    add("--shards", type=run.numbers, default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    if arguments.quick:
        for name, value in QUICK.items():
            if getattr(arguments, name) == parser.get_default(name):
                setattr(arguments, name, value)
    for given, known in [
        (arguments.scenarios, SCENARIOS),
        (arguments.servers, SERVERS),
        (arguments.rows, rates.ROWS),
        (arguments.clients or [], clients.BY_NAME),
    ]:
        for name in given:
            if name not in known:
                parser.error(f"{name}: expected one of {', '.join(known)}")
    for name in ["wrk", *filter(None, (SERVERS[name].program for name in arguments.servers))]:
        needed(name)
    return arguments


def write(arguments, programs, bench, measured):
    facts = collect(arguments, programs, bench, measured)
    files = {f"{name}.{suffix}": text for name, (suffix, text) in bench.configurations.items()}
    files["runs.jsonl"] = run.jsonl(measured)
    files["summary.md"] = page(facts, measured)
    hide = [(bench.directory, "$DIR"), (programs.entrepot.parent, "target")]
    run.write(arguments, facts, files, hide=hide)


def collect(arguments, programs, bench, measured):
    facts = run.facts(arguments, programs)
    facts["versions"] = machine.versions()
    facts["counters"] = bench.counters
    facts["commands"] = bench.commands
    for record in measured:
        # Ports differ between rounds, and nothing else does.
        if command := record.pop("command", None):
            which = [record.get(name) for name in ("scenario", "row", "connections", "client")]
            facts["commands"].setdefault(", ".join(str(part) for part in which if part), command)
    return facts


def page(facts, measured):
    versions = "; ".join(facts["versions"].values())
    parts = [
        run.heading("compare", "entrepot and others, side by side", facts),
        f"{versions}. One core for the server ({run.SERVER_CORE}), one for the client and the "
        f"origin ({run.CLIENT_CORE}); the servers in turn within each round.\n",
        bounds.section(measured),
        losses.section(measured),
    ]
    sections = {"rates": rates.section, "idle": idle.section, "cold-pages": pages.section}
    sections |= {"beside": beside.section, "records": records.section}
    sections |= {"shards": shards.section, "profiles": profiles.section}
    for name in misses.SCENARIOS:
        sections[name] = lambda mine, name=name: misses.section(mine, name)
    for name in SCENARIOS:
        # Traces of a scenario go to its section.
        if pick(measured, scenario=name):
            mine = [record for record in measured if record["scenario"].startswith(name)]
            parts.append(sections[name](mine))
    if counters := facts["counters"].get("entrepot"):
        parts.append("Counted by entrepot while rates were measured:\n")
        parts.append("".join(f"- `{name}` {value:.0f}\n" for name, value in sorted(counters.items())))
    return "\n".join(part for part in parts if part)


if __name__ == "__main__":
    main()
