"""Runs the tools that build programs in other languages. What they download and compile is kept in `.tests`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from processes import ROOT

#: The longest wait for a command that may download modules or compile, in seconds.
BUILD_LIMIT_S = 900.0


def state() -> Path:
    """Returns the folder in which files of the tests are kept between runs."""
    return (ROOT / os.environ.get("RECOUP_TESTS_STATE", ".tests")).resolve()


def build(*command: str, folder: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Runs a command, which must succeed, in a folder."""
    ran = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_LIMIT_S,
    )
    assert ran.returncode == 0, f"{' '.join(command)}\n{ran.stdout}"


def go_environment() -> dict[str, str]:
    """Returns the variables for commands of Go. Skips the test if Go is not installed."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    go = state() / "go"
    return os.environ | {
        "GOPATH": str(go),
        "GOCACHE": str(go / "cache"),
        "GOFLAGS": "-modcacherw " + os.environ.get("GOFLAGS", ""),
        "PATH": f"{go / 'bin'}:{os.environ['PATH']}",
        # Has protoc.
        "PYTHON": sys.executable,
    }
