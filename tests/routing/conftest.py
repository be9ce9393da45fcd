"""Tiny random checkpoints with two or three sources of each family, and paths over them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import Tensor

from evomerge import zoo
from evomerge.merging.engine import Engine
from evomerge.recipe import Path
from evomerge.routing import Router
from evomerge.sources import Source, open_sources, writers

LAYERS = 4
SHAPE = {
    "vocab_size": 134, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 1,
    "pad_token_id": 0,
}  # fmt: skip
GQA = {"num_key_value_heads": 2}
# Families with biases wherever they can have some.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**GQA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "mistral": ("MistralConfig", {**GQA, "sliding_window": 16, "tie_word_embeddings": False}),
    # Every other layer with a window: a layer keeps its kind of attention wherever it goes.
    "qwen2": ("Qwen2Config", {
        **GQA, "use_sliding_window": True, "sliding_window": 16, "tie_word_embeddings": False,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
    }),
    "qwen2 tied": ("Qwen2Config", {**GQA, "tie_word_embeddings": True}),
    "gpt_neox": ("GPTNeoXConfig", {"tie_word_embeddings": False}),
    "gpt2": ("GPT2Config", {
        "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 256, "vocab_size": 134, "bos_token_id": None,
        "eos_token_id": 1, "pad_token_id": 0,
    }),
}  # fmt: skip

Make = Callable[..., str]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make(kind, seed, **settings): the folder of a random checkpoint; `name` where two of one kind differ."""
    root = tmp_path_factory.mktemp("routing")

    def build(kind: str = "llama", seed: int = 1, name: str = "", **settings: Any) -> str:
        folder = root / f"{kind.replace(' ', '_')}-{seed}{name}"
        if folder.exists():
            return str(folder)
        config_class, own = CONFIGS[kind]
        common = {} if config_class == "GPT2Config" else SHAPE
        config = getattr(transformers, config_class)(**{**common, **own, **settings})
        model = transformers.AutoModelForCausalLM.from_config(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter, p in model.named_parameters():
                is_norm = parameter.endswith("weight") and ("norm" in parameter or "ln_" in parameter)
                p.copy_(0.25 * torch.randn(p.shape, generator=generator) + is_norm)
        model.save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(zoo.path("base") / file, folder / file)
        return str(folder)

    return build


@dataclass(frozen=True)
class Pair:
    """Two sources of one family.

    Attributes:
        a, b: Their references.
    """

    kind: str
    a: str
    b: str
    sources: dict[str, Source]

    @property
    def filters(self) -> tuple[str, ...]:
        return writers(self.sources[self.a]).filters

    def router(self, **options: Any) -> Router:
        return Router(self.sources, **{"dtype": torch.float32, **options})

    def identity(self, model: str) -> Path:
        return Path.scaled([(model, i) for i in range(LAYERS)])

    def paths(self) -> dict[str, Path]:
        """Paths of every sort."""
        a, b = self.a, self.b
        plain = [(a, i) for i in range(LAYERS)]
        return {
            "repeats": Path.scaled([(a, i) for i in (0, 1, 1, 1, 2, 3, 3)], [1, 1, 0.8, 0.8, 1.3, 1, 0.9]),
            "skips": Path.scaled([(a, 0), (a, 3)], [1.6, 0.5]),
            "swaps": Path.scaled([(a, 0), (b, 1), (a, 2), (b, 3)], [1.0, 0.7, 1.5, 1.1]),
            "backwards": Path.scaled([*plain, (b, 3), (b, 0)], [0.5, 1.6, 0.9, 1, 1.2, 0.75]),
            "other ends": Path.scaled([(a, 0), (b, 1), (b, 2)], [1.2, 0.6, 1.1], embeddings=b, head=a),
            "strange ends": Path.scaled([(b, 2), (a, 1)], embeddings=a, head=a),
        }  # fmt: skip

    def folded(self, path: Path, out: Folder) -> Any:
        """The path's checkpoint, written by the engine and loaded by transformers alone."""
        Engine(self.sources).write(path.recipe(self.filters), out)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            out, dtype=torch.float32, output_loading_info=True
        )
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        return model.eval()

    def tensor(self, model: str, name: str) -> Tensor:
        """A stored tensor."""
        with safe_open(f"{model}/model.safetensors", "pt") as file:
            return file.get_tensor(name)


@pytest.fixture(params=["llama", "mistral", "qwen2", "gpt_neox"])
def pair(request: pytest.FixtureRequest, make: Make) -> Pair:
    """Two sources of each of the families that issue 4 names."""
    return pair_of(request.param, make)


@pytest.fixture(params=[*CONFIGS])
def any_pair(request: pytest.FixtureRequest, make: Make) -> Pair:
    """Those, and families with a tied head and with positions in the embeddings."""
    return pair_of(request.param, make)


@pytest.fixture
def llama(make: Make) -> Pair:
    return pair_of("llama", make)


def pair_of(kind: str, make: Make) -> Pair:
    a, b = make(kind, 1), make(kind, 2)
    return Pair(kind, a, b, open_sources([a, b]))


@pytest.fixture
def tokens() -> Tensor:
    """Three sequences of twelve."""
    return torch.randint(3, 130, (3, 12), generator=torch.Generator().manual_seed(7))


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield
