"""Random masks: the published generator, the same whatever the chunks, uniform and independent."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.merging.draws import BITS, draws, stream_key, threshold
from tests.merging.oracles import splitmix64, stream


def test_draws_are_the_published_splitmix64() -> None:
    # First outputs for seed 1234567, as published with the reference implementation (Rosetta Code, Java's tests).
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
                 16408922859458223821]  # fmt: skip
    assert splitmix64(1234567, 5) == published
    halves = [half >> 1 for value in published for half in (value & 0xFFFFFFFF, value >> 32)]
    assert draws(1234567, 10).tolist() == halves == stream(1234567, 10)
    assert draws(2**64 - 3, 901).tolist() == stream(2**64 - 3, 901)


@pytest.mark.parametrize("start", [0, 1, 2, 776, 777])
def test_draws_do_not_depend_on_chunks(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draws(99, 5000)
    assert torch.equal(draws(99, 1234, start=start), whole[start : start + 1234])
    monkeypatch.setattr("evomerge.merging.draws._CHUNK", 77)
    assert torch.equal(draws(99, 1234, start=start), whole[start : start + 1234])


def test_draws_are_uniform_and_streams_are_independent() -> None:
    a, b = (draws(stream_key(0, "content", name), 200_000) for name in ("a", "b"))
    for density in (0.1, 0.5, 0.93):
        for part in (a, a[::2], a[1::2]):
            assert float((part < threshold(density)).double().mean()) == pytest.approx(density, abs=0.005)
    assert abs(float(np.corrcoef(a.numpy(), b.numpy())[0, 1])) < 0.01
    assert abs(float(np.corrcoef(a.numpy()[1:], a.numpy()[:-1])[0, 1])) < 0.01
    assert abs(float(np.corrcoef(a.numpy()[::2], a.numpy()[1::2])[0, 1])) < 0.01
    keys = [stream_key(s, c, t) for s in (0, 1) for c in ("x", "y") for t in ("v", "w")]
    assert len(set(keys)) == 8
    assert (threshold(0.0), threshold(1.0)) == (0, 1 << BITS)
