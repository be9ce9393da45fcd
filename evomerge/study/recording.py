"""A candidate's rows in Optuna's tables: each step in one transaction, parameters and attributes in bulk.

Optuna makes a trial and ends it, by its own calls, with its locks and its numbers. What it would write row by row, with
two queries before each (70 ms for 100 parameters), and in a transaction for each attribute, is added to the same
transaction before that is committed. The tables are those of the version that `open_storage` looked for.
"""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa

from evomerge.errors import EvoMergeError
from evomerge.score import Value
from evomerge.space import Categorical, Float, Integer, Parameter
from evomerge.study.commits import Check, Commits
from evomerge.study.retrying import Patience

# Of a trial: which call stored it. One whose acknowledgement was lost knows its own by it.
_STORED_BY = "evomerge:stored_by"

_trials = sa.table(
    "trials", sa.column("trial_id", sa.Integer), sa.column("number", sa.Integer), sa.column("study_id", sa.Integer)
)
_params = sa.table(
    "trial_params", sa.column("trial_id", sa.Integer), sa.column("param_name", sa.String),
    sa.column("param_value", sa.Float(53)), sa.column("distribution_json", sa.Text),
)  # fmt: skip
_attribute = ("trial_id", sa.Integer), ("key", sa.String), ("value_json", sa.Text)
_user_attributes = sa.table("trial_user_attributes", *(sa.column(name, kind) for name, kind in _attribute))
_system_attributes = sa.table("trial_system_attributes", *(sa.column(name, kind) for name, kind in _attribute))


class Recording:
    """Writes the trials of one study.

    Args:
        storage: Optuna's storage object.
        study: Optuna's id of the study.
        name: The study's, for messages.
    """

    def __init__(self, storage: Any, commits: Commits, patience: Patience, study: int, name: str) -> None:
        self._storage, self._commits, self._patience = storage, commits, patience
        self._study, self._name = study, name

    def begin(
        self,
        number: int,
        params: Mapping[str, Value],
        parameters: Mapping[str, Parameter],
        attributes: Mapping[str, Any],
    ) -> int:
        """Store a trial as running. Returns Optuna's id of it.

        Args:
            number: What it has to get; else nothing is stored.
            parameters: What may vary, by name.
            attributes: What the dashboard shows with it; values are JSON.

        Raises:
            EvoMergeError: another process stores trials of this study.
        """
        from optuna.trial import TrialState, create_trial

        call, found = uuid.uuid4().hex, 0
        internal = [
            {"param_name": name, "param_value": to_internal(value), "distribution_json": text}
            for name, value, (to_internal, text) in ((n, v, _distribution(parameters[n])) for n, v in params.items())
        ]

        def add(connection: sa.Connection) -> None:
            nonlocal found
            found = self._next(connection, number)
            for table, rows in (
                (_params, internal),
                (_user_attributes, _rows(attributes)),
                (_system_attributes, _rows({_STORED_BY: call})),
            ):
                if rows:
                    connection.execute(sa.insert(table), [{"trial_id": found, **row} for row in rows])

        def create() -> int:
            frozen = create_trial(state=TrialState.RUNNING)
            frozen.datetime_start = datetime.datetime.now()
            try:
                with self._commits.guarded(add):
                    return int(self._storage.create_new_trial(self._study, frozen))
            except _Numbering as e:
                # Optuna too tries again, and does not know what became of the first try.
                mine = self._stored_by(number, call)
                if mine is not None:
                    return mine
                raise EvoMergeError(
                    f'study "{self._name}": candidate {number} is to be stored, but {e.others} are there: another '
                    "process writes this study; wait for it to end"
                ) from None

        return self._patience(create)

    def _next(self, connection: sa.Connection, number: int) -> int:
        """The id of the trial that is being stored: the study's newest, for nobody else makes one at this moment.

        Looked at before it is committed: one that was stored before must not be doubled. Trials are numbered from 0
        without gaps, so that its number is the count of those before it.
        """
        table = _trials
        newest = sa.select(sa.func.max(table.c.trial_id)).where(table.c.study_id == self._study).scalar_subquery()
        row = connection.execute(sa.select(table.c.trial_id, table.c.number).where(table.c.trial_id == newest)).one()
        if row.number != number:
            raise _Numbering(row.number)
        return int(row.trial_id)

    def _stored_by(self, number: int, call: str) -> int | None:
        """The id of a trial, where it was stored by this very call."""
        try:
            found = int(self._storage.get_trial_id_from_study_id_trial_number(self._study, number))
        except KeyError:
            return None
        return found if self._storage.get_trial_system_attrs(found).get(_STORED_BY) == call else None

    def end(
        self,
        trial: int,
        state: Any,
        values: Sequence[float] | None,
        attributes: Mapping[str, Any],
        also: Check | None = None,
    ) -> None:
        """Record how a trial ended, once: an ended trial cannot be written any more.

        Args:
            trial: Optuna's id.
            state: Optuna's TrialState.
            values: Of the objectives; None where it has none.
            attributes: In the place of earlier ones of these names.
            also: Writes what else belongs to it, in the same transaction.

        Raises:
            EvoMergeError: another process writes the same trial.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        tried = False

        def add(connection: sa.Connection) -> None:
            self._attribute(connection, trial, attributes)
            if also is not None:
                also(connection)

        def end() -> None:
            nonlocal tried
            again, tried = tried, True
            try:
                with self._commits.guarded(add):
                    done = self._storage.set_trial_state_values(trial, state, values)
            except UpdateFinishedTrialError:
                # The first try went through, and its acknowledgement was lost.
                if not again or self._storage.get_trial(trial).state is not state:
                    raise
            else:
                if not done:  # a row of the same key came in between
                    raise EvoMergeError(
                        f'study "{self._name}": a candidate is written by another process too; wait for it to end'
                    )

        self._patience(end)

    @staticmethod
    def _attribute(connection: sa.Connection, trial: int, attributes: Mapping[str, Any]) -> None:
        if not attributes:
            return
        table = _user_attributes
        connection.execute(sa.delete(table).where(table.c.trial_id == trial, table.c.key.in_(list(attributes))))
        connection.execute(sa.insert(table), [{"trial_id": trial, **row} for row in _rows(attributes)])


class _Numbering(Exception):
    """A trial was about to be stored under another number than the next.

    Attributes:
        others: How many are there.
    """

    def __init__(self, others: int) -> None:
        super().__init__(others)
        self.others = others


def _rows(attributes: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]


@cache
def _distribution(parameter: Parameter) -> tuple[Callable[[Any], float], str]:
    """What makes of a parameter's value Optuna's number for it, and Optuna's text of what may vary."""
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
        distribution_to_json,
    )

    made: BaseDistribution
    match parameter:
        case Float():
            made = FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
        case Integer():
            made = IntDistribution(parameter.low, parameter.high)
        case Categorical():
            made = CategoricalDistribution(parameter.choices)
    return made.to_internal_repr, distribution_to_json(made)
