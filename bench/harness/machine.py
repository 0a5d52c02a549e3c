"""What a reader must know about the machine and the programs; nothing that names its owner."""

import os
import platform
import re
import subprocess
from pathlib import Path

from .process import program

# Free memory of at least this order goes back to the host of a virtual machine, and costs time when
# it is used again; above 10 none does.
PAGE_REPORTING = Path("/sys/module/page_reporting/parameters/page_reporting_order")

# How programs of other makers tell theirs.
VERSION_FLAGS = {"nginx": "-v", "docker-registry": "--version", "varnishd": "-V", "wrk": "-v"}

# Of all servers but entrepot, which chooses for itself, and of the clients.
CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")


def facts(repository, programs, profile):
    model = processor()
    cores = os.cpu_count()
    return {
        "name": f"{cores}core-{slug(model)}",
        "processor": model,
        "cores": cores,
        "memory_gib": round(memory_kib() / (1 << 20), 1),
        "kernel": re.match(r"[\d.]+", platform.release()).group(),
        "congestion_control": CONGESTION_CONTROL.read_text().strip(),
        "page_reporting_order": PAGE_REPORTING.read_text().strip() if PAGE_REPORTING.exists() else None,
        "distribution": distribution(),
        "load_average": os.getloadavg(),
        "commit": output(["git", "-C", str(repository), "describe", "--always", "--dirty"]),
        "profile": profile,
        "rustc": output(["rustc", "--version"]),
        "entrepot": output([str(programs.entrepot), "--version"]),
    }


def versions():
    """Of those that are installed."""
    found = {name: program(name) for name in VERSION_FLAGS}
    return {
        name: output([path, VERSION_FLAGS[name]]).split(" Copyright")[0]
        for name, path in found.items()
        if path
    }


def processor():
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return found.group(1).strip() if found else platform.machine()


def memory_kib():
    return int(re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.M).group(1))


def distribution():
    found = re.search(r'^PRETTY_NAME="(.+)"$', Path("/etc/os-release").read_text(), re.M)
    return found.group(1) if found else "unknown"


def slug(text):
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", text.lower())).strip("-")


def output(command):
    """The first line, from wherever the program prints its version."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "missing"
    lines = (ran.stdout + ran.stderr).strip().splitlines()
    return lines[0] if lines else ""
