"""A plain checkpoint on disk: weights in safetensors, configuration, tokenizer, recipe; all of it or nothing."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import EvoMergeError, InputError
from evomerge.header import ITEM_SIZES
from evomerge.merging.plan import Plan, TensorPlan
from evomerge.merging.tokenizer import write_tokenizer
from evomerge.sources import INDEX, LAYER_KEYS, SINGLE

SHARD_BYTES = 5_000_000_000
RECIPE = "recipe.yaml"
_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def write_checkpoint(
    plan: Plan,
    merge: Callable[[TensorPlan], Tensor],
    hashes: Mapping[str, str],
    out: Path,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write what a plan describes.

    Args:
        merge: Computes one tensor, in its output type; called once for each.
        hashes: Content hash of each source, kept in the written recipe.
        shard_bytes: Largest size of one weights file.

    Raises:
        InputError: `out` exists and is not empty, or cannot be made.
        EvoMergeError: the disk is full.
    """
    inside = [s.path for s in plan.sources.values() if s.path.resolve().is_relative_to(out.resolve())]
    if inside:
        raise InputError(f"{out}: holds the source model {inside[0]}; choose another folder")
    with atomic_folder(out, overwrite, plan.bytes_written) as folder:
        write_weights(folder, plan.tensors, merge, shard_bytes)
        config = json.dumps(merged_config(plan), indent=2, sort_keys=True, ensure_ascii=False)
        (folder / "config.json").write_text(config + "\n", encoding="utf-8")
        generation = plan.sources[plan.donor].path / "generation_config.json"
        if generation.is_file():
            shutil.copyfile(generation, folder / generation.name)
        write_tokenizer(plan.recipe, plan.sources, plan.tokenizer, folder)
        recipe = plan.recipe.with_extras(sources=dict(hashes))
        (folder / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")


@contextmanager
def atomic_folder(out: Path, overwrite: bool, needed: int) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends well, and vanishes when it does not.

    Args:
        needed: Bytes that will be written, checked against the free space first.
    """
    out = out.absolute()
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, expected a folder to write the model to")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise InputError(f"{out}: is not empty; choose another folder, or overwrite it (--overwrite)")
        if not (out / "config.json").is_file():
            raise InputError(f"{out}: is not empty and holds no model (config.json), so it is not overwritten")
    parent = out.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=parent))
    except OSError as e:
        raise InputError(f"{out}: cannot be written ({e.strerror or e})") from None
    try:
        free = shutil.disk_usage(parent).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"{free:,} bytes free")
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        _replace(temporary, out)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EvoMergeError(f"{out}: the disk is full; the model needs {needed:,} bytes") from None
        raise EvoMergeError(f"{out}: cannot be written ({e.strerror or e})") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(new: Path, out: Path) -> None:
    if not out.is_dir():
        new.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=new.parent))
    out.rename(old)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_weights(
    folder: Path, tensors: Sequence[TensorPlan], merge: Callable[[TensorPlan], Tensor], shard_bytes: int
) -> None:
    """Write tensors one after the other, one in memory at a time, with an index where they need several files."""
    shards: list[list[TensorPlan]] = [[]]
    size = 0
    for t in tensors:
        if shards[-1] and size + t.bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(t)
        size += t.bytes
    if len(shards) == 1:
        _write_file(folder / SINGLE, shards[0], merge)
        return
    places: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / name, shard, merge)
        places.update({t.name: name for t in shard})
    index = {"metadata": {"total_size": sum(t.bytes for t in tensors)}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(file: Path, tensors: Sequence[TensorPlan], merge: Callable[[TensorPlan], Tensor]) -> None:
    """One safetensors file. Wider types first, so that every tensor is aligned for readers that map the file."""
    ordered = sorted(tensors, key=lambda t: -ITEM_SIZES[t.dtype])
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for t in ordered:
        header[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [at, at + t.bytes]}
        at += t.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for t in ordered:
            data = merge(t).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            if data.nbytes != t.bytes:
                raise EvoMergeError(f'tensor "{t.name}" has {data.nbytes} bytes, planned were {t.bytes}')
            f.write(data.data)
        f.flush()
        os.fsync(f.fileno())


def merged_config(plan: Plan) -> dict[str, Any]:
    """config.json of the merge: the donor's, with the number of layers, lists by layer and type of the merge."""
    donor = plan.sources[plan.donor]
    config: dict[str, Any] = copy.deepcopy(donor.config)
    text: dict[str, Any] = config["text_config"] if donor.text_config is not donor.config else config
    for key in LAYER_KEYS:
        if key in text:
            text[key] = len(plan.layers)
    for key, value in text.items():
        # Lists with one entry per layer: layer_types, mlp_layer_types, no_rope_layers, ...
        if "layer" in key and isinstance(value, list) and len(value) == donor.num_layers:
            text[key] = [_of_layer(plan, key, model, layer) for model, layer in plan.layers]
    asked = plan.recipe.out_dtype or plan.recipe.dtype
    types = [t.dtype for t in plan.tensors if t.dtype in _NAMES]
    dtype = asked or (_NAMES[max(types, key=types.count)] if types else None)
    for part in (config, text):
        for key in ("dtype", "torch_dtype"):
            if key in part or (part is config and key == "dtype" and "torch_dtype" not in config):
                part[key] = dtype
    return config


def _of_layer(plan: Plan, key: str, model: str, layer: int) -> Any:
    own = plan.sources[model].text_config.get(key)
    return own[layer] if isinstance(own, list) else plan.sources[plan.donor].text_config[key][layer]
