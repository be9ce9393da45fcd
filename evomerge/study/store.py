"""The record of a study: one database with Optuna's tables, so that its dashboard shows it, and our item scores."""

from __future__ import annotations

import datetime
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from evomerge.errors import StudyError, choose
from evomerge.evaluation.config import Split
from evomerge.hiding import hidden
from evomerge.score import Score, State, Trial, Value
from evomerge.space import Parameter
from evomerge.study import tables
from evomerge.study.attributes import Attributes
from evomerge.study.commits import Commits
from evomerge.study.database import shown
from evomerge.study.opening import open_storage
from evomerge.study.recording import Recording
from evomerge.study.retrying import Patience

_FINGERPRINT = "evomerge:fingerprint"
_NOTES = "evomerge:notes"


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "experimental"
            study = optuna.load_study(study_name=name, storage=self._optuna)
            if study.metric_names != list(objectives):
                study.set_metric_names(list(objectives))
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
        self._patience, self._attributes = store.patience, store.attributes
        self._recording = Recording(store.optuna, store.commits, store.patience, study_id, name)
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

    def times(self) -> dict[int, tuple[datetime.datetime | None, datetime.datetime | None]]:
        """When each candidate began and ended, by the clock of whoever wrote it (no time zone); None: unknown."""
        stored = self._patience(lambda: self._storage.get_all_trials(self._id, deepcopy=False))
        return {t.number: (t.datetime_start, t.datetime_complete) for t in stored}

    def start(self, number: int, params: Mapping[str, Value], attributes: Mapping[str, Any]) -> None:
        """Record that a candidate is being run (again, where an earlier run was cut off)."""
        if number not in self._trial_ids:
            self._trial_ids[number] = self._recording.begin(number, params, self._parameters, attributes)

    def attribute(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Keep something with a candidate that is running; the dashboard shows it."""
        for name, value in attributes.items():
            self._patience(self._storage.set_trial_user_attr, self._trial_ids[number], name, value)

    def complete(
        self,
        number: int,
        score: Score,
        seconds: Mapping[str, float],
        values: Sequence[float] | None = None,
        attributes: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Record a candidate's score and its items together, so that a trial that is told always has its items.

        Args:
            values: Of the study's objectives; default the score's.
            attributes: To be kept with it.
        """
        from optuna.trial import TrialState

        tasks = score.tasks if len(score.tasks) > 1 else ()
        shown_tasks = {t.task: t.shown for t in tasks}
        self._end(
            number, TrialState.COMPLETE, [score.value] if values is None else list(values),
            {**attributes, "seconds": dict(seconds), **shown_tasks}, score,
        )  # fmt: skip

    def prune(
        self, number: int, part: Score, attributes: Mapping[str, Any], seconds: Mapping[str, float], seen: int,
        estimate: float,
    ) -> None:  # fmt: skip
        """Record that a candidate was stopped.

        Args:
            part: Its score on the items that it had.
            seen: How many these are.
            estimate: What it is worth by them; the dashboard shows it as an intermediate value.
        """
        from optuna.trial import TrialState

        self._patience(self._storage.set_trial_intermediate_value, self._trial_ids[number], seen, estimate)
        self._end(number, TrialState.PRUNED, None, {**attributes, "seconds": dict(seconds)}, part)

    def fail(
        self, number: int, reason: str, seconds: Mapping[str, float],
        attributes: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Record why a candidate failed."""
        from optuna.trial import TrialState

        self._end(number, TrialState.FAIL, None, {**attributes, "reason": hidden(reason), "seconds": dict(seconds)})

    def _end(
        self, number: int, state: Any, values: Sequence[float] | None, attributes: Mapping[str, Any],
        score: Score | None = None,
    ) -> None:  # fmt: skip
        trial = self._trial_ids[number]
        if score is None:
            self._recording.end(trial, state, values, attributes)
            return
        with self.scores.putting(f"trial/{number}", "search", score) as put:
            self._recording.end(trial, state, values, attributes, put)

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


def differences(stored: Any, given: Any) -> list[str]:
    """What differs between two fingerprints, in words."""
    return [f"{path} is {_short(now)}, was {_short(was)}" for path, was, now in differing(stored, given)]


def differing(stored: Any, given: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two records differ: the keys that lead there, with dots, and both values (None: it has none)."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in dict.fromkeys([*stored, *given]):
            yield from differing(stored.get(key), given.get(key), f"{path}.{key}" if path else str(key))
    elif stored != given:
        yield path, stored, given


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _synchronous_normal(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")


def _idle_in_transaction(connection: Any, _record: Any) -> None:
    # Of a process that is suspended, or whose machine is lost, between a write and its commit: its locks go too.
    with connection.cursor() as cursor:
        cursor.execute("SET idle_in_transaction_session_timeout = '60s'")
    connection.commit()
