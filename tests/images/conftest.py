"""What tests of image models share: a base, three models a little way from it, and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.images import models


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base, warm, cold and dark (untrained, of one architecture) and pictures."""
    folder = tmp_path_factory.mktemp("tiny")
    models.save_unet(folder / "base", models.unet(0))
    for i, name in enumerate(("warm", "cold", "dark")):
        models.save_unet(folder / name, models.moved(models.unet(0), i + 1))
    models.save_pictures(folder / "pictures", [i % 4 for i in range(16)])
    return folder


def fusion(folder: Path, **changes: Any) -> Path:
    """A fusion's file beside the models of `tiny`, with keys of its own; None leaves one out."""
    data: dict[str, Any] = {
        "kind": "fuse_images", "base": "base", "teachers": ["warm", "cold"], "pictures": "pictures",
        "training": {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "save_steps": 2},
        "measure": {"images": 8, "inference_steps": 2, "grid": 2},
    }  # fmt: skip
    data = {k: v for k, v in {**data, **changes}.items() if v is not None}
    number = len(list(folder.glob("fusion-*.yaml")))
    file = folder / f"fusion-{number}.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file
