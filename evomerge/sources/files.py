"""The files of a checkpoint: safetensors only, whole, and inside their folder.

A pickle checkpoint can run code when it is read and is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import SourceError
from evomerge.header import TensorInfo
from evomerge.library import GATE_CONFIG

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# As diffusers has it.
DENOISER_SINGLE = "diffusion_pytorch_model.safetensors"
DENOISER_INDEX = f"{DENOISER_SINGLE}.index.json"
_PART = re.compile(r"(.+)-([0-9]{1,9})-of-([0-9]{1,9})\.safetensors")
# No file system here has longer names, and asking for one is an error of its own.
_NAME_BYTES = 255
# A configuration that goes deeper is made to harm; what copies and writes it calls itself once or more for each level.
_DEPTH = 100
# What is read of a configuration, and of its parts, beside numbers.
_EXPECTED: dict[str, type] = {"tie_word_embeddings": bool, "model_type": str}
# Weights under other names, for other tools; and an adapter's.
_NOT_PARTS = ("consolidated", "adapter_model")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def weight_files(path: Path, names: Collection[str], single: str = SINGLE, index: str = INDEX) -> list[Path]:
    """The safetensors files of a checkpoint, or why there are none.

    Args:
        names: Of the files that it has; only the index must lie in its folder.
        single, index: What the weights in one file, and the index of several, are called.
    """
    if single in names:
        return [path / single]
    left = sorted(path.glob("*.incomplete"))
    if index in names:
        shards = _shards(path / index)
        missing = [s for s in shards if s not in names]
        if missing:
            more = f"; interrupted download: {left[0].name} is left over" if left else "; download it again"
            raise SourceError(f"{path / index}: names {missing[0]}, which is not there ({len(missing)} missing){more}")
        return [path / s for s in shards]
    if left:
        size = left[0].stat().st_size
        raise SourceError(f"{path}: interrupted download: only {left[0].name} ({size:,} bytes); download it again")
    pickles = sorted(name for name in names if Path(name).name == name and name.endswith(PICKLES))
    if pickles:
        raise SourceError(
            f"{path}: has only {pickles[0]}, a pickle checkpoint, which can run code when it is read: refused; convert "
            "it to safetensors (AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW), where you trust it)"
        )
    raise SourceError(f"{path}: has no {single} and no {index}")


def has_weights(path: Path, names: Collection[str]) -> bool:
    """Whether every safetensors file that a checkpoint says it has is among the names.

    Raises:
        SourceError: the index cannot be used.
    """
    return SINGLE in names or (INDEX in names and all(shard in names for shard in _shards(path / INDEX)))


def _shards(index: Path) -> list[str]:
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(v, str) for v in names.values()):
        raise SourceError(f'{index}: expected a "weight_map" of tensor names to files')
    shards = list(dict.fromkeys(names.values()))
    for shard in shards:
        plain = Path(shard).name == shard and "\\" not in shard and len(os.fsencode(shard)) <= _NAME_BYTES
        if not plain or not shard.endswith(".safetensors"):
            shown = shard if len(shard) <= _NAME_BYTES else shard[:_NAME_BYTES] + "..."
            raise SourceError(f'{index}: refused: "{shown}" is not the name of a safetensors file in this folder')
    return shards


def check_index(path: Path, tensors: Mapping[str, TensorInfo], single: str = SINGLE, name: str = INDEX) -> None:
    """Check that an index and its shards agree: every part is named, and holds what it is said to hold.

    Args:
        single, name: See `weight_files`.

    Raises:
        SourceError: every disagreement, one line each.
    """
    index = path / name
    if all(info.file.name == single for info in tensors.values()) or not index.is_file():
        return
    places: dict[str, str] = read_json(index)["weight_map"]
    problems = [f"{index}: does not name {shard}, one of its own parts" for shard in _unnamed(places.values())]
    lacking = [n for n, shard in places.items() if n not in tensors or tensors[n].file.name != shard]
    if lacking:
        more = f" ({len(lacking)} such)" if len(lacking) > 1 else ""
        problems.append(f'{index}: says that {places[lacking[0]]} holds "{lacking[0]}", which it does not{more}')
    if problems:
        raise SourceError("\n".join(f"{problem}; download the model again" for problem in problems))


def beside(path: Path, names: Collection[str], files: Iterable[Path]) -> list[Path]:
    """Safetensors files that an index leaves out, those apart that by their names are not for it."""
    named = {file.name for file in files}
    if SINGLE in named:
        return []
    others = (name for name in sorted(names) if name.endswith(".safetensors") and Path(name).name == name)
    return [path / name for name in others if name not in named and not name.startswith(_NOT_PARTS)]


def _unnamed(shards: Iterable[str]) -> Iterator[str]:
    """Parts that an index lacks, by the numbers in the names of the others: "model-00002-of-00003.safetensors"."""
    found: dict[tuple[str, str], list[str]] = {}
    for shard in dict.fromkeys(shards):
        match = _PART.fullmatch(shard)
        if match:
            found.setdefault((match[1], match[3]), []).append(match[2])
    for (stem, count), numbers in found.items():
        # Parts are counted from 1, or from 0.
        first = 0 if 0 in map(int, numbers) else 1
        wanted = [str(n).zfill(len(numbers[0])) for n in range(first, first + min(int(count), 9999))]
        yield from (f"{stem}-{n}-of-{count}.safetensors" for n in wanted if n not in numbers)


def read_config(path: Path) -> dict[str, Any]:
    file = small_file(path, "config.json")
    if file is None:
        what = "is an adapter, not a model" if (path / "adapter_config.json").is_file() else "has no config.json"
        if (path / GATE_CONFIG).is_file():
            what = "is a gated model, of which no checkpoint is the same (every prompt has weights of its own)"
        raise SourceError(f"{path}: {what}; expected the folder of a Hugging Face checkpoint")
    config = read_object(path, "config.json")
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise SourceError(f"{file}: architectures = {str(names)[:80]}: expected a list of class names")
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key, expected in _EXPECTED.items():
            value = part.get(key)
            if value is not None and not isinstance(value, expected):
                words = "true or false" if expected is bool else "a text"
                raise SourceError(f"{file}: {key} = {json.dumps(value)[:80]}: expected {words}")
    return config


def small_file(folder: Path, name: str) -> Path | None:
    """A file beside the weights that a merge reads or copies, or None where there is none.

    Merges are published: a link may lead to another file in the model's folder, or as the hub's cache has it
    (snapshots/REVISION/NAME, or /COMPONENT/NAME, to blobs/HASH), not to a file of the user's that is none of its own.

    Raises:
        SourceError: a link that leads elsewhere.
    """
    file = folder / name
    if not file.is_file():
        return None
    if file.is_symlink():
        home, target = (Path(os.path.realpath(p)) for p in (folder, file))
        # A pipeline's components lie a folder deeper.
        cached = any(
            place.name == "snapshots" and target.parent == place.parent / "blobs" for place in list(home.parents)[:2]
        )
        if not cached and not target.is_relative_to(home):
            raise SourceError(f"{file}: refused: a link that leads out of the model's folder, to {target}")
    return file


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object beside the weights (see `small_file`); {} where there is no such file.

    Raises:
        SourceError: it cannot be read, or is something else.
    """
    file = small_file(folder, name)
    if file is None:
        return {}
    data = read_json(file)
    if not isinstance(data, dict):
        raise SourceError(f"{file}: expected a JSON object, got a {type(data).__name__}")
    return data


def read_json(file: Path) -> Any:
    """What a JSON file says: of limited depth, and such that it can be written again.

    Raises:
        SourceError: it cannot be read.
    """
    text = read_text(file)
    try:
        data = json.loads(text)
        deep = _too_deep(data)
        if not deep and "\\ud" in text.lower():  # half of a surrogate pair, which no UTF-8 file can hold
            json.dumps(data, ensure_ascii=False).encode()
    except RecursionError:
        deep = True
    except ValueError as e:
        raise SourceError(f"{file}: not JSON ({e})") from None
    if deep:
        raise SourceError(f"{file}: not JSON of a model (more than {_DEPTH} levels deep)")
    return data


def read_text(file: Path) -> str:
    """The text of a file.

    Raises:
        SourceError: it cannot be read, or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise SourceError(f"{file}: not a text file (byte {e.start} is not UTF-8)") from None
    except OSError as e:
        raise SourceError(f"{file}: cannot be read ({e.strerror or e})") from None


def _too_deep(data: Any) -> bool:
    level = [data]
    for _ in range(_DEPTH):
        parts = [x.values() if isinstance(x, dict) else x for x in level if isinstance(x, dict | list)]
        if not parts:
            return False
        level = [inner for part in parts for inner in part]
    return True


def has_same_bytes(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two stored tensors are equal, bit for bit, type and shape included."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    try:
        with one.file.open("rb") as a, other.file.open("rb") as b:
            a.seek(one.start)
            b.seek(other.start)
            left = one.end - one.start
            while left > 0:
                pieces = [f.read(min(left, 4 << 20)) for f in (a, b)]
                if pieces[0] != pieces[1] or not pieces[0]:
                    return False
                left -= len(pieces[0])
    except OSError as e:
        raise SourceError(f"{one.file}: cannot be read ({e.strerror or e})") from None
    return True
