"""The other caches that Debian has: Distribution in proxy mode, and Varnish."""

from urllib.parse import urlsplit

from .process import needed, wait_until_open
from .server import Server


class Logged(Server):
    """Started from one file, with a log that is shown when it does not start."""

    def start(self, origin, bodies):
        del bodies  # fetched when they are asked for
        suffix, text = self.configuration = self.configure(origin)
        file = self.directory / f"{self.name}.{suffix}"
        file.write_text(text)
        self.log = open(self.directory / "log", "w")
        options = {"stdout": self.log, "stderr": self.log, "env": {"PATH": "/usr/bin:/bin"}}
        self.start_process([needed(self.program), *self.flags(file)], self.cores, **options)
        wait_until_open(self.port, self.process, self.directory / "log")

    def stop(self):
        super().stop()
        self.log.close()


class Registry(Logged):
    """Debian's docker-registry, which asks upstream again at every GET of a tag."""

    name = "docker-registry"
    program = "docker-registry"

    def flags(self, file):
        return ["serve", file]

    def configure(self, origin):
        return "yml", f"""\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: "{self.directory}/data"}}
  cache: {{blobdescriptor: inmemory}}
http: {{addr: "127.0.0.1:{self.port}"}}
proxy: {{remoteurl: "{origin.url}"}}
"""


class Varnish(Logged):
    """In memory: it keeps nothing over a restart."""

    name = "varnish"
    program = "varnishd"

    def flags(self, file):
        # -j none: its jail would need a directory that other users may read.
        jail = ["-j", "none", "-n", self.directory / "shared-memory"]
        listen = ["-a", f"127.0.0.1:{self.port}", "-T", "none"]
        # Its parent would take the time in which both are stopped for a child that hangs.
        options = ["-p", "timeout_idle=3600", "-p", "ping_interval=0"]
        return ["-F", *jail, *listen, "-f", file, "-s", "malloc,6G", *options]

    def configure(self, origin):
        at = urlsplit(origin.url)
        return "vcl", f"""\
vcl 4.1;
backend default {{ .host = "{at.hostname}"; .port = "{at.port}"; }}
sub vcl_backend_response {{
    set beresp.ttl = 1d;
}}
"""
