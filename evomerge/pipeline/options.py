"""What `evomerge search` is asked for, and the space and evaluator that this means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from evomerge import arguments
from evomerge.arguments import describe
from evomerge.errors import EvaluatorError, InputError
from evomerge.evaluation import EvaluatorFile, evaluator_for, load_evaluator
from evomerge.merging.modules import is_composite
from evomerge.optimizers import OPTIMIZERS, RESTARTS
from evomerge.optimizers.table import NONE
from evomerge.pipeline.models import live_of, told_of
from evomerge.pipeline.warm_start import Begun
from evomerge.sources import has_chat_template, open_sources
from evomerge.space import (
    AnyConfig,
    DataflowConfig,
    HybridConfig,
    Migrated,
    SearchSpace,
    default_space,
    load_space,
)
from evomerge.study import place
from evomerge.study.budget import Budget
from evomerge.study.finding import check_no_url
from evomerge.study.store import Study
from evomerge.study.workers import Cluster

QUICKSTART = "quickstart"
FIDELITIES = ("auto", "full", "race")
ESTIMATES = ("auto", "plain")
PREFIX_BYTES = 1 << 30
# The optimizer for several objectives where the space's own takes one: by benchmarks/fronts.py, see docs/decisions.md.
SEVERAL = "evolution"


def content(name: str, value: Any) -> str | Mapping[str, Any]:
    """A space or an evaluator as it is given: a file, a preset's name, or what a file would hold.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, str | Path):
        raise InputError(
            f"{name} = {describe(value)}: expected a file, a preset's name, or a mapping with a file's keys"
        )
    return str(value)


def _budget(name: str, value: Any) -> Budget:
    if not isinstance(value, Budget) or (value.candidates is None) == (value.seconds is None):
        raise InputError(f"{name} = {describe(value)}: expected a number of candidates, or a time")
    if value.candidates is not None:
        return Budget(candidates=arguments.whole(name, value.candidates, 1))
    return Budget(seconds=arguments.number(name, value.seconds, above_zero=True))


def _study(name: str, value: Any) -> str:
    found = arguments.text(name, value)
    check_no_url(found, name)  # its password would stand in the study and in the output folder's name
    return found


def _begun(name: str, value: Any) -> str | Begun:
    return value if isinstance(value, Begun) else arguments.text(name, value)


def _paths(name: str, value: Any) -> list[Path]:
    return [Path(x) for x in arguments.texts(name, value)]


_POSITIVE = partial(arguments.whole, low=1)
# How each argument is checked, and whether it may be None.
_CHECKS: Mapping[str, tuple[Callable[[str, Any], Any], bool]] = {
    "budget": (_budget, False),
    "space": (content, True),
    "models": (arguments.texts, False),
    "base": (arguments.text, True),
    "evaluator": (content, True),
    "tasks": (arguments.texts, False),
    "include_path": (arguments.path, True),
    "study": (_study, True),
    "storage": (arguments.text, True),
    "out": (arguments.path, True),
    # Which there are is said by the optimizers, with the option or the key that named one.
    "sampler": (arguments.text, False),
    "seed": (partial(arguments.whole, low=0, high=2**31 - 1), False),
    "population": (_POSITIVE, True),
    "sigma": (partial(arguments.number, above_zero=True), True),
    "restarts": (partial(arguments.word, choices=RESTARTS), True),
    "controls": (arguments.flag, False),
    "patience": (_POSITIVE, True),
    "enqueue": (_paths, False),
    "prefix_bytes": (partial(arguments.whole, low=0, high=2**63), False),
    "fidelity": (partial(arguments.word, choices=FIDELITIES), False),
    "starts": (arguments.flag, False),
    "objectives": (arguments.texts, False),
    "asynchronous": (arguments.flag, False),
    "warm_start": (_begun, True),
    "estimates": (partial(arguments.word, choices=ESTIMATES), False),
    "timeout": (partial(arguments.number, above_zero=True), True),
}


@dataclass(frozen=True)
class Options:
    """What `evomerge search` takes; see its `--help` for each.

    Attributes:
        space: A search space's file, preset or content; None with `models`: the default space over them.
        evaluator: An evaluator's file, preset or content.
        include_path: Folder of lm-eval's task files, for tasks that are named without an evaluator.
        workers: 0 runs in this process, without Ray.
        restarts: What follows a run of the optimizer that has converged; None: as the study began, else "bipop".
        prefix_bytes: Memory of each worker for hidden states of paths' common beginnings (data-flow space); 0: none.
        timeout: Seconds that a candidate may take; None: as the evaluator says.
        warm_start: Another study's output folder, its name where it is in the same database, or where it lies.

    Raises:
        InputError: one of them is nothing that it can be. Whether they fit together is seen by `Asked.by` and `Plan`.
    """

    budget: Budget
    space: str | Mapping[str, Any] | None = None
    models: Sequence[str] = ()
    base: str | None = None
    evaluator: str | Mapping[str, Any] | None = None
    tasks: Sequence[str] = ()
    include_path: Path | None = None
    study: str | None = None
    storage: str | None = None
    out: Path | None = None
    cluster: Cluster = field(default_factory=Cluster)
    sampler: str = "auto"
    seed: int = 0
    population: int | None = None
    sigma: float | None = None
    restarts: str | None = None
    controls: bool = False
    patience: int | None = None
    enqueue: Sequence[Path] = ()
    prefix_bytes: int = PREFIX_BYTES
    fidelity: str = "auto"
    starts: bool = True
    objectives: Sequence[str] = ()
    asynchronous: bool = False
    warm_start: str | Begun | None = None
    estimates: str = "auto"
    timeout: float | None = None

    def __post_init__(self) -> None:
        checked = {
            name: check(name, value)
            for name, (check, optional) in _CHECKS.items()
            if not ((value := getattr(self, name)) is None and optional)
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def file(self) -> str | None:
        """What messages call the space; None where none is named."""
        return "<space>" if isinstance(self.space, Mapping) else self.space

    def sampler_for(self, space: SearchSpace, objectives: int = 1, constraints: Sequence[object] = ()) -> str:
        """The optimizer that is meant for a space, a number of objectives, and what candidates must keep."""
        if self.sampler != "auto":
            return self.sampler
        if objectives > 1 and not OPTIMIZERS[space.sampler].several:
            return SEVERAL
        # Restarts are CMA-ES's, and places in an order, which constraints make of scores, are what it learns from.
        ranked = bool(constraints) or self.restarts not in (None, NONE)
        return "cma" if space.sampler == "thompson" and ranked else space.sampler

    def going_on(self, study: Study, default: str) -> str:
        """The sampler of a study that goes on, where none is asked for: what "auto" means may be another one by now."""
        begun = str(study.fingerprint["sampler"]["name"])
        return begun if default != self.sampler and begun in OPTIMIZERS else default


@dataclass(frozen=True)
class Asked:
    """The space and the evaluator that some options name, read and checked each by itself.

    Attributes:
        root: Folder that the space's relative model folders are looked for in, beside the current one.
        changes: Of mergekit-evolve's configuration: what is done in another way, one line each.
    """

    config: AnyConfig
    evaluator: EvaluatorFile
    root: Path | None
    changes: tuple[str, ...] = ()

    @classmethod
    def by(cls, options: Options) -> Asked:
        """Read them.

        Raises:
            InputError: a file is wrong, or options do not go together.
        """
        config, migrated = _space(options)
        file = Path(options.space) if isinstance(options.space, str) else None
        root = file.parent if file is not None and file.is_file() else None
        evaluator = _evaluator(options, migrated)
        if options.objectives:
            evaluator = evaluator.after(options.objectives)
        evaluator = evaluator.within(options.timeout)
        _check_timeout(evaluator, options)
        changes: tuple[str, ...] = ()
        required = True
        if migrated is not None:
            own = not options.tasks and options.evaluator is None
            changes, required = migrated.changes + (migrated.scored if own else ()), migrated.asked or not own
        with told_of(options.file):
            evaluator, without = _templated(evaluator, config, root, required)
        asked = cls(config, evaluator, root, (*changes, *without))
        share = options.cluster.gpus_per_worker or 0.0
        if share > 1 and isinstance(config, DataflowConfig | HybridConfig):
            raise InputError(
                f'--gpus-per-worker {share:g}: space "{config.name}" has paths over layers, which run on one GPU, '
                "every source whole, as any layer may follow any other; expected 1 or less"
            )
        name = asked.study(options)
        if "/" in name or name.strip() in ("", ".", ".."):
            # What stands behind a "/" is a search that belongs to another: NAME/parameter, a control's.
            raise InputError(f'--study "{name}": expected a name without "/", and not "", "." or ".."')
        return asked

    def places(self, options: Options) -> tuple[Path, str]:
        """The output folder, and the database's URL.

        Raises:
            StudyError: the storage is none.
        """
        out = options.out or Path("runs") / self.study(options)
        return out, place.storage_url(options.storage) if options.storage else place.default_storage(out)

    def study(self, options: Options) -> str:
        """The study's name."""
        if options.study is not None:
            return options.study
        return f"{self.config.name}-{self.evaluator.name}-{options.seed}"


def _check_timeout(evaluator: EvaluatorFile, options: Options) -> None:
    """Raise where a limit in time could not be kept."""
    if options.cluster.workers == 0 and evaluator.config.killed_after is not None:
        where = "--timeout" if options.timeout is not None else f"{evaluator.file}: timeout ="
        raise InputError(
            f"{where} {evaluator.config.killed_after:g}: with --workers 0 candidates are scored in this process, where "
            "what hangs cannot be stopped; expected --workers 1 or more, or no timeout"
        )


def _space(options: Options) -> tuple[AnyConfig, Migrated | None]:
    """The space asked for, and what mergekit-evolve's configuration says beside it, where it is one."""
    if options.space is None and options.models:
        return default_space(options.models, options.base), None
    if options.space is None and options.base:
        raise InputError("--base needs --models")
    config = load_space(QUICKSTART if options.space is None else options.space)
    migrated = config.migrated
    if options.models:
        # Paths' base is only measured beside them: the file's says nothing of other models.
        base = None if isinstance(config, DataflowConfig) else config.base_model
        config = config.with_sources(options.models, options.base or base)
    return config, migrated


def _evaluator(options: Options, migrated: Migrated | None) -> EvaluatorFile:
    if options.tasks and options.evaluator is not None:
        raise InputError("--tasks and --evaluator cannot both be given")
    if options.evaluator is not None:
        if options.include_path is not None:
            raise InputError("--include-path: an evaluator names its own folder, by its key include_path")
        return load_evaluator(options.evaluator)
    if options.tasks:
        return evaluator_for(options.tasks, include_path=options.include_path)
    if migrated is not None and migrated.evaluator:
        found = dict(migrated.evaluator)
        return evaluator_for(found.pop("tasks"), str(options.file), options.include_path, found)
    if options.include_path is not None:
        raise InputError("--include-path needs --tasks, or mergekit-evolve's configuration")
    if options.models and options.space is None:
        raise InputError("--models needs --tasks or --evaluator: what makes a merge good?")
    if migrated is not None:
        raise InputError(f"{options.file}: names no tasks; add them, or give --tasks or --evaluator")
    return load_evaluator(QUICKSTART)


def _templated(
    evaluator: EvaluatorFile, config: AnyConfig, root: Path | None, required: bool
) -> tuple[EvaluatorFile, list[str]]:
    """The evaluator as these models can be scored by it, and what that changes, in words.

    Text models among vision-language models need no template: they are measured inside of one, and read by what reads
    for it.

    Args:
        required: Whether a chat template is asked for, and not merely the default of another program.

    Raises:
        EvaluatorError: a chat template is required, and a model has none.
        SourceError: a model cannot be opened.
    """
    if not evaluator.config.apply_chat_template or evaluator.config.kind != "lm_eval":
        return evaluator, []
    found = open_sources(config.references(), root=root, weights=False)
    first = config.parameter if isinstance(config, HybridConfig) else config
    inner = is_composite(found[live_of(first, found)])
    without = [r for r, s in found.items() if not has_chat_template(s) and (is_composite(s) or not inner)]
    if not without:
        return evaluator, []
    if required:
        raise EvaluatorError(
            f"{evaluator.file}: apply_chat_template: {', '.join(without)}: has no chat template; expected models that "
            "have one, or apply_chat_template: false"
        )
    said = f"no chat template is applied: {', '.join(without)} has none (mergekit-evolve: applies it, and fails there)"
    return evaluator.without_chat_template(), [said]
