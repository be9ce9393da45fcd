"""One model on disk: its configuration and the place of every tensor, known before any tensor is read."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evomerge.errors import SourceError
from evomerge.header import TensorInfo
from evomerge.sources.adapter import Adapter
from evomerge.sources.diffusion import DiffusionFolder
from evomerge.sources.files import has_same_bytes
from evomerge.sources.hashes import content_hash, lock_of
from evomerge.sources.hub import fetch
from evomerge.sources.layout import Layout, count_layers
from evomerge.sources.unchanged import Stamps, check_unchanged

ZOO = "zoo:"
LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# Output heads that are the embedding again where the configuration ties them.
HEADS = ("lm_head.weight", "embed_out.weight")
# Where configurations of composite models keep their language model's part, and the parts that make them composite.
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
_OTHER_CONFIGS = ("vision_config", "audio_config")
# Masks and frequencies that old checkpoints hold and that models work out themselves.
_OLD_BUFFERS = (".inv_freq", ".masked_bias")
_OLD_MASKS = (".attn.bias", ".attention.bias")


@dataclass(frozen=True, eq=False)
class Source:
    """One model on disk, known by its configuration and tensor headers.

    Attributes:
        reference: How recipes name it.
        path: Its folder.
        config: config.json as it is.
        tensors: Every tensor by name, sorted.
        local: Whether the reference is a folder of the user's (neither the zoo's nor the hub's).
        adapter: A LoRA adapter on the model (`path+lora`); `tensors` then has what it replaces, and the model's own
            tensors where it adds to them.
        diffusion: Of a diffusion model, whose `path` is its denoiser's folder: the pipeline around it.
    """

    reference: str
    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    local: bool = False
    adapter: Adapter | None = None
    diffusion: DiffusionFolder | None = None

    @property
    def full_reference(self) -> str:
        """A reference that names this model from any folder: a local one by its full path."""
        if self.adapter is not None:
            return f"{self.adapter.model.full_reference}+{self.adapter.full_reference}"
        return str(self.root.resolve()) if self.local else self.reference

    @property
    def root(self) -> Path:
        """The folder that the reference names: a diffusion model's pipeline, else `path`."""
        return self.diffusion.root if self.diffusion is not None else self.path

    @property
    def name(self) -> str:
        """Short name for tables: the last part of the reference, the adapter's where there is one.

        The caller makes it unique where two sources share it.
        """
        reference = self.adapter.reference if self.adapter is not None else self.reference
        return reference.partition("@")[0].removeprefix(ZOO).rstrip("/").split("/")[-1]

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the configuration (the whole of it, unless it is a composite model)."""
        return next((self.config[k] for k in _TEXT_CONFIGS if isinstance(self.config.get(k), dict)), self.config)

    @property
    def composite(self) -> bool:
        """Whether the model has other modules than a language model (vision, audio)."""
        return any(isinstance(self.config.get(k), dict) for k in (*_TEXT_CONFIGS, *_OTHER_CONFIGS))

    @property
    def num_layers(self) -> int:
        """Number of transformer layers, as the configuration has it.

        Raises:
            SourceError: it has none, or something else in its place.
        """
        if self.diffusion is not None:
            return 0
        said = {key: self.text_config[key] for key in LAYER_KEYS if self.text_config.get(key) is not None}
        for key, value in said.items():
            if type(value) is not int:
                text = json.dumps(value)[:80]
                raise SourceError(f"{self.path / 'config.json'}: {key} = {text}: expected a whole number of layers")
            return value
        # Composite models name their language model's defaults by its model_type alone; the tensors know better.
        counted = count_layers(self.tensors) if self.composite else None
        if counted is None:
            raise SourceError(f"{self.path / 'config.json'}: says no number of layers ({', '.join(LAYER_KEYS)})")
        return counted

    @cached_property
    def layout(self) -> Layout:
        """Modules, layers and the place of every tensor.

        Raises:
            SourceError: the configuration and the tensors disagree on the number of layers.
        """
        if self.diffusion is not None:
            return Layout.flat(self.tensors)
        return Layout.of(self.tensors, self.num_layers, self.reference, composite=self.composite)

    @property
    def architecture(self) -> str:
        """Class name of the model ("LlamaForCausalLM"), else its model_type."""
        if self.diffusion is not None:
            return str(self.config.get("_class_name"))
        names = self.config.get("architectures") or [self.config.get("model_type", "unknown")]
        return str(names[0])

    @property
    def says_tied(self) -> bool:
        """Whether the configuration says that the output head is the embedding."""
        return bool(self.config.get("tie_word_embeddings", self.text_config.get("tie_word_embeddings", False)))

    @cached_property
    def tied(self) -> bool:
        """Whether the output head is the embedding: where the configuration says so and no other head is stored.

        transformers too keeps a stored head that differs from the embedding, whatever the configuration says. A head
        of the embedding's type and shape is compared with it, for which a model of the hub's is downloaded.

        Raises:
            SourceError: the two must be compared and cannot be read.
        """
        if self.adapter is not None:
            return self.adapter.model.tied
        heads = [info for name, info in self.tensors.items() if name.endswith(HEADS)] if self.says_tied else []
        # Where the head alone is stored, it is the embedding.
        return self.says_tied and (not self._embeddings or all(self._is_embedding(head) for head in heads))

    @property
    def _embeddings(self) -> list[TensorInfo]:
        """Of tokens, at the model's beginning."""
        places = self.layout.places
        return [info for name, info in self.tensors.items() if places[name].by_token and not name.endswith(HEADS)]

    def _is_embedding(self, head: TensorInfo) -> bool:
        alike = [info for info in self._embeddings if (info.dtype, info.shape) == (head.dtype, head.shape)]
        if alike:
            fetch([self])
        return any(has_same_bytes(head, info) for info in alike)

    @cached_property
    def merged_tensors(self) -> dict[str, TensorInfo]:
        """The tensors that a merge concerns: without a tied head and old buffers, which are written by nobody."""
        headless = self.tied and bool(self._embeddings)
        return {
            name: info
            for name, info in self.tensors.items()
            if not (headless and name.endswith(HEADS))
            and not name.endswith(_OLD_BUFFERS)
            and not (name.endswith(_OLD_MASKS) and len(info.shape) == 4)
        }

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(info.end - info.start for info in self.tensors.values())

    @property
    def absent(self) -> list[Path]:
        """Its weights files that are not on this machine yet, an adapter's aside; see `fetch`."""
        if self.adapter is not None:
            return self.adapter.model.absent
        files = dict.fromkeys(info.file for info in self.tensors.values())
        return [file for file in files if not file.is_file()]

    @property
    def folders(self) -> list[Path]:
        """The folders that it lies in: the model's (of a diffusion model the denoiser's), and its adapter's."""
        return [self.path, *([self.adapter.path] if self.adapter is not None else [])]

    @property
    def bytes_hashed(self) -> int:
        """Bytes that `content_hash` covers."""
        if self.adapter is None:
            return self.bytes
        return self.adapter.model.bytes + sum(info.end - info.start for _, info in self.adapter.labels())

    def moved(self, places: Mapping[Path, Path]) -> Source:
        """The same model where its folders lie elsewhere: on another machine, after their files were compared.

        Args:
            places: Where each of its folders (and its adapter's) lies, by where it lay.
        """

        def there(info: TensorInfo) -> TensorInfo:
            place = places.get(info.file.parent)
            return info if place is None else replace(info, file=place / info.file.name)

        adapter = self.adapter
        if adapter is not None:
            updates = {n: replace(u, a=there(u.a), b=there(u.b)) for n, u in adapter.updates.items()}
            adapter = replace(
                adapter, path=places.get(adapter.path, adapter.path), model=adapter.model.moved(places),
                updates=updates, replaced={n: there(i) for n, i in adapter.replaced.items()},
            )  # fmt: skip
        found = replace(
            self, path=places.get(self.path, self.path), adapter=adapter,
            tensors={n: there(i) for n, i in self.tensors.items()},
        )  # fmt: skip
        if "_hash" in self.__dict__:
            found.__dict__["_hash"] = self.__dict__["_hash"]
            # Copies have stamps of their own; those of files that stay are of before they were hashed.
            stays = all(place.resolve() == folder.resolve() for folder, place in places.items())
            stamps: Stamps | None = self.__dict__.get("_stamps")
            found.__dict__["_stamps"] = (stamps and stamps.moved(places)) if stays else _stamps(found)
        return found

    def content_hash(self, progress: Callable[[int], None] | None = None, stop: threading.Event | None = None) -> str:
        """SHA-256 (hex) of every tensor (name, type, shape, bytes; in order of name) and of the configuration.

        It does not depend on how the checkpoint is cut into files, nor on where it lies. With an adapter it covers the
        model and, apart from it, every tensor of the adapter with its scale. Computed once; see `hashes`.

        Raises:
            SourceError: a file cannot be read, or is no longer what its header said.
        """
        # Not a cached_property: Python 3.11's holds one lock for all models, which are hashed in parallel.
        with lock_of(self):
            found: str | None = self.__dict__.get("_hash")
            if found is None:
                stamps = _stamps(self)  # before: what changes meanwhile is seen by the first check
                found = self.__dict__["_hash"] = content_hash(self, progress, stop)
                self.__dict__["_stamps"] = stamps
            elif progress:
                progress(self.bytes_hashed)
            return found

    def check_unchanged(self) -> None:
        """Check that the files are what they were when the content hash was computed; nothing where it was not yet.

        A few microseconds for each file, unless one looks newer: then it is read again. What is known of the files goes
        with the source to other processes.

        Raises:
            SourceChangedError: one has changed, or is gone.
        """
        if self.adapter is not None:
            self.adapter.model.check_unchanged()
        stamps: Stamps | None = self.__dict__.get("_stamps")
        if stamps is not None:
            with lock_of(self):
                self.__dict__["_stamps"] = check_unchanged(self, stamps, self.__dict__["_hash"])


def _stamps(source: Source) -> Stamps | None:
    try:
        return Stamps.of(source)
    except OSError:
        return None  # the hash says what cannot be read
