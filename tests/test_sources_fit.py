"""Models that can be merged tensor by tensor, and why others cannot: every mismatch in one message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from evomerge.errors import SourceError
from evomerge.sources import TEXT, Source, check_fit, check_path_fit, open_source

WIDTH, HEAD = 4, 2


def tensors_of(config: dict[str, Any], style: str = "model.") -> dict[str, np.ndarray]:
    """The tensors that a llama of this configuration has; `style` is the prefix of its inner model."""
    heads, kv, inner, rows = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "intermediate_size",
                                                  "vocab_size"))  # fmt: skip
    width = config["hidden_size"]
    shapes = {"embed_tokens.weight": (rows, width), "norm.weight": (width,)}
    for i in range(config["num_hidden_layers"]):
        shapes |= {
            f"layers.{i}.self_attn.q_proj.weight": (heads * HEAD, width),
            f"layers.{i}.self_attn.k_proj.weight": (kv * HEAD, width),
            f"layers.{i}.mlp.up_proj.weight": (inner, width),
        }
    found = {style + name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    if not config["tie_word_embeddings"]:
        found[
            style.removesuffix("model.") + "lm_head.weight" if style != "model.language_model." else "lm_head.weight"
        ] = np.ones((rows, width), np.float32)
    return found


def llama(**changes: Any) -> dict[str, Any]:
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": WIDTH,
        "intermediate_size": 6, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 11,
        "tie_word_embeddings": False,
    } | changes  # fmt: skip


def saved(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray] | None = None) -> Source:
    folder.mkdir(parents=True)
    save_file(tensors_of(config) if tensors is None else tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return open_source(str(folder))


def vlm(folder: Path, style: str = "language_model.model.", tower: int = 3, **changes: Any) -> Source:
    """A vision-language model around the llama."""
    text = llama(**changes)
    config = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": text,
              "vision_config": {"model_type": "clip_vision_model"}, "tie_word_embeddings": False}  # fmt: skip
    tensors = tensors_of(text, style)
    for i in range(2):
        tensors[f"vision_tower.encoder.layers.{i}.fc.weight"] = np.ones((tower, tower), np.float32)
    tensors["multi_modal_projector.linear_1.weight"] = np.ones((WIDTH, tower), np.float32)
    return saved(folder, config, tensors)


@pytest.fixture
def model(tmp_path: Path) -> Source:
    return saved(tmp_path / "model", llama())


def refused(*sources: Source, check: Callable[..., None] = check_fit, **options: Any) -> list[str]:
    """What is said of each source that does not fit the first."""
    with pytest.raises(SourceError) as e:
        check(list(sources), **options)
    head, *lines = str(e.value).split("\n  ")
    if not lines:  # one source: one line
        head, _, line = head.partition(": ")
        lines = [line]
    assert head.rstrip(":") == "the sources do not fit each other"
    found = []
    for line in lines:
        who, _, told = line.partition(f' does not fit "{sources[0].reference}": ')
        assert who in [f'"{s.reference}"' for s in sources[1:]] and told and "\n" not in told
        found.append(told)
    return found


FUSED = "(models of different shape are fused first: evomerge fuse, docs/fusion.md)"
PAIRED = "(use `slices:` with layer_range to choose which layers are paired)"
TOKENS = "(a tokenizer in the recipe reconciles vocabularies: tokenizer_source: union, base, or one of the models)"
ALIKE = "(use models saved alike)"
MISMATCHES: dict[str, dict[str, Any]] = {
    "architecture MistralForCausalLM against LlamaForCausalLM (models of different architecture are fused first: "
    "evomerge fuse, docs/fusion.md)": {"model_type": "mistral", "architectures": ["MistralForCausalLM"]},
    f"hidden_size 8 against 4 {FUSED}": {"hidden_size": 8},
    'num_attention_heads 4 against 2, tensor "model.layers.0.self_attn.q_proj.weight" has shape [8, 4] against [4, 4] '
    f"and 1 more of its kind {FUSED}": {"num_attention_heads": 4},
    'num_key_value_heads 2 against 1, tensor "model.layers.0.self_attn.k_proj.weight" has shape [4, 4] against [2, 4] '
    f"and 1 more of its kind {FUSED}": {"num_key_value_heads": 2},
    'intermediate_size 8 against 6, tensor "model.layers.0.mlp.up_proj.weight" has shape [8, 4] against [6, 4] '
    f"and 1 more of its kind {FUSED}": {"intermediate_size": 8},
    f"vocab_size 12 against 11 {TOKENS}": {"vocab_size": 12},
    f"3 layers against 2 {PAIRED}": {"num_hidden_layers": 3},
    '"<other>" has no output head of its own, its embedding is tied to it (save it with one: tie_word_embeddings: '
    "false and a copy of the embedding as lm_head.weight)": {"tie_word_embeddings": True},
}  # fmt: skip


@pytest.mark.parametrize("words", MISMATCHES)
def test_mismatches(words: str, model: Source, tmp_path: Path) -> None:
    other = saved(tmp_path / "other", llama(**MISMATCHES[words]))
    assert refused(model, other) == [words.replace("<other>", other.reference)]


@pytest.mark.parametrize("gone", [{"model_type": None}, {"architectures": None}, {"architectures": []}])
def test_an_entry_that_is_missing_is_not_another(gone: dict[str, Any], model: Source, tmp_path: Path) -> None:
    check_fit([model, saved(tmp_path / "other", llama(**gone))])
    changed: dict[str, Any] = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]} | gone
    (told,) = refused(model, saved(tmp_path / "another", llama(**changed)))
    by_type = "model_type mistral against llama"
    by_class = "architecture MistralForCausalLM against LlamaForCausalLM"
    assert told.startswith(f"{by_class if 'model_type' in gone else by_type} (models of different architecture")


def test_one_class_under_two_types(model: Source, tmp_path: Path) -> None:
    (told,) = refused(model, saved(tmp_path / "other", llama(model_type="mistral")))
    assert told.startswith("model_type mistral against llama (")


def test_heads_of_one_total_width_do_not_correspond(model: Source, tmp_path: Path) -> None:
    tensors = tensors_of(llama())  # 4 heads of 1 have the shapes of 2 heads of 2
    other = saved(tmp_path / "other", llama(num_attention_heads=4), tensors)
    assert refused(model, other) == [f"num_attention_heads 4 against 2 {FUSED}"]


def test_every_mismatch_of_every_source_at_once(model: Source, tmp_path: Path) -> None:
    one = saved(tmp_path / "one", llama(num_key_value_heads=2, vocab_size=12, num_hidden_layers=3))
    fits = saved(tmp_path / "fits", llama())
    two = saved(tmp_path / "two", llama(hidden_size=8, vocab_size=12, num_hidden_layers=1))
    assert refused(model, one, fits, two) == [
        'num_key_value_heads 2 against 1, tensor "model.layers.0.self_attn.k_proj.weight" has shape [4, 4] against '
        f"[2, 4] and 1 more of its kind {FUSED}; vocab_size 12 against 11 {TOKENS}; 3 layers against 2 {PAIRED}",
        f"hidden_size 8 against 4 {FUSED}; vocab_size 12 against 11 {TOKENS}; 1 layers against 2 {PAIRED}",
    ]


def test_lacking_and_extra_tensors(model: Source, tmp_path: Path) -> None:
    tensors = tensors_of(llama())
    tensors["model.layers.0.extra.weight"] = tensors["model.layers.1.extra.weight"] = tensors.pop("model.norm.weight")
    # What old checkpoints have and nobody needs is no mismatch.
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    tensors["model.layers.0.attention.bias"] = np.ones((1, 1, 8, 8), np.float32)
    assert refused(model, saved(tmp_path / "other", llama(), tensors)) == [
        'lacks tensor "model.norm.weight", has the extra tensor "model.layers.0.extra.weight" and 1 more of its kind '
        f"{ALIKE}"
    ]


def test_a_message_has_an_end(model: Source, tmp_path: Path) -> None:
    tensors = tensors_of(llama()) | {f"model.layers.0.extra{i}.weight": np.ones(2, np.float32) for i in range(30)}
    (told,) = refused(model, saved(tmp_path / "other", llama(), tensors))
    assert told.count("has the extra tensor") == 12 and told.endswith("; and 18 more of the kind")


def test_a_tied_head_may_be_stored_or_not(tmp_path: Path) -> None:
    config = llama(tie_word_embeddings=True)
    a, b = saved(tmp_path / "a", config), saved(tmp_path / "b", config, tensors_of(llama()))
    check_fit([a, b])
    assert a.tied and b.tied and "lm_head.weight" not in b.merged_tensors


@pytest.mark.parametrize("head", [np.full((11, WIDTH), 2, np.float32), np.ones((11, WIDTH), np.float16)])
def test_another_head_than_the_embedding_is_not_tied(head: np.ndarray, tmp_path: Path) -> None:
    config = llama(tie_word_embeddings=True)
    own = saved(tmp_path / "own", config, tensors_of(llama()) | {"lm_head.weight": head})
    assert not own.tied and "lm_head.weight" in own.merged_tensors
    (told,) = refused(own, saved(tmp_path / "tied", config))
    assert "has no output head of its own" in told
    check_fit([own, saved(tmp_path / "untied", llama())])


def test_a_head_that_is_stored_alone_is_the_embedding(tmp_path: Path) -> None:
    tensors = tensors_of(llama())
    del tensors["model.embed_tokens.weight"]
    source = saved(tmp_path / "a", llama(tie_word_embeddings=True), tensors)
    assert source.tied and "lm_head.weight" in source.merged_tensors


def test_other_layers_may_be_chosen(model: Source, tmp_path: Path) -> None:
    check_fit([model, saved(tmp_path / "deep", llama(num_hidden_layers=5))], layers=False)


def test_vocabularies_that_a_tokenizer_reconciles(model: Source, tmp_path: Path) -> None:
    larger = saved(tmp_path / "larger", llama(vocab_size=13))
    check_fit([model, larger], vocabulary=False)
    assert refused(model, larger) == [f"vocab_size 13 against 11 {TOKENS}"]
    # Other mismatches are told all the same.
    wide = saved(tmp_path / "wide", llama(vocab_size=13, intermediate_size=8))
    (told,) = refused(model, wide, vocabulary=False)
    assert told.startswith("intermediate_size 8 against 6, tensor ") and "vocab" not in told and "embed" not in told


def test_rows_that_no_vocabulary_explains(model: Source, tmp_path: Path) -> None:
    tensors = tensors_of(llama(vocab_size=12))
    (told,) = refused(model, saved(tmp_path / "padded", llama(), tensors))
    shapes = "has shape [12, 4] against [11, 4]"
    assert told == f'tensor "lm_head.weight" {shapes}, tensor "model.embed_tokens.weight" {shapes} {FUSED}'


def test_the_language_model_of_a_composite_model(model: Source, tmp_path: Path) -> None:
    first = vlm(tmp_path / "first")
    assert first.composite and first.layout.num_layers == 2 and not model.composite
    check_fit([first, model])  # what both have: the language model
    check_fit([model, first])
    check_fit([first, vlm(tmp_path / "newer", style="model.language_model.")])  # the same under other names
    other_tower = vlm(tmp_path / "tower", tower=5)
    assert "vision_tower.encoder.layers.0.fc.weight" in " ".join(refused(first, other_tower))
    check_fit([first, other_tower], modules=[TEXT])
    (told,) = refused(vlm(tmp_path / "mistral", model_type="mistral"), model)
    assert told.startswith("architecture llama against mistral")


def test_layers_counted_where_a_composite_configuration_leaves_them_out(tmp_path: Path) -> None:
    source = vlm(tmp_path / "model")
    config = dict(source.config, text_config={"model_type": "llama", "vocab_size": 11})  # as llava-1.5 has it
    old = saved(tmp_path / "old", config, {n: np.ones(t.shape, np.float32) for n, t in source.tensors.items()})
    assert old.num_layers == 2
    check_fit([source, old])


def test_in_a_stack_only_the_ends_have_vocabularies(model: Source, tmp_path: Path) -> None:
    wide = saved(tmp_path / "wide", llama(vocab_size=12))
    tied = saved(tmp_path / "tied", llama(tie_word_embeddings=True))
    check_fit([model, wide, tied], layers=False, ends=[model])
    assert refused(model, wide, tied, layers=False, ends=[model, wide]) == [f"vocab_size 12 against 11 {TOKENS}"]
    (told,) = refused(model, wide, tied, layers=False, ends=[model, tied])
    assert told.startswith(f'"{tied.reference}" has no output head of its own')
    # The first model need not be one of them.
    with pytest.raises(SourceError) as e:
        check_fit([tied, model, wide], layers=False, ends=[model, wide])
    assert str(e.value).endswith(
        f'"{wide.reference}" does not fit "{model.reference}": vocab_size 12 against 11 {TOKENS}'
    )
    # Layers still have to be alike.
    other = saved(tmp_path / "other", llama(num_key_value_heads=2))
    (told,) = refused(model, other, layers=False, ends=[model])
    assert told.startswith("num_key_value_heads 2 against 1")


ONE = "(a path has one config.json for all of its layers)"
FULL = {
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "head_dim": HEAD, "max_position_embeddings": 64,
}  # fmt: skip
PATHS: dict[str, dict[str, Any]] = {
    f"rope_parameters.rope_theta 500000.0 against 10000.0 {ONE}":
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    f"rms_norm_eps 1e-05 against 1e-06 {ONE}": {"rms_norm_eps": 1e-5},
    f"hidden_act 'gelu' against 'silu' {ONE}": {"hidden_act": "gelu"},
    f"hidden_act 'gelu' against 'silu', rms_norm_eps 1e-05 against 1e-06 {ONE}":
        {"rms_norm_eps": 1e-5, "hidden_act": "gelu"},
    f"rope_parameters.rope_type 'linear' against 'default' {ONE}":
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
    f"head_dim 4 against 2 {FUSED}": {"head_dim": 4},
}  # fmt: skip


@pytest.mark.parametrize("words", PATHS)
def test_what_all_layers_of_a_path_share(words: str, tmp_path: Path) -> None:
    first = saved(tmp_path / "first", llama(**FULL))
    other = saved(tmp_path / "other", llama(**{**FULL, **PATHS[words]}))
    assert refused(first, other, check=check_path_fit) == [words]
    if ONE in words:
        check_fit([first, other])  # tensor by tensor they can be merged


def test_everything_that_keeps_layers_off_one_path(tmp_path: Path) -> None:
    first = saved(tmp_path / "first", llama(**FULL))
    other = saved(tmp_path / "other", llama(**{**FULL, "rms_norm_eps": 1e-5, "num_key_value_heads": 2}))
    wide = saved(tmp_path / "wide", llama(**FULL, hidden_size=8, num_attention_heads=4))
    told = refused(first, other, wide, check=check_path_fit)
    assert told == [
        'num_key_value_heads 2 against 1, tensor "model.layers.0.self_attn.k_proj.weight" has shape [4, 4] against '
        f"[2, 4] {FUSED}; rms_norm_eps 1e-05 against 1e-06 {ONE}",
        f"hidden_size 8 against 4, num_attention_heads 4 against 2 {FUSED}",
    ]


def test_another_architecture_is_told_alone(tmp_path: Path) -> None:
    changed = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "rms_norm_eps": 1e-5}
    sources = [saved(tmp_path / "a", llama(**FULL)), saved(tmp_path / "b", llama(**{**FULL, **changed}))]
    (told,) = refused(*sources, check=check_path_fit)
    assert told.startswith("architecture MistralForCausalLM against LlamaForCausalLM") and ONE not in told


def test_what_models_of_one_path_may_have_of_their_own(tmp_path: Path) -> None:
    own = {
        "num_hidden_layers": 3, "vocab_size": 13, "bos_token_id": 7, "eos_token_id": [1, 2], "pad_token_id": 3,
        "dtype": "float16", "_name_or_path": "elsewhere", "transformers_version": "4.1", "use_cache": False,
        "max_position_embeddings": 128, "attention_dropout": 0.1, "initializer_range": 0.5,
        "layer_types": ["full_attention"] * 3, "tie_word_embeddings": True,
    }  # fmt: skip
    first = saved(tmp_path / "first", llama(**FULL))
    other = saved(tmp_path / "other", llama(**{**FULL, **own}))
    check_path_fit([first, other])
    check_path_fit({"first": first, "other": other}, ends=[first])
    check_path_fit([first])
    (told,) = refused(first, other, check=check_path_fit, ends=[first, other])
    assert told.startswith("vocab_size 13 against 11")


def test_older_names_and_what_is_left_out_are_no_difference(tmp_path: Path) -> None:
    new = {**FULL, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}
    old = {"rope_scaling": {"type": "linear", "factor": 2.0}, "max_position_embeddings": 64}  # the rest as by default
    first = saved(tmp_path / "first", llama(**new))
    check_path_fit([first, saved(tmp_path / "other", llama(**old))])
    changed = {**old, "rope_theta": 2e4}
    assert refused(first, saved(tmp_path / "changed", llama(**changed)), check=check_path_fit) == [
        f"rope_parameters.rope_theta 20000.0 against 10000.0 {ONE}"
    ]


def test_a_family_that_transformers_does_not_know(tmp_path: Path) -> None:
    nobody = {"model_type": "nobody", "architectures": ["NobodyForCausalLM"], "twist": 3}
    first = saved(tmp_path / "first", llama(**nobody))
    check_path_fit([first, saved(tmp_path / "same", llama(**nobody))])
    for number, (twist, words) in enumerate({4: "4", None: "none given"}.items()):
        changed = {k: v for k, v in {**nobody, "twist": twist}.items() if v is not None}
        other = saved(tmp_path / f"{number}", llama(**changed))
        assert refused(first, other, check=check_path_fit) == [f"twist {words} against 3 {ONE}"]
