"""Fixtures: a server for each test and a client of it. All processes that a test started are killed at its end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from processes import EXAMPLES, Process, Program, Server

sys.path.insert(0, str(EXAMPLES))

from client import Client  # noqa: E402

P = TypeVar("P", bound=Process)


class Bench:
    """Starts processes, and can kill all that it started."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Process] = []
        self.server = self._keep(Server(folder))
        self.address = self.server.address

    def restart_server(self) -> None:
        """Stops the server and starts it again with the same data and the same address."""
        assert self.server.end() == 0
        self.server = self._keep(Server(self._folder, listen=self.address))

    def worker(self, *arguments: str, program: Path = EXAMPLES / "worker.py") -> Program:
        # One second is the shortest time to live, so a dead worker is noticed soon. A living worker sends three
        # heartbeats in that time.
        return self._keep(Program(program, self.address, "--session-ttl", "1", *arguments))

    def run(self, *command: str | Path) -> Process:
        """Runs any program. Its output includes its errors."""
        return self._keep(Process(*command, stderr=True))

    def subscriber(self, *arguments: str) -> Program:
        return self._keep(Program(EXAMPLES / "subscriber.py", self.address, *arguments))

    def _keep(self, process: P) -> P:
        self._started.append(process)
        return process

    def kill_all(self) -> None:
        for process in reversed(self._started):
            process.kill()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "data")
    try:
        yield bench
    finally:
        bench.kill_all()


@pytest.fixture
def client(bench: Bench) -> Iterator[Client]:
    with Client(bench.address) as client:
        client.register()
        yield client
