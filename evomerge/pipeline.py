"""What runs one after the other: check everything, search, control searches, selection, the one test, the export."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import InputError, SpaceError, StudyError
from evomerge.evaluation import SPLITS, EvaluatorFile, evaluator_for, load_evaluator, open_evaluator
from evomerge.optimizers import default_optimizer, make_optimizer
from evomerge.recipe import InputModel, Recipe, load_recipe
from evomerge.score import Score, Value
from evomerge.sources import Source, check_fit, open_sources
from evomerge.space import Space, SpaceConfig, default_space, load_space
from evomerge.study import final, place
from evomerge.study.budget import Budget
from evomerge.study.final import Baseline
from evomerge.study.loop import Search, check_some_complete
from evomerge.study.outcome import Measured, Outcome
from evomerge.study.store import Store, Study
from evomerge.study.watcher import Silent, Watcher
from evomerge.study.workers import Cluster, LocalPool, Pool, RayPool

if TYPE_CHECKING:
    from evomerge.score import Trial

QUICKSTART = "quickstart"
FINGERPRINT_VERSION = 1


@dataclass(frozen=True)
class Options:
    """What `evomerge search` takes; see its `--help` for each.

    Attributes:
        space: A search space's file or preset; None with `models`: the default space over them.
        workers: 0 runs in this process, without Ray.
    """

    budget: Budget
    space: str | None = None
    models: Sequence[str] = ()
    base: str | None = None
    evaluator: str | None = None
    tasks: Sequence[str] = ()
    study: str | None = None
    storage: str | None = None
    out: Path | None = None
    cluster: Cluster = field(default_factory=Cluster)
    sampler: str = "auto"
    seed: int = 0
    population: int | None = None
    sigma: float | None = None
    controls: bool = False
    patience: int | None = None
    enqueue: Sequence[Path] = ()


class Plan:
    """Everything a search needs, checked before any time is spent.

    Raises:
        InputError: whatever is wrong with space, evaluator, sources, recipes, output or storage.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        config, mergekit_tasks = _space_config(options)
        self.evaluator = _evaluator(options, mergekit_tasks)
        root = Path(options.space).parent if options.space and Path(options.space).is_file() else None
        self.sources = open_sources(_references(config), root=root)
        check_fit(self.sources)
        self.config = config
        self.space = self.bind(config)
        self.contents = {reference: s.content_hash() for reference, s in self.sources.items()}
        self.enqueued = [self._encoded(path) for path in options.enqueue]
        self.sampler = default_optimizer(self.space.parameters) if options.sampler == "auto" else options.sampler
        # Made once to refuse a sampler that cannot take the space before anything is written.
        self.optimizer(self.space)
        self.items = _items(self.evaluator)
        self.name = options.study or f"{config.name}-{self.evaluator.name}-{options.seed}"
        self.out = options.out or Path("runs") / self.name
        self.storage = place.storage_url(options.storage) if options.storage else place.default_storage(self.out)
        place.prepare(self.out, self.storage)

    def _encoded(self, path: Path) -> dict[str, Value]:
        recipe = load_recipe(path)
        try:
            return self.space.encode(recipe)
        except SpaceError as e:
            raise SpaceError(f"--enqueue {path}: {e}") from None

    def bind(self, config: SpaceConfig) -> Space:
        """A space for these sources' layers and tensors."""
        model = self.sources[self.live]
        return config.bind(model.num_layers, list(model.tensors))

    @property
    def live(self) -> str:
        """The model whose architecture, tokenizer and configuration candidates have."""
        return self.config.base_model or self.config.sources[0].model

    def optimizer(self, space: Space, sampler: str | None = None, enqueue: bool = True) -> Any:
        """A fresh optimizer over a space, with the recipes of one's own first."""
        options = self.options
        made = make_optimizer(
            sampler or self.sampler, space.parameters, options.seed, population=options.population, sigma=options.sigma
        )
        for params in self.enqueued if enqueue else ():
            made.enqueue(params)
        return made

    def fingerprint(self, space: Space, sampler: str) -> dict[str, Any]:
        """What makes two commands one study: resuming asks for the same."""
        options = self.options
        return {
            "version": FINGERPRINT_VERSION,
            "space": space.fingerprint(),
            "evaluator": self.evaluator.fingerprint(),
            "items": self.items,
            "sources": self.contents,
            "sampler": {"name": sampler, "population": options.population, "sigma": options.sigma},
            "seed": options.seed,
            "enqueued": [dict(p) for p in self.enqueued] if sampler == self.sampler else [],
        }

    def keep(self, study: Study, config: SpaceConfig) -> None:
        """Keep with the study what `export` needs to build its candidates again."""
        study.note("space", config.model_dump(mode="json", exclude_unset=True) | {"name": config.name})

    def hash(self, recipe: Recipe) -> str:
        """A recipe's hash, given the content of the sources."""
        return recipe.hash(self.contents)

    def decode(self, space: Space) -> Any:
        """Parameters to recipe, over a space."""
        return lambda params: space.decode(params, seed=self.options.seed)

    def baselines(self) -> list[Baseline]:
        """The base, each source as it is, and the uniform merge."""
        found = []
        if self.config.base_model:
            found.append(Baseline("base", "base", source=self.config.base_model))
        found += [Baseline(s.name, "source", source=s.model) for s in self.config.sources]
        found.append(Baseline("uniform", "uniform", recipe=self.uniform()))
        return found

    def uniform(self) -> Recipe:
        """The linear average of the sources, without the base."""
        models = [InputModel(model=s.model, parameters={"weight": 1.0}) for s in self.config.sources]
        return Recipe(
            merge_method="linear", models=models, dtype=self.config.dtype, out_dtype=self.config.out_dtype,
            tokenizer_source=self.config.tokenizer_source,
        )  # fmt: skip

    def cost(self, workers: int) -> list[str]:
        """What the search will take, in words: said before it is spent."""
        read = sum(_bytes(s) for s in self.sources.values())
        largest = max(_bytes(s) for s in self.sources.values())
        count = max(_parameters(s) for s in self.sources.values())
        tasks = sum(1 for n in self.items["search"].values() if n)
        items = sum(n["count"] for n in self.items["search"].values())
        # Sources mapped from disk and shared, one live model in float32 and one set of task vectors per worker.
        memory = count * 4 * (1 + len(self.sources)) + read
        return [
            f"{len(self.space.parameters)} parameters over {len(self.config.sources)} sources, {self.sampler}, "
            f"seed {self.options.seed}",
            f"budget {self.options.budget}, each on {items} items of {tasks} task{'s' if tasks != 1 else ''}; "
            f"{workers or 1} worker{'s' if workers > 1 else ''}",
            f"reads {_size(read)} once, about {_size(memory)} of memory per worker",
            f"writes {_size(largest)} to {self.out}",
        ]


def search(options: Options, watcher: Watcher | None = None) -> Outcome:
    """Run or resume a search, to the exported winner and its held-out evidence.

    Raises:
        InputError: what was given is wrong; nothing was started.
        EvoMergeError: every candidate failed, or a source cannot be scored.
    """
    watcher = watcher or Silent()
    watcher.say("checking space, evaluator and sources")
    plan = Plan(options)
    with place.locked(plan.out):
        store = Store(plan.storage, create=True)
        study = store.create(plan.name, plan.space.parameters, plan.fingerprint(plan.space, plan.sampler))
        plan.keep(study, plan.config)
        pool = _pool(plan, watcher)
        try:
            return _run(plan, store, study, pool, watcher)
        finally:
            pool.close()


def export(study: Study, out: Path, trial: int | None = None, *, overwrite: bool = False) -> int:
    """Write a candidate of a study as a plain checkpoint; the winner, where none is named. Returns its number.

    Raises:
        InputError: no such candidate, no winner yet, or the sources are gone or have changed.
    """
    notes, fingerprint = study.notes(), study.fingerprint
    number = trial if trial is not None else notes.get("winner")
    if number is None:
        raise StudyError(
            f'study "{study.name}": has no winner yet; finish the search, or name a candidate by --trial N'
        )
    trials = {t.number: t for t in study.trials()}
    if number not in trials:
        raise StudyError(f'study "{study.name}": no candidate {number}; it has 0 to {len(trials) - 1}')
    config = SpaceConfig.model_validate(notes["space"])
    sources = open_sources(_references(config))
    model = sources[config.base_model or config.sources[0].model]
    space = config.bind(model.num_layers, list(model.tensors))
    recipe = space.decode(trials[number].params, seed=fingerprint["seed"]).with_extras(
        sources=fingerprint["sources"], provenance={"study": study.name, "trial": number, "seed": fingerprint["seed"]}
    )
    _export(sources, recipe, out, overwrite)
    return int(number)


def _run(plan: Plan, store: Store, study: Study, pool: Pool, watcher: Watcher) -> Outcome:
    for line in plan.cost(pool.size):
        watcher.say(line)
    watcher.say("scoring the sources on the search items")
    baselines = plan.baselines()
    lines = {name: s.value for name, s in final.search_scores(pool, study, baselines).items()}
    budget, options = plan.options.budget, plan.options
    watcher.begin("search", budget, lines, pool.size)
    decode = plan.decode(plan.space)
    trials, stopped = Search(
        study, plan.optimizer(plan.space), decode, plan.hash, pool, budget, watcher, options.patience
    ).run()
    check_some_complete(trials)
    seconds = float(study.notes().get("seconds", 0.0))
    controls = _controls(plan, store, pool, len(trials), lines, watcher) if options.controls else []
    watcher.say("choosing the winner on the select items")
    winner, select = final.choose_winner(pool, study, trials, decode, plan.hash)
    recipe = decode(winner.params)
    watcher.say("scoring the winner and what it must beat on the test items")
    measured, looks = final.measure(pool, study, baselines, winner, recipe, select)
    measured[-1:-1] = controls
    signed = recipe.with_extras(
        sources=plan.contents, provenance={"study": plan.name, "trial": winner.number, "seed": options.seed}
    )
    model = plan.out / "model"
    watcher.say(f"writing {model}")
    _export(plan.sources, signed, model, overwrite=True)
    return Outcome(
        study=plan.name, storage=plan.storage, seed=options.seed, space=plan.config.name, evaluator=plan.evaluator.name,
        trials=tuple(trials), best=winner, recipe=signed, recipe_hash=plan.hash(recipe),
        measured=tuple(replace(m, recipe=signed) if m.role == "best" else m for m in measured), looks=looks,
        stopped=stopped, seconds=seconds, model=model, lines=lines,
    )  # fmt: skip


def _controls(
    plan: Plan, store: Store, pool: Pool, candidates: int, lines: Mapping[str, float], watcher: Watcher
) -> list[Measured]:
    """Search each task vector alone, and the whole space at random, at the main search's budget.

    Shrinking one fine-tune towards its base can pass for synergy; these tell it from one (facts: a tiny replication).
    """
    searches: list[tuple[str, Space, str]] = []
    names = [s.name for s in plan.config.sources]
    if len(names) > 1 and plan.config.base_model:
        for name in names:
            alone = plan.bind(plan.config.only(name))
            sampler = plan.sampler if plan.options.sampler != "auto" else default_optimizer(alone.parameters)
            searches.append((f"vector {name}", alone, sampler))
    searches.append(("random search", plan.space, "random"))
    measured = []
    for name, space, sampler in searches:
        study = store.create(f"{plan.name}/{name}", space.parameters, plan.fingerprint(space, sampler))
        plan.keep(study, space.config)
        budget = Budget(candidates=candidates)
        watcher.begin(f"control: {name}", budget, lines, pool.size)
        decode = plan.decode(space)
        optimizer = plan.optimizer(space, sampler, enqueue=False)
        trials, _ = Search(study, optimizer, decode, plan.hash, pool, budget, watcher).run()
        check_some_complete(trials)
        measured.append(_control(name, study, pool, trials, decode, plan))
    return measured


def _control(name: str, study: Study, pool: Pool, trials: list[Trial], decode: Any, plan: Plan) -> Measured:
    winner, select = final.choose_winner(pool, study, trials, decode, plan.hash)
    recipe = decode(winner.params)
    found, _ = final.measure(pool, study, [], winner, recipe, select)
    return Measured(name, "control", found[-1].test, winner.score, select, recipe)


def _export(sources: Mapping[str, Source], recipe: Recipe, out: Path, overwrite: bool) -> None:
    from evomerge.merging.engine import Engine

    Engine({r: sources[r] for r in recipe.references()}).write(recipe, out, overwrite=overwrite)


def _references(config: SpaceConfig) -> list[str]:
    """Every model that the space names, the base first."""
    return list(
        dict.fromkeys([*([config.base_model] if config.base_model else []), *(s.model for s in config.sources)])
    )


def _space_config(options: Options) -> tuple[SpaceConfig, Sequence[Any]]:
    """The space asked for, and the tasks where it is mergekit-evolve's configuration."""
    if options.space is None and options.models:
        return default_space(options.models, options.base), ()
    if options.space is None and options.base:
        raise InputError("--base needs --models")
    config = load_space(options.space or QUICKSTART)
    if options.models:
        config = config.with_sources(options.models, options.base or config.base_model)
    return config, config.tasks


def _evaluator(options: Options, mergekit_tasks: Sequence[Any]) -> EvaluatorFile:
    if options.tasks and options.evaluator:
        raise InputError("--tasks and --evaluator cannot both be given")
    if options.tasks:
        return evaluator_for(options.tasks)
    if options.evaluator:
        return load_evaluator(options.evaluator)
    if mergekit_tasks:
        return evaluator_for(mergekit_tasks)
    if options.models and options.space is None:
        raise InputError("--models needs --tasks or --evaluator: what makes a merge good?")
    return load_evaluator(QUICKSTART)


def _items(file: EvaluatorFile) -> dict[str, dict[str, Any]]:
    """Number and hash of the items of every task and split: part of what a study is."""
    import hashlib

    opened = open_evaluator(file)
    weights = {t.name: t.weight for t in file.config.tasks}
    found: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        found[split] = {
            task: {"count": len(ids), "sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]}
            for task, ids in opened.items(split).items()
            if split != "search" or weights.get(task, 1.0)
        }
    return found


def _pool(plan: Plan, watcher: Watcher) -> Pool:
    arguments = (plan.sources, plan.live, plan.evaluator)
    if plan.options.cluster.workers == 0:
        return LocalPool(*arguments)
    watcher.say("starting the workers")
    return RayPool(plan.options.cluster, *arguments)


def _bytes(source: Source) -> int:
    return sum(math.prod(t.shape) * _WIDTH.get(t.dtype, 4) for t in source.tensors.values())


def _parameters(source: Source) -> int:
    return sum(math.prod(t.shape) for t in source.tensors.values())


_WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


__all__ = ["Options", "Plan", "Score", "search"]
