"""A worker for the workflows order_saga.yaml and renewal.yaml. The guide docs/guides/order-saga.md explains it."""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

# The worker itself, without its handlers.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python-stubs"))

from handlers import Handler, TaskContext, TaskFailed  # noqa: E402
from worker import options, serve  # noqa: E402

from outside import AddressUnknown, Busy, CardEmpty, CardStolen, NoAnswer, Outside  # noqa: E402
from store import Store  # noqa: E402


class Saga:
    """The handlers of all tasks."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._store = Store(folder / "shop.db")
        self._outside = Outside(folder / "outside.db")

    def reserve(self, context: TaskContext, order: Any) -> Any:
        """Takes the item from the stock, once for all attempts."""
        item = order["item"]

        def take(db: sqlite3.Connection) -> Any:
            taken = db.execute("update stock set left = left - 1 where item = ? and left > 0", (item,))
            if taken.rowcount == 0:
                raise TaskFailed("stock.sold_out", f"there is no {item} left", category="PERMANENT")
            return {"item": item}

        return self._store.once(context.idempotency_key, take)

    def release(self, context: TaskContext, order: Any) -> Any:
        """Puts the item back, if it was taken."""

        def put_back(db: sqlite3.Connection) -> Any:
            # Takes the key of the step if it is still free. An attempt of the step that is still running somewhere then
            # finds that it was already done.
            late = db.execute("insert or ignore into done values (?, 'null')", (context.undone_key,))
            if late.rowcount == 1:
                return {"put_back": None}
            db.execute("update stock set left = left + 1 where item = ?", (order["item"],))
            return {"put_back": order["item"]}

        return self._store.once(context.idempotency_key, put_back)

    def charge(self, context: TaskContext, order: Any) -> Any:
        """Takes the payment. The provider gets the idempotency key, so a repeated request takes nothing."""
        key = context.idempotency_key
        try:
            receipt = self._outside.charge(key, order["card"])
        except ConnectionResetError as error:
            # The payment may have been taken before the connection broke. An error would tell the server that it was
            # not, so look first.
            receipt = self._outside.find(key)
            if receipt is None:
                raise TaskFailed("payment.unreachable", "no answer", category="TRANSIENT") from error
        except Busy as busy:
            raise TaskFailed(
                "payment.busy", str(busy), category="INTERMITTENT", retry_after_s=busy.retry_after_s
            ) from None
        except CardStolen as stolen:
            # No attempt can succeed with this card: final for every workflow.
            raise TaskFailed("payment.card_stolen", str(stolen), non_retryable=True) from None
        except CardEmpty as empty:
            # Whether to try again tomorrow is for the workflow to decide.
            raise TaskFailed("payment.insufficient_funds", str(empty)) from None
        return {"receipt": receipt}

    def refund(self, context: TaskContext, order: Any) -> Any:
        """Undoes the payment with the step's key, whether or not it is known that it was taken."""
        return {"refunded": self._outside.undo(context.undone_key)}

    def book(self, context: TaskContext, order: Any) -> Any:
        """Books the parcel."""
        try:
            return {"parcel": self._ask_carrier(context, order["address"])}
        except TaskFailed as failed:
            # For the workflow it only matters that there is no parcel. The cause keeps its own type.
            raise TaskFailed("parcel.not_booked", f"no parcel for order {order['order']}") from failed

    def _ask_carrier(self, context: TaskContext, address: str) -> str:
        try:
            return self._outside.book(context.idempotency_key, address, context.cancelled)
        except AddressUnknown as unknown:
            raise TaskFailed("carrier.address_unknown", str(unknown)) from None
        except NoAnswer:
            # An error would tell the server that nothing was booked, so look first.
            parcel = self._outside.find(context.idempotency_key)
            if parcel is None:
                raise TaskFailed("carrier.unreachable", "no answer", category="TRANSIENT") from None
            return parcel

    def cancel(self, context: TaskContext, order: Any) -> Any:
        """Cancels the parcel with the step's key, whether or not it is known that it was booked."""
        return {"cancelled": self._outside.undo(context.undone_key)}

    def handlers(self) -> dict[str, Handler]:
        """Returns the handler of each task type."""
        return {
            "stock.reserve": self.reserve,
            "stock.release": self.release,
            "payment.charge": self.charge,
            "payment.refund": self.refund,
            "parcel.book": self.book,
            "parcel.cancel": self.cancel,
        }


def dying(handler: Handler) -> Handler:
    """Lets the worker die after the handler has done its work, before the result is reported."""

    def run(context: TaskContext, task_input: Any) -> Any:
        handler(context, task_input)
        os._exit(1)

    return run


def main() -> None:
    parser = options(__doc__)
    parser.set_defaults(queue="saga")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data", help="the folder for both databases")
    parser.add_argument("--die-after", metavar="TASK", help="die when a task of this type is done, before reporting it")
    arguments = parser.parse_args()
    handlers = Saga(arguments.data).handlers()
    if arguments.die_after:
        handlers[arguments.die_after] = dying(handlers[arguments.die_after])
    serve(handlers, arguments)


if __name__ == "__main__":
    main()
