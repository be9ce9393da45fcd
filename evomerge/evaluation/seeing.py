"""lm-eval's wrapper of a vision-language model that is live: its own loads processor and model from a folder."""

from __future__ import annotations

from typing import Any

from lm_eval.models.hf_vlms import HFMultimodalLM

from evomerge.errors import EvaluatorError


class SeeingLM(HFMultimodalLM):  # type: ignore[misc]  # lm-eval has no types
    """`hf-multimodal` over a model in memory, with its processor (as `tokenizer`).

    Batches of one size: a llava's prompts are padded on the left, and every picture has as many tokens as the processor
    gives it.

    Args:
        where: The evaluator's file, for messages.
    """

    def __init__(self, *args: Any, where: str = "<evaluator>", **kwargs: Any) -> None:
        self._where = where
        super().__init__(*args, **kwargs)

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        self.processor = tokenizer
        self.tokenizer = tokenizer.tokenizer

    def tok_batch_multimodal_encode(
        self, strings: Any, images: Any, padding_side: str = "left", left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> Any:  # fmt: skip
        """lm-eval's input of a batch, cut to so many tokens from the left as lm-eval cuts it, but no picture apart.

        Raises:
            EvaluatorError: there is no room for the pictures.
        """
        found = super().tok_batch_multimodal_encode(strings, images, padding_side, None, truncation)
        ids = found["input_ids"]
        room = left_truncate_len
        if room is None or ids.shape[1] <= room:
            return found
        cut = ids[:, : ids.shape[1] - max(0, room)]
        named = (getattr(self.config, key, None) for key in ("image_token_id", "image_token_index"))
        if any(bool((cut == number).any()) for number in named if number is not None):
            raise EvaluatorError(
                f"{self._where}: max_length = {self.max_length}: a prompt with its pictures has {ids.shape[1]} tokens, "
                f"and {max(0, room)} are left beside the answer's; expected a larger max_length as far as the "
                "model goes, a smaller max_gen_toks, or smaller pictures (model_args: {image_max_side: ...})"
            )
        for key, value in found.items():
            if getattr(value, "shape", None) == ids.shape:
                found[key] = value[:, cut.shape[1] :]
        return found
