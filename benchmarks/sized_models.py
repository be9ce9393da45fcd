"""Models of llama's shape in any size, random and in bfloat16, written in seconds: for benchmarks and for tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

HEAD = 64
# Values repeat after so many elements: no tensor's size divides it, so that rows differ.
PERIOD = (1 << 24) + 7919


def shapes(
    hidden: int, inner: int, layers: int, vocabulary: int, key_values: int | None = None
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of the shape, heads tied to nothing; keys and values of so many heads, or of all."""
    small = HEAD * key_values if key_values else hidden
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for i in range(layers):
        for name, shape in (
            ("input_layernorm", (hidden,)), ("self_attn.q_proj", (hidden, hidden)),
            ("self_attn.k_proj", (small, hidden)), ("self_attn.v_proj", (small, hidden)),
            ("self_attn.o_proj", (hidden, hidden)), ("post_attention_layernorm", (hidden,)),
            ("mlp.gate_proj", (inner, hidden)), ("mlp.up_proj", (inner, hidden)), ("mlp.down_proj", (hidden, inner)),
        ):  # fmt: skip
            yield f"model.layers.{i}.{name}.weight", shape
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def write_models(
    folder: Path, *, hidden: int, inner: int, layers: int, vocabulary: int, key_values: int | None = None
) -> int:
    """Folders BASE, A and B, A and B being BASE with noise of a twentieth of its size; gives the bytes of each."""
    import torch
    from safetensors import safe_open

    from evomerge.header import ITEM_SIZES
    from evomerge.merging.outline import layout
    from evomerge.merging.plan import TensorPlan

    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(PERIOD, generator=generator)
    listed = shapes(hidden, inner, layers, vocabulary, key_values)
    tensors = [TensorPlan(name, (), None, {}, shape, "BF16") for name, shape in listed]
    header, _ = layout(tensors)
    size = sum(t.elements for t in tensors) * ITEM_SIZES["BF16"]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": hidden // HEAD,
        "num_key_value_heads": key_values or hidden // HEAD, "vocab_size": vocabulary, "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5, "hidden_act": "silu",
    }  # fmt: skip
    for name in ("BASE", "A", "B"):
        values = base if name == "BASE" else base + 0.001 * torch.randn(PERIOD, generator=generator)
        block = values.bfloat16().view(torch.uint8).numpy().tobytes()
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        with (folder / name / "model.safetensors").open("wb") as f:
            f.write(header)
            for start in range(0, size, len(block)):
                f.write(block[: size - start])
    with safe_open(folder / "B" / "model.safetensors", "pt") as f:  # the library agrees that it is one
        assert len(f.keys()) == len(tensors)
    return size
