"""A notebook as a page: its Markdown as it stands, code as fences, and what the cells showed when it was stored."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

FILE = "evomerge.ipynb"
# Links of a notebook, which lies in docs/notebooks, hold for its page as well, which lies where it does.
_TABLE = re.compile(r"<div>|</div>|<style scoped>.*?</style>| border=\"1\" class=\"dataframe\"", re.DOTALL)


def page(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """The page, and its pictures by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        text = "".join(cell["source"]).rstrip()
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            shown, picture = _output(output, f"{notebook.stem}-{number}.png")
            parts += [shown] if shown else []
            pictures |= picture
    first, rest = parts[0], parts[1:]
    where = f"This page is [a notebook]({FILE}), which a test runs."
    return "\n\n".join([first, where, *rest]) + "\n", pictures


def _output(output: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![what the cell shows]({name})", {name: base64.b64decode("".join(data["image/png"]))}
    if "text/html" in data:
        return _TABLE.sub("", "".join(data["text/html"])).strip(), {}
    text = "".join(output.get("text") or data.get("text/plain", "")).rstrip()
    return (f"```text\n{text}\n```", {}) if text else ("", {})
