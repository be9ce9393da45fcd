"""Gated models: alpha by the prompt, held while decoding, against checkpoints with the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from evomerge import zoo
from evomerge.errors import InputError, SourceError
from evomerge.library import Library, LibraryError
from evomerge.merging.engine import Engine
from evomerge.recipe import Recipe
from evomerge.skills import GatedModel, add, remove
from evomerge.skills.folder import GateConfig
from evomerge.skills.gate import Gate, mean_pooled
from evomerge.skills.opened import open_library
from evomerge.skills.static import recipe_of
from evomerge.sources import open_sources
from evomerge.zoo.languages import vocabulary
from tests.skills.conftest import LAYERS, make_lora

NAMES = ("two", "four", "eight")


def made(
    library: Library, groups: int = 1, names: tuple[str, ...] = NAMES, dtype: torch.dtype | None = None
) -> GatedModel:
    """A gated model whose gate is random: every prompt has other weights."""
    gate = Gate(16, len(names), groups, 8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in gate.parameters():
            p.normal_(0.0, 1.0, generator=generator)
    config = GateConfig(skills=names, groups=groups, hidden_size=16, width=8)
    return GatedModel(open_library(library, names), gate, config, dtype)


def batch(seed: int = 0, rows: int = 3, tokens: int = 7) -> Tensor:
    return torch.randint(5, 134, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def merged(recipe: Recipe, base: str) -> transformers.PreTrainedModel:
    live = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = dict(Engine(open_sources(recipe.references()), threads=1).tensors(recipe))
    found = live.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys and set(found.missing_keys) <= {"lm_head.weight"}, "a head may be tied"
    return live.eval().requires_grad_(False)


def test_an_untrained_gate_gives_one_half_whatever_it_reads() -> None:
    gate = Gate(16, 3, groups=2, width=8)
    alpha = gate(torch.randn(5, 16) * 100)
    assert alpha.shape == (5, 2, 3) and torch.equal(alpha, torch.full((5, 2, 3), 0.5))


def test_the_mean_is_over_the_tokens_that_are_there() -> None:
    hidden = torch.arange(24.0).view(2, 3, 4)
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    found = mean_pooled(hidden, mask)
    assert torch.equal(found, torch.stack([hidden[0, 1:].mean(0), hidden[1].mean(0)]))


def test_weights_that_are_held_are_the_checkpoint_of_these_weights(shared: Library) -> None:
    model, ids = made(shared), batch()
    weights = {"two": 0.7, "four": -1.4, "eight": 1.2}
    expected = merged(recipe_of(shared, weights), shared.base)(input_ids=ids).logits
    with torch.no_grad(), model.held(torch.tensor([[[0.7, -1.4, 1.2]]]).expand(3, 1, 3)):
        found = model.base(input_ids=ids).logits
    assert float((found - expected).abs().max()) < 1e-4
    plain = transformers.AutoModelForCausalLM.from_pretrained(shared.base, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(model.base(input_ids=ids).logits, plain(input_ids=ids).logits)
        assert float((plain(input_ids=ids).logits - expected).abs().max()) > 0.1


def test_weights_of_each_layer(shared: Library) -> None:
    model, ids = made(shared, groups=LAYERS), batch(rows=1)
    weights = torch.randn(1, LAYERS, 3, generator=torch.Generator().manual_seed(1))
    recipe = recipe_of(shared, dict.fromkeys(NAMES, 1.0)).to_dict()
    recipe.pop("models")
    recipe["slices"] = [
        {
            "sources": [
                *({"model": shared.reference(n), "layer_range": [i, i + 1], "parameters": {"weight": float(w)}}
                  for n, w in zip(NAMES, weights[0, i], strict=True)),
                {"model": shared.base, "layer_range": [i, i + 1]},
            ]
        }
        for i in range(LAYERS)
    ]  # fmt: skip
    expected = merged(Recipe.model_validate(recipe), shared.base)(input_ids=ids).logits
    with torch.no_grad(), model.held(weights):
        assert float((model.base(input_ids=ids).logits - expected).abs().max()) < 1e-4


@pytest.mark.parametrize("groups", [1, LAYERS])
def test_every_row_has_weights_of_its_own(shared: Library, groups: int) -> None:
    model, ids = made(shared, groups), batch()
    weights = model.weights(ids)
    assert weights.shape == (3, groups, 3) and float((weights[0] - weights[1]).abs().max()) > 0.1
    with torch.no_grad():
        together = model(ids, prompt_mask=torch.ones_like(ids)).logits
        for row in range(3):
            with model.held(weights[row : row + 1]):
                alone = model.base(input_ids=ids[row : row + 1]).logits
            assert float((together[row] - alone[0]).abs().max()) < 1e-4
            others = model.base(input_ids=ids[row : row + 1]).logits
            assert float((others - alone).abs().max()) > 1e-2


def test_weights_are_of_the_prompt_and_held_while_decoding(shared: Library) -> None:
    model, ids = made(shared), batch(rows=2)
    out = model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    weights, longer = model.weights(ids), ids
    for _ in range(6):
        with torch.no_grad(), model.held(weights):
            logits = model.base(input_ids=longer).logits[:, -1]
        logits[:, 1] = -torch.inf  # min_new_tokens
        longer = torch.cat([longer, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(out, longer)
    assert not torch.allclose(model.weights(longer), weights, atol=1e-2), "a longer prompt has others"
    # Without a cache each pass reads the whole text again: the weights stay.
    again = model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(again, out)


def test_padding_changes_nothing(shared: Library) -> None:
    model = made(shared)
    words = vocabulary()
    prompts = [" ".join(words[10:13]), " ".join(words[20:31])]
    inputs = model.tokenizer(prompts, return_tensors="pt", padding=True)
    assert inputs["attention_mask"][0, 0] == 0, "padded on the left"
    together = model.weights(inputs["input_ids"], inputs["attention_mask"])
    for row, prompt in enumerate(prompts):
        alone = model.tokenizer([prompt], return_tensors="pt")
        assert float((model.weights(alone["input_ids"])[0] - together[row]).abs().max()) < 1e-5
    options = {"max_new_tokens": 5, "do_sample": False}
    assert model.answers(prompts, **options) == [model.answers([p], **options)[0] for p in prompts]


def test_beams_share_their_rows_weights(shared: Library) -> None:
    model, ids = made(shared), batch(rows=2)
    both = model.generate(ids, max_new_tokens=4, num_beams=3, num_return_sequences=2, do_sample=False)
    for row in range(2):
        one = model.generate(ids[row : row + 1], max_new_tokens=4, num_beams=3, num_return_sequences=2, do_sample=False)
        assert torch.equal(both[2 * row : 2 * row + 2, : one.shape[1]], one)


def test_a_pass_that_does_not_say_what_the_prompt_is(shared: Library) -> None:
    with pytest.raises(InputError, match="does not say which tokens that is"):
        made(shared)(batch())


def test_saved_and_loaded(library: Library, tmp_path: Path) -> None:
    model, ids = made(library), batch()
    model.save_pretrained(tmp_path / "gated")
    assert {p.name for p in (tmp_path / "gated").iterdir()} == {"gate.safetensors", "gate_config.json", "library"}
    expected = model.weights(ids), model.generate(ids, max_new_tokens=5, do_sample=False)
    # It has adapters of its own: the library may lose a skill, or all.
    remove(library.folder, "eight")
    shutil.rmtree(library.folder)
    again = GatedModel.from_pretrained(tmp_path / "gated")
    assert torch.equal(again.weights(ids), expected[0])
    assert torch.equal(again.generate(ids, max_new_tokens=5, do_sample=False), expected[1])
    assert again.skills == NAMES
    with pytest.raises(InputError, match="is not empty; choose another folder"):
        again.save_pretrained(tmp_path / "gated")
    again.save_pretrained(tmp_path / "gated", overwrite=True)
    moved = Path(shutil.move(tmp_path / "gated", tmp_path / "deeper" / "gated"))
    with pytest.raises(SourceError, match="no such folder"):
        GatedModel.from_pretrained(moved)
    found = GatedModel.from_pretrained(moved, base=library.base)
    assert torch.equal(found.weights(ids), expected[0])


def test_removing_a_skill_gives_back_the_earlier_outputs(library: Library, base: Path, tmp_path: Path) -> None:
    """The same gate over the skills that were there, before another came and after it went: the same bits."""
    ids = batch()
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    before = made(library).generate(ids, **options)
    add(library.folder, "other", make_lora(base, tmp_path / "other", 9, target_modules="all-linear"))
    left = remove(library.folder, "other")
    after = made(left).generate(ids, **options)
    assert torch.equal(before.sequences, after.sequences)
    assert all(torch.equal(a, b) for a, b in zip(before.logits, after.logits, strict=True))


def test_what_does_not_belong_together(library: Library, tmp_path: Path) -> None:
    made(library).save_pretrained(tmp_path / "gated")

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "gated", tmp_path / name))

    with pytest.raises(LibraryError, match=r"has no gate_config\.json; expected a folder"):
        GatedModel.from_pretrained(library.folder)
    with pytest.raises(LibraryError, match="is not the model that the library was made on"):
        GatedModel.from_pretrained(copy("a"), base="zoo:base")
    folder = copy("b")
    config = json.loads((folder / "gate_config.json").read_text())
    (folder / "gate_config.json").write_text(json.dumps(config | {"width": 9}))
    with pytest.raises(SourceError) as found:
        GatedModel.from_pretrained(folder)
    assert '"inner.weight" has shape [8, 16], expected [9, 16] by gate_config.json' in str(found.value)
    for key, value, words in (
        ("groups", 2, "expected 1, or as many as the base has layers"),
        ("skills", ["two", "fuor", "eight"], 'has no skill "fuor"; did you mean "four"'),
        ("version", 2, "gate_config.json: version = 2"),
        ("depth", 2, 'unknown key "depth"'),
    ):
        (folder / "gate_config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(LibraryError, match=words):
            GatedModel.from_pretrained(folder)
    (folder / "gate_config.json").write_text(json.dumps(config))
    (folder / "gate.safetensors").write_bytes(b"torch.save was here")
    with pytest.raises(SourceError, match="cannot be read"):
        GatedModel.from_pretrained(folder)
    folder = copy("c")
    weights = folder / "library" / "two" / "adapter_model.safetensors"
    shutil.copyfile(library.place("eight") / "adapter_model.safetensors", weights)
    with pytest.raises((LibraryError, SourceError)):
        GatedModel.from_pretrained(folder)


def test_in_bfloat16(shared: Library) -> None:
    exact, rounded, ids = made(shared), made(shared, dtype=torch.bfloat16), batch()
    assert rounded.base.dtype == torch.bfloat16 and rounded.weights(ids).dtype == torch.float32
    assert float((rounded.weights(ids) - exact.weights(ids)).abs().max()) < 0.2
    assert rounded.generate(ids, max_new_tokens=2).shape[0] == 3


def tiny(folder: Path, config: transformers.PreTrainedConfig) -> Path:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(zoo.path("base") / file, folder / file)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_conv1d_layers(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=134, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    base = tiny(tmp_path / "gpt2", config)
    for name, targets in (("a", ["c_attn", "c_proj"]), ("b", ["c_attn", "c_fc"])):
        folder = make_lora(base, tmp_path / name, len(name), r=3, target_modules=targets)
        library = add(tmp_path / "library", name, folder)
    model, ids = made(library, names=("a", "b")), batch()
    expected = merged(recipe_of(library, {"a": 0.5, "b": -1.5}), library.base)(input_ids=ids).logits
    with torch.no_grad(), model.held(torch.tensor([[[0.5, -1.5]]]).expand(3, 1, 2)):
        assert float((model.base(input_ids=ids).logits - expected).abs().max()) < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_layers_that_rows_share_are_refused(tmp_path: Path) -> None:
    """A mixture's shared expert gets the tokens of all rows at once: there is no telling whose are whose."""
    config = transformers.Qwen2MoeConfig(
        vocab_size=134, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=8,
        shared_expert_intermediate_size=12,
    )  # fmt: skip
    base = tiny(tmp_path / "moe", config)
    add(tmp_path / "library", "fine", make_lora(base, tmp_path / "fine", target_modules=["q_proj"]))
    library = add(
        tmp_path / "library", "shared", make_lora(base, tmp_path / "shared", target_modules=["shared_expert.up_proj"])
    )
    made(library, names=("fine",))
    with pytest.raises(SourceError, match="whose inputs are not by prompt"):
        made(library, names=("fine", "shared"))
