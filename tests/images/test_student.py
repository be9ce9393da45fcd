"""What a fusion makes, loaded and asked: styles, mixtures, and one style as a pipeline of diffusers' own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from evomerge.errors import InputError, SourceError
from evomerge.images.pipelines import load_denoiser, open_model
from evomerge.images.sampling import generate, plain
from evomerge.images.student import StyledPipeline, write_student
from evomerge.images.styles import StyledDenoiser, Styles, time_width
from tests.images import models


def written(folder: Path, base: Path, null_label: int | None = None) -> Path:
    """A student whose styles differ, of a base that is there."""
    model = open_model(base, "base")
    denoiser = load_denoiser(model.folder)
    generator = torch.Generator().manual_seed(0)
    styles = Styles(2, 8, time_width(denoiser), generator)
    with torch.no_grad():
        styles.outer.weight.normal_(0, 0.5, generator=generator)
    folder.mkdir()
    write_student(folder, model, StyledDenoiser(denoiser, styles), ("warm", "cold"), null_label)
    return folder


@pytest.fixture(scope="module")
def student(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> StyledPipeline:
    return StyledPipeline.from_pretrained(written(tmp_path_factory.mktemp("out") / "model", tiny / "base"), "cpu")


def test_generates_in_each_style_and_between(student: StyledPipeline) -> None:
    asked = {"seed": 3, "inference_steps": 3}
    warm, cold = (student.tensors([0, 1, 2], s, **asked) for s in student.styles)
    half = student.tensors([0, 1, 2], {"warm": 0.5, "cold": 0.5}, **asked)
    assert warm.shape == (3, 3, 8, 8) and warm.abs().max() <= 1
    assert not torch.allclose(warm, cold) and not torch.allclose(half, warm) and not torch.allclose(half, cold)
    assert torch.equal(student.tensors([0, 1, 2], {"warm": 1.0}, **asked), warm)
    assert torch.equal(student.tensors([0, 1, 2], "warm", **asked), warm)
    torch.testing.assert_close(student.tensors([0, 1, 2], "warm", batch_size=2, **asked), warm, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(student.tensors([0, 1, 2], "warm", guidance_scale=3.0, **asked), warm)
    images = student.generate([0, 1, 2], "warm", **asked)
    assert [i.size for i in images] == [(8, 8)] * 3 and images[0].mode == "RGB"


def test_one_style_is_a_plain_pipeline(student: StyledPipeline, tmp_path: Path) -> None:
    student.plain({"warm": 0.25, "cold": 0.75}).save_pretrained(tmp_path / "plain")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "plain")
    said = generate(
        plain(loaded.unet), student.conditions, loaded, [0, 1], dict(loaded.unet.config), steps=3, seed=3
    )  # fmt: skip
    want = student.tensors([0, 1], {"warm": 0.25, "cold": 0.75}, seed=3, inference_steps=3)
    torch.testing.assert_close(said, want, rtol=1e-4, atol=1e-4)


def test_the_folder_itself_is_a_plain_pipeline_without_styles(student: StyledPipeline) -> None:
    loaded = DiffusionPipeline.from_pretrained(student.model.folder.root)
    mine = student.denoiser.denoiser.state_dict()
    assert all(torch.equal(t, mine[n]) for n, t in loaded.unet.state_dict().items())


def test_saves_what_it_loaded(student: StyledPipeline, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    student.save(tmp_path / "copy")
    again = StyledPipeline.from_pretrained(tmp_path / "copy", "cpu")
    assert again.styles == student.styles
    assert all(torch.equal(a, b) for a, b in zip(
        again.denoiser.state_dict().values(), student.denoiser.state_dict().values(), strict=True
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("prompts", "style", "words"),
    [
        ([0], "wram", 'style "wram": did you mean "warm"?'),
        ([0], {"warm": 0.5}, "weights sum to 0.5; expected 1"),
        ([5], "warm", "prompts: 5: expected a class, a whole number from 0 to 4"),
        (["a disc"], "warm", "prompts: 'a disc': expected a class"),
        ([True], "warm", "prompts: True: expected a class"),
    ],
)
def test_what_is_refused(student: StyledPipeline, prompts: list, style: object, words: str) -> None:
    with pytest.raises(InputError) as e:
        student.generate(prompts, style)
    assert words in str(e.value)


def test_folders_that_are_no_student(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected the model folder of a fusion of image models"):
        StyledPipeline.from_pretrained(tiny / "base", "cpu")
    folder = written(tmp_path / "model", tiny / "base")
    said = json.loads((folder / "styles" / "styles.json").read_text())
    (folder / "styles" / "styles.json").write_text(json.dumps({**said, "styles": ["one", "two", "three"]}))
    with pytest.raises(SourceError, match=r"styles\.safetensors: cannot be used"):
        StyledPipeline.from_pretrained(folder, "cpu")
    (folder / "styles" / "styles.json").write_text(json.dumps({**said, "version": 9}))
    with pytest.raises(SourceError, match="version 9; expected 1"):
        StyledPipeline.from_pretrained(folder, "cpu")


def test_models_that_are_told_texts_and_work_on_latents(tmp_path: Path) -> None:
    base = models.save_text_model(tmp_path / "base", 0)
    found = StyledPipeline.from_pretrained(written(tmp_path / "model", base), "cpu")
    asked = {"seed": 1, "inference_steps": 2, "guidance_scale": 2.0}
    one, other = (found.tensors([text, "b"], "warm", **asked) for text in ("abc", "xyz"))
    assert one.shape == (2, 3, 8, 8) and not torch.allclose(one[0], other[0])
    torch.testing.assert_close(one[1], other[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="3: expected a text"):
        found.tensors([3], "warm")
    # diffusers' own way of calling it, with a style folded in.
    made = found.plain("cold")(["abc"], num_inference_steps=2, output_type="pt", height=8, width=8)
    assert made.images.shape == (1, 3, 8, 8)


def test_a_dit_over_latents(tmp_path: Path) -> None:
    found = StyledPipeline.from_pretrained(written(tmp_path / "model", models.save_dit(tmp_path / "base", 0)), "cpu")
    assert found.conditions.null == 4 and found.conditions.classes == 5
    warm, cold = (found.tensors([0, 3], s, inference_steps=2) for s in found.styles)
    assert warm.shape == (2, 3, 8, 8) and not torch.allclose(warm, cold)
    made = found.plain("warm")(class_labels=[1], num_inference_steps=2, guidance_scale=1.0, output_type="np")
    assert made.images.shape == (1, 8, 8, 3)


def test_without_diffusers(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    monkeypatch.setattr("evomerge.images.extra.find_spec", lambda name: None)
    with pytest.raises(InputError) as e:
        StyledPipeline.from_pretrained(tiny / "base")
    assert str(e.value) == "a student: need diffusers, which is not installed: pip install 'evomerge[diffusion]'"
