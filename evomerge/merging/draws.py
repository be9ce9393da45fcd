"""Random numbers that depend on a key and a position alone: the same on any machine, device, thread count and chunk.

A counter-based generator in the manner of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014): elements 2 i and 2 i + 1 of the stream `key` are the lower and the upper half, without their
last bit, of the finalizer of key + (i + 1) * golden ratio. Integer arithmetic modulo 2^64: there is nothing to round.
"""

from __future__ import annotations

import hashlib

import torch

_GOLDEN = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB
BITS = 31
_DRAW = (1 << BITS) - 1
_CHUNK = 1 << 16  # what stays in a core's cache: three times faster than a million at once


def stream_key(seed: int, content: str, tensor: str) -> int:
    """The 64-bit key of one source tensor's stream.

    Args:
        seed: The study's mask seed.
        content: Content hash of the source.
        tensor: Name of the tensor in the source.
    """
    digest = hashlib.sha256(f"{seed}\n{content}\n{tensor}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def draws(key: int, count: int, device: torch.device | str = "cpu", start: int = 0) -> torch.Tensor:
    """Uniform integers in [0, 2^31), int32, shape (count,): the stream's positions from `start` on."""
    out = torch.empty(count, dtype=torch.int32, device=device)
    for at in range(0, count, _CHUNK):
        end = min(at + _CHUNK, count)
        first, last = (start + at) // 2, (start + end + 1) // 2
        z = torch.arange(first + 1, last + 1, dtype=torch.int64, device=device)
        z.mul_(_signed(_GOLDEN)).add_(_signed(key))
        z.bitwise_xor_(_shift(z, 30)).mul_(_signed(_MIX1))
        z.bitwise_xor_(_shift(z, 27)).mul_(_signed(_MIX2))
        z.bitwise_xor_(_shift(z, 31))
        pairs = torch.stack([(z >> 1) & _DRAW, _shift(z, 64 - BITS)], dim=1).reshape(-1)
        skipped = (start + at) % 2
        out[at:end] = pairs[skipped : skipped + end - at].to(torch.int32)
    return out


def threshold(density: float) -> int:
    """The draws below this keep their element, with probability `density`."""
    return round(density * (1 << BITS))


def _signed(value: int) -> int:
    """A 64-bit unsigned number as torch's int64 has it."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(z: torch.Tensor, by: int) -> torch.Tensor:
    """Logical right shift: int64's own is arithmetic."""
    return (z >> by).bitwise_and_((1 << (64 - by)) - 1)
