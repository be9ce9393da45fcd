"""Live paths: the same as the folded checkpoint in plain transformers, over the sources' own weights."""

from __future__ import annotations

from pathlib import Path as Folder

import pytest
import torch
import transformers
from torch import Tensor

from evomerge.errors import RecipeError
from evomerge.recipe import Path
from evomerge.routing import Router
from evomerge.sources import open_sources
from tests.routing.conftest import LAYERS, Make, Pair, pair_of
from tests.routing.distance import distance

pytestmark = pytest.mark.usefixtures("no_grad")
CLOSE = 1e-5
PATHS = ["repeats", "skips", "swaps", "backwards", "other ends", "strange ends"]


def test_the_identity_path_is_the_source_bit_for_bit(any_pair: Pair, tokens: Tensor) -> None:
    router = any_pair.router()
    for model in (any_pair.a, any_pair.b, any_pair.a):
        live = router.route(any_pair.identity(model))
        source = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        assert torch.equal(live(tokens).logits, source(tokens).logits)
        router.route(any_pair.paths()["swaps"])


@pytest.mark.parametrize("name", PATHS)
def test_live_equals_folded(any_pair: Pair, name: str, tokens: Tensor, tmp_path: Folder) -> None:
    path = any_pair.paths()[name]
    router = any_pair.router()
    plain = router.route(any_pair.identity(any_pair.a))(tokens).logits
    live = router.route(path)(tokens).logits
    folded = any_pair.folded(path, tmp_path / "out")
    assert distance(live, folded(tokens).logits) < CLOSE
    assert distance(live, plain) > 0.05, "the path is another model than its source"
    unscaled = router.route(Path.scaled([(h.model, h.layer) for h in path.hops], None, path.embeddings, path.head))
    if any(hop.factor != 1 for hop in path.hops):
        assert distance(live, unscaled(tokens).logits) > 1e-3, "the scales matter"


@pytest.mark.parametrize("name", PATHS)
def test_the_configuration_is_the_folded_one(any_pair: Pair, name: str, tmp_path: Folder) -> None:
    path = any_pair.paths()[name]
    live = any_pair.router().route(path).config.to_dict()
    folded = any_pair.folded(path, tmp_path / "out").config.to_dict()
    own = {"use_cache", "_name_or_path", "dtype"}
    assert {k: v for k, v in live.items() if k not in own} == {k: v for k, v in folded.items() if k not in own}
    assert live.get("num_hidden_layers", live.get("n_layer")) == len(path.hops)


@pytest.mark.parametrize("name", PATHS)
def test_cached_generation_equals_recomputation_and_folded(pair: Pair, name: str, tmp_path: Folder) -> None:
    path = pair.paths()[name]
    prompts = torch.randint(3, 130, (3, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(prompts)
    for row, padding in enumerate((0, 4, 7)):  # on the left, as lm-eval does it
        prompts[row, :padding], mask[row, :padding] = 0, 0
    router = pair.router(prefix_bytes=10_000_000)
    live, folded = router.route(path), pair.folded(path, tmp_path / "out")
    options = {
        "attention_mask": mask, "max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False, "pad_token_id": 0,
        "output_logits": True, "return_dict_in_generate": True,
    }  # fmt: skip
    made, expected = (model.generate(prompts, **options) for model in (live, folded))
    assert torch.equal(made.sequences, expected.sequences)
    cached = torch.stack(made.logits, 1)
    assert distance(cached, torch.stack(expected.logits, 1)) < CLOSE
    # One cached pass per token, each of one position: the cache was used, in a slot for every hop.
    assert router.counts.asked == router.counts.run == len(path.hops) * len(prompts) * 64
    assert len(made.past_key_values.layers) == len(path.hops)

    whole = torch.cat([mask, mask.new_ones(len(mask), 64)], 1)
    positions = (whole.cumsum(-1) - 1).clamp(min=0)
    again = live(made.sequences, attention_mask=whole, position_ids=positions).logits
    assert distance(cached, again[:, prompts.shape[1] - 1 : -1]) < CLOSE


def test_one_object_for_every_path(any_pair: Pair, tokens: Tensor) -> None:
    router = any_pair.router()
    models = [router.route(path) for path in (*any_pair.paths().values(), any_pair.identity(any_pair.b))]
    assert all(model is models[0] for model in models)
    assert isinstance(models[0], transformers.PreTrainedModel) and not models[0].training
    # What is asked of it is of the path that it is set to.
    expected = any_pair.router().route(any_pair.identity(any_pair.b))(tokens).logits
    assert torch.equal(models[0](tokens).logits, expected)


def test_no_weight_is_copied(llama: Pair) -> None:
    router = llama.router()
    path = Path.scaled([(llama.a, 1), (llama.b, 2), (llama.a, 1)], [0.9, 1.1, 1.2], embeddings=llama.a, head=llama.b)
    first = dict(router.route(path).named_parameters(remove_duplicate=False))
    assert first["model.layers.0.mlp.up_proj.weight"] is first["model.layers.2.mlp.up_proj.weight"]
    places = {name: p.data_ptr() for name, p in first.items()}
    # The other source's layer in between; and other paths stand on the same tensors.
    assert places["model.layers.1.mlp.up_proj.weight"] != places["model.layers.0.mlp.up_proj.weight"]
    second = dict(router.route(llama.identity(llama.a)).named_parameters(remove_duplicate=False))
    for name in ("self_attn.o_proj.weight", "self_attn.o_proj.bias", "mlp.down_proj.weight", "input_layernorm.weight"):
        assert second[f"model.layers.1.{name}"].data_ptr() == places[f"model.layers.2.{name}"]
    assert second["model.embed_tokens.weight"].data_ptr() == places["model.embed_tokens.weight"]
    assert second["lm_head.weight"].data_ptr() != places["lm_head.weight"]


def test_sources_of_other_depths(make: Make, tokens: Tensor, tmp_path: Folder) -> None:
    """Each with its own windows: a layer keeps its kind of attention, and its slot of the cache, wherever it goes."""
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    a = make("qwen2")
    b = make("qwen2", 2, name="-deeper", num_hidden_layers=5, layer_types=kinds)
    pair = Pair("qwen2", a, b, open_sources([a, b]))
    router = pair.router(prefix_bytes=1_000_000)
    layers = [(b, 4), (a, 1), (b, 3), (a, 3), (b, 0), (b, 2)]
    for number, (embeddings, head) in enumerate(((a, b), (b, a), (b, b))):
        path = Path.scaled(layers[: 4 + number], [1.1, 0.8, 1, 1.3, 0.9, 1][: 4 + number], embeddings, head)
        live, folded = router.route(path), pair.folded(path, tmp_path / str(number))
        assert live.config.layer_types == folded.config.layer_types
        assert distance(live(tokens).logits, folded(tokens).logits) < CLOSE
        options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
        mask = torch.ones_like(tokens)
        assert torch.equal(
            live.generate(tokens, attention_mask=mask, **options),
            folded.generate(tokens, attention_mask=mask, **options),
        )
    with pytest.raises(RecipeError, match="the model has 4 layers; expected 0 to 3"):
        router.route(Path.scaled([(b, 4), (a, 4)]))


def test_a_source_with_an_adapter(llama: Pair, tokens: Tensor, tmp_path: Folder) -> None:
    peft = pytest.importorskip("peft")
    plain = transformers.AutoModelForCausalLM.from_pretrained(llama.b)
    adapted = peft.get_peft_model(plain, peft.LoraConfig(r=4, target_modules=["q_proj", "o_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(5)
    for name, p in adapted.named_parameters():
        if "lora" in name:
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    adapted.save_pretrained(tmp_path / "adapter")
    tuned = f"{llama.b}+{tmp_path / 'adapter'}"
    pair = Pair("llama", llama.a, tuned, open_sources([llama.a, llama.b, tuned]))
    router = pair.router(prefix_bytes=1_000_000)
    found = router.route(pair.identity(tuned))(tokens).logits
    assert distance(found, adapted.merge_and_unload().eval()(tokens).logits) < CLOSE
    assert distance(found, router.route(pair.identity(llama.b))(tokens).logits) > 0.05
    path = Path.scaled([(llama.a, 0), (tuned, 1), (llama.b, 1), (tuned, 3)], [1, 0.8, 1.2, 0.9], tuned, llama.a)
    live = router.route(path)(tokens).logits
    assert distance(live, pair.folded(path, tmp_path / "out")(tokens).logits) < CLOSE


def test_one_type_for_all_sources(make: Make, tokens: Tensor, tmp_path: Folder) -> None:
    a, b = make(), str(tmp_path / "half")
    transformers.AutoModelForCausalLM.from_pretrained(make(seed=2), dtype=torch.bfloat16).save_pretrained(b)
    path = Path.scaled([(a, 0), (b, 1)], [1.0, 0.8])
    for first, dtype in ((a, torch.float32), (b, torch.bfloat16)):
        live = Router(open_sources([first, a, b])).route(path)
        assert live(tokens).logits.dtype == dtype


def test_sources_are_left_as_they_are(any_pair: Pair) -> None:
    router = any_pair.router()
    router.route(any_pair.identity(any_pair.a))
    resident = router._residents[any_pair.a].live
    before = {name: (p, p.clone()) for name, p in resident.named_parameters()}
    settings = resident.config.to_dict()
    for path in any_pair.paths().values():
        router.route(path)(torch.tensor([[5, 6, 7]]))
    assert resident.config.to_dict() == settings
    assert resident.config.get_text_config().num_hidden_layers == LAYERS
    for name, p in resident.named_parameters():
        assert p is before[name][0] and torch.equal(p, before[name][1])


def test_a_tied_head_is_the_embedding(make: Make, tokens: Tensor) -> None:
    tied = pair_of("qwen2 tied", make)
    path = Path.scaled([(tied.a, 0), (tied.b, 1)], embeddings=tied.b, head=tied.a)
    live = tied.router().route(path)
    assert live.get_output_embeddings().weight is live.get_input_embeddings().weight
    live.tie_weights()  # as lm-eval does
    assert torch.equal(live.get_output_embeddings().weight, tied.tensor(tied.b, "model.embed_tokens.weight"))
    assert torch.equal(live.get_submodule("model.norm").weight, tied.tensor(tied.a, "model.norm.weight"))


def test_hidden_states_are_those_of_the_path(llama: Pair, tokens: Tensor) -> None:
    router = llama.router(prefix_bytes=10_000_000)
    for name in ("swaps", "repeats", "other ends", "swaps"):
        path = llama.paths()[name]
        for _ in range(2):
            states = router.route(path)(tokens, output_hidden_states=True).hidden_states
            assert len(states) == len(path.hops) + 1
    alone = llama.router().route(llama.paths()["swaps"])(tokens, output_hidden_states=True).hidden_states
    assert all(torch.equal(x, y) for x, y in zip(states, alone, strict=True))


def test_layers_keep_what_models_ask_of_them(make: Make) -> None:
    pair = pair_of("qwen2", make)
    path = Path.scaled([(pair.a, 1), (pair.a, 0), (pair.b, 3), (pair.b, 3)])
    live = pair.router().route(path)
    layers = live.get_submodule("model.layers")
    assert [type(layer).__name__ for layer in layers] == ["Qwen2DecoderLayer"] * 4
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
    assert live.config.layer_types == kinds
    assert [layer.self_attn.layer_type for layer in layers] == kinds
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1, 2, 3]
