"""Runs the worker of examples/order-saga: as its guide says, and in cases that the guide only mentions."""

from __future__ import annotations

import re
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client import Client
from conftest import Bench
from handlers import Compensation, TaskContext
from processes import LIMIT_S, ROOT, Program
from test_pages import FAILED, Shell, last_id
from test_python_stubs import completed, is_end_of, kinds, state, steps
from wire import from_payload, to_payload

from recoup.v1 import execution_pb2, execution_service_pb2, failure_service_pb2

SAGA = ROOT / "examples" / "order-saga"
GUIDE = "docs/guides/order-saga.md"

sys.path.insert(0, str(SAGA))

from saga import Saga  # noqa: E402

Row = tuple[Any, ...]


class Shop:
    """The saga's worker and its files, and a client that runs its orders."""

    def __init__(self, bench: Bench, client: Client, folder: Path) -> None:
        self._bench = bench
        self._client = client
        self.folder = folder
        for name in ("order_saga", "renewal"):
            client.register((SAGA / f"{name}.yaml").read_text())

    def worker(self, *arguments: str) -> Program:
        return self._bench.worker("--slots", "1", "--data", str(self.folder), *arguments, program=SAGA / "saga.py")

    def start(self, key: str, *, workflow: str = "order_saga", **order: str) -> str:
        order = {"order": key, "item": "mug", "card": "good", "address": "home"} | order
        spec = execution_pb2.ExecutionSpec(
            workflow=workflow, execution_key=key, input=to_payload(order | {"amount": 20})
        )
        request = execution_service_pb2.StartExecutionRequest(execution=spec)
        return self._client.executions.StartExecution(request, timeout=LIMIT_S).execution_id

    def run(self, key: str, **order: str) -> execution_pb2.Outcome:
        return self._client.outcome(self.start(key, **order))

    def decided(self, execution_id: str) -> list[tuple[str, str]]:
        """Returns the type of each error and the reason of the decision about it, in order."""
        events = self._client.failures.ListFailures(
            failure_service_pb2.ListFailuresRequest(filter={"namespace": "default"}), timeout=LIMIT_S
        ).failures
        reason = execution_pb2.DESCRIPTOR.pool.FindEnumTypeByName("recoup.v1.RetryReason").values_by_number
        return [
            (event.error.type, reason[event.decision.reason].name.removeprefix("RETRY_REASON_"))
            for event in reversed(events)
            if event.execution_id == execution_id and event.HasField("decision")
        ]

    def left(self) -> int:
        [(left,)] = rows(self.folder / "shop.db", "select left from stock where item = 'mug'")
        return left

    def outside(self) -> list[Row]:
        """Returns what the provider and the carrier have done, and whether it was undone."""
        return rows(self.folder / "outside.db", "select number, undone from effect order by rowid")


def rows(file: Path, query: str) -> list[Row]:
    db = sqlite3.connect(file)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


@pytest.fixture
def shop(bench: Bench, client: Client, tmp_path: Path) -> Shop:
    return Shop(bench, client, tmp_path)


def fenced(page: str) -> Iterator[tuple[str, str]]:
    """The fenced blocks of a page: the language and the text of each."""
    for block in re.finditer(r"^```(\w+)\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL):
        yield block[1], block[2]


def plain(text: str) -> str:
    """Leaves out what differs between runs, and how lines are wrapped and aligned."""
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text)
    text = re.sub(r"ID-\d+-\d+", "EVENT", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
    text = re.sub(r"\+?\b\d+(\.\d+)?m?s\b", "DURATION", text)
    text = re.sub(r"python-stubs@\S+", "WORKER", text)
    return " ".join(text.split())


def test_the_guide_shows_what_its_commands_print(bench: Bench, tmp_path: Path) -> None:
    shell = Shell(ROOT, bench.address)
    worker: Program | None = None
    printed, execution_id, compared = "", "", 0
    for language, text in fenced(GUIDE):
        if language == "sh" and "saga.py" in text:
            arguments = text.splitlines()[-1].split("saga.py", 1)[1].split()
            if worker is not None and worker.poll() is None:
                assert worker.end() == 0
            worker = bench.worker("--data", str(tmp_path), *arguments, program=SAGA / "saga.py")
        elif language == "sh":
            done = shell.run(text, ID=execution_id) if "recoup run" not in text else []
            for command in text.replace("\\\n", " ").splitlines() if not done else []:
                [ran] = shell.run(command, ID=execution_id)
                assert ran[1] in (0, FAILED), ran[0]
                done.append(ran)
                execution_id = last_id(ran[0]) if command.startswith("recoup run") else execution_id
            printed = done[-1][0]
            if text.startswith("recoup start"):
                assert worker is not None and worker.wait() == 1, "the worker dies"
        elif language == "sql":
            queries = text.replace("ID", execution_id).strip().splitlines()
            found = [row for query in queries for row in rows(tmp_path / "shop.db", query)]
            printed = "\n".join("|".join(map(str, row)) for row in found)
        elif language == "text":
            assert plain(text) == plain(printed)
            compared += 1
    assert compared == 13


def test_the_guide_quotes_the_example() -> None:
    def lines(text: str) -> str:
        return "\n".join(line.strip() for line in text.splitlines())

    sources = [lines(file.read_text()) for file in SAGA.iterdir() if file.is_file()]
    quotes = [lines(text) for language, text in fenced(GUIDE) if language in ("python", "yaml")]
    assert len(quotes) == 8
    for quote in quotes:
        assert any(quote in source for source in sources), quote


#: Orders: what differs from an order without problems, how it ends, and each error with the reason of its decision.
ORDERS: dict[str, tuple[dict[str, str], str, list[tuple[str, str]]]] = {
    "transient": ({"card": "flaky"}, "SUCCEEDED", [("payment.unreachable", "CATEGORY")] * 2),
    "intermittent": ({"card": "busy"}, "SUCCEEDED", [("payment.busy", "CATEGORY")]),
    "permanent": ({"item": "lamp"}, "FAILED", [("stock.sold_out", "PERMANENT")]),
    "final for every caller": ({"card": "stolen"}, "FAILED", [("payment.card_stolen", "NON_RETRYABLE")]),
    "final for this caller": (
        {"card": "empty"}, "FAILED", [("payment.insufficient_funds", "NON_RETRYABLE_TYPE")],
    ),
    "not final for another caller": (
        {"card": "empty", "workflow": "renewal"},
        "FAILED",
        [("payment.insufficient_funds", "POLICY")] * 2 + [("payment.insufficient_funds", "ATTEMPTS_EXHAUSTED")],
    ),
    "wrapped": ({"address": "nowhere"}, "FAILED", [("parcel.not_booked", "NON_RETRYABLE_TYPE")]),
}


def test_each_kind_of_error_gets_the_decision_that_the_guide_explains(shop: Shop, client: Client) -> None:
    shop.worker()
    for key, (order, end, decided) in ORDERS.items():
        execution_id = shop.start(key, **order)
        outcome = client.outcome(execution_id)
        assert (key, state(outcome)) == (key, end)
        assert (key, shop.decided(execution_id)) == (key, decided)
        if key == "wrapped":
            assert outcome.error.cause.type == "carrier.address_unknown"
    # Two orders have succeeded and keep their item.
    assert shop.left() == 98


def test_a_lost_answer_is_looked_up_by_its_key(shop: Shop, client: Client) -> None:
    shop.worker()
    execution_id = shop.start("o-1", card="cut off")
    outcome = client.outcome(execution_id)
    assert from_payload(outcome.output) == {"receipt": "receipt 1", "parcel": "parcel 1"}
    assert shop.decided(execution_id) == [], "no attempt has failed"
    assert shop.outside() == [("receipt 1", 0), ("parcel 1", 0)]


@pytest.mark.parametrize("task", ["stock.reserve", "payment.charge", "parcel.book"])
def test_a_worker_that_dies_after_its_effect_has_it_once(shop: Shop, client: Client, task: str) -> None:
    dying = shop.worker("--die-after", task)
    execution_id = shop.start("o-1")
    assert dying.wait() == 1
    shop.worker()
    assert state(client.outcome(execution_id)) == "SUCCEEDED"
    assert shop.decided(execution_id) == [("recoup.worker_lost", "POLICY")]
    assert shop.left() == 99
    assert shop.outside() == [("receipt 1", 0), ("parcel 1", 0)]


def test_an_unknown_outcome_is_undone_first_and_the_completed_steps_after_it(
    bench: Bench, shop: Shop, client: Client
) -> None:
    feed = bench.subscriber("--from-beginning")
    worker = shop.worker()
    outcome = shop.run("o-1", address="far away")
    assert (state(outcome), outcome.failed_step) == ("FAILED", "ship")
    assert outcome.compensation_state == execution_pb2.COMPENSATION_STATE_DONE
    lines = worker.until(completed("stock.release"))
    assert [task for task, _, event in steps(lines) if event == "started"] == [
        "stock.reserve", "payment.charge", "parcel.book", "parcel.cancel", "payment.refund", "stock.release",
    ]
    assert (shop.left(), shop.outside()) == (100, [("receipt 1", 1), ("parcel 1", 1)])

    events = feed.until(is_end_of("o-1"))
    assert kinds(events) == ["STEP_FAILED", "COMPENSATION_STARTED", "COMPENSATION_DONE", "EXECUTION_FAILED"]
    assert events[0]["error"]["type"] == "recoup.timeout.start_to_close"
    outcomes = {step["stepPath"]: step["outcome"] for step in events[-1]["completedSteps"]}
    assert outcomes == {
        "reserve": "STEP_OUTCOME_COMPLETED", "charge": "STEP_OUTCOME_COMPLETED", "ship": "STEP_OUTCOME_UNKNOWN",
    }


def test_an_attempt_that_comes_after_its_compensation_has_no_effect(tmp_path: Path) -> None:
    saga = Saga(tmp_path)
    order = {"order": "1", "item": "mug", "card": "good", "address": "home"}

    def attempt(step: str) -> TaskContext:
        return TaskContext(1, f"e/{step}/0", threading.Event())

    def undoing(step: str) -> TaskContext:
        return TaskContext(1, f"e/{step}/0/compensate", threading.Event(), Compensation(False, None))

    assert saga.release(undoing("reserve"), order) == {"put_back": None}
    saga.reserve(attempt("reserve"), order)
    assert rows(tmp_path / "shop.db", "select left from stock where item = 'mug'") == [(100,)]

    assert saga.refund(undoing("charge"), order) == {"refunded": None}
    with pytest.raises(ValueError, match="was undone"):
        saga.charge(attempt("charge"), order)
    assert rows(tmp_path / "outside.db", "select number from effect") == [(None,)]
