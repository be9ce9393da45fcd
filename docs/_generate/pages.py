"""The folder that the site is built from: docs/*.md as they are, and pages that are made of the program itself.

GitHub and the tests read docs/ as it stands; what the site's builder spells otherwise is rewritten on the way.
"""

from __future__ import annotations

import re
from pathlib import Path

from _generate import commands, errors, keys, notebook

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Kept out of git; named in mkdocs.yml.
PAGES = ROOT / "build" / "pages"
# A fence with more than a language behind it: what tests run, and the name of the file that it shows.
FENCE = re.compile(r"^(`{3,})(\w+) ([^\n`]+)$", re.MULTILINE)
# What pages show and link to, as it lies in docs/.
BESIDE = (".png", ".svg", ".css", ".js", ".ipynb")
NOTEBOOK = DOCS / "notebooks" / notebook.FILE
# Files of the repository's root that are pages too.
ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def stage(out: Path = PAGES) -> None:
    """Write every page below `out`; only what changed is touched, so that a server that watches rebuilds no more."""
    pages = {path.relative_to(DOCS): page(path.read_text(encoding="utf-8")) for path in sources()}
    for name, target in ROOT_PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        pages[Path(target)] = page(text.replace("](docs/", "]("))
    for name, text in generated().items():
        pages[Path(name)] = text
    beside = {p.relative_to(DOCS): p.read_bytes() for p in DOCS.rglob("*") if p.suffix in BESIDE}
    beside |= {NOTEBOOK.relative_to(DOCS).with_name(n): data for n, data in notebook.page(NOTEBOOK)[1].items()}
    wanted = {out / p for p in (*pages, *beside)}
    for old in [p for p in out.rglob("*") if p.is_file() and p not in wanted]:
        old.unlink()
    for name, text in pages.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for name, data in beside.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != data:
            path.write_bytes(data)


def sources() -> list[Path]:
    """The pages that are written by hand."""
    return sorted(p for p in DOCS.rglob("*.md") if "_generate" not in p.parts)


def generated() -> dict[str, str]:
    """The pages that are made: path below the site's root, and Markdown."""
    found = {f"reference/{name}": keys.page(title, above, parts) for name, title, above, parts in keys.PAGES}
    found["reference/commands.md"] = commands.page()
    found["reference/methods.md"] = (
        "# Methods at a glance\n\n`merge_method` of a recipe, `method` of a space. [Merge methods](../methods.md) has "
        "each one's formula, [how it works](../how-it-works.md) the papers'.\n\n" + commands.methods_table() + "\n"
    )
    found["reference/optimizers.md"] = commands.optimizers_page()
    found["troubleshooting.md"] = errors.page()
    found[str(NOTEBOOK.relative_to(DOCS).with_suffix(".md"))] = notebook.page(NOTEBOOK)[0]
    return found


def page(text: str) -> str:
    """A page with its fences as the site's Markdown reads them."""

    def fence(match: re.Match[str]) -> str:
        ticks, language, more = match.groups()
        file = next((word for word in more.split() if re.fullmatch(r"[\w-]+\.\w+", word)), None)
        return f'{ticks} {{.{language} title="{file}"}}' if file else f"{ticks}{language}"

    return FENCE.sub(fence, text)
