"""Searches over a vision-language model and text models: of weights, of paths, of both; untrained, so in seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from evomerge.merging.live import live_model
from evomerge.recipe import load_chain
from evomerge.zoo.vision.model import build_text, build_tower, build_vlm, save, text_config

SCORE = """
import torch

def score(model, tokenizer, items, processor):
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    inputs = processor(images=[i["picture"] for i in items], text=["<image> " + i["question"] for i in items],
                       return_tensors="pt", padding=True)
    logits = model(**inputs).logits[:, -1].log_softmax(-1)
    return [float(row[tokenizer.convert_tokens_to_ids(i["answer"])]) for row, i in zip(logits, items)]
"""
KINDS: dict[str, dict[str, Any]] = {
    "parameter": {"method": "task_arithmetic", "parameters": {"weight": {"low": 0.0, "high": 1.5}}},
    "dataflow": {"kind": "dataflow", "depth": {"low": 1, "high": 4}},
    "hybrid": {"kind": "hybrid", "parameter": {
        "method": "task_arithmetic", "parameters": {"weight": {"low": 0.0, "high": 1.5}},
    }, "dataflow": {"depth": {"low": 1, "high": 4}}},
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, seeing and japanese as the vision zoo has them, untrained, with an evaluator of one's own."""
    from PIL import Image

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("vision")
    generator = torch.Generator().manual_seed(0)

    def moved(model: Any) -> Any:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
        return model

    base = build_text(16, 2, 0)
    vlm = build_vlm(base, build_tower(1), 2)
    moved(vlm.model.language_model)
    japanese = build_text(16, 2, 0)
    save(base, folder / "base")
    save(vlm, folder / "seeing")
    save(moved(japanese), folder / "japanese")
    rows = []
    for i in range(24):
        Image.new("RGB", (32, 32), (10 * i, 255 - 10 * i, 3)).save(folder / f"{i}.png")
        rows.append({"question": "which shape is it ?", "picture": f"{i}.png", "answer": ("a", "red", "円")[i % 3]})
    (folder / "items.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    (folder / "score.py").write_text(SCORE)
    shares = {"search": {"share": 0.4}, "select": {"share": 0.3}, "test": {"share": 0.3}}
    evaluator = {"kind": "python", "function": "score.py:score", "items": "items.jsonl", "images": "picture",
                 "tasks": ["seen"], "splits": shares}  # fmt: skip
    (folder / "evaluator.yaml").write_text(yaml.safe_dump(evaluator))
    return folder


def space(root: Path, kind: str, out: Path, **keys: Any) -> Path:
    named = {"base_model": str(root / "base"), "sources": [str(root / "seeing"), str(root / "japanese")]}
    data = json.loads(json.dumps(KINDS[kind]))
    (data["parameter"] if kind == "hybrid" else data).update(named)
    file = out / "space.yaml"
    file.write_text(yaml.safe_dump(data | keys))
    return file


def searched(here: Any, root: Path, file: Path, out: Path, *more: Any, check: bool = True) -> SimpleNamespace:
    found: SimpleNamespace = here(
        "search", file, "--evaluator", root / "evaluator.yaml", "--budget", 4, "--workers", 0, "--out", out, "--json",
        *more, check=check,
    )  # fmt: skip
    return found


def towers(folder: Path) -> dict[str, torch.Tensor]:
    return {n: x for n, x in load_file(folder / "model.safetensors").items() if not n.startswith("language_model.")}


@pytest.mark.ci
@pytest.mark.parametrize("kind", KINDS)
def test_a_search(kind: str, here: Any, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    controls = ["--controls"] if kind == "parameter" else []
    done = searched(here, root, space(root, kind, tmp_path), out, *controls)
    told = "seeing sees: a language model for it is searched for, made of its own and of text models (base, japanese)"
    assert told in done.stderr.replace("\n", " ")
    baselines = done.result["baselines"]
    names = ["base", "seeing", "japanese", "uniform"]
    assert [n for n in baselines if n in names] == names
    scores = {round(baselines[n]["test"]["score"], 6) for n in names}
    assert len(scores) == 4, "each source is measured as it is, or as the language model of the one that sees"
    model = out / "model"
    own = towers(root / "seeing")
    assert own and all(torch.equal(x, own[n]) for n, x in towers(model).items())
    _, info = transformers.AutoModelForImageTextToText.from_pretrained(model, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    processor = transformers.AutoProcessor.from_pretrained(model)
    assert isinstance(processor, transformers.LlavaProcessor)
    card = (out / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text\n" in card and "type: image-text-to-text\n" in card
    # What was searched is what was written.
    again = here("evaluate", model, "--evaluator", root / "evaluator.yaml", "--split", "test", "--json").result
    assert again["score"] == pytest.approx(done.result["best"]["test"]["score"], abs=1e-6)
    here("merge", out / "recipe.yaml", tmp_path / "rebuilt")
    assert (tmp_path / "rebuilt/model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    here("export", out, tmp_path / "first", "--trial", 0)
    assert towers(tmp_path / "first").keys() == own.keys()
    if kind == "parameter":
        assert load_chain(out / "recipe.yaml").final.evomerge.into == str(root / "seeing")
        assert {"vector seeing", "vector japanese", "random search"} <= baselines.keys()
    # The same command goes on where it was: nothing is scored again.
    resumed = searched(here, root, tmp_path / "space.yaml", out, *controls)
    assert resumed.result["best"]["test"] == done.result["best"]["test"]


def test_the_model_that_is_put_into_may_be_no_source(here: Any, root: Path, tmp_path: Path) -> None:
    file = space(root, "parameter", tmp_path, sources=[str(root / "japanese")], into=str(root / "seeing"))
    done = searched(here, root, file, tmp_path / "run")
    assert list(done.result["baselines"])[:2] == ["base", "japanese"]
    recipe = load_chain(tmp_path / "run" / "recipe.yaml").final
    assert recipe.evomerge.into == str(root / "seeing") and recipe.merged_models() == [
        str(root / "japanese"), str(root / "base")
    ]  # fmt: skip
    assert type(live_model(tmp_path / "run" / "model")).__name__ == "LlavaForConditionalGeneration"
    assert towers(tmp_path / "run" / "model").keys() == towers(root / "seeing").keys()


def narrow(folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        save(transformers.LlamaForCausalLM(text_config(8, 2)), folder)
    return folder


def test_refused_before_any_work(here: Any, root: Path, tmp_path: Path) -> None:
    def refused(kind: str, **keys: Any) -> str:
        out = tmp_path / "out"
        done = searched(here, root, space(root, kind, tmp_path, **keys), out, check=False)
        assert done.returncode == 2 and not out.exists()
        error: str = done.stderr
        return error

    text, small = str(root / "japanese"), str(narrow(tmp_path / "narrow"))
    for kind in ("parameter", "dataflow"):
        found = refused(kind, base_model=None, sources=[str(root / "seeing"), small], **(
            {"method": "linear"} if kind == "parameter" else {}
        ))  # fmt: skip
        assert f'"{small}" does not fit "{root / "seeing"}": hidden_size 8 against 16' in found
    found = refused("parameter", into=text)
    expected = f'expected a vision-language model, as "{root / "seeing"}" is'
    assert f'space.yaml: into: "{text}" is a text model; {expected}' in found
    found = refused("dataflow", embeddings="japanese")
    expected = 'expected a vision-language model, as "seeing" is'
    assert f'space.yaml: embeddings: "japanese" is a text model; {expected}' in found
    # A space of text models alone has nobody who sees.
    found = refused("parameter", sources=[text])
    assert f'evaluator.yaml: shows pictures, and "{root / "base"}" is a text model; expected a vision-language' in found


def test_it_is_checked_without_being_searched(here: Any, root: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        file = space(root, kind, tmp_path)
        found = here("check", file, "--json").result
        assert found["layers"] == 2 and str(root / "seeing") in found["models"]
        assert "seeing sees: a language model for it is searched for" in here("check", file).stdout


TEMPLATE = (
    "{% for m in messages %}{% for c in m.content %}{{ '<image> ' if c.type == 'image' else c.text }}{% endfor %}"
    "{% endfor %}"
)


@pytest.mark.ci
def test_a_chat_template_is_asked_of_the_model_that_reads(here: Any, root: Path, tmp_path: Path) -> None:
    """Text models are measured inside of the one that sees: their prompts are what its processor makes."""
    own = {name: Path(shutil.copytree(root / name, tmp_path / name)) for name in ("base", "seeing", "japanese")}
    pictures = Path(__file__).parents[2] / "evaluators" / "pictures"
    data = {"include_path": str(pictures), "tasks": [{"name": "pictures_en", "metric": "rouge_l"}],
            "apply_chat_template": True,
            "splits": {s: {"share": 0.3, "items": 4} for s in ("search", "select", "test")}}  # fmt: skip
    (tmp_path / "evaluator.yaml").write_text(yaml.safe_dump(data))
    file = space(tmp_path, "parameter", tmp_path)

    def run(check: bool = True) -> SimpleNamespace:
        return searched(here, tmp_path, file, tmp_path / "out", check=check)

    refused = run(check=False)
    assert refused.returncode == 2
    assert f"apply_chat_template: {own['seeing']}: has no chat template" in refused.stderr
    tokenizer = own["seeing"] / "tokenizer_config.json"
    before = tokenizer.read_text()
    tokenizer.write_text(json.dumps(json.loads(before) | {"chat_template": TEMPLATE}))
    refused = run(check=False)  # which lm-eval would meet when the first candidate is scored
    assert refused.returncode == 2
    assert f'apply_chat_template: the processor of "{own["seeing"]}" has no chat template' in refused.stderr
    tokenizer.write_text(before)
    (own["seeing"] / "chat_template.jinja").write_text(TEMPLATE)
    assert run().result["candidates"]["complete"] == 4
    # Of text models alone all are asked.
    (own["base"] / "chat_template.jinja").write_text(TEMPLATE)
    texts = [str(own["base"]), str(own["japanese"])]
    space(tmp_path, "parameter", tmp_path, method="linear", base_model=None, sources=texts)
    plain = run(check=False)
    assert plain.returncode == 2 and str(own["japanese"]) in plain.stderr


def test_language_models_alone_of_models_that_all_see(here: Any, root: Path, tmp_path: Path) -> None:
    """`into` keeps encoder and projector, where a merge of all that two have in common would change them too."""
    other = Path(shutil.copytree(root / "seeing", tmp_path / "other"))
    state = load_file(other / "model.safetensors")
    save_file({n: x + torch.full_like(x, 0.1) for n, x in state.items()}, other / "model.safetensors", {"format": "pt"})
    named = {"method": "linear", "base_model": None, "sources": [str(root / "seeing"), str(other)]}
    file = space(root, "parameter", tmp_path, into=str(root / "seeing"), **named)
    searched(here, root, file, tmp_path / "into")
    own = towers(root / "seeing")
    assert all(torch.equal(x, own[n]) for n, x in towers(tmp_path / "into" / "model").items())
    recipe = load_chain(tmp_path / "into" / "recipe.yaml").final
    assert recipe.evomerge.into == str(root / "seeing")
    found = load_file(tmp_path / "into" / "model" / "model.safetensors")
    assert any(not torch.equal(x, state[n]) and not torch.equal(x, load_file(root / "seeing" / "model.safetensors")[n])
               for n, x in found.items() if n.startswith("language_model."))  # fmt: skip


def test_a_processor_that_cannot_be_loaded_is_found_before_any_work(here: Any, root: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(root / "seeing", tmp_path / "seeing"))
    config = json.loads((own / "processor_config.json").read_text())
    (own / "processor_config.json").write_text(json.dumps(config | {"processor_class": "Gemma3Processor"}))
    file = space(root, "parameter", tmp_path, sources=[str(own), str(root / "japanese")])
    done = searched(here, root, file, tmp_path / "out", check=False)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert f"{own}: its processor cannot be loaded: " in done.stderr
