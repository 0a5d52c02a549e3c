"""Plain keep-alive connections of our own, where a client must do what no tool does."""

import os
import selectors
import socket
import time
from urllib.parse import urlsplit

READ = 1 << 20


class Connection:
    def __init__(self, url):
        at = urlsplit(url)
        self.host = at.netloc
        self.socket = socket.create_connection((at.hostname, at.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, path, method="GET"):
        self.socket.sendall(f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode())

    def read_head(self):
        """Length of the body, and what came of it already."""
        received = b""
        while not (split := self.split(received)):
            piece = self.socket.recv(65536)
            if not piece:
                raise SystemExit(f"{self.host}: closed before an answer")
            received += piece
        return split

    def split(self, received):
        """`None` until the head is complete."""
        head, end, body = received.partition(b"\r\n\r\n")
        if not end:
            return None
        if not head.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"{self.host}: {head.decode()}")
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        return length, body

    def get(self, path, hasher=None):
        """Seconds to the first byte of the body, and to the last."""
        started = time.perf_counter()
        self.ask(path)
        length, body = self.read_head()
        buffer = memoryview(bytearray(READ))
        if not body and length:
            count = self.socket.recv_into(buffer)
            body = bytes(buffer[:count])
        first = time.perf_counter() - started
        if hasher:
            hasher.update(body)
        taken = len(body)
        while taken < length:
            count = self.socket.recv_into(buffer)
            if not count:
                raise SystemExit(f"{self.host}: {path} is cut short")
            if hasher:
                hasher.update(buffer[:count])
            taken += count
        return first, time.perf_counter() - started

    def close(self):
        self.socket.close()


class Puller(Connection):
    """Takes paths from a list that several share, and what comes as it comes."""

    def __init__(self, url, paths):
        super().__init__(url)
        self.paths = paths
        self.taken = 0
        self.buffer = bytearray(READ)
        self.begin()

    def begin(self):
        """Whether there was a path left."""
        if not self.paths:
            return False
        # Of the body, once the head is complete.
        self.left, self.head = None, b""
        self.ask(self.paths.pop())
        return True

    def advance(self):
        """Reads once. Whether there is more to come."""
        want = 65536 if self.left is None else min(self.left, READ)
        flags = 0 if self.left is None else socket.MSG_TRUNC
        count = self.socket.recv_into(self.buffer, want, flags)
        if not count:
            raise SystemExit(f"{self.host}: a body is cut short")
        if self.left is not None:
            self.left -= count
            self.taken += count
        else:
            self.head += self.buffer[:count]
            if split := self.split(self.head):
                length, body = split
                self.left = length - len(body)
                self.taken += len(body)
        return self.left != 0 or self.begin()


def pull_all(url, paths, connections, core):
    """Every path once, so many at a time, bodies discarded in the kernel. Their bytes."""
    os.sched_setaffinity(0, {core})
    paths = list(reversed(paths))
    pullers = [Puller(url, paths) for _ in range(min(connections, len(paths)))]
    with selectors.DefaultSelector() as selector:
        for puller in pullers:
            selector.register(puller.socket, selectors.EVENT_READ, puller)
        while selector.get_map():
            for key, _ in selector.select():
                if not key.data.advance():
                    selector.unregister(key.fileobj)
                    key.data.close()
    return sum(puller.taken for puller in pullers)
