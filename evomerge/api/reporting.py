"""A study's report written to a file: `evomerge report`, and `Study.report`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from evomerge.errors import InputError
from evomerge.study.record import Record

NAME = "report.html"


def report_place(study: str, folder: Path | None, asked: Path | None, overwrite: bool) -> Path:
    """Where a report goes: where it was asked for, else beside the study's other outputs.

    Args:
        study: The study's name; one of a search that belongs to another has its own file there.
        folder: The study's output folder.
        asked: A file.

    Raises:
        InputError: it is a folder, or holds something that is no report and is not to be overwritten.
    """
    out = asked or _default(study, folder)
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; expected a file, such as {out / NAME}")
    if overwrite or not out.exists():
        return out
    from evomerge.report.page.render import is_report

    beginning = ""
    with suppress(OSError), out.open(encoding="utf-8", errors="replace") as f:
        beginning = f.read(4096)
    if not is_report(beginning):
        raise InputError(f"{out}: exists, and is no report of evomerge; give another --out, or --overwrite")
    return out


def write_report(record: Record, out: Path, evaluator: str | None = None, *, texts: bool = True) -> int:
    """Draw and write a report. Nothing is looked for on the network: what is not here is named as missing.

    Args:
        evaluator: The study's evaluator, whose items are shown; None: if it is a preset.
        texts: Show items; False: name them by their ids alone.

    Returns:
        Its size in bytes.

    Raises:
        InputError: the evaluator is another one, or the file cannot be written.
    """
    from evomerge.pipeline.item_texts import item_texts
    from evomerge.report.outputs import write_atomically
    from evomerge.report.page import Texts, page

    known = item_texts(record, evaluator, wanted=texts)
    text = page(record, Texts(known.by_item, known.unknown))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, lambda part: part.write_text(text, encoding="utf-8"))
    except OSError as e:
        raise InputError(f"{out}: cannot be written ({e.strerror or e})") from None
    return out.stat().st_size


def _default(study: str, folder: Path | None) -> Path:
    if folder is None:
        raise InputError(f'study "{study}": has no folder on this machine; say where to write: --out FILE')
    part = study.partition("/")[2]
    return folder / (f"report-{part.replace('/', '-').replace(' ', '-')}.html" if part else NAME)
