"""The record of a study: Optuna's tables and the items, refused where it is something else."""

import sqlite3
import subprocess
import sys

import numpy as np
import optuna
import optuna_dashboard
import pytest

from evomerge.errors import StudyError
from evomerge.score import Score, State, TaskScore
from evomerge.space import Categorical, Float, Integer
from evomerge.study.database import connectable, shown
from evomerge.study.store import Store, differences

PARAMETERS = (Float("weight.a", 0.0, 1.5, 0.5), Float("scale", 1e-3, 1.0, 0.1, log=True), Integer("n", 1, 5, 2),
              Categorical("method", ("ties", "linear"), "ties"))  # fmt: skip
PARAMS = {"weight.a": 0.123456789012345, "scale": 0.01, "n": 3, "method": "linear"}
ITEMS = tuple(f"{i:016x}" for i in range(50))


def optuna_url(url):
    """With the driver named, which Optuna itself does not look for."""
    return connectable(url).render_as_string(hide_password=False)


def score(seed=0, items=ITEMS):
    rng = np.random.default_rng(seed)
    results = rng.integers(0, 2, len(items)).astype(np.float32)
    return Score(
        (
            TaskScore("t", "acc", float(results.mean()), 1.0, items, results),
            TaskScore("ppl", "ppl", -3.5, 0.0, (), flipped=True),
        )
    )


def test_candidates_come_back_as_they_were_written(anywhere):
    study = Store(anywhere, create=True).create("s", PARAMETERS, {"a": 1})
    study.start(0, PARAMS, {"recipe_hash": "x"})
    study.complete(0, score(), {"build": 0.5})
    study.start(1, PARAMS, {})
    study.fail(1, "NaN in layer 3", {})
    study.start(2, PARAMS, {})
    trials = Store(anywhere).open("s").trials()
    assert [t.state for t in trials] == [State.COMPLETE, State.FAIL, State.RUNNING]
    assert dict(trials[0].params) == PARAMS and trials[0].seconds == {"build": 0.5}
    assert trials[0].attributes["recipe_hash"] == "x" and trials[1].reason == "NaN in layer 3"
    assert trials[0].score == Score(trials[0].score.tasks) and trials[0].value == score().value
    for found, written in zip(trials[0].score.tasks, score().tasks, strict=True):
        np.testing.assert_array_equal(found.results, written.results)
        assert (found.items, found.flipped, found.weight) == (written.items, written.flipped, written.weight)


def test_optuna_reads_the_study_as_its_own(anywhere):
    study = Store(anywhere, create=True).create("s", PARAMETERS, {"a": 1})
    study.start(0, PARAMS, {})
    study.complete(0, score(), {})
    study.mark_winner(0, {"search": 0.5})
    theirs = optuna.load_study(study_name="s", storage=optuna_url(anywhere))
    assert theirs.best_trial.number == 0 and theirs.best_params == PARAMS
    assert theirs.best_value == score().value and theirs.best_trial.user_attrs["t"] == score().tasks[0].value
    notes = optuna_dashboard.get_note(theirs)
    assert "Winner: trial 0" in notes


def test_a_candidate_that_was_cut_off_keeps_its_number(anywhere):
    Store(anywhere, create=True).create("s", PARAMETERS, {}).start(0, PARAMS, {})
    study = Store(anywhere).create("s", PARAMETERS, {})
    assert study.trials()[0].state is State.RUNNING
    study.start(0, PARAMS, {})
    study.complete(0, score(), {})
    assert [t.state for t in study.trials()] == [State.COMPLETE]


def test_two_studies_in_one_database_do_not_mix(anywhere):
    store = Store(anywhere, create=True)
    for seed, name in enumerate("ab"):
        study = store.create(name, PARAMETERS, {})
        study.start(0, PARAMS, {})
        study.complete(0, score(seed), {})
    assert store.names() == ["a", "b"]
    assert store.open("a").trials()[0].value == score(0).value != store.open("b").trials()[0].value


def test_scores_of_models_are_replaced_not_added(anywhere):
    table = Store(anywhere, create=True).create("s", PARAMETERS, {}).scores
    table.write("model/base", "test", score(1))
    table.write("model/base", "test", score(2, ITEMS[:10]))
    assert table.read("test")["model/base"].tasks[0].items == ITEMS[:10] and table.read("search") == {}


def test_other_settings_are_refused_and_named(anywhere):
    store = Store(anywhere, create=True)
    store.create("s", PARAMETERS, {"seed": 0, "space": {"method": ["ties"]}})
    with pytest.raises(StudyError) as error:
        store.create("s", PARAMETERS, {"seed": 1, "space": {"method": ["linear"]}})
    assert "seed is 1, was 0" in str(error.value) and 'space.method is ["linear"], was ["ties"]' in str(error.value)


def test_notes(url):
    study = Store(url, create=True).create("s", PARAMETERS, {})
    study.note("seconds", 1.5)
    study.note("seconds", 2.5)
    assert study.notes() == {"seconds": 2.5}


def test_missing_studies_name_the_nearest(url):
    store = Store(url, create=True)
    store.create("quickstart-0", PARAMETERS, {})
    with pytest.raises(StudyError, match='did you mean "quickstart-0"'):
        store.open("quikstart-0")


def test_what_is_no_study_is_refused_and_left_alone(tmp_path):
    text = tmp_path / "text.db"
    text.write_text("not a database, but long enough to have a head")
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("create table recipes (name text)")
    before = text.read_bytes(), other.read_bytes()
    for path, words in (
        (text, "is not a SQLite database"),
        (other, "is not a study .its tables: recipes"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(StudyError, match=words):
            Store(f"sqlite:///{path}", create=True)
    assert before == (text.read_bytes(), other.read_bytes())
    for url, words in (
        (f"sqlite:///{tmp_path / 'gone.db'}", "no such file"),
        ("nonsense", "expected a database URL"),
        ("nodb://host/x", "unknown kind of database"),
    ):
        with pytest.raises(StudyError, match=words):
            Store(url)


def test_a_study_of_optuna_alone_is_not_taken_over(url):
    optuna.create_study(study_name="s", storage=url).optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(StudyError, match="holds no study of evomerge"):
        Store(url)
    with pytest.raises(StudyError, match="was not made by evomerge"):
        Store(url, create=True).create("s", PARAMETERS, {})


def test_a_second_store_of_the_process_leaves_the_first_ones_locks_alone(tmp_path):
    """Else a reader of another process, closing, would take the log away that the first one goes on writing to."""
    file = tmp_path / "study.db"
    first = Store(f"sqlite:///{file}", create=True)
    study = first.create("s", PARAMETERS, {})
    Store(f"sqlite:///{file}")
    reader = f"import sqlite3; c = sqlite3.connect({str(file)!r}); c.execute('select * from studies'); c.close()"
    subprocess.run([sys.executable, "-c", reader], check=True)
    study.note("kept", 1)
    assert Store(f"sqlite:///{file}").open("s").notes() == {"kept": 1}
    assert (tmp_path / "study.db-wal").stat().st_size > 0


def test_passwords_are_not_shown():
    assert shown("postgresql://user:secret@host/db") == "postgresql://user:***@host/db"


def test_differences_name_the_deepest_key():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == [
        "a.c is 3, was 2",
        "d is 4, was null",
    ]
