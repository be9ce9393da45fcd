"""`evomerge skills ...`, and what a search over a library leaves: as a user has them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from evomerge.library import Library
from evomerge.skills import add, remove
from evomerge.zoo.languages import vocabulary
from tests.skills.conftest import make_base, make_lora

Here = Callable[..., SimpleNamespace]


@pytest.fixture
def refused(here: Here) -> Callable[..., str]:
    def run(*words: object) -> str:
        done = here(*words, "--json", check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        message = str(done.result["error"])
        assert f"evomerge: error: {message}" in done.stderr
        return message

    return run


def test_from_adapters_to_a_checkpoint(here: Here, base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    library = base.parent / f"library-{tmp_path.name}"
    added = here(
        "skills", "add", library, "sums", adapters["two"], "--description", "adds up", "--tags", "a", "b", "--json"
    )
    assert added.result["name"] == "sums" and added.result["tags"] == ["a", "b"] and added.result["rank"] == 2
    here("skills", "add", library, "poems", adapters["eight"])
    shown = here("skills", "list", library).stdout
    assert "sums   2     7      q_proj v_proj" in shown and "adds up" in shown and "poems" in shown
    listed = here("skills", "list", library, "--json").result
    assert [s["name"] for s in listed["skills"]] == ["sums", "poems"] and not listed["skills"][0]["missing"]

    done = here("skills", "compose", library, tmp_path / "merged", "--weights", "sums=.5", "poems=-1", "--json")
    assert done.result["weights"] == {"sums": 0.5, "poems": -1.0}
    again = here("merge", tmp_path / "merged" / "recipe.yaml", tmp_path / "again", "--json")
    assert again.result["recipe_hash"] == done.result["recipe_hash"]
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(t, merged[n]) for n, t in load_file(tmp_path / "again" / "model.safetensors").items())
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")

    one = here(
        "skills", "compose", library, tmp_path / "one", "--weights", "sums=.5", "poems=-1", "--as", "adapter", "--json"
    )
    assert one.result["rank"] == 10
    live = transformers.AutoModelForCausalLM.from_pretrained(base)
    found = peft.PeftModel.from_pretrained(live, tmp_path / "one").merge_and_unload().state_dict()
    assert all(float((found[n] - t).abs().max()) <= 1e-6 for n, t in merged.items())

    removed = here("skills", "remove", library, "sums", "--json")
    assert removed.result["skills"] == ["poems"]
    here("skills", "remove", library, "poems")
    assert "no skills yet" in here("skills", "list", library).stdout


def test_bad_input(refused: Callable[..., str], library: Library, adapters: dict[str, Path], tmp_path: Path) -> None:
    place = library.folder
    assert 'unknown command "skills ad"; did you mean "add"' in refused("skills", "ad", place)
    assert "expected a command behind skills; one of: add, list" in refused("skills")
    assert 'evomerge skills add: unknown option "--bsae"; did you mean "--base"' in refused(
        "skills", "add", place, "x", "--bsae", "y"
    )
    assert 'no such skill library; did you mean "' in refused("skills", "list", f"{place}y")
    assert "no such folder" in refused("skills", "add", place, "new", tmp_path / "nowhere")
    assert "is a model, not an adapter" in refused("skills", "add", place, "new", library.base)
    assert 'has a skill "two" already' in refused("skills", "add", place, "two", adapters["two"])
    assert 'has no skill "to"; did you mean "two"' in refused("skills", "remove", place, "to")

    assert "config.json: is a file; expected the folder of a skill library" in refused(
        "skills", "list", Path(library.base) / "config.json"
    )
    assert "lies in the skill library" in refused(
        "skills", "compose", place, place / "two", "--weights", "eight=1", "--as", "adapter", "--overwrite"
    )
    assert "lies in the skill library" in refused("skills", "compose", place, place / "merged", "--weights", "two=1")

    out = tmp_path / "out"
    compose = ("skills", "compose", place, out, "--weights")
    assert 'has no skill "egiht"; did you mean "eight"' in refused(*compose, "two=1", "egiht=1")
    assert '"two": expected NAME=WEIGHT with a number' in refused(*compose, "two")
    assert "expected NAME=WEIGHT with a number" in refused(*compose, "two=x")
    assert "--weights: two is given twice" in refused(*compose, "two=1", "two=2")
    assert "--dtype is about a checkpoint" in refused(*compose, "two=1", "--as", "adapter", "--dtype", "float16")
    assert 'unknown "adaptor"; did you mean "adapter"' in refused(*compose, "two=1", "--as", "adaptor")
    assert "every weight is 0" in refused(*compose, "two=0", "--as", "adapter")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for more in ((), ("--overwrite",)):
        words = refused("skills", "compose", place, tmp_path / "mine", "--weights", "two=1", "--as", "adapter", *more)
        assert "is not empty" in words
    assert not out.exists() and [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_list_moves_no_cursor(here: Here, library: Library, adapters: dict[str, Path]) -> None:
    here("skills", "add", library.folder, "odd", adapters["two"], "--description", "a\nb\x1b[31mred", "--tags", "x\ty")
    shown = here("skills", "list", library.folder).stdout
    line = next(row for row in shown.splitlines() if row.startswith("odd"))
    assert "a b [31mred" in line and "x y" in line and "\x1b" not in shown
    assert here("skills", "list", library.folder, "--json").result["skills"][-1]["description"] == "a\nb\x1b[31mred"


def test_a_base_that_has_moved(here: Here, refused: Callable[..., str], library: Library, tmp_path: Path) -> None:
    place = Path(shutil.copytree(library.folder, tmp_path / "library"))
    compose = ("skills", "compose", place, tmp_path / "one", "--weights", "two=1", "--as", "adapter")
    assert "where it lies elsewhere now, say so: --base MODEL" in refused(*compose)
    assert "is not the model that the library was made on" in refused(*compose, "--base", "zoo:base")
    made = here(*compose, "--base", library.base, "--json").result
    assert made["rank"] == 2
    merged = here("skills", "compose", place, tmp_path / "m", "--weights", "two=1", "--base", library.base, "--json")
    assert Path(merged.result["out"], "model.safetensors").is_file()
    assert "says where a gated model's base lies" in refused("evaluate", "zoo:base", "--base", "zoo:base")


def test_a_gated_model_is_no_source(
    refused: Callable[..., str], library: Library, evaluator: Path, tmp_path: Path
) -> None:
    from tests.skills.test_gated import made

    made(library).save_pretrained(tmp_path / "gated")
    recipe = {"merge_method": "linear", "models": [{"model": str(tmp_path / "gated"), "parameters": {"weight": 1}}]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert "is a gated model, of which no checkpoint is the same" in refused(
        "merge", tmp_path / "recipe.yaml", tmp_path / "out"
    )
    evaluate = ("evaluate", tmp_path / "gated", "--evaluator", evaluator, "--device", "cpu")
    assert "is not the model that the library was made on" in refused(*evaluate, "--base", "zoo:base")


def test_a_search_over_a_library_that_has_changed(
    refused: Callable[..., str], library: Library, evaluator: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(library.folder, here / "library")
    make_base(here / "base", seed=5)
    (here / "space.yaml").write_text(yaml.safe_dump({"kind": "skills", "library": "library"}))
    search = ("search", here / "space.yaml", "--evaluator", evaluator, "--budget", 2, "--workers", 0)
    asked = (*search, "--out", tmp_path / "run")
    for words in (refused(*asked), refused("check", here / "space.yaml")):
        assert "is not the model that the library was made on" in words
    shutil.rmtree(here / "base")
    shutil.copytree(library.base, here / "base")
    weights = here / "library" / "two" / "adapter_model.safetensors"
    save_file({n: t + 1 for n, t in load_file(weights).items()}, weights)
    for words in (refused(*asked), refused("check", here / "space.yaml")):
        assert "two: has changed since it was added" in words


FIRST_WORD = '''
import torch

@torch.no_grad()
def score(model, tokenizer, items):
    """How near the likeliest word behind each prompt is to the one wanted: smooth enough for a search."""
    out = []
    for item in items:
        ids = tokenizer(item["prompt"], return_tensors="pt")["input_ids"]
        logits = model(input_ids=ids).logits[0, -1].log_softmax(-1)
        out.append(float(logits[tokenizer.convert_tokens_to_ids(item["word"])].exp()))
    return out
'''


@pytest.fixture
def evaluator(tmp_path: Path) -> Path:
    words = [w for w in vocabulary() if w.isalpha()][:60]
    items = [{"prompt": f"{a} {b}", "word": c} for a, b, c in zip(words, words[1:], words[2:], strict=False)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    (tmp_path / "first_word.py").write_text(FIRST_WORD)
    file = tmp_path / "evaluator.yaml"
    data: dict[str, Any] = {
        "kind": "python",
        "function": "first_word.py:score",
        "items": "items.jsonl",
        "tasks": ["words"],
    }
    file.write_text(yaml.safe_dump(data))
    return file


@pytest.mark.slow
def test_the_optimum_of_a_search_as_a_checkpoint_and_as_one_adapter(
    here: Here, refused: Callable[..., str], library: Library, evaluator: Path, tmp_path: Path
) -> None:
    space = tmp_path / "skills.yaml"
    space.write_text(
        yaml.safe_dump({"kind": "skills", "library": str(library.folder), "granularity": {"layer_groups": 3}})
    )
    checked = here("check", space, "--json").result
    assert checked["method"] == ["task_arithmetic"] and len(checked["parameters"]) == 9
    run = tmp_path / "run"
    done = here(
        "search", space, "--evaluator", evaluator, "--budget", 12, "--workers", 0, "--out", run, "--fidelity", "full",
        "--no-starts", "--json",
    ).result  # fmt: skip
    assert set(done["baselines"]) >= {"base", "two", "four", "eight", "uniform"}
    here("export", run, tmp_path / "merged")
    made = here("export", run, tmp_path / "one", "--format", "adapter", "--json").result
    assert made["rank"] == 14
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    live = transformers.AutoModelForCausalLM.from_pretrained(library.base, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(live, tmp_path / "one").merge_and_unload().state_dict()
    assert all(float((adapted[n] - t).abs().max()) <= 1e-6 for n, t in merged.items())
    assert "--push uploads a checkpoint" in refused("export", run, "x", "--format", "adapter", "--push", "a/b")
    # Another adapter under a skill's name is not what was searched.
    remove(library.folder, "two")
    add(library.folder, "two", make_lora(Path(library.base), tmp_path / "other", 77, r=2, lora_alpha=7))
    for form in ("checkpoint", "adapter"):
        words = refused("export", run, tmp_path / f"new-{form}", "--format", form)
        assert "its content is not what the recipe was made with" in words
    assert "holds the source model" in refused(
        "export", run, library.place("eight"), "--format", "adapter", "--overwrite"
    )
