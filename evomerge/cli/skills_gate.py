"""`evomerge skills gate LIBRARY DATA OUT`: train what weighs a library's skills by the prompt."""

from __future__ import annotations

import argparse
from pathlib import Path

from evomerge.cli.commands import Parser, Subparsers, add_command, whole
from evomerge.cli.output import emit, say

DESCRIPTION = """\
Train a gate: a small network that reads the prompt (the base's mean last hidden state) and gives each skill its weight,
once for each prompt (PSEC). Base and adapters stay as they are. DATA is a .jsonl file with a prompt and its right
answer in each line: {"prompt": ..., "completion": ...}, or {"messages": [...]} whose last message is the assistant's.
OUT is loaded by evomerge.skills.GatedModel, and scored by `evomerge evaluate`; it is no single checkpoint.

  evomerge skills gate library prompts.jsonl gated --steps 300"""


def add_parser(subparsers: Subparsers[Parser]) -> None:
    """Register the command."""
    parser = add_command(subparsers, "gate", "train a gate that weighs skills by the prompt", DESCRIPTION)
    parser.add_argument("library", metavar="LIBRARY", type=Path, help="folder of the skill library")
    parser.add_argument("data", metavar="DATA", type=Path, help=".jsonl file of prompts and right answers")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must be new or empty")
    parser.add_argument("--skills", nargs="+", default=[], metavar="NAME", help="those that take part (default: all)")
    parser.add_argument(
        "--per-layer", action="store_true", help="a weight for each skill and layer, and not one for all layers"
    )
    parser.add_argument("--width", type=_number, default=64, metavar="N", help="hidden units of the gate (default: 64)")
    parser.add_argument("--steps", type=_number, default=300, metavar="N", help="updates (default: 300)")
    parser.add_argument("--lr", type=_rate, default=3e-3, metavar="X", help="largest learning rate (default: 0.003)")
    parser.add_argument("--batch-size", type=_number, default=16, metavar="N", help="prompts in a step (default: 16)")
    parser.add_argument(
        "--max-length", type=_number, default=1024, metavar="N", help="tokens of prompt and answer, at most as many as "
        "the base has positions; longer ones are left out, and told (default: 1024)",
    )  # fmt: skip
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="of weights and order (default: 0)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, ... (default: cuda where there is one)")
    base_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace what OUT holds")
    parser.set_defaults(run=run)


def base_option(parser: Parser) -> None:
    """Say where a library's base lies."""
    parser.add_argument(
        "--base", metavar="MODEL", help="where the library's base lies, if that is elsewhere than the library says "
        "(default: there); its content must be the same",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Check library and data, train, write."""
    from evomerge.library import read_library
    from evomerge.skills.examples import read_examples

    library = read_library(args.library, args.base)
    names = library.chosen(args.skills)
    examples = read_examples(args.data)

    from evomerge.skills.training import GateTraining, train_gate  # torch loads here, after the cheap checks

    training = GateTraining(
        steps=args.steps, learning_rate=args.lr, batch_size=args.batch_size, width=args.width, per_layer=args.per_layer,
        max_length=args.max_length, seed=args.seed, device=args.device,
    )  # fmt: skip
    trained = train_gate(
        library, names, examples, args.out, training, overwrite=args.overwrite, say=lambda text: say(args, text)
    )
    facts = {
        "out": args.out, "base": library.base, "skills": names, "examples": trained.examples,
        "left_out": trained.left_out, "steps": args.steps,
        "loss": {"first": trained.losses[0], "last": trained.losses[-1]},
        "seconds": round(trained.seconds, 1),
    }  # fmt: skip
    emit(
        args, facts, f"{args.out}: a gate over {', '.join(names)}; loss {trained.losses[0]:.3f} -> "
        f"{trained.losses[-1]:.3f} on {trained.examples} examples",
    )  # fmt: skip
    return 0


def _number(text: str) -> int:
    return whole(text, 1, 10**9)


def _seed(text: str) -> int:
    return whole(text, 0, 2**31 - 1)


def _rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 100:
        raise argparse.ArgumentTypeError(f'"{text}": expected a learning rate above 0')
    return number
