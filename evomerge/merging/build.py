"""A recipe becomes a checkpoint, from the first check to the last byte: `evomerge merge`, and `evomerge.merge`."""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.errors import CandidateError, InputError
from evomerge.merging.chain import OpenChain
from evomerge.merging.device import check_device
from evomerge.recipe import Chain
from evomerge.sources import start_hashing

if TYPE_CHECKING:
    from evomerge.merging.engine import Engine
    from evomerge.merging.planner import Planner

SHARD_BYTES = 5_000_000_000
# Is given the number of bytes that will be written, and gives what is called with every so many that are.
Progress = Callable[[int], AbstractContextManager[Callable[[int], None] | None]]
# Small files by name: the file to copy, or the text to write.
Beside = Callable[[Chain, Mapping[str, str]], Mapping[str, Path | str]]


@dataclass(frozen=True)
class Built:
    """A checkpoint that was made.

    Attributes:
        out: Its folder.
        chain: What it was made by, the models by references that hold in any folder.
        recipe_hash: What identifies it.
        sources: Content hash (sha256) of each model, by reference.
        bytes: Size of its weights.
        seconds: How long it took.
    """

    out: Path
    chain: Chain = field(repr=False)
    recipe_hash: str
    sources: Mapping[str, str]
    bytes: int
    seconds: float


@contextmanager
def _unseen(_: int) -> Iterator[None]:
    yield None


def build(
    chain: Chain,
    out: Path,
    *,
    root: Path | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    checked: Callable[[], None] = lambda: None,
    progress: Progress = _unseen,
    beside: Beside | None = None,
) -> Built:
    """Build a recipe, or a chain of them, into a folder. The same recipe and sources give the same bytes.

    Args:
        root: Where relative folders are looked for, beside the current one.
        threads: On the CPU; None: every usable core.
        shard_bytes: Size of a weights file at most.
        checked: Is called when everything that can be checked has been, before time is spent.
        progress: Shows the bytes written.
        beside: Gives more small files to write with it, of the chain and the content hashes of its models.

    Raises:
        InputError: what is wrong with the recipe, a source, the device or `out`; nothing is written.
        EvoMergeError: a source changed meanwhile, or a disk is full; what was in `out` is as it was.
    """
    start = time.monotonic()
    opened = OpenChain.open(chain, root=root).with_full_references()
    with tempfile.TemporaryDirectory(prefix="evomerge-") as scratch:
        planned = opened.plan(Path(scratch))
    check_device(device)
    checked()
    here = [source for source in opened.sources.values() if not source.absent]
    with start_hashing(here):  # beside everything else, the import of torch included
        engine = _engine(device, threads)
        try:
            with progress(sum(step.plan.bytes_written for step in planned)) as advance:
                opened.write(
                    out, overwrite=overwrite, engine=engine, planned=planned, shard_bytes=shard_bytes, progress=advance,
                    beside=None if beside is None else lambda contents: beside(opened.chain, contents),
                )  # fmt: skip
        except CandidateError as e:
            # A search goes on without such a candidate; here the one recipe or source that was given cannot be used.
            raise InputError(str(e)) from None
    contents = opened.hashes(planned)
    size = sum(f.stat().st_size for f in out.rglob("*.safetensors"))
    seconds = time.monotonic() - start
    return Built(out, opened.chain, opened.chain.hash(contents), contents, size, seconds)


def _engine(device: str, threads: int | None) -> Callable[[Planner], Engine]:
    """What makes the engine of a step. torch loads here, after the cheap checks."""
    from evomerge.merging.memory import usable_cores

    # What it makes stays: looking through it for garbage as it comes takes a sixth of its loading time.
    loading = gc.isenabled() and "torch" not in sys.modules
    if loading:
        gc.disable()
    from evomerge.merging.engine import Engine

    if loading:
        gc.freeze()
        gc.enable()
    count = threads or usable_cores()
    return lambda planner: Engine(planner.sources, device=device, threads=count, planner=planner)
