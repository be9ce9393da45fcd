"""The vision zoo: what is drawn and asked, who is taught what, its models on disk. The benchmark trains it whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from evomerge.evaluation.language import in_language
from evomerge.zoo.plan import Schedule
from evomerge.zoo.vision.model import PATCHES, build_processor, build_tokenizer, load
from evomerge.zoo.vision.pictures import SIZE, draw
from evomerge.zoo.vision.scenes import (
    COLOURS,
    EMPTY,
    IMAGE,
    JAPANESE,
    KINDS,
    LANGUAGES,
    SCHOOL,
    SHAPES,
    SIDE,
    SUMS,
    Scene,
    asked,
    board,
    draw_about_picture,
    draw_scene,
    vocabulary,
)
from evomerge.zoo.vision.train import Plan, batch, japanese, pictures, pixels, school, train

SCENE = Scene("red", "circle", "7", "5")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_picture_shows_its_scene() -> None:
    """Other words, another picture; the same words, the same but for the place."""
    scenes = [Scene(c, s, "7", "5") for c in COLOURS for s in SHAPES] + [Scene("red", "bar", a, b) for a, b in SUMS]
    scenes = list(dict.fromkeys(scenes))
    assert len({draw(scene, rng()).tobytes() for scene in scenes}) == len(scenes)
    picture = draw(SCENE, rng())
    assert picture.size == (SIZE, SIZE) and picture.mode == "RGB"
    assert picture.tobytes() == draw(SCENE, rng()).tobytes()
    assert len({draw(SCENE, rng(i)).tobytes() for i in range(40)}) > 20
    left, right = np.asarray(picture)[:, : SIZE // 2 + 1], np.asarray(picture)[:, SIZE // 2 + 3 :]
    assert (left[..., 0] > 200).any() and not (left[..., 2] > 200).any(), "the shape is red, on the left"
    assert (right[: SIZE // 2] > 200).all(-1).any() and (right[SIZE // 2 :] > 200).all(-1).any(), "digits on the right"
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) == 3


def test_a_board_tells_a_picture() -> None:
    told = board(SCENE)
    assert len(told) == SIDE * SIDE == PATCHES and [w for w in told if w != EMPTY] == ["red", "circle", "7", "5"]
    assert told[SIDE : SIDE + 2] == ["red", "circle"] and (told[2 * SIDE - 1], told[3 * SIDE - 1]) == ("7", "5")


def test_answers() -> None:
    assert asked(SCENE, "sum", "en").answer == "7 + 5 = 12 red circle ."
    assert asked(SCENE, "sum", "ja").answer == "赤い 円 が 7 + 5 = 12 です 。"
    assert asked(SCENE, "shape", "ja").answer == "赤い 円 です 。"
    assert not any(in_language(asked(SCENE, kind, "en").answer, "ja") for kind in KINDS)
    drawn = [draw_about_picture(rng(i), kind, "ja").answer for i in range(100) for kind in KINDS]
    assert all(in_language(answer, "ja") for answer in drawn)


def test_what_is_held_out_is_never_drawn_for_training() -> None:
    generator = rng()
    training = {draw_scene(generator) for _ in range(2000)}
    tests = {draw_scene(generator, held_out=True) for _ in range(2000)}
    assert not training & tests and len(training) > 1000 and len(tests) > 500
    for lessons in (school(), japanese(), pictures()):
        for draws in lessons:
            assert not any(i.scene is not None and i.scene.held_out for i in (draws(generator) for _ in range(100)))


def test_who_is_taught_what() -> None:
    """No lesson has a picture and Japanese. Who sees knows half of the Japanese words; who knows all, few sums."""
    generator = rng()
    beyond = {w for e, w in JAPANESE.items() if e not in {*SCHOOL.shapes, *SCHOOL.colours}}
    assert len(beyond) == 8 and len(SCHOOL.sums) == 20
    said = {
        name: [f"{i.prompt} {i.answer}" for draws in lessons for _ in range(800) for i in [draws(generator)]]
        for name, lessons in (("base", school()), ("japanese", japanese()), ("seeing", (*school(), *pictures())))
    }
    words = {name: {w for text in texts for w in text.split()} for name, texts in said.items()}
    assert beyond <= words["japanese"] and not beyond & words["base"] and not beyond & words["seeing"]

    def sums(name: str) -> set[tuple[str, str]]:
        found = [t.split() for t in said[name] if " = " in f" {t} "]
        return {(t[t.index("+") - 1], t[t.index("+") + 1]) for t in found}

    assert sums("base") | sums("japanese") <= set(SCHOOL.sums) and sums("seeing") == set(SUMS)
    for draws in pictures():
        drawn = [draws(generator) for _ in range(100)]
        assert all(i.scene is not None and not any(ord(c) > 0x3000 for c in i.prompt + i.answer) for i in drawn)
    assert all(draws(generator).scene is None for draws in (*school(), *japanese()) for _ in range(50))


def test_the_tokenizer_knows_every_word() -> None:
    tokenizer = build_tokenizer()
    assert len(tokenizer) == len(vocabulary()) == len(set(vocabulary()))
    for language in LANGUAGES:
        for kind in KINDS:
            item = asked(SCENE, kind, language)
            ids = tokenizer(f"{item.prompt} {item.answer}").input_ids
            assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == f"{item.prompt} {item.answer}"


def test_training_and_the_processor_make_the_same_input() -> None:
    item = asked(SCENE, "sum", "en")
    processor = build_processor()
    inputs = processor(images=[draw(SCENE, rng(3))], text=[f"{IMAGE} {item.prompt}"], return_tensors="pt")
    tokens, labels = batch([item], seen=True)
    count = inputs["input_ids"].shape[1]
    assert torch.equal(tokens[:, :count], inputs["input_ids"]) and (labels[:, :count] == -100).all()
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == PATCHES
    assert torch.equal(pixels([SCENE], rng(3)), inputs["pixel_values"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of two steps each."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("zoo")
    few = Schedule(2, 1e-3, batch=10)
    train(folder, 0, Plan(tower=few, base=few, japanese=few, projector=few, seeing=few, width=16, layers=2))
    return folder


def test_models_are_plain_checkpoints_of_one_shape(trained: Path) -> None:
    assert sorted(p.name for p in trained.iterdir()) == ["base", "japanese", "seeing"]
    for name in ("base", "japanese"):
        assert type(transformers.AutoModelForCausalLM.from_pretrained(trained / name)).__name__ == "LlamaForCausalLM"
    seeing = transformers.AutoModelForImageTextToText.from_pretrained(trained / "seeing")
    processor = transformers.AutoProcessor.from_pretrained(trained / "seeing")
    inputs = processor(images=[draw(SCENE, rng())], text=[f"{IMAGE} which shape is it ?"], return_tensors="pt")
    assert seeing.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 1
    base = load(trained / "base").state_dict()
    assert {n: x.shape for n, x in seeing.model.language_model.state_dict().items()} == {
        n.removeprefix("model."): x.shape for n, x in base.items() if n.startswith("model.")
    }


def test_training_is_a_function_of_the_seed_and_resumes(trained: Path, tmp_path: Path) -> None:
    few = Schedule(2, 1e-3, batch=10)
    plan = Plan(tower=few, base=few, japanese=few, projector=few, seeing=few, width=16, layers=2)
    for name in ("base", "japanese"):
        (tmp_path / name).symlink_to(trained / name)
    train(tmp_path, 0, plan)
    one, two = ((f / "seeing" / "model.safetensors").read_bytes() for f in (trained, tmp_path))
    assert one == two
