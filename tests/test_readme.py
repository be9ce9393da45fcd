"""Commands of the README and of docs/, run as they stand: blocks marked ```console runnable, in order."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
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
        assert command[0] in ("evomerge", "python"), f"only evomerge's own commands can be run here: {command}"
        words = command[1:] if command[0] == "python" else ["-m", "evomerge", *command[1:]]
        done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True)
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
        if command[0] == "python":  # a file that the page shows
            runpy.run_path(command[1], run_name="__main__")
            continue
        code = main(command[1:])
        assert code == 0, f"{shlex.join(command)}: exit code {code}\n{capsys.readouterr().err}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
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


EVERY = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ANY_BLOCK = re.compile(r"^([ \t]*)```(?:console|bash|sh|shell)\b[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
# What ends one command of a line and begins another, or is the shell's alone.
BETWEEN = {"|", "||", "&", "&&", ";", ">", ">>", "2>", "<"}


def evomerge_commands(text: str) -> Iterator[list[str]]:
    """Arguments of every evomerge command in a document's console blocks: after variables, and what a job submits."""
    for _, body in ANY_BLOCK.findall(text):
        for line in body.replace("\\\n", " ").splitlines():
            if not line.lstrip().startswith("$ "):
                continue
            words = shlex.split(line.lstrip()[2:], comments=True)
            while words:
                end = next((i for i, w in enumerate(words) if w in BETWEEN), len(words))
                command, words = words[:end], words[end + 1 :]
                while command and re.fullmatch(r"[A-Za-z_]\w*=.*", command[0]):
                    del command[0]
                if command[:3] == ["ray", "job", "submit"] and "--" in command:
                    command = command[command.index("--") + 1 :]
                if command and command[0] == "evomerge":
                    yield command[1:]


def dead(text: str) -> list[str]:
    """The commands of a document that the program refuses to parse, with what it says."""
    found = []
    for words in evomerge_commands(text):
        try:
            parse(words)
        except InputError as e:
            found.append(f"evomerge {shlex.join(words)}: {e}")
        except SystemExit:  # --help and --version end there
            pass
    return found


@pytest.mark.parametrize("document", EVERY, ids=lambda d: str(d.relative_to(ROOT)))
def test_console_blocks_name_commands_that_exist(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unmarked blocks too (they need the network or much time): their evomerge commands and options parse."""
    assert dead(document.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("evomerge serch --budget 8", "serch"),
        ("evomerge search --bugdet 8", "bugdet"),
        ("RAY_AUTH_MODE=token A=b evomerge search --gpus 1", "gpus"),
        ("ray job submit --working-dir . -- evomerge watch x", "watch"),
        ("hf auth login && evomerge export s out --pushto me/x", "pushto"),
        ("evomerge merge a.yaml \\\n    out --fast", "fast"),
        ("evomerge list # all of them", None),
        ("evomerge export --help", None),
        ("evomerge status s | grep x", None),
        ("make serch", None),
    ],
)
def test_a_dead_command_is_caught(line: str, wrong: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    for indent in ("", "    "):
        block = "".join(f"{indent}{part}\n" for part in ("```console", *f"$ {line}".splitlines(), "```"))
        found = dead(f"Some text.\n\n{block}")
        assert len(found) == (wrong is not None) and all(wrong in f for f in found if wrong)


def test_commands_are_found_in_documents() -> None:
    assert sum(len(list(evomerge_commands(d.read_text(encoding="utf-8")))) for d in EVERY) > 40
