"""A model with its tokenizer, ready on a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evomerge.sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def loaded(
    source: Source, dtype: str, device: str, *, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load both.

    Args:
        dtype: Type to compute in; "auto": float32 on a CPU (16-bit arithmetic is slow or missing there), else the
            checkpoint's own.

    Raises:
        SourceError: transformers cannot load one of them.
    """
    import torch

    from evomerge.merging.live import live_model, load_tokenizer

    quiet(device)
    kind: Any = (torch.float32 if device == "cpu" else None) if dtype == "auto" else getattr(torch, dtype)
    model = live_model(source, kind, device, trust_remote_code=trust_remote_code)
    return model, load_tokenizer(source, trust_remote_code=trust_remote_code)


def computed_in(source: Source, dtype: str, device: str) -> str:
    """The type that "auto" is on a device, by name."""
    if dtype != "auto":
        return dtype
    if device == "cpu":
        return "float32"
    return str(source.text_config.get("dtype") or source.text_config.get("torch_dtype") or "own")


def quiet(device: str) -> None:
    """No bars and hints of the libraries; on a CPU one thread, for several processes share a few cores."""
    import warnings

    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    # What the next version of a library will call something is the business of those who call it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    if device == "cpu":
        torch.set_num_threads(1)
