"""Runs worker.py and subscriber.py against a real server, and checks their output and how executions ended."""

from __future__ import annotations

import json
import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest import mock

import grpc
import pytest

from client import Client
from conftest import Bench
from handlers import HANDLERS, Compensation, Handler, TaskContext, TaskFailed, refund
from processes import LIMIT_S
from wire import connect, from_payload, refusal_reason, to_payload
from worker import Worker, compensation

from recoup.v1 import execution_pb2, worker_service_pb2
from recoup.v1.payload_pb2 import Payload

Line = dict[str, Any]


def state(outcome: execution_pb2.Outcome) -> str:
    return execution_pb2.ExecutionState.Name(outcome.state).removeprefix("EXECUTION_STATE_")


def completed(task: str) -> Any:
    return lambda line: (line["task"], line["event"]) == (task, "completed")


def is_end_of(key: str) -> Any:
    """Matches the last event of an execution that failed."""
    return lambda line: (line["kind"], line["executionKey"]) == ("FAILURE_KIND_EXECUTION_FAILED", key)


def kinds(events: list[Line]) -> list[str]:
    return [event["kind"].removeprefix("FAILURE_KIND_") for event in events]


def ids(events: list[Line]) -> list[str]:
    return [event["id"] for event in events]


def steps(lines: list[Line]) -> list[tuple[str, int, str]]:
    """Returns the events of a worker, in order.

    The order is certain only with one slot. With more slots, a task may start while the result of another is printed.
    """
    return [(line["task"], line["attempt"], line["event"]) for line in lines]


def test_a_task_that_fails_twice_succeeds_at_its_third_attempt(bench: Bench, client: Client) -> None:
    feed = bench.subscriber("--from-beginning")
    worker = bench.worker("--slots", "1")
    outcome = client.run("o-1", "transient")
    assert state(outcome) == "SUCCEEDED"

    lines = worker.until(completed("payment.charge"))
    assert steps(lines) == [
        ("stock.reserve", 1, "started"),
        ("stock.reserve", 1, "completed"),
        ("payment.charge", 1, "started"),
        ("payment.charge", 1, "failed"),
        ("payment.charge", 2, "started"),
        ("payment.charge", 2, "failed"),
        ("payment.charge", 3, "started"),
        ("payment.charge", 3, "completed"),
    ]
    assert [line["verdict"] for line in lines if line["event"] == "failed"] == ["RETRY_VERDICT_RETRY"] * 2

    # All attempts of a step have the same idempotency key. The output of the last step is the workflow's output.
    reserve_keys = {line["idempotency_key"] for line in lines[:2]}
    charge_keys = {line["idempotency_key"] for line in lines[2:]}
    assert len(reserve_keys) == len(charge_keys) == 1
    assert reserve_keys != charge_keys
    assert from_payload(outcome.output) == {"receipt": charge_keys.pop()}

    events = feed.until(lambda event: event.get("attempt") == 2)
    assert kinds(events) == ["ATTEMPT_FAILED", "ATTEMPT_FAILED"]
    for attempt, event in enumerate(events, start=1):
        assert (event["executionKey"], event["stepPath"], event["attempt"]) == ("o-1", "charge", attempt)
        assert event["error"]["type"] == "payment.unavailable"
        assert event["error"]["source"] == "python-stubs"
        assert "TaskFailed: the provider is down" in event["error"]["stackTrace"]
        assert event["decision"]["verdict"] == "RETRY_VERDICT_RETRY"
        assert event["decision"]["reason"] == "RETRY_REASON_POLICY"
        assert event["decision"]["delay"] == "0.050s"
    assert events[0]["cursor"] != events[1]["cursor"]


def test_a_non_retryable_type_fails_the_execution_and_compensates(bench: Bench, client: Client) -> None:
    feed = bench.subscriber("--from-beginning")
    worker = bench.worker("--slots", "1")
    outcome = client.run("o-1", "declined")
    assert state(outcome) == "FAILED"
    assert (outcome.error.type, outcome.failed_step) == ("payment.card_declined", "charge")
    assert outcome.compensation_state == execution_pb2.COMPENSATION_STATE_DONE

    lines = worker.until(completed("stock.release"))
    assert steps(lines) == [
        ("stock.reserve", 1, "started"),
        ("stock.reserve", 1, "completed"),
        ("payment.charge", 1, "started"),
        ("payment.charge", 1, "failed"),
        ("stock.release", 1, "started"),
        ("stock.release", 1, "completed"),
    ]
    assert lines[3]["verdict"] == "RETRY_VERDICT_STOP"
    assert lines[5]["idempotency_key"] == lines[0]["idempotency_key"] + "/compensate"

    events = feed.until(is_end_of("o-1"))
    assert kinds(events) == ["STEP_FAILED", "COMPENSATION_STARTED", "COMPENSATION_DONE", "EXECUTION_FAILED"]
    failed = events[0]
    assert failed["final"] is True
    assert failed["error"]["type"] == "payment.card_declined"
    assert failed["error"]["details"] == {"json": '{"code": 51}'}
    assert failed["decision"] == {"verdict": "RETRY_VERDICT_STOP", "reason": "RETRY_REASON_NON_RETRYABLE_TYPE"}
    assert events[3]["error"]["type"] == "payment.card_declined"


def test_a_non_retryable_error_is_not_retried(bench: Bench, client: Client) -> None:
    feed = bench.subscriber("--from-beginning")
    bench.worker()
    outcome = client.run("o-1", "smooth", amount=-1)
    assert (state(outcome), outcome.error.type) == ("FAILED", "payment.amount_invalid")
    failed = feed.until(is_end_of("o-1"))[0]
    assert failed["attempt"] == 1
    assert failed["decision"]["reason"] == "RETRY_REASON_NON_RETRYABLE"


def test_the_retry_delay_of_an_error_is_used(bench: Bench, client: Client) -> None:
    feed = bench.subscriber("--from-beginning")
    bench.worker()
    assert state(client.run("o-1", "rate_limited")) == "SUCCEEDED"
    [event] = feed.until(lambda event: True)
    assert event["decision"]["delayFromError"] is True
    assert event["decision"]["delay"] == "0.700s"


def test_an_exception_in_a_handler_is_retried_like_any_error(bench: Bench, client: Client) -> None:
    feed = bench.subscriber("--from-beginning")
    bench.worker()
    outcome = client.run("o-1", "bug")
    assert (state(outcome), outcome.error.type) == ("FAILED", "python.KeyError")
    events = feed.until(is_end_of("o-1"))
    assert kinds(events)[:4] == ["ATTEMPT_FAILED"] * 3 + ["STEP_FAILED"]
    assert events[3]["decision"]["reason"] == "RETRY_REASON_ATTEMPTS_EXHAUSTED"


@contextmanager
def serving(bench: Bench, handlers: dict[str, Handler], slots: int = 1) -> Iterator[Worker]:
    """Runs a worker in this process, with some of the example's handlers replaced."""
    stop = threading.Event()
    # Short polls, because the test cannot end before the worker's last poll has.
    with connect(bench.address) as channel, mock.patch("worker.POLL_WAIT_S", 0.2):
        worker = Worker(
            channel, HANDLERS | handlers, namespace="default", queue="orders", slots=slots, session_ttl_s=30.0
        )
        running = threading.Thread(target=worker.run, args=(stop,), daemon=True)
        running.start()
        try:
            yield worker
        finally:
            stop.set()
            running.join(timeout=20)
            assert not running.is_alive()


class Mute(Exception):
    def __str__(self) -> NoReturn:
        raise RuntimeError("no words")


MIB = 1024 * 1024
#: The exception that a handler raises, and what is reported: the type, a part of the message, the number of attempts.
RAISED: dict[str, tuple[BaseException, str, str, int]] = {
    "an exit": (SystemExit(3), "python.SystemExit", "3", 4),
    "an interrupt": (KeyboardInterrupt("here"), "python.KeyboardInterrupt", "here", 4),
    "no type": (TaskFailed("has space!", "no"), "python.result_refused", "`has space!`: no", 4),
    "a type of the service": (TaskFailed("recoup.foo", "no"), "python.result_refused", "`recoup.foo`: no", 4),
    "a final one": (TaskFailed("a b", "no", non_retryable=True), "python.result_refused", "`a b`: no", 1),
    "details that are no JSON": (TaskFailed("a.b", "no", details=object()), "python.error_invalid", "TaskFailed", 4),
    "details over all limits": (
        TaskFailed("a.b", "no", details="x" * 5 * MIB), "python.result_refused", "`a.b`: no", 4,
    ),
    "no words": (Mute(), "python.error_invalid", "a Mute", 4),
    "half a character": (ValueError("\ud800"), "python.ValueError", "?", 4),
}
#: The value that a handler returns, and what is reported: the type, a part of the message, the number of attempts.
RETURNED: dict[str, tuple[Any, str, str, int]] = {
    "no JSON": (float("nan"), "python.ValueError", "not JSON compliant", 4),
    # The server would refuse these again, so the worker reports them as non-retryable.
    "over the limit of an output": ("x" * 3 * MIB, "recoup.payload_too_large", "too large", 1),
    "over the limit of a message": ("x" * 5 * MIB, "recoup.payload_too_large", "bytes", 1),
    "a reference": (Payload(reference={"payload_id": "p"}), "python.result_refused", "PAYLOAD_INVALID", 1),
    "an endless media type": (Payload(content_type="x" * 300), "python.result_refused", "FIELD_INVALID", 1),
}


@pytest.mark.parametrize("name", RAISED)
def test_every_raised_exception_is_reported_as_an_error(bench: Bench, client: Client, name: str) -> None:
    raised, error_type, message, attempts = RAISED[name]
    calls = []

    def charge(context: TaskContext, order: Any) -> NoReturn:
        calls.append(context.attempt)
        raise raised

    with serving(bench, {"payment.charge": charge}):
        outcome = client.run("o-1", "")
    assert (state(outcome), outcome.error.type) == ("FAILED", error_type)
    assert message in outcome.error.message
    assert calls == list(range(1, attempts + 1))


@pytest.mark.parametrize("name", RETURNED)
def test_a_refused_output_is_reported_as_an_error(
    bench: Bench, client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    returned, error_type, message, attempts = RETURNED[name]
    calls = []
    # Handlers of the example return JSON values. A handler that makes its own payloads can make more mistakes.
    as_it_is = lambda value: value if isinstance(value, Payload) else to_payload(value)
    monkeypatch.setattr("worker.to_payload", as_it_is)

    def charge(context: TaskContext, order: Any) -> Any:
        calls.append(context.attempt)
        return returned

    with serving(bench, {"payment.charge": charge}):
        outcome = client.run("o-1", "")
    assert (state(outcome), outcome.error.type) == ("FAILED", error_type)
    assert message in outcome.error.message
    assert calls == list(range(1, attempts + 1))


def test_a_compensation_handler_gets_the_outcome_of_its_step(bench: Bench, client: Client) -> None:
    undone: list[TaskContext] = []

    def release(context: TaskContext, order: Any) -> None:
        undone.append(context)

    with serving(bench, {"stock.release": release}):
        assert state(client.run("o-1", "declined")) == "FAILED"
    [context] = undone
    assert context.compensation == Compensation(True, {"reservation": context.undone_key})

    task = worker_service_pb2.Task()
    assert compensation(task) is None
    task.compensation.outcome = execution_pb2.STEP_OUTCOME_UNKNOWN
    assert compensation(task) == Compensation(False, None)
    task.compensation.outcome = execution_pb2.STEP_OUTCOME_COMPLETED
    task.compensation.step_output.CopyFrom(to_payload({"receipt": "r-1"}))
    assert compensation(task) == Compensation(True, {"receipt": "r-1"})


LARGE = """
name: large
defaults: {queue: orders}
steps:
- {id: make, task: {type: make}, compensate: {task: {type: undo, input: '${steps.make.output}'}}}
- {id: fail, task: {type: fail}}
"""


GUARDED = """
name: guarded
defaults: { queue: orders, retry: { max_attempts: 1 } }
output: "${steps.book.output}"
steps:
  - id: book
    try:
      steps:
        - id: hold
          task: { type: test.hold }
          compensate: { task: { type: test.release } }
        - id: pay
          task: { type: test.pay, input: { fails_with: "${input.scenario}" } }
          catch:
            - error_types: [pay.declined]
              steps:
                - id: voucher
                  task: { type: test.voucher, input: { why: "${error.message}", after: "${error.attempts}" } }
    catch:
      - error_types: [pay.broken]
        steps: [{ id: again, fail: { rethrow: true } }]
on_failure:
  - id: tell
    task:
      type: test.tell
      input: { why: "${error.type}", at: "${execution.failed_step}", undone: "${execution.compensation_state}" }
"""


def test_handlers_and_on_failure_run_on_a_worker_with_unary_calls(bench: Bench, client: Client) -> None:
    told: list[Any] = []

    def pay(_: TaskContext, order: Any) -> NoReturn:
        raise TaskFailed(order["fails_with"], "no cover")

    handlers: dict[str, Handler] = {
        "test.hold": lambda _, order: "held",
        "test.release": lambda _, order: None,
        "test.pay": pay,
        "test.voucher": lambda _, error: error,
        "test.tell": lambda _, failure: told.append(failure),
    }
    client.register(GUARDED)
    feed = bench.subscriber("--from-beginning")
    with serving(bench, handlers):
        caught = client.outcome(client.start("o-1", "pay.declined", workflow="guarded"))
        assert state(caught) == "SUCCEEDED"
        assert from_payload(caught.output) == {"after": 1, "why": "no cover"}
        failed = client.outcome(client.start("o-2", "pay.broken", workflow="guarded"))
    assert (state(failed), failed.error.type, failed.failed_step) == ("FAILED", "pay.broken", "book.pay")
    assert told == [{"at": "book.pay", "undone": "DONE", "why": "pay.broken"}]
    events = feed.until(is_end_of("o-2"))
    assert kinds(events) == [
        "STEP_CAUGHT", "STEP_CAUGHT", "STEP_FAILED", "COMPENSATION_STARTED", "COMPENSATION_DONE", "EXECUTION_FAILED",
    ]


def test_payloads_sent_by_reference_are_loaded(bench: Bench, client: Client) -> None:
    text = "x" * (2 * MIB - 2)
    undone: list[Any] = []

    def release(context: TaskContext, order: Any) -> None:
        undone.extend([context.compensation, order])

    def fail(context: TaskContext, order: Any) -> NoReturn:
        raise TaskFailed("test.failed", "on purpose", non_retryable=True)

    with serving(bench, {"make": lambda context, order: text, "undo": release, "fail": fail}):
        client.register(LARGE)
        outcome = client.outcome(client.start("o-1", "", workflow="large"))
    assert outcome.compensation_state == execution_pb2.COMPENSATION_STATE_DONE
    # Together they exceed the limit of a message, so the server sent one of them as a reference.
    assert undone == [Compensation(True, text), text]


def test_a_refund_uses_the_receipt_or_looks_up_the_charge() -> None:
    def answer(undone: Compensation) -> Any:
        return refund(TaskContext(1, "e/charge/0/compensate", threading.Event(), undone), {})

    assert answer(Compensation(True, {"receipt": "r-1"})) == {"refunded": "r-1"}
    assert answer(Compensation(False, None)) == {"looked_up": "e/charge/0"}


def test_a_subscriber_resumes_after_the_event_of_its_cursor(bench: Bench, client: Client) -> None:
    bench.worker()
    client.run("o-1", "declined")
    first = bench.subscriber("--from-beginning")
    events = first.until(is_end_of("o-1"))
    assert first.end() == 0
    assert first.rest() == []

    # From a cursor in the middle: the events after it, with the same ids in the same order.
    second = bench.subscriber("--cursor", events[1]["cursor"])
    assert ids(second.until(is_end_of("o-1"))) == ids(events[2:])

    # From the last cursor: only new events.
    third = bench.subscriber("--cursor", events[-1]["cursor"])
    client.run("o-2", "declined")
    assert {event["executionKey"] for event in third.until(is_end_of("o-2"))} == {"o-2"}


def test_an_invalid_cursor_is_refused(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    assert bench.subscriber("--cursor", "nonsense").wait() == 1
    assert capfd.readouterr().err.startswith("refused: CURSOR_INVALID ")


def test_a_durable_subscription_does_not_repeat_acknowledged_events(bench: Bench, client: Client) -> None:
    bench.worker()
    client.run("o-1", "declined")
    first = bench.subscriber("--subscription", "alerts", "--from-beginning")
    events = first.until(is_end_of("o-1"))
    assert kinds(events) == ["STEP_FAILED", "COMPENSATION_STARTED", "COMPENSATION_DONE", "EXECUTION_FAILED"]
    # The subscriber acknowledges the last event that it printed before it exits.
    assert first.end() == 0
    kept = client.subscription("alerts")
    assert (kept.watermark, kept.outstanding) == (events[-1]["cursor"], 0)

    second = bench.subscriber("--subscription", "alerts", "--from-beginning")
    client.run("o-2", "declined")
    news = second.until(is_end_of("o-2"))
    assert kinds(news) == kinds(events)
    assert {event["executionKey"] for event in news} == {"o-2"}
    assert {event["delivery"] for event in news} == {1}
    assert second.end() == 0
    moved = client.subscription("alerts").watermark
    assert moved == news[-1]["cursor"] != kept.watermark


def test_another_worker_takes_over_from_a_killed_one(bench: Bench, client: Client) -> None:
    feed = bench.subscriber("--from-beginning")
    killed = bench.worker()
    execution_id = client.start("o-1", "hang_once")
    held = killed.until(lambda line: line["task"] == "payment.charge")[-1]
    assert (held["attempt"], held["event"]) == (1, "started")
    killed.kill()

    successor = bench.worker()
    assert state(client.outcome(execution_id)) == "SUCCEEDED"
    lines = successor.until(completed("payment.charge"))
    assert steps(lines) == [("payment.charge", 2, "started"), ("payment.charge", 2, "completed")]
    assert lines[0]["idempotency_key"] == held["idempotency_key"]

    events = feed.until(lambda event: event["kind"] == "FAILURE_KIND_ATTEMPT_FAILED")
    events += feed.until(lambda event: True) if len(events) == 1 else []
    assert sorted(kinds(events)) == ["ATTEMPT_FAILED", "WORKER_LOST"]
    attempt = next(event for event in events if event["kind"] == "FAILURE_KIND_ATTEMPT_FAILED")
    assert attempt["error"]["type"] == "recoup.worker_lost"
    assert (attempt["attempt"], attempt["decision"]["verdict"]) == (1, "RETRY_VERDICT_RETRY")


def test_a_stopping_worker_heartbeats_its_task_until_it_is_cancelled(
    bench: Bench, client: Client
) -> None:
    worker = bench.worker()
    execution_id = client.start("o-1", "hang")
    worker.until(lambda line: (line["task"], line["event"]) == ("payment.charge", "started"))
    # While the task hangs, other orders take longer than a session's time to live, because each waits for a retry.
    for number in range(2):
        assert state(client.run(f"o-passing-{number}", "rate_limited")) == "SUCCEEDED"

    # A worker that is asked to stop keeps the hanging task until a heartbeat reports that it was cancelled.
    worker.signal(signal.SIGTERM)
    client.cancel(execution_id)
    lines = [json.loads(line) for line in worker.rest()]
    assert worker.wait() == 0
    [failed] = [line for line in lines if (line["execution_key"], line["event"]) == ("o-1", "failed")]
    assert (failed["task"], failed["attempt"]) == ("payment.charge", 1)
    assert (failed["error_type"], failed["verdict"]) == ("payment.interrupted", "RETRY_VERDICT_STOP")

    # Another worker executes the compensation.
    bench.worker()
    outcome = client.outcome(execution_id)
    assert state(outcome) == "CANCELLED"
    assert outcome.compensation_state == execution_pb2.COMPENSATION_STATE_DONE


def test_polls_no_longer_list_a_task_whose_attempt_is_over(bench: Bench, client: Client) -> None:
    begun: queue.SimpleQueue[TaskContext] = queue.SimpleQueue()
    release = threading.Event()

    def reserve(context: TaskContext, order: Any) -> None:
        begun.put(context)
        release.wait()

    # Two slots: with one, the worker would not poll while its handler runs.
    with serving(bench, {"stock.reserve": reserve}, slots=2) as worker:
        try:
            execution_id = client.start("o-1", "smooth")
            context = begun.get(timeout=LIMIT_S)
            assert len(worker._listed()) == 1
            client.terminate(execution_id)
            assert context.cancelled.wait(timeout=LIMIT_S)
            assert worker._listed() == [], "the handler still runs, and the poll would end at once"
        finally:
            release.set()


def test_a_task_received_after_the_stop_is_released_uncounted(bench: Bench, client: Client) -> None:
    polling, stop = threading.Event(), threading.Event()
    with connect(bench.address) as channel:
        leaving = Worker(channel, HANDLERS, namespace="default", queue="orders", slots=1, session_ttl_s=30.0)
        poll = leaving._poll

        def signalling_poll(free: int) -> worker_service_pb2.PollTasksResponse:
            polling.set()
            return poll(free)

        leaving._poll = signalling_poll  # type: ignore[method-assign]
        running = threading.Thread(target=leaving.run, args=(stop,), daemon=True)
        running.start()
        assert polling.wait(timeout=20)
        # The worker's last poll is waiting and receives the task.
        stop.set()
        execution_id = client.start("o-1", "")
        running.join(timeout=20)
        assert not running.is_alive()
    successor = bench.worker("--slots", "1")
    assert state(client.outcome(execution_id)) == "SUCCEEDED"
    lines = successor.until(completed("stock.reserve"))
    assert steps(lines) == [("stock.reserve", 1, "started"), ("stock.reserve", 1, "completed")]


def test_worker_and_subscribers_reconnect_after_a_server_restart(bench: Bench, client: Client) -> None:
    feed = bench.subscriber("--from-beginning")
    durable = bench.subscriber("--subscription", "alerts", "--from-beginning")
    worker = bench.worker("--slots", "1")
    client.run("o-1", "declined")
    before = feed.until(is_end_of("o-1"))
    assert ids(durable.until(is_end_of("o-1"))) == ids(before)

    bench.restart_server()
    with Client(bench.address) as client:
        client.run("o-2", "declined")
    after = feed.until(is_end_of("o-2"))
    assert {event["executionKey"] for event in after} == {"o-2"}
    # Delivery is at least once: if an acknowledgement was lost with the server, its event is delivered again.
    again = [event for event in durable.until(is_end_of("o-2")) if event["id"] not in ids(before)]
    assert ids(again) == ids(after)
    worked = worker.until(lambda line: line["execution_key"] == "o-2" and completed("stock.release")(line))
    assert steps(worked[:6]) == steps(worked[6:])


def test_a_server_accepts_work_as_soon_as_it_listens(bench: Bench, client: Client) -> None:
    started = []
    for number in range(8):
        bench.restart_server()
        # With a client of its own, this is the first request to the restarted server.
        with Client(bench.address) as early:
            started.append(early.start(f"o-{number}", "smooth"))
    bench.worker()
    with Client(bench.address) as late:
        assert {state(late.outcome(execution_id)) for execution_id in started} == {"SUCCEEDED"}


@pytest.mark.parametrize("call", ["CompleteTask", "FailTask", "HeartbeatTask"])
def test_an_invalid_task_token_is_refused_with_a_reason(client: Client, call: str) -> None:
    request = getattr(worker_service_pb2, f"{call}Request")(task_token=b"nonsense")
    if call == "FailTask":
        request.error.type = "payment.unavailable"
    with pytest.raises(grpc.RpcError) as refused:
        getattr(client.worker, call)(request, timeout=10)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal_reason(refused.value) == "TASK_TOKEN_INVALID"
