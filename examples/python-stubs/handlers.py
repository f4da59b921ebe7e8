"""The work itself, free of gRPC: one function per task type of workflow.yaml. Put yours here."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TaskContext:
    """What a handler knows besides its input."""

    #: Which attempt this is, from 1.
    attempt: int
    #: Equal for all attempts that must take effect once: hand it on to whoever you call.
    idempotency_key: str
    #: Set when the task should stop; what it then returns or raises still counts for a while.
    cancelled: threading.Event


class TaskFailed(Exception):
    """Raise it to say what went wrong. Retry policies match `error_type`; people read the rest."""

    def __init__(
        self, error_type: str, message: str, *, details: Any = None, non_retryable: bool | None = None
    ) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.details = details
        self.non_retryable = non_retryable


Handler = Callable[[TaskContext, Any], Any]


def reserve_seat(context: TaskContext, task_input: Any) -> Any:
    """Reserves a seat: the same one, however often it is asked for the same booking."""
    return {"seat": "seat-" + _digest(context.idempotency_key), "booking": task_input["booking"]}


def release_seat(context: TaskContext, task_input: Any) -> Any:
    """Undoes `reserve_seat`."""
    return {"released": task_input["seat"]}


def charge_card(context: TaskContext, task_input: Any) -> Any:
    """Takes money from a card that behaves as its name says."""
    amount, card = task_input["amount"], task_input["card"]
    if not isinstance(amount, int) or amount <= 0:
        # No retry mends this, whatever a policy says.
        raise TaskFailed("payment.amount_invalid", f"{amount} cannot be charged", non_retryable=True)
    if card == "shaky" and context.attempt <= 2:
        raise TaskFailed("payment.unavailable", "the provider does not answer")
    if card == "declined":
        raise TaskFailed("payment.card_declined", "insufficient funds", details={"code": 51})
    if card == "hanging" and context.attempt == 1:
        # The provider hangs. A handler that takes long should look at `cancelled` at times.
        context.cancelled.wait()
        raise TaskFailed("payment.interrupted", "was told to stop")
    return {"receipt": "receipt-" + _digest(context.idempotency_key)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


HANDLERS: dict[str, Handler] = {
    "seat.reserve": reserve_seat,
    "seat.release": release_seat,
    "payment.charge": charge_card,
}
