"""The record of a study: one database with Optuna's tables, so that its dashboard shows it, and our item scores."""

from __future__ import annotations

import datetime
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from evomerge.errors import EvoMergeError, StudyError, choose
from evomerge.evaluation.config import Split
from evomerge.score import Score, State, Trial, Value
from evomerge.space import Categorical, Float, Integer, Parameter
from evomerge.study import tables
from evomerge.study.database import shown, table_names

_FINGERPRINT = "evomerge:fingerprint"
_NOTES = "evomerge:notes"


class Store:
    """A database of studies.

    Args:
        url: SQLAlchemy URL, e.g. "sqlite:///runs/STUDY/study.db".
        create: Make the database and its tables where they are not there; else a missing one is refused.

    Raises:
        StudyError: the database is missing, cannot be opened, or holds something else than studies.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        import optuna

        self.url = url
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        there = table_names(url, missing_ok=create)
        if not create and not there >= tables.NAMES:
            raise StudyError(f"storage {shown(url)}: holds no study of evomerge")
        try:
            self._optuna = optuna.storages.RDBStorage(url, engine_kwargs=_engine_options(url))
        except Exception as e:  # drivers and SQLAlchemy raise many kinds; what the user needs is the URL and the reason
            raise StudyError(f"storage {shown(url)}: cannot be opened ({str(e).strip().splitlines()[0]})") from None
        self.engine: sa.Engine = self._optuna.engine
        if url.startswith("sqlite"):
            # Readers (the dashboard) and the one writer do not wait for each other; a kill loses no commit.
            with self.engine.connect() as connection:
                connection.execute(sa.text("PRAGMA journal_mode=WAL"))
            sa.event.listen(self.engine, "connect", _synchronous_normal)
            self.engine.dispose()
        if create:
            tables.create(self.engine)

    def names(self) -> list[str]:
        """Studies that evomerge made, by name; control searches (NAME/control) too."""
        return [s.study_name for s in self._optuna.get_all_studies() if _FINGERPRINT in s.user_attrs]

    def create(
        self,
        name: str,
        parameters: Sequence[Parameter],
        fingerprint: Mapping[str, Any],
        objectives: Mapping[str, bool] | None = None,
    ) -> Study:
        """Open a study, or make it; a study with another fingerprint is refused.

        Args:
            objectives: Names of the objectives, each with whether less of it is better; default the score.

        Raises:
            StudyError: the study is there and was made with other settings (the message says which).
        """
        from optuna.exceptions import DuplicatedStudyError
        from optuna.study import StudyDirection

        try:
            wanted = objectives or {"score": False}
            directions = [StudyDirection.MINIMIZE if least else StudyDirection.MAXIMIZE for least in wanted.values()]
            study_id = self._optuna.create_new_study(directions, name)
            if list(wanted) != ["score"]:
                import optuna

                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # "experimental"
                    optuna.load_study(study_name=name, storage=self._optuna).set_metric_names(list(wanted))
            self._optuna.set_study_user_attr(study_id, _FINGERPRINT, json.dumps(fingerprint, sort_keys=True))
        except DuplicatedStudyError:
            study_id = self._optuna.get_study_id_from_name(name)
            stored = self._optuna.get_study_user_attrs(study_id).get(_FINGERPRINT)
            if stored is None:
                if self._optuna.get_n_trials(study_id):
                    raise StudyError(
                        f'storage {shown(self.url)}: study "{name}" was not made by evomerge; give another --study name'
                    ) from None
                # Killed between the two steps above.
                self._optuna.set_study_user_attr(study_id, _FINGERPRINT, json.dumps(fingerprint, sort_keys=True))
                stored = json.dumps(fingerprint, sort_keys=True)
            different = differences(json.loads(stored), json.loads(json.dumps(fingerprint)))
            if different:
                raise StudyError(
                    f'study "{name}" in {shown(self.url)} was made with other settings: '
                    + "; ".join(different)
                    + ". Give the same settings to resume it, or another --study name"
                ) from None
        return Study(self, name, study_id, parameters)

    def open(self, name: str) -> Study:
        """An existing study, for reading.

        Raises:
            StudyError: there is none of that name.
        """
        if name not in self.names():
            raise StudyError(f'storage {shown(self.url)}: no study "{name}"; {choose(name, self.names())}')
        return Study(self, name, self._optuna.get_study_id_from_name(name), ())

    @property
    def optuna(self) -> Any:
        """Optuna's own storage object."""
        return self._optuna


class Study:
    """One study's candidates and scores. Made by `Store.create` or `Store.open`."""

    def __init__(self, store: Store, name: str, study_id: int, parameters: Sequence[Parameter]) -> None:
        self.name = name
        self.url = store.url
        self._storage = store.optuna
        self._engine = store.engine
        self._id = study_id
        self._parameters = {p.name: p for p in parameters}
        self._trial_ids: dict[int, int] = {}
        self.scores = tables.ScoreTable(store.engine, study_id)
        self.results = tables.ResultTable(store.engine, study_id)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the study was made with."""
        return dict(json.loads(self._storage.get_study_user_attrs(self._id)[_FINGERPRINT]))

    def note(self, key: str, value: Any) -> None:
        """Keep a small value with the study (seconds spent, winner, looks at the test items)."""
        self._storage.set_study_user_attr(self._id, f"{_NOTES}:{key}", value)

    def notes(self) -> dict[str, Any]:
        """What `note` kept."""
        attributes = self._storage.get_study_user_attrs(self._id)
        return {k.removeprefix(f"{_NOTES}:"): v for k, v in attributes.items() if k.startswith(_NOTES)}

    def trials(self) -> list[Trial]:
        """Every candidate by number, with its search score."""
        scores = self.scores.read("search")
        found = []
        for frozen in self._storage.get_all_trials(self._id, deepcopy=False):
            self._trial_ids[frozen.number] = frozen._trial_id
            found_score = scores.get(f"trial/{frozen.number}")
            score = found_score if frozen.state.name == "COMPLETE" else None
            # The values of single tasks stand there for the dashboard; here they are in the score.
            shown_tasks = {t.task for t in score.tasks} if score is not None else set()
            attributes = {k: v for k, v in frozen.user_attrs.items() if k not in shown_tasks}
            found.append(
                Trial(
                    frozen.number,
                    dict(frozen.params),
                    State(frozen.state.name) if frozen.state.name != "WAITING" else State.RUNNING,
                    score,
                    attributes.pop("reason", None),
                    attributes.pop("seconds", {}),
                    attributes,
                    found_score if frozen.state.name == "PRUNED" else None,
                )
            )
        return sorted(found, key=lambda t: t.number)

    def start(self, number: int, params: Mapping[str, Value], attributes: Mapping[str, Any]) -> None:
        """Record that a candidate is being run (again, where an earlier run was cut off)."""
        from optuna.trial import TrialState, create_trial

        if number in self._trial_ids:
            return
        others = self._count()
        if others != number:
            raise EvoMergeError(
                f'study "{self.name}": candidate {number} is to be stored, but {others} are there: another '
                "process writes this study; wait for it to end"
            )
        frozen = create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions={name: _distribution(self._parameters[name]) for name in params},
            user_attrs=dict(attributes),
        )
        frozen.datetime_start = frozen.datetime_start or datetime.datetime.now()
        trial_id = self._storage.create_new_trial(self._id, frozen)
        self._trial_ids[number] = trial_id

    def _count(self) -> int:
        """Number of trials. Optuna's own way loads all of them: at 100 of them most of the driver's time."""
        trials = sa.table("trials", sa.column("study_id"))
        query = sa.select(sa.func.count()).select_from(trials).where(trials.c.study_id == self._id)
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def attribute(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Keep something with a candidate that is running; the dashboard shows it."""
        for name, value in attributes.items():
            self._storage.set_trial_user_attr(self._trial_ids[number], name, value)

    def complete(
        self, number: int, score: Score, seconds: Mapping[str, float], values: Sequence[float] | None = None
    ) -> None:
        """Record a candidate's score: the items first, then the trial, so that a told trial always has its items.

        Args:
            values: Of the study's objectives; default the score's.
        """
        from optuna.trial import TrialState

        trial = self._trial_ids[number]
        self.scores.write(f"trial/{number}", "search", score)
        self._storage.set_trial_user_attr(trial, "seconds", dict(seconds))
        for task in score.tasks if len(score.tasks) > 1 else ():
            self._storage.set_trial_user_attr(trial, task.task, task.shown)
        kept = [score.value] if values is None else list(values)
        self._storage.set_trial_state_values(trial, TrialState.COMPLETE, kept)

    def prune(
        self, number: int, attributes: Mapping[str, Any], seconds: Mapping[str, float], seen: int, estimate: float
    ) -> None:
        """Record that a candidate was stopped.

        Args:
            seen: How many items it had.
            estimate: Its score on them; the dashboard shows it as an intermediate value.
        """
        from optuna.trial import TrialState

        trial = self._trial_ids[number]
        self.attribute(number, {**attributes, "seconds": dict(seconds)})
        self._storage.set_trial_intermediate_value(trial, seen, estimate)
        self._storage.set_trial_state_values(trial, TrialState.PRUNED)

    def fail(self, number: int, reason: str, seconds: Mapping[str, float]) -> None:
        """Record why a candidate failed."""
        from optuna.trial import TrialState

        trial = self._trial_ids[number]
        self._storage.set_trial_user_attr(trial, "reason", reason)
        self._storage.set_trial_user_attr(trial, "seconds", dict(seconds))
        self._storage.set_trial_state_values(trial, TrialState.FAIL)

    def mark_winner(self, number: int, values: Mapping[Split, float]) -> None:
        """Mark the winner: in our notes, and as the first line of the study's note in the dashboard."""
        import optuna
        import optuna_dashboard

        self.note("winner", number)
        study = optuna.load_study(study_name=self.name, storage=self._storage)
        own = [line for line in optuna_dashboard.get_note(study).splitlines() if not line.startswith("Winner: ")]
        words = ", ".join(f"{split} {value:.4f}" for split, value in values.items())
        optuna_dashboard.save_note(study, "\n".join([f"Winner: trial {number} ({words})", *own]))


def differences(stored: Any, given: Any, path: str = "") -> list[str]:
    """What differs between two fingerprints, in words."""
    if isinstance(stored, dict) and isinstance(given, dict):
        keys = list(dict.fromkeys([*stored, *given]))
        return [d for k in keys for d in differences(stored.get(k), given.get(k), f"{path}.{k}" if path else k)]
    if stored == given:
        return []
    return [f"{path} is {_short(given)}, was {_short(stored)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _distribution(parameter: Parameter) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match parameter:
        case Float():
            return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
        case Integer():
            return IntDistribution(parameter.low, parameter.high)
        case Categorical():
            return CategoricalDistribution(parameter.choices)


def _engine_options(url: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}


def _synchronous_normal(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")
