"""What loads what: `import evomerge` and `evomerge --help` stay light, and imports point one way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "ray", "optuna", "lm_eval", "scipy", "pandas", "matplotlib", "sqlalchemy", "datasets")
LIGHT_MODULES = (
    "errors", "cache", "config", "functions", "methods", "recipe", "space", "score", "sources", "presets", "zoo",
)  # fmt: skip


def loaded(code: str) -> list[str]:
    """Which of the heavy packages a fresh process has loaded after running `code`."""
    report = f"import json, sys; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
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


def test_report_loads_nothing_heavy_before_it_writes() -> None:
    assert loaded("import evomerge.report") == []


def test_import_contracts() -> None:
    root = Path(__file__).parents[1]
    program = "from importlinter.cli import lint_imports_command as c; c()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=root, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
