"""A search before it starts: every option looked up, every file and model checked, the cost worked out."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, SpaceError
from evomerge.evaluation import SPLITS, Evaluator, EvaluatorFile, evaluator_for, load_evaluator, open_evaluator
from evomerge.optimizers import Optimizer, default_optimizer, make_optimizer
from evomerge.recipe import InputModel, Recipe, load_recipe
from evomerge.score import Value
from evomerge.sources import Source, check_fit, fetch, open_source, open_sources
from evomerge.space import Space, SpaceConfig, default_space, load_space
from evomerge.study import place
from evomerge.study.budget import Budget
from evomerge.study.final import Baseline
from evomerge.study.store import Study
from evomerge.study.workers import Cluster

QUICKSTART = "quickstart"
FINGERPRINT_VERSION = 1
# Added to the seed of control searches: "random search" beside `--sampler random` must not be the same search.
CONTROL_SEED = 1_000_003


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
        opened = open_sources(config.references(), root=root, weights=False)
        check_fit(opened, vocabulary=config.tokenizer_source is None)
        # From here on local folders go by their full path, so that recipes rebuild from any folder.
        places = {r: s.full_reference for r, s in opened.items()}
        self.sources = {places[r]: replace(s, reference=places[r]) for r, s in opened.items()}
        self.config = _placed(config, places)
        self.space = self.bind(self.config)
        self.enqueued = [self._encoded(path) for path in options.enqueue]
        self.sampler = default_optimizer(self.space.parameters) if options.sampler == "auto" else options.sampler
        # Made once to refuse a sampler that cannot take the space before anything is written.
        try:
            self.optimizer(self.space)
        except SpaceError as e:
            raise SpaceError(f"--sampler {options.sampler}: {e}") from None
        opened_evaluator = open_evaluator(self.evaluator)
        self.items = _items(opened_evaluator, self.evaluator)
        self.definition = dict(opened_evaluator.definition())
        self.name = options.study or f"{config.name}-{self.evaluator.name}-{options.seed}"
        self.out = options.out or Path("runs") / self.name
        self.storage = place.storage_url(options.storage) if options.storage else place.default_storage(self.out)
        place.prepare(self.out, self.storage, [f for s in self.sources.values() for f in s.folders], self.name)
        # Last, because downloading and hashing takes time, and nothing more can be wrong.
        fetch(self.sources.values())
        self.contents = {reference: s.content_hash() for reference, s in self.sources.items()}

    def _encoded(self, path: Path) -> dict[str, Value]:
        recipe = load_recipe(path)
        named = {r: open_source(r, path.parent, weights=False).full_reference for r in recipe.references()}
        try:
            return self.space.encode(recipe.with_references(named))
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

    def optimizer(self, space: Space) -> Optimizer:
        """A fresh optimizer over the space, with the recipes of one's own first."""
        made = self._made(self.sampler, space, self.options.seed)
        for params in self.enqueued:
            made.enqueue(params)
        return made

    def control_optimizer(self, space: Space, sampler: str) -> Optimizer:
        """A fresh optimizer of a control search; with draws of its own, lest it repeat the main one."""
        return self._made(sampler, space, self.options.seed + CONTROL_SEED)

    def _made(self, sampler: str, space: Space, seed: int) -> Optimizer:
        options = self.options
        return make_optimizer(sampler, space.parameters, seed, population=options.population, sigma=options.sigma)

    def control_searches(self) -> list[tuple[str, Space, str]]:
        """The searched controls: name, space, sampler.

        A task vector alone only says something where its scale is searched: a normalised average of one source is
        that source, which is measured anyway.
        """
        searches: list[tuple[str, Space, str]] = []
        names = [s.name for s in self.config.sources]
        if len(names) > 1 and all(m.deltas and m.parameter("weight") for m in self.config.methods):
            for name in names:
                alone = self.bind(self.config.only(name))
                fits = self.sampler if self.options.sampler != "auto" else default_optimizer(alone.parameters)
                searches.append((f"vector {name}", alone, fits))
        return [*searches, ("random search", self.space, "random")]

    def fingerprint(self, space: Space, sampler: str) -> dict[str, Any]:
        """What makes two commands one study: resuming asks for the same."""
        options = self.options
        # Models count by their content and short name, not by where they lie.
        named = space.fingerprint() | {"sources": list(space.names)}
        named.pop("base_model", None)
        return {
            "version": FINGERPRINT_VERSION,
            "space": named,
            "evaluator": self.evaluator.fingerprint(),
            "tasks": self.definition,
            "items": self.items,
            "sources": {
                **({"base": self.contents[self.config.base_model]} if self.config.base_model else {}),
                "named": {s.name: self.contents[s.model] for s in self.config.sources},
            },
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

    def decode(self, space: Space) -> Callable[[Mapping[str, Value]], Recipe]:
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
        from evomerge.merging.memory import PROGRAM, in_words

        options = self.options
        read = sum(s.bytes for s in self.sources.values())
        largest = max(s.bytes for s in self.sources.values())
        count = max(_parameters(s) for s in self.sources.values())
        items = sum(n["count"] for n in self.items["search"].values())
        # The live model in float32; sources are mapped from disk, and their pages are shared between workers.
        memory = PROGRAM + 4 * count
        controls = self.control_searches() if options.controls else []
        lines = [
            f"{len(self.space.parameters)} parameters over {len(self.config.sources)} sources, {self.sampler}, "
            f"seed {options.seed}",
            f"budget {options.budget}, each on {f'{items} items' if items else 'items of the function'}; "
            f"{workers} worker{'s' if workers != 1 else ''}",
        ]
        if controls:
            lines.append(f"controls: {len(controls)} more searches of as many candidates")
        return [
            *lines,
            f"reads {in_words(read)}, about {in_words(memory + read)} of memory per worker; "
            f"writes {in_words(largest)} to "
            f"{self.out} at the end, and as much for a while to {tempfile.gettempdir()} for each model scored there",
        ]


def _placed(config: SpaceConfig, places: Mapping[str, str]) -> SpaceConfig:
    """A space whose models go by other references, under the same short names."""
    sources = tuple(s.model_copy(update={"model": places[s.model]}) for s in config.sources)
    base = places[config.base_model] if config.base_model else None
    tokenizer = places.get(config.tokenizer_source or "", config.tokenizer_source)
    return config.model_copy(update={"sources": sources, "base_model": base, "tokenizer_source": tokenizer})


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


def _items(opened: Evaluator, file: EvaluatorFile) -> dict[str, dict[str, Any]]:
    """Number and hash of the items of every task and split: part of what a study is."""
    weights = {t.name: t.weight for t in file.config.tasks}
    found: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        found[split] = {
            task: {"count": len(ids), "sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]}
            for task, ids in opened.items(split).items()
            if split != "search" or weights.get(task, 1.0)
        }
    return found


def _parameters(source: Source) -> int:
    return sum(math.prod(t.shape) for t in source.tensors.values())
