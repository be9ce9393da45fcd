"""Builds candidates into one live model and scores them. Knows nothing of Ray: a worker holds one of these."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path as Folder
from typing import TYPE_CHECKING, Any

import psutil

from evomerge.errors import CandidateError, DiskFullError, EvoMergeError, InputError, first_line
from evomerge.evaluation import EvaluatorFile, SavedEvaluator, leaves_models, open_evaluator
from evomerge.evaluation.finite import check_finite
from evomerge.evaluation.room import CANDIDATE
from evomerge.merging.allocation import out_of_memory, release
from evomerge.merging.placement import Devices, park, unpark
from evomerge.merging.scratch import scratch_folder
from evomerge.recipe import Path, Recipe
from evomerge.score import Score
from evomerge.sources import Source, writers
from evomerge.study.ahead import LiveMerges, Lock, SavedMerges
from evomerge.study.job import Answer, Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from evomerge.images.live import LivePipelines
    from evomerge.routing import Router


# Of a GPU's memory, what stays free beside a second live model and the most that scoring took so far.
SPARE_SHARE = 0.1


class Builder:
    """Holds the sources, the live models that candidates are built into and the evaluator's tasks, across candidates.

    One thread runs jobs; another one may `prepare` the next meanwhile.

    Args:
        sources: Every model that a recipe may name, by its reference; `base` among them.
        base: Reference of the model whose architecture and tokenizer candidates have.
        device: A torch device; default: the evaluator's, else "cuda" where there is one.
        prefix_bytes: Memory for the hidden states of paths' common beginnings.
        gpus: GPUs that are this process's own: below 1 a share of one, whose memory is then limited; above 1 a merge is
            spread over all of them. 0: nobody counted.

    Raises:
        InputError: GPUs were counted, and torch sees fewer.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        base: str,
        evaluator: EvaluatorFile,
        device: str | None = None,
        prefix_bytes: int = 0,
        gpus: float = 0.0,
    ) -> None:
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        from evomerge.merging.engine import CUDA_SHARE, Engine

        self._sources = dict(sources)
        self._images: LivePipelines | None = None
        self._notes: list[str] = []
        self._evaluator, self._file = open_evaluator(evaluator, self._notes.append), evaluator.file
        saves = isinstance(self._evaluator, SavedEvaluator)
        asked = device or evaluator.config.device
        # Who scores saved models has the GPU to itself.
        usual = "cuda" if torch.cuda.is_available() and not saves else "cpu"
        if gpus and asked is None and not saves:
            _check_gpus(gpus)
        self.device = asked or usual
        spread = gpus >= 2 and self.device == "cuda"
        self._live_device: str | Devices = [f"cuda:{i}" for i in range(int(gpus))] if spread else self.device
        if self.device == "cpu":
            # One thread: several processes on a few cores run up to ten times slower with more. And the sums inside a
            # model's forward pass depend on the number of threads (a merge's do not), so that scores, and with them the
            # search, would not be the same on another number of cores.
            torch.set_num_threads(1)
        self._dtype = _compute_dtype(evaluator.config.dtype, self.device)
        self._trust = evaluator.config.trust_remote_code
        self._base = self._sources[base]
        self._share = gpus if 0 < gpus < 1 else 1.0
        cache = 0 if saves else None
        if 0 < gpus < 1 and self.device.startswith("cuda"):
            # Others are on the same GPU, and what libraries find to be free there is not all for this process.
            torch.cuda.set_per_process_memory_fraction(gpus)
            own = int(gpus * torch.cuda.mem_get_info(self.device)[1])
            cache = int(CUDA_SHARE * max(0, own - self._base.bytes))
        self._engine = Engine(self._sources, device=self.device, cache_bytes=cache)
        self._prefix_bytes = prefix_bytes
        # What candidates are built into, made when the first of its kind comes: merges, and paths over layers.
        self._building = Lock()
        self._stream: Any = None
        kept = leaves_models(evaluator)
        self._merges = LiveMerges(self._merge_target, self._build_into, self._building, self._room_for_two, kept)
        self._saves = SavedMerges(self._written, self._building) if saves else None
        self._router: Router | None = None
        if self._base.diffusion is not None and not saves:
            from evomerge.images.live import LivePipelines

            self._images = LivePipelines(self._base, self.device, self._dtype)
        self._reader = self._read_by(self._base)

    def run(self, job: Job) -> Answer:
        """Build and score. What the candidate did wrong comes back as a reason.

        Raises:
            InputError: what the user gave is wrong, so that no candidate could do better.
            EvoMergeError: a source has changed, or a disk is full: nothing can be built any more.
        """
        seconds: dict[str, float] = {}
        full = False
        try:
            self._check_unchanged(job)
            if isinstance(self._evaluator, SavedEvaluator):
                score, layers = self._saved(self._evaluator, job, seconds), None
            elif job.exported or job.recipe is None:
                score, layers = self._exported(job, seconds), None
            else:
                score, layers = self._live(job.recipe, job, seconds)
            return Answer(score, None, seconds, layers, self._noted())
        except DiskFullError:
            raise self._no_room(job) from None
        except CandidateError as e:
            if job.recipe is None:  # a source as it is: not a candidate's fault, but the model's or the evaluator's
                raise InputError(f"{job.source} cannot be scored by {self._file}: {e}") from e
            reason = str(e)
        except EvoMergeError:
            raise
        except (Exception, SystemExit) as e:  # whatever an evaluator raises is this candidate's failure
            if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
                place = e.filename or tempfile.gettempdir()
                raise EvoMergeError(f"{place}: the disk is full; free some, and give the same command again") from e
            full = out_of_memory(e)
            step = "scored" if "build" in seconds else "built"
            what = f"out of memory while it was {step}: " if full else ""
            reason = first_line(f"{what}{type(e).__name__}: {e}", 500)
        if full:
            # After the block: inside, the error's frames still hold what there was no room for.
            self._let_go()
        self._check_unchanged(job)  # bytes that were written meanwhile may be why
        return Answer(None, reason, seconds, notes=self._noted())

    def __call__(self, job: Job) -> Answer:
        """See `run`."""
        return self.run(job)

    def prepare(self, job: Job) -> None:
        """Build what a job needs while another one is scored, where there is memory for both: for `run` to find.

        May be called by another thread than that of `run`.
        """
        recipe = job.recipe
        if recipe is None:
            return
        if self._saves is not None:
            self._saves.prepare(recipe)
        elif not job.exported and Path.read(recipe, writers(self._base).filters) is None:
            self._merges.prepare(recipe)

    def _no_room(self, job: Job) -> EvoMergeError:
        folder = tempfile.gettempdir()
        needed = self._engine.plan(job.recipe).bytes_written if job.recipe is not None else 0
        return EvoMergeError(
            f"{folder}: the disk is full; a candidate that is saved for a moment needs {needed:,} bytes, and "
            f"{shutil.disk_usage(folder).free:,} are free; free some, or set TMPDIR, and give the same command again"
        )

    def _check_unchanged(self, job: Job) -> None:
        """Raise where a source's file has changed: before a build, when it is done, and when it has failed."""
        named = job.recipe.references() if job.recipe is not None else [job.source or ""]
        for reference in (*named, self._base.reference):
            if reference in self._sources:
                self._sources[reference].check_unchanged()

    def _noted(self) -> tuple[str, ...]:
        found = tuple(self._notes)
        self._notes.clear()
        return found

    def _let_go(self) -> None:
        """Give back the memory that is held for candidates to come; they take what they need again."""
        with self._building:
            self._merges.shrink()
            self._engine.forget()
        if self._router is not None:
            self._router.unload()
        release()

    def _live(self, recipe: Recipe, job: Job, seconds: dict[str, float]) -> tuple[Score, tuple[int, int] | None]:
        """The score of a merge in place, or of a path with the evaluations of layers that it took (see `Answer`)."""
        started = time.perf_counter()
        # A scale is a hop's where it is that of what this family's layers write; any other recipe is a merge.
        path = Path.read(recipe, writers(self._base).filters)
        if path is None:
            with self._merges.using(recipe) as merged:
                return self._score(merged, self._reader, job, seconds, started), None
        router = self._routes()
        score = self._score(router.route(path), self._reader, job, seconds, started)
        return score, (router.counts.asked, router.counts.run)

    def _build_into(self, recipe: Recipe, merged: PreTrainedModel) -> None:
        """Build in place; where memory runs out, once more without what is held for other candidates."""
        with self._beside():
            try:
                self._engine.build_into(recipe, merged)
                return
            except Exception as e:
                if not out_of_memory(e):
                    raise
            self._let_go()
            self._engine.build_into(recipe, merged)

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        """On a GPU, builds have a stream of their own, beside that of scoring; they are complete at the end.

        One stream for all of them, because what the engine keeps belongs to the stream that it was made on.
        """
        if self.device == "cpu":
            yield
            return
        import torch

        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._stream):
            try:
                yield
            finally:
                self._stream.synchronize()

    def _merge_target(self) -> PreTrainedModel:
        from evomerge.merging.live import live_model

        if self._images is not None:
            made: PreTrainedModel = self._images.denoiser()
            return made
        return live_model(self._base, dtype=self._dtype, device=self._live_device, trust_remote_code=self._trust)

    def _room_for_two(self) -> bool:
        """Whether a second live model fits beside the most that scoring took so far, with some room to spare."""
        if not isinstance(self._live_device, str):
            return False  # it was spread because one fills more than a GPU
        needed = sum(t.nbytes for t in self._merges.models[0].parameters())
        if self.device == "cpu":
            return bool(psutil.virtual_memory().available > 2 * needed)
        import torch

        free, total = torch.cuda.mem_get_info(self.device)
        mine = free + torch.cuda.memory_reserved(self.device)
        if self._share < 1:
            mine = min(mine, int(self._share * total))
        return mine - torch.cuda.max_memory_allocated(self.device) > needed + SPARE_SHARE * mine

    def _routes(self) -> Router:
        if self._router is None:
            from evomerge.routing import Router

            self._router = Router(
                self._sources,
                dtype=self._dtype,
                device=self.device,
                trust_remote_code=self._trust,
                prefix_bytes=self._prefix_bytes,
            )
        return self._router

    def _exported(self, job: Job, seconds: dict[str, float]) -> Score:
        started = time.perf_counter()
        if job.recipe is None:
            return self._checkpoint(self._sources[job.source or ""], job, seconds, started)
        with scratch_folder(Folder(tempfile.gettempdir()), CANDIDATE, "part") as folder:
            with self._building:
                self._engine.write(job.recipe, folder / "model")
            return self._checkpoint(folder / "model", job, seconds, started)

    def _saved(self, evaluator: SavedEvaluator, job: Job, seconds: dict[str, float]) -> Score:
        """The score of a checkpoint, for an evaluator that wants no live model."""
        started = time.perf_counter()
        recipe = job.recipe
        if recipe is None:
            source = self._sources[job.source or ""]
            if source.adapter is not None:
                return self._checkpoint(source, job, seconds, started)
            check_finite(source)
            return self._timed(
                lambda: evaluator.evaluate_saved(source.path, job.split, job.only), job, seconds, started
            )
        assert self._saves is not None
        with self._saves.using(recipe) as model:
            return self._timed(lambda: evaluator.evaluate_saved(model, job.split, job.only), job, seconds, started)

    def _written(self, recipe: Recipe, place: Folder | None) -> AbstractContextManager[Folder]:
        """A recipe's checkpoint, for an evaluator that scores those; see `SavedMerges`."""
        evaluator = self._evaluator
        assert isinstance(evaluator, SavedEvaluator)
        needed = self._engine.plan(recipe).bytes_written
        return evaluator.saved(lambda folder: self._engine.write(recipe, folder), needed, place)

    def _checkpoint(self, model: Folder | Source, job: Job, seconds: dict[str, float], started: float) -> Score:
        # Two models may not fit on a GPU where one did.
        if self.device != "cpu" and self._router is not None:
            self._router.unload()
        if self.device == "cpu":
            return self._loaded(model, job, seconds, started)
        with self._building:  # what would be built meanwhile has no room
            parked = self._merges.models
            for merged in parked:
                park(merged)
            try:
                return self._loaded(model, job, seconds, started)
            finally:
                for merged in parked:
                    unpark(merged, self.device)

    def _loaded(self, checkpoint: Folder | Source, job: Job, seconds: dict[str, float], started: float) -> Score:
        from evomerge.merging.live import live_model

        reader = self._read_by(checkpoint)
        if self._images is not None:
            return self._score(self._images.denoiser(checkpoint), reader, job, seconds, started)
        model = live_model(checkpoint, dtype=self._dtype, device=self._live_device, trust_remote_code=self._trust)
        return self._score(model, reader, job, seconds, started)

    def _read_by(self, model: Folder | Source) -> Any:
        """What makes a model's input: its tokenizer, or, where it is shown pictures, its processor; of a diffusion
        model None: a pipeline reads prompts by itself."""
        from evomerge.merging.live import load_processor, load_tokenizer

        if self._base.diffusion is not None:
            return None
        load = load_processor if self._evaluator.sees else load_tokenizer
        return load(model, trust_remote_code=self._trust)

    def _score(self, model: Any, reader: Any, job: Job, seconds: dict[str, float], started: float) -> Score:
        """Evaluate a model that is built, keeping the time of both steps."""
        evaluate = self._evaluator.evaluate
        if self._images is not None:
            model = self._images.around(model)
        return self._timed(lambda: evaluate(model, reader, job.split, job.only), job, seconds, started)

    def _timed(
        self, evaluate: Callable[[], Score], job: Job, seconds: dict[str, float], started: float
    ) -> Score:
        self._check_unchanged(job)
        built = time.perf_counter()
        seconds["build"] = built - started
        score = evaluate()
        seconds["evaluate"] = time.perf_counter() - built
        return score


def _check_gpus(gpus: float) -> None:
    """Raise InputError where torch sees fewer GPUs than this process was given: on the CPU scores would be others."""
    import torch

    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen < gpus:
        raise InputError(
            f"--gpus-per-worker {gpus:g}: torch {torch.__version__} sees {seen} GPUs on {os.uname().nodename}, where a "
            "worker runs: is it built with CUDA there, and does nvidia-smi show them? On CPUs: --gpus-per-worker 0"
        )


def _compute_dtype(name: str, device: str) -> Any:
    """float32 on a CPU (16-bit arithmetic is slow or missing there), else the checkpoint's own."""
    import torch

    if name == "auto":
        return torch.float32 if device == "cpu" else None
    return getattr(torch, name)
