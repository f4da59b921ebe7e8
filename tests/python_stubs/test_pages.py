"""The commands of the README and of other pages, in their order, with the worker that the page has its reader write."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from conftest import Bench
from processes import EXAMPLES, LIMIT_S, ROOT, SERVER

#: The exit code of `recoup run` if the execution failed.
FAILED = 4


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


class Shell:
    """Runs the `recoup` commands of a block, in a folder."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder = folder
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("RECOUP_")}
        self._environment["RECOUP_ADDRESS"] = address

    def run(self, block: str, **placeholders: str) -> list[tuple[str, int]]:
        """What each command printed, and its exit code. A placeholder such as ID is replaced where it is a word."""
        done = []
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            assert words[0] == "recoup"
            words = [placeholders.get(word, word) for word in words[1:]]
            ran = subprocess.run(
                [SERVER, *words],
                cwd=self._folder,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LIMIT_S,
            )
            done.append((ran.stdout, ran.returncode))
        return done


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
    (registered, _), (ran, code), (listed, _), _ = Shell(ROOT, bench.address).run(blocks("docs/executions.md", "sh")[0])
    assert "order v1 registered" in registered
    assert code == FAILED, ran
    execution_id = last_id(ran)
    assert execution_id in listed

    show = blocks("docs/executions.md", "sh")[0].splitlines()[-1]
    [(shown, code)] = Shell(ROOT, bench.address).run(show, ID=execution_id)
    assert code == 0
    assert "payment.card_declined" in shown
