"""A search before it starts: every option looked up, every file and model checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, StudyError
from evomerge.evaluation import SPLITS, Evaluator, open_evaluator
from evomerge.evaluation.overlaps import Overlaps
from evomerge.evaluation.splits import content_id
from evomerge.merging.modules import is_composite
from evomerge.optimizers import OPTIMIZERS, Optimizer, make_optimizer, restarts_of
from evomerge.pipeline import warm_start
from evomerge.pipeline.goals import check_goals, no_race, objectives_of
from evomerge.pipeline.models import (
    average_fits,
    check_images,
    check_library_base,
    fingerprint_of,
    live_of,
    opened,
    shapes,
    told_of,
)
from evomerge.pipeline.options import Asked, Options
from evomerge.pipeline.seeing import check_sees, inside, seeing, words
from evomerge.pipeline.trained_on import shared
from evomerge.recipe import Chain, Extras, InputModel, Recipe, Step, load_recipe
from evomerge.recipe import Path as RecipePath
from evomerge.score import Value
from evomerge.sources import fetch, open_source
from evomerge.space import DataflowConfig, SearchSpace, SpaceConfig
from evomerge.study import place
from evomerge.study.final import Baseline
from evomerge.study.goals import Goals, is_minimised
from evomerge.study.loop import path_order
from evomerge.study.outcome import Role
from evomerge.study.store import Store, Study

FINGERPRINT_VERSION = 1
# Added to the seed of control searches: "random search" beside `--sampler random` must not be the same search.
CONTROL_SEED = 1_000_003
# Files of a model beside its weights and its configuration.
SPELLING = ("tokenizer*", "*token*.json", "vocab*", "merges.txt", "*.jinja", "chat_template*", "generation_config.json")
# Key of the fingerprint, and what it means where it has none.
RESTARTS, NONE = "restarts", "none"
# Kept with a study: its space, and, by reference, the recipes of models that an earlier stage made.
SPACE_NOTE, STEPS_NOTE = "space", "steps"
# And what items of its splits have in common.
OVERLAPS_NOTE = "overlaps"
# What the evaluator is called; its fingerprint says what it is.
EVALUATOR_NOTE = "evaluator"


@dataclass(frozen=True)
class FirstStage:
    """What a search builds on: the winner of a search before it.

    Attributes:
        name: What recipes call the winner.
        model: Its checkpoint, by the reference that this search's space has for it.
        recipe: How it was made, signed.
        plan: The search that found it.
        candidates: How many it took.
        cost: What they took of the budget.
        seconds: How long it took.
    """

    name: str
    model: str
    recipe: Recipe
    plan: Plan
    candidates: int
    cost: float
    seconds: float


class Plan:
    """Everything a search over one space needs, checked before any time is spent.

    Args:
        asked: The space and the evaluator, where they have been read already.
        first: The search before it, where this is the second stage of a hybrid.
        writes: Whether it will drive the study; False for one that joins it.

    Attributes:
        workers: With how many the study was begun; 0 where that is not known (yet). See `_made`.
        widened: How many times the optimizer's own population a generation has. See `_made`.

    Raises:
        InputError: whatever is wrong with space, evaluator, sources, recipes, output or storage.
    """

    def __init__(
        self, options: Options, asked: Asked | None = None, first: FirstStage | None = None, writes: bool = True
    ) -> None:
        asked = asked or Asked.by(options)
        assert isinstance(asked.config, SpaceConfig | DataflowConfig)
        self.options = options
        self.workers, self.widened = 0, 1
        self.evaluator = asked.evaluator
        self.first = first
        with told_of(options.file):
            found = opened(asked.config, asked.root)
        # From here on local folders go by their full path, so that recipes rebuild from any folder.
        places = {r: s.full_reference for r, s in found.items()}
        self.sources = {places[r]: replace(s, reference=places[r]) for r, s in found.items()}
        self.config = seeing(asked.config.placed(places), self.sources)
        with told_of(options.file):
            self.space = self.bind(self.config)
        check_images(self.sources[self.live], self.evaluator, options.cluster.address)
        self.enqueued = [self._encoded(path) for path in options.enqueue]
        self.objectives = objectives_of(self.evaluator.config, self.config)
        self.sampler = options.sampler_for(self.space, len(self.objectives), self.evaluator.config.constraints)
        # Made once to refuse a sampler that cannot take the space before anything is written.
        with told_of(f"--sampler {options.sampler}"):
            self.optimizer(self.space)
            restarts_of(self.sampler, options.restarts)
        evaluator = self._opened = open_evaluator(self.evaluator)
        check_sees(evaluator, self.evaluator, self.sources[self.live])
        self.goals = Goals(self.objectives, tuple(self.evaluator.config.constraints))
        check_goals(evaluator, self.evaluator, isinstance(self.config, DataflowConfig), self.objectives)
        self.items = _items(evaluator)
        self.definition = dict(evaluator.definition())
        self.search_items = dict(evaluator.items("search"))
        if options.fidelity == "race" and self.no_race is not None:
            raise InputError(f"--fidelity race: {self.no_race}; expected full")
        self.name = asked.study(options)
        self.out, self.storage = asked.places(options)
        self.warm: list[dict[str, Value]] = []
        self.warm_from: str | None = None
        if options.warm_start is not None:
            self.warm_from = warm_start.called(options.warm_start, self.storage)
            self.warm = warm_start.read(options.warm_start, self.name, self.storage, fingerprint_of(self.space))
        if writes:
            place.prepare(self.out, self.storage, [f for s in self.sources.values() for f in s.folders], self.name)
            place.check_room(self.out, max(s.bytes for s in self.sources.values()), options.cluster.address is None)
        # Last, because downloading and hashing takes time, and nothing more can be wrong.
        fetch(self.sources.values())
        check_library_base(self.config, self.sources)
        self.contents = {reference: s.content_hash() for reference, s in self.sources.items()}
        live = {"model": self.contents[self.live], "files": _spelling(self.sources[self.live].folders[0])}
        self.versions = {task: content_id({"version": v, "live": live}) for task, v in evaluator.versions().items()}

    @cached_property
    def overlaps(self) -> Overlaps:
        """What items of the splits have in common, and with what fused sources learned from."""
        return self.first.plan.overlaps if self.first else shared(self._opened, self.sources.values(), SPLITS)

    def _encoded(self, path: Path) -> dict[str, Value]:
        recipe = load_recipe(path)
        named = {r: open_source(r, path.parent, weights=False).full_reference for r in recipe.references()}
        with told_of(f"--enqueue {path}"):
            return self.space.encode(recipe.with_references(named))

    def bind(self, config: SpaceConfig | DataflowConfig) -> SearchSpace:
        """A space over these sources."""
        return config.bind_models(shapes(self.sources, config))

    @property
    def live(self) -> str:
        """The model whose architecture, tokenizer and configuration merges have; of paths, the first source."""
        return live_of(self.config, self.sources)

    @property
    def order(self) -> Callable[[Recipe], Any] | None:
        """How a generation is put in order, so that candidates share what a worker knows of earlier ones."""
        return path_order if isinstance(self.config, DataflowConfig) else None

    @property
    def no_race(self) -> str | None:
        """Why candidates cannot be scored block by block, in words, as far as it is known before any is scored."""
        return no_race(self.sampler, self.goals, self.evaluator.config, self.search_items)

    @property
    def directions(self) -> dict[str, bool]:
        """Names of the objectives, each with whether less of it is better."""
        return {name: is_minimised(name) for name in self.objectives}

    def optimizer(
        self, space: SearchSpace, starts: bool = True, warm: Sequence[Mapping[str, Value]] = ()
    ) -> Optimizer:
        """A fresh optimizer over the space, with the recipes of one's own first.

        Args:
            starts: Whether what everybody tries first comes then (`SearchSpace.starts`).
            warm: The best candidates of another study, the best first: it begins from them, and the best comes first.
        """
        made = self._made(self.sampler, space, self.options.seed, warm)
        winner = [space.initial()] if self.first is not None else []
        first = [*self.enqueued, *warm[:1], *winner, *(s.params for s in space.starts() if starts)]
        for i, params in enumerate(first):
            if params not in first[:i]:
                made.enqueue(params)
        return made

    def control_optimizer(self, space: SearchSpace, sampler: str) -> Optimizer:
        """A fresh optimizer of a control search; with draws of its own, lest it repeat the main one."""
        return self._made(sampler, space, self.options.seed + CONTROL_SEED)

    def _made(
        self, sampler: str, space: SearchSpace, seed: int, warm: Sequence[Mapping[str, Value]] = ()
    ) -> Optimizer:
        options = self.options
        # Controls are searched for their score alone.
        objectives = len(self.objectives) if space is self.space and seed == options.seed else 1
        sigma = space.sigma if options.sigma is None else options.sigma

        def make(population: int | None) -> Optimizer:
            return make_optimizer(
                sampler, space.parameters, seed, population=population, sigma=sigma, objectives=objectives,
                restarts=self.restarts(sampler), asynchronous=options.asynchronous, warm=warm,
                tasks=sum(t.weight > 0 for t in self.evaluator.config.tasks),
            )  # fmt: skip

        made = make(options.population)
        if options.population is not None or not OPTIMIZERS[made.name].updates:
            return made
        # Of smaller generations most come back, without generations, after several updates that they knew nothing of.
        wide = max(self.widened * made.generation, self.workers if options.asynchronous else 0)
        return make(wide) if wide > made.generation else made

    def restarts(self, sampler: str) -> str | None:
        """How this optimizer starts again; None where it cannot (a control may be of another kind)."""
        entry = OPTIMIZERS.get(sampler)
        return restarts_of(sampler, self.options.restarts) if entry is not None and entry.restarts else None

    def begin(self, store: Store) -> Study:
        """The study in a database, made where it is not there.

        Raises:
            StudyError: it was made with other settings.
        """
        if self.name in store.names():
            self.resume(store.open(self.name))
        return store.create(
            self.name, self.space.parameters, self.fingerprint(self.space, self.sampler), self.directions
        )

    def resume(self, study: Study) -> None:
        """Go on with a study as it was begun: with its sampler and restarts (before 2026-11-29: none).

        Raises:
            StudyError: others were asked for.
        """
        self.sampler = self.options.going_on(study, self.sampler)
        restarts_of(self.sampler, self.options.restarts)
        restarts, sampler = self.restarts(self.sampler), study.fingerprint["sampler"]
        if restarts is not None and sampler.get("name") == self.sampler:
            begun = sampler.get(RESTARTS, NONE)
            if self.options.restarts not in (None, begun):
                raise StudyError(
                    f'study "{self.name}" was begun with --restarts {begun}, now it is {restarts}; give the same, or '
                    "another --study name"
                )
            self.options = replace(self.options, restarts=begun)

    def fingerprint(self, space: SearchSpace, sampler: str) -> dict[str, Any]:
        """What makes two commands one study: resuming asks for the same."""
        options = self.options
        config = self.config
        # Studies of before there were any have no such key.
        again = {} if (restarts := self.restarts(sampler)) in (None, NONE) else {RESTARTS: restarts}
        return {
            "version": FINGERPRINT_VERSION,
            "space": fingerprint_of(space),
            "evaluator": self.evaluator.fingerprint(),
            "tasks": self.definition,
            "items": self.items,
            "sources": {
                **({"base": self.contents[config.base_model]} if config.base_model else {}),
                "named": {s.name: self.contents[s.model] for s in config.sources},
                **self._put_into(),
            },
            "sampler": {"name": sampler, "population": options.population, "sigma": options.sigma} | again,
            "seed": options.seed,
            "enqueued": [dict(p) for p in self.enqueued] if sampler == self.sampler else [],
            **({"async": True} if options.asynchronous else {}),
            **({"warm_start": self.warm_from} if self.warm_from and sampler == self.sampler else {}),
        }

    def _put_into(self) -> dict[str, str]:
        """The content of the vision-language model that merges are put into, where it is not merged itself."""
        config = self.config
        into = config.into if isinstance(config, SpaceConfig) else None
        merged = [config.base_model, *(s.model for s in config.sources)]
        return {"into": self.contents[into]} if into is not None and into not in merged else {}

    def keep(self, study: Study, config: SpaceConfig | DataflowConfig) -> None:
        """Keep with the study what `export` needs to build its candidates again."""
        kept = config.model_dump(mode="json", exclude_unset=True) | {"name": config.name, "kind": config.kind}
        study.note(SPACE_NOTE, kept)
        study.note(EVALUATOR_NOTE, self.evaluator.name)
        if self.first is not None and self.first.model in config.references():
            step = {"name": self.first.name, "recipe": self.first.recipe.to_dict()}
            study.note(STEPS_NOTE, {self.first.model: step})

    def hash(self, recipe: Recipe) -> str:
        """A recipe's hash, given the content of the sources."""
        return recipe.hash(self.contents)

    def decode(self, space: SearchSpace) -> Callable[[Mapping[str, Value]], Recipe]:
        """Parameters to recipe, over a space."""
        return lambda params: space.decode(params, seed=self.options.seed)

    def signed(self, recipe: Recipe, trial: int) -> Recipe | Chain:
        """A recipe that says where it is from; a chain where it builds on the first stage's winner."""
        found = recipe.signed(self.contents, {"study": self.name, "trial": trial, "seed": self.options.seed})
        return found if self.first is None else chained(found, self.first.model, self.first.name, self.first.recipe)

    @property
    def start(self) -> Recipe | None:
        """In the second stage of a hybrid, the first one's winner as it is: to be among the finalists."""
        return None if self.first is None else self.decode(self.space)(self.space.initial())

    def path(self, recipe: Recipe) -> RecipePath | None:
        """A recipe as a path, where that is what the space is about."""
        return RecipePath.read(recipe) if isinstance(self.config, DataflowConfig) else None

    @property
    def names(self) -> dict[str, str]:
        """Short names of the sources, by reference."""
        return {s.model: s.name for s in self.config.sources}

    def baselines(self) -> list[Baseline]:
        """The base, each source as it is, and the uniform merge, where the sources can be merged."""
        found = []
        if self.config.base_model:
            found.append(self._as_it_is("base", "base", self.config.base_model))
        found += [self._as_it_is(s.name, "source", s.model) for s in self.config.sources]
        uniform = self.first.plan.uniform() if self.first is not None else self.uniform()
        if uniform is not None:
            found.append(Baseline("uniform", "uniform", recipe=uniform))
        return found

    def _as_it_is(self, name: str, role: Role, model: str) -> Baseline:
        """A model to measure beside the winner; a text model where candidates see, as the language model of theirs."""
        if is_composite(self.sources[self.live]) and not is_composite(self.sources[model]):
            return Baseline(name, role, recipe=inside(model, self.live, self.config))
        return Baseline(name, role, source=model)

    @property
    def put_into(self) -> list[str]:
        """What the user should know of text models among vision-language models, a line each."""
        return words(self.config, self.live, self.sources)

    def uniform(self) -> Recipe | None:
        """The linear average of the sources, without the base; None where layers or shapes differ."""
        config = self.config
        if not average_fits(config, self.sources):
            return None
        models = [InputModel(model=s.model, parameters={"weight": 1.0}) for s in config.sources]
        return Recipe(
            merge_method="linear", models=models, dtype=config.dtype, out_dtype=config.out_dtype,
            tokenizer_source=config.tokenizer_source,
            evomerge=Extras(into=config.into if isinstance(config, SpaceConfig) else None),
        )  # fmt: skip


def _spelling(folder: Path) -> dict[str, str]:
    """Hash of each file of a model that changes what is asked of it and how it writes: tokenizer, chat template, ...

    A candidate has its architecture's model's, which recipes do not name.
    """
    files = sorted({p for pattern in SPELLING for p in folder.glob(pattern) if p.is_file()})
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def chained(recipe: Recipe, model: str, name: str, first: Recipe) -> Chain:
    """A recipe over the result of another as one chain.

    Args:
        model: The reference that `recipe` has for the result of `first`, which the chain calls `name`.
    """
    final = Recipe.model_validate(recipe.with_extras(sources=_without(recipe.evomerge.sources, model)).to_dict())
    return Chain.of([Step(name, first), Step(None, final.with_references({model: name}))])


def _without(contents: Mapping[str, str], reference: str) -> dict[str, str]:
    return {r: digest for r, digest in contents.items() if r != reference}


def _items(opened: Evaluator) -> dict[str, dict[str, Any]]:
    """Number and hash of the items of every task and split: part of what a study is."""
    searched = set(opened.searched())
    found: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        found[split] = {
            task: {"count": len(ids), "sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]}
            for task, ids in opened.items(split).items()
            if split != "search" or task in searched
        }
    return found
