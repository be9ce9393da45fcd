"""Tiny real checkpoints of many families, made in milliseconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from evomerge import zoo

VOCABULARY = 134  # the zoo's tokenizer serves them all

Make = Callable[..., Path]


_TEXT = {"num_key_value_heads": 1}
_TWO = {"num_experts_per_tok": 2}
_VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip


_DEEPSEEK = {
    "num_key_value_heads": 2, "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 8,
    "kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "topk_method": "greedy", **_TWO,
}  # fmt: skip
# A family whose first layer is another than the rest.
UNEVEN = "deepseek_v2 with a dense layer"


def _shape(layers: int, tied: bool) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": layers,
        "num_attention_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": tied,
        "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip


def _gpt2(layers: int, tied: bool) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": layers, "n_head": 2, "n_positions": 64,
        "tie_word_embeddings": tied, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip


def _llava(layers: int, tied: bool) -> transformers.PreTrainedConfig:
    text = transformers.LlamaConfig(**_TEXT, **_shape(layers, tied))
    return transformers.LlavaConfig(
        text_config=text, vision_config=transformers.CLIPVisionConfig(projection_dim=16, **_VISION),
        image_token_index=5, tie_word_embeddings=tied, vision_feature_layer=-1,
    )  # fmt: skip


def _gemma3(layers: int, tied: bool) -> transformers.PreTrainedConfig:
    text = {"head_dim": 8, "sliding_window": 8, "layer_types": _turns(layers), **_TEXT, **_shape(layers, tied)}
    return transformers.Gemma3Config(
        text_config=text, vision_config=_VISION, mm_tokens_per_image=4, image_token_index=5, boi_token_index=6,
        eoi_token_index=7, tie_word_embeddings=tied,
    )  # fmt: skip


def _qwen2_vl(layers: int, tied: bool) -> transformers.PreTrainedConfig:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    return transformers.Qwen2VLConfig(
        text_config={"rope_parameters": rope, **_TEXT, **_shape(layers, tied)}, vision_config=vision,
        tie_word_embeddings=tied,
    )  # fmt: skip


def _turns(layers: int) -> list[str]:
    return [("full_attention", "sliding_attention")[i % 2] for i in range(layers)]


def _of(name: str, **more: Any) -> Callable[[int, bool], transformers.PreTrainedConfig]:
    """A configuration by its class's name, in the usual shape."""
    own = {"num_key_value_heads": 1, **more}
    own = {k: v for k, v in own.items() if k != "num_key_value_heads" or v is not None}
    return lambda layers, tied: getattr(transformers, name)(
        **{k: v(layers) if callable(v) else v for k, v in own.items()}, **_shape(layers, tied)
    )


# One tiny configuration for each family, from its number of layers and whether the head is tied.
CONFIGS: dict[str, Callable[[int, bool], transformers.PreTrainedConfig]] = {
    "llama": _of("LlamaConfig"),
    "mistral": _of("MistralConfig", head_dim=8, sliding_window=8),
    "qwen2": _of("Qwen2Config", use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen2 tied": _of("Qwen2Config"),
    "qwen3": _of("Qwen3Config", head_dim=8),
    "gemma2": _of("Gemma2Config", head_dim=8, sliding_window=8),
    "gemma3_text": _of("Gemma3TextConfig", head_dim=8, sliding_window=8, layer_types=_turns),
    "gemma3": _gemma3,
    "phi3": _of("Phi3Config"),
    "gpt2": lambda layers, tied: transformers.GPT2Config(**_gpt2(layers, tied)),
    "gpt_neox": _of("GPTNeoXConfig", num_key_value_heads=None),
    "falcon": _of("FalconConfig", num_key_value_heads=None, bias=True),
    "falcon new": _of("FalconConfig", num_key_value_heads=None, new_decoder_architecture=True, num_kv_heads=1),
    "olmo2": _of("Olmo2Config"),
    "mixtral": _of("MixtralConfig", num_local_experts=3),
    "qwen2_moe": _of(
        "Qwen2MoeConfig", num_experts=3, **_TWO, moe_intermediate_size=8, shared_expert_intermediate_size=12
    ),
    "qwen3_moe": _of("Qwen3MoeConfig", num_experts=4, **_TWO, moe_intermediate_size=8, head_dim=8),
    "olmoe": _of("OlmoeConfig", num_experts=4, **_TWO),
    "deepseek_v2": _of("DeepseekV2Config", first_k_dense_replace=0, **_DEEPSEEK),
    UNEVEN: _of("DeepseekV2Config", first_k_dense_replace=1, **_DEEPSEEK),
    "gpt_oss": _of("GptOssConfig", num_local_experts=4, **_TWO, head_dim=8, layer_types=_turns, sliding_window=8),
    "granitemoe": _of("GraniteMoeConfig", num_local_experts=4, **_TWO),
    "cohere2": _of("Cohere2Config", sliding_window=8, layer_types=_turns),
    "granite": _of("GraniteConfig"),
    "phi": _of("PhiConfig"),
    "starcoder2": _of("Starcoder2Config"),
    "stablelm": _of("StableLmConfig"),
    "smollm3": _of("SmolLM3Config"),
    "opt": _of("OPTConfig", num_key_value_heads=None, ffn_dim=24, word_embed_proj_dim=16),
    "bloom": _of("BloomConfig", num_key_value_heads=None),
    "llava": _llava,
    "qwen2_vl": _qwen2_vl,
}  # fmt: skip
# Those that the merge engine promises; the others show that it needs no list.
PROMISED = (
    "llama", "mistral", "qwen2", "qwen2 tied", "qwen3", "gemma2", "gemma3_text", "gemma3", "phi3", "gpt2", "gpt_neox",
    "falcon", "falcon new", "olmo2", "mixtral", "llava",
)  # fmt: skip
COMPOSITE = ("gemma3", "llava", "qwen2_vl")
# Families whose head is the embedding unless they are told otherwise.
TIED = ("gpt2", "qwen2 tied", "gemma2", "gemma3_text", "gemma3", "falcon", "falcon new", "bloom", "opt", "cohere2")


@dataclass(frozen=True)
class Kind:
    """A family.

    Attributes:
        name: In CONFIGS.
        tied: Whether the head is the embedding.
        composite: Whether it has an image encoder too.
    """

    name: str
    tied: bool
    composite: bool

    @property
    def loader(self) -> Any:
        """transformers' class for it."""
        return transformers.AutoModelForImageTextToText if self.composite else transformers.AutoModelForCausalLM


@pytest.fixture(scope="session")
def kinds() -> Callable[[str], Kind]:
    """kinds(name): one family."""
    return lambda name: Kind(name, name in TIED, name in COMPOSITE)


@pytest.fixture(params=CONFIGS)
def kind(request: pytest.FixtureRequest, kinds: Callable[[str], Kind]) -> Kind:
    """Every family in turn."""
    return kinds(request.param)


@pytest.fixture(params=[name for name in CONFIGS if name != UNEVEN])
def even(request: pytest.FixtureRequest, kinds: Callable[[str], Kind]) -> Kind:
    """Each of those whose layers can change places."""
    return kinds(request.param)


@pytest.fixture(params=PROMISED)
def promised(request: pytest.FixtureRequest, kinds: Callable[[str], Kind]) -> Kind:
    """Each of those that are tried in every way."""
    return kinds(request.param)


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make(kind, seed, layers, tied, dtype, near): the folder of a fresh checkpoint of a family in CONFIGS.

    With `near`, another checkpoint's folder, the weights are that one's plus a little noise: a "fine-tune".
    """
    root = tmp_path_factory.mktemp("checkpoints")

    def build(
        kind: str = "llama",
        seed: int = 0,
        layers: int = 3,
        tied: bool = False,
        dtype: torch.dtype = torch.float32,
        near: Path | None = None,
    ) -> Path:
        folder = (
            root / f"{kind.replace(' ', '_')}-{seed}-{layers}-{tied}-{str(dtype)[6:]}-{near.name if near else 'fresh'}"
        )
        if folder.exists():
            return folder
        generator = torch.Generator().manual_seed(seed)
        loader = transformers.AutoModelForImageTextToText if kind in COMPOSITE else transformers.AutoModelForCausalLM
        model = loader.from_config(CONFIGS[kind](layers, tied))
        start = {}
        if near:
            other = loader.from_pretrained(near, dtype=torch.float32)
            start = dict(other.named_parameters())
        with torch.no_grad():
            for name, p in model.named_parameters():
                noise = torch.randn(p.shape, generator=generator)
                p.copy_(start[name] + 0.05 * noise if near else 0.3 * noise + (1.0 if "norm" in name else 0.0))
        model.to(dtype).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(zoo.path("base") / file, folder / file)
        return folder

    return build


@pytest.fixture(scope="session")
def family(make: Make) -> tuple[str, str, str]:
    """A base and two fine-tunes of it, in bfloat16: their folders, as recipes name them."""
    base = make(seed=0, dtype=torch.bfloat16)
    return str(base), *(str(make(seed=s, dtype=torch.bfloat16, near=base)) for s in (1, 2))  # type: ignore[return-value]


@pytest.fixture(scope="session")
def exact_family(make: Make) -> tuple[str, str, str]:
    """The same in float32: no two elements of a task vector are equal."""
    base = make(seed=0)
    return str(base), *(str(make(seed=s, near=base)) for s in (1, 2))  # type: ignore[return-value]
