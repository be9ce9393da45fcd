"""Pictures in items, and who turns them into a model's input.

What is done with a model's text is its tokenizer's business; with text and pictures it is its processor's, which has
the tokenizer. An evaluator that shows pictures is handed the processor.

Files of pictures are tried once, when the evaluator is opened, and decoded again when an item is asked for one: a split
of photographs does not fit into memory.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import EvaluatorError, first_line

INSTALL = "pip install 'evomerge[vision]'"
# Of decoded pictures, what a worker keeps for the next candidate.
KEPT_BYTES = 1 << 28
# What a change of how pictures are read is told by, in `Evaluator.versions`.
READING = "upright"

# What Pillow raises of damaged files.
DAMAGED = (OSError, ValueError, TypeError, SyntaxError, LookupError, EOFError, struct.error)


def check_pillow(where: str) -> None:
    """Refuse to go on where pictures cannot be read.

    Raises:
        EvaluatorError: Pillow is not installed.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise EvaluatorError(f"{where}: pictures are read by Pillow, which is not installed: {INSTALL}") from None


def lacks_pillow(error: BaseException) -> bool:
    """Whether an error, or one that it came of, is that Pillow is not installed."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ImportError) and str(found.name or "").partition(".")[0] == "PIL":
            return True
        found = found.__cause__ or found.__context__
    return False


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
        self._tried: set[Path] = set()
        self._kept: dict[str, Any] = {}
        self._bytes = 0

    def names(self, content: Mapping[str, Any], number: int) -> Iterator[str]:
        """The pictures of an item, checked to be there and to be pictures.

        Args:
            number: The item's, from 1, for messages.

        Raises:
            EvaluatorError: a key that is missing or names no file, a file that is not there, one that lies outside of
                the folder, or one that cannot be decoded.
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
                if path not in self._tried:
                    self._try(path, at)
                    self._tried.add(path)
                yield name

    def hashed(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """An item with the hash of each picture's file in the place of its name: equal pictures are equal items."""
        return self._with(content, lambda name: hashlib.sha256((self._folder / name).read_bytes()).hexdigest())

    def opened(self, content: Mapping[str, Any]) -> Shown:
        """An item with its pictures (PIL, RGB, upright) in the place of their names, decoded when asked for."""
        return Shown(self._with(content, lambda name: _Later(name, self._decoded)))

    def _with(self, content: Mapping[str, Any], make: Any) -> dict[str, Any]:
        found = dict(content)
        for key in self._keys:
            value = content[key]
            found[key] = [make(name) for name in value] if isinstance(value, list) else make(value)
        return found

    def _decoded(self, name: str) -> Any:
        """The first pictures that are asked for are kept: every candidate is shown the same ones in the same order."""
        if name in self._kept:
            return self._kept[name].copy()
        path = self._folder / name
        found = _opened(path, f"{self._where}: {path}", lambda picture: _upright(picture).convert("RGB"))
        size = 3 * found.width * found.height
        if self._bytes + size <= KEPT_BYTES:
            self._bytes += size
            self._kept[name] = found.copy()  # what a function draws on is its own
        return found

    def _try(self, path: Path, at: str) -> None:
        def load(picture: Any) -> None:
            picture.draft("L", (1, 1))  # a JPEG's by an eighth: read to its end, in a part of the time
            picture.load()
            _upright(picture)

        _opened(path, f"{at} ({path})", load)


class Shown(UserDict[str, Any]):
    """An item as a function gets it: a mapping, whose pictures are decoded each time they are asked for."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, list) and any(isinstance(v, _Later) for v in value):
            return [v.picture() for v in value]
        return value.picture() if isinstance(value, _Later) else value


class _Later:
    """A picture that is decoded when it is needed."""

    def __init__(self, name: str, decoded: Callable[[str], Any]) -> None:
        self._name = name
        self._decoded = decoded

    def __repr__(self) -> str:
        return f"<picture {self._name}>"

    def picture(self) -> Any:
        return self._decoded(self._name)


def _opened(path: Path, at: str, then: Callable[[Any], Any]) -> Any:
    """What is made of a picture's file.

    Raises:
        EvaluatorError: it is no picture, is damaged, or has more points than Pillow reads without a warning.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(path.read_bytes())) as picture:
                return then(picture)
    except UnidentifiedImageError:
        raise EvaluatorError(f"{at}: is no picture that Pillow can read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise EvaluatorError(
            f"{at}: has more points than Pillow reads ({Image.MAX_IMAGE_PIXELS:,}); expected a smaller picture, as no "
            "model sees that many"
        ) from None
    except DAMAGED as e:
        raise EvaluatorError(f"{at}: is a picture that cannot be decoded: {first_line(e)}") from None


def _upright(picture: Any) -> Any:
    """As its camera was held, as transformers and datasets load pictures too."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture)


def picture_hashes(pictures: Iterable[Any]) -> list[str]:
    """Hash of each picture's points and shape, whatever file it came from."""
    return [hashlib.sha256(b"".join(_parts(p))).hexdigest() for p in pictures]


def _parts(picture: Any) -> Iterator[bytes]:
    if hasattr(picture, "tobytes") and hasattr(picture, "mode"):
        yield repr((picture.mode, picture.size)).encode()
        # Points of a palette are numbers of its colours.
        yield (picture.convert("RGBA") if picture.mode in ("P", "PA") else picture).tobytes()
    elif hasattr(picture, "__array__"):
        import numpy as np

        points = np.asarray(picture)  # whose own text leaves most of it out
        yield repr((points.dtype.str, points.shape)).encode()
        yield points.tobytes()
    else:
        yield repr(picture).encode()
