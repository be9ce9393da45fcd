"""Adapters that are refused before any work, each with one message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import SourceError
from evomerge.sources import open_source

Lora = Callable[..., Path]


@pytest.fixture
def broken(three: tuple[Path, list[Path]], tmp_path: Path) -> Callable[..., str]:
    """broken(config, tensors): the message about an adapter whose configuration or tensors were changed."""
    model, folders = three
    folder = Path(shutil.copytree(folders[0], tmp_path / "broken"))
    original = (folder / "adapter_config.json").read_text()

    def message(
        config: Mapping[str, Any] | str | None = None,
        change: Callable[[dict[str, torch.Tensor]], object] | None = None,
    ) -> str:
        text = config if isinstance(config, str) else json.dumps({**json.loads(original), **(config or {})})
        (folder / "adapter_config.json").write_text(text)
        tensors = load_file(folders[0] / "adapter_model.safetensors")
        if change:
            change(tensors)
            save_file(tensors, folder / "adapter_model.safetensors")
        with pytest.raises(SourceError) as e:
            open_source(f"{model}+{folder}")
        assert e.value.exit_code == 2 and "\n" not in str(e.value)
        return str(e.value)

    return message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "IA3"}, 'peft_type is "IA3"; only LORA'),
        ({"peft_type": "LOHA"}, 'peft_type is "LOHA"'),
        ({"alora_invocation_tokens": [1, 2]}, "activated LoRA"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "fused experts (target_parameters)"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the model's own weights too"),
        ({"r": 0}, "r = 0: expected positive numbers"),
        ({"r": 16}, "has rank 2, adapter_config.json says 16"),
        ({"lora_alpha": "many"}, "lora_alpha = 'many'"),
        ({"alpha_pattern": {"(a+)+b": 3}}, "alpha_pattern"),
        ({"rank_pattern": {"(": 3}}, "rank_pattern"),
        ({"alpha_pattern": [1]}, "alpha_pattern"),
        ("[]", "expected a JSON object"),
        ("{", "not JSON"),
    ],
)
def test_configurations_that_are_refused(broken: Callable[..., str], config: Any, words: str) -> None:
    assert words in broken(config)


KEY = "base_model.model.model.layers.1.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(KEY + "A.weight"), "has lora_B only"),
        (lambda t: t.update({KEY.replace("q_proj", "qq_proj") + "A.weight": t.pop(KEY + "A.weight"),
                             KEY.replace("q_proj", "qq_proj") + "B.weight": t.pop(KEY + "B.weight")}),
         'has no tensor "model.layers.1.self_attn.qq_proj.weight" (nearest: "model.layers.1.self_attn.q_proj.weight")'),
        (lambda t: t.update({KEY + "A.weight": torch.zeros(2, 5)}), "do not multiply to it"),
        (lambda t: t.update({KEY + "A.weight": torch.zeros(3, 16)}), "are no pair of thin matrices"),
        (lambda t: t.update({KEY + "A.weight": torch.zeros(2, 16, dtype=torch.int32)}), "expected floating-point"),
        (lambda t: t.update({KEY + "magnitude_vector": torch.zeros(16)}), "kind of adapter tensor"),
        (lambda t: t.update({"base_model.model.model.norm.weight": torch.zeros(3)}), "another shape"),
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(200, 16)}), "its vocabulary was changed"),
        (lambda t: t.clear() or t.update({}), "holds no tensor of an adapter"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(broken: Callable[..., str], change: Any, words: str) -> None:
    assert words in broken({"base_model_name_or_path": "someone/else"}, change)


def test_what_is_no_adapter_is_refused(three: tuple[Path, list[Path]], tmp_path: Path) -> None:
    model, folders = three

    def message(adapter: str | Path) -> str:
        with pytest.raises(SourceError) as e:
            open_source(f"{model}+{adapter}")
        return str(e.value)

    assert "is a model, not an adapter" in message(model)
    assert "is a model, not an adapter" in message("zoo:maths")
    assert "no such folder" in message(tmp_path / "nothing" / "here" / "at" / "all")
    (tmp_path / "empty").mkdir()
    assert "has no adapter_config.json" in message(tmp_path / "empty")
    pickled = Path(shutil.copytree(folders[0], tmp_path / "pickled"))
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    assert "pickle file, which can run code" in message(pickled)
    (pickled / "adapter_model.bin").unlink()
    assert "has no adapter_model.safetensors" in message(pickled)
    whole = (folders[0] / "adapter_model.safetensors").read_bytes()
    (pickled / "adapter_model.safetensors").write_bytes(whole[:-9])
    assert "interrupted download" in message(pickled)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_a_head_of_its_own_on_a_tied_model(make: Callable[..., Path], lora: Lora, config: dict[str, Any]) -> None:
    model = make(seed=0, tied=True)
    folder = lora(model, **config)
    with pytest.raises(SourceError, match="ties its output head to the embedding"):
        open_source(f"{model}+{folder}")
