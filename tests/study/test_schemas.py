"""Studies as older versions left them: each opens, is shown and exported, and goes on or is refused in one message."""

import hashlib
from types import SimpleNamespace

import optuna_dashboard
import pandas
import pytest
import yaml
from safetensors import safe_open

from evomerge import presets
from evomerge.score import State
from evomerge.study.database import optuna_storage
from evomerge.study.store import Store
from tests.report.pages import check_page
from tests.study.recorded import sequence
from tests.study.schemas.make import SCHEMAS, restored
from tests.study.test_schemas_stopped import STOPPED

# What the winner's tensors were when it was written, in the order of their names (SHA-256, its beginning).
WINNERS = {
    "2026-11-21-first": "c7e0072d6e657ac5", "2026-11-29-before-races": "c7e0072d6e657ac5",
    "2026-11-29-results-by-item": "2e2d0101bc44ed69", "2026-11-29-leases": "2e2d0101bc44ed69",
    "2026-11-29-turned-items": "2e2d0101bc44ed69", "2026-11-29-tasks-anywhere": "2e2d0101bc44ed69",
}  # fmt: skip
# Those that go on. Of the others this version proposes other candidates for the same seed, or knows sources or tasks
# otherwise.
GOES_ON = {"2026-11-29-tasks-anywhere"}


@pytest.fixture(params=WINNERS)
def old(request, tmp_path):
    """A folder with the database in it."""
    return SimpleNamespace(name=request.param, folder=tmp_path, file=restored(request.param, tmp_path))


def test_every_file_is_looked_at():
    assert {p.name.removesuffix(".sql.gz") for p in SCHEMAS.glob("*.sql.gz")} == {*WINNERS, *STOPPED}


def test_it_is_read(old, here):
    storage = f"sqlite:///{old.file}"
    (row,) = here("list", "--storage", storage, "--json").result
    assert (row["study"], row["complete"], row["failed"], row["running"]) == ("s", 8, 0, 0)
    trials = Store(storage).open("s").trials()
    assert [t.number for t in trials] == list(range(8)) and all(t.state is State.COMPLETE for t in trials)
    tasks = [t.score.task("kovesh_problems") for t in trials]
    assert all(len(task.items) == 40 and len(task.results) == 40 for task in tasks)
    assert row["search"] == trials[row["winner"]].value and row["select"] is not None and row["test"] is not None
    assert optuna_dashboard.wsgi(optuna_storage(storage, skip_table_creation=True)) is not None
    here("export", old.folder, old.folder / "tables", "--format", "parquet")
    items = pandas.read_parquet(old.folder / "tables" / "items.parquet")
    assert set(items[items["split"] == "search"]["subject"]) >= {f"trial/{n}" for n in range(8)}


def test_it_has_a_report(old, here):
    here("report", old.folder, "--no-texts")
    root = check_page((old.folder / "report.html").read_text(encoding="utf-8"))
    (row,) = here("list", "--storage", f"sqlite:///{old.file}", "--json").result
    assert f"Candidate {row['winner']} scores {row['test']:.3f}" in root.section("found").text
    assert len(root.table("Candidates")) == 9 and root.table("weight") and len(root.table("Sources")) == 5


def test_its_winner_is_written_bit_for_bit(old, here):
    here("export", old.folder, old.folder / "winner")
    found = hashlib.sha256()
    with safe_open(old.folder / "winner" / "model.safetensors", "pt") as file:
        for name in sorted(file.keys()):
            found.update(name.encode() + file.get_tensor(name).float().numpy().tobytes())
    assert found.hexdigest()[:16] == WINNERS[old.name]


@pytest.mark.slow
def test_it_goes_on_or_says_why_not(old, here):
    data = {
        "include_path": str(presets.folder("evaluators") / "zoo"), "batch_size": 64,
        "tasks": [{"name": "kovesh_problems"}, {"name": "kovesh_direction", "weight": 0}],
        "splits": {"search": {"share": 0.2, "items": 40}, "select": {"share": 0.3, "items": 20},
                   "test": {"share": 0.5, "items": 20}},
    }  # fmt: skip
    (old.folder / "old.yaml").write_text(yaml.safe_dump(data))
    before = sequence(old.folder)
    done = here("search", "--evaluator", old.folder / "old.yaml", "--budget", 9, "--study", "s", "--workers", 0,
                "--out", old.folder, "--json", check=False)  # fmt: skip
    if old.name in GOES_ON:
        assert done.returncode == 0 and "goes on: 8 candidates are there" in done.stderr, done.stderr[-2000:]
        assert done.result["candidates"]["complete"] == 9 and sequence(old.folder)[:8] == before
        return
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and line.startswith('evomerge: error: study "s"'), done.stderr[-2000:]
    assert "was made with other settings: " in line or "than this version of evomerge proposes" in line
    assert "--study" in line and "Traceback" not in done.stderr
    # It is as it was, and still read.
    assert sequence(old.folder) == before
    test_it_is_read(old, here)
