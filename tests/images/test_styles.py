"""A style is a shift of the time embedding, and folds into a plain model of any of the known classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from evomerge.images.styles import BlockOutputs, StyledDenoiser, Styles, blocks_of, one_hot, time_embeddings, time_width
from tests.images import models

KINDS: dict[str, tuple[Callable[[int], Any], tuple[int, ...], dict[str, torch.Tensor]]] = {
    "unet": (models.unet, (5, 3, 8, 8), {"class_labels": torch.tensor([0, 1, 2, 3, 4])}),
    "dit": (models.dit, (5, 4, 4, 4), {"class_labels": torch.tensor([0, 1, 2, 3, 4])}),
    "text": (models.conditioned, (5, 4, 4, 4), {"encoder_hidden_states": torch.randn(5, 8, 16)}),
}


def styled(kind: str, trained: bool = True) -> tuple[StyledDenoiser, torch.Tensor, torch.Tensor, dict[str, Any]]:
    make, shape, told = KINDS[kind]
    denoiser = make(0).eval()
    generator = torch.Generator().manual_seed(0)
    styles = Styles(3, 16, time_width(denoiser), generator)
    if trained:
        with torch.no_grad():
            styles.outer.weight.normal_(0, 0.5, generator=generator)
            styles.outer.bias.normal_(0, 0.5, generator=generator)
    sample = torch.randn(shape, generator=generator)
    times = torch.tensor([0, 100, 500, 900, 999])
    return StyledDenoiser(denoiser, styles).eval(), sample, times, told


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_new_student_says_what_its_base_says(kind: str) -> None:
    student, sample, times, told = styled(kind, trained=False)
    plain = student.denoiser(sample, times, **told).sample
    for style in range(3):
        said = student(sample, times, one_hot([style] * 5, 3), **told)
        assert torch.equal(said, plain)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_each_picture_has_its_style_and_folds(kind: str) -> None:
    student, sample, times, told = styled(kind)
    plain = student.denoiser(sample, times, **told).sample
    mixed = student(sample, times, one_hot([0, 1, 2, 0, 1], 3), **told)
    assert (mixed - plain).abs().amax() > 1e-3
    weights = [torch.eye(3)[0], torch.tensor([0.25, 0.0, 0.75])]
    for weight in weights:
        folded = student.folded(weight)
        assert not any(m._forward_hooks for m in folded.modules())
        want = student(sample, times, weight.expand(5, -1), **told)
        torch.testing.assert_close(folded(sample, times, **told).sample, want, rtol=1e-4, atol=1e-5)
    # One batch of several styles says of each picture what a batch of its style says.
    alone = student(sample, times, one_hot([1] * 5, 3), **told)
    torch.testing.assert_close(mixed[[1, 4]], alone[[1, 4]], rtol=1e-4, atol=1e-5)
    # The plain model is as it was, and is still told apart from the student.
    assert torch.equal(student.denoiser(sample, times, **told).sample, plain)
    assert all(m._forward_hooks for m in time_embeddings(student.denoiser))


def test_blocks_are_those_of_the_paper() -> None:
    """Of SD 1.5 four down, one in the middle, four up; of the tiny one two, one, two."""
    assert len(blocks_of(models.unet(0))) == 5 and len(blocks_of(models.dit(0))) == 2
    student, sample, times, told = styled("unet")
    with BlockOutputs(student.denoiser) as outputs, torch.no_grad():
        student.denoiser(sample, times, **told)
        found = outputs.take()
        assert [tuple(x.shape[1:]) for x in found] == [(16, 4, 4), (32, 4, 4), (32, 4, 4), (32, 8, 8), (16, 8, 8)]
        assert outputs.take() == []
    student.denoiser(sample, times, **told)
    assert outputs.take() == []


def test_added_styles_leave_the_others_as_they_are() -> None:
    student, *_ = styled("unet")
    more = student.styles.extended(2, torch.Generator().manual_seed(9))
    assert more.vectors.shape == (5, 16)
    assert torch.equal(more(one_hot([0, 2], 5)), student.styles(one_hot([0, 2], 3)))


def test_a_time_embedding_without_bias_gets_one() -> None:
    student, sample, times, told = styled("unet")
    student.denoiser.time_embedding.linear_2.bias = None
    weight = torch.eye(3)[2]
    with torch.no_grad():
        want = student(sample, times, weight.expand(5, -1), **told)
        torch.testing.assert_close(student.folded(weight)(sample, times, **told).sample, want, rtol=1e-4, atol=1e-5)
