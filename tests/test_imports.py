"""What loads what: `import evomerge` and `evomerge --help` stay light, and imports point one way."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "ray", "optuna", "lm_eval", "scipy", "pandas", "matplotlib", "sqlalchemy", "datasets")
LIGHT_MODULES = (
    "errors", "cache", "config", "functions", "methods", "recipe", "space", "score", "sources", "presets", "zoo",
)  # fmt: skip


def loaded(code: str, packages: tuple[str, ...] = HEAVY) -> list[str]:
    """Which of the packages a fresh process has loaded after running `code`."""
    report = f"import json, sys; print(json.dumps([m for m in {packages!r} if m in sys.modules]))"
    program = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint()\n{report}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_probe_sees_a_heavy_import() -> None:
    assert loaded("import scipy") == ["scipy"]


def test_import_evomerge_loads_nothing_heavy() -> None:
    assert loaded("import evomerge") == []


def test_what_evomerge_exports_is_there() -> None:
    import evomerge

    assert all(getattr(evomerge, name) is not None for name in evomerge.__all__)
    with pytest.raises(AttributeError, match="fusse"):
        evomerge.fusse  # noqa: B018


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_modules(module: str) -> None:
    assert loaded(f"import evomerge.{module}") == []


@pytest.mark.parametrize("words", ["'--help'", "'--version'", "'merge', '--help'", "'zoo'", "'mrge'"])
def test_help_loads_nothing_heavy(words: str) -> None:
    assert loaded(f"from evomerge.cli import main; main([{words}])") == []


@pytest.mark.parametrize("words", ["'--help'", "'search', '--help'", "'dashboard', '--help'"])
def test_help_loads_next_to_nothing(words: str) -> None:
    """What took most of its time once: numpy and pydantic for the names of optimizers, a web server for a port."""
    light = ("numpy", "pydantic", "yaml", "http.server")
    assert loaded(f"from evomerge.cli import main; main([{words}])", light) == []
    assert loaded("import evomerge.space, http.server", light) == list(light)


def test_help_answers_in_half_a_second() -> None:
    """Of processor time, which other work on the machine does not change; the best of three."""
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "evomerge", "--help"], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(taken) < 0.5


def test_report_loads_nothing_heavy_before_it_writes() -> None:
    assert loaded("import evomerge.report") == []


def test_import_contracts() -> None:
    root = Path(__file__).parents[1]
    program = "from importlinter.cli import lint_imports_command as c; c()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=root, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
