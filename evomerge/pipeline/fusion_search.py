"""The search over the targets of a pairwise fusion (`then: search`): checked before any of them is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, SpaceError, nearest
from evomerge.evaluation import Evaluator, EvaluatorFile, load_evaluator, open_evaluator
from evomerge.fusion.config import FusionConfig, FusionError
from evomerge.optimizers import make_optimizer, restarts_of
from evomerge.pipeline import warm_start
from evomerge.pipeline.goals import check_goals, no_race, objectives_of
from evomerge.pipeline.models import fingerprint_of, shape_of, told_of
from evomerge.pipeline.options import Options
from evomerge.sources import Source
from evomerge.space import SpaceConfig, load_space
from evomerge.study import place
from evomerge.study.budget import Budget
from evomerge.study.goals import Goals
from evomerge.study.workers import Cluster

# Its folder in that of the fusion.
FOLDER = "search"


class TargetSearch:
    """What `then: search` asks for, checked as `evomerge search` checks its options.

    Args:
        file: The fusion's file, which messages name.
        config: Its content.
        target: The model that every target is made from.
        results: Names of the targets.
        own: The fusion's own evaluator, with what it has been opened as.
        out: The fusion's output folder, where it is known.

    Attributes:
        evaluator: What scores merges, with the objectives that were asked for.
        space: A file or preset, over any models.

    Raises:
        InputError: everything that is wrong with it.
    """

    def __init__(
        self,
        file: Path,
        config: FusionConfig,
        target: Source,
        results: Sequence[str],
        own: tuple[EvaluatorFile, Evaluator] | None,
        out: Path | None = None,
    ) -> None:
        assert config.then is not None
        self._file = file
        self._base = config.target
        self._asked = asked = config.then.search
        self._out = out
        if asked.evaluator:
            self.evaluator = evaluator_beside(asked.evaluator, file.parent, self._key("evaluator"))
        else:
            assert own is not None  # a file where neither has one was refused
            self.evaluator = own[0]
        if asked.objectives:
            self.evaluator = self.evaluator.after(asked.objectives, self._key("objectives"))
        self.space = str(file.parent / asked.space) if (file.parent / asked.space).is_file() else asked.space
        self._options = Options(
            budget=self._budget(), space=self.space, evaluator=self.evaluator.file, study=f"{config.name}-search",
            sampler=asked.sampler, seed=config.seed, population=asked.population, sigma=asked.sigma,
            restarts=asked.restarts, patience=asked.patience, controls=asked.controls, fidelity=asked.fidelity,
            estimates=asked.estimates, objectives=asked.objectives, warm_start=self._warm_start(),
        )  # fmt: skip
        opened = own[1] if own is not None and own[0] is self.evaluator else open_evaluator(self.evaluator)
        self._check(target, results, opened)

    def options(self, models: Sequence[str], cluster: Cluster, out: Path) -> Options:
        """What `evomerge search` is to do, once there are targets.

        Args:
            models: Their folders.
            out: The fusion's output folder.
        """
        return replace(self._options, models=models, base=self._base, cluster=cluster, out=out / FOLDER)

    def _key(self, name: str) -> str:
        """How messages call one of its keys."""
        return f"{self._file}: then.search.{name}"

    def _budget(self) -> Budget:
        try:
            return Budget.parse(str(self._asked.budget))
        except InputError as e:
            raise FusionError(f"{self._key('budget')}: {e}") from None

    def _warm_start(self) -> str | None:
        """The other search's folder: by its full path, for the study keeps it and may go on from any folder."""
        named = self._asked.warm_start
        return None if named is None else str((self._file.parent / named).resolve())

    def _check(self, target: Source, results: Sequence[str], evaluator: Evaluator) -> None:
        """Everything that can be told before there are targets."""
        options = self._options
        with told_of(self._key("space")):
            config = load_space(self.space)
            if not isinstance(config, SpaceConfig):
                raise SpaceError(f'is of kind "{config.kind}", expected a parameter space: one that merges weights')
            models = [f"models/{name}" for name in results]
            placed = config.with_sources(models, target.reference if config.base_model else None)
            space = placed.bind_models({r: shape_of(target) for r in placed.references()})
        objectives = objectives_of(self.evaluator.config, placed)
        sampler = options.sampler_for(space, len(objectives), self.evaluator.config.constraints)
        with told_of(self._key("sampler")):
            make_optimizer(
                sampler, space.parameters, options.seed, population=options.population, sigma=options.sigma,
                objectives=len(objectives), tasks=sum(t.weight > 0 for t in self.evaluator.config.tasks),
            )  # fmt: skip
        with told_of(self._key("restarts")):
            restarts_of(sampler, options.restarts)
        goals = Goals(objectives, tuple(self.evaluator.config.constraints))
        by = f"{self._file}: then.search" if options.objectives else ""
        check_goals(evaluator, self.evaluator, paths=False, objectives=objectives, by=by)
        obstacle = no_race(sampler, goals, self.evaluator.config, evaluator.items("search"))
        if options.fidelity == "race" and obstacle is not None:
            raise FusionError(f"{self._key('fidelity')} = race: {obstacle}; expected full")
        if (folder := self._warm_start()) is not None:
            self._check_warm_start(folder, fingerprint_of(space))

    def _check_warm_start(self, folder: str, space: Mapping[str, Any]) -> None:
        """Raise where there is nothing to begin from: unless the search has begun, which keeps what it began from."""
        named, key = self._asked.warm_start, self._key("warm_start")
        storage = place.default_storage(self._out / FOLDER) if self._out is not None else None
        if storage is not None and warm_start.kept(str(self._options.study), storage) is not None:
            return
        if not (Path(folder) / "study.db").is_file():
            near = Path(folder) / FOLDER
            beside = Path(folder).parent
            names = [f.name for f in beside.iterdir() if (f / "study.db").is_file()] if beside.is_dir() else []
            found = nearest(Path(folder).name, names)
            hint = near if (near / "study.db").is_file() else beside / found if found is not None else None
            raise FusionError(
                f"{key} = {named}: no folder with a study.db, expected the output folder of a search"
                + (f'; did you mean "{hint}"?' if hint is not None else "")
            )
        warm_start.read_best(folder, "", space, f"{key} = {named}")


@contextmanager
def key_named(key: str) -> Iterator[None]:
    """Name a fusion's file and the key in it before what is wrong with the key's value."""
    try:
        yield
    except InputError as e:
        raise FusionError(f"{key}: {e}") from None


def evaluator_beside(name: str, root: Path, key: str) -> EvaluatorFile:
    """An evaluator that a file in `root` names: one beside it, or as `--evaluator` has it.

    Args:
        key: The file and the key in it, for messages where there is no such evaluator; others name its own file.
    """
    beside = root / name
    if beside.is_file():
        return load_evaluator(beside)
    with key_named(key):
        return load_evaluator(name)
