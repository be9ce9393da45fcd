"""Tasks of lm-eval with pictures: beside tasks without, lm-eval's own options, and what they cannot do."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge.errors import CandidateError, EvaluatorError
from evomerge.evaluation import SPLITS, Evaluator, load_evaluator, open_evaluator
from evomerge.evaluation.seeing import SeeingLM
from evomerge.merging.live import live_model, load_processor
from tests.evaluation.untrained import untrained

SOURCE = Path(__file__).parents[2] / "evaluators" / "pictures"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained vision-language model."""
    return untrained(tmp_path_factory.mktemp("seeing"))[0]


@pytest.fixture(scope="module")
def seeing(folder: Path) -> tuple[Any, Any]:
    return live_model(folder, dtype=torch.float32), load_processor(folder)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with pictures_ja, and `told`: the same questions without a picture."""
    for file in SOURCE.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_text(file.read_text())
    lines = (SOURCE / "pictures_ja.yaml").read_text().replace("task: pictures_ja", "task: told").splitlines()
    kept = [line.replace("<image> ", "") for line in lines if "doc_to_image" not in line]
    (tmp_path / "told.yaml").write_text("\n".join(kept))
    return tmp_path


def opened(folder: Path, tasks: Iterable[Any] = ("pictures_ja",), **keys: Any) -> Evaluator:
    data = {"include_path": str(folder), "tasks": [*tasks], "batch_size": 4,
            "splits": {s: {"share": 0.3, "items": 6} for s in SPLITS}} | keys  # fmt: skip
    (folder / "e.yaml").write_text(yaml.safe_dump(data))
    return open_evaluator(load_evaluator(folder / "e.yaml"))


def results(evaluator: Evaluator, seeing: tuple[Any, Any], split: Any = "search") -> dict[str, list[float]]:
    return {t.task: t.results.tolist() for t in evaluator.evaluate(*seeing, split).tasks}


@pytest.mark.ci
@pytest.mark.parametrize("names", [("pictures_ja", "told"), ("told", "pictures_ja")])
def test_a_task_without_pictures_beside_one_with(names: Any, seeing: tuple[Any, Any], tasks: Path) -> None:
    """lm-eval goes by the first request whether all of them have pictures: in one list they failed, whatever came."""
    alone = {name: results(opened(tasks, [name]), seeing) for name in names}
    both = opened(tasks, names)
    assert both.sees
    for _ in range(2):
        assert results(both, seeing) == {name: alone[name][name] for name in names}
    weighed = opened(tasks, [names[0], {"name": names[1], "weight": 0}])
    assert set(results(weighed, seeing)) == {names[0]} and set(results(weighed, seeing, "test")) == set(names)


@pytest.mark.ci
def test_the_item_of_logits_that_are_not_finite_is_found_among_both(folder: Path, tasks: Path) -> None:
    model = live_model(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.bias.fill_(float("nan"))
    with pytest.raises(CandidateError) as e:
        opened(tasks, ("told", "pictures_ja")).evaluate(model, load_processor(folder), "search")
    assert 'task "pictures_ja", item ' in str(e.value)


def test_examples_are_refused(tasks: Path) -> None:
    """Their pictures are not shown: as many places for pictures as there are none of."""
    with pytest.raises(EvaluatorError, match="has pictures, and num_fewshot = 2: lm-eval shows the pictures of no"):
        opened(tasks, num_fewshot=2)
    own = (tasks / "pictures_ja.yaml").read_text()
    (tasks / "pictures_ja.yaml").write_text(f"{own}num_fewshot: 1\n")
    with pytest.raises(EvaluatorError, match="num_fewshot = 1"):
        opened(tasks)
    assert opened(tasks, num_fewshot=0).sees
    (tasks / "pictures_ja.yaml").write_text(f"{own}num_fewshot: 0\n")
    assert opened(tasks, num_fewshot=2).sees, "which it says of itself goes first, in lm-eval"


@pytest.mark.ci
def test_a_prompt_is_not_cut_in_its_picture(seeing: tuple[Any, Any], tasks: Path) -> None:
    """25 tokens less 15 for the answer are fewer than a picture has."""
    with pytest.raises(EvaluatorError) as e:
        opened(tasks, max_length=25).evaluate(*seeing, "search")
    assert "e.yaml: max_length = 25: a prompt with its pictures has " in str(e.value)
    assert "tokens, and 10 are left beside the answer's" in str(e.value)
    with pytest.raises(EvaluatorError, match="and 0 are left beside the answer's"):
        opened(tasks, max_length=10).evaluate(*seeing, "search")
    assert results(opened(tasks, max_length=90), seeing) == results(opened(tasks), seeing)


def test_what_stands_before_the_picture_may_be_cut(seeing: tuple[Any, Any], tasks: Path) -> None:
    """From the left, as lm-eval does it with texts."""
    text = (tasks / "pictures_ja.yaml").read_text()
    (tasks / "pictures_ja.yaml").write_text(text.replace('"<image> {{', '"red ' + 20 * "red " + '<image> {{'))
    evaluator = opened(tasks, max_length=50)
    assert len(results(evaluator, seeing)["pictures_ja"]) == 6
    lm, request = evaluator._wrapper.of(*seeing), evaluator._tasks[0].requests["search"][0]  # type: ignore[attr-defined]
    whole, cut = (
        lm.tok_batch_multimodal_encode([request.args[0]], [request.args[2]["visual"]], left_truncate_len=most)
        for most in (None, 35)
    )
    assert whole["input_ids"].shape[1] > 35
    for key in ("input_ids", "attention_mask"):
        assert torch.equal(cut[key], whole[key][:, -35:])


@pytest.mark.ci
def test_options_of_lm_evals_models(seeing: tuple[Any, Any], tasks: Path) -> None:
    given = {"image_string": "<image>", "max_images": 1, "interleave": False, "convert_img_format": True}
    evaluator = opened(tasks, model_args=given)
    lm = evaluator._wrapper.of(*seeing)  # type: ignore[attr-defined]
    assert isinstance(lm, SeeingLM)
    assert (lm.image_token, lm.max_images, lm.interleave, lm.rgb) == ("<image>", 1, False, True)
    assert results(evaluator, seeing) == results(opened(tasks), seeing)
    small = opened(tasks, model_args={"image_max_side": 2})
    assert small._wrapper.of(*seeing).image_max_side == 2  # type: ignore[attr-defined]
    assert small.versions() != evaluator.versions() != opened(tasks).versions()


@pytest.mark.parametrize(("keys", "message"), [
    ({"model_args": {"image_strin": "<image>"}}, 'did you mean "image_string"'),
    ({"model_args": {"image_max_side": 8, "image_width": 8}}, "image_max_side is another way to say"),
    ({"model_args": {"image_string": "<image>", "image_token_id": 5}}, "say the same; give one"),
    ({"model_args": {"max_images": 1}, "tasks": ["told"]}, "model_args: are options of tasks with pictures"),
    ({"model_args": {"max_images": 1}, "kind": "python", "function": "pictures.py:scored"},
     '"model_args" belongs to kind "lm_eval"'),
])  # fmt: skip
def test_options_that_are_refused(keys: dict[str, Any], message: str, tasks: Path) -> None:
    with pytest.raises(EvaluatorError) as e:
        opened(tasks, **keys)
    assert message in str(e.value)


def test_without_pillow_it_says_what_to_install(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the task's own functions are what needs it: they are loaded first."""
    opened(tasks)
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.delitem(sys.modules, "evomerge.zoo.vision.pictures", raising=False)
    text = (tasks / "pictures.py").read_text()
    (tasks / "pictures.py").write_text(text.replace("import datasets\n", "import datasets\nimport PIL.Image\n"))
    with pytest.raises(EvaluatorError, match=r"Pillow, which is not installed: pip install 'evomerge\[vision\]'"):
        opened(tasks)


def test_pictures_that_cannot_be_read_are_found_at_once(tasks: Path) -> None:
    text = (tasks / "pictures.py").read_text()
    broken = "    if doc['place'] == 3:\n        raise OSError('broken data')\n    scene = Scene("
    (tasks / "pictures.py").write_text(text.replace("    scene = Scene(", broken))
    with pytest.raises(EvaluatorError, match='task "pictures_ja": item 3: its pictures cannot be read: broken data'):
        opened(tasks)
