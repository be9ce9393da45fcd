"""`--wandb [PROJECT]`: a search as a run of Weights & Biases, online or offline (WANDB_MODE=offline, `wandb sync`)."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from evomerge.errors import InputError

if TYPE_CHECKING:
    from evomerge.evaluation.config import Split
    from evomerge.score import Score, Trial, Value
    from evomerge.study.outcome import Outcome
    from evomerge.study.watcher import Beginning
    from evomerge.watching.tally import Tally

# Seconds after which W&B's server counts as gone, when a run begins and when it ends.
INIT_SECONDS, FINISH_SECONDS = 60, 120


def check_usable() -> None:
    """Look for what a run needs, before time is spent.

    Raises:
        InputError: wandb is not installed, or nobody is logged in.
    """
    if importlib.util.find_spec("wandb") is None:
        raise InputError("--wandb: Weights & Biases is not installed: pip install 'evomerge[wandb]'")
    if os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun"):
        return
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise InputError("--wandb: not logged in: wandb login, or WANDB_API_KEY, or WANDB_MODE=offline")


class WandbLog:
    """Logs a search. Each process's part of a search is a run of its own, in the group of its study; what earlier ones
    found is logged again, so that every run is whole.

    Where W&B fails that is told once, and the search goes on without it. Neither the command line (a storage's URL may
    hold a password) nor code, git or what is printed is sent.

    Args:
        project: W&B's project.
        config: What the search was asked for.
        say: Is told of a failure.
    """

    def __init__(self, project: str, config: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self._project, self._config, self._say = project, dict(config), say
        self._run: Any = None
        self._broken = False
        self._tally: Tally | None = None
        self._items = 0

    def __enter__(self) -> WandbLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._run is not None:
            self._try(lambda: self._run.finish(exit_code=0 if error is None else 1), always=True)

    def say(self, text: str) -> None:
        """See `Watcher`; not logged."""

    def begin(self, beginning: Beginning) -> None:
        """See `Watcher`."""
        from evomerge.watching.tally import Tally

        self._tally, self._items = Tally(beginning), 0
        if self._run is None:
            self._try(lambda: self._init(beginning))
        else:
            self._log({f"{self._prefix}baselines/{n}": v.mean for n, v in beginning.lines.items()})

    def _init(self, beginning: Beginning) -> None:
        import wandb

        settings = wandb.Settings(
            silent=True, console="off", disable_code=True, disable_git=True, save_code=False, x_disable_meta=True,
            init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS, finish_timeout_raises=False,
        )  # fmt: skip
        self._run = wandb.init(
            project=self._project, name=beginning.study, group=beginning.study.partition("/")[0], job_type="search",
            config={**self._config, "study": beginning.study, "items": beginning.items, "workers": beginning.workers},
            settings=settings, reinit="create_new",
        )  # fmt: skip
        for name, value in beginning.lines.items():
            self._run.summary[f"baselines/{name}"] = value.mean

    @property
    def _prefix(self) -> str:
        """Nothing for the main search, else its name: a control's numbers stand apart."""
        name = self._tally.beginning.name if self._tally is not None else "search"
        return "" if name == "search" else f"{name}/"

    def started(self, number: int, params: Mapping[str, Value]) -> None:
        """See `Watcher`."""
        if self._tally is not None:
            self._tally.started(number, params)

    def scored(self, items: int) -> None:
        """See `Watcher`."""
        if self._tally is not None:
            self._tally.scored(items)
        self._items += items

    def finished(self, trial: Trial, replayed: bool) -> None:
        """See `Watcher`."""
        tally = self._tally
        if tally is None:
            return
        tally.finished(trial, replayed)
        values: dict[str, Any] = {
            "trial": trial.number, "state": trial.state.value, "spent": tally.units, "seconds": tally.seconds,
            "items": round(tally.units * tally.beginning.items), "complete": tally.complete, "pruned": tally.pruned,
            "failed": tally.failed, "cost": trial.cost,
        }  # fmt: skip
        if trial.score is not None:
            values["score"] = trial.value
            values |= {f"tasks/{t.task}": t.shown for t in trial.score.tasks}
        if tally.best is not None:
            values["best"] = tally.best.value
        values |= {f"params/{name}": value for name, value in trial.params.items()}
        self._log({f"{self._prefix}{name}": value for name, value in values.items()})

    def measuring(self, split: Split, names: Sequence[str]) -> None:
        """See `Watcher`."""

    def measured(self, split: Split, name: str, found: Score | str, known: bool) -> None:
        """See `Watcher`."""
        if not isinstance(found, str) and self._run is not None:
            self._try(lambda: self._run.summary.update({f"{split}/{name}": found.value}))

    def end(self) -> None:
        """See `Watcher`."""

    def result(self, outcome: Outcome) -> None:
        """The end: the held-out table, the winner and its recipe."""
        if self._run is not None:
            self._try(lambda: self._result(outcome))

    def _result(self, outcome: Outcome) -> None:
        import wandb

        from evomerge.report.result import rows

        fixed = ["model", "role", "test", "low", "high", "best minus it", "p"]
        tasks = sorted(rows(outcome)[-1].tasks)
        columns: list[str | int] = [*fixed, *tasks]
        table = wandb.Table(columns=columns)
        for row in rows(outcome):
            against = row.difference
            table.add_data(
                row.name, row.role, row.test.mean, row.test.low, row.test.high,
                None if against is None else against.mean, None if against is None else against.holm,
                *(row.tasks[t].mean if t in row.tasks else None for t in tasks),
            )  # fmt: skip
        self._run.log({"held-out": table})
        winner = outcome.winner
        self._run.summary.update({
            "winner/trial": outcome.best.number, "winner/search": outcome.best.value,
            "winner/select": None if winner.select is None else winner.select.value, "winner/test": winner.test.value,
            "winner/recipe_hash": outcome.recipe_hash,
        })  # fmt: skip
        artifact = wandb.Artifact(f"recipe-{_name(outcome.study)}", type="recipe")
        with artifact.new_file("recipe.yaml", encoding="utf-8") as file:
            file.write(outcome.recipe.to_yaml())
        self._run.log_artifact(artifact)

    def _log(self, values: Mapping[str, Any]) -> None:
        if self._run is not None:
            self._try(lambda: self._run.log(dict(values)))

    def _try(self, step: Callable[[], object], always: bool = False) -> None:
        if self._broken and not always:
            return
        try:
            step()
        except Exception as e:  # whatever W&B raises, it is no reason for a search to fail
            if not self._broken:
                first = (str(e).splitlines() or [""])[0][:300]
                self._say(f"--wandb: {type(e).__name__}: {first}; the search goes on without")
            self._broken = True


def _name(study: str) -> str:
    """As W&B takes names of artifacts."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in study)[:100]
