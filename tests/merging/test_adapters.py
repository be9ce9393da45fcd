"""LoRA adapters as sources (`model+adapter`): peft's own merge is the oracle, float64 NumPy the second one."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from evomerge import zoo
from evomerge.errors import InputError, SourceError
from evomerge.header import TensorInfo
from evomerge.merging import adapters
from evomerge.merging.engine import Engine
from evomerge.merging.group import Group
from evomerge.merging.live import live_model
from evomerge.merging.mapped import MappedFiles
from evomerge.merging.operand import LowRank, Stored
from evomerge.recipe import parse_recipe
from evomerge.sources import Source, open_source, open_sources

ATTENTION = ["q_proj", "v_proj"]
Lora = Callable[..., Path]


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2, whose layers are Conv1D: weights are stored as [in, out]."""
    folder = tmp_path_factory.mktemp("gpt2") / "model"
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Lora:
    """lora(model, seed, **LoraConfig): the folder of an adapter as peft saves it, every trained tensor random."""

    def build(model: Path, seed: int = 0, **config: Any) -> Path:
        live = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        adapted = peft.get_peft_model(live, peft.LoraConfig(**{"r": 4, "target_modules": ATTENTION} | config))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in adapted.parameters():
                if p.requires_grad:
                    p.add_(torch.randn(p.shape, generator=generator) * 0.1)
        folder = tmp_path_factory.mktemp("lora") / f"adapter{seed}"
        adapted.save_pretrained(folder)
        return folder

    return build


def merged_by_peft(model: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The live model's weights with the adapter merged in, in float64."""
    live = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    adapted = peft.PeftModel.from_pretrained(live, adapter, autocast_adapter_dtype=False)
    return {name: p.detach().double() for name, p in adapted.merge_and_unload().state_dict().items()}


def deltas(source: Source) -> dict[str, torch.Tensor]:
    """The task vector of each tensor that an adapter changes, against its own model, as merge methods see it."""
    assert source.adapter is not None
    files = MappedFiles()
    found = {}
    for name in source.tensors:
        own = adapters.operand(source, name, files.tensor)
        group = Group([own], adapters.operand(source.adapter.model, name, files.tensor))
        found[name] = group.delta(0, 0, group.elements).reshape(group.shape)
    return found


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"lora_alpha": 48, "r": 3},
    "patterns": {
        "target_modules": ["q_proj", "k_proj", "down_proj", "up_proj"],
        "rank_pattern": {"k_proj": 2, r"model\.layers\.[12]\.mlp\.down_proj": 6},
        "alpha_pattern": {"layers.0.self_attn.k_proj": 5, "up_proj": 32},
    },
    "rslora": {"use_rslora": True, "r": 8, "rank_pattern": {"v_proj": 2}},
    "square": {"target_modules": ["q_proj", "o_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "modules_to_save": {"modules_to_save": ["lm_head", "norm"]},
    "embeddings saved": {"modules_to_save": ["embed_tokens"], "target_modules": "all-linear"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_it_is_what_peft_merges(make: Callable[..., Path], lora: Lora, case: str) -> None:
    model = make(seed=0)
    check_against_peft(model, lora(model, **CASES[case]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases(make: Callable[..., Path], lora: Lora, bias: str) -> None:
    model = make("qwen2", seed=0)
    source = check_against_peft(model, lora(model, bias=bias))
    assert source.adapter is not None
    assert sum(n.endswith("q_proj.bias") for n in source.adapter.replaced) == 3
    assert any(n.endswith("k_proj.bias") for n in source.adapter.replaced) == (bias == "all")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["c_attn", "c_fc"]},
        {"target_modules": ["c_proj"]},  # square in the attention: only fan_in_fan_out tells
        {"target_modules": ["wte", "wpe", "c_attn"]},
    ],
)
@pytest.mark.parametrize("prefixed", [True, False])
def test_conv1d(gpt2: Path, lora: Lora, tmp_path: Path, config: dict[str, Any], prefixed: bool) -> None:
    adapter = lora(gpt2, **config)
    if not prefixed:  # as the first GPT-2 checkpoints were saved
        bare = Path(shutil.copytree(gpt2, tmp_path / "bare"))
        tensors = load_file(gpt2 / "model.safetensors")
        save_file({n.removeprefix("transformer."): t for n, t in tensors.items()}, bare / "model.safetensors")
        gpt2 = bare
    source = check_against_peft(gpt2, adapter, "" if prefixed else "transformer.")
    assert source.adapter is not None and all(u.transposed for u in source.adapter.updates.values())


@pytest.mark.filterwarnings("ignore")
def test_a_tied_embedding(make: Callable[..., Path], lora: Lora) -> None:
    model = make(seed=0, tied=True)
    source = check_against_peft(model, lora(model, target_modules=["embed_tokens", "q_proj"]))
    assert "lm_head.weight" not in source.tensors
    check_against_peft(model, lora(model, modules_to_save=["embed_tokens"], ensure_weight_tying=True))


def check_against_peft(model: Path, adapter: Path, prefix: str = "") -> Source:
    source = open_source(f"{model}+{adapter}")
    assert source.adapter is not None and source.adapter.updates
    original = load_file(model / "model.safetensors")
    expected = merged_by_peft(model, adapter)
    found = deltas(source)
    changed = []
    for name, tensor in original.items():
        there = expected.get(prefix + name, expected.get(name))
        assert there is not None
        delta = there - tensor.double()
        error = float((found[name].double() - delta).abs().max())
        assert error <= 1e-6 * float(delta.abs().max()), name
        if float(delta.abs().max()):
            changed.append(name)
    assert sorted(changed) == sorted({**source.adapter.updates, **source.adapter.replaced})
    return source


# ---- merges over adapters


@pytest.fixture(scope="module")
def three(make: Callable[..., Path], lora: Lora) -> tuple[Path, list[Path]]:
    """A model and adapters of ranks 2, 4 and 8 on it, on different layers."""
    model = make(seed=0)
    targets = (["q_proj", "v_proj"], ["q_proj", "down_proj"], ["q_proj", "v_proj", "up_proj"])
    return model, [lora(model, seed=r, r=r, lora_alpha=3 * r + 1, target_modules=t)
                   for r, t in zip((2, 4, 8), targets, strict=True)]  # fmt: skip


WEIGHTS = (0.7, -0.4, 1.2)


def recipe_text(method: str, model: Path, adapters_: list[Path], weights: tuple[float, ...] = WEIGHTS) -> str:
    entries = [{"model": f"{model}+{a}", "parameters": {"weight": w}} for a, w in zip(adapters_, weights, strict=True)]
    data: dict[str, Any] = {"merge_method": method, "models": entries, "dtype": "float32"}
    if method != "linear":
        data |= {"base_model": str(model)}
    if method == "ties":
        data |= {"parameters": {"density": 0.6}}
    return json.dumps(data)


def built(text: str) -> dict[str, torch.Tensor]:
    recipe = parse_recipe(text)
    return dict(Engine(open_sources(recipe.references()), threads=1).tensors(recipe))


def numpy_delta(adapter: Path, name: str) -> Any:
    """scale B A of one tensor, from the adapter's files alone; 0 where it has none."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    key = "base_model.model." + name.removesuffix(".weight")
    if f"{key}.lora_A.weight" not in tensors:
        return 0.0
    a, b = (tensors[f"{key}.lora_{side}.weight"].double().numpy() for side in "AB")
    return config["lora_alpha"] / config["r"] * (b @ a)


def test_task_arithmetic_of_mixed_ranks_and_negative_weights(three: tuple[Path, list[Path]]) -> None:
    model, folders = three
    merged = built(recipe_text("task_arithmetic", model, folders))
    changed = 0
    for name, tensor in load_file(model / "model.safetensors").items():
        parts = [w * numpy_delta(f, name) for f, w in zip(folders, WEIGHTS, strict=True)]
        if all(isinstance(part, float) for part in parts):
            assert torch.equal(merged[name], tensor), name
            continue
        changed += 1
        error = np.abs(merged[name].double().numpy() - (tensor.double().numpy() + sum(parts)))
        # Four terms, each rounded to float32 once, and their sums.
        assert np.all(error <= 2.5e-7 * (np.abs(tensor.double().numpy()) + sum(map(np.abs, parts)))), name
    assert changed == 3 * 4


def test_the_task_vector_itself_is_exact(three: tuple[Path, list[Path]]) -> None:
    model, folders = three
    for folder in folders:
        found = deltas(open_source(f"{model}+{folder}"))
        for name, delta in found.items():
            expected = numpy_delta(folder, name)
            np.testing.assert_allclose(delta.double().numpy(), expected, rtol=1.2e-7, atol=1e-12, err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_task_arithmetic_is_pefts_own_exact_combination(three: tuple[Path, list[Path]]) -> None:
    model, folders = three
    live = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    adapted = peft.PeftModel.from_pretrained(live, folders[0], "a0", autocast_adapter_dtype=False)
    for i, folder in enumerate(folders[1:], start=1):
        adapted.load_adapter(folder, f"a{i}", autocast_adapter_dtype=False)
    weights = [w for w in WEIGHTS]
    # peft refuses "cat" where adapters have different targets: only those of all three are compared.
    adapted.add_weighted_adapter(["a0", "a1", "a2"], weights, "all", combination_type="cat")
    adapted.set_adapter("all")
    expected = adapted.merge_and_unload().state_dict()
    merged = built(recipe_text("task_arithmetic", model, folders))
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor.double(), expected[name].double(), rtol=1.2e-7, atol=1e-7, msg=name)


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
def test_other_methods_see_the_merged_weights(three: tuple[Path, list[Path]], tmp_path: Path, method: str) -> None:
    model, folders = three
    if method == "dare_ties":  # its masks are drawn by content, which differs: at full density none is drawn
        text = recipe_text(method, model, folders)
    else:
        text = recipe_text(method, model, folders, (0.5, 0.3, 0.2))
    merged = built(text)
    for folder in folders:
        plain = Path(shutil.copytree(model, tmp_path / folder.parent.name))
        tensors = load_file(model / "model.safetensors")
        for name in tensors:
            delta = torch.as_tensor(numpy_delta(folder, name))
            tensors[name] = (tensors[name].double() + delta).float()
        save_file(tensors, plain / "model.safetensors")
        text = text.replace(f"{model}+{folder}", str(plain))
    assert "+" not in text
    expected = built(text)
    for name, tensor in merged.items():
        # Where elements of a task vector are equal to rounding, TIES may trim another one.
        close = torch.isclose(tensor, expected[name], rtol=1e-6, atol=2e-7)
        assert float((~close).float().mean()) <= (0.01 if method == "ties" else 0.0), name


def test_an_adapter_as_the_base(three: tuple[Path, list[Path]]) -> None:
    model, folders = three
    base = f"{model}+{folders[0]}"
    text = json.dumps({"merge_method": "task_arithmetic", "base_model": base, "dtype": "float32",
                       "models": [{"model": str(model), "parameters": {"weight": 1.0}}]})  # fmt: skip
    merged = built(text)
    for name, tensor in load_file(model / "model.safetensors").items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-6)


def test_references_names_and_contents(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    model, folders = three
    sources = [open_source(f"{model}+{f}") for f in folders]
    assert [s.name for s in sources] == [f.name for f in folders]
    assert sources[0].full_reference == f"{model.resolve()}+{folders[0].resolve()}"
    assert [open_source(s.full_reference).content_hash() for s in sources] == [s.content_hash() for s in sources]
    plain = open_source(str(model))
    assert len({plain.content_hash(), *(s.content_hash() for s in sources)}) == 4
    moved = Path(shutil.copytree(folders[0], tmp_path / "moved"))
    config = json.loads((moved / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "another/model", "lora_dropout": 0.5, "task_type": None}
    (moved / "adapter_config.json").write_text(json.dumps(config))
    reference = f"{model}+{moved}"
    assert open_source(reference).content_hash() == sources[0].content_hash(), "what does not matter does not count"
    assert pickle.loads(pickle.dumps(open_source(reference))).content_hash() == sources[0].content_hash()
    (moved / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    assert open_source(reference).content_hash() != sources[0].content_hash()


def test_a_base_prefix_in_another_order(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    """Vision-language models are saved as language_model.model.*, and live as model.language_model.*."""
    model, folders = three
    saved, adapter = (Path(shutil.copytree(f, tmp_path / f.name)) for f in (model, folders[0]))
    tensors = load_file(model / "model.safetensors")
    save_file({f"language_model.{n}": t for n, t in tensors.items()}, saved / "model.safetensors")
    weights = load_file(adapter / "adapter_model.safetensors")
    renamed = {n.replace("model.model.layers", "model.model.language_model.layers"): t for n, t in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, adapter / "adapter_model.safetensors")
    found = open_source(f"{saved}+{adapter}").adapter
    assert found is not None and all(n.startswith("language_model.model.layers.") for n in found.updates)


def test_an_unchanged_copy_of_the_embedding_does_not_count(make: Callable[..., Path], lora: Lora) -> None:
    model = make(seed=0)
    folder = lora(model, target_modules=["embed_tokens"])
    assert "base_model.model.model.embed_tokens.base_layer.weight" in load_file(folder / "adapter_model.safetensors")
    source = open_source(f"{model}+{folder}")
    assert source.adapter is not None and not source.adapter.replaced
    assert source.tensors["model.embed_tokens.weight"].file == model / "model.safetensors"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_live_model_answers_as_pefts(make: Callable[..., Path], gpt2: Path, lora: Lora, kind: str) -> None:
    """What is evaluated, and what statistics are collected of, is the model with its adapter."""
    model = gpt2 if kind == "gpt2" else make(seed=0)
    folder = lora(model, target_modules=["c_attn", "c_proj"] if kind == "gpt2" else "all-linear", r=3)
    tokens = torch.tensor([[3, 9, 4, 17]])
    live = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    plain = live(input_ids=tokens).logits
    expected = peft.PeftModel.from_pretrained(live, folder)(input_ids=tokens).logits
    found = live_model(open_source(f"{model}+{folder}"), torch.float32)(input_ids=tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain, rtol=1e-2, atol=1e-2)


@pytest.mark.filterwarnings("ignore")
def test_experts_of_their_own(tmp_path: Path) -> None:
    """An adapter with a pair for each expert, as it was trained before transformers fused them; PEFT reads it too."""
    config = transformers.MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "model")
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for expert in range(3):
        for part, (rows, columns) in {"w1": (24, 16), "w2": (16, 24), "w3": (24, 16)}.items():
            key = f"base_model.model.model.layers.0.block_sparse_moe.experts.{expert}.{part}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(2, columns, generator=generator)
            tensors[f"{key}.lora_B.weight"] = torch.randn(rows, 2, generator=generator)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["w1", "w2", "w3"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    source = open_source(f"{tmp_path / 'model'}+{folder}")
    assert source.adapter is not None and len(source.adapter.updates) == 9
    live = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokens = torch.tensor([[3, 9, 4, 17, 5]])
    expected = peft.PeftModel.from_pretrained(live, folder)(input_ids=tokens).logits
    found = live_model(source, torch.float32)(input_ids=tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_adapter_is_not_overwritten(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    model, folders = three
    here = tmp_path / "out"
    here.mkdir()
    (here / "config.json").write_text("{}")
    adapter = Path(shutil.copytree(folders[0], here / "adapter"))
    recipe = parse_recipe(recipe_text("linear", model, [adapter], (1.0,)))
    with pytest.raises(InputError, match="holds the source model"):
        Engine(open_sources(recipe.references())).write(recipe, here, overwrite=True)
    assert (adapter / "adapter_model.safetensors").exists()


def test_nothing_is_copied(three: tuple[Path, list[Path]]) -> None:
    model, folders = three
    files = MappedFiles()
    source = open_source(f"{model}+{folders[0]}")
    assert source.adapter is not None
    target = next(iter(source.adapter.updates))
    own, plain = (adapters.operand(s, target, files.tensor) for s in (source, source.adapter.model))
    assert isinstance(own, LowRank) and isinstance(plain, Stored)
    assert own.tensor.data_ptr() == plain.tensor.data_ptr()
    other = next(n for n in source.tensors if n not in source.adapter.updates)
    assert isinstance(adapters.operand(source, other, files.tensor), Stored)


MEMORY = """
import os, sys, threading
from pathlib import Path
from evomerge.merging.engine import Engine
from evomerge.recipe import load_recipe
from evomerge.sources import open_sources

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

recipe = load_recipe(sys.argv[1])
engine = Engine(open_sources(recipe.references()), threads=1)
start, peak, done = anonymous(), [0], threading.Event()
def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
engine.write(recipe, Path(sys.argv[2]))
done.set(); watcher.join()
print(peak[0] - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_stays_far_below_one_copy_of_the_model(tmp_path: Path) -> None:
    rows, columns = 8192, 4096  # 128 MB
    model = tmp_path / "model"
    model.mkdir()
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({name: torch.randn(rows, columns, generator=generator)}, model / "model.safetensors")
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}
    (model / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(zoo.path("base") / file, model / file)
    folders = []
    for rank in (2, 4, 8):
        folder = tmp_path / f"lora{rank}"
        folder.mkdir()
        key = f"base_model.model.{name.removesuffix('.weight')}"
        a = torch.randn(rank, columns, generator=generator)
        b = torch.randn(rows, rank, generator=generator)
        save_file({f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 2}))
        folders.append(folder)
    (tmp_path / "recipe.json").write_text(recipe_text("task_arithmetic", model, folders))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "recipe.json"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 128 << 20
    assert int(done.stdout) < 50_000, "kB; one copy is 131,072"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_mergekit_builds_the_same(three: tuple[Path, list[Path]], tmp_path: Path, method: str) -> None:
    """One recipe file, both programs: mergekit merges each adapter into a copy of the model first."""
    pytest.importorskip("mergekit")
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    model, folders = three
    text = recipe_text(method, model, folders)
    configuration = MergeConfiguration.model_validate(yaml.safe_load(text))
    options = MergeOptions(lora_merge_cache=str(tmp_path / "cache"), quiet=True)
    run_merge(configuration, str(tmp_path / "theirs"), options)
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = built(text)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-6, msg=name)


# ---- what is refused


@pytest.fixture
def broken(three: tuple[Path, list[Path]], tmp_path: Path) -> Callable[..., str]:
    """broken(config, tensors): the message about an adapter whose configuration or tensors were changed."""
    model, folders = three
    folder = Path(shutil.copytree(folders[0], tmp_path / "broken"))
    original = (folder / "adapter_config.json").read_text()

    def message(
        config: Mapping[str, Any] | str | None = None,
        change: Callable[[dict[str, torch.Tensor]], object] | None = None,
    ) -> str:
        text = config if isinstance(config, str) else json.dumps({**json.loads(original), **(config or {})})
        (folder / "adapter_config.json").write_text(text)
        tensors = load_file(folders[0] / "adapter_model.safetensors")
        if change:
            change(tensors)
            save_file(tensors, folder / "adapter_model.safetensors")
        with pytest.raises(SourceError) as e:
            open_source(f"{model}+{folder}")
        assert e.value.exit_code == 2 and "\n" not in str(e.value)
        return str(e.value)

    return message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "IA3"}, 'peft_type is "IA3"; only LORA'),
        ({"peft_type": "LOHA"}, 'peft_type is "LOHA"'),
        ({"alora_invocation_tokens": [1, 2]}, "activated LoRA"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "fused experts (target_parameters)"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the model's own weights too"),
        ({"r": 0}, "r = 0: expected positive numbers"),
        ({"r": 16}, "has rank 2, adapter_config.json says 16"),
        ({"lora_alpha": "many"}, "lora_alpha = 'many'"),
        ({"alpha_pattern": {"(a+)+b": 3}}, "alpha_pattern"),
        ({"rank_pattern": {"(": 3}}, "rank_pattern"),
        ({"alpha_pattern": [1]}, "alpha_pattern"),
        ("[]", "expected a JSON object"),
        ("{", "not JSON"),
    ],
)
def test_configurations_that_are_refused(broken: Callable[..., str], config: Any, words: str) -> None:
    assert words in broken(config)


KEY = "base_model.model.model.layers.1.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(KEY + "A.weight"), "has lora_B only"),
        (lambda t: t.update({KEY.replace("q_proj", "qq_proj") + "A.weight": t.pop(KEY + "A.weight"),
                             KEY.replace("q_proj", "qq_proj") + "B.weight": t.pop(KEY + "B.weight")}),
         'has no tensor "model.layers.1.self_attn.qq_proj.weight" (nearest: "model.layers.1.self_attn.q_proj.weight")'),
        (lambda t: t.update({KEY + "A.weight": torch.zeros(2, 5)}), "do not multiply to it"),
        (lambda t: t.update({KEY + "A.weight": torch.zeros(3, 16)}), "are no pair of thin matrices"),
        (lambda t: t.update({KEY + "A.weight": torch.zeros(2, 16, dtype=torch.int32)}), "expected floating-point"),
        (lambda t: t.update({KEY + "magnitude_vector": torch.zeros(16)}), "kind of adapter tensor"),
        (lambda t: t.update({"base_model.model.model.norm.weight": torch.zeros(3)}), "another shape"),
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(200, 16)}), "its vocabulary was changed"),
        (lambda t: t.clear() or t.update({}), "holds no tensor of an adapter"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(broken: Callable[..., str], change: Any, words: str) -> None:
    assert words in broken({"base_model_name_or_path": "someone/else"}, change)


def test_what_is_no_adapter_is_refused(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    model, folders = three

    def message(adapter: str | Path) -> str:
        with pytest.raises(SourceError) as e:
            open_source(f"{model}+{adapter}")
        return str(e.value)

    assert "is a model, not an adapter" in message(model)
    assert "is a model, not an adapter" in message("zoo:maths")
    assert "no such folder" in message(tmp_path / "nothing" / "here" / "at" / "all")
    (tmp_path / "empty").mkdir()
    assert "has no adapter_config.json" in message(tmp_path / "empty")
    pickled = Path(shutil.copytree(folders[0], tmp_path / "pickled"))
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    assert "pickle file, which can run code" in message(pickled)
    (pickled / "adapter_model.bin").unlink()
    assert "has no adapter_model.safetensors" in message(pickled)
    whole = (folders[0] / "adapter_model.safetensors").read_bytes()
    (pickled / "adapter_model.safetensors").write_bytes(whole[:-9])
    assert "interrupted download" in message(pickled)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_a_head_of_its_own_on_a_tied_model(make: Callable[..., Path], lora: Lora, config: dict[str, Any]) -> None:
    model = make(seed=0, tied=True)
    folder = lora(model, **config)
    with pytest.raises(SourceError, match="ties its output head to the embedding"):
        open_source(f"{model}+{folder}")


def test_a_folder_with_a_plus_in_its_name(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(make(seed=0), tmp_path / "c++ models"))
    assert open_source(str(folder)).adapter is None


def test_every_tensor_of_a_whole_source_is_read_by_place(three: tuple[Path, list[Path]]) -> None:
    model, folders = three
    asked: list[TensorInfo] = []
    files = MappedFiles()

    def read(info: TensorInfo) -> torch.Tensor:
        asked.append(info)
        return files.tensor(info)

    source = open_source(f"{model}+{folders[1]}")
    for name in source.tensors:
        adapters.operand(source, name, read)
    assert source.adapter is not None
    assert len(asked) == len(source.tensors) + 2 * len(source.adapter.updates)
