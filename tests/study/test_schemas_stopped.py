"""Studies with candidates that stopped early, as this version left them: a raced one and an asynchronous one.

Read, shown in frames and in a status, refused where another way is asked for, and gone on with.
"""

from types import SimpleNamespace

import pandas
import pytest

from evomerge import Study
from evomerge.score import TOLD, State, cost
from evomerge.study.asynchronous import AFTER
from evomerge.study.contest import SETTLED
from evomerge.study.store import Store
from tests.report.pages import check_page
from tests.study.schemas.make import BUDGET, asked, restored

# Of each file: the way of its search, and how many candidates it has: complete, stopped early.
STOPPED = {"2026-11-30-raced": ("raced", 1, 31), "2026-11-30-asynchronous": ("asynchronous", 1, 36)}
WHOLE = {"begun with --fidelity race, now it is full": ("--fidelity", "full")}
# What each refuses, by what it says.
OTHERS = {"raced": WHOLE | {"async is true, was null": ("--async",)}, "asynchronous": WHOLE}


@pytest.fixture(params=STOPPED)
def left(request, tmp_path):
    """A folder with the database in it."""
    way, complete, stopped = STOPPED[request.param]
    file = restored(request.param, tmp_path)
    return SimpleNamespace(
        way=way, complete=complete, stopped=stopped, folder=tmp_path, storage=f"sqlite:///{file}",
        trials=lambda: Store(f"sqlite:///{file}").open("s").trials(),
    )  # fmt: skip


def test_what_stopped_is_read(left, here):
    (row,) = here("list", "--storage", left.storage, "--json").result
    found = (row["study"], row["complete"], row["pruned"], row["failed"], row["running"])
    assert found == ("s", left.complete, left.stopped, 0, 0)
    trials = left.trials()
    assert [t.number for t in trials] == list(range(left.complete + left.stopped))
    for trial in trials:
        if trial.state is State.COMPLETE:
            assert trial.score.task("kovesh_problems").results.shape == (80,) and trial.stopped is None
        else:
            (part,) = trial.part.tasks
            assert trial.stopped == SETTLED and len(part.items) == len(part.results) == trial.seen < 80
            assert trial.estimate == pytest.approx(part.results.mean()) and trial.score is None
    assert BUDGET - 1 < cost(trials) <= BUDGET + 1e-6
    if left.way == "asynchronous":
        assert sorted(t.attributes[TOLD] for t in trials) == [t.number for t in trials]
        assert all(t.attributes[AFTER] <= t.attributes[TOLD] for t in trials)


@pytest.mark.ci
def test_its_status_report_and_frames(left, here):
    status = here("status", left.folder, "--json").result
    assert status["candidates"]["complete"] == left.complete and status["candidates"]["pruned"] == left.stopped
    study = Study(left.folder)
    assert study.phase == "measured" and study.best_trial.state is State.COMPLETE
    frame = study.trials()
    assert frame["state"].value_counts().to_dict() == {"COMPLETE": left.complete, "PRUNED": left.stopped}
    items = study.items("search")
    assert set(items["subject"]) >= {f"trial/{t.number}" for t in left.trials() if t.state is State.COMPLETE}
    assert {"base", "uniform", "best"} <= set(study.results()["model"])
    here("export", left.folder, left.folder / "tables", "--format", "parquet")
    assert len(pandas.read_parquet(left.folder / "tables" / "trials.parquet")) == len(frame)
    here("report", left.folder, "--no-texts")
    root = check_page((left.folder / "report.html").read_text(encoding="utf-8"))
    assert f"Candidate {study.best_trial.number} scores" in root.section("found").text
    assert len(root.table("Candidates")) == 1 + len(frame)


@pytest.mark.ci
@pytest.mark.timeout(300)
def test_it_is_refused_another_way_and_goes_on_as_it_was_begun(left, here):
    before = [(t.number, dict(t.params), t.state, t.seen, t.estimate, t.value) for t in left.trials()]
    for words, more in OTHERS[left.way].items():
        refused = here(*asked(left.folder, left.way, BUDGET + 1, *more), check=False)
        assert refused.returncode == 2 and words in refused.stderr and "Traceback" not in refused.stderr
    done = here(*asked(left.folder, left.way, BUDGET + 1))
    assert f"goes on: {len(before)} candidates are there" in done.stderr
    after = [(t.number, dict(t.params), t.state, t.seen, t.estimate, t.value) for t in left.trials()]
    assert after[: len(before)] == before and len(after) > len(before)
    assert BUDGET < cost(left.trials()) <= BUDGET + 1 + 1e-6
