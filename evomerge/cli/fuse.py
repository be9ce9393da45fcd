"""`evomerge fuse FILE OUT`: train one target from sources of any architecture and tokenizer, or one from each."""

from __future__ import annotations

import argparse
from pathlib import Path

from evomerge.cli.commands import Parser, Subparsers, add_cluster, add_command
from evomerge.cli.output import emit

DESCRIPTION = """\
Bring the knowledge of models of any architecture and tokenizer into one (FuseLLM, FuseChat): every source reads a text
once, what they say of it is aligned and fused, and the target learns from that beside the text itself. With `mode:
pairwise` each source makes a target of its own, all of one architecture, and `then: search` merges them. The same
command resumes a fusion that was cut off. With `kind: fuse_images` the models are diffusion models, and one student
learns the style of each (DMM).

  evomerge init --fusion my-fusion                a commented file to start from, which runs as it is
  evomerge check my-fusion/fusion.yaml            is it right, and what would it take
  evomerge fuse my-fusion/fusion.yaml fused       the checkpoint is fused/model"""


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(
        subparsers, "fuse", "train one model from several of any architecture and tokenizer", DESCRIPTION
    )
    parser.add_argument("file", metavar="FUSION", type=Path, help="YAML file (kind: fuse or fuse_images)")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of everything that it makes")
    add_cluster(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fuse, write the cards, print the table."""
    from evomerge.pipeline import FuseOptions, fuse, is_image_fusion
    from evomerge.report.fusion import fusion_dict, fusion_text, write_fusion
    from evomerge.study.workers import Cluster
    from evomerge.watching.fusing import Fusing
    from evomerge.watching.progress import Progress
    from evomerge.watching.signals import stoppable

    if is_image_fusion(args.file):
        return _images(args)
    options = FuseOptions(args.file, args.out, Cluster(args.address, args.workers, args.gpus_per_worker))
    searching = Progress()
    with stoppable(searching.shows_ending) as stop, Fusing() as watcher, searching:
        fused = fuse(options, watcher, searching, stop)
    write_fusion(fused)
    emit(args, fusion_dict(fused), fusion_text(fused))
    return 0


def _images(args: argparse.Namespace) -> int:
    """Fuse image models, write card and report, print the table."""
    from evomerge.pipeline import check_here, fuse_images
    from evomerge.report.images import images_dict, images_text, write_images
    from evomerge.watching.fusing import Fusing
    from evomerge.watching.signals import stoppable

    check_here(args.workers, args.address, args.gpus_per_worker)
    with stoppable(), Fusing() as watcher:
        fused = fuse_images(args.file, args.out, watcher)
    write_images(fused)
    emit(args, images_dict(fused), images_text(fused))
    return 0
