"""What the scenarios stand on: the origin, servers that are started for them, their order."""

import shutil
import time
from contextlib import contextmanager

from harness.clients import Load
from harness.entrepot import Entrepot
from harness.nginx import Nginx, NginxAio, NginxProxy, NginxSendfile
from harness.peers import Registry, Varnish
from harness.run import CLIENT_CORE, SERVER_CORE

SERVERS = {
    server.name: server
    for server in [Nginx, NginxProxy, NginxSendfile, Registry, Varnish, Entrepot, NginxAio]
}

# How long a server may go on after its clients have left, and when it counts as idle.
REST_SECONDS_MAX = 5
REST_STEP_S = 0.02
IDLE_SHARE = 0.1


class Bench:
    def __init__(self, arguments, programs, directory, origin):
        self.arguments = arguments
        self.programs = programs
        self.directory = directory
        self.origin = origin
        self.load = Load(programs, CLIENT_CORE)
        # Of every server that was started: how.
        self.configurations, self.commands = {}, {}
        self.counters = {}

    @contextmanager
    def serving(self, servers, bodies=(), cores=SERVER_CORE):
        """Runs `servers`, each made by a function of (programs, folder, cores); then removes what
        they left."""
        folder = self.directory / "servers"
        folder.mkdir()
        started = []
        try:
            for make in servers:
                server = make(self.programs, folder, cores)
                server.start(self.origin, bodies)
                started.append(server)
                self.configurations.setdefault(server.name, server.configuration)
                self.commands.setdefault(server.name, " ".join(server.command))
            yield started
        finally:
            for server in started:
                server.stop()
            shutil.rmtree(folder)

    def chosen(self):
        return [SERVERS[name] for name in self.arguments.servers]


def settle(servers, bodies):
    """Every one holds the bodies, and stands still until it is its turn."""
    for server in servers:
        server.settle(bodies)
        server.freeze()


@contextmanager
def alone(server):
    """The others stand still, and this one afterwards, when it has done what was left to do."""
    server.go_on()
    try:
        yield
        rest(server)
    finally:
        server.freeze()


def rest(server):
    """Until it is idle: some go on with requests whose clients have left."""
    deadline = time.monotonic() + REST_SECONDS_MAX
    while time.monotonic() < deadline:
        before = server.cpu_seconds()
        time.sleep(REST_STEP_S)
        if server.cpu_seconds() - before < REST_STEP_S * IDLE_SHARE:
            return


def in_turn(servers, turn):
    """Each goes first as often as the others."""
    shift = turn % len(servers)
    return servers[shift:] + servers[:shift]
