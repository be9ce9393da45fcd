"""What transformers takes for the settings that a configuration leaves out."""

from __future__ import annotations

from typing import Any

from evomerge.sources.source import Source


def completed_config(source: Source) -> dict[str, Any] | None:
    """The language model's configuration as transformers reads it: defaults filled in, old names replaced by new ones.

    Importing transformers takes longer than a small merge, so this is asked only where the file alone says too little.

    Returns:
        None for a family that it does not know.
    """
    from transformers import AutoConfig

    try:
        # Without a word on remote code it would ask on the terminal, and wait.
        found = AutoConfig.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None
    return dict(found.get_text_config().to_dict())
