"""The clients: each measures one URL and answers the same fields."""

import json
from pathlib import Path

from .process import needed, run_pinned

WRK_SCRIPT = Path(__file__).with_name("wrk.lua")
PATHS_SCRIPT = WRK_SCRIPT.with_name("paths.lua")


class Wrk:
    """wrk with one thread. It copies every body into its own buffer of 8 KiB."""

    name = "wrk"

    def __init__(self, programs, core):
        del programs
        self.core = core
        self.program = needed("wrk")

    def measure(self, server, body, connections, seconds, paths=None):
        """`paths`: a file of paths that are asked for in turn; `body` is one of them."""
        # wrk takes whole seconds, and has no warm-up.
        command = [self.program, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
        command += ["-H", f"Accept: {body.accept}"] if body.accept else []
        script = [str(PATHS_SCRIPT), server.url(body), "--", str(paths)]
        command += ["--latency", "-s", *(script if paths else [str(WRK_SCRIPT), server.url(body)])]
        output, cpu_seconds = run_pinned(command, self.core)
        result = json.loads(output.splitlines()[-1])
        took = result["seconds"]
        # Bodies only: servers differ in the length of their heads.
        body_bytes = round(result["bytes"] * body.size / (body.size + server.head_len(body)))
        return {
            "command": " ".join(command),
            "requests": result["requests"],
            "bytes": body_bytes,
            "seconds": took,
            "gb_per_s": body_bytes / took / 1e9,
            "requests_per_s": result["requests"] / took,
            "latency_ms": result["latency_ms"],
            "errors": result["errors"],
            "client_cpu_share": cpu_seconds / took,
        }


class Load:
    """entrepot-load: one thread, bodies discarded inside the kernel."""

    name = "entrepot-load"

    def __init__(self, programs, core):
        self.core = core
        self.program = programs.load

    def measure(self, server, body, connections, seconds, head=False):
        # Without its warm-up, in which the server would use CPU time for bytes not counted.
        how = ["-d", str(seconds), *(["--head"] if head else [])]
        return self.run(server.url(body), body, connections, how)

    def once_each(self, url, body, connections):
        """One request for each connection, all at once."""
        return self.run(url, body, connections, ["-n", str(connections), "--timeout", "120"])

    def run(self, url, body, connections, how):
        command = [str(self.program), "blob", "--url", url, "-c", str(connections), *how]
        command += ["--accept", body.accept] if body.accept else []
        output, _ = run_pinned([*command, "--json"], self.core)
        result = json.loads(output)
        kept = ["requests", "bytes", "seconds", "gb_per_s", "requests_per_s", "latency_ms"]
        kept += ["first_byte_ms", "client_cpu_share"]
        return {
            "command": " ".join(command),
            **{name: result[name] for name in kept},
            "errors": sum(result["errors"].values()),
        }


BY_NAME = {client.name: client for client in [Wrk, Load]}
