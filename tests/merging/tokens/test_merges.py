"""Checkpoints over differing vocabularies: files, special tokens, live models, padded rows, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.errors import InputError, RecipeError, SourceError
from evomerge.merging.chain import OpenChain
from evomerge.merging.engine import Engine
from evomerge.merging.live import live_model_for
from evomerge.merging.operand import Operand, rows_of
from evomerge.merging.planner import Planner
from evomerge.merging.tokens import rows
from evomerge.recipe import parse_chain, parse_recipe
from evomerge.sources import open_sources

TWO = """
merge_method: task_arithmetic
base_model: <BASE>
models: [{model: <CODE>, parameters: {weight: 0.5}}, {model: <CHAT>, parameters: {weight: 0.5}}]
"""


def filled(text: str, models: dict[str, Any]) -> str:
    for short, folder in models.items():
        text = text.replace(short, str(folder))
    return text


def engine_for(text: str, models: dict[str, Any], **options: Any) -> tuple[Any, Engine]:
    recipe = parse_recipe(filled(text, models))
    return recipe, Engine(open_sources(recipe.references()), **options)


def write(text: str, models: dict[str, Any], out: Path) -> Path:
    recipe, engine = engine_for(text, models)
    engine.write(recipe, out)
    return out


def read(file: Path) -> Any:
    return json.loads(file.read_text())


@pytest.fixture
def models(trio: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Copies that a test may change."""
    return {short: str(shutil.copytree(folder, tmp_path / short.strip("<>"))) for short, folder in trio.items()}


def test_special_token_ids_follow_the_tokenizer(models: dict[str, str], tmp_path: Path) -> None:
    for short, ids in (("<BASE>", {"eos_token_id": [1, 5], "pad_token_id": 0}), ("<CODE>", {"eos_token_id": 0})):
        (Path(models[short]) / "generation_config.json").write_text(json.dumps({"temperature": 0.5, **ids}))
    union = write(TWO + "tokenizer_source: union", models, tmp_path / "union")
    config, generation = read(union / "config.json"), read(union / "generation_config.json")
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, 1, None)
    assert generation == {"temperature": 0.5, "eos_token_id": [1, 5], "pad_token_id": 0}
    out = write(TWO + "tokenizer_source: <CODE>", models, tmp_path / "code")
    config, generation = read(out / "config.json"), read(out / "generation_config.json")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|end|>", 0)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (None, 0, 1)
    # The base's own pad token, "<s>", is no token of this vocabulary.
    assert generation == {"temperature": 0.5, "eos_token_id": 0, "pad_token_id": None}
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False).shape[1] > 2


def test_a_model_that_gives_its_tokenizer_alone(models: dict[str, str], tmp_path: Path) -> None:
    """Its tokens, files and special ids; none of its weights; and its content hash beside the others'."""
    text = "{merge_method: linear, models: [{model: <BASE>}], parameters: {weight: 1}, tokenizer_source: <CHAT>}"
    out = write(text, models, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(models["<CHAT>"]).get_vocab()
    assert tokenizer.eos_token == "<|im_end|>" and read(out / "config.json")["eos_token_id"] == tokenizer.eos_token_id
    rows = load_file(out / "model.safetensors")["model.embed_tokens.weight"]
    base = load_file(Path(models["<BASE>"]) / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(rows[:300], base) and not rows[300:].any(), "what nobody who is merged has is zero"
    written = parse_recipe((out / "recipe.yaml").read_text())
    assert written.evomerge.sources.keys() == {models["<BASE>"], models["<CHAT>"]}
    changed = (
        filled(text, models).removesuffix("}") + f", evomerge: {{sources: {{{models['<CHAT>']}: '{'0' * 64}'}}}}}}"
    )
    recipe = parse_recipe(changed)
    with pytest.raises(SourceError, match="its content is not what the recipe was made with"):
        Engine(open_sources(recipe.references())).write(recipe, tmp_path / "again")


def test_a_step_of_a_chain_gives_the_tokenizer(models: dict[str, str], tmp_path: Path) -> None:
    step = TWO + "tokenizer_source: union\nname: both\n---\n"
    text = "{merge_method: linear, models: [{model: <BASE>}], parameters: {weight: 1}, tokenizer_source: both}"
    OpenChain.open(parse_chain(filled(step + text, models))).write(tmp_path / "out")
    union = write(TWO + "tokenizer_source: union", models, tmp_path / "union")
    vocabularies = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (tmp_path / "out", union)]
    assert vocabularies[0] == vocabularies[1]


def test_files_that_would_say_something_else_are_left_out(models: dict[str, str], tmp_path: Path) -> None:
    base = Path(models["<BASE>"])
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model"):
        (base / name).write_text("{}")
    config = read(base / "tokenizer_config.json")
    config["added_tokens_decoder"] = {
        "0": {"content": "<s>", "special": True},
        "1": {"content": "</s>", "special": True},
    }
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    out = write(TWO + "tokenizer_source: union", models, tmp_path / "out")
    names = {p.name for p in out.iterdir() if "token" in p.name or p.name in ("vocab.json", "merges.txt")}
    assert names == {"tokenizer.json", "tokenizer_config.json"}
    assert "added_tokens_decoder" not in read(out / "tokenizer_config.json")
    assert len(AutoTokenizer.from_pretrained(out)) == len(
        load_file(out / "model.safetensors")["model.embed_tokens.weight"]
    )
    # Nothing changes: the same files, byte for byte, the old forms among them.
    same = write(TWO + "tokenizer_source: base", models, tmp_path / "same")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model"):
        assert (same / name).read_bytes() == (base / name).read_bytes()


def test_a_live_model_is_the_written_one(trio: dict[str, str], tmp_path: Path) -> None:
    text = TWO + "tokenizer: {source: union, pad_to_multiple_of: 32}"
    recipe, engine = engine_for(text, trio)
    model = live_model_for(engine.plan(recipe))
    engine.build_into(recipe, model)
    engine.write(recipe, tmp_path / "out")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    live = model.state_dict()
    assert live.keys() == written.state_dict().keys()
    assert all(torch.equal(live[name], values) for name, values in written.state_dict().items())


def test_any_chunk_and_thread_count_gives_the_same_bits(trio: dict[str, str]) -> None:
    text = TWO.replace("task_arithmetic", "ties").replace("weight: 0.5}", "weight: 0.5, density: 0.3}")
    text += "tokenizer: {source: union, pad_to_multiple_of: 64}"
    runs = []
    for options in ({"chunk": 1 << 16}, {"chunk": 256}, {"chunk": 48, "threads": 3}):
        recipe, engine = engine_for(text, trio, **options)
        runs.append(dict(engine.tensors(recipe)))
    for other in runs[1:]:
        assert all(torch.equal(other[name], values) for name, values in runs[0].items())


def test_padded_rows_stay_where_no_tokenizer_is_asked_for(save: Any, code: Tokenizer, tmp_path: Path) -> None:
    """qwen2's checkpoints have more rows than tokens."""
    models = {f"<{n}>": save(f"padded{n}", code, 320, n, eos_token="<|end|>") for n in (1, 2)}
    text = "merge_method: linear\nmodels: [{model: <1>}, {model: <2>}]\nparameters: {weight: 1}\n"
    out = write(text, models, tmp_path / "out")
    rows = load_file(out / "model.safetensors")["lm_head.weight"]
    a, b = (load_file(folder / "model.safetensors")["lm_head.weight"] for folder in models.values())
    torch.testing.assert_close(rows, (a + b) / 2)
    assert rows.shape[0] == 320 == read(out / "config.json")["vocab_size"]
    shorter = write(text + "tokenizer_source: base", models, tmp_path / "shorter")
    assert torch.equal(load_file(shorter / "model.safetensors")["lm_head.weight"], rows[:310])


def test_tokenizers_are_read_once_for_all_candidates(trio: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge.merging.tokens import planned

    recipe = parse_recipe(filled(TWO + "tokenizer_source: union", trio))
    planner = Planner(open_sources(recipe.references()))
    first = planner.plan(recipe)
    monkeypatch.setattr(planned, "merge_vocabularies", lambda *_: pytest.fail("worked out again"))
    other = parse_recipe(recipe.to_yaml().replace("0.5", "0.7"))
    second = planner.plan(other)
    assert second.gathers is first.gathers and second.vocabulary is first.vocabulary
    assert all(t.shape[0] == first.vocabulary.size for t in second.tensors if "embed" in t.name)
    assert {i.tensor for i in first.gathers} <= {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize("source", ["base", "union"])
def test_the_mean_that_padding_gets_is_read_once_for_all_candidates(
    source: str, trio: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    def count(operand: Operand, index: torch.Tensor) -> torch.Tensor:
        counted.append(len(index))
        return rows_of(operand, index)

    monkeypatch.setattr(rows, "rows_of", count)

    def recipe(weight: float, multiple: int) -> Any:
        tokenizer = f"tokenizer: {{source: {source}, pad_to_multiple_of: {multiple}}}"
        return parse_recipe(filled(TWO.replace("0.5", str(weight)) + tokenizer, trio))

    def built(engine: Engine, recipe: Any) -> tuple[dict[str, torch.Tensor], int]:
        before = sum(counted)
        return dict(engine.tensors(recipe)), sum(counted) - before

    sources = open_sources(trio.values())
    kept = Engine(sources)
    built(kept, recipe(0.5, 128))
    for weight, multiple, known in ((0.7, 128, True), (0.7, 256, False), (0.3, 128, True)):
        wanted = recipe(weight, multiple)
        alone, whole = built(Engine(sources), wanted)
        merged, read = built(kept, wanted)
        assert all(torch.equal(merged[name], values) for name, values in alone.items())
        plan = kept.plan(wanted)
        assert plan.vocabulary is not None
        # Every token of every embedding and head, whether its row is the model's own or another's.
        tokens = len(plan.gathers) * len(plan.vocabulary.vocabulary.ids)
        assert whole - read >= tokens if known else whole == read > tokens


def test_a_model_without_a_tokenizer_is_taken_to_have_the_bases(models: dict[str, str], tmp_path: Path) -> None:
    text = TWO.replace("<CODE>", "<BASE>2") + "tokenizer_source: union"
    twin = Path(shutil.copytree(models["<BASE>"], models["<BASE>"] + "2"))
    (twin / "tokenizer.json").unlink()
    out = write(text, models, tmp_path / "out")
    assert len(AutoTokenizer.from_pretrained(out)) == 302
    (Path(models["<CODE>"]) / "tokenizer.json").unlink()
    with pytest.raises(RecipeError, match=r'CODE" has no tokenizer, and not as many embeddings as '):
        write(TWO + "tokenizer_source: union", models, tmp_path / "new")
    (Path(models["<BASE>"]) / "tokenizer.json").unlink()
    with pytest.raises(RecipeError, match=r"BASE: has no tokenizer \(tokenizer.json"):
        write(TWO + "tokenizer_source: union", models, tmp_path / "new")
    assert not (tmp_path / "new").exists()


BAD = {
    'tokenizer source "unoin" is not open; did you mean "union"?': "tokenizer_source: unoin",
    'tokenizer source "elsewhere" is not open; Valid: union, base, ': "tokenizer: {source: elsewhere}",
    'tokenizer.tokens.the.source: "<CODE>" has no token "absent"': "tokenizer: {tokens: {the: {force: true, "
    "source: {kind: model_token, model: <CODE>, token: absent}}}}",
    'tokenizer.tokens.the.source: "<CODE>" has token ids 0 to 319, got 320': "tokenizer: {tokens: {the: {force: true, "
    "source: {kind: model_token, model: <CODE>, token_id: 320}}}}",
    'tokenizer.tokens.new.source: "<CHAT>" has no token "new"': "tokenizer: {tokens: {new: {source: <CHAT>}}}",
    'tokenizer.tokens.new.source: "other" is not merged here': "tokenizer: {tokens: {new: {source: other}}}",
    'chat_template = "chatlm": expected a name or the text of a Jinja template; did you mean "chatml"?': "<TEMPLATE>",
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_refused_before_any_work(message: str, trio: dict[str, str]) -> None:
    text = TWO + BAD[message].replace("<TEMPLATE>", "chat_template: chatlm\ntokenizer: {}")
    recipe = parse_recipe(filled(text, trio))
    with pytest.raises(RecipeError) as e:
        Planner(open_sources(recipe.merged_models())).plan(recipe)
    assert filled(message, trio) in str(e.value)
    assert len(str(e.value).splitlines()) == 1 and e.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokenizer: {sorce: base}", 'unknown key "tokenizer.sorce"; did you mean "source"?'),
        ("tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}", 'exactly one of "token" and "token_id"'),
        ("tokenizer: {tokens: {x: {force: true}}}", '"force" needs a "source"'),
        ("tokenizer: {pad_to_multiple_of: 0}", "tokenizer.pad_to_multiple_of = 0: expected"),
        ("tokenizer: {source: base}\ntokenizer_source: base", '"tokenizer_source" and "tokenizer" cannot both'),
    ],
)
def test_a_wrong_tokenizer_key(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        parse_recipe(TWO + text)


def test_differing_vocabularies_without_a_tokenizer(trio: dict[str, str]) -> None:
    recipe = parse_recipe(filled(TWO, trio))
    with pytest.raises(SourceError, match="tokenizer_source: union"):
        Planner(open_sources(recipe.references())).plan(recipe)


def test_a_damaged_tokenizer_is_one_line(models: dict[str, str], tmp_path: Path) -> None:
    (Path(models["<CHAT>"]) / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_source: .*CHAT: its tokenizer cannot be read") as e:
        write(TWO + "tokenizer_source: union", models, tmp_path / "out")
    assert len(str(e.value).splitlines()) == 1 and not (tmp_path / "out").exists()
