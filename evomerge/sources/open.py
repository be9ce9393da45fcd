"""A model reference becomes a `Source`, or one message that says why it cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from evomerge.errors import SourceError
from evomerge.header import FLOATS, TensorInfo
from evomerge.recipe import ModelReference
from evomerge.sources.diffusion import DENOISERS, DiffusionFolder
from evomerge.sources.files import (
    DENOISER_INDEX,
    DENOISER_SINGLE,
    INDEX,
    beside,
    check_index,
    read_config,
    weight_files,
)
from evomerge.sources.folder import Folder, find_folder, local_folder
from evomerge.sources.hub import fetch
from evomerge.sources.peft import open_adapter
from evomerge.sources.source import HEADS, Source


def open_sources(
    references: Iterable[str],
    root: Path | None = None,
    named: Mapping[str, str] | None = None,
    *,
    weights: bool = True,
) -> dict[str, Source]:
    """Open several models, by reference, in order.

    Args:
        root: Where a relative folder is looked for when it is not below the current one.
        named: What stands before the message about a reference: the key that names it, where that is not plain.
        weights: Whether weights are downloaded where they are on the hub alone, once every model has been found to be
            in order. False leaves that to `fetch`, for callers that have more to check first.

    Raises:
        SourceError: every problem of every model, one line each.
    """
    found: dict[str, Source] = {}
    problems: list[str] = []
    for reference in dict.fromkeys(references):
        try:
            found[reference] = open_source(reference, root, weights=False)
        except SourceError as e:
            problems.append((named or {}).get(reference, "") + str(e))
    if problems:
        raise SourceError("\n".join(problems))
    if weights:
        fetch(found.values())
    return found


def open_source(reference: str, root: Path | None = None, *, weights: bool = True) -> Source:
    """Find a model and read its configuration and headers.

    Args:
        reference: `zoo:NAME`, a folder, or a hub id with optional `@revision`; after a `+` a LoRA adapter on it.
        root: Where a relative folder is looked for when it is not below the current one (the recipe's folder).
        weights: See `open_sources`.

    Raises:
        SourceError: the model is missing, incomplete, damaged, or in a format that is refused.
    """
    try:
        parsed = ModelReference.parse(reference)
    except ValueError as e:
        raise SourceError(str(e)) from None
    if local_folder(reference, root):
        parsed = ModelReference(reference)  # a folder with a + or @ in its name
    if parsed.lora is None:
        source = _model(parsed, reference, root)
    else:
        model = _model(ModelReference(parsed.path, parsed.revision), reference.partition("+")[0], root)
        source = with_adapter(model, ModelReference(parsed.lora, parsed.lora_revision), reference, root)
    if weights:
        fetch([source])
    return source


def with_adapter(model: Source, lora: ModelReference, reference: str, root: Path | None = None) -> Source:
    """A model with a LoRA adapter on it.

    Args:
        lora: Names the adapter's folder.
        reference: How recipes name the two together.
        root: Where a relative folder is looked for when it is not below the current one.

    Raises:
        SourceError: the adapter is missing, damaged, or does not fit the model.
    """
    adapter = open_adapter(str(lora), find_folder(lora, str(lora), root), model)
    tensors = dict(sorted({**model.tensors, **adapter.replaced}.items()))
    return Source(reference, model.path, model.config, tensors, model.local, adapter)


def adapter_folder(lora: ModelReference, reference: str, root: Path | None = None) -> Path:
    """Where an adapter lies; one of the hub's without its weights yet.

    Raises:
        SourceError: there is no such folder.
    """
    return find_folder(lora, reference, root).path


def _model(parsed: ModelReference, reference: str, root: Path | None) -> Source:
    folder = find_folder(parsed, reference, root)
    diffusion = DiffusionFolder.at(folder.path)
    if diffusion is not None:
        return _denoiser(diffusion, folder, reference)
    path = folder.path
    config = read_config(path)
    if "quantization_config" in config:
        raise SourceError(f"{path}: is quantised; merging needs the weights in bfloat16, float16 or float32")
    tensors: dict[str, TensorInfo] = {}
    files = weight_files(path, folder.names)
    for file, found in zip(files, folder.headers(files), strict=True):
        twice = next((name for name in found if name in tensors), None)
        if twice is not None:
            raise SourceError(f'{path}: tensor "{twice}" is in {tensors[twice].file.name} and in {file.name}')
        tensors.update(found)
    if not tensors:
        raise SourceError(f"{path}: its safetensors files hold no tensor")
    check_index(path, tensors)
    _check_whole(folder, tensors, beside(path, folder.names, files))
    _check_types(tensors)
    return Source(reference, path, config, dict(sorted(tensors.items())), folder.local)


def _denoiser(diffusion: DiffusionFolder, folder: Folder, reference: str) -> Source:
    """A diffusion model: of its pipeline the denoiser is merged, everything else is kept."""
    path = diffusion.denoiser
    if not path.is_dir():
        raise SourceError(f"{diffusion.root}: its pipeline names {diffusion.component}, which is not there")
    config = read_config(path)
    if config.get("_class_name") not in DENOISERS:
        raise SourceError(f"{path}: a {config.get('_class_name')}; expected one of {', '.join(DENOISERS)}")
    for _ in diffusion.others():  # what a merge copies
        pass
    here = Folder(path, folder.local)
    tensors: dict[str, TensorInfo] = {}
    files = weight_files(path, here.names, DENOISER_SINGLE, DENOISER_INDEX)
    for found in here.headers(files):
        tensors.update(found)
    if not tensors:
        raise SourceError(f"{path}: its safetensors files hold no tensor")
    check_index(path, tensors, DENOISER_SINGLE, DENOISER_INDEX)
    _check_types(tensors)
    return Source(reference, path, config, dict(sorted(tensors.items())), folder.local, diffusion=diffusion)


def _check_whole(folder: Folder, tensors: Mapping[str, TensorInfo], others: Iterable[Path]) -> None:
    """Refuse an index that leaves out a part of the model: a file beside it with tensors of the same modules."""
    modules = {name.partition(".")[0] for name in tensors}
    for file in others:
        try:
            (found,) = folder.headers([file])
        except SourceError:
            continue  # whatever it is, nothing says that it is a part
        more = [n for n in found if n not in tensors and (n.partition(".")[0] in modules or n.endswith(HEADS))]
        if more:
            raise SourceError(
                f'{folder.path / INDEX}: does not name {file.name}, which lies beside it and holds "{more[0]}" '
                f"({len(more)} tensors that it lacks); download the model again, or remove the file where it is no part"
            )


def _check_types(tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse weights that are no floats: a quantised model that does not say so. Counters and masks may be integers."""
    wrong = [
        (name, info)
        for name, info in tensors.items()
        if info.dtype.startswith("F8") or (not info.is_float and name.endswith(".weight"))
    ]
    if wrong:
        name, info = wrong[0]
        more = f", and {len(wrong) - 1} more like it" if len(wrong) > 1 else ""
        raise SourceError(
            f'{info.file}: tensor "{name}" has type {info.dtype}{more}; expected one of {", ".join(FLOATS)} '
            "(a quantised model must be converted first)"
        )
