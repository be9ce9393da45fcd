"""lm-eval's tasks, loaded and turned into requests once; each candidate only runs the model.

What `lm_eval.evaluate` does per call (task loading, request building, environment info) is done once per worker here;
requests, filters and metrics are lm-eval's own (checked by a test against `lm_eval.simple_evaluate`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from evomerge.errors import CandidateError, EvaluatorError, choose
from evomerge.evaluation.config import EvaluatorFile, Split, TaskConfig
from evomerge.evaluation.evaluator import settings
from evomerge.evaluation.finite import NotFiniteError, finite_logits, first_not_finite, where_not_finite
from evomerge.evaluation.goals import LANGUAGE, LENGTH
from evomerge.evaluation.greedy import Drafts
from evomerge.evaluation.language import check_language, identifier_version, in_language
from evomerge.evaluation.obstacles import language_obstacles, obstacles, right_answer
from evomerge.evaluation.results import measure_of, task_score
from evomerge.evaluation.seeds import seed_all
from evomerge.evaluation.splits import Item, Places, content_id, divide
from evomerge.evaluation.texts import item_text, templates_compiled_once
from evomerge.evaluation.wrapper import Wrapper, quiet
from evomerge.merging.allocation import out_of_memory, release
from evomerge.score import Score, TaskScore


@dataclass
class _Prepared:
    """A task with what is fixed for every candidate.

    Attributes:
        greedy: Whether the search split is scored by greedy likelihood.
        drafts: For that, what is fixed while the live model is the same one.
        searched: Whether it is run on the search split.
        measures: What is measured of its answers beside the metric.
        language: The one that answers must be in to count, if any.
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


class HarnessEvaluator:
    """`kind: lm_eval`. See `Evaluator` for the contract."""

    def __init__(self, file: EvaluatorFile, say: Callable[[str], None] | None = None) -> None:
        self._file = file
        self._config = file.config
        loaded = self._load()
        several = [entry for entry, name, *_ in loaded if name != entry.name]
        self._groups = {entry.name: [name for other, name, *_ in loaded if other is entry] for entry in several}
        self._tasks = [self._prepare(*entry) for entry in loaded]
        self._wrapper = Wrapper(file.config)
        self._say = say or (lambda text: None)

    def items(self, split: Split) -> Mapping[str, tuple[str, ...]]:
        """Ids of each task's items in a split."""
        found = {}
        for t in self._tasks:
            found[t.name] = tuple(i.id for i in t.items[split])
            if t.language is not None and split != "search":
                found[t.share] = found[t.name]
        return found

    def searched(self) -> Sequence[str]:
        """See `Evaluator.searched`."""
        return [t.name for t in self._tasks if t.searched]

    def groups(self) -> Mapping[str, Sequence[str]]:
        """See `Evaluator.groups`."""
        return self._groups

    def texts(self, split: Split) -> Mapping[str, tuple[str, ...]]:
        """See `Evaluator.texts`."""
        found = {}
        with templates_compiled_once():
            for t in self._tasks:
                docs = t.task.eval_docs
                found[t.name] = tuple(item_text(t.task, docs[i.index]) for i in t.items[split])
        return found

    def definition(self) -> dict[str, str]:
        """Hash of each task as lm-eval has it (templates, functions' source, metrics), lm-eval's version included."""
        found = {}
        for t in self._tasks:
            told = {"lm_eval": version("lm_eval"), "metric": t.metric, "task": t.task.dump_config()}
            language = {"language": [t.language, identifier_version()]} if t.language is not None else {}
            found[t.name] = content_id(told | language)
        return found

    def measures(self, task: str) -> Sequence[str]:
        """Of generated answers their length, and the share in the language where one is asked for."""
        found = next((t for t in self._tasks if t.name == task), None)
        generated = found is not None and not found.greedy and found.task.get_config("output_type") == "generate_until"
        if found is None or not generated:
            return ()
        return (LENGTH,) if found.language is None else (LENGTH, LANGUAGE)

    def versions(self) -> dict[str, str]:
        """See `Evaluator.versions`."""
        shared = settings(self._file)
        return {t.name: content_id(shared | self._version(t)) for t in self._tasks}

    def _version(self, task: _Prepared) -> dict[str, Any]:
        found = {"task": task.name, "definition": self.definition()[task.name], "filter": task.filter,
                 "higher": task.higher, "greedy": task.greedy}  # fmt: skip
        if task.task.get_config("num_fewshot"):
            # The examples of a prompt are drawn one item after the other: other items, other examples.
            found["items"] = [i.id for i in task.items["search"]]
        return found

    def evaluate(self, model: Any, tokenizer: Any, split: Split, only: Places | None = None) -> Score:
        """Score a model on a split; see `Evaluator.evaluate`. Where memory runs out, again with half of the batch."""
        too_large: int | None = None
        while True:
            try:
                score = self._evaluated(model, tokenizer, split, only)
                if too_large is not None:
                    self._say(f"out of memory with batches of {too_large} items: {self._wrapper.batch} from now on")
                return score
            except Exception as e:
                if not out_of_memory(e):
                    raise
                why = _first_line(e)
            # After the block: inside, the error's frames still hold the tensors that there was no room for.
            release()
            too_large = too_large or self._wrapper.batch
            self._wrapper.halve(why)
            self._forget_drafts()  # they are batched already

    def _evaluated(self, model: Any, tokenizer: Any, split: Split, only: Places | None) -> Score:
        if not self._wrapper.wraps(model):
            self._forget_drafts()  # their tokens are the tokenizer's, and where they are cut is the model's
        lm = self._wrapper.of(model, tokenizer)
        tasks = [t for t in self._tasks if (t.searched or split != "search") and (only is None or only.get(t.name))]
        for task in tasks:
            if split not in task.requests:
                task.requests[split] = self._build(task, split, lm)
        seed_all(self._config.seed)
        read = [t.name for t in tasks if t.greedy and split == "search"]
        requests: dict[str, list[Any]] = {}
        for task in (t for t in tasks if t.name not in read):
            for request in task.chosen(split, only)[1]:
                request.resps, request.filtered_resps = [], {}
                requests.setdefault(request.request_type, []).extend([request] * request.repeats)
        try:
            with finite_logits(model), torch.inference_mode():
                for kind, batch in requests.items():
                    with quiet():
                        answers = getattr(lm, kind)(batch)
                    for request, answer in zip(batch, answers, strict=True):
                        request.resps.append(answer)
                scores = {task.name: self._read(task, lm, only) for task in tasks if task.name in read}
        except NotFiniteError as e:
            raise CandidateError(f"{e}{self._at(model, lm, tasks, split, only)}") from None
        found = [s for t in tasks for s in ([scores[t.name]] if t.name in scores else self._scores(t, split, only))]
        return Score(tuple(found))

    def _at(self, model: Any, lm: Any, tasks: Sequence[_Prepared], split: Split, only: Places | None) -> str:
        """The task and the item on which the logits are not finite, in words."""
        parts = [
            (task, place) for task in tasks for place in (range(len(task.items[split])) if only is None
            else only[task.name])
        ]  # fmt: skip

        def run(some: Sequence[tuple[_Prepared, int]]) -> None:
            for task in dict.fromkeys(t.name for t, _ in some):
                prepared = next(t for t in tasks if t.name == task)
                places = tuple(p for t, p in some if t.name == task)
                if prepared.drafts is not None and split == "search":
                    prepared.drafts.results(places)
                    continue
                requests = prepared.chosen(split, {task: places})[1]
                with quiet():
                    for kind in dict.fromkeys(r.request_type for r in requests):
                        getattr(lm, kind)([r for r in requests if r.request_type == kind])

        found = first_not_finite(model, parts, run)
        item = None
        if found is not None:
            task, place = found
            item = f'task "{task.name}", item {task.items[split][place].index}'
        return where_not_finite(model, item)

    def _forget_drafts(self) -> None:
        for task in self._tasks:
            task.drafts = None

    def _load(self) -> list[tuple[TaskConfig, str, Any, float]]:
        """lm-eval's task objects: (what asked for it, its name, the task, its share of the weight)."""
        from lm_eval.tasks import TaskManager

        file, config = self._file, self._config
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
                raise EvaluatorError(f'{file.file}: task "{entry.name}" cannot be loaded: {_first_line(e)}') from e
            loaded += [(entry, name, task, entry.weight / len(tasks)) for name, task in tasks.items()]
        return loaded

    def _prepare(self, entry: TaskConfig, name: str, task: Any, weight: float) -> _Prepared:
        file, config = self._file, self._config
        if getattr(task, "UNSAFE_CODE", False) and not config.confirm_run_unsafe_code:
            raise EvaluatorError(
                f'{file.file}: task "{name}" runs generated code; set confirm_run_unsafe_code: true to allow it'
            )
        if getattr(task, "MULTIMODAL", False):
            raise EvaluatorError(f'{file.file}: task "{name}" needs images or audio, which are not supported yet')
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
        items = divide(docs, config.splits, config.split_seed, f'{file.file}: task "{name}"')
        if entry.greedy_likelihood:
            found = list(obstacles(task, metric, chosen, (docs[i.index] for i in items["search"])))
            if found:
                raise EvaluatorError("\n".join(f"{self._greedily(name)}: {line}" for line in found))
        measures = config.measures(name)
        if measures and entry.greedy_likelihood:
            raise EvaluatorError(
                f"{self._greedily(name)}: generates no answers, whose {measures[0]} {name}.{measures[0]} is"
            )
        if measures and task.get_config("output_type") != "generate_until":
            raise EvaluatorError(
                f'{file.file}: {name}.{measures[0]}: task "{name}" is {task.get_config("output_type")}; only '
                "generated answers (generate_until) have one"
            )
        return _Prepared(name, task, metric, chosen, weight, higher, items, entry.greedy_likelihood, entry.language,
                         searched=config.searched(entry, name), measures=measures)  # fmt: skip

    def _build(self, task: _Prepared, split: Split, lm: Any) -> list[Any]:
        """lm-eval's requests for the items of a split."""
        config = self._config
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

    def _read(self, task: _Prepared, lm: Any, only: Places | None) -> TaskScore:
        """The search split, or some of its items, by greedy likelihood."""
        # How long a prompt may be is the model's, and with every path another model may say it.
        if task.drafts is None or task.drafts.length != lm.max_length:
            requests = task.requests["search"]
            answers = [right_answer(task.task, r.doc) for r in requests]
            delimiter = task.task.config.target_delimiter
            task.drafts = Drafts(requests, answers, delimiter, lm, self._greedily(task.name))
        with quiet():
            results = task.drafts.results(None if only is None else only[task.name])
        # Named apart, for a figure of this kind is never one of a table of results: those generate.
        return task_score(task.name, f"{task.metric} (greedy likelihood)", results, task.weight, task.higher,
                          task.chosen("search", only)[0], task.task.aggregation()[task.metric])  # fmt: skip

    def _greedily(self, name: str) -> str:
        return f'{self._file.file}: task "{name}": greedy_likelihood: true'

    def _scores(self, task: _Prepared, split: Split, only: Places | None) -> list[TaskScore]:
        """A task's score from its requests, and what else is measured of its answers.

        Where a language is asked for that is the share of answers in it, but not while searching.
        """
        items, requests = task.chosen(split, only)
        task.task._instances = requests
        task.task.apply_filters()
        by_item: dict[int, list[Any]] = {}
        for request in requests:
            by_item.setdefault(request.doc_id, []).append(request)
        raw: list[Any] = []
        texts: list[list[str]] = []
        with task.remembering():
            for place in sorted(by_item):
                answers = sorted(by_item[place], key=lambda r: r.idx)
                found = task.task.process_results(answers[0].doc, [r.filtered_resps[task.filter] for r in answers])
                if task.metric not in found:
                    raise EvaluatorError(
                        f'task "{task.name}" returned no "{task.metric}"; {choose(task.metric, list(found))}'
                    )
                raw.append(found[task.metric])
                texts.append([str(text) for r in answers for text in r.resps])
        aggregate = task.task.aggregation()[task.metric]
        metric, shares = task.metric, []
        if task.language is not None:
            # The answer as it was generated: a filter may have left a bare number of it.
            spoken = [in_language(answers[0], task.language) for answers in texts]
            raw = [result if there else 0.0 for result, there in zip(raw, spoken, strict=True)]
            metric = f"{task.metric}, answers in {task.language}"
            if split != "search":
                shares.append(task_score(task.share, "share of answers", spoken, 0.0, True, items, aggregate))
        score = task_score(task.name, metric, raw, task.weight, task.higher, items, aggregate)
        return [score, *shares, *(measure_of(task.name, m, texts, items, task.language) for m in task.measures)]


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def _short_choice(name: str, known: Iterable[str]) -> str:
    choices = list(known)
    return choose(name, choices).partition(" Valid:")[0] if len(choices) > 24 else choose(name, choices)
