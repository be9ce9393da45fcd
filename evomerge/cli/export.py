"""`evomerge export STUDY OUT`: a candidate as a plain checkpoint with its card, or the study's results as Parquet."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.cli.commands import Parser, Subparsers, add_command
from evomerge.cli.output import emit, say
from evomerge.errors import InputError
from evomerge.study.finding import RUNS, open_study

if TYPE_CHECKING:
    from evomerge.publishing.push import Destination
    from evomerge.study.store import Store, Study

DESCRIPTION = """\
Write a study's winner, or any other candidate, as a plain checkpoint with its recipe and a model card in the format of
the Hugging Face hub; with --push, to the hub too. Or every candidate and the result of every item as Parquet.

  evomerge export quickstart-quickstart-0 my-model
  evomerge export quickstart-quickstart-0 my-model --trial 17
  evomerge export hybrid-quickstart-0/parameter merged             a hybrid's first stage, or a control
  evomerge export quickstart-quickstart-0 my-model --push me/my-model --private
  evomerge export skills-mine-0 one-adapter --format adapter        of adapters on one base: their sum as one adapter
  evomerge export quickstart-quickstart-0 results --format parquet"""


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(subparsers, "export", "write a candidate's checkpoint, or a study's results", DESCRIPTION)
    parser.add_argument("study", metavar="STUDY", help=f"name of a study in {RUNS}/, or its folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument("--trial", type=int, metavar="N", help="which candidate (default: the winner)")
    parser.add_argument(
        "--format", choices=("checkpoint", "adapter", "parquet"), default="checkpoint", help="checkpoint (default); "
        "adapter: of a weighted sum of LoRA adapters, as of a skill library, one PEFT adapter; parquet: every "
        "candidate's results",
    )  # fmt: skip
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
    hub.add_argument(
        "--replace-model", action="store_true", help="put the checkpoint in the place of a model in that repository "
        "that evomerge did not make; without it such a repository is refused",
    )  # fmt: skip
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
    return _adapter(args, study) if args.format == "adapter" else _checkpoint(args, store, study, folder)


def _check(args: argparse.Namespace) -> None:
    if args.format == "parquet":
        for option in ("trial", "push"):
            if getattr(args, option) is not None:
                raise InputError(f"--{option} is about a checkpoint; --format parquet writes every candidate's results")
    if args.format == "adapter" and args.push is not None:
        raise InputError("--push uploads a checkpoint; leave it out, or --format checkpoint")
    for option in ("private", "revision", "replace-model"):
        if getattr(args, option.replace("-", "_")) and args.push is None:
            raise InputError(f"--{option} is about --push OWNER/NAME, which is missing")


def _checkpoint(args: argparse.Namespace, store: Store, study: Study, folder: Path | None) -> int:
    from evomerge.api.exporting import export_checkpoint

    to = _destination(args)
    done = export_checkpoint(store, study, folder, args.out, args.trial, overwrite=args.overwrite, to=to)
    made = done.made
    facts: dict[str, Any] = {
        "study": study.name,
        "trial": made.number,
        "out": str(args.out),
        "recipe_hash": made.signed.hash(),
        "lineage": done.of.to_dict(),
    }
    words = f"{args.out}: candidate {made.number} of {study.name}{', as it was there' if done.there else ''}"
    if made.path is not None:
        from evomerge.report.path import path_text

        facts["path"] = path_text(made.path, made.names)
        words += f"\n{facts['path']} (path.png)"
    for conflict in done.of.conflicts:
        say(args, f"licence: {conflict.text}")
    if done.pushed is not None:
        pushed = done.pushed
        facts["pushed"] = {"repo": args.push, "url": pushed.url, "commit": pushed.commit, "files": list(pushed.files)}
        words += f"\n{pushed.url}: {len(pushed.files)} files, commit {pushed.commit[:12]}"
    emit(args, facts, words)
    return 0


def _adapter(args: argparse.Namespace, study: Study) -> int:
    from evomerge.merging.planner import Planner
    from evomerge.pipeline import rebuilt
    from evomerge.recipe import Recipe
    from evomerge.skills.static import one_adapter
    from evomerge.sources import fetch

    made = rebuilt(study, args.trial)
    fetch(made.sources.values())
    one = one_adapter(Planner(made.sources).plan(made.plain))
    one.write(args.out, made.signed if isinstance(made.signed, Recipe) else made.plain, overwrite=args.overwrite)
    facts = {
        "study": study.name, "trial": made.number, "out": args.out, "recipe_hash": made.signed.hash(), "rank": one.rank,
        "modules": len(one.ranks),
    }  # fmt: skip
    words = f"candidate {made.number} of {study.name}, one adapter of rank {one.rank} on {len(one.ranks)} layers"
    emit(args, facts, f"{args.out}: {words}")
    return 0


def _destination(args: argparse.Namespace) -> Destination | None:
    if args.push is None:
        return None
    from evomerge.publishing.push import Destination

    return Destination(args.push, True if args.private else None, args.revision, args.replace_model)


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
