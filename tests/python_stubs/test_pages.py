"""Runs the commands of the README and of other pages in their order, with the worker that the README describes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import Default

# Loads the descriptions of the services that `grpcurl` looks up.
from recoup.v1 import execution_service_pb2, worker_service_pb2  # noqa: F401

from conftest import Bench
from processes import EXAMPLES, LIMIT_S, ROOT, SERVER

#: The exit code of `recoup run` if the execution failed.
FAILED = 4


def blocks(page: str, language: str) -> list[str]:
    """Returns the fenced blocks of a page that are in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


class Shell:
    """Runs the `recoup` commands of a block, in a folder."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder = folder
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("RECOUP_")}
        self._environment["RECOUP_ADDRESS"] = address

    def run(self, block: str, **placeholders: str) -> list[tuple[str, int]]:
        """Returns what each command printed, and its exit code. Replaces words that are placeholders, such as ID."""
        here = re.search(r"<<'END'\n(.*?)^END$", block, re.MULTILINE | re.DOTALL)
        block = block.replace(here[0], "\n") if here else block
        done = []
        for line in filter(str.strip, block.replace("\\\n", " ").splitlines()):
            words = shlex.split(line, comments=True)
            assert words[0] == "recoup"
            words = [placeholders.get(word, word) for word in words[1:]]
            ran = subprocess.run(
                [SERVER, *words],
                cwd=self._folder,
                env=self._environment,
                input=here[1] if here and "-" in words else "",
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LIMIT_S,
            )
            done.append((ran.stdout, ran.returncode))
        return done


def grpcurl(command: str, address: str, **placeholders: str) -> Any:
    """Makes the call of a grpcurl command, and returns the response as grpcurl prints it. Replaces placeholders, such as TOKEN."""
    for placeholder, value in placeholders.items():
        command = command.replace(placeholder, value)
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    assert words[:3] == ["grpcurl", "-plaintext", "-d"]
    body, service_and_method = words[3], words[5]
    service, method = service_and_method.split("/")
    described = Default().FindServiceByName(service).FindMethodByName(method)
    request = json_format.Parse(body, message_factory.GetMessageClass(described.input_type)())
    response = message_factory.GetMessageClass(described.output_type)
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return json_format.MessageToDict(call(request, timeout=LIMIT_S))


def last_id(text: str) -> str:
    return re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", text)[-1]


def test_readme_leads_to_an_own_workflow_that_fails_and_is_undone(bench: Bench, tmp_path: Path) -> None:
    programs = tmp_path / "python-stubs"
    shutil.copytree(EXAMPLES, programs)
    handlers = programs / "handlers.py"
    kept = handlers.read_text().split("def reserve")[0]
    [functions] = blocks("README.md", "python")
    handlers.write_text(kept + functions)
    (tmp_path / "signup.yaml").write_text(blocks("README.md", "yaml")[0])
    register, run = (block for block in blocks("README.md", "sh") if "recoup " in block and "signup" in block)

    shell = Shell(tmp_path, bench.address)
    (waits, valid), (registered, accepted) = shell.run(register)
    assert (valid, accepted) == (0, 0), waits + registered
    assert "signup v1 registered" in registered

    bench.worker("--queue", "signups", program=programs / "worker.py")
    *first, show = run.splitlines()
    (_, succeeded), (failed, code), (listed, _) = shell.run("\n".join(first))
    assert (succeeded, code) == (0, FAILED)
    assert "mail.address_unknown" in failed
    assert [state for state in ("SUCCEEDED", "FAILED") if state in listed] == ["SUCCEEDED", "FAILED"]

    [(shown, _)] = shell.run(show, ID=last_id(failed))
    assert "nowhere is not an address" in shown
    assert "compensation: account" in shown
    assert "undone by python-stubs" in shown


def test_commands_of_the_page_on_executions_find_the_declined_order(bench: Bench) -> None:
    bench.worker()
    shell = Shell(ROOT, bench.address)
    commands, show = blocks("docs/executions.md", "sh")[0].rstrip().rsplit("\n", 1)
    (registered, _), (ran, code), (listed, _) = shell.run(commands)
    assert "order v1 registered" in registered
    assert code == FAILED, ran
    execution_id = last_id(ran)
    assert execution_id in listed

    [(shown, code)] = shell.run(show, ID=execution_id)
    assert code == 0
    assert "payment.card_declined" in shown


def test_blocks_of_the_page_on_executions_can_be_followed_to_the_end(bench: Bench, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "order.json").write_text(json.dumps({"order": "9", "items": [], "amount": 5, "scenario": ""}))
    shell = Shell(tmp_path, bench.address)
    _, start, end, namespace = blocks("docs/executions.md", "sh")
    assert shell.run("recoup workflow register examples/order/order.yaml")[0][1] == 0
    worker = bench.worker()
    (started, code), (ran, succeeded) = shell.run(start)
    assert (code, succeeded) == (0, 0), started + ran
    assert worker.end() == 0

    # Without a worker, an execution stays open until it is cancelled or terminated.
    for command in end.splitlines():
        [(started, _)] = shell.run("recoup start order --input @order.json")
        [(ended, code)] = shell.run(command, ID=last_id(started))
        assert code == 0, ended

    assert [code for _, code in shell.run(namespace)] == [0, 0, 0]


def test_commands_of_the_page_on_definitions_succeed(bench: Bench) -> None:
    done = Shell(EXAMPLES.parent / "order", bench.address).run(blocks("docs/definitions.md", "sh")[0])
    assert [code for _, code in done] == [0, 0, 0]
    assert "name: order" in done[2][0]


def test_calls_of_the_page_on_workers_complete_a_task_without_a_worker(bench: Bench, tmp_path: Path) -> None:
    shell = Shell(tmp_path, bench.address)
    begin, poll, finish = blocks("docs/workers.md", "sh")
    (registered, accepted), (started, code) = shell.run(begin)
    assert (accepted, code) == (0, 0), registered + started
    [task] = grpcurl(poll, bench.address)["tasks"]
    complete, show = finish.rsplit("\n", 2)[:2]
    assert grpcurl(complete, bench.address, TOKEN=task["taskToken"]) == {}
    [(shown, code)] = shell.run(show, ID=last_id(started))
    assert code == 0
    assert 'output "Hello, Ada"' in shown


def test_call_of_the_page_on_clients_starts_an_execution(bench: Bench) -> None:
    assert Shell(ROOT, bench.address).run("recoup workflow register examples/order/order.yaml")[0][1] == 0
    [call] = [block for block in blocks("docs/clients.md", "sh") if block.startswith("grpcurl")]
    assert "executionId" in grpcurl(call, bench.address)
