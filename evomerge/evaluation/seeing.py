"""lm-eval's wrapper of a vision-language model that is live: its own loads processor and model from a folder."""

from __future__ import annotations

from typing import Any

from lm_eval.models.hf_vlms import HFMultimodalLM


class SeeingLM(HFMultimodalLM):  # type: ignore[misc]  # lm-eval has no types
    """`hf-multimodal` over a model in memory, with its processor (as `tokenizer`).

    Batches of one size: a llava's prompts are padded on the left, and every picture has as many tokens as the processor
    gives it.
    """

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        self.processor = tokenizer
        self.tokenizer = tokenizer.tokenizer
