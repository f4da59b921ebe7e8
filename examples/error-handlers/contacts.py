"""The worker of the steps themselves: looks up a profile, and adds a contact to the CRM. It handles no errors.

The guide docs/guides/error-handlers.md explains it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# The worker itself, without its handlers.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python-stubs"))

from handlers import TaskContext, TaskFailed  # noqa: E402
from worker import options, serve  # noqa: E402

import directory  # noqa: E402


def find(context: TaskContext, contact: Any) -> Any:
    """Looks up the profile of a contact's company, and says what went wrong in terms of the directory."""
    email = contact["email"]
    try:
        return directory.find(email, context.attempt, context.cancelled)
    except ConnectionResetError as error:
        raise TaskFailed("directory.unreachable", "no answer", category="TRANSIENT") from error
    except directory.Unknown as unknown:
        domain = email.split("@")[1]
        raise TaskFailed(
            "directory.unknown", str(unknown), category="PERMANENT", details={"domain": domain}
        ) from None
    except PermissionError as error:
        raise TaskFailed("directory.forbidden", "access refused", category="PERMANENT") from error
    except directory.Objection as objection:
        raise TaskFailed("directory.objection", str(objection), category="PERMANENT") from None


def add(context: TaskContext, contact: Any) -> Any:
    """Adds the contact. A real CRM would get the idempotency key too, so that a repeated request adds nothing."""
    return {"added": contact["email"], **contact["profile"]}


if __name__ == "__main__":
    parser = options(__doc__)
    parser.set_defaults(queue="contacts")
    serve({"profile.find": find, "crm.add": add}, parser.parse_args())
