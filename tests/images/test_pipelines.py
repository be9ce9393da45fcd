"""Which pipelines can be a student's base or teachers: by their files alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evomerge.images.config import ImageFusionError
from evomerge.images.pipelines import check_alike, load_denoiser, open_model
from evomerge.images.student import StyledPipeline
from tests.images import models
from tests.images.test_student import written


def changed(folder: Path, of: Path, file: str, **keys: Any) -> Path:
    """A copy with other keys in one of its JSON files; None takes one out."""
    shutil.copytree(of, folder)
    old = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({k: v for k, v in {**old, **keys}.items() if v is not None}))
    return folder


def alike(first: Path, other: Path) -> None:
    check_alike(open_model(first, "base"), [open_model(other, "teacher")])


def test_what_an_older_diffusers_left_out_is_no_difference(tiny: Path, tmp_path: Path) -> None:
    older = {"dropout": None, "mid_block_type": None, "attention_head_dim": None}
    alike(tiny / "base", changed(tmp_path / "a", tiny / "warm", "unet/config.json", **older))
    alike(changed(tmp_path / "b", tiny / "base", "unet/config.json", **older), tiny / "warm")
    noise = {"prediction_type": None, "rescale_betas_zero_snr": None}
    alike(tiny / "base", changed(tmp_path / "c", tiny / "warm", "scheduler/scheduler_config.json", **noise))
    dit = models.save_dit(tmp_path / "dit", 0)
    usual = changed(tmp_path / "d", dit, "vae/config.json", scaling_factor=0.18215)
    alike(usual, changed(tmp_path / "e", dit, "vae/config.json", scaling_factor=None))
    with pytest.raises(ImageFusionError, match=r"vae: scaling_factor 0\.18215 against 0\.5"):
        alike(dit, tmp_path / "e")


def test_what_is_left_out_and_is_a_difference(tiny: Path, tmp_path: Path) -> None:
    base = changed(tmp_path / "base", tiny / "base", "scheduler/scheduler_config.json", prediction_type=None)
    velocity = {"prediction_type": "v_prediction"}
    teacher = changed(tmp_path / "teacher", tiny / "warm", "scheduler/scheduler_config.json", **velocity)
    with pytest.raises(ImageFusionError, match="prediction_type 'v_prediction' against 'epsilon'"):
        alike(base, teacher)
    mish = changed(tmp_path / "mish", tiny / "warm", "unet/config.json", act_fn="mish")
    with pytest.raises(ImageFusionError, match="act_fn 'mish' against 'silu'"):
        alike(changed(tmp_path / "plain", tiny / "base", "unet/config.json", act_fn=None), mish)


@pytest.mark.parametrize(
    ("file", "keys", "words"),
    [
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"},
         "its scheduler has noise of FlowMatchEulerDiscreteScheduler, by which a student cannot be taught yet"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "noise of EDMEulerScheduler"),
        ("scheduler/scheduler_config.json", {"_class_name": "HeunDiscreteScheduler", "beta_schedule": "exp"},
         "beta_schedule = 'exp'"),
        ("scheduler/scheduler_config.json", {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
         "use_flow_sigmas = True"),
        ("scheduler/scheduler_config.json", {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"},
         "timestep_type = 'continuous'"),
        ("unet/config.json", {"sample_size": None}, "its denoiser's config.json has no sample_size"),
    ],
)  # fmt: skip
def test_bases_that_cannot_teach(tiny: Path, tmp_path: Path, file: str, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ImageFusionError) as e:
        open_model(changed(tmp_path / "base", tiny / "base", file, **keys), "base")
    assert words in str(e.value)


def test_other_encoders_are_no_pixels(tmp_path: Path) -> None:
    base = models.save_dit(tmp_path / "base", 0)
    tiny_one = changed(tmp_path / "tiny", base, "vae/config.json", _class_name="AutoencoderTiny")
    with pytest.raises(ImageFusionError, match=r"\(vae is a AutoencoderTiny; expected vae, an AutoencoderKL"):
        open_model(tiny_one, "base")
    pixels = models.save_unet(tmp_path / "pixels", models.unet(0))
    quantised = changed(tmp_path / "quantised", pixels, "model_index.json", vqvae=["diffusers", "VQModel"])
    shutil.copytree(base / "vae", quantised / "vqvae")
    with pytest.raises(ImageFusionError, match=r"encoded in another way \(vqvae; expected vae"):
        open_model(quantised, "base")


def test_a_component_with_a_pickle_alone(tmp_path: Path) -> None:
    base = models.save_text_model(tmp_path / "base", 0)
    (base / "text_encoder" / "model.safetensors").rename(base / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(ImageFusionError, match=r"text_encoder: has only pytorch_model\.bin, a pickle"):
        open_model(base, "base")
    (base / "text_encoder" / "pytorch_model.bin").unlink()
    with pytest.raises(ImageFusionError, match=r"text_encoder: holds no weights \(\*\.safetensors\)"):
        open_model(base, "base")


def cached(folder: Path, model: Path) -> Path:
    """A model as the hub's cache has it: each file a link to a blob, components a folder deeper."""
    home = folder / "models--me--it" / "snapshots" / "abc"
    blobs = home.parent.parent / "blobs"
    blobs.mkdir(parents=True)
    for i, file in enumerate(sorted(f for f in model.rglob("*") if f.is_file())):
        place = home / file.relative_to(model)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blobs / str(i))
        place.symlink_to(Path("../" * len(place.relative_to(home.parent.parent).parent.parts)) / "blobs" / str(i))
    return home


def test_models_in_the_hubs_cache(tiny: Path, tmp_path: Path) -> None:
    home = cached(tmp_path, tiny / "base")
    model = open_model(home, "base")
    assert model.content_hash() == open_model(tiny / "base", "base").content_hash()
    assert load_denoiser(model.folder).config.sample_size == 8
    (home / "unet" / "config.json").unlink()
    (tmp_path / "secret.json").write_text("{}")
    (home / "unet" / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ImageFusionError, match="refused: a link that leads out of the model's folder"):
        open_model(home, "base")


def test_the_hash_of_a_student_has_its_styles(tiny: Path, tmp_path: Path) -> None:
    one = written(tmp_path / "one", tiny / "base")
    shutil.copytree(one, tmp_path / "other")
    assert open_model(one, "a").content_hash() == open_model(tmp_path / "other", "b").content_hash()
    student = StyledPipeline.from_pretrained(one, "cpu")
    student.denoiser.styles.vectors.data += 0.1
    (tmp_path / "moved").mkdir()
    student.save(tmp_path / "moved")
    assert open_model(one, "a").content_hash() != open_model(tmp_path / "moved", "b").content_hash()


def test_components_that_teachers_have_of_their_own(tmp_path: Path) -> None:
    from transformers import CLIPTextModel

    base, same = (models.save_text_model(tmp_path / n, i) for i, n in enumerate(("base", "same")))
    shutil.copytree(base, tmp_path / "own")
    encoder = CLIPTextModel.from_pretrained(base / "text_encoder")
    models.moved(encoder, 1).save_pretrained(tmp_path / "own" / "text_encoder")
    first = open_model(base, "base")
    assert open_model(same, "same").unlike(first) == ()
    assert open_model(tmp_path / "own", "own").unlike(first) == ("text_encoder",)
