"""Checkpoints of llama shape of any size, written in seconds, and the private memory of a process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from evomerge.header import ITEM_SIZES
from evomerge.merging.outline import layout
from evomerge.merging.plan import TensorPlan

# Values repeat after so many elements: no tensor's size divides it, so that rows differ.
PERIOD = (1 << 24) + 7919


def shapes(hidden: int, inner: int, layers: int, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of the llama shape, heads tied to nothing."""
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for i in range(layers):
        for name, shape in (
            ("input_layernorm", (hidden,)), ("self_attn.q_proj", (hidden, hidden)),
            ("self_attn.k_proj", (hidden, hidden)), ("self_attn.v_proj", (hidden, hidden)),
            ("self_attn.o_proj", (hidden, hidden)), ("post_attention_layernorm", (hidden,)),
            ("mlp.gate_proj", (inner, hidden)), ("mlp.up_proj", (inner, hidden)), ("mlp.down_proj", (hidden, inner)),
        ):  # fmt: skip
            yield f"model.layers.{i}.{name}.weight", shape
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def write_models(folder: Path, *, hidden: int, inner: int, layers: int, vocabulary: int) -> int:
    """Folders BASE, A and B in bfloat16, A and B near BASE; gives the bytes of the tensors of each."""
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(PERIOD, generator=generator)
    listed = shapes(hidden, inner, layers, vocabulary)
    tensors = [TensorPlan(name, (), None, {}, shape, "BF16") for name, shape in listed]
    header, _ = layout(tensors)
    size = sum(t.elements for t in tensors) * ITEM_SIZES["BF16"]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64, "vocab_size": vocabulary, "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5, "hidden_act": "silu",
    }  # fmt: skip
    for name in ("BASE", "A", "B"):
        values = base if name == "BASE" else base + 0.001 * torch.randn(PERIOD, generator=generator)
        block = values.bfloat16().view(torch.uint8).numpy().tobytes()
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        with (folder / name / "model.safetensors").open("wb") as f:
            f.write(header)
            for start in range(0, size, len(block)):
                f.write(block[: size - start])
    with safe_open(folder / "B" / "model.safetensors", "pt") as f:  # the library agrees that it is one
        assert len(f.keys()) == len(tensors)
    return size


def recipe(folder: Path, method: str) -> Path:
    """A recipe over those models, by its method's name."""
    models = "models: [{model: A}, {model: B}]"
    weighed = "models: [{model: A, parameters: {weight: 0.6}}, {model: B, parameters: {weight: 0.5}}]"
    texts = {
        "linear": weighed,
        "slerp": "base_model: A\nmodels: [{model: B}]\nparameters: {t: 0.4}",
        "ties": f"base_model: BASE\n{weighed}\nparameters: {{density: 0.4}}",
        "dare_ties": f"base_model: BASE\n{weighed}\nparameters: {{density: 0.4}}",
        "della": f"base_model: BASE\n{weighed}\nparameters: {{density: 0.5, epsilon: 0.1}}",
        "sce": f"base_model: BASE\n{models}\nparameters: {{select_topk: 0.3}}",
        "model_stock": f"base_model: BASE\n{models}",
        "tsv": f"base_model: BASE\n{models}",
    }
    file = folder / f"{method}.yaml"
    file.write_text(f"merge_method: {method}\n{texts[method]}\n")
    return file


def command(file: Path, out: Path, *options: str) -> list[str]:
    """The command line that merges."""
    return [sys.executable, "-m", "evomerge", "merge", str(file), str(out), *options]


def peak_memory(words: list[str]) -> int:
    """Run a process to its end; its largest private memory (RssAnon, bytes), looked at every 5 ms."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            peak = max(peak, *(1024 * int(line.split()[1]) for line in status.splitlines() if "RssAnon" in line), 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    done.set()
    watcher.join()
    assert process.returncode == 0, errors
    return peak
