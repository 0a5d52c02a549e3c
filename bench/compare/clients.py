"""The clients of a comparison: each measures one URL and answers the same fields."""

import json
import os
import shutil
import subprocess
from pathlib import Path

WRK_SCRIPT = Path(__file__).with_name("wrk.lua")


class Wrk:
    """wrk with one thread. It copies every body into its own buffer of 8 KiB."""

    def __init__(self, programs, core):
        self.core = core
        self.program = shutil.which("wrk")
        if not self.program:
            raise SystemExit("wrk is missing: tools/install-deps bench")

    def measure(self, server, blob, connections, seconds):
        url = server.url(blob)
        # wrk takes whole seconds, and has no warm-up.
        command = [self.program, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
        command += ["--latency", "-s", str(WRK_SCRIPT), url]
        output, cpu_seconds = run_pinned(command, self.core)
        result = json.loads(output.splitlines()[-1])
        took = result["seconds"]
        # Bodies only: servers differ in the length of their heads.
        body_bytes = round(result["bytes"] * blob.size / (blob.size + server.head_len(blob)))
        return {
            "command": " ".join(command),
            "requests": result["requests"],
            "bytes": body_bytes,
            "seconds": took,
            "gb_per_s": body_bytes / took / 1e9,
            "requests_per_s": result["requests"] / took,
            "p50_ms": result["p50_ms"],
            "p99_ms": result["p99_ms"],
            "errors": result["errors"],
            "client_cpu_share": cpu_seconds / took,
        }


class Load:
    """entrepot-load: one thread, bodies discarded inside the kernel."""

    def __init__(self, programs, core):
        self.core = core
        self.program = programs.load

    def measure(self, server, blob, connections, seconds):
        url = server.url(blob)
        command = [str(self.program), "blob", "--url", url, "-c", str(connections)]
        # Without its warm-up, in which the server would use CPU time for bytes not counted.
        command += ["-d", str(seconds), "--json"]
        output, _ = run_pinned(command, self.core)
        result = json.loads(output)
        return {
            "command": " ".join(command),
            "requests": result["requests"],
            "bytes": result["bytes"],
            "seconds": result["seconds"],
            "gb_per_s": result["gb_per_s"],
            "requests_per_s": result["requests_per_s"],
            "p50_ms": result["latency_ms"]["p50"],
            "p99_ms": result["latency_ms"]["p99"],
            "errors": sum(result["errors"].values()),
            "client_cpu_share": result["client_cpu_share"],
        }


BY_NAME = {"wrk": Wrk, "entrepot-load": Load}


def run_pinned(command, core):
    """The output and the CPU seconds of a command on one core."""
    pinned = ["taskset", "-c", str(core), *command]
    process = subprocess.Popen(pinned, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    # entrepot-load ends with 1 when there were errors; they are in its answer.
    if process.returncode not in (0, 1) or not output:
        raise SystemExit(f"{' '.join(pinned)}: ended with {process.returncode}")
    return output, usage.ru_utime + usage.ru_stime
