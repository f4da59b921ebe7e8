"""The systems of other companies, simulated: a payment provider and a carrier.

Both honour idempotency keys, as most payment providers do: they answer a repeated request with the result of the first
one. Their records are in a SQLite file of their own, which outlives the worker. The card and the address of an order
choose how they behave.
"""

from __future__ import annotations

import threading
from pathlib import Path

from store import transaction

SCHEMA = (
    "create table if not exists request (key text primary key, times integer not null)",
    "create table if not exists effect (key text primary key, number text, undone integer not null default 0)",
)


class Busy(Exception):
    """The provider has too much to do, and says after how many seconds to come back."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("too many requests")
        self.retry_after_s = retry_after_s


class CardEmpty(Exception):
    """There is no money on the card today."""


class CardStolen(Exception):
    """The card was reported as stolen. It will never pay again."""


class AddressUnknown(Exception):
    """The carrier does not deliver to this address."""


class NoAnswer(Exception):
    """The request was sent, and no answer came. It may or may not have taken effect."""


class Outside:
    """The payment provider and the carrier."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with transaction(file) as db:
            for statement in SCHEMA:
                db.execute(statement)

    def charge(self, key: str, card: str) -> str:
        """Takes a payment, and returns the number of its receipt."""
        times = self._asked(key)
        if card == "flaky" and times <= 2:
            raise ConnectionResetError("connection reset by peer")
        if card == "busy" and times == 1:
            raise Busy(retry_after_s=0.3)
        if card == "empty":
            raise CardEmpty("the account is empty")
        if card == "stolen":
            raise CardStolen("the card was reported as stolen")
        receipt = self._once(key, "receipt")
        if card == "cut off" and times == 1:
            # The payment was taken, and the answer was lost.
            raise ConnectionResetError("connection reset by peer")
        return receipt

    def book(self, key: str, address: str, hung_up: threading.Event) -> str:
        """Books a parcel, and returns its number. Gives up when `hung_up` is set."""
        if address == "nowhere":
            raise AddressUnknown("no route to nowhere")
        parcel = self._once(key, "parcel")
        if address == "far away":
            # The parcel was booked, and no answer comes.
            hung_up.wait()
            raise NoAnswer
        return parcel

    def find(self, key: str) -> str | None:
        """Returns the number of the receipt or parcel of an earlier request. None if it had no effect."""
        with transaction(self._file) as db:
            row = db.execute("select number from effect where key = ? and not undone", (key,)).fetchone()
            return row[0] if row else None

    def undo(self, key: str) -> str | None:
        """Undoes the request with this key, and returns its number. None if it had not taken effect.

        A request with this key that arrives later has no effect any more.
        """
        with transaction(self._file) as db:
            db.execute("insert or ignore into effect (key) values (?)", (key,))
            db.execute("update effect set undone = 1 where key = ?", (key,))
            return db.execute("select number from effect where key = ?", (key,)).fetchone()[0]

    def _asked(self, key: str) -> int:
        """Counts a request, and returns how many there were with this key."""
        with transaction(self._file) as db:
            db.execute("insert into request values (?, 1) on conflict do update set times = times + 1", (key,))
            return db.execute("select times from request where key = ?", (key,)).fetchone()[0]

    def _once(self, key: str, what: str) -> str:
        """Takes effect if there was no request with this key. Returns the number of what the first one made."""
        with transaction(self._file) as db:
            made = db.execute("select count(*) from effect where number like ?", (f"{what} %",)).fetchone()[0]
            db.execute("insert or ignore into effect (key, number) values (?, ?)", (key, f"{what} {made + 1}"))
            number, undone = db.execute("select number, undone from effect where key = ?", (key,)).fetchone()
        if undone:
            raise ValueError(f"the request {key} was undone")
        return number
