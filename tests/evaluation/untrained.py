"""A vision-language model that was not trained, and the text model that it was made of."""

from __future__ import annotations

from pathlib import Path

import torch

from evomerge.zoo.vision.model import build_text, build_tower, build_vlm, save


def untrained(root: Path) -> tuple[Path, Path]:
    """Write both; returns their folders, `vlm` and `text`."""
    torch.set_num_threads(1)
    text = build_text(16, 2, 0)
    with torch.no_grad():
        for p in text.parameters():
            p.mul_(8)  # so that answers differ
    vlm = build_vlm(text, build_tower(1), 2)
    with torch.no_grad():
        vlm.model.multi_modal_projector.linear_2.weight.mul_(8)
    save(vlm, root / "vlm")
    save(text, root / "text")
    return root / "vlm", root / "text"
