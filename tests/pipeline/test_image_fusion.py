"""`evomerge fuse` of image models: from the file to student, matrix and report; again; and a style more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import evomerge as package
from evomerge.errors import EvoMergeError, InputError
from evomerge.images.student import StyledPipeline
from evomerge.pipeline import fuse_images, plan_images
from tests.images import models
from tests.images.conftest import fusion, one_thread, tiny  # noqa: F401
from tests.report.pages import parse


@pytest.fixture(scope="module")
def fused(tiny: Path, tmp_path_factory: pytest.TempPathFactory, here: Callable) -> Path:  # noqa: F811
    """A finished fusion of warm and cold, by the command."""
    out = tmp_path_factory.mktemp("fused") / "out"
    done = here("fuse", fusion(tiny, name="two"), out, "--json")
    assert done.result["styles"] == ["warm", "cold"]
    return out


def test_what_comes_out(fused: Path) -> None:
    data = json.loads((fused / "result.json").read_text())
    found = data["distances"]
    assert found["references"] == found["styles"] == ["warm", "cold"]
    assert [len(row) for row in found["matrix"]] == [2, 2] and len(found["average"]) == len(found["floor"]) == 2
    assert found["fidt"] == pytest.approx(sum(found["matrix"][i][i] for i in range(2)) / 2)
    assert [x["step"] for x in data["training"]["history"]] == [2, 4, 6]
    student = StyledPipeline.from_pretrained(fused / "model", "cpu")
    assert student.styles == ("warm", "cold")
    assert Image.open(fused / "grid.png").size == (150 + 2 * 70, 24 + 5 * 70)
    card = (fused / "model" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "diffusers" and "| weight average |" in card
    assert str(fused.parent) not in card.partition("```yaml")[2]


def test_the_report(fused: Path, here: Callable, tmp_path: Path) -> None:
    text = (fused / "report.html").read_text()
    root = parse(text)
    assert [h.text for h in root.all("h2")][1:4] == ["Styles and teachers", "Pictures", "The training"]
    assert "img-src data:" in text and root.all("img")[0].attributes["src"].startswith("data:image/png;base64,")
    cells = [c.text for c in root.all("td")]
    value = json.loads((fused / "result.json").read_text())["distances"]["matrix"][1][0]
    assert f"{value:.4f}" in cells
    assert len(root.all("svg")) == 2 and "Distance of each style to each teacher" in text
    done = here("report", fused, "--out", tmp_path / "again.html", "--json")
    assert done.result["fusion"] == str(fused) and parse((tmp_path / "again.html").read_text()).all("svg")
    (tmp_path / "mine.html").write_text("mine")
    refused = here("report", fused, "--out", tmp_path / "mine.html", check=False)
    assert refused.returncode == 2 and "is no report of evomerge" in refused.stderr


def test_the_same_command_again_does_nothing_again(fused: Path, tiny: Path, here: Callable) -> None:  # noqa: F811
    before = {f: f.stat().st_mtime_ns for f in (fused / "model").rglob("*.safetensors")}
    measured = (fused / "measured.json").stat().st_mtime_ns
    done = here("fuse", fusion(tiny, name="two"), fused)
    assert "training" not in done.stderr and "measuring" not in done.stderr
    assert {f: f.stat().st_mtime_ns for f in before} == before
    assert (fused / "measured.json").stat().st_mtime_ns == measured
    # Another grid is drawn, and nothing measured; checkpoints may be written more often.
    grid = (fused / "grid.png").read_bytes()
    distances = json.loads((fused / "measured.json").read_text())["matrix"]
    training = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "save_steps": 5}
    changes = {"training": training, "measure": {"images": 8, "inference_steps": 2, "grid": 4}}
    done = here("fuse", fusion(tiny, name="two", **changes), fused)
    assert "training" not in done.stderr and "measuring" not in done.stderr
    assert Image.open(fused / "grid.png").size == (150 + 4 * 70, 24 + 5 * 70)
    here("fuse", fusion(tiny, name="two"), fused)
    assert (fused / "grid.png").read_bytes() == grid
    assert json.loads((fused / "measured.json").read_text())["matrix"] == distances
    # Measuring in another way measures again, and trains nothing.
    shown = {"images": 8, "inference_steps": 3, "grid": 2}
    done = here("fuse", fusion(tiny, name="two", measure=shown), fused)
    assert "measuring 2 styles" in done.stderr and "training" not in done.stderr
    assert {f: f.stat().st_mtime_ns for f in before} == before


def test_another_fusion_does_not_go_there(fused: Path, tiny: Path, here: Callable) -> None:  # noqa: F811
    refused = here("fuse", fusion(tiny, seed=1), fused, check=False)
    assert refused.returncode == 2 and "undo what differs: config.seed" in refused.stderr
    training = {"max_steps": 7, "per_device_train_batch_size": 8, "learning_rate": 1e-4, "save_steps": 2}
    refused = here("fuse", fusion(tiny, training=training), fused, check=False)
    assert "undo what differs: config.training.learning_rate, config.training.max_steps" in refused.stderr
    refused = here("fuse", fusion(tiny, teachers=["warm", {"model": "dark", "style": "cold"}]), fused, check=False)
    assert refused.returncode == 2 and "undo what differs: teachers" in refused.stderr


def test_a_student_that_was_changed_is_made_again(fused: Path, tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(fused, tmp_path / "out")
    file = tmp_path / "out" / "model" / "styles" / "styles.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4] + b"\0\0\0\0")
    fuse_images(fusion(tiny, name="two"), tmp_path / "out")
    assert file.read_bytes() == whole


def test_compared_by_a_function_of_ones_own(
    fused: Path, tiny: Path, tmp_path: Path, here: Callable  # noqa: F811
) -> None:
    shutil.copytree(fused, tmp_path / "out")
    (tiny / "look.py").write_text("def reds(pictures):\n    return pictures[:, :2].mean((2, 3))\n")
    measure = {"images": 8, "inference_steps": 2, "grid": 2, "features": "look.py:reds"}
    file = fusion(tiny, name="two", measure=measure)
    done = here("fuse", file, tmp_path / "out")
    assert "measuring 2 styles" in done.stderr and "training" not in done.stderr
    first = json.loads((tmp_path / "out" / "result.json").read_text())
    assert first["distances"] != json.loads((fused / "result.json").read_text())["distances"]
    assert "features of look.py:reds" in (tmp_path / "out" / "report.html").read_text()
    assert "on features of look.py:reds" in (tmp_path / "out" / "model" / "README.md").read_text()
    # Another function of that name measures again.
    (tiny / "look.py").write_text("def reds(pictures):\n    return 2 * pictures[:, :2].mean((2, 3))\n")
    assert "measuring 2 styles" in here("fuse", file, tmp_path / "out").stderr
    (tiny / "look.py").write_text("def reds(pictures):\n    return pictures.nothing\n")
    refused = here("fuse", file, tmp_path / "other", check=False)
    assert refused.returncode == 2 and "features = look.py:reds: fails: AttributeError" in refused.stderr
    assert "expected features of [2, 3, 8, 8]" in refused.stderr and not (tmp_path / "other").exists()
    (tiny / "look.py").write_text("def blues(pictures):\n    return pictures\n")
    refused = here("check", file, check=False)
    assert refused.returncode == 2 and "features = look.py:reds: no function reds" in refused.stderr


def test_a_style_is_added(fused: Path, tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(fused / "model", tiny / "student")
    file = fusion(tiny, base=None, student="student", teachers=["dark"])
    try:
        made = fuse_images(file, tmp_path / "out")
        assert made.distances.styles == ("warm", "cold", "dark") and made.old == ("warm", "cold")
        assert all(line["old"] > 0 for line in made.learned[1:])
        before, now = (load_file(f / "styles" / "styles.safetensors") for f in (tiny / "student", made.model))
        assert len(before["vectors"]) == 2 and len(now["vectors"]) == 3
        with pytest.raises(InputError, match='the student has a style "cold" already'):
            plan_images(fusion(tiny, base=None, student="student", teachers=["cold"]))
    finally:
        shutil.rmtree(tiny / "student")


def test_from_python(fused: Path, tiny: Path) -> None:  # noqa: F811
    made = package.fuse(fusion(tiny, name="two"), fused, progress=False)
    assert made.model == fused / "model" and made.distances.fidt > 0
    with pytest.raises(InputError, match="--workers 2: a fusion of image models runs in this process alone"):
        package.fuse(fusion(tiny), fused, workers=2)
    with pytest.raises(InputError, match="--gpus-per-worker 2: a fusion of image models runs in this process alone"):
        package.fuse(fusion(tiny), fused, gpus_per_worker=2)


def test_models_that_are_told_texts(tmp_path: Path) -> None:
    for i, name in enumerate(("base", "warm", "cold")):
        models.save_text_model(tmp_path / name, i)
    models.save_pictures(tmp_path / "pictures", ["abc", "xyz", "abc", "b"], column="text")
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
    made = fuse_images(fusion(tmp_path, training=training), tmp_path / "out")
    assert made.told == "text" and made.prompts == ("abc", "xyz", "b")
    assert StyledPipeline.from_pretrained(made.model, "cpu").generate(["abc"], "warm", inference_steps=1)


def test_a_teacher_with_a_text_encoder_of_its_own(tmp_path: Path, here: Callable) -> None:
    from transformers import CLIPTextModel

    for i, name in enumerate(("base", "warm", "cold")):
        models.save_text_model(tmp_path / name, i)
    folder = tmp_path / "warm" / "text_encoder"
    models.moved(CLIPTextModel.from_pretrained(folder), 1).save_pretrained(folder)
    models.save_pictures(tmp_path / "pictures", ["abc", "xyz", "abc", "b"], column="text")
    training = {"max_steps": 1, "per_device_train_batch_size": 2}
    file = fusion(tmp_path, training=training, measure={"images": 3, "inference_steps": 1, "grid": 1})
    words = "warm: its own text_encoder differ from the base's"
    assert words in here("check", file).stdout and "cold:" not in here("check", file).stdout
    here("fuse", file, tmp_path / "out")
    data = json.loads((tmp_path / "out" / "result.json").read_text())
    assert data["replaced"] == {"warm": ["text_encoder"]}
    # Every prompt is measured, and the grid shows as many as it is told.
    assert data["prompts"] == ["abc", "xyz", "b"] and data["grid"] == 1
    assert words in (tmp_path / "out" / "model" / "README.md").read_text()
    text = (tmp_path / "out" / "report.html").read_text()
    assert any(words in p.text for p in parse(text).all("p")) and "Columns: abc." in text


def test_models_without_a_class_to_spare(tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    """With nothing left out and no guidance, no class has to stand for none."""
    pictures = models.save_pictures(tmp_path / "pictures", [0, 1, 2, 3, 4])
    training = {"max_steps": 1, "per_device_train_batch_size": 2, "prompt_drop": 0.0}
    made = plan_images(fusion(tiny, pictures=str(pictures), training=training))
    assert set(made.pictures.prompts) == {0, 1, 2, 3, 4}
    with pytest.raises(InputError, match=r"4 is the class of a picture; .* training\.prompt_drop: 0, and no measure"):
        plan_images(fusion(tiny, pictures=str(pictures)))
    with pytest.raises(InputError, match="4 is the class of a picture"):
        plan_images(fusion(tiny, pictures=str(pictures), training=training, measure={"guidance_scale": 2}))


def test_a_damaged_picture_is_found_first(tiny: Path, tmp_path: Path, here: Callable) -> None:  # noqa: F811
    pictures = models.save_pictures(tmp_path / "pictures", [0, 1, 2, 3], size=64)
    whole = (pictures / "3.png").read_bytes()
    (pictures / "3.png").write_bytes(whole[: len(whole) // 2])
    file = fusion(tiny, pictures=str(pictures))
    for command in (("check", file), ("fuse", file, tmp_path / "out")):
        refused = here(*command, check=False)
        assert refused.returncode == 2 and "3.png: cannot be read as a picture" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_models_at_home(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("HOME", str(tiny))
    file = fusion(tmp_path, base="~/base", teachers=["~/warm", "~/cold"], pictures="~/pictures")
    assert plan_images(file).begins.folder.root == tiny / "base"


def test_memory_that_ran_out(
    fused: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    shutil.copytree(fused, tmp_path / "out")

    def full(*args: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("evomerge.images.measure.generate", full)
    file = fusion(tiny, name="two", measure={"images": 9, "batch_size": 9})
    with pytest.raises(EvoMergeError, match=r"measure\.batch_size = 9: memory ran out; give a lower number, and"):
        fuse_images(file, tmp_path / "out")
    monkeypatch.setattr("evomerge.images.training.StudentTrainer.compute_loss", full)
    with pytest.raises(EvoMergeError, match=r"training\.per_device_train_batch_size = 8: memory ran out"):
        fuse_images(file, tmp_path / "new")


def test_dits_over_latents(tmp_path: Path) -> None:
    """Whose denoisers have no blocks down and up, a time embedding in each layer, and say a variance too."""
    for i, name in enumerate(("base", "warm", "cold")):
        models.save_dit(tmp_path / name, i)
    models.save_pictures(tmp_path / "pictures", [0, 1, 2, 3])
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_steps": 1}
    made = fuse_images(fusion(tmp_path, training=training), tmp_path / "out")
    assert made.architecture == "DiTTransformer2DModel" and made.told == "class"
    assert all(line["features"] > 0 and line["score"] > 0 for line in made.learned)
    assert StyledPipeline.from_pretrained(made.model, "cpu").generate([3], "cold", inference_steps=1)


def test_check_says_what_it_would_do(tiny: Path, here: Callable) -> None:  # noqa: F811
    done = here("check", fusion(tiny), "--json")
    assert done.result["kind"] == "image fusion" and done.result["styles"] == ["warm", "cold"]
    assert done.result["told"] == "class" and done.result["pictures"] == 16
    assert "6 steps of 8 of 16 pictures (8 x 8)" in here("check", fusion(tiny)).stdout


@pytest.fixture(scope="module")
def strangers(tiny: Path) -> Path:  # noqa: F811
    """Beside the tiny models: of another noise, another size, another width; a DiT; and what is none."""
    models.save_unet(tiny / "velocity", models.unet(9), prediction_type="v_prediction", beta_schedule="linear")
    models.save_unet(tiny / "large", models.unet(9))
    config = json.loads((tiny / "large" / "unet" / "config.json").read_text())
    (tiny / "large" / "unet" / "config.json").write_text(json.dumps({**config, "sample_size": 16, "act_fn": "mish"}))
    models.save_dit(tiny / "dit", 0)
    models.save_dit(tiny / "dit-2", 1)
    latents = json.loads((tiny / "dit-2" / "vae" / "config.json").read_text())
    (tiny / "dit-2" / "vae" / "config.json").write_text(json.dumps({**latents, "scaling_factor": 0.25}))
    shutil.copytree(tiny / "base", tiny / "coded")
    index = json.loads((tiny / "coded" / "model_index.json").read_text())
    (tiny / "coded" / "model_index.json").write_text(json.dumps({**index, "_class_name": ["mine.py", "Mine"]}))
    models.save_unet(tiny / "flowing", models.unet(9))
    flow = tiny / "flowing" / "scheduler" / "scheduler_config.json"
    flow.write_text(json.dumps({**json.loads(flow.read_text()), "_class_name": "FlowMatchEulerDiscreteScheduler"}))
    (tiny / "empty").mkdir()
    for name, changes in (("sized", {"class_embed_type": "timestep"}), ("filling", {"in_channels": 9})):
        shutil.copytree(tiny / ("base" if name == "sized" else "dit"), tiny / name)
        file = next((tiny / name).glob("*/config.json")) if name == "sized" else tiny / name / "transformer/config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return tiny


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teachers": ["warm", "velocity"]},
         "teachers.1 (velocity): does not fit {file}: base (base): scheduler: beta_schedule 'linear' against "
         "'squaredcos_cap_v2'; scheduler: prediction_type 'v_prediction' against 'epsilon'"),
        ({"teachers": ["large", "warm"]},
         "teachers.0 (large): does not fit {file}: base (base): latent size: sample_size 16 against 8; act_fn 'mish' "
         "against 'silu'"),
        ({"teachers": ["dit", "velocity"]}, "architecture DiTTransformer2DModel against UNet2DModel"),
        ({"base": "dit", "teachers": ["dit", {"model": "dit-2", "style": "b"}]},
         "vae: scaling_factor 0.25 against 0.5"),
        ({"teachers": ["warm", "none"]}, "none: no such folder; expected one that diffusers saved"),
        ({"teachers": ["warm", "empty"]}, "has no model_index.json and no diffusion_pytorch_model.safetensors"),
        ({"teachers": ["warm", "warm/unet"]}, "a denoiser alone; expected a pipeline, which has the scheduler too"),
        ({"teachers": ["warm", "sized"]}, "is told more than a prompt (class_embed_type = 'timestep')"),
        ({"teachers": ["warm", "filling"]}, "takes 9 channels, and latents have 4"),
        ({"teachers": ["warm", "coded"]}, "refused: a pipeline with code of its own"),
        ({"teachers": ["warm"]}, "expected at least 2 teachers; got 1"),
        ({"teachers": ["warm", "warm"]}, 'the style "warm" is given twice'),
        ({"base": None}, "expected `base`, what the student begins as, or `student`"),
        ({"student": "base"}, "expected `base`, what the student begins as, or `student`"),
        ({"base": None, "student": "base"}, "expected the model folder of a fusion of image models"),
        ({"training": {"old_weight": 2}}, "training.old_weight is for a student of before; leave it out"),
        ({"base": None, "student": "base", "training": {"style_dim": 8}}, "training.style_dim: is that of the student"),
        ({"training": {"max_steps": 5, "warmup_steps": 5}}, "training.warmup_steps = 5: expected fewer than max_steps"),
        ({"training": {"lr": 1}}, 'unknown key "training.lr"'),
        ({"training": {"prompt_drop": 1.0}}, "training.prompt_drop = 1.0: expected"),
        ({"measure": {"prompts": [7]}}, "measure.prompts: 7: expected a class, a whole number from 0 to 4"),
        ({"pictures": {"path": "pictures", "null_label": 2}}, "2 is the class of a picture; expected one that none"),
        ({"pictures": {"path": "pictures", "null_label": 9}}, "the models have 5 classes; expected at most 4"),
        ({"pictures": "nowhere"}, "nowhere: no such folder"),
        ({"measure": {"features": "look"}}, 'measure.features = "look": expected FILE.py:FUNCTION'),
        ({"measure": {"features": "none.py:look"}}, "none.py: no such file; expected FILE.py:FUNCTION"),
        ({"teachers": ["warm", "flowing"]}, "its scheduler has noise of FlowMatchEulerDiscreteScheduler"),
        ({"teachers": ["warm", {"model": "cold", "style": "a/b"}]}, 'style = "a/b": expected letters, digits and _'),
    ],
)  # fmt: skip
def test_what_is_refused(strangers: Path, tmp_path: Path, changes: dict[str, Any], words: str, here: Callable) -> None:
    file = fusion(strangers, **changes)
    done = here("fuse", file, tmp_path / "out", check=False)
    assert done.returncode == 2, done.stderr
    assert words.replace("{file}", str(file)) in done.stderr
    assert not (tmp_path / "out").exists()


def test_folders_that_are_somebody_elses(tiny: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="already, and no fusion wrote them"):
        fuse_images(fusion(tiny), tmp_path / "mine")
    with pytest.raises(InputError, match="holds the model"):
        fuse_images(fusion(tiny), tiny)
    with pytest.raises(InputError, match="is a file"):
        fuse_images(fusion(tiny), tmp_path / "mine" / "letter.txt")


def test_without_diffusers(monkeypatch: pytest.MonkeyPatch, tiny: Path, here: Callable, tmp_path: Path) -> None:  # noqa: F811
    monkeypatch.setattr("evomerge.images.extra.find_spec", lambda name: None)
    done = here("fuse", fusion(tiny), tmp_path / "out", check=False)
    assert done.returncode == 2
    assert "need diffusers, which is not installed: pip install 'evomerge[diffusion]'" in done.stderr
