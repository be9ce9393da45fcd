"""Tokens that only the vision-language model has that a merge of text models is put into; its processor writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from evomerge.errors import RecipeError
from evomerge.merging.engine import Engine
from evomerge.merging.live import live_model
from evomerge.pipeline.seeing import inside
from evomerge.recipe import Recipe, parse_recipe
from evomerge.sources import open_sources
from evomerge.space import SpaceConfig

Make = Callable[..., Path]
OWN = ("<image>", "<vision_start>")
TEXT = "language_model."
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def vlm(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with two tokens that no text model knows, 134 and 135, and rows of padding after them."""
    folder = tmp_path_factory.mktemp("own") / "vlm"
    made = make("llava", 5, 3, dtype=torch.bfloat16)
    model = live_model(made)
    model.resize_token_embeddings(144, mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    assert len(tokenizer) == 134 and tokenizer.add_tokens(list(OWN)) == 2
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(make: Make) -> tuple[Path, Path]:
    base = make("llama", 3, 3, dtype=torch.bfloat16)
    return base, make("llama", 4, 3, dtype=torch.bfloat16, near=base)


def built(recipe: Recipe) -> dict[str, torch.Tensor]:
    return dict(Engine(open_sources(recipe.references())).tensors(recipe))


def said(base: Path, tuned: Path, into: Path, source: str) -> Recipe:
    """A task vector alone, as a control searches it."""
    return parse_recipe(f"""
merge_method: task_arithmetic
base_model: {base}
models: [{{model: {tuned}, parameters: {{weight: 0.5}}}}]
tokenizer_source: {source}
evomerge: {{into: {into}}}
""")


def test_a_text_model_inside_keeps_them(vlm: Path, texts: tuple[Path, Path]) -> None:
    """Zeros for what marks a picture would be no control, but a model that is broken."""
    data = {"method": "linear", "sources": [*map(str, texts)], "tokenizer_source": str(vlm),
            "parameters": {"weight": {"low": 0, "high": 1}}}  # fmt: skip
    space = SpaceConfig.model_validate(data)
    got = built(inside(str(texts[1]), str(vlm), space))
    own, text = load_file(vlm / "model.safetensors"), load_file(texts[1] / "model.safetensors")
    for table in TABLES:
        found = got[TEXT + table]
        assert torch.equal(found[:134], text[table])
        assert torch.equal(found[134:136], own[TEXT + table][134:136]) and found[134:136].any()


@pytest.mark.parametrize("source", ["vlm", "union"])
def test_a_task_vector_alone_keeps_them(vlm: Path, texts: tuple[Path, Path], source: str, tmp_path: Path) -> None:
    base, tuned = texts
    recipe = said(base, tuned, vlm, str(vlm) if source == "vlm" else source)
    Engine(open_sources(recipe.references())).write(recipe, tmp_path / "out")
    got = load_file(tmp_path / "out" / "model.safetensors")
    own, first, second = (load_file(f / "model.safetensors") for f in (vlm, base, tuned))
    for table in TABLES:
        middle = first[table].double() + 0.5 * (second[table].double() - first[table].double())
        torch.testing.assert_close(got[TEXT + table][:134].double(), middle, rtol=2**-8, atol=1e-6)
        assert torch.equal(got[TEXT + table][134:136], own[TEXT + table][134:136])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids(list(OWN)) == [134, 135]
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.image_token_index == 5 and config.text_config.vocab_size == len(got[TEXT + TABLES[0]])


def test_what_a_merged_model_has_goes_first(vlm: Path, texts: tuple[Path, Path], make: Make, tmp_path: Path) -> None:
    """The model that is put into fills what nobody else has, and nothing else."""
    tuned = tmp_path / "tuned"
    model = live_model(texts[1])
    model.resize_token_embeddings(135, mean_resizing=False)
    model.save_pretrained(tuned)
    tokenizer = transformers.AutoTokenizer.from_pretrained(texts[1])
    tokenizer.add_tokens([OWN[1]])
    tokenizer.save_pretrained(tuned)
    got = built(said(texts[0], tuned, vlm, str(vlm)))
    own, other = load_file(vlm / "model.safetensors"), load_file(tuned / "model.safetensors")
    for table in TABLES:
        assert torch.equal(got[TEXT + table][134], own[TEXT + table][134])
        assert torch.equal(got[TEXT + table][135], other[table][134])


def test_a_recipe_may_name_it(vlm: Path, texts: tuple[Path, Path]) -> None:
    def asked(token: str) -> Recipe:
        found = said(*texts, vlm, str(vlm)).to_dict()
        found.pop("tokenizer_source")
        wish = {"source": {"kind": "model_token", "model": str(vlm), "token": token}, "force": True}
        found["tokenizer"] = {"source": str(vlm), "tokens": {OWN[0]: wish}}
        return Recipe.model_validate(found)

    own = load_file(vlm / "model.safetensors")[TEXT + TABLES[0]]
    assert torch.equal(built(asked(OWN[1]))[TEXT + TABLES[0]][134], own[135])
    with pytest.raises(RecipeError, match='has no token "<nothing>"'):
        built(asked("<nothing>"))
