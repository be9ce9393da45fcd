"""What a report consists of, as plain data: the template gives it its form, and escapes every text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

# Rows of a table at most; more would make a page that no browser is glad of. What is left out is said, and where it is.
MOST_ROWS = 500


@dataclass(frozen=True)
class Text:
    """A paragraph. "lead" is the answer, "note" a remark, "warning" what must not be overlooked."""

    text: str
    form: Literal["plain", "lead", "note", "warning"] = "plain"
    kind: Literal["text"] = "text"


@dataclass(frozen=True)
class Table:
    """A table; the first column names its rows.

    Attributes:
        words: How many columns, from the left, hold words; the others hold numbers.
        strong: Rows that stand out.
        note: What is to be said below it.
        folded: Whether it stands behind its caption.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    strong: frozenset[int] = frozenset()
    note: str = ""
    folded: bool = False
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Picture:
    """A picture, once for wide screens and print and once for narrow ones, with the tables of its numbers."""

    id: str
    title: str
    description: str
    wide: Markup
    narrow: Markup
    tables: tuple[Table, ...]
    kind: Literal["picture"] = "picture"


@dataclass(frozen=True)
class Photo:
    """A PNG inside the page, whose policy then allows pictures that stand in it, and no others.

    Attributes:
        description: What it shows, for those who do not see it.
        png: Its bytes in base64.
    """

    id: str
    title: str
    description: str
    png: str
    kind: Literal["photo"] = "photo"


@dataclass(frozen=True)
class Code:
    """Text to be copied: commands, a recipe.

    Attributes:
        folded: Whether it stands behind its caption.
        printed: Whether it is printed where it is folded.
    """

    caption: str
    text: str
    folded: bool = False
    printed: bool = True
    kind: Literal["code"] = "code"


@dataclass(frozen=True)
class Example:
    """An item with what two models made of it."""

    task: str
    item: str
    text: str | None
    results: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Examples:
    """Some items, folded away under a summary."""

    summary: str
    items: tuple[Example, ...]
    note: str = ""
    kind: Literal["examples"] = "examples"


Block = Text | Table | Picture | Photo | Code | Examples


@dataclass(frozen=True)
class Section:
    """A part of the report with an entry in its table of contents."""

    id: str
    title: str
    blocks: tuple[Block, ...]


def exact(value: float | None) -> str:
    """A number in a table behind a picture: six digits; nothing where there is none."""
    return "" if value is None else f"{value:.6g}"


def limited(
    rows: Sequence[tuple[str, ...]], what: str, most: int = MOST_ROWS
) -> tuple[tuple[tuple[str, ...], ...], str]:
    """The first rows of a table that may be long, and what is to be said of those left out."""
    if len(rows) <= most:
        return tuple(rows), ""
    return tuple(rows[:most]), f"{most:,} of {len(rows):,} {what} are listed; all are in trials.parquet."
