"""The record of a study: one database with Optuna's tables, so that its dashboard shows it, and our item scores."""

from __future__ import annotations

import datetime
import json
import logging
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from evomerge.errors import EvoMergeError, StudyError, choose
from evomerge.evaluation.config import Split
from evomerge.score import Score, State, Trial, Value
from evomerge.space import Categorical, Float, Integer, Parameter
from evomerge.study import tables
from evomerge.study.attributes import Attributes
from evomerge.study.commits import Commits
from evomerge.study.database import shown
from evomerge.study.opening import open_storage
from evomerge.study.retrying import Patience

_FINGERPRINT = "evomerge:fingerprint"
_NOTES = "evomerge:notes"
# Of a trial: which call stored it. One whose acknowledgement was lost knows its own by it.
_STORED_BY = "evomerge:stored_by"


class Store:
    """A database of studies.

    Args:
        url: SQLAlchemy URL, e.g. "sqlite:///runs/STUDY/study.db".
        create: Make the database and its tables where they are not there; else a missing one is refused.
        say: Is told when the database is gone for a while, and when it is back.

    Raises:
        StudyError: the database is missing, cannot be opened, or holds something else than studies.
    """

    def __init__(self, url: str, *, create: bool = False, say: Callable[[str], None] | None = None) -> None:
        import optuna

        self.url = url
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._optuna = open_storage(url, create)
        self.engine: sa.Engine = self._optuna.engine
        self.patience = Patience(url, say)
        self.commits = Commits(self.engine)
        self.attributes = Attributes(self._optuna, self.engine)
        if self.engine.dialect.name == "sqlite":
            # Readers (the dashboard) and the one writer do not wait for each other; a kill loses no commit.
            with self.engine.connect() as connection:
                connection.execute(sa.text("PRAGMA journal_mode=WAL"))
            sa.event.listen(self.engine, "connect", _synchronous_normal)
            self.engine.dispose()
        elif self.engine.dialect.name == "postgresql":
            sa.event.listen(self.engine, "connect", _idle_in_transaction)
            self.engine.dispose()

    def names(self) -> list[str]:
        """Studies that evomerge made, by name; control searches (NAME/control) too."""
        found = self.patience(self._optuna.get_all_studies)
        return [s.study_name for s in found if _FINGERPRINT in s.user_attrs]

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
        study_id = self.patience(self._made, name, objectives or {"score": False})
        stored = self.patience(self.attributes.read, study_id).get(_FINGERPRINT)
        if stored is None:
            if self.patience(self._optuna.get_n_trials, study_id):
                raise StudyError(
                    f'storage {shown(self.url)}: study "{name}" was not made by evomerge; give another --study name'
                )
            # New, or one whose maker was killed before this.
            stored = json.dumps(fingerprint, sort_keys=True)
            self.patience(self.attributes.write, study_id, _FINGERPRINT, stored)
        different = differences(json.loads(stored), json.loads(json.dumps(fingerprint)))
        if different:
            raise StudyError(
                f'study "{name}" in {shown(self.url)} was made with other settings: '
                + "; ".join(different)
                + ". Give the same settings to resume it, or another --study name"
            )
        return Study(self, name, study_id, parameters)

    def _made(self, name: str, objectives: Mapping[str, bool]) -> int:
        """Optuna's id of a study, made where it is not there."""
        import optuna
        from optuna.exceptions import DuplicatedStudyError
        from optuna.study import StudyDirection

        directions = [StudyDirection.MINIMIZE if least else StudyDirection.MAXIMIZE for least in objectives.values()]
        try:
            study_id = int(self._optuna.create_new_study(directions, name))
        except DuplicatedStudyError:
            try:
                study_id = int(self._optuna.get_study_id_from_name(name))
                other = str(self._optuna.get_study_name_from_id(study_id))
            except KeyError:
                other = ""
            if other != name:
                # MySQL's names are the same whatever the case of their letters.
                raise StudyError(
                    f'storage {shown(self.url)}: holds study "{other}", and this database takes "{name}" for the same '
                    "name; give another --study name"
                ) from None
        if list(objectives) != ["score"]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "experimental"
                optuna.load_study(study_name=name, storage=self._optuna).set_metric_names(list(objectives))
        return study_id

    def open(self, name: str) -> Study:
        """An existing study, for reading.

        Raises:
            StudyError: there is none of that name.
        """
        names = self.names()
        if name not in names:
            raise StudyError(f'storage {shown(self.url)}: no study "{name}"; {choose(name, names)}')
        return Study(self, name, self.patience(self._optuna.get_study_id_from_name, name), ())

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
        self._patience, self._commits, self._attributes = store.patience, store.commits, store.attributes
        self._id = study_id
        self._parameters = {p.name: p for p in parameters}
        self._trial_ids: dict[int, int] = {}
        self.scores = tables.ScoreTable(store.engine, study_id, store.patience)
        self.results = tables.ResultTable(store.engine, study_id, store.patience)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the study was made with."""
        return dict(json.loads(self._patience(self._attributes.read, self._id)[_FINGERPRINT]))

    def note(self, key: str, value: Any) -> None:
        """Keep a value with the study (seconds spent, winner, looks at the test items)."""
        self._patience(self._attributes.write, self._id, f"{_NOTES}:{key}", value)

    def notes(self) -> dict[str, Any]:
        """What `note` kept."""
        attributes = self._patience(self._attributes.read, self._id)
        return {k.removeprefix(f"{_NOTES}:"): v for k, v in attributes.items() if k.startswith(_NOTES)}

    def trials(self) -> list[Trial]:
        """Every candidate by number, with its search score."""
        found = []
        # The trials first: a search that goes on meanwhile writes a candidate's items before it says that it is done.
        stored = self._patience(lambda: self._storage.get_all_trials(self._id, deepcopy=False))
        scores = self.scores.read("search")
        for frozen in stored:
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
        call = uuid.uuid4().hex
        frozen = create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions={name: _distribution(self._parameters[name]) for name in params},
            user_attrs=dict(attributes),
            system_attrs={_STORED_BY: call},
        )
        frozen.datetime_start = frozen.datetime_start or datetime.datetime.now()

        def create() -> int:
            try:
                with self._commits.guarded(self._numbered(number)):
                    return int(self._storage.create_new_trial(self._id, frozen))
            except _Numbering as e:
                # Optuna too tries again, and does not know what became of the first try.
                mine = self._stored_by(number, call)
                if mine is not None:
                    return mine
                raise EvoMergeError(
                    f'study "{self.name}": candidate {number} is to be stored, but {e.others} are there: another '
                    "process writes this study; wait for it to end"
                ) from None

        self._trial_ids[number] = self._patience(create)

    def _numbered(self, number: int) -> Callable[[sa.Connection], None]:
        """Checks, as a trial is stored, that it gets this number: one that was stored before must not be doubled."""
        trials = sa.table("trials", sa.column("study_id"))
        query = sa.select(sa.func.count()).select_from(trials).where(trials.c.study_id == self._id)

        def check(connection: sa.Connection) -> None:
            others = int(connection.execute(query).scalar_one()) - 1
            if others != number:
                raise _Numbering(others)

        return check

    def _stored_by(self, number: int, call: str) -> int | None:
        """The id of a trial, where it was stored by this very call."""
        try:
            found = int(self._storage.get_trial_id_from_study_id_trial_number(self._id, number))
        except KeyError:
            return None
        return found if self._storage.get_trial_system_attrs(found).get(_STORED_BY) == call else None

    def attribute(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Keep something with a candidate that is running; the dashboard shows it."""
        for name, value in attributes.items():
            self._patience(self._storage.set_trial_user_attr, self._trial_ids[number], name, value)

    def complete(
        self, number: int, score: Score, seconds: Mapping[str, float], values: Sequence[float] | None = None
    ) -> None:
        """Record a candidate's score: the items first, then the trial, so that a told trial always has its items.

        Args:
            values: Of the study's objectives; default the score's.
        """
        from optuna.trial import TrialState

        self.scores.write(f"trial/{number}", "search", score)
        tasks = score.tasks if len(score.tasks) > 1 else ()
        self.attribute(number, {"seconds": dict(seconds)} | {t.task: t.shown for t in tasks})
        self._end(number, TrialState.COMPLETE, [score.value] if values is None else list(values))

    def prune(
        self, number: int, attributes: Mapping[str, Any], seconds: Mapping[str, float], seen: int, estimate: float
    ) -> None:
        """Record that a candidate was stopped.

        Args:
            seen: How many items it had.
            estimate: Its score on them; the dashboard shows it as an intermediate value.
        """
        from optuna.trial import TrialState

        self.attribute(number, {**attributes, "seconds": dict(seconds)})
        self._patience(self._storage.set_trial_intermediate_value, self._trial_ids[number], seen, estimate)
        self._end(number, TrialState.PRUNED)

    def fail(self, number: int, reason: str, seconds: Mapping[str, float]) -> None:
        """Record why a candidate failed."""
        from optuna.trial import TrialState

        self.attribute(number, {"reason": reason, "seconds": dict(seconds)})
        self._end(number, TrialState.FAIL)

    def _end(self, number: int, state: Any, values: Sequence[float] | None = None) -> None:
        """Record how a candidate ended, once: an ended trial cannot be written any more."""
        from optuna.exceptions import UpdateFinishedTrialError

        trial, tried = self._trial_ids[number], False

        def end() -> None:
            nonlocal tried
            again, tried = tried, True
            try:
                self._storage.set_trial_state_values(trial, state, values)
            except UpdateFinishedTrialError:
                # The first try went through, and its acknowledgement was lost.
                if not again or self._storage.get_trial(trial).state is not state:
                    raise

        self._patience(end)

    def mark_winner(self, number: int, values: Mapping[Split, float]) -> None:
        """Mark the winner: in our notes, and as the first line of the study's note in the dashboard."""
        import optuna
        import optuna_dashboard

        self.note("winner", number)
        words = ", ".join(f"{split} {value:.4f}" for split, value in values.items())

        def save() -> None:
            study = optuna.load_study(study_name=self.name, storage=self._storage)
            own = [line for line in optuna_dashboard.get_note(study).splitlines() if not line.startswith("Winner: ")]
            optuna_dashboard.save_note(study, "\n".join([f"Winner: trial {number} ({words})", *own]))

        self._patience(save)


class _Numbering(Exception):
    """A trial was about to be stored under another number than the next.

    Attributes:
        others: How many are there.
    """

    def __init__(self, others: int) -> None:
        super().__init__(others)
        self.others = others


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


def _synchronous_normal(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")


def _idle_in_transaction(connection: Any, _record: Any) -> None:
    # Of a process that is suspended, or whose machine is lost, between a write and its commit: its locks go too.
    with connection.cursor() as cursor:
        cursor.execute("SET idle_in_transaction_session_timeout = '60s'")
    connection.commit()
