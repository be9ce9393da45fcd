"""The models of a space: opened, held against what its kind needs of them, and told to it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evomerge.errors import EvaluatorError, InputError, SourceError, SpaceError
from evomerge.evaluation import EvaluatorFile
from evomerge.images.extra import check_diffusers
from evomerge.merging.modules import is_composite
from evomerge.pipeline.seeing import seeing
from evomerge.skills.opened import check_base, check_skills
from evomerge.sources import TEXT, Source, check_fit, check_path_fit, open_sources, writers
from evomerge.space import MERGED, DataflowConfig, HybridConfig, SearchSpace, Shape, SpaceConfig


def opened(config: SpaceConfig | DataflowConfig, root: Path | None) -> dict[str, Source]:
    """Open every model that a space names, weights of the hub's not yet.

    Raises:
        SourceError: a model cannot be opened, or they do not fit each other.
        LibraryError: an adapter of a skill library is not the one that was added.
    """
    found = open_sources(config.references(), root=root, weights=False)
    if isinstance(config, SpaceConfig) and config.library is not None:
        check_skills(config.library, {s.name: found[s.model] for s in config.sources})
    config = seeing(config, found)
    if isinstance(config, DataflowConfig):
        check_path_models(config, found)
    else:
        check_fit(found, vocabulary=config.tokenizer_source is None, modules=_merged_modules(config))
    return found


def check_library_base(config: SpaceConfig | DataflowConfig, found: Mapping[str, Source]) -> None:
    """Raise LibraryError where the base of a space over a skill library is not the library's; its weights are here."""
    if isinstance(config, SpaceConfig) and config.library is not None and config.base_model is not None:
        check_base(config.library, found[config.base_model])


def check_path_models(config: DataflowConfig, found: Mapping[str, Source]) -> None:
    """Check that the sources' layers can stand on one path; the base is only measured beside paths.

    Raises:
        SourceError: what differs; of vocabularies only between sources that may give embeddings or head.
    """
    models = {s.name: found[s.model] for s in config.sources}
    tied = any(s.tied for s in models.values())
    chosen = [config.embeddings or tuple(models), () if tied else config.head or tuple(models)]
    check_path_fit(list(models.values()), ends=[models[name] for names in chosen for name in names])


def _merged_modules(config: SpaceConfig | DataflowConfig) -> tuple[str, ...] | None:
    """The modules that merges of a space are of; None: all that its models have in common."""
    return (TEXT,) if isinstance(config, SpaceConfig) and config.into is not None else None


def average_fits(config: SpaceConfig | DataflowConfig, sources: Mapping[str, Source]) -> bool:
    """Whether a space's sources can be averaged."""
    named = {s.model: sources[s.model] for s in config.sources}
    return fits(named, config.tokenizer_source is None, _merged_modules(config))


def fits(sources: Mapping[str, Source], vocabulary: bool = True, modules: Collection[str] | None = None) -> bool:
    """Whether models can be merged tensor by tensor; `modules` as `check_fit` takes them."""
    try:
        check_fit(sources, vocabulary=vocabulary, modules=modules)
    except SourceError:
        return False
    return True


def shape_of(source: Source) -> Shape:
    """What spaces must know of a model."""
    found = writers(source)
    return Shape(source.num_layers, tuple(source.tensors), source.tied, found.filters, found.reason)


def shapes(sources: Mapping[str, Source], config: SpaceConfig | DataflowConfig) -> dict[str, Shape]:
    """What a space must know of its models, by reference."""
    return {reference: shape_of(sources[reference]) for reference in config.references()}


def fingerprint_of(space: SearchSpace) -> dict[str, Any]:
    """What makes a space this one: models count by their short name, not by where they lie."""
    named = space.fingerprint() | {"sources": list(space.names)}
    named.pop("base_model", None)
    named.pop("into", None)
    return named


@contextmanager
def told_of(what: str | Path | None) -> Iterator[None]:
    """Name a space's file, or an option, in front of what the models show to be wrong with it."""
    try:
        yield
    except SpaceError as e:
        raise SpaceError(f"{what}: {e}" if what is not None else str(e)) from None


def open_space(config: SpaceConfig | DataflowConfig, root: Path | None) -> tuple[dict[str, Source], SearchSpace]:
    """A space's models, and the space over them. A skill library's base is looked at where its weights are here."""
    found = opened(config, root)
    if not any(source.absent for source in found.values()):
        check_library_base(config, found)
    config = seeing(config, found)
    return found, config.bind_models(shapes(found, config))


def second_space(config: HybridConfig, merge: Source, root: Path | None) -> SearchSpace:
    """The space of a hybrid's second stage before there is a winner of the first.

    Args:
        merge: A model of the shape that the winner will have.
    """
    later = config.dataflow(MERGED)
    found = open_sources([r for r in later.references() if r != MERGED], root=root, weights=False) | {MERGED: merge}
    later = seeing(later, found)
    check_path_models(later, found)
    return later.bind_models({r: shape_of(s) for r, s in found.items()})


def check_images(model: Source, evaluator: EvaluatorFile, address: str | None = None) -> None:
    """Check that diffusion models can be scored as they are to be.

    Args:
        model: One of those that are.
        address: A cluster's.

    Raises:
        InputError: diffusers is missing, the evaluator asks language models, or the work would be sent elsewhere.
    """
    if model.diffusion is None:
        return
    check_diffusers(f'model "{model.reference}"')
    if evaluator.config.kind == "lm_eval":
        raise EvaluatorError(
            f'{evaluator.file}: kind = "lm_eval": asks language models, and "{model.reference}" is a '
            f"{model.architecture}; expected kind: python, whose function is given the pipeline"
        )
    if address is not None:
        raise InputError(f"--address {address}: searches over diffusion models run on this machine alone; leave it out")


def live_of(config: SpaceConfig | DataflowConfig, sources: Mapping[str, Source]) -> str:
    """The model whose architecture, tokenizer and configuration merges have; of paths, the first source.

    Where text models meet vision-language models it is one of these.
    """
    config = seeing(config, sources)
    if isinstance(config, DataflowConfig):
        listed = [s.model for s in config.sources]
        return next((r for r in listed if r in sources and is_composite(sources[r])), listed[0])
    return config.into or config.base_model or config.sources[0].model
