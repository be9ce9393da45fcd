"""Evaluators that show pictures to vision-language models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from evomerge.errors import CandidateError, EvaluatorError, SourceError
from evomerge.evaluation import SPLITS, Evaluator, load_evaluator, open_evaluator
from evomerge.evaluation.language import in_language
from evomerge.evaluation.rouge import rouge_l
from evomerge.evaluation.seeing import SeeingLM
from evomerge.merging.live import live_model, load_processor, load_tokenizer
from evomerge.zoo.vision.pictures import draw
from evomerge.zoo.vision.scenes import Scene, asked, draw_scene
from tests.evaluation.untrained import untrained

SCORE = """
import numpy as np

def brightness(model, tokenizer, items, processor):
    assert not hasattr(tokenizer, "image_processor") and processor.tokenizer is tokenizer
    return [float(np.asarray(i["image"]).mean()) / 255 for i in items]

def one_logit(model, tokenizer, items, processor):
    out = []
    for item in items:
        inputs = processor(images=[item["image"]], text=["<image> " + item["question"]], return_tensors="pt")
        out.append(float(model(**inputs).logits[0, -1, 9]))
    return out

def names(model, tokenizer, items):
    return [float(isinstance(i["image"], str)) for i in items]
"""
Make = Callable[..., Evaluator]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A vision-language model and its text base, both untrained."""
    return untrained(tmp_path_factory.mktemp("seeing"))


@pytest.fixture(scope="module")
def seeing(folders: tuple[Path, Path]) -> tuple[Any, Any]:
    return live_model(folders[0], dtype=torch.float32), load_processor(folders[0])


def rows(count: int = 24) -> list[dict[str, str]]:
    return [{"question": "which shape is it ?", "image": f"pictures/{i}.png"} for i in range(count)]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def build(lines: list[dict[str, Any]] | None = None, **keys: Any) -> Evaluator:
        (tmp_path / "score.py").write_text(SCORE)
        (tmp_path / "pictures").mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        for i in range(24):
            draw(draw_scene(rng), rng).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "items.jsonl").write_text("\n".join(json.dumps(line) for line in lines or rows()))
        data = {"kind": "python", "function": "score.py:brightness", "items": "items.jsonl", "images": "image",
                "tasks": ["pictures"]} | keys  # fmt: skip
        (tmp_path / "e.yaml").write_text(yaml.safe_dump(data))
        return open_evaluator(load_evaluator(tmp_path / "e.yaml"))

    return build


def test_a_function_is_handed_pictures_and_the_processor(make: Make, seeing: tuple[Any, Any], tmp_path: Path) -> None:
    evaluator = make()
    assert evaluator.sees
    score = evaluator.evaluate(*seeing, "search")
    means = [np.asarray(Image.open(tmp_path / "pictures" / f"{i}.png")).mean() / 255 for i in range(24)]
    assert len(score.tasks[0].results) and all(min(abs(r - m) for m in means) < 1e-6 for r in score.tasks[0].results)
    logits = make(function="score.py:one_logit").evaluate(*seeing, "test").tasks[0].results
    assert len({round(float(x), 5) for x in logits}) > len(logits) // 2, "what is seen matters"


def test_a_function_without_the_parameter_sees_nothing(make: Make, seeing: tuple[Any, Any]) -> None:
    evaluator = make(function="score.py:names")
    assert not evaluator.sees  # it may look at the pictures by itself
    model, processor = seeing
    assert evaluator.evaluate(model, processor.tokenizer, "search").value == 0.0


def test_an_items_split_follows_from_its_picture(make: Make, tmp_path: Path) -> None:
    """Not from what it is called: a file of another name is the same item, another picture under the name is not."""
    before = {split: make().items(split)["pictures"] for split in SPLITS}
    assert len({i for ids in before.values() for i in ids}) == 24
    moved = []
    for i in range(24):
        (tmp_path / "pictures" / f"{i}.png").rename(tmp_path / "pictures" / f"moved-{i}.png")
        moved.append({"question": "which shape is it ?", "image": f"pictures/moved-{i}.png"})
    renamed = make(moved)
    assert {split: renamed.items(split)["pictures"] for split in SPLITS} == before
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "pictures" / "moved-3.png")
    changed = make_again(tmp_path)
    assert sum(i not in before[s] for s in SPLITS for i in changed.items(s)["pictures"]) == 1
    texts = [t for s in SPLITS for t in changed.texts(s)["pictures"]]
    assert len(set(texts)) == 24 and all("moved" not in t for t in texts)


def make_again(folder: Path) -> Evaluator:
    return open_evaluator(load_evaluator(folder / "e.yaml"))


@pytest.mark.parametrize(("line", "message"), [
    ({"question": "?", "image": "pictures/99.png"}, 'item 25: image = pictures/99.png: no such file'),
    ({"question": "?", "image": "../outside.png"}, "item 25: image = ../outside.png: lies outside of"),
    ({"question": "?", "image": "link.png"}, "item 25: image = link.png: lies outside of"),
    ({"question": "?"}, 'item 25 has no "image", which images: names'),
    ({"question": "?", "image": 7}, "item 25: image = 7: expected the name of a picture, or a list of them"),
])  # fmt: skip
def test_pictures_that_are_not_there(make: Make, tmp_path: Path, line: dict[str, Any], message: str) -> None:
    (tmp_path.parent / "outside.png").write_bytes(b"")
    (tmp_path / "link.png").symlink_to(tmp_path.parent / "outside.png")
    with pytest.raises(EvaluatorError) as e:
        make([*rows(), line])
    assert message in str(e.value) and "e.yaml: items = items.jsonl" in str(e.value)


def test_what_is_no_picture(make: Make, seeing: tuple[Any, Any], tmp_path: Path) -> None:
    """It is found when the evaluator is opened; what is damaged later stops everything, as no candidate does better."""
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(EvaluatorError, match="is no picture that Pillow can read"):
        make([{"question": "?", "image": "notes.png", "n": i} for i in range(24)])
    evaluator = make()
    for i in range(24):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(b"")
    with pytest.raises(EvaluatorError, match="is no picture that Pillow can read"):
        evaluator.evaluate(*seeing, "search")


def test_without_pillow_it_says_what_to_install(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make()
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(EvaluatorError, match=r"Pillow, which is not installed: pip install 'evomerge\[vision\]'"):
        make_again(tmp_path)


def test_a_text_model_is_refused(make: Make, folders: tuple[Path, Path], seeing: tuple[Any, Any]) -> None:
    with pytest.raises(EvaluatorError, match="shows pictures, and the model has a tokenizer alone"):
        make().evaluate(seeing[0], load_tokenizer(folders[1]), "search")
    with pytest.raises(SourceError, match="is a text model: it has no processor for pictures"):
        load_processor(folders[1])


def test_images_belong_to_functions_with_items(make: Make) -> None:
    with pytest.raises(EvaluatorError, match='"images" belongs to kind "python" with items'):
        make(items=None)


def pictures(folder: Path, **keys: Any) -> Evaluator:
    data = {"include_path": str(Path(__file__).parents[2] / "evaluators" / "pictures"),
            "tasks": [{"name": "pictures_ja", "metric": "rouge_l", "language": "ja"}],
            "splits": {s: {"share": 0.3, "items": 6} for s in SPLITS}, "batch_size": 4} | keys  # fmt: skip
    (folder / "e.yaml").write_text(yaml.safe_dump(data))
    return open_evaluator(load_evaluator(folder / "e.yaml"))


def generated(model: Any, processor: Any, item: Any, picture: Any) -> str:
    inputs = processor(images=[picture], text=[f"<image> {item.prompt}"], return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=15, do_sample=False)
    text: str = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


@pytest.mark.ci
def test_a_task_of_lm_eval_with_pictures(seeing: tuple[Any, Any], tmp_path: Path) -> None:
    """Scores are those of plain transformers, picture by picture."""
    evaluator = pictures(tmp_path)
    assert evaluator.sees
    score = evaluator.evaluate(*seeing, "search")
    assert score.tasks[0].metric == "rouge_l, answers in ja"
    task = evaluator._tasks[0]  # type: ignore[attr-defined]
    expected, answers = [], []
    for item in task.items["search"]:
        doc = task.task.eval_docs[item.index]
        item = asked(Scene(doc["colour"], doc["shape"], doc["first"], doc["second"]), "sum", "ja")
        assert (item.prompt, item.answer) == (doc["question"], doc["answer"])
        (picture,) = task.task.doc_to_image(doc)
        answers.append(generated(*seeing, item, picture))
        expected.append(rouge_l(answers[-1], doc["answer"]) if in_language(answers[-1], "ja") else 0.0)
    assert len(set(answers)) > 1, "what is seen matters"
    assert np.allclose(score.tasks[0].results, expected, atol=1e-6)
    assert list(score.tasks[0].results) == list(evaluator.evaluate(*seeing, "search").tasks[0].results)
    one = evaluator.evaluate(*seeing, "search", {"pictures_ja": (3,)}).tasks[0].results
    assert list(one) == [score.tasks[0].results[3]]


def test_its_items_are_what_is_seen(tmp_path: Path) -> None:
    evaluator = pictures(tmp_path)
    ids = [i for s in SPLITS for i in evaluator.items(s)["pictures_ja"]]
    assert len(set(ids)) == len(ids) == 18
    texts = evaluator.texts("test")["pictures_ja"]
    assert len(set(texts)) == len(texts), "one question about two pictures is two items"


@pytest.mark.parametrize(("keys", "message"), [
    ({"tasks": [{"name": "pictures_ja", "metric": "exact_match", "greedy_likelihood": True}]},
     "greedy_likelihood: true is for texts alone, and the task has pictures"),
    ({"tasks": [{"name": "pictures_ja", "metric": "rouge"}]}, 'has no metric "rouge"; did you mean "rouge_l"'),
])  # fmt: skip
def test_refused_before_anything_is_scored(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluatorError) as e:
        pictures(tmp_path, **keys)
    assert message in str(e.value)


def test_a_task_with_choices_is_refused(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "evaluators" / "pictures"
    (tmp_path / "pictures.py").write_text((source / "pictures.py").read_text())
    text = (source / "pictures_ja.yaml").read_text().replace("pictures_ja", "chosen")
    text = text.replace("generate_until", "multiple_choice").replace("process_results", "doc_to_choice: [a, b]\n#")
    (tmp_path / "chosen.yaml").write_text(text)
    with pytest.raises(EvaluatorError, match="has pictures and is multiple_choice"):
        pictures(tmp_path, include_path=str(tmp_path), tasks=["chosen"])


@pytest.mark.ci
def test_memory_that_runs_out_halves_the_batch(
    seeing: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pictures(tmp_path).evaluate(*seeing, "search").tasks[0].results
    evaluator = pictures(tmp_path)
    generate = SeeingLM._model_multimodal_generate

    def limited(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return generate(self, inputs, *args, **kwargs)

    monkeypatch.setattr(SeeingLM, "_model_multimodal_generate", limited)
    assert np.allclose(evaluator.evaluate(*seeing, "search").tasks[0].results, whole)


def test_weights_that_are_not_finite_are_a_candidates_failure(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model = live_model(folders[0], dtype=torch.float32)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.bias.fill_(float("nan"))
    with pytest.raises(CandidateError) as e:
        pictures(tmp_path).evaluate(model, load_processor(folders[0]), "search")
    assert "multi_modal_projector.linear_2.bias" in str(e.value)
