"""entrepot, on one shard unless a scenario says otherwise."""

import time
import urllib.request

from .origin import PROJECT
from .process import free_port, wait_until_open
from .server import Server

# Cached bodies are to be durable before anything is measured.
COMMIT_SECONDS_MAX = 60


class Entrepot(Server):
    name = "entrepot"
    capacity = "8GiB"
    # Further keys of the section [store].
    store = ""
    shards = 1

    def start(self, origin, bodies):
        del bodies  # fetched when they are asked for
        self.admin = free_port()
        text = f"""\
listen = ["127.0.0.1:{self.port}"]
admin = "127.0.0.1:{self.admin}"

[limits]
idle_timeout = "1h"

[store]
paths = ["{self.directory}/store"]
capacity = "{self.capacity}"
{self.store}

[project.{PROJECT}]
freshness = [{{ for = "1h" }}]

[[project.{PROJECT}.upstream]]
url = "{origin.url}"
"""
        self.file = self.directory / "entrepot.toml"
        self.file.write_text(text)
        self.configuration = ("toml", text)
        self.log = open(self.directory / "log", "w")
        command = [self.programs.entrepot, "serve", "--config", self.file]
        command += ["--shards", str(self.shards)]
        command += ["--set", "log.level=warn"]
        self.start_process(command, self.cores, stderr=self.log)
        wait_until_open(self.port, self.process, self.directory / "log")

    def settle(self, bodies):
        self.check(bodies)
        self.wait_for_commit()
        self.check(bodies)
        self.before = self.metrics()

    def wait_for_commit(self):
        deadline = time.monotonic() + COMMIT_SECONDS_MAX
        while self.metrics()["entrepot_store_uncommitted_bytes"] > 0:
            if time.monotonic() > deadline:
                raise SystemExit("entrepot: bodies were not committed in time")
            time.sleep(0.1)

    def metrics(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def counters(self):
        """What the server counted while it was measured: hits, bytes by sendfile, messages."""
        after = self.metrics()
        grown = {name: value - self.before.get(name, 0) for name, value in after.items()}
        return {name: by for name, by in grown.items() if by and name.split("{")[0].endswith("_total")}

    def stop(self):
        super().stop()
        self.log.close()
