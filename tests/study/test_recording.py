"""A candidate's rows in Optuna's tables: the same as Optuna writes, in few statements, all of a step or none."""

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from evomerge.errors import EvoMergeError
from evomerge.score import Score, State, TaskScore
from evomerge.space import Categorical, Float, Integer
from evomerge.study.store import Store

PARAMETERS = (
    Float("weight", 0.0, 1.5, 0.5), Float("scale", 1e-3, 1.0, 0.1, log=True), Float("step", 0.0, 1.0, 0.5, step=0.25),
    Integer("n", 1, 5, 2), Categorical("method", ("ties", "linear"), "ties"),
)  # fmt: skip
PARAMS = {"weight": 0.1 + 0.2, "scale": 0.01, "step": 0.75, "n": 3, "method": "linear"}
DISTRIBUTIONS = {
    "weight": FloatDistribution(0.0, 1.5), "scale": FloatDistribution(1e-3, 1.0, log=True),
    "step": FloatDistribution(0.0, 1.0, step=0.25), "n": IntDistribution(1, 5),
    "method": CategoricalDistribution(("ties", "linear")),
}  # fmt: skip
ATTRIBUTES = {"recipe_hash": "x", "depth": 7, "race": {"seen": 3, "cost": 0.25}}
SCORE = Score((TaskScore("a", "acc", 0.5), TaskScore("b", "acc", 0.25)))


def rows(store, study, table, *columns):
    """The rows of a table that belong to a study's trials."""
    metadata = sa.MetaData()
    metadata.reflect(store.engine, only=["trials", table])
    found, trials = metadata.tables[table], metadata.tables["trials"]
    query = sa.select(*(found.c[c] for c in columns)).join(trials, trials.c.trial_id == found.c.trial_id)
    with store.engine.connect() as connection:
        return sorted(tuple(row) for row in connection.execute(query.where(trials.c.study_id == study)))


def test_the_rows_are_those_that_optuna_writes(anywhere):
    store = Store(anywhere, create=True)
    ours = store.create("ours", PARAMETERS, {})
    ours.start(0, PARAMS, ATTRIBUTES)
    theirs = optuna.create_study(study_name="theirs", storage=store.optuna, direction="maximize")
    trial = create_trial(
        state=TrialState.RUNNING, params=PARAMS, distributions=DISTRIBUTIONS, user_attrs=ATTRIBUTES
    )
    store.optuna.create_new_trial(theirs._study_id, trial)
    for table, columns in (
        ("trial_params", ("param_name", "param_value", "distribution_json")),
        ("trial_user_attributes", ("key", "value_json")),
    ):
        mine = rows(store, ours._id, table, *columns)
        assert mine == rows(store, theirs._study_id, table, *columns) and len(mine) >= 3
    ours.complete(0, SCORE, {"build": 1.0}, attributes={"recipe_hash": "y"})
    found = optuna.load_study(study_name="ours", storage=store.optuna).trials[0]
    assert found.distributions == DISTRIBUTIONS and found.params == PARAMS and found.value == SCORE.value
    assert found.user_attrs == ATTRIBUTES | {"recipe_hash": "y", "seconds": {"build": 1.0}, "a": 0.5, "b": 0.25}
    assert found.datetime_start <= found.datetime_complete


def test_the_statements_do_not_grow_with_the_parameters(anywhere):
    """Optuna's own way takes three for each."""
    store, counts = Store(anywhere, create=True), []
    sa.event.listen(store.engine, "before_cursor_execute", lambda *_: counts.append(1))
    found = []
    for name, size in (("few", 2), ("many", 100)):
        parameters = tuple(Float(f"w{i}", 0.0, 1.0, 0.5) for i in range(size))
        study = store.create(name, parameters, {})
        counts.clear()
        study.start(0, {p.name: 0.5 for p in parameters}, ATTRIBUTES)
        study.complete(0, SCORE, {"build": 1.0}, attributes={"x": 1, "y": 2})
        found.append(len(counts))
    assert found[0] == found[1] < 30


def test_a_step_that_fails_leaves_nothing(anywhere):
    """Its items cannot be written: so it has not ended, and has none of what was to be kept with it."""
    store = Store(anywhere, create=True)
    study = store.create("s", PARAMETERS, {})
    study.start(0, PARAMS, {})
    twice = Score((TaskScore("a", "acc", None),))  # a value that the table does not take
    for end in (
        lambda: study.complete(0, twice, {}, [0.5], {"kept": 1}),
        lambda: study.prune(0, twice, {"kept": 1}, {}, 3, 0.5),
    ):
        with pytest.raises((EvoMergeError, sa.exc.IntegrityError)):
            end()
        (trial,) = Store(anywhere).open("s").trials()
        assert trial.state is State.RUNNING and "kept" not in trial.attributes
    study.complete(0, SCORE, {})
    assert [t.state for t in study.trials()] == [State.COMPLETE]


def test_a_trial_that_another_stores_in_between_is_seen(anywhere):
    store = Store(anywhere, create=True)
    study = store.create("s", PARAMETERS, {})
    study.start(0, PARAMS, {})
    optuna.load_study(study_name="s", storage=Store(anywhere).optuna).ask()
    with pytest.raises(EvoMergeError, match="candidate 1 is to be stored, but 2 are there: another process"):
        study.start(1, PARAMS, {})
    assert len(store.optuna.get_all_trials(study._id)) == 2
