"""lm-eval's tasks as an evaluator asks for them: loaded, checked, and turned into requests.

What depends on the candidate is in `harness`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from evomerge.errors import EvaluatorError, choose, first_line
from evomerge.evaluation.config import EvaluatorConfig, Split, TaskConfig
from evomerge.evaluation.file import EvaluatorFile
from evomerge.evaluation.greedy import Drafts
from evomerge.evaluation.language import check_language
from evomerge.evaluation.obstacles import language_obstacles, obstacles
from evomerge.evaluation.pictures import check_pillow, lacks_pillow, picture_hashes
from evomerge.evaluation.splits import Item, Places, divide
from evomerge.evaluation.wrapper import quiet


@dataclass
class Prepared:
    """A task with what is fixed for every candidate.

    Attributes:
        greedy: Whether the search split is scored by greedy likelihood.
        drafts: For that, what is fixed while the live model is the same one.
        searched: Whether it is run on the search split.
        measures: What is measured of its answers beside the metric.
        language: The one that answers must be in to count, if any.
        sees: Whether its items have pictures.
    """

    name: str
    task: Any
    metric: str
    filter: str
    weight: float
    higher: bool
    items: Mapping[Split, list[Item]]
    greedy: bool = False
    language: str | None = None
    drafts: Drafts | None = None
    searched: bool = True
    measures: Sequence[str] = ()
    requests: dict[Split, list[Any]] = field(default_factory=dict)
    rendered: dict[tuple[str, int], Any] = field(default_factory=dict)
    sees: bool = False

    @property
    def share(self) -> str:
        """What the share of answers in the language is called."""
        return f"{self.name} in {self.language}"

    def chosen(self, split: Split, only: Places | None) -> tuple[list[Item], list[Any]]:
        """Some of a split's items (all where `only` is None), and their requests."""
        items, requests = self.items[split], self.requests[split]
        if only is None:
            return items, requests
        places = only[self.name]
        wanted = set(places)
        # lm-eval counts the documents that it was given, not those of the data.
        return [items[place] for place in places], [r for r in requests if r.doc_id in wanted]

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Inside the block, a document's target and choices are rendered once for all candidates.

        lm-eval compiles their templates anew for every document it scores: half of the time of a candidate on tiny
        models. Only documents of `requests` are asked for in here; those live on, so that their ids stay theirs.
        """
        names = [n for n in ("doc_to_target", "doc_to_choice") if hasattr(self.task, n)]
        for name in names:
            setattr(self.task, name, self._remembered(name, getattr(self.task, name)))
        try:
            yield
        finally:
            for name in names:
                delattr(self.task, name)

    def _remembered(self, name: str, render: Callable[..., Any]) -> Callable[..., Any]:
        def once(doc: Any, *args: Any) -> Any:
            key = (name, id(doc))
            if args or key in self.rendered:
                return render(doc, *args) if args else copy.copy(self.rendered[key])
            self.rendered[key] = render(doc)
            return copy.copy(self.rendered[key])

        return once


def load(file: EvaluatorFile) -> list[tuple[TaskConfig, str, Any, float]]:
    """lm-eval's task objects: (what asked for it, its name, the task, its share of the weight).

    Raises:
        EvaluatorError: one is unknown, cannot be loaded, or is asked for twice.
    """
    from lm_eval.tasks import TaskManager

    config = file.config
    folder = str(file.path(config.include_path, "include_path")) if config.include_path else None
    names = [t.name for t in config.tasks]
    with quiet():
        manager = TaskManager(include_path=folder, include_defaults=False)
        if any(n not in manager.all_tasks for n in names):
            # lm-eval's own 14,000 tasks take some 20 s to index: only when they are needed.
            manager = TaskManager(include_path=folder, include_defaults=True)
    unknown = [n for n in names if n not in manager.all_tasks]
    if unknown:
        lines = [f'{file.file}: unknown task "{n}"; {_short_choice(n, manager.all_tasks)}' for n in unknown]
        raise EvaluatorError("\n".join(lines))
    loaded: list[tuple[TaskConfig, str, Any, float]] = []
    for entry in config.tasks:
        try:
            with quiet():
                tasks = manager.load([entry.name])["tasks"]
        except Exception as e:  # lm-eval and datasets raise whatever they meet; the user needs the task's name
            if lacks_pillow(e):
                check_pillow(f'{file.file}: task "{entry.name}"')
            raise EvaluatorError(f'{file.file}: task "{entry.name}" cannot be loaded: {first_line(e)}') from e
        for name in tasks:
            if (other := next((e for e, there, *_ in loaded if there == name), None)) is not None:
                raise EvaluatorError(
                    f'{file.file}: task "{name}" is in "{other.name}" and in "{entry.name}"; expected each task once'
                )
        loaded += [(entry, name, task, entry.weight / len(tasks)) for name, task in tasks.items()]
    return loaded


def prepare(file: EvaluatorFile, entry: TaskConfig, name: str, task: Any, weight: float) -> Prepared:
    """A task with its metric and its items, checked against what is asked of it; arguments as `load` gives them.

    Raises:
        EvaluatorError: it has not what is asked for.
    """
    config = file.config
    if getattr(task, "UNSAFE_CODE", False) and not config.confirm_run_unsafe_code:
        raise EvaluatorError(
            f'{file.file}: task "{name}" runs generated code; set confirm_run_unsafe_code: true to allow it'
        )
    sees = bool(getattr(task, "MULTIMODAL", False))
    if sees:
        _check_seen(task, entry, config, f'{file.file}: task "{name}"')
    if config.gen_kwargs and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=config.gen_kwargs, update=True)
    if task.get_config("num_fewshot") != 0:
        wanted = config.num_fewshot if config.num_fewshot is not None else task.get_config("num_fewshot")
        task.set_config(key="num_fewshot", value=wanted or 0)
    metrics = list(task.aggregation())
    filters = [f.name for f in getattr(task, "_filters", ())] or ["none"]
    metric, _, chosen = (entry.metric or metrics[0]).partition(",")
    if metric not in metrics:
        raise EvaluatorError(f'{file.file}: task "{name}" has no metric "{metric}"; {choose(metric, metrics)}')
    if chosen and chosen not in filters:
        raise EvaluatorError(f'{file.file}: task "{name}" has no filter "{chosen}"; {choose(chosen, filters)}')
    higher = entry.higher_is_better
    if higher is None:
        higher = bool(task.higher_is_better().get(metric, True))
    if entry.language is not None:
        where = f'{file.file}: task "{name}"'
        check_language(entry.language, where)
        if lines := list(language_obstacles(task, metric, higher)):
            raise EvaluatorError("\n".join(f"{where}: language: {line}" for line in lines))
    docs, chosen = task.eval_docs, chosen or filters[0]
    # An item is what a model is shown: the pictures themselves too, where the data has but their names.
    contents = _seen(task, docs, f'{file.file}: task "{name}"') if sees else docs
    items = divide(contents, config.splits, config.split_seed, f'{file.file}: task "{name}"')
    if entry.greedy_likelihood:
        found = list(obstacles(task, metric, chosen, (docs[i.index] for i in items["search"])))
        if found:
            raise EvaluatorError("\n".join(f"{greedily(file, name)}: {line}" for line in found))
    measures = config.measures(name)
    if measures and entry.greedy_likelihood:
        raise EvaluatorError(
            f"{greedily(file, name)}: generates no answers, whose {measures[0]} {name}.{measures[0]} is"
        )
    if measures and task.get_config("output_type") != "generate_until":
        raise EvaluatorError(
            f'{file.file}: {name}.{measures[0]}: task "{name}" is {task.get_config("output_type")}; only '
            "generated answers (generate_until) have one"
        )
    return Prepared(name, task, metric, chosen, weight, higher, items, entry.greedy_likelihood, entry.language,
                     searched=config.searched(entry, name), measures=measures, sees=sees)  # fmt: skip


def _seen(task: Any, docs: Iterable[Mapping[str, Any]], where: str) -> Iterator[dict[str, Any]]:
    """Documents with hashes of their pictures, all of which are decoded for it.

    Raises:
        EvaluatorError: one of them cannot be.
    """
    for number, doc in enumerate(docs):
        try:
            hashes = picture_hashes(task.doc_to_image(doc))
        except Exception as e:  # whatever Pillow, datasets or a function of the task's raises
            raise EvaluatorError(f"{where}: item {number}: its pictures cannot be read: {first_line(e)}") from e
        yield {**doc, "pictures": hashes}


def _check_seen(task: Any, entry: TaskConfig, config: EvaluatorConfig, where: str) -> None:
    """Refuse what lm-eval's models that see cannot do.

    Raises:
        EvaluatorError: sounds, another kind of request than generation, greedy likelihood, examples, or no Pillow.
    """
    if task.config.doc_to_image is None:
        raise EvaluatorError(f"{where} has sounds (doc_to_audio), which are not supported yet; expected pictures")
    kind = task.get_config("output_type") or task.OUTPUT_TYPE
    if kind != "generate_until":
        raise EvaluatorError(
            f"{where} has pictures and is {kind}, which lm-eval has for texts alone; expected generate_until"
        )
    if entry.greedy_likelihood:
        raise EvaluatorError(
            f"{where}: greedy_likelihood: true is for texts alone, and the task has pictures; leave it out"
        )
    own = task.get_config("num_fewshot")
    shots = own if own == 0 or config.num_fewshot is None else config.num_fewshot
    if shots:
        raise EvaluatorError(
            f"{where} has pictures, and num_fewshot = {shots}: lm-eval shows the pictures of no examples; expected 0, "
            "here or in the task"
        )
    check_pillow(where)


def build(task: Prepared, split: Split, lm: Any, config: EvaluatorConfig) -> list[Any]:
    """lm-eval's requests for the items of a split."""
    # lm-eval's few-shot sampler goes on where it stopped: without a new seed, prompts would drift on reuse.
    task.task.set_fewshot_seed(config.seed)
    with quiet():
        task.task.build_all_requests(
            samples=[i.index for i in task.items[split]],
            rank=0,
            world_size=1,
            system_instruction=config.system_instruction,
            apply_chat_template=bool(config.apply_chat_template),
            fewshot_as_multiturn=config.fewshot_as_multiturn,
            chat_template=lm.apply_chat_template if config.apply_chat_template else None,
            tokenizer_name=lm.tokenizer_name if config.apply_chat_template else "",
        )
    return list(task.task.instances)


def greedily(file: EvaluatorFile, name: str) -> str:
    """What messages call a task's greedy likelihood."""
    return f'{file.file}: task "{name}": greedy_likelihood: true'


def _short_choice(name: str, known: Iterable[str]) -> str:
    choices = list(known)
    return choose(name, choices).partition(" Valid:")[0] if len(choices) > 24 else choose(name, choices)
