"""A corpus as the user has it: JSON lines of texts or conversations, or a folder that `datasets` can read."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, beside, choose
from evomerge.fusion.config import CorpusConfig
from evomerge.fusion.documents import Document, Message

ROLES = ("system", "developer", "user", "assistant", "tool")
ZOO = "zoo:"
# Problems of a corpus that are told at once.
_SHOWN = 5
# What is reported beside each domain.
_FIGURES = ("mean", "all")
_DATA = (".jsonl", ".json", ".parquet")
# What `datasets` writes into the folder of one data set; that of several splits has dataset_dict.json.
_ONE = "state.json"


class CorpusError(InputError):
    """A corpus cannot be read, or holds what is no document."""


def locate(path: str, root: Path | None) -> Path:
    """The file or folder that a corpus is.

    Args:
        root: Where a relative path is looked for when it is not below the current folder.

    Raises:
        CorpusError: there is none.
    """
    if path.startswith(ZOO):
        from evomerge.zoo import fusion

        name = path.removeprefix(ZOO)
        if name not in fusion.CORPORA:
            raise CorpusError(f'corpus "{path}": no such corpus in the zoo; {choose(name, list(fusion.CORPORA))}')
        return fusion.corpus(name)
    for found in (Path(path), *([root / path] if root is not None else [])):
        if found.exists():
            return found
    raise CorpusError(f"corpus {path}: no such file or folder{beside((root or Path()) / path)}")


def check_split(config: CorpusConfig, *places: Path) -> None:
    """Check that a split that is asked for is one of something.

    Args:
        places: The corpus; what is held out, where that is another one.

    Raises:
        CorpusError: none of them has splits.
    """
    if config.split is None or any(p.is_dir() and not (p / _ONE).is_file() for p in places):
        return
    where = places[0]
    what = "one data set without splits" if where.is_dir() else "a file"
    raise CorpusError(
        f'corpus.split = "{config.split}": {where} is {what}, all of which is read; expected a folder with several '
        "splits, or no split"
    )


def read_corpus(where: Path, config: CorpusConfig) -> Iterator[Document]:
    """The documents of a corpus, in their order; the empty ones too.

    Raises:
        CorpusError: its first few entries that are no documents, a line each, or that it has none.
    """
    entries = _of_folder(where, config) if where.is_dir() else _lines(where)
    problems: list[str] = []
    count = 0
    for place, entry in entries:
        if config.documents is not None and count >= config.documents:
            break
        try:
            document = _document(entry, place, config)
        except CorpusError as e:
            problems.append(str(e))
            if len(problems) >= _SHOWN:
                raise CorpusError("\n".join([*problems, f"{where}: read no further"])) from None
            continue
        count += 1
        yield document
    if problems:
        raise CorpusError("\n".join(problems))
    if not count:
        raise CorpusError(f"{where}: holds no document; expected at least one")


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    """(place, entry) of each line of a JSON-lines file that is not empty."""
    if file.suffix.lower() not in (".jsonl", ".json"):
        raise CorpusError(
            f'{file}: expected a .jsonl file (in each line an object with "text" or "messages"), or the folder '
            "of a data set"
        )
    try:
        first = True
        with file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                place = f"{file}:{number}"
                if first and line.lstrip().startswith(b"["):
                    raise CorpusError(
                        f'{place}: an array begins here, expected an object with "text" or "messages" in each line; '
                        "write each entry of the array in a line of its own"
                    )
                first = False
                try:
                    yield place, json.loads(line.decode("utf-8"))
                except UnicodeDecodeError as e:
                    raise CorpusError(
                        f"{place}: is not UTF-8 text ({e.reason} at byte {e.start} of the line)"
                    ) from None
                except json.JSONDecodeError as e:
                    raise CorpusError(f"{place}: is not JSON ({e.msg} at character {e.pos + 1})") from None
                except (ValueError, RecursionError) as e:
                    raise CorpusError(f"{place}: is not JSON ({e})") from None
    except OSError as e:
        raise CorpusError(f"{file}: cannot be read ({e.strerror or e})") from None


def _of_folder(folder: Path, config: CorpusConfig) -> Iterator[tuple[str, Any]]:
    """(place, entry) of each row of a folder that `datasets` can read."""
    import datasets

    saved = (folder / "dataset_dict.json").is_file() or (folder / _ONE).is_file()
    files = sorted(str(f) for f in folder.rglob("*") if f.suffix in _DATA and not f.name.startswith("."))
    if not saved and not files:
        raise CorpusError(f"{folder}: neither a folder that `datasets` saved nor one of {', '.join(_DATA)} files")
    datasets.disable_progress_bars()
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(logging.CRITICAL)  # it logs what it then raises
    try:
        found: Any = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder))
    except Exception as e:  # datasets raises what it meets in the files
        raise CorpusError(f"{folder}: cannot be read as a data set: {' '.join(str(e).split())[:300]}") from e
    finally:
        datasets.logging.set_verbosity(verbosity)
        datasets.enable_progress_bars()
    if isinstance(found, Mapping):
        names = list(found)
        wanted = config.split or ("train" if "train" in names else names[0] if len(names) == 1 else None)
        if wanted not in names:
            raise CorpusError(f"{folder}: corpus.split = {config.split!r}: {choose(str(config.split), names)}")
        found = found[wanted]
    for number, row in enumerate(found):
        yield f"{folder}, row {number}", row


def _document(entry: Any, place: str, config: CorpusConfig) -> Document:
    """One entry.

    Raises:
        CorpusError: it is none, with its place.
    """
    if not isinstance(entry, Mapping):
        raise CorpusError(
            f'{place}: expected an object with "{config.text}" or "{config.messages}", got {_short(entry)}'
        )
    domain = entry.get(config.domain)
    domain = "" if domain is None else _checked(str(domain), place)
    if domain in _FIGURES:
        raise CorpusError(f'{place}: {config.domain} = "{domain}" is what figures over all domains are called')
    if entry.get(config.messages) is not None:
        messages = _messages(entry[config.messages], place, config.messages)
        return Document("", messages, domain, place)
    text = entry.get(config.text)
    if not isinstance(text, str):
        keys = ", ".join(f'"{k}"' for k in entry) or "none"
        got = f"{config.text} = {_short(text)}" if text is not None else f"keys {keys}"
        raise CorpusError(
            f'{place}: expected a string under "{config.text}" or a list under "{config.messages}", got {got}'
        )
    return Document(_checked(text, place), (), domain, place)


def _messages(value: Any, place: str, key: str) -> tuple[Message, ...]:
    if not isinstance(value, Iterable) or isinstance(value, str | Mapping):
        raise CorpusError(f"{place}: {key}: expected a list of messages, got {_short(value)}")
    found = []
    for number, message in enumerate(value):
        where = f"{place}: {key}[{number}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise CorpusError(
                f'{where}: expected an object with strings under "role" and "content", got {_short(message)}'
            )
        role = message.get("role")
        if role not in ROLES:
            raise CorpusError(f"{where}: role = {_short(role)}: {choose(str(role), ROLES)}")
        found.append(Message(str(role), _checked(message["content"], where)))
    if not any(m.learned for m in found):
        raise CorpusError(f"{place}: {key}: has no message of the assistant, which is what there is to learn")
    return tuple(found)


def _checked(text: str, place: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise CorpusError(f"{place}: half of a surrogate pair at character {e.start}, which is no text") from None
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
