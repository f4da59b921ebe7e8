"""Runs the handlers of examples/error-handlers in all three languages: as their guide says, and in further cases.

What needs Go is skipped if Go is not installed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from build_tools import build, go_environment
from client import Client
from conftest import Bench
from processes import LIMIT_S, ROOT, Process
from test_order_saga import fenced, plain
from test_pages import FAILED, Shell, blocks, last_id
from test_python_stubs import state
from wire import from_payload, to_payload

from recoup.v1 import execution_pb2, execution_service_pb2, failure_event_pb2, failure_service_pb2

HANDLERS = ROOT / "examples" / "error-handlers"
GUIDE = "docs/guides/error-handlers.md"
GUESS, DECIDE = HANDLERS / "go" / "guess", HANDLERS / "node" / "decide.js"

#: A workflow that the program in JavaScript completes as soon as it serves its queue, however long that takes.
DECISION = """
name: decision
steps:
  - id: decide
    task: { type: contact.decide, queue: decisions, input: { error: { type: any }, email: ada@good.example } }
"""

#: A workflow in which the handler in Go gets an error without the details that it reads.
WITHOUT_DETAILS = """
name: without_details
steps:
  - id: look
    fail: { type: directory.unknown, message: it has no details }
    catch:
      - steps:
          - id: guess
            task: { type: profile.guess, queue: guesses, input: { error: "${error}" } }
"""


def commands(text: str) -> str:
    """Returns the block of the guide that contains a text, with the tests' interpreter in place of the reader's."""
    [block] = [block for block in blocks(GUIDE, "sh") if text in block]
    return re.sub(r"(\$PWD/)?examples/python-stubs/\.venv/bin/python", sys.executable, block)


@pytest.fixture(scope="module")
def guess() -> Path:
    """Builds the program in Go with the commands of the guide."""
    environment = go_environment()
    build("bash", "-e", "-c", commands("go build"), folder=ROOT, environment=environment)
    build("go", "vet", ".", folder=HANDLERS / "go", environment=environment)
    return GUESS


@pytest.fixture(scope="module")
def decide() -> Path:
    """Installs what the program in JavaScript needs, with the command of the guide."""
    install = commands("npm ci").rstrip() + " --prefer-offline --no-audit --no-fund --loglevel=error"
    build("bash", "-e", "-c", install, folder=ROOT)
    return DECIDE


def run(client: Client, workflow: str, task_input: Any) -> tuple[str, execution_pb2.Outcome]:
    """Runs an execution. Returns its id, and how it ended."""
    spec = execution_pb2.ExecutionSpec(workflow=workflow, input=to_payload(task_input))
    request = execution_service_pb2.StartExecutionRequest(execution=spec)
    execution_id = client.executions.StartExecution(request, timeout=LIMIT_S).execution_id
    return execution_id, client.outcome(execution_id)


def await_node(client: Client) -> None:
    """Waits until the program in JavaScript takes tasks. The workflow `contact` waits for it only for some seconds."""
    assert state(run(client, "decision", {})[1]) == "SUCCEEDED"


@pytest.fixture
def client(client: Client) -> Client:
    client.register(DECISION)
    return client


class Teams:
    """The workers of the example, and a client that adds contacts."""

    def __init__(self, bench: Bench, client: Client, tickets: Path) -> None:
        self._bench = bench
        self._client = client
        self._tickets = tickets
        client.register((HANDLERS / "contact.yaml").read_text())

    def python(self) -> None:
        self._bench.worker(program=HANDLERS / "contacts.py")
        self._bench.worker("--tickets", str(self._tickets), program=HANDLERS / "report.py")

    def go(self, program: Path) -> None:
        self._bench.run(program, "--address", self._bench.address)

    def node(self, program: Path) -> None:
        self._bench.run("node", program, "--address", self._bench.address)
        await_node(self._client)

    def add(self, task_input: Any) -> tuple[str, execution_pb2.Outcome]:
        """Adds a contact. Returns the execution's id, and how it ended."""
        return run(self._client, "contact", task_input)

    def events(self, execution_id: str) -> list[tuple[str, str, str]]:
        """Returns the kind, the step and the type of the error of each event on the feed, in order."""
        request = failure_service_pb2.ListFailuresRequest(execution_id=execution_id)
        failures = self._client.failures.ListFailures(request, timeout=LIMIT_S).failures
        kind = failure_event_pb2.FailureKind.Name
        return [
            (kind(event.kind).removeprefix("FAILURE_KIND_"), event.step_path, event.error.type)
            for event in reversed(failures)
        ]

    def tickets(self, execution_id: str) -> dict[str, Any]:
        """Returns the tickets of an execution: the type of the error, by the step that opened the ticket."""
        return {
            file.stem.split("_", 1)[1]: json.loads(file.read_text())["error"]["type"]
            for file in self._tickets.glob(f"{execution_id}_*.json")
        }


@pytest.fixture
def teams(bench: Bench, client: Client, tmp_path: Path) -> Teams:
    return Teams(bench, client, tmp_path)


def types(error: Any) -> list[str]:
    """Returns the types of an error and of its causes, from the outermost to the innermost."""
    return [error.type, *types(error.cause)] if error.type else []


class Reader:
    """Follows the guide: runs its commands in their order, and compares what they print."""

    def __init__(self, bench: Bench, client: Client, tickets: Path) -> None:
        self._bench = bench
        self._client = client
        self._tickets = tickets
        self._shell = Shell(ROOT, bench.address)
        self._node: Process | None = None
        self._execution_id = ""

    def steps(self) -> Iterator[tuple[str, str, str]]:
        """Yields the language of each block that shows an output, the text of the block, and the real output."""
        printed = ""
        for step in re.finditer(r"with Ctrl-C|^```(\w+)\n(.*?)^```$", (ROOT / GUIDE).read_text(), re.M | re.S):
            language, text = step[1], step[2]
            if language is None:
                assert self._node is not None
                self._node.end()
            elif language == "sh" and "decide.js\n" in text:
                self._start(text)
            elif language == "sh" and text.startswith("recoup"):
                printed = self._run(text)
            elif language == "text":
                yield language, text, printed
            elif language == "json":
                [ticket] = self._tickets.glob("*.json")
                yield language, text, ticket.read_text()

    def _start(self, text: str) -> None:
        contacts, report, go, node = text.splitlines()
        for command, arguments in ((contacts, []), (report, ["--tickets", str(self._tickets)])):
            self._bench.worker(*arguments, program=ROOT / command.split()[1])
        self._bench.run(ROOT / go, "--address", self._bench.address)
        self._node = self._bench.run("node", ROOT / node.split()[1], "--address", self._bench.address)
        await_node(self._client)

    def _run(self, text: str) -> str:
        """Runs the commands of a block, one by one, and returns what the last one printed."""
        printed = ""
        for command in text.splitlines():
            [(printed, code)] = self._shell.run(command, ID=self._execution_id)
            assert code in (0, FAILED), printed
            if command.startswith("recoup run"):
                self._execution_id = last_id(printed)
        return printed


def without_traces(error: Any) -> Any:
    """Shortens the stack traces of an error and of its causes, as the guide does."""
    if isinstance(error, dict):
        return {name: "…" if name == "stack_trace" and value else without_traces(value) for name, value in error.items()}
    return error


def test_the_guide_shows_what_its_commands_print(
    bench: Bench, client: Client, tmp_path: Path, guess: Path, decide: Path
) -> None:
    compared = []
    for language, shown, printed in Reader(bench, client, tmp_path).steps():
        compared.append(language)
        if language == "json":
            assert json.loads(shown) == without_traces(json.loads(printed))
        else:
            assert plain(shown) == plain(printed)
    assert (compared.count("text"), compared.count("json")) == (10, 1)


def test_the_guide_quotes_the_example() -> None:
    def lines(text: str) -> str:
        return "\n".join(line.strip() for line in text.splitlines())

    files = [HANDLERS / name for name in ("contact.yaml", "contacts.py", "report.py", "go/main.go", "node/decide.js")]
    sources = [lines(file.read_text()) for file in files]
    quotes = [lines(text) for language, text in fenced(GUIDE) if language in ("python", "yaml", "go", "js")]
    assert len(quotes) == 11
    for quote in quotes:
        assert any(quote in source for source in sources), quote


#: Contacts whose errors the handlers in Python and JavaScript take: the input, the output (None if the execution
#: fails), the types of the execution's error, the events on the feed, and the tickets.
Case = tuple[Any, Any, list[str], list[tuple[str, str, str]], dict[str, str]]
CASES: dict[str, Case] = {
    "an error that is reported and passed on": (
        {"email": "ada@locked.example"},
        {"added": "ada@locked.example", "company": None, "source": "none", "later": True},
        [],
        [("STEP_CAUGHT", "profile.enrich", "directory.forbidden")] * 2,
        {"profile.enrich.report_0": "directory.forbidden"},
    ),
    "a timeout": (
        {"email": "ada@slow.example"},
        {"added": "ada@slow.example", "company": None, "source": "none", "later": True},
        [],
        [
            ("ATTEMPT_FAILED", "profile.enrich", "recoup.timeout.start_to_close"),
            ("STEP_CAUGHT", "profile.enrich", "recoup.timeout.start_to_close"),
        ],
        {},
    ),
    "a decision against the contact": (
        {"email": "ada@private.example"},
        None,
        ["directory.objection"],
        [
            ("STEP_CAUGHT", "profile.enrich", "directory.objection"),
            ("STEP_FAILED", "profile.enrich", "directory.objection"),
            ("EXECUTION_FAILED", "profile.enrich", "directory.objection"),
        ],
        {"tell_0": "directory.objection"},
    ),
    "an unknown type, and a handler that fails": (
        {"email": "nowhere"},
        None,
        ["contact.address_invalid", "python.IndexError"],
        [
            ("ATTEMPT_FAILED", "profile.enrich", "python.IndexError"),
            ("STEP_CAUGHT", "profile.enrich", "python.IndexError"),
            ("STEP_FAILED", "profile.decide", "contact.address_invalid"),
            ("EXECUTION_FAILED", "profile.decide", "contact.address_invalid"),
        ],
        {"tell_0": "contact.address_invalid"},
    ),
    "a handler with a defect, which is retried": (
        {"email": 7},
        None,
        ["node.TypeError", "python.AttributeError"],
        [
            ("ATTEMPT_FAILED", "profile.enrich", "python.AttributeError"),
            ("STEP_CAUGHT", "profile.enrich", "python.AttributeError"),
            ("ATTEMPT_FAILED", "profile.decide", "node.TypeError"),
            ("STEP_FAILED", "profile.decide", "node.TypeError"),
            ("EXECUTION_FAILED", "profile.decide", "node.TypeError"),
        ],
        {"tell_0": "node.TypeError"},
    ),
}
#: The same for errors that the handler in Go takes first.
GO_CASES: dict[str, Case] = {
    "an error by its type": (
        {"email": "ada@small.example"},
        {"added": "ada@small.example", "company": "Small", "source": "guess"},
        [],
        [("STEP_CAUGHT", "profile.enrich", "directory.unknown")],
        {},
    ),
    "a handler that fails inside another one's reach": (
        {"email": "ada@mail.example"},
        {"added": "ada@mail.example", "company": None, "source": "none", "later": False},
        [],
        [
            ("STEP_CAUGHT", "profile.enrich", "directory.unknown"),
            ("STEP_CAUGHT", "profile.enrich.guess", "guess.impossible"),
        ],
        {},
    ),
}


def check(teams: Teams, name: str, case: Case) -> None:
    task_input, output, error_types, events, tickets = case
    execution_id, outcome = teams.add(task_input)
    assert (name, state(outcome)) == (name, "FAILED" if output is None else "SUCCEEDED")
    assert (name, from_payload(outcome.output)) == (name, output)
    assert (name, types(outcome.error)) == (name, error_types)
    assert (name, teams.events(execution_id)) == (name, events)
    assert (name, teams.tickets(execution_id)) == (name, tickets)


def test_each_error_is_taken_by_the_handler_that_the_guide_names(teams: Teams, decide: Path) -> None:
    teams.python()
    teams.node(decide)
    for name, case in CASES.items():
        check(teams, name, case)


def test_the_handler_in_go_takes_its_type_and_its_own_error_goes_to_the_general_handler(
    teams: Teams, guess: Path, decide: Path
) -> None:
    teams.python()
    teams.go(guess)
    teams.node(decide)
    for name, case in GO_CASES.items():
        check(teams, name, case)


def test_the_handler_in_go_reports_an_error_without_the_details_that_it_needs(
    teams: Teams, client: Client, guess: Path
) -> None:
    client.register(WITHOUT_DETAILS)
    teams.go(guess)
    execution_id, outcome = run(client, "without_details", {})
    assert types(outcome.error) == ["guess.no_domain", "directory.unknown"]
    assert [kind for kind, _, _ in teams.events(execution_id)] == ["STEP_CAUGHT", "STEP_FAILED", "EXECUTION_FAILED"]


def test_a_contact_is_added_without_a_worker_for_the_decision(teams: Teams) -> None:
    teams.python()
    execution_id, outcome = teams.add({"email": "ada@locked.example"})
    expected = {"added": "ada@locked.example", "company": None, "source": "none", "later": True}
    assert from_payload(outcome.output) == expected
    assert teams.events(execution_id)[-1] == (
        "STEP_CAUGHT", "profile.decide", "recoup.timeout.schedule_to_start",
    )


def test_the_handlers_outlive_a_restart_of_the_server(
    bench: Bench, client: Client, teams: Teams, guess: Path, decide: Path
) -> None:
    teams.python()
    teams.go(guess)
    teams.node(decide)
    names = ("an error by its type", "an error that is reported and passed on", "a decision against the contact")
    # Before the restart, so that every worker has a connection that breaks.
    for name in names:
        check(teams, name, (GO_CASES | CASES)[name])
    bench.restart_server()
    await_node(client)
    for name in names:
        check(teams, name, (GO_CASES | CASES)[name])
