"""Live models: what candidates are built into and evaluators run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import SourceError
from evomerge.merging.allocation import out_of_memory
from evomerge.merging.config import merged_config
from evomerge.merging.placement import Devices, spread
from evomerge.merging.plan import Plan
from evomerge.merging.small_files import PROCESSORS
from evomerge.sources import HEADS, Source

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin


# What transformers raises of a checkpoint that it cannot use.
_THEIRS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)


def live_model(
    model: Source | Path | str,
    dtype: torch.dtype | None = None,
    device: torch.device | str | Devices = "cpu",
    *,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a checkpoint for inference.

    Args:
        model: An open source, or the folder of a checkpoint.
        dtype: Type to compute in; None takes the checkpoint's.
        device: Where it runs; several: its layers are spread over them.
        trust_remote_code: Run code that lies in the checkpoint's folder.

    Raises:
        SourceError: transformers cannot load it.
        InputError: it does not fit on the devices.
        RuntimeError: memory ran out (see `merging.allocation`).
    """
    from transformers import AutoConfig

    folder = model.path if isinstance(model, Source) else Path(model)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    live: PreTrainedModel
    try:
        config = AutoConfig.from_pretrained(folder, **options)
        if isinstance(model, Source):
            _untie(config, model)
        live, loaded = _loader(config).from_pretrained(
            folder, config=config, dtype=dtype or "auto", use_safetensors=True, output_loading_info=True, **options
        )
    except _THEIRS as e:
        if out_of_memory(e):
            raise
        raise _refused(folder, e) from e
    missing = sorted(loaded["missing_keys"])
    if missing:
        # transformers would go on with random values.
        raise SourceError(f'{folder}: lacks "{missing[0]}" (and {len(missing) - 1} more) of a {type(live).__name__}')
    if isinstance(model, Source) and model.adapter is not None:
        from evomerge.merging.adapters import merge_into

        merge_into(live, model)
    return _ready(live, device)


def live_model_for(
    plan: Plan,
    dtype: torch.dtype | None = None,
    device: torch.device | str | Devices = "cpu",
    *,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A live model of the shape that a plan has (its number of layers included), weights unset.

    `Engine.build_into` fills it; all recipes of the same shape can follow.

    Raises:
        SourceError: transformers cannot make it.
        RuntimeError: memory ran out (see `merging.allocation`).
    """
    import torch
    from transformers import AutoConfig
    from transformers.initialization import no_init_weights

    donor = plan.sources[plan.donor]
    content = merged_config(plan)
    try:
        config = AutoConfig.from_pretrained(donor.path, local_files_only=True, trust_remote_code=trust_remote_code)
        config = type(config).from_dict(content)
        _untie(config, donor)
        own = getattr(torch, str(content.get("dtype") or content.get("torch_dtype")), torch.float32)
        with no_init_weights():
            live: PreTrainedModel = _loader(config).from_config(
                config, dtype=dtype or own, trust_remote_code=trust_remote_code
            )
    except _THEIRS as e:
        if out_of_memory(e):
            raise
        raise _refused(donor.path, e) from e
    live.tie_weights()
    return _ready(live, device)


def load_tokenizer(model: Source | Path | str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer.

    Raises:
        SourceError: it has none, or transformers cannot load it.
    """
    from transformers import AutoTokenizer

    folder = model.path if isinstance(model, Source) else Path(model)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as e:
        raise SourceError(f"{folder}: its tokenizer cannot be loaded: {' '.join(str(e).split())[:300]}") from e
    return tokenizer


def load_processor(model: Source | Path | str, *, trust_remote_code: bool = False) -> ProcessorMixin:
    """Load the processor of a vision-language model: what makes its input of text and pictures; with its tokenizer.

    Raises:
        SourceError: the model has none, or transformers cannot load it.
    """
    from transformers import AutoProcessor, ProcessorMixin

    folder = model.path if isinstance(model, Source) else Path(model)
    name = model.reference if isinstance(model, Source) else str(folder)
    if not any((folder / file).is_file() for file in PROCESSORS):
        raise SourceError(
            f'"{name}" is a text model: it has no processor for pictures ({" or ".join(PROCESSORS[:2])}); expected a '
            "vision-language model"
        )
    try:
        found = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except ImportError as e:
        why = " ".join(str(e).split())[:300]
        library = "torchvision" if "torchvision" in why.lower() else "'evomerge[vision]'"
        raise SourceError(
            f"{folder}: its processor needs a library that is not installed (pip install {library}): {why}"
        ) from e
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise SourceError(f"{folder}: its processor cannot be loaded: {' '.join(str(e).split())[:300]}") from e
    if not isinstance(found, ProcessorMixin):
        # Without a processor of its own kind transformers gives what else there is.
        raise SourceError(f"{folder}: has a {type(found).__name__} and no processor for text and pictures together")
    return found


def _refused(folder: Path, error: Exception) -> SourceError:
    return SourceError(f"{folder}: transformers cannot load it: {' '.join(str(error).split())[:300]}")


def _loader(config: Any) -> Any:
    """transformers' class for what a configuration describes: a language model, alone or with an image encoder."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    seeing = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
    with_images = any(name in seeing for name in config.architectures or ())
    return AutoModelForImageTextToText if with_images else AutoModelForCausalLM


def _untie(config: Any, source: Source) -> None:
    """Give a model the head of its own that its checkpoint has: some families tie it unless they are told not to."""
    if not source.tied and any(name.endswith(HEADS) for name in source.tensors):
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = False


def _ready(live: Any, device: torch.device | str | Devices) -> PreTrainedModel:
    live = live.eval().requires_grad_(False)
    if isinstance(device, Sequence) and not isinstance(device, str):
        return spread(live, device)
    model: PreTrainedModel = live.to(device)
    return model
