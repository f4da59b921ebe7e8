"""The store of the worker: the stock of the shop, and the keys of what was done to it.

A row of `done` is written in the same transaction as the effect that it stands for. So either both are there or
neither is, whenever the worker dies.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCHEMA = (
    "create table if not exists stock (item text primary key, left integer not null)",
    "insert or ignore into stock values ('mug', 100), ('lamp', 0)",
    "create table if not exists done (key text primary key, result text not null)",
)


@contextmanager
def transaction(file: Path) -> Iterator[sqlite3.Connection]:
    """Opens a transaction that is committed at the end, unless an exception is raised."""
    db = sqlite3.connect(file, isolation_level=None, timeout=10)
    try:
        # Takes the write lock at once, so that two attempts with one key cannot both find that it is new.
        db.execute("begin immediate")
        yield db
        db.execute("commit")
    finally:
        # Without the commit, this rolls everything back.
        db.close()


class Store:
    """A SQLite file. Every call opens it anew, so threads and processes can share it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with transaction(file) as db:
            for statement in SCHEMA:
                db.execute(statement)

    def once(self, key: str, act: Callable[[sqlite3.Connection], Any]) -> Any:
        """Performs `act` if nothing was done under this key yet. Returns the result of the first time."""
        with transaction(self._file) as db:
            known = db.execute("select result from done where key = ?", (key,)).fetchone()
            if known is not None:
                return json.loads(known[0])
            result = act(db)
            db.execute("insert into done values (?, ?)", (key, json.dumps(result)))
            return result
