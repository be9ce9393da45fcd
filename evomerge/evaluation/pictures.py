"""Pictures in items, and who turns them into a model's input.

What is done with a model's text is its tokenizer's business; with text and pictures it is its processor's, which has
the tokenizer. An evaluator that shows pictures is handed the processor.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import EvaluatorError

INSTALL = "pip install 'evomerge[vision]'"


def check_pillow(where: str) -> None:
    """Refuse to go on where pictures cannot be read.

    Raises:
        EvaluatorError: Pillow is not installed.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise EvaluatorError(f"{where}: pictures are read by Pillow, which is not installed: {INSTALL}") from None


def tokenizer_of(reader: Any) -> Any:
    """A processor's tokenizer; a tokenizer as it is."""
    from transformers import ProcessorMixin

    return reader.tokenizer if isinstance(reader, ProcessorMixin) else reader


def processor_of(reader: Any, where: str) -> Any:
    """A processor as it is.

    Raises:
        EvaluatorError: it is a tokenizer alone, that of a text model.
    """
    from transformers import ProcessorMixin

    if not isinstance(reader, ProcessorMixin):
        raise EvaluatorError(
            f"{where}: shows pictures, and the model has a tokenizer alone; expected a vision-language model with the "
            "files of its processor (processor_config.json or preprocessor_config.json)"
        )
    return reader


class Pictures:
    """The files of pictures that items name, under some of their keys.

    Args:
        folder: What the names are relative to; no picture lies outside of it.
        keys: The keys of an item whose value is such a name, or a list of them.
        where: What messages begin with.
    """

    def __init__(self, folder: Path, keys: Sequence[str], where: str) -> None:
        self._folder = folder.resolve()
        self._keys = tuple(keys)
        self._where = where

    def names(self, content: Mapping[str, Any], number: int) -> Iterator[str]:
        """The pictures of an item, checked to be there.

        Args:
            number: The item's, from 1, for messages.

        Raises:
            EvaluatorError: a key that is missing or names no file, a file that is not there, or one that lies outside
                of the folder.
        """
        for key in self._keys:
            if key not in content:
                raise EvaluatorError(f'{self._where}: item {number} has no "{key}", which images: names')
            value = content[key]
            for name in value if isinstance(value, list) else [value]:
                at = f"{self._where}: item {number}: {key} = {name}"
                if not isinstance(name, str):
                    raise EvaluatorError(f"{at}: expected the name of a picture, or a list of them")
                path = (self._folder / name).resolve()
                if not path.is_relative_to(self._folder):
                    raise EvaluatorError(f"{at}: lies outside of {self._folder}; expected a picture in that folder")
                if not path.is_file():
                    raise EvaluatorError(f"{at}: no such file ({path})")
                yield name

    def hashed(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """An item with the hash of each picture's file in the place of its name: equal pictures are equal items."""
        return self._with(content, lambda name: hashlib.sha256((self._folder / name).read_bytes()).hexdigest())

    def opened(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """An item with its pictures (PIL, RGB) in the place of their names."""
        return self._with(content, self._open)

    def _with(self, content: Mapping[str, Any], make: Any) -> dict[str, Any]:
        found = dict(content)
        for key in self._keys:
            value = content[key]
            found[key] = [make(name) for name in value] if isinstance(value, list) else make(value)
        return found

    def _open(self, name: str) -> Any:
        from PIL import Image, UnidentifiedImageError

        path = self._folder / name
        try:
            with Image.open(io.BytesIO(path.read_bytes())) as picture:
                return picture.convert("RGB")
        except (UnidentifiedImageError, OSError, ValueError) as e:
            raise EvaluatorError(f"{self._where}: {path}: is no picture that Pillow can read: {e}") from None


def picture_hashes(pictures: Iterable[Any]) -> list[str]:
    """Hash of each picture's points and shape, whatever file it came from."""
    return [
        hashlib.sha256(repr((p.mode, p.size)).encode() + p.tobytes()).hexdigest()
        if hasattr(p, "tobytes") and hasattr(p, "mode")
        else hashlib.sha256(repr(p).encode()).hexdigest()
        for p in pictures
    ]
