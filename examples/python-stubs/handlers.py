"""The work itself, without gRPC: one function per task type of the order workflow. Replace them with your own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Compensation:
    """What a compensator undoes."""

    #: False if it is unknown whether the step took effect. Then ask the service that the step called, using the
    #: idempotency key.
    completed: bool
    #: The output of the step. None if its outcome is unknown.
    step_output: Any


@dataclass(frozen=True)
class TaskContext:
    """What a handler knows besides its input."""

    #: The number of this attempt, starting at 1.
    attempt: int
    #: The same for all attempts of a step, which together must take effect only once. Pass it on to the services that
    #: you call.
    idempotency_key: str
    #: Set when the task should stop. For a while after that, the handler's result or error still counts.
    cancelled: threading.Event
    #: Set if the task undoes a step.
    compensation: Compensation | None = None

    @property
    def undone_key(self) -> str:
        """The idempotency key of the step that a compensation undoes."""
        return self.idempotency_key.removesuffix("/compensate")


class TaskFailed(Exception):
    """Raised by a handler to report what went wrong. Retry policies match `error_type`. The rest is for people."""

    def __init__(
        self,
        error_type: str,
        message: str,
        *,
        details: Any = None,
        category: str = "UNSPECIFIED",
        non_retryable: bool | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.details = details
        #: TRANSIENT, INTERMITTENT, PERMANENT or BENIGN.
        self.category = category
        self.non_retryable = non_retryable
        self.retry_after_s = retry_after_s


Handler = Callable[[TaskContext, Any], Any]


def reserve(context: TaskContext, order: Any) -> Any:
    """Reserves stock under the idempotency key, so a repeated call returns the same reservation."""
    return {"reservation": context.idempotency_key}


def charge(context: TaskContext, order: Any) -> Any:
    """Takes the payment from a simulated provider. The order's `scenario` chooses how the provider behaves."""
    if order["amount"] <= 0:
        # No retry can fix this, whatever the retry policy says.
        raise TaskFailed("payment.amount_invalid", f"{order['amount']} cannot be charged", non_retryable=True)
    match order.get("scenario"):
        case "transient" if context.attempt <= 2:
            raise TaskFailed("payment.unavailable", "the provider is down")
        case "rate_limited" if context.attempt == 1:
            raise TaskFailed("payment.rate_limited", "slow down", retry_after_s=0.7)
        case "declined":
            # The worker reports what happened. The workflow decides whether to retry.
            raise TaskFailed("payment.card_declined", "insufficient funds", details={"code": 51})
        case "hang":
            _hang(context)
        case "hang_once" if context.attempt == 1:
            _hang(context)
        case "bug":
            return {"receipt": order["no such field"]}
    return {"receipt": context.idempotency_key}


def _hang(context: TaskContext) -> None:
    """Never finishes by itself. A handler that takes long should check `cancelled` regularly, as this one does."""
    context.cancelled.wait()
    raise TaskFailed("payment.interrupted", "was told to stop")


def ship(context: TaskContext, order: Any) -> Any:
    """Sends the parcel."""
    return {"parcel": f"P-{order['order']}"}


def refund(context: TaskContext, order: Any) -> Any:
    """Refunds the payment. If it is unknown whether the payment was taken, looks it up at the provider first."""
    undone = context.compensation
    if undone is not None and undone.completed:
        return {"refunded": undone.step_output["receipt"]}
    # A real refund would ask the provider for the charge that was made with this key.
    return {"looked_up": context.undone_key}


def undo(context: TaskContext, task_input: Any) -> Any:
    """Undoes a step. Does nothing if there is nothing to undo."""
    return {"undone": True}


def notify(context: TaskContext, order: Any) -> Any:
    """Sends a message to the customer."""
    return {"sent": True}


HANDLERS: dict[str, Handler] = {
    "stock.reserve": reserve,
    "stock.release": undo,
    "payment.charge": charge,
    "payment.refund": refund,
    "parcel.ship": ship,
    "parcel.recall": undo,
    "mail.notify": notify,
}
