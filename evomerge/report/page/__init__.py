"""The report: one HTML file of a study, finished or not, that needs nothing else."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from evomerge import __version__
from evomerge.report.page.blocks import Section
from evomerge.report.page.coefficients import coefficients
from evomerge.report.page.costs import costs, failures
from evomerge.report.page.course import course
from evomerge.report.page.found import about, found
from evomerge.report.page.fronts import archive, front
from evomerge.report.page.held_out import held_out
from evomerge.report.page.items import Texts, items
from evomerge.report.page.path import path
from evomerge.report.page.rebuild import rebuild
from evomerge.report.page.render import is_report, render
from evomerge.study.record import Record


def page(record: Record, texts: Texts, now: datetime.datetime | None = None) -> str:
    """A study's report.

    Args:
        texts: What models were shown of the test items.
        now: When it is written; default the present.
    """
    when = (now or datetime.datetime.now().astimezone()).strftime("%Y-%m-%d %H:%M %Z").strip()
    written = f"Written by evomerge {__version__} on {when}"
    footer = f"{written}. docs/report.md says what each part means."
    return render(record.name, about(record), tuple(sections(record, texts)), footer)


def sections(record: Record, texts: Texts) -> Iterator[Section]:
    """The parts of the report that this study has, in order."""
    yield found(record)
    yield course(record)
    for part in (held_out, path, coefficients, front, archive):
        made = part(record)
        if made is not None:
            yield made
    compared = items(record, texts)
    if compared is not None:
        yield compared
    yield costs(record)
    yield failures(record)
    yield rebuild(record)


__all__ = ["Texts", "is_report", "page", "sections"]
