"""lm-eval's tasks, loaded and turned into requests once; each candidate only runs the model.

What `lm_eval.evaluate` does per call (task loading, request building, environment info) is done once per worker here;
requests, filters and metrics are lm-eval's own (checked by a test against `lm_eval.simple_evaluate`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from evomerge.errors import CandidateError, EvaluatorError, choose, first_line
from evomerge.evaluation.config import Split
from evomerge.evaluation.evaluator import settings
from evomerge.evaluation.file import EvaluatorFile
from evomerge.evaluation.finite import NotFiniteError, finite_logits, first_not_finite, where_not_finite
from evomerge.evaluation.goals import LANGUAGE, LENGTH
from evomerge.evaluation.greedy import Drafts
from evomerge.evaluation.language import identifier_version, in_language
from evomerge.evaluation.obstacles import right_answer
from evomerge.evaluation.pictures import picture_hashes
from evomerge.evaluation.results import measure_of, task_score
from evomerge.evaluation.seeds import seed_all
from evomerge.evaluation.splits import Places, content_id
from evomerge.evaluation.tasks import Prepared, build, greedily, load, prepare
from evomerge.evaluation.texts import item_text, templates_compiled_once
from evomerge.evaluation.wrapper import Wrapper, quiet
from evomerge.merging.allocation import out_of_memory, release
from evomerge.score import Score, TaskScore


class HarnessEvaluator:
    """`kind: lm_eval`. See `Evaluator` for the contract."""

    def __init__(self, file: EvaluatorFile, say: Callable[[str], None] | None = None) -> None:
        self._file = file
        self._config = file.config
        loaded = load(file)
        several = [entry for entry, name, *_ in loaded if name != entry.name]
        self._groups = {entry.name: [name for other, name, *_ in loaded if other is entry] for entry in several}
        self._tasks = [prepare(file, *entry) for entry in loaded]
        self._sees = any(t.sees for t in self._tasks)
        if self._config.model_args is not None and not self._sees:
            raise EvaluatorError(
                f"{file.file}: model_args: are options of tasks with pictures, and none has any; leave it out"
            )
        self._wrapper = Wrapper(file.config, file.file if self._sees else None)
        self._say = say or (lambda text: None)

    @property
    def sees(self) -> bool:
        """See `Evaluator.sees`: a task has pictures (`doc_to_image`)."""
        return self._sees

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
                # With a picture's hash: one question about two pictures is two items.
                found[t.name] = tuple(
                    " ".join([item_text(t.task, doc), *(picture_hashes(t.task.doc_to_image(doc)) if t.sees else ())])
                    for doc in (docs[i.index] for i in t.items[split])
                )
        return found

    def definition(self) -> dict[str, str]:
        """Hash of each task as lm-eval has it (templates, functions' source, metrics), lm-eval's version included."""
        found = {}
        for t in self._tasks:
            task = t.task.dump_config()
            # lm-eval adds where the file lies, which another machine or a moved folder has otherwise.
            task["metadata"] = {k: v for k, v in (task.get("metadata") or {}).items() if k != "config_source"}
            told = {"lm_eval": version("lm_eval"), "metric": t.metric, "task": task}
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

    def _version(self, task: Prepared) -> dict[str, Any]:
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
                why = first_line(e)
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
                task.requests[split] = build(task, split, lm, self._config)
        seed_all(self._config.seed)
        read = [t.name for t in tasks if t.greedy and split == "search"]
        requests: dict[tuple[str, int], list[Any]] = {}
        for task in (t for t in tasks if t.name not in read):
            for request in task.chosen(split, only)[1]:
                request.resps, request.filtered_resps = [], {}
                requests.setdefault(_kind(request), []).extend([request] * request.repeats)
        try:
            with finite_logits(model), torch.inference_mode():
                for (kind, _), batch in requests.items():
                    with quiet():
                        answers = getattr(lm, kind)(batch)
                    for request, answer in zip(batch, answers, strict=True):
                        request.resps.append(answer)
                scores = {task.name: self._read(task, lm, only) for task in tasks if task.name in read}
        except NotFiniteError as e:
            raise CandidateError(f"{e}{self._at(model, lm, tasks, split, only)}") from None
        found = [s for t in tasks for s in ([scores[t.name]] if t.name in scores else self._scores(t, split, only))]
        return Score(tuple(found))

    def _at(self, model: Any, lm: Any, tasks: Sequence[Prepared], split: Split, only: Places | None) -> str:
        """The task and the item on which the logits are not finite, in words."""
        parts = [
            (task, place) for task in tasks for place in (range(len(task.items[split])) if only is None
            else only[task.name])
        ]  # fmt: skip

        def run(some: Sequence[tuple[Prepared, int]]) -> None:
            for task in dict.fromkeys(t.name for t, _ in some):
                prepared = next(t for t in tasks if t.name == task)
                places = tuple(p for t, p in some if t.name == task)
                if prepared.drafts is not None and split == "search":
                    prepared.drafts.results(places)
                    continue
                requests = prepared.chosen(split, {task: places})[1]
                with quiet():
                    for kind in dict.fromkeys(map(_kind, requests)):
                        getattr(lm, kind[0])([r for r in requests if _kind(r) == kind])

        found = first_not_finite(model, parts, run)
        item = None
        if found is not None:
            task, place = found
            item = f'task "{task.name}", item {task.items[split][place].index}'
        return where_not_finite(model, item)

    def _forget_drafts(self) -> None:
        for task in self._tasks:
            task.drafts = None

    def _read(self, task: Prepared, lm: Any, only: Places | None) -> TaskScore:
        """The search split, or some of its items, by greedy likelihood."""
        # How long a prompt may be is the model's, and with every path another model may say it.
        if task.drafts is None or task.drafts.length != lm.max_length:
            requests = task.requests["search"]
            answers = [right_answer(task.task, r.doc) for r in requests]
            delimiter = task.task.config.target_delimiter
            task.drafts = Drafts(requests, answers, delimiter, lm, greedily(self._file, task.name))
        with quiet():
            results = task.drafts.results(None if only is None else only[task.name])
        # Named apart, for a figure of this kind is never one of a table of results: those generate.
        return task_score(task.name, f"{task.metric} (greedy likelihood)", results, task.weight, task.higher,
                          task.chosen("search", only)[0], task.task.aggregation()[task.metric])  # fmt: skip

    def _scores(self, task: Prepared, split: Split, only: Places | None) -> list[TaskScore]:
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


def _kind(request: Any) -> tuple[str, int]:
    """What requests have in common that lm-eval can be given together: it goes by the first one's whether all of them
    have pictures, which are one argument more."""
    return request.request_type, len(request.args)
