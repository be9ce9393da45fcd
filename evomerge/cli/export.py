"""`evomerge export STUDY OUT`: a candidate as a plain checkpoint with its card, or the study's results as Parquet."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.cli.commands import Parser, Subparsers, add_command
from evomerge.cli.output import emit
from evomerge.cli.runs import RUNS
from evomerge.cli.studies import open_study
from evomerge.errors import InputError

if TYPE_CHECKING:
    from evomerge.pipeline.export import Rebuilt
    from evomerge.publishing.lineage import Lineage
    from evomerge.publishing.push import Destination, Pushed
    from evomerge.study.store import Store, Study

DESCRIPTION = """\
Write a study's winner, or any other candidate, as a plain checkpoint with its recipe and a model card in the format of
the Hugging Face hub; with --push, to the hub too. Or every candidate and the result of every item as Parquet.

  evomerge export quickstart-quickstart-0 my-model
  evomerge export quickstart-quickstart-0 my-model --trial 17
  evomerge export hybrid-quickstart-0/parameter merged             a hybrid's first stage, or a control
  evomerge export quickstart-quickstart-0 my-model --push me/my-model --private
  evomerge export quickstart-quickstart-0 results --format parquet"""
README = "README.md"


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(subparsers, "export", "write a candidate's checkpoint, or a study's results", DESCRIPTION)
    parser.add_argument("study", metavar="STUDY", help=f"name of a study in {RUNS}/, or its folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument("--trial", type=int, metavar="N", help="which candidate (default: the winner)")
    parser.add_argument("--format", choices=("checkpoint", "parquet"), default="checkpoint", help="default: checkpoint")
    parser.add_argument("--storage", metavar="URL", help="database of the study (default: found by its name)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in OUT")
    hub = parser.add_argument_group("the Hugging Face hub (docs/publishing.md)")
    hub.add_argument(
        "--push", metavar="OWNER/NAME", help="upload the checkpoint to this repository too, which is made where it is "
        "missing; needs a token that may write (hf auth login, or HF_TOKEN). Where OUT holds this candidate already, "
        "that is uploaded as it is",
    )  # fmt: skip
    hub.add_argument("--private", action="store_true", help="a repository that is made is private")
    hub.add_argument("--revision", metavar="BRANCH", help="upload to this branch, made where it is missing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the study, write what was asked for."""
    _check(args)
    store, name, folder = open_study(args.study, args.storage)
    study = store.open(name)
    if args.format == "parquet":
        written = _parquet(study, args.out, args.overwrite)
        emit(args, {"study": name, "files": written}, "\n".join(written))
        return 0
    return _checkpoint(args, store, study, folder)


def _check(args: argparse.Namespace) -> None:
    if args.format == "parquet":
        for option in ("trial", "push"):
            if getattr(args, option) is not None:
                raise InputError(f"--{option} is about a checkpoint; --format parquet writes every candidate's results")
    for option in ("private", "revision"):
        if getattr(args, option) and args.push is None:
            raise InputError(f"--{option} is about --push OWNER/NAME, which is missing")


def _checkpoint(args: argparse.Namespace, store: Store, study: Study, folder: Path | None) -> int:
    from evomerge.cli.progress import say
    from evomerge.pipeline import rebuilt
    from evomerge.publishing.lineage import lineage

    to = _destination(args)
    found = rebuilt(study, args.trial)
    there = to is not None and not args.overwrite and found.lies_in(args.out)
    if to is not None:
        from evomerge.publishing.push import prepare

        if not there:
            _check_free(args.out, args.overwrite)
        prepare(to)
    of = lineage(found.signed, ask="all")
    with ExitStack() as scratch:

        def beside() -> Mapping[str, Path | str]:
            temporary = Path(scratch.enter_context(tempfile.TemporaryDirectory(prefix="evomerge-")))
            return _beside(store, study, folder, found, of, temporary)

        if not there:
            found.write(args.out, overwrite=args.overwrite, beside=beside)
        elif not (args.out / README).exists():
            from evomerge.report.outputs import write_atomically

            text = str(beside()[README])
            write_atomically(args.out / README, lambda part: part.write_text(text, encoding="utf-8"))
    facts: dict[str, Any] = {
        "study": study.name,
        "trial": found.number,
        "out": str(args.out),
        "recipe_hash": found.signed.hash(),
        "lineage": of.to_dict(),
    }
    words = f"{args.out}: candidate {found.number} of {study.name}{', as it was there' if there else ''}"
    if found.path is not None:
        from evomerge.report.path import path_text

        facts["path"] = path_text(found.path, found.names)
        words += f"\n{facts['path']} (path.png)"
    for conflict in of.conflicts:
        say(args, f"licence: {conflict.text}")
    if to is not None:
        done = _push(to, args.out, study.name, found)
        facts["pushed"] = {"repo": to.repo, "url": done.url, "commit": done.commit, "files": list(done.files)}
        words += f"\n{done.url}: {len(done.files)} files, commit {done.commit[:12]}"
    emit(args, facts, words)
    return 0


def _destination(args: argparse.Namespace) -> Destination | None:
    if args.push is None:
        return None
    from evomerge.publishing.push import Destination

    return Destination(args.push, True if args.private else None, args.revision)


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
    files: dict[str, Path | str] = {
        README: candidate_card(record, found.number, found.signed, found.path, of, test)
    }  # fmt: skip
    if found.path is not None:
        files["path.png"] = temporary / "path.png"
        write_path_png(found.path, found.names, found.depths, temporary / "path.png")
    return files


def _push(to: Destination, out: Path, study: str, found: Rebuilt) -> Pushed:
    from evomerge import __version__
    from evomerge.publishing.push import push

    recipe_hash = found.signed.hash()
    message = f"Candidate {found.number} of {study}, recipe {recipe_hash[:12]}"
    return push(to, out, message, f"Recipe hash {recipe_hash}. Made and uploaded by evomerge {__version__}.")


def _parquet(study: Any, out: Path, overwrite: bool) -> list[str]:
    from evomerge.evaluation import SPLITS
    from evomerge.report.frames import items_frame, trials_frame
    from evomerge.report.outputs import write_atomically

    paths = [out / "trials.parquet", out / "items.parquet"]
    for path in paths:
        if path.exists() and not overwrite:
            raise InputError(f"{path}: exists; give another OUT, or --overwrite")
    out.mkdir(parents=True, exist_ok=True)
    trials = study.trials()
    scores = [(subject, split, s) for split in SPLITS for subject, s in study.scores.read(split).items()]
    write_atomically(paths[0], lambda part: trials_frame(trials).to_parquet(part, index=False))
    write_atomically(paths[1], lambda part: items_frame(scores).to_parquet(part, index=False))
    return [str(p) for p in paths]
