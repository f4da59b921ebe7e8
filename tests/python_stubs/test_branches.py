"""Two workers with unary calls run the branches of a step at the same time."""

from __future__ import annotations

import threading
import time
from typing import Any, NoReturn

from client import Client
from conftest import Bench
from handlers import Handler, TaskContext, TaskFailed
from processes import LIMIT_S
from test_python_stubs import is_end_of, kinds, serving, state
from wire import from_payload

from recoup.v1 import execution_pb2, execution_service_pb2

FAN = """
name: fan
defaults: { queue: orders, retry: { max_attempts: 1 } }
steps:
  - id: fan
    parallel:
      mode: MODE
      branches:
        left: { steps: [{ id: hotel, task: { type: test.hotel } }] }
        right: { steps: [{ id: flight, task: { type: test.flight, heartbeat: 3s } }] }
    catch:
      - output:
          type: "${error.type}"
          step: "${error.step}"
          others: "${error.suppressed.map(other, other.step + ': ' + other.type)}"
"""


def branches(client: Client, execution_id: str) -> dict[str, str]:
    """Returns the states of the branches of an execution's only step."""
    request = execution_service_pb2.GetExecutionRequest(execution_id=execution_id)
    [fan] = client.executions.GetExecution(request, timeout=LIMIT_S).execution.parallels
    name = execution_pb2.BranchState.Name
    return {branch.branch: name(branch.state).removeprefix("BRANCH_STATE_") for branch in fan.branches}


def test_the_worker_of_another_branch_is_told_to_stop(bench: Bench, client: Client) -> None:
    begun = threading.Event()
    told: list[bool] = []

    def hotel(_: TaskContext, order: Any) -> NoReturn:
        assert begun.wait(timeout=LIMIT_S), "the other worker has no task"
        raise TaskFailed("hotel.full", "no room")

    def flight(context: TaskContext, order: Any) -> NoReturn:
        begun.set()
        told.append(context.cancelled.wait(timeout=LIMIT_S))
        raise TaskFailed("flight.interrupted", "told to stop")

    handlers: dict[str, Handler] = {"test.hotel": hotel, "test.flight": flight}
    client.register(FAN.replace("MODE", "FAIL_FAST"))
    feed = bench.subscriber("--from-beginning")
    # Each worker has one slot, so each of them gets a branch. A worker of unary calls whose slots are taken learns
    # from the answer to a heartbeat that its attempt should end.
    with serving(bench, handlers), serving(bench, handlers):
        execution_id = client.start("o-1", "", workflow="fan")
        outcome = client.outcome(execution_id)
        client.run("o-2", "declined")
    assert told == [True]
    assert state(outcome) == "SUCCEEDED"
    # What a branch reports while it is being stopped is no error of the branch.
    assert from_payload(outcome.output) == {"others": [], "step": "fan[left].hotel", "type": "hotel.full"}
    assert branches(client, execution_id) == {"left": "FAILED", "right": "STOPPED"}
    events = [event for event in feed.until(is_end_of("o-2")) if event["executionKey"] == "o-1"]
    assert [(event["stepPath"], event["error"]["type"]) for event in events] == [
        ("fan[right].flight", "flight.interrupted"), ("fan[left].hotel", "hotel.full"),
    ]
    assert kinds(events) == ["STEP_FAILED", "STEP_CAUGHT"]


def test_a_handler_reads_the_errors_of_all_branches(bench: Bench, client: Client) -> None:
    first = threading.Event()

    def hotel(_: TaskContext, order: Any) -> NoReturn:
        first.wait(timeout=LIMIT_S)
        raise TaskFailed("hotel.full", "no room")

    def flight(_: TaskContext, order: Any) -> NoReturn:
        raise TaskFailed("flight.full", "no seat")

    handlers: dict[str, Handler] = {"test.hotel": hotel, "test.flight": flight}
    client.register(FAN.replace("MODE", "WAIT_ALL"))
    with serving(bench, handlers), serving(bench, handlers):
        feed = bench.subscriber("--from-beginning")
        execution_id = client.start("o-1", "", workflow="fan")
        try:
            # No call waits for the end of a branch, so the test asks until the error is in the history.
            limit = time.monotonic() + LIMIT_S
            while branches(client, execution_id)["right"] != "FAILED":
                assert time.monotonic() < limit
            assert branches(client, execution_id) == {"left": "RUNNING", "right": "FAILED"}
        finally:
            first.set()
        outcome = client.outcome(execution_id)
        client.run("o-2", "declined")
    assert state(outcome) == "SUCCEEDED"
    caught = {"others": ["fan[left].hotel: hotel.full"], "step": "fan[right].flight", "type": "flight.full"}
    assert from_payload(outcome.output) == caught
    events = [event for event in feed.until(is_end_of("o-2")) if event["executionKey"] == "o-1"]
    assert [(event["stepPath"], event["error"]["type"]) for event in events] == [
        ("fan[left].hotel", "hotel.full"), ("fan[right].flight", "flight.full"),
    ]
    assert kinds(events) == ["STEP_FAILED", "STEP_CAUGHT"]
    [other] = events[1]["error"]["suppressed"]
    assert other == {"stepPath": "fan[left].hotel", "type": "hotel.full", "message": "no room"}
