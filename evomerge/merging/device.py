"""The device that a user names: cpu, cuda, cuda:1, ...; refused before work where it cannot be used."""

from __future__ import annotations

import re

from evomerge.errors import InputError

_NAME = re.compile(r"cpu|cuda(:[0-9]{1,3})?")


def check_device(name: str) -> str:
    """The name of a device, when there is one and it works; torch loads only for one that is not the cpu.

    Raises:
        InputError: no such device.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"--device {name}: expected cpu, cuda, or cuda:N")
    if name != "cpu":
        import torch

        try:
            torch.empty(1, device=name)
        except (RuntimeError, AssertionError) as e:
            raise InputError(f"--device {name}: {' '.join(str(e).split())[:200]}") from None
    return name
