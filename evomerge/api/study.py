"""A study for Python: pandas frames of what it tried and found, and what can be made of it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge import arguments
from evomerge.errors import InputError, StudyError
from evomerge.evaluation.config import SPLITS, Split
from evomerge.recipe import Chain, Recipe
from evomerge.score import State, Trial, Value
from evomerge.sources.diffusion import holds_model
from evomerge.study.finding import no_candidate, open_study
from evomerge.study.outcome import Outcome
from evomerge.study.record import Phase, Record
from evomerge.study.store import Store

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from evomerge.pipeline.warm_start import Begun


class Study:
    """A search as its database holds it: finished, cut off, or still running (`refresh` reads again).

        study = Study("runs/quickstart-quickstart-0")
        study.results()                                      # held-out figures, with paired differences
        study.trials().plot.scatter("number", "value")
        study.coefficients().pivot_table("value", "where", "source", observed=True)

    Args:
        study: Its output folder, or its name in `runs/` or in `storage`. NAME/WHICH is a search that belongs to it: a
            control, a hybrid's first stage ("parameter").
        storage: URL of its database, where it does not lie in its folder.
        outcome: What the search itself handed over, where it has just run.

    Raises:
        StudyError: there is no such study.
    """

    def __init__(self, study: str | Path, storage: str | None = None, *, outcome: Outcome | None = None) -> None:
        self._store, self.name, self.folder = open_study(str(study), storage)
        self._handed = outcome

    @classmethod
    def of(cls, outcome: Outcome) -> Study:
        """The study of a search that has just run."""
        found = cls.__new__(cls)
        found._store, found.name, found.folder = Store(outcome.storage), outcome.study, outcome.model.parent
        found._handed = outcome
        return found

    def as_beginning(self) -> Begun:
        """Where it lies, for a search that begins from it."""
        from evomerge.pipeline.warm_start import Begun

        folder, main = self.folder, [n for n in self._store.names() if "/" not in n]
        # The command line names a folder, which stands for the one study of the database in it.
        if folder is None or main != [self.name] or self._store.url != f"sqlite:///{(folder / 'study.db').resolve()}":
            return Begun(self.name, self._store.url)
        return Begun(self.name, self._store.url, str(folder))

    def refresh(self) -> Study:
        """Forget what was read, for a search that goes on meanwhile; gives itself."""
        self.__dict__.pop("_record", None)
        self._handed = None
        return self

    @cached_property
    def _record(self) -> Record:
        from evomerge.pipeline.recorded import recorded

        return recorded(self._store, self.name, self.folder)

    @property
    def phase(self) -> Phase:
        """How far it has come: "running", "interrupted", "chosen" (a stage's winner is chosen) or "measured"."""
        return self._record.phase

    @property
    def outcome(self) -> Outcome | None:
        """The winner with everything that it was compared with on held-out items; None before it was."""
        return self._handed or self._record.outcome

    @property
    def best_trial(self) -> Trial:
        """The winner; before there is one, the best candidate so far.

        Raises:
            StudyError: no candidate is complete yet.
        """
        best = self._record.best
        if best is None:
            raise StudyError(f'study "{self.name}": no candidate is complete yet')
        return best

    @property
    def best_value(self) -> float:
        """Its score on the search items. It was chosen by it, among many: `results` has the honest figure."""
        value = self.best_trial.value
        assert value is not None
        return value

    @property
    def best_params(self) -> dict[str, Value]:
        """Its parameters, by the optimizer's names."""
        return dict(self.best_trial.params)

    @property
    def model(self) -> Path | None:
        """The winner's checkpoint, where the search has written it on this machine."""
        folder = None if self.folder is None else self.folder / "model"
        won = self._record.won and "/" not in self.name
        return folder if won and folder is not None and holds_model(folder) else None

    def recipe(self, trial: int | None = None) -> Recipe | Chain:
        """How a candidate is made; by default the winner, or the best so far.

        Raises:
            StudyError: no such candidate, or its sources are gone.
        """
        if trial is None:
            trial = self.best_trial.number
        if trial == self.best_trial.number and self._record.recipe is not None:
            return self._record.recipe
        from evomerge.pipeline.export import rebuilt

        return rebuilt(self._store.open(self.name), trial).signed

    def trials(self) -> pd.DataFrame:
        """Every candidate, one row each.

        Columns: `number`, `state`, `value`, `reason`, `params.NAME`, `tasks.NAME`, `seconds.STEP`, `attributes.NAME`.
        """
        from evomerge.report.frames import trials_frame

        return trials_frame(self._record.trials)

    def items(self, split: Split | None = None) -> pd.DataFrame:
        """The result of every model on every item that it was scored on, one row each; of one split, or of all.

        Columns: `subject` ("trial/NUMBER", "source/NAME", "model/base", "model/uniform"), `split`, `task`, `metric`,
        `item` (hash of its content), `result` (higher is better).

        Raises:
            InputError: there is no such split.
        """
        from evomerge.report.frames import items_frame

        if split is not None:
            arguments.word("split", split, SPLITS)
        scores = self._store.open(self.name).scores
        wanted = SPLITS if split is None else (split,)
        return items_frame([(subject, s, score) for s in wanted for subject, score in scores.read(s).items()])

    def coefficients(self, trial: int | None = None) -> pd.DataFrame:
        """What a candidate's parameters are where in the model; by default the winner's, or the best's so far.

        Columns, of a merge: `parameter`, `source`, `where` (an ordered category, the input first), `module`, `value`,
        `low`, `high` (the bounds that were searched). Of a path over layers: `hop`, `source`, `layer`, `scale` (what
        the residual stream is multiplied by where the hop begins).

        Raises:
            StudyError: no such candidate, or, of a path, its sources are gone.
        """
        from evomerge.report.frames import coefficients_frame, path_frame
        from evomerge.space import DataflowConfig

        found = self._trial(trial)
        if not isinstance(self._record.config, DataflowConfig):
            return coefficients_frame(replace(self._record, best=found))
        path = self._record.path if found is self._record.best else None
        if path is None:
            from evomerge.pipeline.export import rebuilt

            path = rebuilt(self._store.open(self.name), found.number).path
        assert path is not None
        return path_frame(path, self._record.names)

    def results(self) -> pd.DataFrame:
        """The held-out figures: one row for each model that the winner was compared with, and the winner's, last.

        Columns: `model`, `role`, `score` with `low` and `high` (95 %), `difference` (winner minus this one, paired by
        item) with `difference.low` and `difference.high`, `p` (corrected for all comparisons), `tasks.NAME`.

        Raises:
            StudyError: the winner has not been scored on held-out items.
        """
        from evomerge.report.frames import results_frame

        outcome = self.outcome
        if outcome is None:
            why = {"running": "the search is still running", "chosen": "it is one stage of a search"}
            raise StudyError(
                f'study "{self.name}": has no held-out results ({why.get(self.phase, "the search was cut off")})'
            )
        return results_frame(outcome)

    def report(self, out: str | Path | None = None, *, overwrite: bool = False) -> Path:
        """Write the report, one HTML file; see `evomerge report`.

        Args:
            out: Default: report.html in its folder.
            overwrite: Replace a file that is no report.

        Raises:
            InputError: it cannot be written there.
        """
        from evomerge.api.reporting import report_place, write_report

        place = report_place(self.name, self.folder, None if out is None else Path(out), overwrite)
        write_report(self._record, place)
        return place

    def export(
        self,
        out: str | Path,
        trial: int | None = None,
        *,
        overwrite: bool = False,
        push: str | None = None,
        private: bool = False,
        revision: str | None = None,
        replace_model: bool = False,
    ) -> Path:
        """Write a candidate as a plain checkpoint with its card; by default the winner. See `evomerge export`.

        Args:
            push: OWNER/NAME of a repository of the hub, to upload it to; made where it is missing, `private` or not.
            revision: Branch to upload to, made where it is missing; default main.
            replace_model: Put it in the place of a model in that repository that evomerge did not make.

        Raises:
            StudyError: no such candidate, no winner yet, or the sources are gone.
            InputError: `out` cannot be written, or the hub refuses.
            EvoMergeError: the hub cannot be reached; what was written is whole.
        """
        from evomerge.api.exporting import export_checkpoint

        to = None
        if push is not None:
            from evomerge.publishing.push import Destination

            to = Destination(push, True if private else None, revision, replace_model)
        elif private or revision or replace_model:
            raise InputError("private, revision and replace_model are about push, which is missing")
        study = self._store.open(self.name)
        export_checkpoint(self._store, study, self.folder, Path(out), trial, overwrite=overwrite, to=to)
        return Path(out)

    def optuna(self) -> optuna.Study:
        """The same study for Optuna's own tools: `optuna.visualization.plot_param_importances(study.optuna())`."""
        import optuna

        return optuna.load_study(study_name=self.name, storage=self._store.optuna)

    def _trial(self, number: int | None) -> Trial:
        if number is None:
            return self.best_trial
        found = next((t for t in self._record.trials if t.number == number), None)
        if found is None:
            raise no_candidate(self.name, number, [t.number for t in self._record.trials])
        return found

    def _counts(self) -> Mapping[str, int]:
        states = [t.state for t in self._record.trials]
        named = ((State.COMPLETE, "complete"), (State.PRUNED, "stopped early"), (State.FAIL, "failed"))
        return {what: states.count(s) for s, what in named if s in states}

    def __repr__(self) -> str:
        best = self._record.best
        words = ", ".join(f"{n} {what}" for what, n in self._counts().items()) or "no candidates"
        best_words = "" if best is None or best.value is None else f"; best {best.value:.4f} (trial {best.number})"
        return f"<Study {self.name}: {self.phase}; {words}{best_words}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the study in a line, and its held-out figures."""
        line = f"<p>{html.escape(repr(self)[1:-1])}</p>"
        table: Any = None if self.outcome is None else self.results()
        if table is None:
            return line
        return line + str(table.to_html(index=False, na_rep="", float_format="{:.4f}".format))
