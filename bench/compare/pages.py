"""Bodies that are on disk only: how fast they come, and what they do to those who are served."""

import multiprocessing
import os
import re
import subprocess
import sys
import time

from bench import SERVERS, alone, in_turn, settle
from harness.connection import Connection, pull_all
from harness.histogram import Histogram, pooled
from harness.page import divided, middle, paired, pick, spread, table, unique
from harness.process import program
from harness.run import CLIENT_CORE

NAMES = ["nginx-aio", "entrepot"]
CONNECTIONS = 16
# Between two questions of the prober.
PROBE_PAUSE_S = 0.0005
ATTACH_SECONDS_MAX = 10
TOOK = re.compile(r"<(\d+\.\d+)>$")


def run(bench):
    arguments = bench.arguments
    count, size = arguments.pages_count, arguments.pages_mib << 20
    bodies = [
        bench.origin.put_blob("cold page", size, seed=size + number, repository="pages")
        for number in range(count)
    ]
    hot = bench.origin.put_blob("4KiB", 4 << 10)
    with bench.serving([SERVERS[name] for name in NAMES], [*bodies, hot]) as servers:
        settle(servers, [*bodies, hot])
        for turn in range(arguments.rounds):
            for server in in_turn(servers, turn):
                record = {"scenario": "cold-pages", "round": turn, "server": server.name}
                with alone(server):
                    record |= measure(server, bodies, hot)
                print(line(record), file=sys.stderr)
                yield record
        if program("strace"):
            for server in servers:
                with alone(server):
                    record = traced(bench, server, bodies, hot)
                yield record


def evict(server):
    """Out of the page cache with everything that the server has on disk."""
    for file in server.directory.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(server, bodies, hot):
    evict(server)
    # What all ask for stays in memory.
    server.pull(hot)
    read, cpu = server.disk_read_bytes(), server.cpu_seconds()
    taken, seconds, waits = pull_beside_probe(server, bodies, hot)
    return {
        "bytes": taken,
        "seconds": seconds,
        "gb_per_s": taken / seconds / 1e9,
        "from_disk": (server.disk_read_bytes() - read) / taken,
        "server_cpu_s": server.cpu_seconds() - cpu,
        "waits_ms": waits.json(),
    }


def pull_beside_probe(server, bodies, hot):
    """Another process pulls; here a hot body is asked for again and again until it is done."""
    url = f"http://127.0.0.1:{server.port}"
    context = multiprocessing.get_context("fork")
    done, told = context.Pipe(duplex=False)
    arguments = (told, url, [body.path for body in bodies])
    puller = context.Process(target=pull_and_tell, args=arguments)
    probe, waits = Connection(url), Histogram()
    os.sched_setaffinity(0, {CLIENT_CORE})
    puller.start()
    while not done.poll() and puller.is_alive():
        _, whole = probe.get(hot.path)
        waits.add(whole * 1e3)
        time.sleep(PROBE_PAUSE_S)
    puller.join()
    os.sched_setaffinity(0, range(os.cpu_count()))
    probe.close()
    if puller.exitcode:
        raise SystemExit(f"{server.name}: the puller ended with {puller.exitcode}")
    taken, seconds = done.recv()
    return taken, seconds, waits


def pull_and_tell(told, url, paths):
    started = time.perf_counter()
    taken = pull_all(url, paths, CONNECTIONS, CLIENT_CORE)
    told.send((taken, time.perf_counter() - started))


def traced(bench, server, bodies, hot):
    """How long the server was inside `sendfile`; strace slows it, so nothing else is read off."""
    evict(server)
    server.pull(hot)
    file = bench.directory / f"strace-{server.name}"
    pids = [part for pid in server.pids() for part in ("-p", str(pid))]
    command = ["strace", "-f", "-T", "-e", "trace=sendfile", "-o", str(file), *pids]
    strace = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until_traced(server, strace)
    pull_beside_probe(server, bodies, hot)
    strace.terminate()
    strace.wait()
    times = Histogram()
    for text in file.read_text().splitlines():
        if "sendfile" in text and (took := TOOK.search(text)):
            times.add(float(took[1]) * 1e3)
    return {"scenario": "cold-pages-traced", "server": server.name, "sendfile_ms": times.json()}


def wait_until_traced(server, strace):
    deadline = time.monotonic() + ATTACH_SECONDS_MAX
    tracers = lambda: [server.status_kib(pid, "TracerPid") for pid in server.pids()]
    while not all(tracers()):
        if strace.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("strace may not attach: sysctl kernel.yama.ptrace_scope")
        time.sleep(0.05)


def line(record):
    waits = Histogram(record["waits_ms"])
    return (
        f"round {record['round']:2} {record['server']:15} cold pages "
        f"{record['gb_per_s']:6.3f} GB/s, {record['from_disk']:4.0%} from disk, "
        f"hot p99.9 {waits.at(99.9) or 0:.3f} ms of {waits.count()}"
    )


def throughput(records):
    """entrepot's over that of nginx with aio, for each round."""
    pages = pick(records, scenario="cold-pages")
    faster = lambda one, other: divided(one["gb_per_s"], other["gb_per_s"])
    return paired(pick(pages, server="entrepot"), pick(pages, server="nginx-aio"), faster)


def in_sendfile(records, server):
    traces = pick(records, scenario="cold-pages-traced", server=server)
    return pooled(Histogram(trace["sendfile_ms"]) for trace in traces)


def section(records):
    pages = pick(records, scenario="cold-pages")
    lines = []
    for server in unique(record["server"] for record in pages):
        runs = pick(pages, server=server)
        waits = pooled(Histogram(run["waits_ms"]) for run in runs)
        inside = in_sendfile(records, server)
        lines.append([
            server,
            spread([run["gb_per_s"] for run in runs], "{:.3f}"),
            middle([run["from_disk"] for run in runs], "{:.0%}"),
            middle([run["server_cpu_s"] / (run["bytes"] / 1e9) for run in runs], "{:.3f}"),
            *[f"{waits.at(at):.3f}" if waits.count() else "-" for at in (50, 99, 99.9, 100)],
            *[f"{inside.at(at):.3f}" if inside.count() else "-" for at in (99.9, 100)],
        ])
    header = ["server", "GB/s", "from disk", "CPU s/GB", "hot p50 ms", "p99", "p99.9", "max"]
    header += ["in sendfile p99.9 ms", "max"]
    return (
        "## Evicted from the page cache\n\n"
        f"{table(header, lines)}\n"
        f"Bodies pulled once each on {CONNECTIONS} connections after all files of the server were "
        "dropped from the page cache; `hot`: how long a body of 4 KiB that is in memory took "
        "meanwhile, on a connection of its own, over all rounds; the prober shares its core with "
        "the puller. Time inside `sendfile` by strace, in a pass of its own; nginx waits in there "
        f"on threads. Throughput over nginx's: {spread(throughput(records), '{:.2f}')}.\n"
    )
