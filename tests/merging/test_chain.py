"""Chains built on real files: against mergekit-multi, against one recipe after the other, and after errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.errors import CandidateError, EvoMergeError, InputError, RecipeError, SourceError
from evomerge.merging import chain as chain_module
from evomerge.merging.chain import OpenChain
from evomerge.merging.engine import Engine
from evomerge.recipe import load_chain, parse_chain, parse_recipe
from evomerge.sources import open_sources

Family = tuple[str, str, str]

CHAIN = """
name: left
merge_method: task_arithmetic
base_model: <BASE>
models: [{model: <A>, parameters: {weight: 0.7}}]
---
name: right
merge_method: linear
models: [{model: <B>}, {model: left}]
parameters: {weight: 1}
---
merge_method: slerp
base_model: left
models: [{model: right}]
parameters: {t: [0.2, 0.8]}
"""
STACKED = """
name: deep
merge_method: passthrough
slices:
- sources: [{model: <A>, layer_range: [0, 2]}]
- sources: [{model: <B>, layer_range: [1, 3]}]
---
merge_method: passthrough
slices:
- sources: [{model: deep, layer_range: [0, 4]}]
- sources: [{model: deep, layer_range: [3, 4], parameters: {scale: 0.5}}]
"""


def filled(text: str, family: Family) -> str:
    for short, folder in zip(("<BASE>", "<A>", "<B>"), family, strict=True):
        text = text.replace(short, folder)
    return text


def opened(text: str, family: Family) -> OpenChain:
    return OpenChain.open(parse_chain(filled(text, family)))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found.update(load_file(file))
    return found


def test_equals_one_recipe_after_the_other(family: Family, tmp_path: Path) -> None:
    opened(CHAIN, family).write(tmp_path / "out")
    documents = filled(CHAIN, family).split("---")
    for name, text in zip(("left", "right", "final"), documents, strict=True):
        for earlier in ("left", "right"):
            text = text.replace(f"model: {earlier}", f"model: {tmp_path / earlier}")
        recipe = parse_chain(text).final
        Engine(open_sources(recipe.references())).write(recipe, tmp_path / name)
    names = {p.name for p in (tmp_path / "final").iterdir()}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    for name in names - {"recipe.yaml"}:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "final" / name).read_bytes(), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["final", "left", "out", "right"]  # nothing is left over


def test_rebuilt_from_the_recipe_beside_it(family: Family, tmp_path: Path) -> None:
    opened(CHAIN, family).with_full_references().write(tmp_path / "out")
    chain = load_chain(tmp_path / "out" / "recipe.yaml")
    assert chain.names == ["left", "right"]
    assert [sorted(s.recipe.evomerge.sources) for s in chain.steps] == [
        sorted(map(str, family[:2])), [family[2]], [],
    ]  # fmt: skip
    OpenChain.open(chain, tmp_path / "out").write(tmp_path / "again")
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_equals_mergekit_multi(exact_family: Family, tmp_path: Path) -> None:
    multimerge = pytest.importorskip("mergekit.scripts.multimerge")
    from click.testing import CliRunner

    for name, text in (("chain", CHAIN.replace("[0.2, 0.8]", "0.3")), ("stacked", STACKED)):
        (tmp_path / "chain.yaml").write_text(filled(text, exact_family))
        arguments = [str(tmp_path / "chain.yaml"), "--out-path", str(tmp_path / f"{name}-theirs"), "-I",
                     str(tmp_path / f"{name}-parts"), "--quiet"]  # fmt: skip
        done = CliRunner().invoke(multimerge.main, arguments)
        assert done.exit_code == 0, done.output
        opened(text, exact_family).write(tmp_path / name)
        ours, theirs = weights(tmp_path / name), weights(tmp_path / f"{name}-theirs")
        assert ours.keys() == theirs.keys()
        for tensor, values in ours.items():
            torch.testing.assert_close(values, theirs[tensor], rtol=1e-5, atol=2e-6, msg=tensor)


def test_planned_to_the_end_without_building(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "write", lambda *_, **__: pytest.fail("it built something"))
    steps = opened(STACKED, family).plan(tmp_path)
    assert [len(s.plan.layers) for s in steps] == [4, 5]
    assert [s.plan.summary()["layers"] for s in steps] == [4, 5]
    assert steps[1].plan.bytes_written > steps[0].plan.bytes_written == steps[1].plan.bytes_read
    assert not list(tmp_path.rglob("*.safetensors"))
    monkeypatch.undo()
    opened(STACKED, family).write(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == 5
    assert sum(p.numel() * 2 for p in model.parameters()) == steps[1].plan.bytes_written


BAD = {
    'the final recipe: slices[0]: layer_range [0, 5] of "deep": the model has 4 layers': STACKED.replace(
        "layer_range: [0, 4]", "layer_range: [0, 5]"
    ),
    '"deep": slices[1]: layer_range [1, 9]': STACKED.replace("[1, 3]", "[1, 9]"),
    "has no revisions": STACKED.replace("model: deep, layer_range: [3, 4]", "model: deep@v1, layer_range: [3, 4]"),
    'model "nowhere/at/all": no such folder': CHAIN.replace("model: right", "model: nowhere/at/all"),
    "3 layers against 4 (use `slices:`": STACKED.split("---")[0]
    + "---\nmerge_method: linear\nparameters: {weight: 1}\nmodels: [{model: deep}, {model: <A>}]",
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_refused_before_any_work(message: str, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "write", lambda *_, **__: pytest.fail("it built something"))
    with pytest.raises((RecipeError, SourceError)) as e:
        opened(BAD[message], family).write(tmp_path / "out")
    assert message in str(e.value) and e.value.exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-that-name/x"])
def test_an_adapter_on_a_step_that_no_folder_can_be(name: str, family: Family, tmp_path: Path) -> None:
    chain = opened(CHAIN.replace("model: right", f"model: right+{name}"), family).with_full_references()
    with pytest.raises(SourceError, match="no such folder"):
        chain.plan(tmp_path)


def test_problems_of_independent_steps_come_together(family: Family, tmp_path: Path) -> None:
    text = STACKED.replace("[1, 3]", "[1, 9]") + "---\nname: other\n" + STACKED.split("---")[0].split("\n", 2)[2]
    text = text.replace("[0, 2]", "[0, 8]") + "---\n"
    last = "merge_method: linear\nmodels: [{model: deep}, {model: other}]\nparameters: {weight: 1}\n"
    documents = [d for d in text.split("---\n") if "name:" in d]
    with pytest.raises(RecipeError) as e:
        opened("---\n".join([*documents, last]), family).plan(tmp_path)
    assert '"deep": ' in str(e.value) and '"other": ' in str(e.value) and "final" not in str(e.value)


def test_nothing_is_left_after_an_error(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Path(shutil.copytree(family[2], tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    from safetensors.torch import save_file

    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(CandidateError, match="NaN or infinite"):
        opened(CHAIN, (*family[:2], str(broken))).write(tmp_path / "new" / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(InputError, match="is not empty"):
        opened(CHAIN, family).write(tmp_path / "out")
    usage = shutil._ntuple_diskusage(100, 90, 10)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(Engine, "write", lambda *_, **__: pytest.fail("it began to work"))
    with pytest.raises(EvoMergeError, match="the disk is full"):
        opened(CHAIN, family).write(tmp_path / "full")
    assert sorted(p.name for p in tmp_path.iterdir()) == [*before, "out"]


def test_steps_go_when_no_later_one_needs_them(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "name: s{i}\nmerge_method: linear\nmodels: [{{model: {m}}}]\nparameters: {{weight: 1}}\n"
    text = "---\n".join(line.format(i=i, m=f"s{i - 1}" if i else "<A>") for i in range(3))
    real, seen = Engine.write, []

    def write(self: Engine, recipe: Any, out: Path, **options: Any) -> None:
        seen.append([len(list(p.iterdir())) for p in tmp_path.glob(".*.steps")])
        real(self, recipe, out, **options)

    monkeypatch.setattr(Engine, "write", write)
    steps = opened(text, family)
    (tmp_path / "plans").mkdir()
    planned = steps.plan(tmp_path / "plans")
    assert chain_module.peak_disk(planned) == 2 * planned[0].plan.bytes_written
    steps.write(tmp_path / "out")
    assert seen == [[0], [1], [1]]


def test_an_adapter_on_a_step(family: Family, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(family[0])
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "here" / "lora")
    text = CHAIN.split("---")[0] + "---\nmerge_method: linear\nmodels: [{model: left+lora}]\nparameters: {weight: 1}\n"
    chain = OpenChain.open(parse_chain(filled(text, family)), tmp_path / "here").with_full_references()
    assert chain.chain.final.references() == [f"left+{tmp_path / 'here' / 'lora'}"]
    chain.write(tmp_path / "out")
    recipe = parse_chain(filled(CHAIN.split("---")[0], family)).final
    Engine(open_sources(recipe.references())).write(recipe, tmp_path / "left")
    last = parse_recipe(f"merge_method: linear\nmodels: [{{model: {tmp_path}/left+{tmp_path}/here/lora}}]\n"
                        "parameters: {weight: 1}\n")  # fmt: skip
    Engine(open_sources(last.references())).write(last, tmp_path / "direct")
    left, ours, direct = (weights(tmp_path / name) for name in ("left", "out", "direct"))
    assert all(torch.equal(values, direct[name]) for name, values in ours.items())
    assert {n for n, v in ours.items() if not torch.equal(v, left[n])} == {
        n for n in ours if "q_proj" in n or "down" in n
    }


def test_tokenizers_along_a_chain(family: Family, tmp_path: Path) -> None:
    """A later step unites the vocabulary that an earlier one made."""
    zero = "tokenizer: {source: base, tokens: {new: {source: {kind: zero}}}}\n"
    text = CHAIN.replace("weight: 0.7}}]\n", "weight: 0.7}}]\n" + zero, 1)
    with pytest.raises(SourceError, match=r'(?s)"right": .*tokenizer_source: union'):
        opened(text, family).write(tmp_path / "out")
    for method in ("linear", "slerp"):
        text = text.replace(f"merge_method: {method}", f"merge_method: {method}\ntokenizer_source: union")
    opened(text, family).write(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    rows = len(weights(tmp_path / "out")["model.embed_tokens.weight"])
    assert tokenizer.convert_tokens_to_ids("new") == rows - 1
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == rows
