"""Commands of the README and of docs/, run as they stand: blocks marked ```console runnable, in order."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.cli import main
from evomerge.cli.commands import COMMANDS, parse
from evomerge.errors import InputError

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"^```console([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# What has commands that can be run here.
DOCUMENTS = [
    README,
    *sorted(f for f in (ROOT / "docs").rglob("*.md") if "```console runnable" in f.read_text(encoding="utf-8")),
]
FILE = re.compile(r"^```(?:yaml|text|python) ([\w.-]+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(document: Path, *, slow: bool) -> list[list[str]]:
    """The marked commands in the document's order; the quick ones are needed by the slow ones."""
    found: list[list[str]] = []
    for marks, body in BLOCK.findall(document.read_text(encoding="utf-8")):
        if "runnable" in marks and (slow or "slow" not in marks):
            found += [shlex.split(line[2:]) for line in body.splitlines() if line.startswith("$ ")]
    return found


def write_files(document: Path, folder: Path) -> None:
    """The files that a document shows by name (```yaml recipe.yaml)."""
    for name, text in FILE.findall(document.read_text(encoding="utf-8")):
        (folder / name).write_text(text, encoding="utf-8")


def run_all(document: Path, found: list[list[str]], folder: Path) -> None:
    write_files(document, folder)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(README.parent)}
    for command in found:
        assert command[0] == "evomerge", f"only evomerge's own commands can be run here: {command}"
        done = subprocess.run(
            [sys.executable, "-m", "evomerge", *command[1:]], cwd=folder, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{shlex.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_quick_commands(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: nine fresh ones would spend most of their time on imports."""
    found = commands(document, slow=False)
    assert found
    monkeypatch.chdir(tmp_path)
    write_files(document, tmp_path)
    for command in found:
        code = main(command[1:])
        assert code == 0, f"{shlex.join(command)}: exit code {code}\n{capsys.readouterr().err}"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_all_commands(document: Path, tmp_path: Path) -> None:
    found = commands(document, slow=True)
    if found == commands(document, slow=False):
        pytest.skip("all of its commands are quick: test_quick_commands ran them")
    assert any(c[1] in ("search", "fuse") for c in found)
    run_all(document, found, tmp_path)


@pytest.mark.parametrize("document", [README, ROOT / "docs" / "index.md"], ids=lambda d: d.name)
def test_every_command_is_named(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert [c for c in COMMANDS if f"`evomerge {c}" not in text] == []


@pytest.mark.slow
def test_the_guide_s_own_function_scores_models(tmp_path: Path) -> None:
    """Its three files as they stand; a model that learned sums is better at them than one that did not."""
    folder = tmp_path
    write_files(ROOT / "docs" / "guides" / "own-evaluator.md", folder)
    subprocess.run([sys.executable, "make_items.py"], cwd=folder, check=True)
    assert len((folder / "items.jsonl").read_text().splitlines()) == 300
    values = {}
    for model in ("zoo:base", "zoo:maths"):
        done = subprocess.run(
            [sys.executable, "-m", "evomerge", "evaluate", model, "--evaluator", "marks.yaml", "--json"],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        values[model] = json.loads(done.stdout)["score"]
    assert values["zoo:maths"] != values["zoo:base"] and all(0 < v < 1 for v in values.values())


def test_console_blocks_name_commands_that_exist() -> None:
    """Unmarked blocks too (they need the network or much time): their evomerge commands and options parse."""
    blocks = [block for document in DOCUMENTS for block in BLOCK.findall(document.read_text(encoding="utf-8"))]
    for marks, body in blocks:
        for line in body.splitlines():
            words = shlex.split(line.removeprefix("$ "))
            if not line.startswith("$ ") or words[0] != "evomerge" or words[1] == "--help":
                continue
            if words[1] not in COMMANDS and not marks.strip().startswith("runnable"):
                continue  # a command that is not in this tree yet; test_all_commands runs the marked ones
            try:
                parse(words[1:])
            except InputError as e:
                pytest.fail(f"{line}: {e}")
