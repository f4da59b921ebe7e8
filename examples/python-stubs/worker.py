"""A worker for the order workflow: polls for tasks, runs handlers, reports results. Uses nothing but generated stubs.

The whole protocol of a worker is PollTasks, CompleteTask, FailTask, HeartbeatTask and, to give back a task that it
received but cannot perform, ReleaseTask. This worker holds a session, so that its tasks go to other workers if it dies.
It prints one JSON line when a task starts and another when the result is durable. After SIGTERM or Ctrl-C it finishes
the tasks that it holds, and exits.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc

from handlers import HANDLERS, Compensation, Handler, TaskContext, TaskFailed
from wire import PASSING_CODES, Backoff, connect, content, from_payload, refusal_reason, to_duration, to_payload

from recoup.v1 import (
    error_pb2,
    execution_pb2,
    failure_service_pb2_grpc,
    payload_pb2,
    retry_pb2,
    worker_service_pb2,
    worker_service_pb2_grpc,
)

log = logging.getLogger("worker")

ATTEMPT_CLOSED = worker_service_pb2.TASK_CANCELLATION_REASON_ATTEMPT_CLOSED

#: How long a poll waits for tasks, in seconds. An idle worker takes about this long to stop.
POLL_WAIT_S = 5.0
#: How long a call may go without an answer before the worker gives it up and repeats it, in seconds.
CALL_LIMIT_S = 10.0
#: How long the worker repeats a result while the server is unreachable, in seconds.
REPORT_LIMIT_S = 300.0
#: How many causes of an error are reported at most, and how many characters of each text and of each type. The server
#: accepts a chain of 20 errors, including the outermost, and 64 KiB in all.
CAUSES_MAX = 10
TEXT_MAX = 4_000
TYPE_MAX = 255
#: The largest message that the server reads, in bytes.
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
#: The reasons of refusals after which the attempt is still open, so that the worker must report another result.
DEFECTS = frozenset({"FIELD_INVALID", "PAYLOAD_INVALID"})


class Worker:
    """Works on up to `slots` tasks of one queue at a time."""

    def __init__(
        self,
        channel: grpc.Channel,
        handlers: dict[str, Handler],
        *,
        namespace: str,
        queue: str,
        slots: int,
        session_ttl_s: float,
    ) -> None:
        self._stub = worker_service_pb2_grpc.WorkerServiceStub(channel)
        self._failures = failure_service_pb2_grpc.FailureServiceStub(channel)
        self._handlers = handlers
        self._namespace = namespace
        self._queue = queue
        self._slots = slots
        self._session_ttl_s = session_ttl_s
        self._session_id = str(uuid.uuid4())
        # The tasks that the worker holds: for each task token, an event that is set when the task should stop.
        self._held: dict[bytes, threading.Event] = {}
        # Those of them whose attempt is over. Their handlers still occupy slots, but polls no longer list them: a poll
        # that lists such a task ends at once.
        self._over: set[bytes] = set()
        self._held_changed = threading.Condition()

    def run(self, stop: threading.Event) -> None:
        """Performs tasks until `stop` is set, and then finishes the tasks that the worker holds."""
        backoff = Backoff()
        with ThreadPoolExecutor(self._slots) as pool:
            while not stop.is_set():
                free = self._free_slots()
                if free == 0:
                    continue
                try:
                    answer = self._poll(free)
                except grpc.RpcError as error:
                    if error.code() not in PASSING_CODES:
                        raise
                    log.warning("poll: %s; trying again", error.details())
                    stop.wait(backoff.next_s())
                    continue
                backoff.reset()
                for cancellation in answer.cancellations:
                    self._tell_to_stop(cancellation)
                for task in answer.tasks:
                    if stop.is_set():
                        self._release(task)
                        continue
                    cancelled = threading.Event()
                    with self._held_changed:
                        self._held[task.task_token] = cancelled
                    pool.submit(self._work, task, cancelled).add_done_callback(_log_defect)

    def _free_slots(self) -> int:
        """Returns how many more tasks can start. If none can, waits for a moment first."""
        with self._held_changed:
            if len(self._held) >= self._slots:
                # Wait with a timeout, so that the caller can check `stop`.
                self._held_changed.wait(timeout=1.0)
            return self._slots - len(self._held)

    def _listed(self) -> list[bytes]:
        """Returns the tokens of the tasks that a poll lists."""
        with self._held_changed:
            return [task_token for task_token in self._held if task_token not in self._over]

    def _poll(self, free: int) -> worker_service_pb2.PollTasksResponse:
        held = self._listed()
        request = worker_service_pb2.PollTasksRequest(
            namespace=self._namespace,
            queue=self._queue,
            task_types=sorted(self._handlers),
            max_tasks=free,
            wait=to_duration(POLL_WAIT_S),
            session_id=self._session_id,
            session_ttl=to_duration(self._session_ttl_s),
            worker=f"python-stubs@{socket.gethostname()}",
            # List all tasks that the worker holds. Only one poll runs at a time, so the server hands out again
            # every task that was lost on its way here.
            held=worker_service_pb2.HeldTasks(task_tokens=held),
        )
        return self._stub.PollTasks(request, timeout=POLL_WAIT_S + CALL_LIMIT_S)

    def _release(self, task: worker_service_pb2.Task) -> None:
        """Gives back a task that was not started. Another worker gets it at once, and the attempt is not counted."""
        request = worker_service_pb2.ReleaseTaskRequest(task_token=task.task_token, session_id=self._session_id)
        try:
            self._report(self._stub.ReleaseTask, request)
        except Refused as refused:
            log.warning("the server did not take a task back: %s", refused)

    def _work(self, task: worker_service_pb2.Task, cancelled: threading.Event) -> None:
        finished = threading.Event()
        try:
            try:
                threading.Thread(target=self._heartbeat, args=(task, cancelled, finished), daemon=True).start()
                _print_line(task, event="started")
                undone = compensation(task, self._read)
                context = TaskContext(task.attempt, task.idempotency_key, cancelled, undone)
                output = to_payload(self._handlers[task.type](context, self._read(task.input)))
            except BaseException as error:
                # Whatever a handler raises becomes the error of the attempt, SystemExit included. If the task
                # were dropped without a report, the server would hand it out again at once, ten times, and
                # then end the attempt with `recoup.worker_lost`.
                # KeyboardInterrupt is never raised in this thread.
                self._fail(task, to_error(error))
            else:
                self._complete(task, output)
        finally:
            finished.set()
            with self._held_changed:
                del self._held[task.task_token]
                self._over.discard(task.task_token)
                self._held_changed.notify_all()

    def _read(self, payload: payload_pb2.Payload) -> Any:
        """Returns the JSON value of a task's payload, which may be a reference.

        Raises an error if the payload cannot be read. The error fails the attempt.
        """
        return from_payload(content(payload, self._failures))

    def _complete(self, task: worker_service_pb2.Task, output: payload_pb2.Payload) -> None:
        request = worker_service_pb2.CompleteTaskRequest(task_token=task.task_token, output=output)
        try:
            if self._report(self._stub.CompleteTask, request) is not None:
                _print_line(task, event="completed")
        except Refused as refused:
            # The server would refuse the same output again.
            error = error_pb2.Error(
                type=refused.error_type, message=str(refused), source="python-stubs", non_retryable=True
            )
            self._fail(task, error)

    def _fail(self, task: worker_service_pb2.Task, error: error_pb2.Error) -> None:
        try:
            self._fail_once(task, error)
        except Refused as refused:
            # Report a plain error without the part that was refused. It keeps the original message and what the
            # error said about retries.
            plain = error_pb2.Error(
                type="python.result_refused",
                message=f"`{error.type[:TYPE_MAX]}`: {error.message} [{refused}]",
                stack_trace=error.stack_trace,
                source="python-stubs",
            )
            said = error
            while not said.HasField("non_retryable") and said.HasField("cause"):
                said = said.cause
            if said.HasField("non_retryable"):
                plain.non_retryable = said.non_retryable
            try:
                self._fail_once(task, plain)
            except Refused as again:
                log.error("a result was refused, and so was the error reported in its place: %s", again)

    def _fail_once(self, task: worker_service_pb2.Task, error: error_pb2.Error) -> None:
        request = worker_service_pb2.FailTaskRequest(task_token=task.task_token, error=error)
        answer = self._report(self._stub.FailTask, request)
        if answer is not None:
            verdict = retry_pb2.RetryVerdict.Name(answer.decision.verdict)
            _print_line(task, event="failed", error_type=error.type, verdict=verdict)

    def _report(self, call: Callable[..., Any], request: Any) -> Any | None:
        """Sends a result until the server has answered. Results are idempotent by token, so repeating one does no harm.

        Returns None if the server no longer accepts a result for the attempt, or could not be reached for too long.
        Raises Refused if the attempt is still open, so that another result must be reported.
        """
        if request.ByteSize() > MESSAGE_BYTES_MAX:
            # The server would not even read a message of this size.
            raise Refused("recoup.payload_too_large", f"the result has {request.ByteSize()} bytes")
        backoff = Backoff()
        give_up_at = time.monotonic() + REPORT_LIMIT_S
        while True:
            try:
                return call(request, timeout=CALL_LIMIT_S)
            except grpc.RpcError as error:
                reason = refusal_reason(error)
                if reason in DEFECTS:
                    raise Refused("python.result_refused", f"{reason}: {error.details()}") from error
                if error.code() not in PASSING_CODES or time.monotonic() > give_up_at:
                    # The usual reason is ATTEMPT_CLOSED: a timeout or another result came first, or the result was
                    # too large and the server has turned it into an error.
                    log.warning("a result was refused: %s %s", reason, error.details())
                    return None
                log.warning("result: %s; sending it again", error.details())
                time.sleep(backoff.next_s())

    def _heartbeat(
        self, task: worker_service_pb2.Task, cancelled: threading.Event, finished: threading.Event
    ) -> None:
        """Reports that the task is still running, which also renews the session, and learns whether it should stop."""
        interval_s = self._session_ttl_s / 3
        if task.HasField("heartbeat_timeout"):
            interval_s = min(interval_s, task.heartbeat_timeout.ToTimedelta().total_seconds() / 3)
        request = worker_service_pb2.HeartbeatTaskRequest(task_token=task.task_token)
        while not finished.wait(interval_s):
            try:
                answer = self._stub.HeartbeatTask(request, timeout=CALL_LIMIT_S)
            except grpc.RpcError as error:
                if error.code() in PASSING_CODES:
                    continue
                # ATTEMPT_CLOSED: the server no longer accepts a result for this attempt.
                cancelled.set()
                return
            if answer.cancel_requested:
                cancelled.set()

    def _tell_to_stop(self, cancellation: worker_service_pb2.TaskCancellation) -> None:
        with self._held_changed:
            cancelled = self._held.get(cancellation.task_token)
            if cancelled is not None and cancellation.reason == ATTEMPT_CLOSED:
                self._over.add(cancellation.task_token)
        if cancelled is not None:
            cancelled.set()


class Refused(Exception):
    """The server refused a result, and the attempt is still open. Report an error of `error_type` in its place."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(f"refused: {message}")
        self.error_type = error_type


def to_error(exception: BaseException) -> error_pb2.Error:
    """Converts an exception and its causes to an error of Recoup.

    An exception other than TaskFailed gets the type `python.<class>`.
    """
    try:
        error = _link(exception, 0)
        # The end of a stack trace is the most useful part, and it includes the causes.
        error.stack_trace = _text("".join(traceback.format_exception(exception))[-TEXT_MAX:])
        return error
    except Exception as defect:
        # The details are not JSON, or the exception cannot produce its message. Report an error nevertheless.
        message = f"a {type(exception).__name__} that cannot be reported as it is: {type(defect).__name__}"
        return error_pb2.Error(type="python.error_invalid", message=_text(message), source="python-stubs")


def _link(exception: BaseException, depth: int) -> error_pb2.Error:
    error = error_pb2.Error(message=_text(str(exception)[:TEXT_MAX]), source="python-stubs")
    if isinstance(exception, TaskFailed):
        error.type = exception.error_type
        if exception.details is not None:
            error.details.CopyFrom(to_payload(exception.details))
        error.category = error_pb2.ErrorCategory.Value(f"ERROR_CATEGORY_{exception.category}")
        if exception.non_retryable is not None:
            error.non_retryable = exception.non_retryable
        if exception.retry_after_s is not None:
            error.next_retry_delay.CopyFrom(to_duration(exception.retry_after_s))
    else:
        error.type = f"python.{type(exception).__name__}"
    if exception.__cause__ is not None and depth < CAUSES_MAX:
        error.cause.CopyFrom(_link(exception.__cause__, depth + 1))
    return error


def _text(text: str) -> str:
    """Makes text encodable as UTF-8. Strings of Python may contain lone surrogates."""
    return text.encode(errors="replace").decode()


def compensation(
    task: worker_service_pb2.Task, read: Callable[[payload_pb2.Payload], Any] = from_payload
) -> Compensation | None:
    """Returns what a task undoes, or None if it is not a compensation."""
    if not task.HasField("compensation"):
        return None
    undone = task.compensation
    completed = undone.outcome == execution_pb2.STEP_OUTCOME_COMPLETED
    return Compensation(completed, read(undone.step_output))


def _print_line(task: worker_service_pb2.Task, **what: str) -> None:
    line = {
        **what,
        "task": task.type,
        "execution_id": task.execution_id,
        "execution_key": task.execution_key,
        "step_path": task.step_path,
        "attempt": task.attempt,
        "idempotency_key": task.idempotency_key,
    }
    # Print with a single write, because several tasks print at the same time.
    print(json.dumps(line) + "\n", end="", flush=True)


def _log_defect(done: Future[None]) -> None:
    if done.exception() is not None:
        log.error("a task ended without a result", exc_info=done.exception())


def options(description: str | None) -> argparse.ArgumentParser:
    """Returns the options that every worker has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--address", default="127.0.0.1:7430", help="host:port of the server")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--queue", default="orders")
    parser.add_argument("--slots", type=int, default=4, help="how many tasks run at the same time")
    parser.add_argument(
        "--session-ttl", type=float, default=30.0, help="seconds without a message until its tasks go to other workers"
    )
    return parser


def serve(handlers: dict[str, Handler], arguments: argparse.Namespace) -> None:
    """Runs a worker with these handlers until SIGTERM or Ctrl-C."""
    logging.basicConfig(format="%(name)s: %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with connect(arguments.address) as channel:
        worker = Worker(
            channel,
            handlers,
            namespace=arguments.namespace,
            queue=arguments.queue,
            slots=arguments.slots,
            session_ttl_s=arguments.session_ttl,
        )
        worker.run(stop)


if __name__ == "__main__":
    serve(HANDLERS, options(__doc__).parse_args())
