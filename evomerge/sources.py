"""Source models: a reference (zoo:, folder, hub id) becomes a `Source`, checked by its headers before any work.

Safetensors only: a pickle checkpoint can run code when it is read and is refused. Nothing here loads torch.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evomerge import zoo
from evomerge.errors import SourceError, choose, nearest
from evomerge.header import TensorInfo, read_header
from evomerge.recipe import ModelReference

ZOO = "zoo:"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What a hub snapshot may bring: no pickles, no code; and no second copy of the weights.
HUB_FILES = ["*.safetensors", "*.json", "*.model", "merges.txt", "vocab.txt", "*.jinja"]
HUB_IGNORED = ["*/*", "consolidated*"]
# What the hub client's errors mean, by name, so that it loads only when it is asked.
_HUB_REASONS = {
    "LocalEntryNotFoundError": "it cannot be reached, and the model is not in the local cache",
    "RepositoryNotFoundError": "it has no such model, or a private one",
    "RevisionNotFoundError": "it has the model, but not that revision",
    "GatedRepoError": "access must be asked for on the model's page, and a token given (hf auth login)",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# Keys of config.json that say where it came from, not what the model is.
_VOLATILE = ("transformers_version", "_name_or_path")
# Output heads that are the embedding again where the configuration ties them.
HEADS = ("lm_head.weight", "embed_out.weight")


@dataclass(frozen=True, eq=False)
class Source:
    """One model on disk, known by its configuration and tensor headers.

    Attributes:
        reference: How recipes name it.
        path: Its folder.
        config: config.json as it is.
        tensors: Every tensor by name, sorted.
        local: Whether the reference is a folder of the user's (neither the zoo's nor the hub's).
        name: Short name for tables and parameters: the last part of the reference.
    """

    reference: str
    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    local: bool = False

    @property
    def full_reference(self) -> str:
        """A reference that names this model from any folder: a local one by its full path."""
        return str(self.path.resolve()) if self.local else self.reference

    @property
    def name(self) -> str:
        """Last part of the reference; the caller makes it unique where two sources share it."""
        return ModelReference.parse(self.reference).path.removeprefix(ZOO).rstrip("/").split("/")[-1]

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the configuration (the whole of it, unless it is a composite model)."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    @property
    def num_layers(self) -> int:
        """Number of transformer layers, as the configuration has it."""
        for key in LAYER_KEYS:
            value = self.text_config.get(key)
            if type(value) is int:
                return value
        raise SourceError(f"{self.path / 'config.json'}: says no number of layers ({', '.join(LAYER_KEYS)})")

    @property
    def architecture(self) -> str:
        """Class name of the model ("LlamaForCausalLM"), else its model_type."""
        names = self.config.get("architectures") or [self.config.get("model_type", "unknown")]
        return str(names[0])

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding."""
        return bool(self.config.get("tie_word_embeddings", self.text_config.get("tie_word_embeddings", False)))

    @cached_property
    def merged_tensors(self) -> dict[str, TensorInfo]:
        """The tensors that a merge concerns: a tied head is left out, it is written by nobody."""
        return {name: info for name, info in self.tensors.items() if not (self.tied and name in HEADS)}

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(info.end - info.start for info in self.tensors.values())

    def content_hash(self) -> str:
        """SHA-256 (hex) of every tensor (name, type, shape, bytes; in order of name) and of the configuration.

        It does not depend on how the checkpoint is cut into files, nor on where it lies. Computed once.
        """
        return self._content_hash

    @cached_property
    def _content_hash(self) -> str:
        digest = hashlib.sha256()
        config = {k: v for k, v in self.config.items() if k not in _VOLATILE}
        digest.update(json.dumps(config, sort_keys=True).encode())
        views: dict[Path, mmap.mmap] = {}
        try:
            for name, info in self.tensors.items():
                digest.update(f"\n{name} {info.dtype} {info.shape}\n".encode())
                if info.end > info.start:
                    if info.file not in views:
                        with info.file.open("rb") as f:
                            views[info.file] = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
                    with memoryview(views[info.file]) as view:
                        digest.update(view[info.start : info.end])
        except OSError as e:
            raise SourceError(f"{self.path}: cannot be read ({e.strerror or e})") from None
        finally:
            for mapped in views.values():
                mapped.close()
        return digest.hexdigest()


def open_sources(references: Iterable[str], root: Path | None = None) -> dict[str, Source]:
    """Open several models, by reference, in order.

    Raises:
        SourceError: every problem of every model, one line each.
    """
    found: dict[str, Source] = {}
    problems: list[str] = []
    for reference in dict.fromkeys(references):
        try:
            found[reference] = open_source(reference, root)
        except SourceError as e:
            problems.append(str(e))
    if problems:
        raise SourceError("\n".join(problems))
    return found


def open_source(reference: str, root: Path | None = None) -> Source:
    """Find a model and read its configuration and headers.

    Args:
        reference: `zoo:NAME`, a folder, or a hub id with optional `@revision`.
        root: Where a relative folder is looked for when it is not below the current one (the recipe's folder).

    Raises:
        SourceError: the model is missing, incomplete, damaged, or in a format that is refused.
    """
    try:
        parsed = ModelReference.parse(reference)
    except ValueError as e:
        raise SourceError(str(e)) from None
    if parsed.lora:
        raise SourceError(
            f'model "{reference}": adapters ("+{parsed.lora}") are not supported yet; merge the adapter into its model '
            "first (peft: model.merge_and_unload().save_pretrained(FOLDER)) and name that folder"
        )
    path, local = _folder(parsed, reference, root)
    config = _config(path)
    tensors: dict[str, TensorInfo] = {}
    for file in _files(path):
        tensors.update(read_header(file))
    if not tensors:
        raise SourceError(f"{path}: its safetensors files hold no tensor")
    source = Source(reference, path, config, dict(sorted(tensors.items())), local)
    if "quantization_config" in config:
        raise SourceError(f"{path}: is quantised; merging needs the weights in bfloat16, float16 or float32")
    return source


def _folder(parsed: ModelReference, reference: str, root: Path | None) -> tuple[Path, bool]:
    """Where a model lies, and whether that is a folder of the user's."""
    name = parsed.path
    if name.startswith(ZOO):
        known = name.removeprefix(ZOO)
        if known not in zoo.NAMES:
            raise SourceError(f'model "{reference}": no such model in the zoo; {choose(known, zoo.NAMES)}')
        return zoo.path(known), False
    path = Path(name).expanduser()
    for folder in (path, root / path if root else path):
        if folder.is_dir():
            return folder, True
        if folder.exists():
            raise SourceError(f'model "{reference}": {folder} is a file, expected the folder of a checkpoint')
    if not _HUB_ID.fullmatch(name):
        raise SourceError(f'model "{reference}": no such folder{_hint(path, root)}')
    return _download(parsed, reference, _hint(path, root)), False


def _hint(path: Path, root: Path | None) -> str:
    """The folder that looks most like a missing one, or the zoo's model of that name."""
    for parent in dict.fromkeys((path.parent, (root or Path()) / path.parent)):
        if parent.is_dir():
            near = nearest(path.name, [p.name for p in sorted(parent.iterdir()) if p.is_dir()])
            if near:
                return f'; did you mean "{parent / near}"?'
    near = nearest(path.name, zoo.NAMES)
    return f'; did you mean "{ZOO}{near}"?' if near else ""


def _download(parsed: ModelReference, reference: str, hint: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            parsed.path, revision=parsed.revision, allow_patterns=HUB_FILES, ignore_patterns=HUB_IGNORED
        )
    except Exception as e:  # the hub client raises many kinds: HTTP, cache, validation, connection
        reason = _HUB_REASONS.get(type(e).__name__, f"{type(e).__name__}: {' '.join(str(e).split())[:200]}")
        raise SourceError(
            f'model "{reference}": no such folder{hint}; and not to be had from the Hugging Face hub: {reason}'
        ) from None
    return Path(folder)


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        what = "is an adapter, not a model" if (path / "adapter_config.json").is_file() else "has no config.json"
        raise SourceError(f"{path}: {what}; expected the folder of a Hugging Face checkpoint")
    config = _json(file)
    if not isinstance(config, dict):
        raise SourceError(f"{file}: expected a JSON object")
    return config


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise SourceError(f"{file}: not JSON ({e})") from None
    except OSError as e:
        raise SourceError(f"{file}: cannot be read ({e.strerror or e})") from None


def _files(path: Path) -> list[Path]:
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
    content = _json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(v, str) for v in names.values()):
        raise SourceError(f'{index}: expected a "weight_map" of tensor names to files')
    shards = list(dict.fromkeys(names.values()))
    for shard in shards:
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise SourceError(f'{index}: refused: "{shard}" is not the name of a safetensors file in this folder')
    return shards


def check_fit(sources: Mapping[str, Source] | Sequence[Source], *, layers: bool = True) -> None:
    """Check that models can be merged tensor by tensor.

    Args:
        layers: Whether layers are paired one to one, so that their number must agree (False: slices choose them).

    Raises:
        SourceError: every mismatch with the first model, in one message.
    """
    models = list(sources.values()) if isinstance(sources, Mapping) else list(sources)
    problems = [p for other in models[1:] for p in _mismatches(models[0], other, layers)]
    if problems:
        raise SourceError("the sources do not fit each other: " + "; ".join(problems))


def _mismatches(first: Source, other: Source, layers: bool) -> list[str]:
    who = f'"{other.reference}" does not fit "{first.reference}"'
    found: list[str] = []
    kinds = [s.config.get("model_type") for s in (first, other)]
    if kinds[0] != kinds[1] or first.architecture != other.architecture:
        found.append(f"{who}: architecture {other.architecture} against {first.architecture}; "
                     "models of different architecture can only be fused")  # fmt: skip
    for key, help_ in (
        ("hidden_size", "only models of one width can be merged"),
        ("vocab_size", "models with different vocabularies cannot be merged yet; use fine-tunes of one base"),
    ):
        a, b = first.text_config.get(key), other.text_config.get(key)
        if a != b:
            found.append(f"{who}: {key} {b} against {a}; {help_}")
    if layers and first.num_layers != other.num_layers:
        found.append(f"{who}: {other.num_layers} layers against {first.num_layers}; "
                     "use `slices:` with layer_range to choose which layers are paired")  # fmt: skip
    if found:
        return found
    a_tensors, b_tensors = (_comparable(s, layers) for s in (first, other))
    for name, shape in a_tensors.items():
        if name in b_tensors and b_tensors[name] != shape:
            found.append(f'{who}: tensor "{name}" has shape {list(b_tensors[name])} against {list(shape)}')
    for side, have, lack in (("lacks", a_tensors, b_tensors), ("has the extra", b_tensors, a_tensors)):
        names = [n for n in have if n not in lack]
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            found.append(f'{who}: {side} tensor "{names[0]}"{more}; use models saved alike')
    return found[:20]


def _comparable(source: Source, layers: bool) -> dict[str, tuple[int, ...]]:
    """Shapes by name; where layers are not paired, all layers of a model count as one."""
    shapes = {name: info.shape for name, info in source.merged_tensors.items() if info.is_float}
    if layers:
        return shapes
    return {re.sub(r"\.\d+\.", ".*.", name, count=1): shape for name, shape in shapes.items()}
