"""Every message with which evomerge refuses or fails, beside what to do (messages/): the troubleshooting page's table.

What the program can say (`_generate/said.py`) and messages/ does not have, or the other way round, makes
tests/docs/test_troubleshooting.py fail: whoever adds a message says what to do about it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from _generate.said import said

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "messages"
# What stands in its place where the page is read as a file.
MARK = "*The table of all messages, which is made of the program, follows here on the site (`make docs`).*"


def areas() -> list[dict[str, Any]]:
    """The reviewed messages by area: {title, id, means, messages: {text: what to do, or null: as it says}}."""
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(DATA.glob("*.yaml"))]


def reviewed() -> dict[str, str | None]:
    """What is to be done about each message that was reviewed, by its text."""
    return {text: advice for area in areas() for text, advice in area["messages"].items()}


def table() -> str:
    """The areas as Markdown: a heading and what it means, then a table of messages."""
    modules = said()
    out: list[str] = []
    for area in areas():
        out += [f"## {area['title']} {{#{area['id']}}}", "", area["means"].strip(), ""]
        out += ["| message | said by | what to do |", "|---|---|---|"]
        for text, advice in area["messages"].items():
            module = modules[text].module.removeprefix("evomerge.") if text in modules else ""
            # A narrow column: names break behind their dots and nowhere else.
            place = module.replace("_", "\\_").replace(".", ".<wbr>")
            out.append(f"| {_cell(text)} | {place} | {advice or 'as it says'} |")
        out.append("")
    return "\n".join(out)


def page() -> str:
    """docs/troubleshooting.md with the table where it has its mark."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert MARK in text
    return text.replace(MARK, table())


def _cell(text: str) -> str:
    """A message as code inside a table: a bar would end the cell, and backticks the code."""
    text = text.replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"
