"""The files around the code: versions pinned, the wheel whole, no trace of one machine."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import evomerge
from evomerge import presets, zoo

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(n): v for n, _, v in (x.partition("==") for x in lines if x and x[0] != "#")}


def requirements() -> list[Requirement]:
    project = PROJECT["project"]
    extras = [r for rs in project["optional-dependencies"].values() for r in rs]
    return [Requirement(r) for r in [*project["dependencies"], *extras]]


def test_constraints_are_pins_alone() -> None:
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert [x for x in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", x)] == []
    assert len(lines) > 100


def test_every_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    pinned = pins()
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(pinned[name]), f"{requirement} does not allow {pinned[name]}"


def test_presets_and_zoo_are_found() -> None:
    assert "quickstart" in presets.names("search_spaces")
    assert all((zoo.path(n) / "model.safetensors").is_file() for n in zoo.NAMES)


def test_ci_runs_make_test() -> None:
    run = ROOT / ".ci" / "run"
    assert run.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(run)]).returncode == 0
    assert "make test" in run.read_text()


def test_make_targets() -> None:
    plan = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pytest" in plan
    plan = subprocess.run(["make", "-n", "search", "BUDGET=7"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "evomerge search --budget 7" in plan.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (made,) = out.glob("*.whl")
    return made


@pytest.mark.slow
def test_wheel_holds_presets_and_checkpoints(wheel: Path) -> None:
    assert evomerge.__version__ in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"evomerge/search_spaces/{n}.yaml" for n in presets.names("search_spaces")} <= names
    assert {f"evomerge/evaluators/{n}.yaml" for n in presets.names("evaluators")} <= names
    tasks = {f"evomerge/evaluators/zoo/{f.name}" for f in (ROOT / "evaluators" / "zoo").glob("*.*") if f.is_file()}
    assert tasks and tasks <= names
    assert {f"evomerge/zoo/checkpoints/{n}/model.safetensors" for n in zoo.NAMES} <= names
    assert {f"evomerge/zoo/corpora/{n}.jsonl" for n in zoo.fusion.CORPORA} <= names
    assert {f"evomerge/cli/starter/{n}.yaml" for n in ("space", "evaluator", "fusion")} <= names
    assert {"evomerge/report/page/page.html.j2", "evomerge/report/page/page.css"} <= names
    kernels = {str(f.relative_to(ROOT)) for f in (ROOT / "evomerge").rglob("*") if f.suffix in (".cpp", ".h")}
    assert "evomerge/merging/native/kernels.cpp" in kernels and kernels <= names
    assert not [n for n in names if n.startswith(("tests/", "search_spaces/", "evaluators/"))]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_searches_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    """A fresh environment with the wheel; its dependencies are this one's, by path, so that no network is needed."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # .pth files inside a folder that a .pth names are not read: an editable evomerge over there stays unseen.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    (tmp_path / "elsewhere").mkdir()

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path / "elsewhere", env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    where = run(str(python), "-c", "import evomerge; print(evomerge.__file__)").strip()
    assert Path(where).is_relative_to(site)
    command = str(tmp_path / "venv" / "bin" / "evomerge")
    result = json.loads(run(command, "search", "--budget", "4", "--workers", "0", "--json"))
    assert result["candidates"]["complete"] >= 1 and result["cost"] <= 4
    assert (tmp_path / "elsewhere" / "runs" / result["study"] / "model" / "model.safetensors").is_file()


def test_what_the_package_imports_is_what_it_depends_on() -> None:
    """The wheel test takes its libraries from this environment, which holds more than a user's."""
    imported_as = {"pyyaml": "yaml"}
    names = [canonicalize_name(Requirement(d).name) for d in PROJECT["project"]["dependencies"]]
    brought = {"pydantic_core", "grpc"}  # by pydantic and by ray[default]
    known = {imported_as.get(n, n.replace("-", "_")) for n in names} | brought
    found: set[str] = set()
    for file in sorted((ROOT / "evomerge").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    foreign = found - set(sys.stdlib_module_names) - {"evomerge"}
    extras = {"diffusers", "trl", "wandb", "PIL"}  # asked for by name where it is needed
    assert extras <= foreign
    foreign -= extras
    assert foreign - known == set(), "imported, but not in [project.dependencies]"
    behind = {"accelerate"}  # transformers trains by it; its launcher is started as a module
    assert known - foreign - behind == set(), "in [project.dependencies], but not imported"
