"""Sections become one HTML file that needs nothing else: style and pictures stand in it, scripts there are none."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from markupsafe import Markup

from evomerge.report.page.blocks import Section

# By this a report is known as one of ours, which a later one may replace.
GENERATOR = "evomerge report"
_HERE = "evomerge.report.page"


def render(title: str, about: str, sections: Sequence[Section], footer: str) -> str:
    """The page. Every text is escaped; pictures are our own SVG."""
    from jinja2 import BaseLoader, Environment, StrictUndefined

    environment = Environment(loader=BaseLoader(), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(_file("page.html.j2"))
    style = Markup(_file("page.css").strip())  # a file of the package
    photos = any(b.kind == "photo" for s in sections for b in s.blocks)
    return template.render(
        title=title, about=about, sections=sections, footer=footer, style=style, generator=GENERATOR, photos=photos
    )


def is_report(beginning: str) -> bool:
    """Whether a file that begins so is a report of ours."""
    return f'<meta name="generator" content="{GENERATOR}">' in beginning


def _file(name: str) -> str:
    return resources.files(_HERE).joinpath(name).read_text(encoding="utf-8")
