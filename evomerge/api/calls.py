"""`evomerge.search`, `merge`, `fuse` and `evaluate`: the commands as functions, with the same names and defaults."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from evomerge import arguments
from evomerge.api.study import Study
from evomerge.arguments import describe, plain
from evomerge.errors import EvaluatorError, InputError
from evomerge.evaluation.config import SPLITS, Split
from evomerge.images.fused import FusedImages
from evomerge.recipe import Chain, Recipe
from evomerge.score import Interval, Score
from evomerge.study.budget import Budget
from evomerge.study.fused import Fused
from evomerge.study.watcher import Silent, Watcher

if TYPE_CHECKING:
    import pandas as pd

    from evomerge.merging.build import Built
    from evomerge.study.stopping import Stop

Where = str | Path
# A search space or an evaluator: a file, a preset's name, or what such a file holds.
Content = str | Path | Mapping[str, Any]
Texts = str | Path | Sequence[str | Path] | None


@dataclass(frozen=True)
class Evaluation:
    """A model as it was scored.

    Attributes:
        score: Its tasks, each with the result of every item.
        interval: Its weighted score with a 95 % confidence interval.
    """

    model: str
    evaluator: str
    split: Split
    score: Score
    interval: Interval

    @property
    def value(self) -> float:
        """Its weighted score, higher is better."""
        return self.score.value

    def tasks(self) -> pd.DataFrame:
        """One row per task.

        Columns: `task`, `metric`, `score` (as the metric's authors report it) with `low` and `high` (95 %), `weight`,
        `items`.
        """
        import pandas as pd

        from evomerge.comparison import task_interval

        found = [(t, task_interval(t)) for t in self.score.tasks]
        return pd.DataFrame(
            [
                {"task": t.task, "metric": t.metric, **i.to_dict("score"), "weight": t.weight}
                for t, i in found
            ]
        )

    def items(self) -> pd.DataFrame:
        """One row per item; columns as `Study.items`."""
        from evomerge.report.frames import items_frame

        return items_frame([(self.model, self.split, self.score)])


def search(
    space: Content | None = None,
    *,
    budget: int | str | Budget,
    models: Texts = (),
    base: Where | None = None,
    evaluator: Content | None = None,
    tasks: Texts = (),
    include_path: Where | None = None,
    objectives: Texts = (),
    sampler: str = "auto",
    seed: int = 0,
    population: int | None = None,
    sigma: float | None = None,
    restarts: str | None = None,
    fidelity: str = "auto",
    asynchronous: bool = False,
    estimates: str = "auto",
    timeout: float | None = None,
    patience: int | None = None,
    enqueue: Texts = (),
    warm_start: Where | Study | None = None,
    starts: bool = True,
    controls: bool = False,
    study: str | None = None,
    out: Where | None = None,
    storage: str | None = None,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    prefix_memory: float = 1.0,
    progress: bool | Watcher = True,
) -> Study:
    """Search for the best merge of some models within a budget: `evomerge search`, whose options these are.

    The same call goes on with a search that was cut off, and extends a finished one when its budget is larger. Output
    folder and database are the command's, so that either can go on with what the other began.

        study = evomerge.search(models=["./maths", "./japanese"], base="./base", tasks=["gsm8k"], budget=200)
        study.results()

    Args:
        space: A YAML file, a preset's name, or a mapping with a file's keys. Default: with `models` the default space
            over them, else the shipped "quickstart".
        budget: A number of candidates, or a time ("30m", "2h").
        models, base: Sources and the model that they were fine-tuned from: folders, hub ids, zoo:NAME.
        evaluator: A YAML file, a preset's name, or a mapping with a file's keys. There, `function` may be a function
            of a Python file instead of its name.
        tasks: Instead of an evaluator: tasks of lm-eval by name.
        include_path: Folder of lm-eval's task files, for `tasks` and for mergekit-evolve's configuration.
        objectives: What to search for, instead of the evaluator's own; several: a front.
        sampler, population, sigma, restarts: The optimizer; see docs/search.md.
        fidelity: "race", "full" or "auto".
        estimates: What is told of candidates that stopped: "auto" or "plain".
        asynchronous: No generations: whichever worker is free gets the next candidate.
        timeout: Seconds that a candidate may take.
        patience: Stop where the cost of so many candidates brought no better one.
        enqueue: Recipes' files, tried first.
        warm_start: A study over the same space, to begin from its best.
        starts: Try sources, uniform merge and published settings before what the sampler draws.
        controls: Also search each task vector alone, and at random.
        study: Its name; default SPACE-EVALUATOR-SEED.
        out: Its folder; default runs/STUDY.
        storage: URL of the database; default one SQLite file in `out`.
        workers: Processes side by side, on Ray; None: one per GPU, else per CPU; 0: this process alone.
        gpus_per_worker, address: The Ray cluster; see docs/cluster.md.
        prefix_memory: Gigabytes of each worker for what paths' common beginnings gave.
        progress: Show on stderr how it goes; or a `Watcher` that is told instead.

    Raises:
        InputError: what was given is wrong; nothing was started.
        EvoMergeError: every candidate failed, a source cannot be scored or has changed, or a disk is full.
        KeyboardInterrupt: it was asked to end (Ctrl-C); what is done is kept, and the same call goes on.
    """
    from evomerge.pipeline import Options
    from evomerge.pipeline import search as run
    from evomerge.report.outputs import hand_over
    from evomerge.study.workers import Cluster

    # `Options` and `Cluster` check what they are given, for the command line too, and take what is Python's here.
    options: Any = {
        "space": space, "models": models, "base": base, "evaluator": _with_function(evaluator), "tasks": tasks,
        "include_path": include_path, "study": study, "storage": storage, "out": out, "sampler": sampler, "seed": seed,
        "population": population, "sigma": sigma, "restarts": restarts, "controls": controls, "patience": patience,
        "enqueue": enqueue, "fidelity": fidelity, "starts": starts, "objectives": objectives,
        "asynchronous": asynchronous, "estimates": estimates, "timeout": timeout,
        "warm_start": warm_start.as_beginning() if isinstance(warm_start, Study) else warm_start,
    }  # fmt: skip
    asked = Options(
        budget=budget if isinstance(budget, Budget) else Budget.parse(str(budget)),
        cluster=Cluster(address, workers, gpus_per_worker),
        prefix_bytes=round(arguments.number("prefix_memory", prefix_memory) * 2**30),
        **options,
    )
    with _watched(progress) as (watcher, stop):
        outcome = run(asked, watcher, stop)
        hand_over(outcome, watcher.say)
    return Study.of(outcome)


def merge(
    recipe: Where | Mapping[str, Any] | Recipe | Chain,
    out: Where,
    *,
    overwrite: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    seed: int | None = None,
    card: bool = True,
) -> Built:
    """Build the checkpoint that a recipe describes: `evomerge merge`. The same recipe and sources give the same bytes.

        evomerge.merge({"merge_method": "linear", "models": [{"model": "./a", "parameters": {"weight": 1}}]}, "merged")

    Args:
        recipe: mergekit's YAML as a file; a mapping with its keys; or what `Study.recipe` gives.
        out: Folder to write, new or empty.
        overwrite: Replace what it holds.
        device: Where the arithmetic runs: "cpu", "cuda", ...
        threads: On the CPU; None: every usable core.
        seed: Of random masks; default the recipe's, else 0.
        card: Write a model card (README.md) beside the weights.

    Raises:
        InputError: the recipe, a source or `out` is wrong; nothing is written.
        EvoMergeError: a source changed meanwhile, or a disk is full.
    """
    from evomerge.merging.build import build
    from evomerge.publishing.merged import card_beside
    from evomerge.recipe import Step, load_chain, parse_chain

    root, out, device = None, arguments.path("out", out), arguments.text("device", device)
    overwrite, card = arguments.flag("overwrite", overwrite), arguments.flag("card", card)
    if threads is not None:
        threads = arguments.whole("threads", threads, 1)
    if seed is not None:
        seed = arguments.whole("seed", seed, 0, 2**63 - 1)
    if isinstance(recipe, Chain):
        chain = recipe
    elif isinstance(recipe, Recipe):
        chain = Chain.of([Step(None, recipe)])
    elif isinstance(recipe, Mapping):
        chain = parse_chain(_yaml(recipe), "<recipe>")
    elif isinstance(recipe, str | Path):
        chain, root = load_chain(recipe), Path(recipe).parent
    else:
        raise InputError(f"recipe = {describe(recipe)}: expected a file, a mapping with its keys, or a study's recipe")
    if seed is not None:
        chain = chain.with_extras(seed=seed)
    beside = card_beside if card else None
    return build(chain, out, root=root, overwrite=overwrite, device=device, threads=threads, beside=beside)


def fuse(
    fusion: Where,
    out: Where,
    *,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    progress: bool = True,
) -> Fused | FusedImages:
    """Train one model from several of any architecture and tokenizer: `evomerge fuse`. The same call goes on.

    Args:
        fusion: YAML file (`kind: fuse`); see docs/fusion.md. Of image models: `kind: fuse_images`, docs/images.md.
        out: Folder of everything that it makes; the checkpoint is `model` in it.
        workers, gpus_per_worker, address: As of `search`.
        progress: Show on stderr how it goes.

    Raises:
        InputError: the file, a model or a text is wrong; nothing was started.
        EvoMergeError: something failed on the way; what is done is kept.
        KeyboardInterrupt: it was asked to end (Ctrl-C).
    """
    from contextlib import nullcontext

    from evomerge.pipeline import FuseOptions, check_here, fuse_images, is_image_fusion
    from evomerge.pipeline import fuse as run
    from evomerge.report.fusion import write_fusion
    from evomerge.study.workers import Cluster
    from evomerge.watching.fusing import Fusing

    file, folder = arguments.path("fusion", fusion), arguments.path("out", out)
    progress = arguments.flag("progress", progress)
    options = FuseOptions(file, folder, Cluster(address, workers, gpus_per_worker))
    if is_image_fusion(file):
        from evomerge.report.images import write_images

        check_here(workers, address, gpus_per_worker)
        with Fusing() if progress else nullcontext() as training:
            made = fuse_images(file, folder, training)
        write_images(made)
        return made
    with _watched(progress) as (watcher, stop), Fusing() if progress else nullcontext() as training:
        fused = run(options, training, watcher, stop)
    write_fusion(fused)
    return fused


def evaluate(
    model: Where,
    evaluator: Content | None = None,
    *,
    tasks: Texts = (),
    include_path: Where | None = None,
    split: Split = "select",
    device: str | None = None,
) -> Evaluation:
    """Score a model as a search does, in this process: `evomerge evaluate`.

    Looking at "test" before the end of a search makes its figures a little too good.

    Args:
        model: Folder, hub id or zoo:NAME.
        evaluator: A YAML file, a preset's name, or a mapping with a file's keys; default the shipped "quickstart".
        tasks: Instead: tasks of lm-eval by name.
        include_path: Folder of lm-eval's task files, for `tasks`.
        split: "search", "select" or "test".
        device: torch's; None: CUDA where there is one.

    Raises:
        InputError: the model or the evaluator is wrong.
        CandidateError: it could not be scored.
    """
    from evomerge.comparison import interval
    from evomerge.evaluation import evaluator_for, load_evaluator
    from evomerge.pipeline.one_model import score_model
    from evomerge.pipeline.options import content

    model, names = arguments.text("model", model), arguments.texts("tasks", tasks)
    arguments.word("split", split, SPLITS)
    if device is not None:
        device = arguments.text("device", device)
    folder = None if include_path is None else arguments.path("include_path", include_path)
    if names and evaluator is not None:
        raise InputError("tasks and evaluator cannot both be given")
    if folder is not None and not names:
        raise InputError("include_path needs tasks; an evaluator names its own folder, by its key include_path")
    if names:
        file = evaluator_for(names, "tasks", folder)
    else:
        file = load_evaluator("quickstart" if evaluator is None else content("evaluator", _with_function(evaluator)))
    answer = score_model(model, file, split, device, lambda text: print(text, file=sys.stderr))
    assert answer.score is not None
    return Evaluation(model, file.name, split, answer.score, interval(answer.score))


@contextmanager
def _watched(progress: bool | Watcher) -> Iterator[tuple[Watcher, Stop]]:
    """Who is told how a search goes, and what a signal tells to end.

    Signals are taken in the main thread alone, as Python has it; elsewhere they are whose thread that is.
    """
    import threading

    from evomerge.study.stopping import Stop
    from evomerge.watching.progress import Progress
    from evomerge.watching.signals import stoppable

    progress = plain(progress)
    methods = [name for name in vars(Watcher) if not name.startswith("_")]
    if not isinstance(progress, bool) and (missing := [m for m in methods if not callable(getattr(progress, m, None))]):
        raise InputError(
            f"progress = {describe(progress)}: expected True, False, or an object with the methods of "
            f"evomerge.study.watcher.Watcher; it lacks {', '.join(missing)}"
        )
    shown = Progress() if progress is True else None
    watcher: Watcher = shown or (Silent() if isinstance(progress, bool) else progress)
    if threading.current_thread() is not threading.main_thread():
        yield watcher, Stop()
    elif shown is None:
        with stoppable() as stop:
            yield watcher, stop
    else:
        with stoppable(shown.shows_ending) as stop, shown:
            yield watcher, stop


def _yaml(recipe: Mapping[str, Any]) -> str:
    try:
        return yaml.safe_dump(plain(recipe), sort_keys=False)
    except yaml.YAMLError as e:
        what = describe(e.args[-1] if e.args else recipe)
        raise InputError(f"<recipe>: holds {what}; expected texts, numbers, lists and mappings alone") from None


def _with_function(evaluator: Content | None) -> Content | None:
    """An evaluator whose function is named by its file: workers are other processes, which load it from there."""
    if not isinstance(evaluator, Mapping) or not callable(function := evaluator.get("function")):
        return evaluator
    return {**evaluator, "function": _named(function)}


def _named(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", repr(function))
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        file = None
    if file is None or not name.isidentifier() or not Path(file).is_file():
        raise EvaluatorError(
            f"<evaluator>: function = {name}: expected a function that stands in a Python file, not within another and "
            'not in a notebook, as workers are other processes that load it from there; or its name, "FILE.py:NAME"'
        )
    return f"{Path(file).resolve()}:{name}"
