"""The files of a checkpoint: safetensors only, whole, and inside their folder.

A pickle checkpoint can run code when it is read and is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import SourceError
from evomerge.header import TensorInfo

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PART = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint, or why there are none."""
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    left = sorted(path.glob("*.incomplete"))
    if (path / INDEX).is_file():
        shards = _shards(path / INDEX)
        missing = [s for s in shards if not (path / s).is_file()]
        if missing:
            more = f"; interrupted download: {left[0].name} is left over" if left else "; download it again"
            raise SourceError(f"{path / INDEX}: names {missing[0]}, which is not there ({len(missing)} missing){more}")
        return [path / s for s in shards]
    if left:
        size = left[0].stat().st_size
        raise SourceError(f"{path}: interrupted download: only {left[0].name} ({size:,} bytes); download it again")
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise SourceError(
            f"{path}: has only {pickles[0]}, a pickle checkpoint, which can run code when it is read: refused; convert "
            "it to safetensors (AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW), where you trust it)"
        )
    raise SourceError(f"{path}: has no {SINGLE} and no {INDEX}")


def _shards(index: Path) -> list[str]:
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(v, str) for v in names.values()):
        raise SourceError(f'{index}: expected a "weight_map" of tensor names to files')
    shards = list(dict.fromkeys(names.values()))
    for shard in shards:
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise SourceError(f'{index}: refused: "{shard}" is not the name of a safetensors file in this folder')
    return shards


def check_index(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Check that an index and its shards agree: every part is named, and holds what it is said to hold.

    Raises:
        SourceError: every disagreement, one line each.
    """
    index = path / INDEX
    if (path / SINGLE).is_file() or not index.is_file():
        return
    places: dict[str, str] = read_json(index)["weight_map"]
    problems = [f"{index}: does not name {shard}, one of its own parts" for shard in _unnamed(places.values())]
    lacking = [n for n, shard in places.items() if n not in tensors or tensors[n].file.name != shard]
    if lacking:
        more = f" ({len(lacking)} such)" if len(lacking) > 1 else ""
        problems.append(f'{index}: says that {places[lacking[0]]} holds "{lacking[0]}", which it does not{more}')
    if problems:
        raise SourceError("\n".join(f"{problem}; download the model again" for problem in problems))


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
    file = path / "config.json"
    if not file.is_file():
        what = "is an adapter, not a model" if (path / "adapter_config.json").is_file() else "has no config.json"
        raise SourceError(f"{path}: {what}; expected the folder of a Hugging Face checkpoint")
    config = read_json(file)
    if not isinstance(config, dict):
        raise SourceError(f"{file}: expected a JSON object")
    return config


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise SourceError(f"{file}: not JSON ({e})") from None
    except OSError as e:
        raise SourceError(f"{file}: cannot be read ({e.strerror or e})") from None


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
