"""A candidate of a study as a checkpoint with its card, on this machine and on the hub: `export`, of both kinds."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge import __version__
from evomerge.errors import InputError

if TYPE_CHECKING:
    from evomerge.pipeline.export import Rebuilt
    from evomerge.publishing.lineage import Lineage
    from evomerge.publishing.push import Destination, Pushed
    from evomerge.study.store import Store, Study

README = "README.md"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        made: The candidate: its number, recipe and sources.
        of: Where its sources come from, and whether their licences go together.
        there: Whether the folder held it already, so that it was not built again.
        pushed: What was uploaded; None where nothing was to be.
    """

    made: Rebuilt
    of: Lineage
    there: bool
    pushed: Pushed | None = None


def export_checkpoint(
    store: Store, study: Study, folder: Path | None, out: Path, trial: int | None = None, *, overwrite: bool = False,
    to: Destination | None = None,
) -> Exported:  # fmt: skip
    """Write a candidate as a plain checkpoint with its card, and upload it.

    Args:
        folder: The study's output folder, where there is one on this machine.
        trial: None: the winner.
        to: Where on the hub; None: nowhere. Then a folder that holds the candidate already is taken as it is.

    Raises:
        InputError: no such candidate, its sources are gone or changed, `out` cannot be written, or the hub refuses.
        EvoMergeError: the hub cannot be reached, or the upload was cut off; what was written is whole.
    """
    from evomerge.pipeline import rebuilt
    from evomerge.publishing.lineage import lineage

    found = rebuilt(study, trial)
    there = to is not None and not overwrite and found.lies_in(out)
    pushed = None
    with ExitStack() as scratch:
        if to is not None:
            from evomerge.publishing.push import left_over, prepare

            if not there:
                _check_free(out, overwrite)
            scratch.enter_context(left_over(prepare(to)))
        of = lineage(found.signed, ask="all")

        def beside() -> Mapping[str, Path | str]:
            temporary = Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="evomerge-")))
            return _beside(store, study, folder, found, of, temporary)

        if not there:
            found.write(out, overwrite=overwrite, beside=beside)
        elif not (out / README).exists():
            from evomerge.report.outputs import write_atomically

            text = str(beside()[README])
            write_atomically(out / README, lambda part: part.write_text(text, encoding="utf-8"))
        if to is not None:
            pushed = _push(to, out, study.name, found)
    return Exported(found, of, there, pushed)


def _check_free(out: Path, overwrite: bool) -> None:
    """Raise where OUT holds something else, before anything is made on the hub."""
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(f"{out}: is not empty, and does not hold this candidate; give another OUT, or --overwrite")


def _beside(
    store: Store, study: Study, folder: Path | None, found: Rebuilt, of: Lineage, temporary: Path
) -> dict[str, Path | str]:
    """The card, and of a path its picture."""
    from evomerge.pipeline.recorded import recorded
    from evomerge.report.candidate_card import candidate_card
    from evomerge.report.path import write_path_png

    record = recorded(store, study.name, folder)
    test = study.scores.read("test").get(f"trial/{found.number}")
    files: dict[str, Path | str] = {README: candidate_card(record, found.number, found.signed, found.path, of, test)}
    if found.path is not None:
        files["path.png"] = temporary / "path.png"
        write_path_png(found.path, found.names, found.depths, temporary / "path.png")
    return files


def _push(to: Destination, out: Path, study: str, found: Rebuilt) -> Pushed:
    from evomerge.publishing.push import push

    recipe_hash = found.signed.hash()
    message = f"Candidate {found.number} of {study}, recipe {recipe_hash[:12]}"
    return push(to, out, message, f"Recipe hash {recipe_hash}. Made and uploaded by evomerge {__version__}.")
