"""A simulated directory of companies. The domain of an address chooses how the directory behaves."""

from __future__ import annotations

from threading import Event
from typing import Any


class Unknown(Exception):
    """The directory has no company with this domain."""


class Objection(Exception):
    """The person does not want to be contacted."""


def find(email: str, attempt: int, stop: Event) -> Any:
    """Returns the profile of the company that an address belongs to. Takes until `stop` is set for one domain."""
    domain = email.split("@")[1]
    match domain:
        case "flaky.example" if attempt == 1:
            raise ConnectionResetError("connection reset by peer")
        case "locked.example":
            raise PermissionError("403: the access key has expired")
        case "private.example":
            raise Objection(f"{email} objects to being contacted")
        case "slow.example":
            stop.wait()
        case "small.example" | "mail.example":
            raise Unknown(f"no company at {domain}")
    return {"company": domain.split(".")[0].title(), "source": "directory"}
