"""What every server under test can do."""

import hashlib
import socket
import urllib.request

from .process import Process, free_port


class Server(Process):
    # Of another maker, looked for on this machine.
    program = None
    # Whether it fetches what it does not have.
    caches = True

    def __init__(self, programs, directory, cores, name=None):
        self.name = name or self.name
        self.programs = programs
        self.directory = directory / self.name
        self.directory.mkdir()
        self.cores = cores
        self.port = free_port()

    def url(self, body):
        return f"http://127.0.0.1:{self.port}{body.path}"

    def ask(self, body):
        accept = {"Accept": body.accept} if body.accept else {}
        return urllib.request.urlopen(urllib.request.Request(self.url(body), headers=accept))

    def pull(self, body):
        with self.ask(body) as answer:
            while answer.read(1 << 20):
                pass

    def check(self, bodies):
        """Every body once, whole and right; this also warms the page cache."""
        for body in bodies:
            with self.ask(body) as answer:
                hasher = hashlib.sha256()
                while piece := answer.read(1 << 20):
                    hasher.update(piece)
            if f"sha256:{hasher.hexdigest()}" != body.digest:
                raise SystemExit(f"{self.name}: wrong bytes of {body.name}")

    def settle(self, bodies):
        """Every body is held as it will be while it is measured."""
        self.check(bodies)

    def head_len(self, body):
        """Bytes of the response head, which wrk counts as transferred."""
        accept = f"Accept: {body.accept}\r\n" if body.accept else ""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            host = f"Host: 127.0.0.1:{self.port}"
            connection.sendall(f"HEAD {body.path} HTTP/1.1\r\n{host}\r\n{accept}\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                piece = connection.recv(65536)
                if not piece:
                    raise SystemExit(f"{self.name}: no answer to HEAD")
                head += piece
            return len(head)

    def counters(self):
        return {}
