"""What both programs need: a channel, JSON payloads, typed refusals, waits that grow."""

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
    """Opens a channel without TLS to `HOST:PORT`. It connects, and connects again, by itself."""
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
    """A JSON value as payload. None is no value. Raises for what has no JSON form, such as NaN."""
    if value is None:
        return payload_pb2.Payload()
    return payload_pb2.Payload(json=json.dumps(value, allow_nan=False))


def from_payload(payload: payload_pb2.Payload) -> Any:
    """The JSON value of a payload, None when it holds none. Raises ValueError for another content."""
    match payload.WhichOneof("content"):
        case None:
            return None
        case "json":
            return json.loads(payload.json)
        case other:
            raise ValueError(f"a JSON payload is wanted, this one holds {other}")


def content(payload: payload_pb2.Payload, failures: failure_service_pb2_grpc.FailureServiceStub) -> payload_pb2.Payload:
    """The payload with its content: what an answer had no room for came as a reference, and is read here."""
    if payload.WhichOneof("content") != "reference":
        return payload
    request = failure_service_pb2.ReadPayloadRequest(payload_id=payload.reference.payload_id)
    return failures.ReadPayload(request, timeout=READ_LIMIT_S).payload


def to_duration(seconds: float) -> Duration:
    """Seconds as protobuf writes them."""
    duration = Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration


def refusal_reason(error: grpc.RpcError) -> str:
    """Why the server refused a call: the name of an ErrorReason, such as `ATTEMPT_CLOSED`. Empty: it did not say."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == "recoup":
            return info.reason
    return ""


class Backoff:
    """Waits that double up to a limit, each drawn from its upper half: a crowd does not come back at once."""

    def __init__(self, first_s: float = 0.1, longest_s: float = 10.0) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._next_s = first_s

    def reset(self) -> None:
        """Starts over, after something worked."""
        self._next_s = self._first_s

    def next_s(self) -> float:
        """Seconds to wait now."""
        wait_s = self._next_s * random.uniform(0.5, 1.0)
        self._next_s = min(self._next_s * 2, self._longest_s)
        return wait_s
