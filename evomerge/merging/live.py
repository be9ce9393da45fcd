"""Live models: what candidates are built into and evaluators run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import SourceError
from evomerge.merging.checkpoint import merged_config
from evomerge.merging.plan import Plan
from evomerge.sources import Source

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def live_model(
    model: Source | Path | str,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a checkpoint for inference.

    Args:
        model: An open source, or the folder of a checkpoint.
        dtype: Type to compute in; None takes the checkpoint's.
        trust_remote_code: Run code that lies in the checkpoint's folder.

    Raises:
        SourceError: transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM

    folder = model.path if isinstance(model, Source) else Path(model)
    try:
        live: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as e:
        raise SourceError(f"{folder}: transformers cannot load it: {' '.join(str(e).split())[:300]}") from e
    return _ready(live, device)


def live_model_for(
    plan: Plan,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A live model of the shape that a plan has (its number of layers included), weights unset.

    `Engine.build_into` fills it; all recipes of the same shape can follow.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    folder = plan.sources[plan.donor].path
    content = merged_config(plan)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    config = type(config).from_dict(content)
    own = getattr(torch, str(content.get("dtype") or content.get("torch_dtype")), torch.float32)
    with no_init_weights():
        live: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype or own, trust_remote_code=trust_remote_code
        )
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


def _ready(live: Any, device: torch.device | str) -> PreTrainedModel:
    model: PreTrainedModel = live.eval().requires_grad_(False).to(device)
    return model
