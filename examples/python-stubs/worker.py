"""A worker for the order workflow on nothing but generated stubs: polls, works, reports.

The whole protocol of a worker is PollTasks, CompleteTask, FailTask and HeartbeatTask. This one holds a session, so that
what it was handed and lost on the way is handed out again at once, and answers for a worker that dies.
"""

import argparse
import json
import signal
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "generated"))

import grpc  # noqa: E402
from google.protobuf.duration_pb2 import Duration  # noqa: E402
from recoup.v1 import error_pb2, payload_pb2, worker_service_pb2, worker_service_pb2_grpc  # noqa: E402

SESSION_TTL_SECONDS = 30
POLL_SECONDS = 5


class TaskFailed(Exception):
    """What a handler raises: the error type that the workflow's retry policy decides on."""

    def __init__(self, error_type, message, non_retryable=None, retry_after_ms=None):
        super().__init__(message)
        self.error_type = error_type
        self.non_retryable = non_retryable
        self.retry_after_ms = retry_after_ms

    def to_proto(self):
        error = error_pb2.Error(type=self.error_type, message=str(self), source="python-stubs")
        if self.non_retryable is not None:
            error.non_retryable = self.non_retryable
        if self.retry_after_ms is not None:
            error.next_retry_delay.FromMilliseconds(self.retry_after_ms)
        return error


def reserve(task, order):
    return {"reservation": f"r-{order['order']}"}


def charge(task, order):
    scenario = order.get("scenario")
    if scenario == "declined":
        raise TaskFailed("payment.card_declined", "the bank said no")
    if scenario == "transient" and task.attempt < 3:
        raise TaskFailed("payment.unavailable", "the provider is down")
    if scenario == "rate_limited" and task.attempt == 1:
        raise TaskFailed("payment.rate_limited", "slow down", retry_after_ms=700)
    # What makes the effect gets the key, so that it happens once however often the task is delivered.
    return {"receipt": task.idempotency_key}


def ship(task, order):
    return {"parcel": f"p-{order['order']}"}


def undo(task, order):
    # `compensation.outcome` says whether the step completed, or whether nobody knows.
    return {"undone": task.step_path}


def notify(task, order):
    return {"notified": True}


HANDLERS = {
    "stock.reserve": reserve,
    "stock.release": undo,
    "payment.charge": charge,
    "payment.refund": undo,
    "parcel.ship": ship,
    "parcel.recall": undo,
    "mail.notify": notify,
}


def value_of(payload):
    """The JSON value of a payload; no content is no value."""
    kind = payload.WhichOneof("content")
    if kind is None:
        return None
    return json.loads(payload.json if kind == "json" else payload.data)


class Worker:
    def __init__(self, address, queue, namespace, slots):
        self.channel = grpc.insecure_channel(address)
        self.service = worker_service_pb2_grpc.WorkerServiceStub(self.channel)
        self.queue = queue
        self.namespace = namespace
        self.session_id = str(uuid.uuid4())
        self.slots = threading.Semaphore(slots)
        self.held = set()
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.pool = ThreadPoolExecutor(max_workers=slots)

    def run(self):
        failures = 0
        while not self.stopping.is_set():
            # A slot before the poll: what is handed over can start.
            if not self.slots.acquire(timeout=1):
                self.renew()
                continue
            try:
                tasks = self.poll()
                failures = 0
            except grpc.RpcError as error:
                self.slots.release()
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
                    raise
                failures += 1
                self.stopping.wait(min(5.0, 0.1 * 2**failures))
                continue
            if not tasks:
                self.slots.release()
            for task in tasks:
                with self.lock:
                    self.held.add(task.task_token)
                self.pool.submit(self.work, task)
        # What was handed over is finished before the end.
        self.pool.shutdown(wait=True)
        self.channel.close()

    def poll(self):
        with self.lock:
            held = list(self.held)
        request = worker_service_pb2.PollTasksRequest(
            namespace=self.namespace,
            queue=self.queue,
            task_types=sorted(HANDLERS),
            max_tasks=1,
            wait=Duration(seconds=POLL_SECONDS),
            session_id=self.session_id,
            worker="python-stubs",
            held_task_tokens=held,
            session_ttl=Duration(seconds=SESSION_TTL_SECONDS),
        )
        return self.service.PollTasks(request, timeout=POLL_SECONDS + 10).tasks

    def renew(self):
        """All slots are busy, so nothing polls: a heartbeat keeps the session alive."""
        with self.lock:
            token = next(iter(self.held), None)
        if token is None:
            return
        try:
            self.service.HeartbeatTask(worker_service_pb2.HeartbeatTaskRequest(task_token=token), timeout=5)
        except grpc.RpcError:
            pass  # The next one says the same.

    def work(self, task):
        try:
            handler = HANDLERS.get(task.type)
            if handler is None:
                raise TaskFailed("recoup.no_such_task", f"no handler for {task.type}")
            output = handler(task, value_of(task.input))
            payload = payload_pb2.Payload(json=json.dumps(output))
            request = worker_service_pb2.CompleteTaskRequest(task_token=task.task_token, output=payload)
            self.report(self.service.CompleteTask, request)
        except TaskFailed as error:
            request = worker_service_pb2.FailTaskRequest(task_token=task.task_token, error=error.to_proto())
            self.report(self.service.FailTask, request)
        except Exception as error:  # noqa: BLE001: whatever a handler raises is the attempt's error
            failed = TaskFailed(f"python.{type(error).__name__}", str(error))
            request = worker_service_pb2.FailTaskRequest(task_token=task.task_token, error=failed.to_proto())
            self.report(self.service.FailTask, request)
        finally:
            with self.lock:
                self.held.discard(task.task_token)
            self.slots.release()

    def report(self, call, request):
        """Results are idempotent by token: they are repeated until the service has taken or refused them."""
        for retry in range(60):
            try:
                call(request, timeout=10)
                return
            except grpc.RpcError as error:
                transient = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
                if error.code() not in transient:
                    print(f"a result was refused: {error.details()}", file=sys.stderr)
                    return
                time.sleep(min(2.0, 0.1 * 2**retry))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:7430", help="host:port of the server")
    parser.add_argument("--queue", default="orders")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--slots", type=int, default=4)
    arguments = parser.parse_args()
    worker = Worker(arguments.address, arguments.queue, arguments.namespace, arguments.slots)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: worker.stopping.set())
    print(f"serving {arguments.queue} at {arguments.address}", flush=True)
    worker.run()


if __name__ == "__main__":
    main()
