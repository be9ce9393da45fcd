"""Source models: a reference (zoo:, folder, hub id) becomes a `Source`, checked by its headers before any work.

Safetensors only: a pickle checkpoint can run code when it is read and is refused. Nothing here loads torch.
"""

from evomerge.sources.adapter import Adapter, Update
from evomerge.sources.chat import has_chat_template
from evomerge.sources.defaults import completed_config
from evomerge.sources.files import INDEX, SINGLE, read_json, read_object, read_text, small_file
from evomerge.sources.fit import check_fit, check_path_fit
from evomerge.sources.folder import local_folder
from evomerge.sources.hashes import (
    Hashing,
    differing,
    file_hash,
    hash_sources,
    remembered,
    start_hashing,
)
from evomerge.sources.hub import bring_revision, fetch
from evomerge.sources.layout import TEXT, Layout, Place
from evomerge.sources.open import adapter_folder, open_source, open_sources, with_adapter
from evomerge.sources.residual import Writers, writers
from evomerge.sources.source import HEADS, LAYER_KEYS, ZOO, Source

__all__ = [
    "HEADS",
    "INDEX",
    "LAYER_KEYS",
    "SINGLE",
    "TEXT",
    "ZOO",
    "Adapter",
    "Hashing",
    "Layout",
    "Place",
    "Source",
    "Update",
    "Writers",
    "adapter_folder",
    "bring_revision",
    "check_fit",
    "check_path_fit",
    "completed_config",
    "differing",
    "fetch",
    "file_hash",
    "has_chat_template",
    "hash_sources",
    "local_folder",
    "open_source",
    "open_sources",
    "read_json",
    "read_object",
    "read_text",
    "remembered",
    "small_file",
    "start_hashing",
    "with_adapter",
    "writers",
]
