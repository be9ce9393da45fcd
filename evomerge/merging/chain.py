"""Chains of recipes: planned to the end before anything is built, then built step by step."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import RecipeError, SourceError, choose
from evomerge.header import TensorInfo
from evomerge.merging.config import merged_config
from evomerge.merging.plan import Plan
from evomerge.merging.planner import Planner
from evomerge.merging.small_files import inside, marker_of, names_of, small_files, write_small_files
from evomerge.merging.unopened import misfits, recipe_problems
from evomerge.recipe import BASE, UNION, Chain, ModelReference, Step
from evomerge.sources import Source, fetch, local_folder, open_source, open_sources, with_adapter

if TYPE_CHECKING:
    from evomerge.merging.engine import Engine


@dataclass(frozen=True)
class PlannedStep:
    """One step of a chain, ready to be built where the steps before it are."""

    step: Step
    plan: Plan
    planner: Planner


class OpenChain:
    """A chain whose outside models are open.

    Args:
        sources: The outside models, by the references that the chain has for them.
        root: Where relative folders of adapters on earlier steps are looked for.
    """

    def __init__(self, chain: Chain, sources: Mapping[str, Source], root: Path | None = None) -> None:
        self.chain = chain
        self.sources = {r: sources[r] for r in chain.references()}
        self._root = root

    @classmethod
    def open(cls, chain: Chain, root: Path | None = None) -> OpenChain:
        """Open every outside model of a chain; the weights of the hub's are downloaded by `write` alone.

        Raises:
            SourceError: every problem of every model, and what is wrong with the recipes themselves; one line each.
        """
        try:
            return cls(chain, open_sources(chain.references(), root, _tokenizers(chain), weights=False), root)
        except SourceError as e:
            lines = str(e).splitlines()
            for step in chain.steps:
                lines += [*misfits(step.recipe, chain.names, root), *recipe_problems(step.recipe)]
            raise SourceError("\n".join(dict.fromkeys(lines))) from None

    def with_full_references(self) -> OpenChain:
        """The same with references that can be found from any folder."""
        full = {r: source.full_reference for r, source in self.sources.items()}
        sources = {full[r]: replace(s, reference=full[r]) for r, s in self.sources.items()}
        for step in self.chain.steps:
            for r in step.recipe.references():
                parsed = ModelReference.parse(r)
                lora = local_folder(parsed.lora, self._root) if self.chain.used(r) and parsed.lora else None
                if lora is not None:
                    full[r] = f"{parsed.path}+{lora.resolve()}"
        return OpenChain(self.chain.with_references(full).with_folders(self._full), sources, self._root)

    def _full(self, folder: str) -> str:
        found = local_folder(folder, self._root)
        return str(found.resolve()) if found else folder

    def plan(self, folder: Path) -> list[PlannedStep]:
        """Plan every step; nothing of a tensor is read or written.

        Args:
            folder: Where the small files of earlier steps (configuration, tokenizer) are laid out for later ones.

        Raises:
            RecipeError, SourceError: every problem of every step that builds on none that has problems.
        """
        found: list[PlannedStep] = []
        made: dict[str, Source] = {}
        problems: list[RecipeError | SourceError] = []
        for number, step in enumerate(self.chain.steps):
            if any(name not in made for r in step.recipe.references() if (name := self.chain.used(r))):
                continue  # it builds on a step that has problems
            try:
                planner = Planner(self._sources_of(step, made), self._root)
                plan = planner.plan(step.recipe, sums=True)
            except (RecipeError, SourceError) as e:
                where = f'"{step.name}"' if step.name in self.chain.names else "the final recipe"
                problems.append(type(e)(f"{where}: {e}") if len(self.chain.steps) > 1 else e)
                continue
            found.append(PlannedStep(step, plan, planner))
            if step.name is not None and number < len(self.chain.steps) - 1:
                made[step.name] = _virtual(plan, step.name, folder / str(number))
        if problems:
            raise type(problems[0])("\n".join(map(str, problems)))
        return found

    def write(
        self,
        out: Path,
        *,
        overwrite: bool = False,
        engine: Callable[[Planner], Engine] | None = None,
        planned: Sequence[PlannedStep] | None = None,
        beside: Callable[[Mapping[str, str]], Mapping[str, Path | str]] | None = None,
        **options: Any,
    ) -> None:
        """Build the chain into a folder: the final model, with the whole chain as its recipe.yaml.

        Earlier steps are built in a temporary folder beside it, and each is removed when no later step needs it.

        Args:
            engine: Makes the engine of a step.
            planned: What `plan` gave, where it has been asked already.
            beside: As `Engine.write` takes it, from the content hashes of the whole chain; for the final model alone.
            options: As `Engine.write` takes them.

        Raises:
            InputError: `out` cannot be written, or the chain cannot be built; before any work.
            CandidateError, EvoMergeError: as `Engine.write`.
        """
        from evomerge.merging.checkpoint import check_apart, checked_target
        from evomerge.merging.engine import Engine
        from evomerge.merging.scratch import scratch_folder

        def default(planner: Planner) -> Engine:
            return Engine(planner.sources, planner=planner)

        def text(_: Mapping[str, str]) -> str:
            return self.chain.with_hashes(self.hashes(steps)).to_yaml()

        def files(_: Mapping[str, str]) -> Mapping[str, Path | str]:
            return beside(self.hashes(steps)) if beside else {}

        make = engine or default
        out = Path(out)
        if planned is None:
            with tempfile.TemporaryDirectory(prefix="evomerge-") as temporary:
                planned = self.plan(Path(temporary))
        steps = list(planned)
        check_apart(self.sources.values(), [s for step in steps for s in step.plan.statistics.values()], out)
        holds = marker_of(steps[-1].plan)
        with checked_target(out, overwrite, peak_disk(steps), holds) as target, ExitStack() as scratch:
            fetch(self.sources.values())
            # A chain of one has nothing to put there.
            folder = target.parent
            if len(steps) > 1:
                folder = scratch.enter_context(scratch_folder(folder, target.name, "steps"))
            made: dict[str, Source] = {}
            for number, planned_step in enumerate(steps):
                step = planned_step.step
                # A plan over the results of earlier steps was one over tensors that did not exist yet.
                fresh = any(self.chain.used(r) for r in step.recipe.references())
                planner = Planner(self._sources_of(step, made), self._root) if fresh else planned_step.planner
                if number == len(steps) - 1:
                    final = make(planner)
                    final.write(step.recipe, out, overwrite=overwrite, recipe_text=text, beside=files, **options)
                    break
                place = folder / str(number)
                make(planner).write(step.recipe, place, **options)
                made[str(step.name)] = replace(open_source(str(place)), reference=str(step.name))
                for name in [name for name in made if not _needed(name, steps[number + 1 :])]:
                    shutil.rmtree(made.pop(name).root)

    def hashes(self, planned: Sequence[PlannedStep]) -> dict[str, str]:
        """Content hash of everything from outside the chain: models, and folders of statistics."""
        statistics = {s.named: s.content_hash() for step in planned for s in step.plan.statistics.values()}
        return {r: source.content_hash() for r, source in self.sources.items()} | statistics

    def _sources_of(self, step: Step, made: Mapping[str, Source]) -> dict[str, Source]:
        """The models that a step names: outside ones, results of earlier steps, and adapters on those."""
        found: dict[str, Source] = {}
        for reference in step.recipe.references():
            name = self.chain.used(reference)
            if name is None:
                found[reference] = self.sources[reference]
                continue
            parsed = ModelReference.parse(reference)
            if parsed.revision:
                raise RecipeError(f'model "{reference}": the result of a step has no revisions')
            model = made[name]
            lora = ModelReference(parsed.lora, parsed.lora_revision) if parsed.lora else None
            found[reference] = with_adapter(model, lora, reference, self._root) if lora else model
        return found


def _tokenizers(chain: Chain) -> dict[str, str]:
    """What a message says first about models that are named for their tokenizer, or as what is merged into, alone."""
    found: dict[str, str] = {}
    for recipe in (step.recipe for step in chain.steps):
        merged = recipe.merged_models()
        key = "tokenizer_source" if recipe.tokenizer_source else "tokenizer.source"
        for r in recipe.references():
            if r not in merged and r == recipe.evomerge.into:
                found[r] = "evomerge.into: "
            elif r not in merged:
                found[r] = f'{key}: "{r}" is no model that can be opened ({choose(r, [UNION, BASE, *merged])}): '
    return {r: words for r, words in found.items() if not any(r in s.recipe.merged_models() for s in chain.steps)}


def _needed(name: str, steps: Sequence[PlannedStep]) -> bool:
    """Whether one of the steps uses what is called `name`."""
    return any(ModelReference.parse(r).path == name for s in steps for r in s.step.recipe.references())


def peak_disk(steps: Sequence[PlannedStep]) -> int:
    """Bytes that lie on the disk at once, at most."""
    held: dict[str, int] = {}
    most = 0
    for number, s in enumerate(steps):
        most = max(most, sum(held.values()) + s.plan.bytes_written)
        if s.step.name is not None:
            held[s.step.name] = s.plan.bytes_written
        held = {name: size for name, size in held.items() if _needed(name, steps[number + 1 :])}
    return most


def _virtual(plan: Plan, name: str, folder: Path) -> Source:
    """What a step's result will be, told from its plan: a source whose tensors cannot be read yet."""
    folder.mkdir()
    write_small_files(small_files(plan), folder)
    folder = folder / inside(plan)
    file = folder / names_of(plan)[0]
    tensors: dict[str, TensorInfo] = {}
    end = 0
    for t in plan.tensors:
        tensors[t.name] = TensorInfo(t.dtype, t.shape, file, end, end + t.bytes)
        end += t.bytes
    donor = plan.sources[plan.donor].diffusion
    diffusion = None if donor is None else replace(donor, root=folder.parent if donor.component else folder)
    return Source(name, folder, merged_config(plan), dict(sorted(tensors.items())), diffusion=diffusion)
