"""What both programs need: the channel, JSON payloads, the reason for a refusal, backoff."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status

# The generated modules import each other as `recoup.v1.…`, so their folder must be on the path.
sys.path.insert(0, str(Path(__file__).parent / "generated"))

from recoup.v1 import failure_service_pb2, failure_service_pb2_grpc, payload_pb2  # noqa: E402

#: How long reading one payload may take, in seconds.
READ_LIMIT_S = 10.0

#: Codes for which a later call may succeed. With any other code the refusal is final.
PASSING_CODES = frozenset({
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
})


def connect(address: str) -> grpc.Channel:
    """Opens a channel without TLS to `HOST:PORT`. The channel connects and reconnects by itself."""
    options = [
        # The server sends batches of up to 4 MiB, plus some overhead.
        ("grpc.max_receive_message_length", 8 * 1024 * 1024),
        # Keepalive pings detect a connection that was lost silently.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    return grpc.insecure_channel(address.removeprefix("http://"), options=options)


def to_payload(value: Any) -> payload_pb2.Payload:
    """Converts a JSON value to a payload; None becomes an empty one. Raises an error if JSON has no such value."""
    if value is None:
        return payload_pb2.Payload()
    return payload_pb2.Payload(json=json.dumps(value, allow_nan=False))


def from_payload(payload: payload_pb2.Payload) -> Any:
    """Returns the JSON value of a payload, or None if it is empty. Raises ValueError if the content is not JSON."""
    match payload.WhichOneof("content"):
        case None:
            return None
        case "json":
            return json.loads(payload.json)
        case other:
            raise ValueError(f"expected a JSON payload, but its content is {other}")


def content(payload: payload_pb2.Payload, failures: failure_service_pb2_grpc.FailureServiceStub) -> payload_pb2.Payload:
    """Returns the payload with its content. Reads it from the server if the payload came as a reference.

    The server sends a reference if the content does not fit into its answer.
    """
    if payload.WhichOneof("content") != "reference":
        return payload
    request = failure_service_pb2.ReadPayloadRequest(payload_id=payload.reference.payload_id)
    return failures.ReadPayload(request, timeout=READ_LIMIT_S).payload


def to_duration(seconds: float) -> Duration:
    """Converts seconds to a protobuf duration."""
    duration = Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration


def refusal_reason(error: grpc.RpcError) -> str:
    """Returns why the server refused a call: the name of an ErrorReason, such as `ATTEMPT_CLOSED`.

    Empty if the server gave no reason.
    """
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == "recoup":
            return info.reason
    return ""


class Backoff:
    """Waiting times that double up to a limit.

    Each is drawn at random from its upper half, so that many clients do not come back at the same moment.
    """

    def __init__(self, first_s: float = 0.1, longest_s: float = 10.0) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._next_s = first_s

    def reset(self) -> None:
        """Starts over. To be called after a success."""
        self._next_s = self._first_s

    def next_s(self) -> float:
        """Returns how many seconds to wait this time."""
        wait_s = self._next_s * random.uniform(0.5, 1.0)
        self._next_s = min(self._next_s * 2, self._longest_s)
        return wait_s
