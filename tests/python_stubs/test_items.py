"""Workers with unary calls run the items of a step."""

from __future__ import annotations

from typing import Any

from client import Client
from conftest import Bench
from handlers import Handler, TaskContext, TaskFailed
from processes import LIMIT_S
from test_python_stubs import is_end_of, serving, state
from wire import from_payload

from recoup.v1 import execution_pb2, execution_service_pb2

LINES = """
name: lines
defaults: { queue: orders, retry: { max_attempts: 1 } }
steps:
  - id: numbers
    task: { type: test.numbers }
  - id: lines
    for_each:
      items: steps.numbers.output
      item_key: item.sku
      mode: WAIT_ALL
      concurrency: 8
      steps:
        - id: pack
          task: { type: test.pack, input: "${item}" }
          compensate: { task: { type: test.unpack, input: "${item}" } }
"""
ITEMS = 200
FAILS = 120


def test_the_items_that_completed_are_undone_after_one_failed(bench: Bench, client: Client) -> None:
    packed: list[str] = []
    unpacked: list[str] = []

    def numbers(_: TaskContext, order: Any) -> Any:
        return [{"sku": f"s/{number}"} for number in range(ITEMS)]

    def pack(context: TaskContext, item: Any) -> Any:
        if item["sku"] == f"s/{FAILS}":
            raise TaskFailed("stock.out", "none left")
        packed.append(item["sku"])
        return None

    def unpack(_: TaskContext, item: Any) -> Any:
        unpacked.append(item["sku"])
        return None

    handlers: dict[str, Handler] = {"test.numbers": numbers, "test.pack": pack, "test.unpack": unpack}
    client.register(LINES)
    feed = bench.subscriber("--from-beginning")
    with serving(bench, handlers, slots=8):
        execution_id = client.start("o-1", "", workflow="lines")
        outcome = client.outcome(execution_id)
    events = feed.until(is_end_of("o-1"))

    assert state(outcome) == "FAILED"
    assert outcome.compensation_state == execution_pb2.COMPENSATION_STATE_DONE
    assert (outcome.error.type, outcome.error.message) == ("recoup.too_many_failures", "1 of 200 items failed")
    assert (outcome.error.cause.type, outcome.failed_step) == ("stock.out", "lines")
    expected = sorted(f"s/{number}" for number in range(ITEMS) if number != FAILS)
    assert sorted(packed) == sorted(unpacked) == expected

    failed = [event["stepPath"] for event in events if event["kind"] == "FAILURE_KIND_STEP_FAILED"]
    assert failed == [f"lines[s%2F{FAILS}].pack", "lines"]

    request = execution_service_pb2.GetExecutionRequest(execution_id=execution_id)
    [lines] = client.executions.GetExecution(request, timeout=LIMIT_S).execution.loops
    assert (lines.item_count, lines.begun_count, lines.completed_count, lines.failed_count) == (ITEMS, ITEMS, 199, 1)
    assert [item.index for item in lines.items] == [*range(20), FAILS]
    assert lines.omitted_count == ITEMS - 21
    assert from_payload(lines.output) is None
