"""The server and the programs of examples/python-stubs as processes whose output can be awaited line by line."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "python-stubs"
SERVER = ROOT / os.environ.get("RECOUP_TEST_SERVER", "target/debug/recoup")

#: The longest wait for anything, in seconds. Only a failing test waits this long.
LIMIT_S = 30.0


class Process:
    """A process whose output is read line by line while it runs. `stderr` says whether that includes its errors."""

    def __init__(self, *command: str | Path, stderr: bool = False) -> None:
        self.name = Path(command[0]).name if command[0] != sys.executable else Path(command[1]).name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if stderr else None,
            text=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self) -> str:
        """Returns the next line. Fails if none is printed within the limit or before the process ends."""
        try:
            line = self._lines.get(timeout=LIMIT_S)
        except queue.Empty:
            raise AssertionError(f"{self.name} printed nothing for {LIMIT_S} s") from None
        assert line is not None, f"{self.name} ended with {self._process.wait(LIMIT_S)}"
        return line

    def rest(self) -> list[str]:
        """Returns the remaining lines up to the end of the process, which must end."""
        lines = []
        while (line := self._lines.get(timeout=LIMIT_S)) is not None:
            lines.append(line)
        return lines

    def end(self) -> int:
        """Sends SIGTERM, waits for the process to end, and returns its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def poll(self) -> int | None:
        """Returns the exit code. None if the process is still running."""
        return self._process.poll()

    def wait(self) -> int:
        return self._process.wait(LIMIT_S)

    def kill(self) -> None:
        """Kills the process with SIGKILL."""
        self._process.kill()
        self._process.wait(LIMIT_S)


class Program(Process):
    """worker.py or subscriber.py, which print JSON lines."""

    def __init__(self, script: Path, address: str, *arguments: str) -> None:
        super().__init__(sys.executable, script, "--address", address, *arguments)

    def until(self, is_last: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Returns the next lines up to the first for which `is_last` holds."""
        lines = []
        end_at = time.monotonic() + LIMIT_S
        while not lines or not is_last(lines[-1]):
            assert time.monotonic() < end_at, f"{self.name} printed for {LIMIT_S} s, but not what was awaited: {lines}"
            lines.append(json.loads(self.line()))
        return lines


class Server(Process):
    """A server with an embedded database in `folder`."""

    def __init__(self, folder: Path, listen: str = "127.0.0.1:0") -> None:
        super().__init__(SERVER, "serve", "--listen", listen, "--data-dir", folder)
        self.address = self.line().removeprefix("recoup listens on http://")
