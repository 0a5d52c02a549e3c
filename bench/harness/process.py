"""A program on one core: its start, its CPU time and memory, and its end."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

START_SECONDS_MAX = 30
STOP_SECONDS_MAX = 30
# CPUCLOCK_SCHED of linux/posix-timers.h: the scheduler's time of a whole process.
CLOCK_OF_PROCESS = 2


class Process:
    def start_process(self, command, cores, **options):
        self.command = [str(part) for part in command]
        pinned = ["taskset", "-c", str(cores), *self.command]
        self.process = subprocess.Popen(pinned, **options)

    def pids(self):
        """The process and its children: nginx and Varnish serve from a child."""
        return [self.process.pid, *children(self.process.pid)]

    def cpu_seconds(self):
        """In nanoseconds from the scheduler, with threads that have ended."""
        return sum(time.clock_gettime((~pid << 3) | CLOCK_OF_PROCESS) for pid in self.pids())

    def rss_mib(self):
        return sum(self.status_kib(pid, "VmRSS") for pid in self.pids()) / 1024

    def peak_rss_mib(self):
        return sum(self.status_kib(pid, "VmHWM") for pid in self.pids()) / 1024

    def status_kib(self, pid, name):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
        return 0  # a child that has just ended

    def disk_read_bytes(self):
        """Bytes that the process had read from disk, not from the page cache."""
        total = 0
        for pid in self.pids():
            lines = Path(f"/proc/{pid}/io").read_text().splitlines()
            total += int(dict(line.split(": ") for line in lines)["read_bytes"])
        return total

    def freeze(self):
        """It does nothing any more, not even what it had left to do, until it goes on."""
        for pid in self.pids():
            os.kill(pid, signal.SIGSTOP)

    def go_on(self):
        for pid in self.pids():
            os.kill(pid, signal.SIGCONT)

    def stop(self):
        if self.process.poll() is None:
            self.go_on()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def program(name):
    """Its path, or `None`. Debian puts some where only root's PATH looks."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin")


def needed(name):
    found = program(name)
    if not found:
        raise SystemExit(f"{name} is missing: tools/install-deps bench")
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
