"""PEFT's adapter folders: adapter_config.json and the names in adapter_model.safetensors, or why one is refused.

Only what can be written as W + s B A, and whole tensors in the place of others, can be merged into a plain checkpoint
without computing on the model; everything else is refused by its name (read in PEFT 0.21: tuners/lora/config.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import SourceError, nearest
from evomerge.header import TensorInfo, read_header
from evomerge.sources.adapter import CONFIG, WEIGHTS, Adapter, Update
from evomerge.sources.files import has_same_bytes, read_json
from evomerge.sources.folder import Folder
from evomerge.sources.hub import fetch
from evomerge.sources.source import HEADS, Source

_PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?P<weight>\.weight)?")
_HOW = (
    "merge the adapter into its model first (peft: model.merge_and_unload().save_pretrained(FOLDER)), name the result"
)
# Settings under which the adapter is more than W + s B A, and what they are called.
_VARIANTS = {
    "use_dora": "DoRA (weights decomposed into magnitude and direction)",
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "an activated LoRA, which acts on some tokens only and cannot be merged into weights",
    "trainable_token_indices": "trained token embeddings (trainable_token_indices)",
    "layer_replication": "layers replicated by the adapter (layer_replication)",
    "lora_bias": "biases of the adapter itself (lora_bias)",
    "monteclora_config": "MonteCLoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "target_parameters": "an adapter on bare parameters such as fused experts (target_parameters)",
}
# Initialisations that also change the model's own weights, so that the adapter belongs to changed ones.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def open_adapter(reference: str, folder: Folder, model: Source) -> Adapter:
    """Read an adapter's configuration and headers, and find the model's tensors that it changes.

    Args:
        reference: How it was named.
        folder: Where it lies; on the hub its weights are asked for once its configuration is found to be in order.
        model: The model that it is put on.

    Raises:
        SourceError: every problem, on one line.
    """
    path = folder.path
    config = _config(path)
    folder.bring(WEIGHTS)
    weights = path / WEIGHTS
    if not weights.is_file():
        if "adapter_model.bin" in folder.names:
            raise SourceError(
                f"{path}: has only adapter_model.bin, a pickle file, which can run code when it is read: refused; "
                "save the adapter again with a current peft, where you trust it"
            )
        raise SourceError(f"{path}: has no {WEIGHTS}")
    found = _Matcher(config, read_header(weights), model)
    if found.problems:
        trained = config.get("base_model_name_or_path")
        hint = f'; it was trained on "{trained}"' if isinstance(trained, str) and trained else ""
        shown = found.problems[:8] + ([f"and {len(found.problems) - 8} more"] if len(found.problems) > 8 else [])
        raise SourceError(f'adapter {path} does not fit "{model.reference}"{hint}: ' + "; ".join(shown))
    if not found.updates and not found.replaced:
        raise SourceError(f"{weights}: holds no tensor of an adapter")
    return Adapter(
        reference, path, folder.local, model, dict(sorted(found.updates.items())), dict(sorted(found.replaced.items()))
    )


def _config(path: Path) -> dict[str, Any]:
    """adapter_config.json of a plain LoRA.

    Raises:
        SourceError: it is missing or damaged, or describes an adapter that is refused, with the reason.
    """
    file = path / CONFIG
    if not file.is_file():
        what = "is a model, not an adapter" if (path / "config.json").is_file() else f"has no {CONFIG}"
        raise SourceError(f"{path}: {what}; expected the folder of a PEFT adapter after the +")
    config = read_json(file)
    if not isinstance(config, dict):
        raise SourceError(f"{file}: expected a JSON object")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise SourceError(f'{file}: peft_type is "{kind}"; only LORA adapters can be used as task vectors; {_HOW}')
    variants = [words for key, words in _VARIANTS.items() if config.get(key)]
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_CHANGED_BASE):
        variants.append(f'init_lora_weights "{start}", which changes the model\'s own weights too')
    if variants:
        raise SourceError(f"{file}: {', '.join(variants)}: not supported; {_HOW}")
    wrong = [key for key in ("r", "lora_alpha") if not _positive(config.get(key))]
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict) or not all(_positive(v) and _is_pattern(k) for k, v in patterns.items()):
            wrong.append(key)
    if wrong:
        values = ", ".join(f"{key} = {config.get(key)!r}"[:80] for key in wrong)
        raise SourceError(f"{file}: {values}: expected positive numbers (patterns: of module names to such)")
    return config


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_pattern(text: Any) -> bool:
    # A pattern comes from a file that may be a stranger's, and one that repeats a repetition can be matched for hours.
    if (
        not isinstance(text, str)
        or len(text) > 300
        or re.search(r"\)[*+{]", text)
        or len(re.findall("[*+{]", text)) > 3
    ):
        return False
    try:
        re.compile(text)
    except re.error:
        return False
    return True


class _Matcher:
    """Finds for each tensor of an adapter the tensor of the model that it is meant for."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], model: Source) -> None:
        self.config = config
        self.model = model
        self.updates: dict[str, Update] = {}
        self.replaced: dict[str, TensorInfo] = {}
        self.problems: list[str] = []
        self._by_words: dict[tuple[str, ...], list[str]] = {}
        self._by_rest: dict[str, list[str]] = {}
        for name in model.tensors:
            self._by_words.setdefault(tuple(sorted(name.split("."))), []).append(name)
            self._by_rest.setdefault(name.partition(".")[2], []).append(name)
        pairs: dict[tuple[str, bool], dict[str, TensorInfo]] = {}
        for name, info in sorted(tensors.items()):
            bare = name.removeprefix(_PREFIX)
            lora = _LORA.fullmatch(bare)
            if lora and bool(lora["kind"]) != bool(lora["weight"]):
                pairs.setdefault((lora["module"], bool(lora["kind"])), {})[lora["side"]] = info
            elif ".lora_" in bare:
                self.problems.append(f'"{name}" is a kind of adapter tensor that is not supported; {_HOW}')
            else:
                self._replace(name, re.sub(r"\.(base_layer|original_module|modules_to_save)\.", ".", bare), info)
        for (module, embedding), sides in pairs.items():
            self._update(module, embedding, sides)
        both = [n for n in self.replaced if n in self.updates]
        if both:
            fetch([model])
        for name in both:
            # peft writes an embedding that it adapts once more, as it was: the model's own, where it is the same.
            if has_same_bytes(self.replaced[name], model.tensors[name]):
                del self.replaced[name]
        self._heads()

    def _update(self, module: str, embedding: bool, sides: Mapping[str, TensorInfo]) -> None:
        target = self._target(f"{module}.weight")
        if target is None:
            return
        if sides.keys() != {"A", "B"}:
            self.problems.append(f'"{module}" has lora_{next(iter(sides))} only, expected lora_A and lora_B')
            return
        if target in HEADS and self.model.tied:
            self._refuse_head(target)
            return
        a, b, info = sides["A"], sides["B"], self.model.tensors[target]
        shapes = f"lora_A {list(a.shape)} and lora_B {list(b.shape)}"
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
            self.problems.append(f'"{module}": {shapes} are no pair of thin matrices')
            return
        if not (a.is_float and b.is_float and info.is_float):
            self.problems.append(f'"{module}": {a.dtype}, {b.dtype} on {info.dtype}, expected floating-point types')
            return
        straight, across = (b.shape[0], a.shape[1]), (a.shape[1], b.shape[0])
        if info.shape not in (straight, across):
            self.problems.append(f'"{target}" has shape {list(info.shape)}, {shapes} do not multiply to it')
            return
        # A layer that stores [in, out] shows by its shape; a square one by what PEFT noted.
        transposed = info.shape != straight if straight != across else bool(self.config.get("fan_in_fan_out"))
        rank = a.shape[0]
        wanted = self._pattern("rank_pattern", "r", module)
        if wanted != rank:
            self.problems.append(f'"{module}" has rank {rank}, {CONFIG} says {wanted:g}')
            return
        alpha = self._pattern("alpha_pattern", "lora_alpha", module)
        scale = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        if target in self.updates:
            self.problems.append(f'"{target}" is adapted twice')
        self.updates[target] = Update(a, b, scale, transposed or embedding)

    def _pattern(self, key: str, default: str, module: str) -> float:
        """A setting of one module: the first pattern that matches the end of its name, else that of the adapter."""
        for pattern, value in (self.config.get(key) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return float(value)
        return float(self.config[default])

    def _replace(self, given: str, name: str, info: TensorInfo) -> None:
        target = self._target(name)
        if target is None:
            return
        own = self.model.tensors.get(target)
        if own is not None and own.shape != info.shape:
            shapes = f"{list(info.shape)} against {list(own.shape)}"
            resized = ": its vocabulary was changed" if own.shape[1:] == info.shape[1:] and own.shape else ""
            self.problems.append(f'"{given}" has another shape than the model\'s tensor, {shapes}{resized}; {_HOW}')
        elif target in self.replaced:
            self.problems.append(f'"{target}" is brought twice')
        else:
            self.replaced[target] = info

    def _heads(self) -> None:
        """A head of its own cannot be kept where the model ties it to the embedding."""
        if not self.model.tied:
            return
        for head in HEADS:
            brought = self.replaced.get(head)
            if brought and any(has_same_bytes(brought, x) for n, x in self.replaced.items() if n not in HEADS):
                del self.replaced[head]
            elif brought:
                self._refuse_head(head)

    def _refuse_head(self, head: str) -> None:
        self.problems.append(
            f'"{head}": the model ties its output head to the embedding, and the adapter has a head of its own; save '
            "the model untied with the adapter merged into it, and name that folder"
        )

    def _target(self, name: str) -> str | None:
        """The model's tensor of that name in the live model; names in files may lack a prefix or order it otherwise.

        A GPT-2 saved without `transformer.`; `language_model.model.layers` for `model.language_model.layers`.
        """
        tensors = self.model.tensors
        if name in tensors or (name in HEADS and self.model.tied):
            return name
        choices = [n for n in (name.partition(".")[2],) if n in tensors]
        choices += self._by_rest.get(name, []) + self._by_words.get(tuple(sorted(name.split("."))), [])
        if len(set(choices)) == 1:
            return choices[0]
        near = nearest(name, list(tensors))
        hint = f' (nearest: "{near}")' if near else ""
        self.problems.append(f'the model has no tensor "{name}"{hint}')
        return None
