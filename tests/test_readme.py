"""Commands of the README and of docs/, run as they stand: blocks marked ```console runnable, in order.

Where a page has a model, a task or a file of one's own, one that ships with evomerge stands in for it; budgets of hours
become a few candidates. No command is left out without a reason
(`NOT_HERE`).
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
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
# Every fence: its indent, the words behind its ticks, and what is in it.
FENCES = re.compile(r"^([ \t]*)```([^\n`]*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
PYTHON = re.compile(r"^```python runnable slow\n(.*?)^```", re.DOTALL | re.MULTILINE)
# What stands in for the reader's own models and tasks.
STAND_INS = {
    "path/to/maths": ["zoo:maths"], "org/japanese": ["zoo:kovesh"], "org/base": ["zoo:base"],
    "gsm8k": ["kovesh_problems", "--include-path", str(ROOT / "evaluators" / "zoo")],
}  # fmt: skip
# Budgets that take hours: a time, or as many candidates as this.
MANY = 60
BEST_CONFIG = """
merge_method: task_arithmetic
base_model: zoo:base
models:
  - {model: zoo:maths, parameters: {weight: 0.8}}
  - {model: zoo:kovesh, parameters: {weight: 0.6}}
dtype: bfloat16
"""
EVERY = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
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


def prepare(document: Path, folder: Path) -> None:
    """What a page takes as there already: the starter's files, a study, mergekit-evolve's own files."""
    name = str(document.relative_to(ROOT))
    if name in ("docs/report.md", "docs/guides/several-gpus.md"):
        run(["evomerge", "init", "start"], folder)
        shutil.copytree(folder / "start", folder, dirs_exist_ok=True)
    if name == "docs/report.md":
        (folder / "my-evaluator.yaml").write_bytes((folder / "evaluator.yaml").read_bytes())
        asked = ["--evaluator", "my-evaluator.yaml", "--budget", "4", "--workers", "0"]
        run(["evomerge", "search", "space.yaml", *asked, "--out", "my-run"], folder)
    if name == "docs/mergekit-evolve.md":
        (folder / "config.yaml").write_bytes((folder / "evolve.yaml").read_bytes())
        (folder / "best_config.yaml").write_text(BEST_CONFIG, encoding="utf-8")


def small(command: list[str]) -> list[str]:
    """The command with what ships in place of the reader's own, and a budget of a few candidates for one of hours."""
    out: list[str] = []
    for word in command:
        hours = bool(out) and out[-1] == "--budget" and (not word.isdigit() or int(word) >= MANY)
        out += ["4"] if hours else STAND_INS.get(word, [word])
    return out


def run(command: list[str], folder: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(README.parent)}
    if command[0] == "make":
        # What is installed stays as it is: here pyproject.toml may be newer than the environment that tests run in.
        given = ["-C", str(ROOT), "-o", ".venv/run.stamp", "BUDGET=2", f"ARGS=--out {folder / 'made'}"]
        words = ["make", *given, *command[1:]]
    else:
        assert command[0] in ("evomerge", "python"), f"only evomerge's own commands can be run here: {command}"
        words = [sys.executable, *(command[1:] if command[0] == "python" else ["-m", "evomerge", *command[1:]])]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert command[0] != "make" or (folder / "made" / "recipe.yaml").is_file(), done.stdout


def run_all(document: Path, found: list[list[str]], folder: Path) -> None:
    write_files(document, folder)
    prepare(document, folder)
    for command in found:
        if command[0] == "make" and not (ROOT / ".venv" / "run.stamp").exists():
            continue  # tests of an installed package: there is no environment of make's, and it would make one
        run(small(command), folder)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_quick_commands(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: nine fresh ones would spend most of their time on imports."""
    found = commands(document, slow=False)
    if not found:
        pytest.skip("all of its commands are slow")
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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_python_page_s_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (code,) = PYTHON.findall(text)
    for name, ours in (("./maths", "zoo:maths"), ("./japanese", "zoo:kovesh"), ("./base", "zoo:base")):
        code = code.replace(f'"{name}"', f'"{ours}"')
    task, option, folder = STAND_INS["gsm8k"]
    assert option == "--include-path"
    code = code.replace('["gsm8k"]', f'["{task}"], include_path="{folder}"').replace("budget=200", "budget=4")
    assert code.count("zoo:") == 3 and "budget=4" in code and task in code
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    run(["python", "example.py"], tmp_path)
    assert (tmp_path / "merged" / "model.safetensors").is_file()


# What cannot run here, by page and by the words that a command begins with.
GPUS = "a machine with GPUs, and one that shares its disk; tests/pipeline/test_fusion.py fuses with workers"
CLUSTER = "a head and machines of one's own; tests/study/test_cluster.py and tests/test_ray_job.py do it on loopback"
SERVER = "a database server of one's own; tests/pipeline/test_on_servers.py does it on one that it starts"
CLOUD = "an account at a cloud; tests/test_ray_cluster.py reads the file by Ray's own schema"
HUB = "an account at the Hub; tests/publishing/test_push.py does it on a stand-in of its HTTP API"
DOWNLOAD = "downloads and builds another project, llama.cpp"
SUITE = "the tests themselves"
IMAGES = "tests/images/test_docs.py runs every evomerge command of this page"
NOT_HERE = {
    "README.md": {"make test": SUITE},
    "CONTRIBUTING.md": {"make": SUITE, ".venv/bin/pre-commit": "writes hooks into this clone's .git"},
    "docs/faults.md": {"python -m pytest": SUITE},
    "docs/storage.md": {"createdb": SERVER, "evomerge": SERVER},
    "docs/report.md": {"evomerge report first --storage postgresql": SERVER},
    "docs/cluster.md": {
        "make build": "tests/test_packaging.py builds the wheel", "export RAY_AUTH_MODE=token": CLOUD,
        "ray get-auth-token": CLOUD, "ray up": CLOUD, "ray dashboard": CLOUD, "RAY_AUTH_MODE=token": CLUSTER,
        "evomerge search": CLUSTER, "export RAY_API_SERVER_ADDRESS": CLUSTER, "ray job": CLUSTER,
    },
    "docs/guides/cluster.md": {
        "RAY_AUTH_MODE=token": CLUSTER, "export RAY_API_SERVER_ADDRESS": CLUSTER, "ray job submit": CLUSTER,
        "evomerge search space.yaml --evaluator": CLUSTER,
        "evomerge search space.yaml --budget 200 --storage postgresql": SERVER,
    },
    "docs/fusion.md": {"evomerge fuse fusion.yaml": GPUS},
    "docs/images.md": {"evomerge": IMAGES},
    "docs/publishing.md": {
        "hf auth login": HUB, "evomerge export my-run my-model --push": HUB, "git clone": DOWNLOAD, "python3": DOWNLOAD,
        "cmake": DOWNLOAD, "llama.cpp/": DOWNLOAD,
    },
}  # fmt: skip


def lines(text: str) -> list[str]:
    """Every command line of a document, in any fence, without its comment."""
    found = [line.strip() for _, _, body in FENCES.findall(text) for line in body.replace("\\\n", " ").splitlines()]
    return [re.sub(r"\s+# .*$", "", line[2:]) for line in found if line.startswith("$ ")]


def test_every_command_is_run_or_listed_with_its_reason() -> None:
    ran = {shlex.join(c) for document in DOCUMENTS for c in commands(document, slow=True)}
    left, used = [], set()
    for document in EVERY:
        name = str(document.relative_to(ROOT))
        for line in lines(document.read_text(encoding="utf-8")):
            if shlex.join(shlex.split(line)) in ran:
                continue
            known = [start for start in NOT_HERE.get(name, ()) if line.startswith(start)]
            used |= {(name, start) for start in known}
            left += [] if known else [f"{name}: {line}"]
    assert left == [], "mark its block `console runnable`, or say in NOT_HERE why it cannot run here"
    assert {(name, start) for name, starts in NOT_HERE.items() for start in starts} == used, "no longer in that page"
    for reason in {r for starts in NOT_HERE.values() for r in starts.values()}:
        assert all((ROOT / file).is_file() for file in re.findall(r"tests/[\w/]+\.py", reason)), reason


@pytest.mark.parametrize("document", EVERY, ids=lambda d: str(d.relative_to(ROOT)))
def test_every_fence_has_a_language_and_every_command_its_dollar(document: Path) -> None:
    """A fence without a language is read by none of these tests."""
    for _, words, body in FENCES.findall(document.read_text(encoding="utf-8")):
        assert words, f"a fence without a language: {body[:60]!r}"
        if not words.startswith("console"):
            bare = [x for x in body.splitlines() if re.match(r"\s*(\$ )?(evomerge|make|ray|hf|pip) [a-z-]+", x)]
            assert bare == [], "a command in a fence that is no console"


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
