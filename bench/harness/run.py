"""A run: its arguments, the programs it needs, and the folder it leaves."""

import argparse
import datetime
import json
import resource
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from . import machine

REPOSITORY = Path(__file__).resolve().parents[2]
SERVER_CORE = 0
# Of the client and the origin: on two cores there is no other.
CLIENT_CORE = 1
ALL_CORES = f"{SERVER_CORE},{CLIENT_CORE}"


class Programs:
    """Where the programs of one cargo profile are."""

    def __init__(self, directory):
        self.entrepot = directory / "entrepot"
        self.origin = directory / "entrepot-origin"
        self.load = directory / "entrepot-load"
        self.ballast = directory / "entrepot-ballast"


def parser(name, description, rounds, seconds=None):
    """With the arguments that every runner takes."""
    made = argparse.ArgumentParser(
        prog=f"python3 bench/{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--rounds", type=int, default=rounds, help="each measures everything once")
    if seconds:
        made.add_argument("--seconds", type=float, default=seconds, help="of one measurement")
    made.add_argument("--profile", default="release", help="of cargo: release or debug")
    made.add_argument("--programs", type=Path, help="folder of the programs; nothing is built")
    made.add_argument("--no-build", action="store_true", help="take the programs as they are")
    made.add_argument("--dir", default="/var/tmp", help="for files and stores; not a tmpfs")
    made.add_argument("--out", type=Path, help="default bench/results/<date>-<machine>")
    return made


def names(text):
    return text.split(",")


def numbers(text):
    return [int(part) for part in text.split(",")]


def programs(arguments, packages=("entrepot", "entrepot-tools")):
    if arguments.programs:
        return Programs(arguments.programs.resolve())
    if not arguments.no_build:
        wanted = [part for package in packages for part in ("-p", package)]
        profile = "dev" if arguments.profile == "debug" else arguments.profile
        command = ["cargo", "build", "--bins", "--profile", profile, *wanted]
        subprocess.run(command, cwd=REPOSITORY, check=True)
    return Programs(REPOSITORY / "target" / arguments.profile)


@contextmanager
def directory(name, arguments):
    """For files and stores; gone after the run."""
    raise_open_files()
    with tempfile.TemporaryDirectory(prefix=f"entrepot-{name}-", dir=arguments.dir) as made:
        made = Path(made)
        made.chmod(0o755)  # nginx's worker is another user when we are root
        yield made


def raise_open_files():
    """For us and for whatever is started: as many as may be had."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def facts(arguments, programs):
    found = machine.facts(REPOSITORY, programs, arguments.profile)
    found["arguments"] = shown(sys.argv[1:])
    return found


def shown(given):
    """Without those that only say where something is on this machine."""
    kept, skip = [], False
    for argument in given:
        if skip or argument.split("=")[0] in ("--programs", "--dir", "--out"):
            skip = not skip and "=" not in argument
            continue
        kept.append(argument)
    return kept


def heading(name, title, facts):
    """What a page begins with."""
    command = " ".join(["python3", f"bench/{name}", *facts["arguments"]])
    return (
        f"# {title}\n\n"
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB, "
        f"{facts['distribution']}, kernel {facts['kernel']}, "
        f"congestion control {facts['congestion_control']} (entrepot's own: cubic). Commit {facts['commit']}, profile "
        f"{facts['profile']}. Command: `{command}`.\n"
    )


def jsonl(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def write(arguments, facts, files, suffix=None, hide=()):
    """The folder of results. Paths of this machine say nothing to a reader."""
    name = "-".join(filter(None, [datetime.date.today().isoformat(), facts["name"], suffix]))
    out = arguments.out or REPOSITORY / "bench" / "results" / name
    out.mkdir(parents=True, exist_ok=True)
    files["machine.json"] = json.dumps(facts, indent=2) + "\n"
    for file, text in files.items():
        for path, instead in [*hide, (f"{REPOSITORY}/", "")]:
            text = text.replace(str(path), instead)
        (out / file).write_text(text)
    print(files["summary.md"])
    print(f"written to {out}")
