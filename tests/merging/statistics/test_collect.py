"""Statistics are collected as their definitions say, and written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from evomerge import zoo
from evomerge.errors import InputError
from evomerge.merging.live import live_model
from evomerge.merging.statistics import open_statistics
from evomerge.merging.statistics.collect import Settings, collect
from evomerge.merging.statistics.fisher import fisher_diagonal
from evomerge.merging.statistics.gram import input_grams
from evomerge.merging.statistics.text import read_documents, tokenized
from evomerge.sources import open_source

TEXTS = [[5, 9, 2, 11, 4], [7, 3, 3], [8, 1], [6, 2, 9, 10, 12], [4, 4, 5, 6, 7]]
Make = Callable[..., Path]


def log_likelihoods(model: Any, tokens: list[int]) -> torch.Tensor:
    """log p of every token of the vocabulary at every place that has a next token, [T - 1, vocabulary]."""
    return torch.log_softmax(model(input_ids=torch.tensor([tokens])).logits[0, :-1], dim=-1)


def test_the_empirical_fisher_is_the_mean_of_squared_gradients(make: Make) -> None:
    model = live_model(make(seed=0), torch.float64)
    found = fisher_diagonal(model, TEXTS, "text", torch.Generator())
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    model.requires_grad_(True)
    for tokens in TEXTS:
        model.zero_grad()
        sum(row[t] for row, t in zip(log_likelihoods(model, tokens), tokens[1:], strict=True)).backward()
        for name, p in model.named_parameters():
            expected[name] += p.grad**2 / len(TEXTS)
    assert found.keys() == expected.keys()
    for name, x in found.items():
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.double(), expected[name], rtol=1e-6, atol=1e-30, msg=name)


def test_drawn_labels_give_the_fisher_information_itself(make: Make) -> None:
    """One text of two tokens: the expectation over the label can be summed over the whole vocabulary."""
    model = live_model(make(seed=0, layers=1), torch.float64)
    tokens = [5, 9]
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    model.requires_grad_(True)
    likelihoods = log_likelihoods(model, tokens)[0]
    parameters = list(model.parameters())
    for logp in likelihoods:
        gradients = torch.autograd.grad(logp, parameters, retain_graph=True, allow_unused=True)
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] += logp.detach().exp() * (0.0 if gradient is None else gradient**2)
    model.requires_grad_(False)
    found = fisher_diagonal(model, [tokens] * 1500, "model", torch.Generator().manual_seed(1))
    compared = [name for name in found if not name.endswith(("q_proj.weight", "k_proj.weight"))]  # one place: no effect
    assert len(compared) == len(found) - 2
    for name in compared:
        error = float((found[name].double() - expected[name]).norm() / expected[name].norm())
        assert error < 0.25, (name, error)  # so many draws of some hundred labels
    empirical = fisher_diagonal(model, [tokens], "text", torch.Generator())
    name = "lm_head.weight"
    assert float((empirical[name].double() - expected[name]).norm() / expected[name].norm()) > 0.5


def test_labels_follow_the_seed_and_the_model_is_left_as_it_was(make: Make) -> None:
    model = live_model(make(seed=0), torch.float32)
    before = {name: p.clone() for name, p in model.named_parameters()}
    one, same, other = (fisher_diagonal(model, TEXTS, "model", torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) and not p.requires_grad and p.grad is None


def test_grams_are_the_second_moments_of_inputs(make: Make) -> None:
    model = live_model(make(seed=0), torch.float64)
    seen: dict[str, list[torch.Tensor]] = {}
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    handles = [
        m.register_forward_hook(lambda m, x, y, n=n: seen.setdefault(n, []).append(x[0].reshape(-1, x[0].shape[-1])))
        for n, m in linear.items()
    ]
    with torch.no_grad():
        for tokens in TEXTS:
            model(input_ids=torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    for batch_size in (1, 2, 100):
        found = input_grams(model, TEXTS, batch_size)
        assert found.keys() == {f"{n}.weight" for n in linear} and "lm_head.weight" in found
        for name, x in found.items():
            inputs = torch.cat(seen[name.removesuffix(".weight")])
            assert len(inputs) == sum(map(len, TEXTS)) and x.dtype == torch.float32
            expected = inputs.T @ inputs / len(inputs)
            torch.testing.assert_close(x.double(), expected, rtol=2e-5, atol=2e-6 * float(expected.abs().max()))


def test_documents(tmp_path: Path) -> None:
    def documents(name: str, content: str) -> list[str]:
        (tmp_path / name).write_text(content, encoding="utf-8")
        return read_documents(tmp_path / name)[0]

    assert documents("a.txt", "one\ntwo\n") == ["one", "two"]
    assert documents("a.txt", "one\ntwo\n\n\n three\n") == ["one\ntwo", " three"]
    assert documents("a.jsonl", '{"text": "a\\nb", "id": 1}\n\n{"text": "ç"}\n') == ["a\nb", "ç"]
    for name, content, words in (
        ("a.txt", " \n\n", "holds no document"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n', 'a.jsonl, line 2: expected an object with a string under "text"'),
        ("a.jsonl", '{"text": "a"}\n{', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"text": 5}\n', "line 1: expected"),
    ):
        with pytest.raises(InputError, match=words):
            documents(name, content)
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_documents(tmp_path / "b.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_documents(tmp_path / "none.txt")


def test_tokens() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(zoo.path("base"))
    texts = ["drevin kunt 5 nesh", "", "nesh kunt drevin 5 5 5"]
    whole = tokenized(texts, tokenizer, 100, None)
    assert whole == [tokenizer(t)["input_ids"] for t in texts if t]
    assert tokenized(texts, tokenizer, 3, None) == [t[:3] for t in whole]
    assert tokenized(texts, tokenizer, 100, 1) == whole[:1]
    with pytest.raises(InputError, match="at least two tokens"):
        tokenized([""], tokenizer, 100, None)


def test_what_is_written(collected: dict[tuple[str, str], Path], text: Path) -> None:
    source = open_source("zoo:maths")
    fisher, gram = (open_statistics(collected["maths", kind]) for kind in ("fisher", "gram"))
    assert {n: i.shape for n, i in fisher.tensors.items()} == {n: i.shape for n, i in source.merged_tensors.items()}
    matrices = {n for n, i in source.merged_tensors.items() if len(i.shape) == 2 and "embed" not in n}
    assert gram.tensors.keys() == matrices, "a head that is tied to the embedding is none of its own"
    assert all(i.shape == (source.tensors[n].shape[1],) * 2 for n, i in gram.tensors.items())
    assert fisher.model == gram.model == source.content_hash()
    assert fisher.facts["labels"] == "model" and "labels" not in gram.facts
    assert len(fisher.facts["text"]) == 64
    for values in load_file(fisher.folder / "statistics.safetensors").values():
        assert bool((values >= 0).all()) and float(values.max()) > 0
    modes = {f.stat().st_mode & 0o777 for f in fisher.folder.iterdir()}
    assert len(modes) == 1


def test_nothing_is_left_after_an_error(text: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(zoo.path("base"), tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match="NaN or infinite"):
        collect(open_source(str(broken)), text, tmp_path / "out" / "here", Settings(kind="fisher"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken"]
    with pytest.raises(InputError, match="--device nowhere"):
        collect(open_source(str(broken)), text, tmp_path / "out", Settings(kind="gram", device="nowhere"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        collect(open_source(str(broken)), text, tmp_path / "full", Settings(kind="gram"))
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_experts_get_their_part_and_conv1d_its_side(text: Path, tmp_path: Path) -> None:
    """Mixtral keeps experts fused in the live model and apart in the file; GPT-2 stores [in, out]."""
    shape = {"vocab_size": 134, "num_hidden_layers": 1, "max_position_embeddings": 64}
    mixtral = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, num_local_experts=3,
        num_experts_per_tok=3, **shape,
    )  # fmt: skip
    gpt2 = transformers.GPT2Config(vocab_size=134, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    for name, config in (("mixtral", mixtral), ("gpt2", gpt2)):
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(zoo.path("base") / file, tmp_path / name / file)
    source = open_source(str(tmp_path / "mixtral"))
    collect(source, text, tmp_path / "experts", Settings(kind="fisher", labels="text"))
    fisher = load_file(tmp_path / "experts" / "statistics.safetensors")
    assert fisher.keys() == source.tensors.keys()
    model = live_model(source, torch.float32)
    tokens = tokenized(read_documents(text)[0], transformers.AutoTokenizer.from_pretrained(source.path), 512, None)
    live = fisher_diagonal(model, tokens, "text", torch.Generator())
    fused = live["model.layers.0.mlp.experts.gate_up_proj"]
    for expert in range(3):
        for place, part in ((slice(0, 24), "w1"), (slice(24, 48), "w3")):
            name = f"model.layers.0.block_sparse_moe.experts.{expert}.{part}.weight"
            assert torch.equal(fisher[name], fused[expert, place]), name
    collect(open_source(str(tmp_path / "gpt2")), text, tmp_path / "conv", Settings(kind="gram"))
    gram = load_file(tmp_path / "conv" / "statistics.safetensors")
    assert gram["transformer.h.0.mlp.c_proj.weight"].shape == (1, 64, 64)
    assert gram["transformer.h.0.attn.c_attn.weight"].shape == (1, 16, 16) and len(gram) == 4
