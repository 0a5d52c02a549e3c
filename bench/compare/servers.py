"""The processes of a comparison: the origin of the bytes, and the servers under test."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

START_SECONDS_MAX = 30
STOP_SECONDS_MAX = 30
# Cached bodies are to be durable before anything is measured.
COMMIT_SECONDS_MAX = 60
PROJECT = "bench"


class Programs:
    """Where the programs of one cargo profile are."""

    def __init__(self, directory):
        self.entrepot = directory / "entrepot"
        self.origin = directory / "entrepot-origin"
        self.load = directory / "entrepot-load"


@dataclass(frozen=True)
class Blob:
    name: str
    size: int
    digest: str
    repository: str

    @property
    def path(self):
        """The same for every server, so that none has a longer request to read."""
        return f"/v2/{PROJECT}/{self.repository}/blobs/{self.digest}"


class Process:
    """A server on one core, its CPU time, and its end."""

    def start_process(self, command, core, **options):
        self.command = [str(part) for part in command]
        self.process = subprocess.Popen(["taskset", "-c", str(core), *self.command], **options)

    def cpu_seconds(self):
        """Of all threads of the process and its children, from the scheduler: nanoseconds."""
        total = 0
        for pid in [self.process.pid, *children(self.process.pid)]:
            for task in Path(f"/proc/{pid}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Origin(Process):
    """`entrepot-origin`: makes the bytes, and is the upstream of the cache."""

    def __init__(self, programs, core):
        self.programs = programs
        self.core = core

    def __enter__(self):
        self.start_process([self.programs.origin], self.core, stdout=subprocess.PIPE, text=True)
        urls = {}
        for line in self.process.stdout:
            if line == "ready\n":
                break
            name, url = line.split()
            urls[name] = url
        self.url, self.control = urls["listening"], urls["control"]
        return self

    def __exit__(self, *_):
        self.stop()

    def put_blob(self, name, size):
        repository = f"blob-{name.lower()}"
        asked = {"repositories": [repository], "size": size, "seed": size}
        body = json.dumps(asked).encode()
        request = urllib.request.Request(f"{self.control}/_origin/blobs", body, method="POST")
        with urllib.request.urlopen(request) as answer:
            return Blob(name, size, json.load(answer)["digest"], repository)

    def open(self, blob):
        return urllib.request.urlopen(f"{self.url}/v2/{blob.repository}/blobs/{blob.digest}")


class Server(Process):
    """What both servers under test can do."""

    def __init__(self, programs, directory, core):
        self.programs = programs
        self.directory = directory / self.name
        self.directory.mkdir()
        self.core = core
        self.port = free_port()

    def url(self, blob):
        return f"http://127.0.0.1:{self.port}{blob.path}"

    def check(self, blobs):
        """Every blob once, whole and right; this also warms the page cache."""
        for blob in blobs:
            with urllib.request.urlopen(self.url(blob)) as answer:
                hasher = hashlib.sha256()
                while piece := answer.read(1 << 20):
                    hasher.update(piece)
            if f"sha256:{hasher.hexdigest()}" != blob.digest:
                raise SystemExit(f"{self.name}: wrong bytes of {blob.name}")

    def head_len(self, blob):
        """Bytes of the response head, which wrk counts as transferred."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            host = f"Host: 127.0.0.1:{self.port}"
            connection.sendall(f"HEAD {blob.path} HTTP/1.1\r\n{host}\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                piece = connection.recv(65536)
                if not piece:
                    raise SystemExit(f"{self.name}: no answer to HEAD")
                head += piece
            return len(head)

    def counters(self):
        return {}


class Nginx(Server):
    """nginx at its best for this: one worker, sendfile, no tcp_nopush, files held open."""

    name = "nginx"

    def start(self, origin, blobs):
        for blob in blobs:
            file = self.directory / "root" / blob.path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            with origin.open(blob) as answer, open(file, "wb") as out:
                shutil.copyfileobj(answer, out, 1 << 20)
        self.configuration = ("conf", self.write_configuration())
        # -e: otherwise nginx opens Debian's log before it reads the configuration.
        arguments = ["-p", self.directory, "-e", self.directory / "error.log"]
        command = [nginx_program(), *arguments, "-c", self.directory / "nginx.conf"]
        self.start_process(command, self.core)
        wait_until_open(self.port, self.process)

    def write_configuration(self):
        directory = self.directory
        user = "user root;" if os.geteuid() == 0 else ""
        text = f"""\
daemon off;
worker_processes 1;
{user}
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{
    worker_connections 4096;
}}
http {{
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush off;     # on, it delays the last packet of every body by 40 ms
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    open_file_cache max=1000 inactive=1h;
    open_file_cache_valid 1h;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{self.port} backlog=4096;
        root {directory}/root;
    }}
}}
"""
        (directory / "nginx.conf").write_text(text)
        return text


class Entrepot(Server):
    """The cache with one shard, holding every blob."""

    name = "entrepot"

    def start(self, origin, blobs):
        self.admin = free_port()
        text = f"""\
listen = ["127.0.0.1:{self.port}"]
admin = "127.0.0.1:{self.admin}"

[store]
paths = ["{self.directory}/store"]
capacity = "8GiB"

[project.{PROJECT}]

[[project.{PROJECT}.upstream]]
url = "{origin.url}"
"""
        file = self.directory / "entrepot.toml"
        file.write_text(text)
        self.configuration = ("toml", text)
        self.log = open(self.directory / "log", "w")
        command = [self.programs.entrepot, "serve", "--config", file, "--shards", "1"]
        command += ["--set", "log.level=warn"]
        self.start_process(command, self.core, stderr=self.log)
        wait_until_open(self.port, self.process, self.directory / "log")

    def check(self, blobs):
        super().check(blobs)
        deadline = time.monotonic() + COMMIT_SECONDS_MAX
        while self.metric("entrepot_store_uncommitted_bytes") > 0:
            if time.monotonic() > deadline:
                raise SystemExit("entrepot: bodies were not committed in time")
            time.sleep(0.1)
        super().check(blobs)
        self.before = self.metrics()

    def metrics(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def metric(self, name):
        return self.metrics()[name]

    def counters(self):
        """What the server counted while it was measured: hits, bytes by sendfile, messages."""
        after = self.metrics()
        grown = {name: value - self.before.get(name, 0) for name, value in after.items()}
        return {name: by for name, by in grown.items() if by and name.split("{")[0].endswith("_total")}

    def stop(self):
        super().stop()
        self.log.close()


BY_NAME = {"nginx": Nginx, "entrepot": Entrepot}


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def nginx_program():
    # Debian puts it where only root's PATH looks.
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if not found:
        raise SystemExit("nginx is missing: tools/install-deps bench")
    return found


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until_open(port, process, log=None):
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            said = log.read_text() if log else ""
            if process.poll() is not None:
                raise SystemExit(f"{process.args}: ended with {process.returncode}\n{said}")
            if time.monotonic() > deadline:
                raise SystemExit(f"{process.args}: does not listen\n{said}")
            time.sleep(0.05)
