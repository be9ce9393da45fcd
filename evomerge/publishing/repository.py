"""What a repository of the hub's holds already: whose model it is, and what of it must go when another one comes."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.merging.small_files import GENERATION, PROCESSORS
from evomerge.merging.tokens.files import FILES as TOKENIZER_FILES
from evomerge.sources import INDEX, SINGLE
from evomerge.sources.cards import README

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RECIPE = "recipe.yaml"
# What goes up beside the weights, where it is there: a checkpoint's own files.
OWN = ("config.json", GENERATION, *TOKENIZER_FILES, *PROCESSORS, RECIPE, "path.png")
# Written by hand, or asked by a licence to be passed on: put there, never taken away.
KEPT = (README, "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "NOTICE.md")
# By these a model in the root of a repository is known.
_WEIGHTS = (
    ".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".npz",
    ".safetensors.index.json", ".bin.index.json",
)  # fmt: skip
_CONFIGURATIONS = {"config.json", "adapter_config.json", "params.json", "model_index.json"}
# Weights of an earlier push that this one does not replace would be loaded in its place, or lie there for nothing.
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
# Of another's model what transformers would load in place of, or on top of, the one that is pushed.
_IN_THE_WAY = re.compile(
    r"adapter_config\.json|adapter_model\.(?:safetensors|bin)|pytorch_model(?:-\d+-of-\d+)?\.bin(?:\.index\.json)?"
)
_SHOWN = 4  # files that a message names


def model_files(files: Iterable[str]) -> list[str]:
    """Files in the root of a repository that are a model's, configurations first."""
    root = sorted(name for name in files if "/" not in name)
    configurations = [name for name in root if name in _CONFIGURATIONS]
    return configurations + [name for name in root if name.endswith(_WEIGHTS) and name not in configurations]


def shown(files: Sequence[str]) -> str:
    """Names for a message: the first few, and how many there are."""
    more = [f"{len(files) - _SHOWN} more"] if len(files) > _SHOWN else []
    return ", ".join([*files[:_SHOWN], *more])


def made_by_evomerge(api: HfApi, repo: str, files: Iterable[str], branch: str | None) -> bool:
    """Whether a repository's recipe or card says that evomerge made what is there.

    Args:
        files: What the branch has.

    Raises:
        Exception: whatever the hub's client raises.
    """
    there = set(files)
    with tempfile.TemporaryDirectory(prefix="evomerge-") as scratch:
        for name, says in ((RECIPE, _recipe_says), (README, _card_says)):
            if name in there and says(Path(api.hf_hub_download(repo, name, revision=branch, local_dir=scratch))):
                return True
    return False


def _recipe_says(file: Path) -> bool:
    """Whether it has an `evomerge:` section; of a chain, in any step. Recipes of other versions count too."""
    import yaml

    try:
        documents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    except (ValueError, yaml.YAMLError):
        return False
    return any(isinstance(d, dict) and isinstance(d.get("evomerge"), dict) for d in documents)


def _card_says(file: Path) -> bool:
    import yaml
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        tags = card.data.get("tags")
    except (ValueError, TypeError, AttributeError, yaml.YAMLError):  # YAML that is no card's
        return False
    return isinstance(tags, list) and "evomerge" in tags


def stale(files: Iterable[str], pushed: Iterable[str], *, replace: bool) -> list[str]:
    """What goes from a repository with a push: files of an earlier checkpoint that this one lacks.

    What lies in folders, the card, licences and everything that is no checkpoint's stays.

    Args:
        files: What the branch has.
        pushed: What is uploaded.
        replace: Whether it may be another's model that was there.
    """
    new = set(pushed)
    old = [name for name in files if "/" not in name and name not in new]
    return [
        name
        for name in old
        if name in (SINGLE, INDEX, *OWN) or _SHARD.fullmatch(name) or (replace and _IN_THE_WAY.fullmatch(name))
    ]
