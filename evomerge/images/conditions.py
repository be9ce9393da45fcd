"""What a denoiser is told beside noise and time: nothing, a class, or a text's hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from evomerge.images.config import ImageFusionError

Prompt = str | int
Kind = Literal["none", "class", "text"]
# Components of a pipeline that make hidden states of a text.
READERS = ("tokenizer", "text_encoder")


def kind_of(config: Mapping[str, Any]) -> Kind:
    """What a denoiser of that configuration is told."""
    if config.get("_class_name") == "UNet2DConditionModel":
        return "text"
    return "class" if classes_of(config) else "none"


def classes_of(config: Mapping[str, Any]) -> int:
    """How many classes a denoiser has an embedding of, the one for "no class" included; 0 where it knows none."""
    if config.get("_class_name") == "DiTTransformer2DModel":
        return int(config["num_embeds_ada_norm"]) + 1  # diffusers' LabelEmbedding adds the one for none
    return int(config.get("num_class_embeds") or 0)


class Told:
    """What a denoiser of a configuration can be told; nothing is loaded for it.

    Args:
        config: The denoiser's configuration.
        null_label: The class that stands for none; default: the last.

    Attributes:
        null: The prompt that stands for no prompt.

    Raises:
        ImageFusionError: it has no such class.
    """

    def __init__(self, config: Mapping[str, Any], null_label: int | None = None) -> None:
        self.kind = kind_of(config)
        self.classes = classes_of(config)
        self.null_label = null_label
        self.null: Prompt = ""
        if self.kind == "class":
            self.null = self.classes - 1 if null_label is None else null_label
            if int(self.null) >= self.classes:
                raise ImageFusionError(
                    f"pictures.null_label = {null_label}: the models have {self.classes} classes; expected at most "
                    f"{self.classes - 1}"
                )

    def check(self, prompts: Sequence[Prompt], where: str) -> None:
        """Check that prompts can be told to the denoiser.

        Raises:
            ImageFusionError: a label that it has no embedding of, or a text where it takes labels.
        """
        for prompt in dict.fromkeys(prompts):
            if self.kind == "text" and not isinstance(prompt, str):
                raise ImageFusionError(f"{where}: {prompt!r}: expected a text, for the models are told texts")
            if self.kind == "class" and (
                isinstance(prompt, bool) or not isinstance(prompt, int) or not 0 <= prompt < self.classes
            ):
                raise ImageFusionError(
                    f"{where}: {prompt!r}: expected a class, a whole number from 0 to {self.classes - 1}"
                )


class Conditions(Told):
    """Turns prompts into what a denoiser is told.

    Args:
        pipeline: The pipeline, for its tokenizer and text encoder; None where no text is told.

    Raises:
        ImageFusionError: as `Told`; or texts are told, and the pipeline lacks what reads them.
    """

    def __init__(self, config: Mapping[str, Any], pipeline: Any = None, null_label: int | None = None) -> None:
        super().__init__(config, null_label)
        self._tokenizer: Any
        self._encoder: Any
        self._tokenizer, self._encoder = (getattr(pipeline, name, None) for name in READERS)
        if self.kind == "text" and (self._tokenizer is None or self._encoder is None):
            raise ImageFusionError(f"the base's pipeline lacks {' or '.join(READERS)}, which a prompt needs")

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], device: str | torch.device) -> dict[str, Tensor]:
        """What a denoiser's forward takes for prompts: `class_labels` [n], or `encoder_hidden_states` [n, t, d]."""
        if self.kind == "none":
            return {}
        if self.kind == "class":
            return {"class_labels": torch.tensor([int(p) for p in prompts], device=device)}
        tokens = self._tokenizer(
            [str(p) for p in prompts], padding="max_length", truncation=True, return_tensors="pt",
            max_length=self._tokenizer.model_max_length,
        )  # fmt: skip
        hidden = self._encoder(tokens["input_ids"].to(self._encoder.device))[0]
        return {"encoder_hidden_states": hidden.float().to(device)}
