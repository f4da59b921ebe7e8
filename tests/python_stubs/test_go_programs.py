"""Builds the worker and the subscriber that the page on clients prints in Go, and runs them. Skipped without Go."""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from build_tools import build, go_environment
from conftest import Bench
from processes import LIMIT_S, ROOT, Process
from test_pages import FAILED, Shell, blocks, last_id

# These modules are on the path once `conftest` is loaded.
from recoup.v1 import failure_event_pb2, failure_service_pb2, failure_service_pb2_grpc
from recoup.v1 import error_reason_pb2 as reasons

#: The address in the printed programs.
ADDRESS = "127.0.0.1:7430"
PLUGINS = (
    "google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12",
    "google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2",
)
GRPC = "google.golang.org/grpc@v1.85.0"


class Shop:
    """The module `example.com/shop` of the page, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = go_environment()
        self._run("go", "mod", "init", "example.com/shop")
        for plugin in PLUGINS:
            self._run("go", "install", plugin)
        (folder / "gen").mkdir()
        protos = ROOT / "proto"
        files = sorted(str(file) for file in (protos / "recoup" / "v1").glob("*.proto"))
        out = [f"--go_out={folder / 'gen'}", f"--go-grpc_out={folder / 'gen'}"]
        self._run(sys.executable, "-m", "grpc_tools.protoc", "-I", str(protos), *out, *files)
        self._sources = blocks("docs/clients.md", "go")
        for name, source in zip(("worker", "subscriber"), self._sources, strict=True):
            self._write(name, source)
        self._run("go", "get", GRPC)
        self._run("go", "mod", "tidy")

    def program(self, name: str, address: str) -> Path:
        """Builds a program of the page so that it calls a server. Returns its path."""
        source = self._sources[("worker", "subscriber").index(name)]
        assert source.count(ADDRESS) == 1
        self._write(name, source.replace(ADDRESS, address))
        self._run("go", "vet", f"./cmd/{name}")
        binary = self._folder / f"{name}-{address.rpartition(':')[2]}"
        self._run("go", "build", "-o", str(binary), f"./cmd/{name}")
        return binary

    def _write(self, name: str, source: str) -> None:
        file = self._folder / "cmd" / name / "main.go"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)

    def _run(self, *command: str) -> None:
        build(*command, folder=self._folder, environment=self._environment)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def run() -> Iterator[Callable[[Path], Process]]:
    """Runs programs, and kills them at the end."""
    started: list[Process] = []

    def start(binary: Path) -> Process:
        started.append(Process(binary, stderr=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def until(process: Process, text: str) -> list[str]:
    """Returns the next lines up to the first that contains a text."""
    lines = [process.line()]
    while text not in lines[-1]:
        lines.append(process.line())
    return lines


def test_printed_go_programs_serve_the_workflow_of_the_readme(
    bench: Bench, tmp_path: Path, shop: Shop, run: Callable[[Path], Process]
) -> None:
    (tmp_path / "signup.yaml").write_text(blocks("README.md", "yaml")[0])
    register, start = (block for block in blocks("README.md", "sh") if "recoup " in block and "signup" in block)
    shell = Shell(tmp_path, bench.address)
    assert [code for _, code in shell.run(register)] == [0, 0]
    # The program makes the same call, which then changes nothing. Here it is made before the failure.
    [(created, code)] = shell.run("recoup failures subscribe shop-alerts")
    assert code == 0, created
    run(shop.program("worker", bench.address))

    *first, show = start.splitlines()
    (_, succeeded), (failed, code), _ = shell.run("\n".join(first))
    assert (succeeded, code) == (0, FAILED)
    [(shown, _)] = shell.run(show, ID=last_id(failed))
    assert "nowhere is not an address (on shop-go)" in shown
    assert "undone by shop-go" in shown

    subscriber = run(shop.program("subscriber", bench.address))
    told = until(subscriber, "FAILURE_KIND_EXECUTION_FAILED: signup")
    assert any("FAILURE_KIND_ATTEMPT_FAILED: signup welcome" in line for line in told), told
    # Both programs outlive a restart of the server.
    bench.restart_server()
    assert shell.run("\n".join(first))[1][1] == FAILED
    again = until(subscriber, "FAILURE_KIND_EXECUTION_FAILED: signup")
    assert any("the stream ended" in line for line in again), again


class Feed(failure_service_pb2_grpc.FailureServiceServicer):
    """A feed of two events that refuses the first acknowledgement as too late."""

    def __init__(self) -> None:
        self.acknowledged: list[str] = []
        self._answered: queue.Queue[str] = queue.Queue()

    def CreateSubscription(self, request, context):  # noqa: N802
        return failure_service_pb2.CreateSubscriptionResponse(subscription=request.subscription)

    def SubscribeFailures(self, request, context):  # noqa: N802
        for token, event_id in ("early", "event-1"), ("late", "event-1"), ("other", "event-2"):
            event = failure_event_pb2.FailureEvent(id=event_id, workflow=f"the workflow of {event_id}")
            delivery = failure_service_pb2.FailureDelivery(event=event, ack_token=token)
            yield failure_service_pb2.SubscribeFailuresResponse(deliveries=[delivery])
            assert self._answered.get(timeout=LIMIT_S) == token
        # The stream stays open until the test ends.
        self._answered.get(timeout=LIMIT_S)

    def end(self) -> None:
        self._answered.put("")

    def AckFailures(self, request, context):  # noqa: N802
        [token] = request.ack_tokens
        self.acknowledged.append(token)
        self._answered.put(token)
        reason = reasons.ERROR_REASON_ACK_EXPIRED if token == "early" else reasons.ERROR_REASON_UNSPECIFIED
        result = failure_service_pb2.AckResult(ack_token=token, reason=reason)
        return failure_service_pb2.AckFailuresResponse(results=[result])


def test_printed_go_subscriber_does_not_handle_an_event_twice_if_its_acknowledgement_came_too_late(
    shop: Shop, run: Callable[[Path], Process]
) -> None:
    feed = Feed()
    with ThreadPoolExecutor() as threads:
        server = grpc.server(threads)
        failure_service_pb2_grpc.add_FailureServiceServicer_to_server(feed, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            subscriber = run(shop.program("subscriber", f"127.0.0.1:{port}"))
            lines = until(subscriber, "the workflow of event-2")
            subscriber.kill()
        finally:
            feed.end()
            server.stop(grace=None).wait()
    assert feed.acknowledged[:2] == ["early", "late"]
    assert sum("the workflow of event-1" in line for line in lines) == 1, lines
    assert sum("ERROR_REASON_ACK_EXPIRED" in line for line in lines) == 1, lines
