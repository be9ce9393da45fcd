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


def test_weights_of_another_shape(shared: Library) -> None:
    model, ids = made(shared), batch(rows=4)
    for shape in ((2, 1, 3), (4, 1, 7), (4, 1, 2), (4, 2, 3), (4, 3), (0, 1, 3)):
        with pytest.raises(InputError) as found:
            model.generate(ids, weights=torch.zeros(shape), max_new_tokens=1)
        assert f"weights of shape {list(shape)}: expected [4 or 1, 1, 3] (rows, groups, skills)" in str(found.value)
    with pytest.raises(InputError) as found:
        model.held(torch.zeros(4, 3, 3))
    assert "weights of shape [4, 3, 3]: expected [rows or 1, 1, 3] (rows, groups, skills)" in str(found.value)
    with (
        pytest.raises(InputError, match="weights of 3 rows, in a pass of 4: expected as many, or 1"),
        model.held(torch.zeros(3, 1, 3)),
    ):
        model.base(input_ids=ids)
    one = torch.tensor([[[0.7, -1.4, 1.2]]])
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(
        model.generate(ids, weights=one, **options), model.generate(ids, weights=one.expand(4, -1, -1), **options)
    )


def test_padding_without_a_mask_is_no_prompt(shared: Library) -> None:
    """As transformers has it: what is the padding token's is padding, where that is not the end of text too."""
    model = made(shared)
    ids = batch(rows=2)
    ids[0, :4] = model.tokenizer.pad_token_id
    mask = (ids != model.tokenizer.pad_token_id).long()
    assert torch.equal(model.weights(ids), model.weights(ids, mask))
    assert float((model.weights(ids) - model.weights(ids, torch.ones_like(ids))).abs().max()) > 1e-2
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, mask, **options))
    model.base.generation_config.pad_token_id = model.base.generation_config.eos_token_id
    ids[0, :4] = model.base.generation_config.eos_token_id
    with pytest.raises(InputError, match="the padding token is the end of text too, and no attention_mask"):
        model.weights(ids)
    model.weights(ids, mask)
    ids[1, :4] = ids[0, :4]  # texts that begin so
    assert torch.equal(model.weights(ids), model.weights(ids, torch.ones_like(ids)))
    with pytest.raises(InputError, match=r"input_ids of shape \[2, 0\]: expected"):
        model.weights(ids[:, :0])


def test_what_a_gate_reads_is_the_base_whatever_is_held(shared: Library) -> None:
    model, ids = made(shared), batch()
    expected, options = model.weights(ids), {"max_new_tokens": 3, "do_sample": False}
    out = model.generate(ids, **options)
    outer = torch.full((3, 1, 3), 3.0)
    with torch.no_grad(), model.held(outer):
        before = model.base(input_ids=ids).logits
        assert torch.equal(model.weights(ids), expected)
        assert torch.equal(model.generate(ids, **options), out)
        assert torch.equal(model.base(input_ids=ids).logits, before), "what was held before is held again"
    assert float((before - model.base(input_ids=ids).logits).abs().max()) > 1e-2


def test_prompts_that_are_none(shared: Library) -> None:
    model = made(shared)
    assert model.answers([]) == []
    with pytest.raises(InputError, match="got one text, expected a list of prompts"):
        model.answers("aki")
    with pytest.raises(InputError, match=r"answers: prompts\[1\] has no token; expected a text"):
        model.answers(["aki", ""])


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
    (folder / "gate.safetensors").unlink()
    with pytest.raises(SourceError, match="no such file; expected the gate's weights"):
        GatedModel.from_pretrained(folder)
    folder = copy("c")
    weights = folder / "library" / "two" / "adapter_model.safetensors"
    shutil.copyfile(library.place("eight") / "adapter_model.safetensors", weights)
    with pytest.raises((LibraryError, SourceError)):
        GatedModel.from_pretrained(folder)


def test_a_gate_is_held_against_what_it_was_trained_with(library: Library, base: Path, tmp_path: Path) -> None:
    made(library).save_pretrained(tmp_path / "gated")
    file = tmp_path / "gated" / "gate_config.json"
    config = json.loads(file.read_text())
    assert config["base_sha256"] == library.index.base.sha256
    assert config["skills_sha256"] == {n: library.index.skills[n].sha256 for n in NAMES}
    # Another adapter under the name of one that was there, hashes and all.
    remove(tmp_path / "gated" / "library", "two")
    add(tmp_path / "gated" / "library", "two", make_lora(base, tmp_path / "other", 77, r=2, lora_alpha=7))
    with pytest.raises(LibraryError, match='its gate was trained with another skill "two"'):
        GatedModel.from_pretrained(tmp_path / "gated")
    file.write_text(json.dumps(config | {"skills_sha256": {}, "base_sha256": "0" * 64}))
    with pytest.raises(LibraryError, match="its gate was trained on another base"):
        GatedModel.from_pretrained(tmp_path / "gated")
    # Folders of before hashes were kept.
    file.write_text(json.dumps({k: v for k, v in config.items() if not k.endswith("sha256")}))
    GatedModel.from_pretrained(tmp_path / "gated")


def test_a_library_takes_no_gated_model(library: Library) -> None:
    with pytest.raises(LibraryError, match="lies in the skill library"):
        made(library).save_pretrained(library.folder / "gated")
    assert {p.name for p in library.folder.iterdir()} - {".lock"} == {"skills.yaml", *NAMES}


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


FAMILIES: dict[str, tuple[transformers.PreTrainedConfig, list[str]]] = {
    # Learned positions, which a left padding must not shift.
    "gpt2": (
        transformers.GPT2Config(
            vocab_size=134, n_embd=16, n_layer=2, n_head=2, n_positions=32, eos_token_id=1, pad_token_id=0
        ),
        ["c_attn"],
    ),
    "gpt_neo": (
        transformers.GPTNeoConfig(
            vocab_size=134, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global"], 2]],
            max_position_embeddings=32, intermediate_size=24, eos_token_id=1, pad_token_id=0,
        ),
        ["q_proj"],
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing_with_learned_positions(family: str, tmp_path: Path) -> None:
    config, targets = FAMILIES[family]
    base = tiny(tmp_path / "base", config)
    for seed, name in enumerate(("a", "b")):
        library = add(tmp_path / "library", name, make_lora(base, tmp_path / name, seed, target_modules=targets))
    model = made(library, names=("a", "b"))
    rows = [batch(1, 1, 3), batch(2, 1, 11)]
    for side in ("left", "right"):
        ids, mask = torch.zeros(2, 11, dtype=torch.long), torch.zeros(2, 11, dtype=torch.long)
        for i, row in enumerate(rows):
            where = slice(11 - row.shape[1], 11) if side == "left" else slice(0, row.shape[1])
            ids[i, where], mask[i, where] = row[0], 1
        together = model.weights(ids, mask)
        with torch.no_grad():
            logits = model(ids, mask, prompt_mask=mask).logits
        for i, row in enumerate(rows):
            assert float((model.weights(row)[0] - together[i]).abs().max()) < 1e-5, side
            with torch.no_grad():
                alone = model(row, prompt_mask=torch.ones_like(row)).logits[0]
            assert float((logits[i][mask[i] == 1] - alone).abs().max()) < 1e-4, side
    ids, mask = torch.zeros(2, 11, dtype=torch.long), torch.zeros(2, 11, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, -row.shape[1] :], mask[i, -row.shape[1] :] = row[0], 1
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    both = model.generate(ids, mask, **options)[:, 11:]
    for i, row in enumerate(rows):
        assert torch.equal(both[i], model.generate(row, **options)[0, row.shape[1] :])


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


@pytest.mark.filterwarnings("ignore")
def test_layers_without_a_place_are_refused(
    library: Library, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A skill that the live model would silently pass over."""
    import evomerge.skills.mixed as mixed

    found = open_library(library, ["two"])
    live = transformers.AutoModelForCausalLM.from_pretrained(library.base, dtype=torch.float32)
    # A layer whose weight is used, and which is never called, as some families have it.
    attention = live.model.layers[1].self_attn
    layer = attention.q_proj
    passing = torch.nn.Linear(16, 16, bias=False)
    passing.forward = lambda x: torch.nn.functional.linear(x, layer.weight)  # type: ignore[method-assign]
    attention.add_module("q_proj", passing)
    attention.q_proj = passing
    with monkeypatch.context() as patch, pytest.raises(SourceError) as never:
        real = live.get_submodule
        patch.setattr(live, "get_submodule", lambda n: layer if n == "model.layers.1.self_attn.q_proj" else real(n))
        mixed.Mixed(live, [found.skills["two"]], per_layer=False)
    assert 'no linear layer of its own for "model.layers.1.self_attn.q_proj.weight"' in str(never.value)

    class Scale(torch.nn.Module):
        weight = torch.nn.Parameter(torch.ones(16, 16))

    attention.q_proj = Scale()
    with pytest.raises(SourceError, match="no linear layer of its own"):
        mixed.Mixed(live, [found.skills["two"]], per_layer=False)


@pytest.mark.filterwarnings("ignore")
def test_a_head_has_the_last_layer_s_weight(base: Path, tmp_path: Path) -> None:
    library = add(
        tmp_path / "library", "head", make_lora(base, tmp_path / "head", target_modules=["lm_head", "q_proj"]),
        base=str(base),
    )  # fmt: skip
    model, ids = made(library, groups=LAYERS, names=("head",)), batch(rows=1)
    weights = torch.zeros(1, LAYERS, 1)
    with torch.no_grad():
        plain = model.base(input_ids=ids, output_hidden_states=True)
        weights[0, -1] = 1.0
        with model.held(weights):
            found = model.base(input_ids=ids, output_hidden_states=True)
    last = LAYERS - 1
    assert torch.equal(found.hidden_states[last], plain.hidden_states[last])
    alone = found.hidden_states[-1] @ model.base.lm_head.weight.T
    assert float((found.logits - alone).abs().max()) > 1e-2, "the head is changed too"
