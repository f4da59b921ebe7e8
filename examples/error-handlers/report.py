"""The handler in Python: opens a ticket for an error. The guide docs/guides/error-handlers.md explains it."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

# The worker itself, without its handlers.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python-stubs"))

from handlers import TaskContext  # noqa: E402
from worker import options, serve  # noqa: E402


def report(tickets: Path, context: TaskContext, task_input: Any) -> Any:
    """Writes a ticket. Every attempt writes the same file, because its name is the idempotency key."""
    error = root = task_input["error"]
    while root["cause"] is not None:
        root = root["cause"]
    ticket = {"title": f"{error['step']}: {root['message']}", "error": error}
    file = tickets / (context.idempotency_key.replace("/", "_") + ".json")
    file.write_text(json.dumps(ticket, indent=2))
    return {"ticket": file.name}


if __name__ == "__main__":
    parser = options(__doc__)
    parser.set_defaults(queue="reports")
    parser.add_argument("--tickets", type=Path, default=Path(__file__).parent / "tickets", help="the folder for tickets")
    arguments = parser.parse_args()
    arguments.tickets.mkdir(exist_ok=True)
    serve({"error.report": partial(report, arguments.tickets)}, arguments)
