"""`kind: command`: a program in another environment scores the candidate, saved as a plain checkpoint.

It is run without a shell, in the folder of the evaluator's file, and prints JSON (or writes it to {output}):

    {"TASK": 0.42}                          a number for the task
    {"TASK": {"ITEM_ID": 1.0, ...}}         with `items: FILE.jsonl`: a number for each of the items in {items}
    {"TASK": [1.0, 0.0, ...]}               the same, in their order

Anything else is a candidate that failed, with the reason.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from evomerge.errors import CandidateError, DiskFullError, EvaluatorError, EvoMergeError, choose
from evomerge.evaluation.config import Split, TaskConfig
from evomerge.evaluation.file import EvaluatorFile
from evomerge.evaluation.finite import not_finite_weight
from evomerge.evaluation.items import ItemEvaluator
from evomerge.evaluation.keeper import Keeper
from evomerge.evaluation.placeholders import filled
from evomerge.evaluation.process import environment, run
from evomerge.evaluation.returned import kind, score_of
from evomerge.evaluation.room import CANDIDATE, places
from evomerge.evaluation.splits import Item, Places
from evomerge.merging.scratch import scratch_folder
from evomerge.score import Score, TaskScore

# The key under which each line of {items} has the item's id.
ID = "evomerge_id"


class CommandEvaluator(ItemEvaluator):
    """`kind: command`. See `Evaluator` for the contract, and `SavedEvaluator` for what it has beside it."""

    def __init__(self, file: EvaluatorFile, say: Callable[[str], None] | None = None) -> None:
        super().__init__(file)
        self._command = file.config.command or []
        self._own = {name: _value(file, name, value) for name, value in file.config.env.items()}
        self._hidden = [v for n, v in self._own.items() if file.config.env[n].startswith("$") and len(v) > 3]
        self._keeper = Keeper()
        if file.config.scratch is not None and not Path(file.config.scratch).expanduser().is_dir():
            raise EvaluatorError(
                f"{file.file}: scratch = {file.config.scratch}: no such folder; expected one that exists"
            )
        self._program()

    def evaluate(self, model: Any, tokenizer: Any, split: Split, only: Places | None = None) -> Score:
        """Save a live model and score it; see `Evaluator.evaluate`.

        Raises:
            EvaluatorError: some items are asked for, and the command brings its own.
            CandidateError: weights are not finite, or the command fails, takes too long or prints something else.
            EvoMergeError: there is no room for the model anywhere.
        """
        if (bad := not_finite_weight(model)) is not None:
            raise CandidateError(f'the weight "{bad}" holds NaN or infinite values')

        def write(folder: Path) -> None:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

        with self.saved(write, sum(p.nbytes for p in model.parameters())) as folder:
            return self.evaluate_saved(folder, split, only)

    @contextmanager
    def saved(self, write: Callable[[Path], None], needed: int, place: Path | None = None) -> Iterator[Path]:
        """A checkpoint's folder, on the memory disk where it has room; removed at the end.

        Args:
            write: Writes it into the folder it is given.
            needed: Bytes of its weights.
            place: The only folder where it may be made.

        Raises:
            EvoMergeError: there is no room for it anywhere.
        """
        scratch = self._config.scratch
        chosen = None if scratch is None else Path(scratch).expanduser()
        full = []
        for found in places(needed, chosen, place):
            with ExitStack() as stack:
                folder = stack.enter_context(scratch_folder(found, CANDIDATE, "part"))
                stack.enter_context(self._keeper.folder(folder))
                try:
                    write(folder / "model")
                except DiskFullError:  # others fill it too: the next one
                    full.append(str(found))
                    continue
                yield folder / "model"
                return
        raise EvoMergeError(
            f"no room to save a candidate of {needed:,} bytes: {' and '.join(full)} became full meanwhile; free some, "
            "and give the same command again"
        )

    def evaluate_saved(self, model: Path, split: Split, only: Places | None = None) -> Score:
        """Score a checkpoint; see `evaluate`."""
        config = self._config
        if only is not None and not self._items.given:
            raise EvaluatorError(f"{self._file.file}: command: it brings its own items, so no part of them can be run")
        items = self._items.chosen(split, only)
        with scratch_folder(Path(tempfile.gettempdir()), CANDIDATE, "part") as folder, self._keeper.folder(folder):
            listed, output = folder / "items.jsonl", folder / "output.json"
            listed.write_text("".join(self._line(item) for item in items), encoding="utf-8")
            values = {
                "model": str(model.resolve()), "items": str(listed), "output": str(output), "seed": str(config.seed),
                "split": split,
            }  # fmt: skip
            command = [self._program(), *(filled(argument, values) for argument in self._command[1:])]
            env = environment(self._own)
            where = self._file.folder.resolve()
            ended = run(command, env, where, folder, config.timeout, self._keeper, self._hidden)
            if ended.code:
                how = f"ended with exit status {ended.code}" if ended.code > 0 else f"was ended by signal {-ended.code}"
                raise self._wrong(how, ended.tail)
            text = ended.out
            if any("{output}" in argument for argument in self._command):
                if not output.is_file():
                    raise self._wrong("wrote no {output}", ended.tail)
                text = output.read_text(encoding="utf-8", errors="replace")
        try:
            return self._score(_parsed(text), items, split)
        except CandidateError as e:
            raise CandidateError(str(e) + (f"; its stderr ends: {ended.tail}" if ended.tail else "")) from None

    def _line(self, item: Item) -> str:
        return json.dumps(self._items.contents[item.index] | {ID: item.id}, ensure_ascii=False) + "\n"

    def _score(self, returned: Any, items: Sequence[Item], split: Split) -> Score:
        tasks = self._config.tasks
        names = [t.name for t in tasks]
        shown = [t for t in tasks if self._config.searched(t) or split != "search"]
        if not isinstance(returned, dict):
            raise CandidateError(f"the command printed {kind(returned)}; expected an object with {', '.join(names)}")
        for name in returned:
            if name not in names:
                raise CandidateError(f'the command printed a score for "{name}", no task of it; {choose(name, names)}')
        missing = [t.name for t in shown if t.name not in returned]
        if missing:
            raise CandidateError(f'the command printed nothing for task "{missing[0]}"')
        return Score(tuple(self._task_score(t, returned[t.name], items, split) for t in shown))

    def _task_score(self, task: TaskConfig, found: Any, items: Sequence[Item], split: Split) -> TaskScore:
        ids = [i.id for i in items] if self._items.given else None
        values = found.values() if isinstance(found, dict) else found if isinstance(found, list) else [found]
        for value in values:
            if not isinstance(value, bool | int | float):
                raise CandidateError(f'the command printed {kind(value)} for task "{task.name}"; expected numbers')
        if isinstance(found, dict) and ids is not None:
            unknown = [i for i in found if i not in set(ids)]
            if unknown:
                raise CandidateError(
                    f'task "{task.name}": the command printed a score for "{unknown[0]}", none of its {len(ids)} items'
                )
            left = [i for i in ids if i not in found]
            if left:
                more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
                raise CandidateError(f'task "{task.name}": the command printed nothing for item "{left[0]}"{more}')
            found = [found[i] for i in ids]
        return score_of(task, found, ids, split, "the command")

    def _program(self) -> str:
        """The program: by its path from the evaluator's folder, or found on PATH.

        Raises:
            EvaluatorError: there is none.
        """
        name = self._command[0]
        where = f"{self._file.file}: command: {name}"
        if "/" in name:
            path = (self._file.folder / Path(name).expanduser()).absolute()
            if shutil.which(path) is None:
                why = "is not executable (chmod +x)" if path.is_file() else f"no such program ({path})"
                raise EvaluatorError(f"{where}: {why}")
            return str(path)
        found = shutil.which(name, path=environment(self._own).get("PATH"))
        if found is None:
            raise EvaluatorError(f"{where}: no such program on PATH; give its path, e.g. /opt/vllm/bin/python")
        return found

    def _wrong(self, how: str, tail: str) -> CandidateError:
        return CandidateError(f"the command {how}" + (f"; its stderr ends: {tail}" if tail else ""))


def _parsed(text: str) -> Any:
    """JSON: the whole text, else its last line (programs like to print before)."""
    last = text.strip().splitlines()[-1:] or [""]
    for candidate in (text, last[0]):
        try:
            return json.loads(candidate)
        except (ValueError, RecursionError):
            continue
    found = f"no JSON, but {json.dumps(last[0][:80])}" if last[0] else "nothing"
    raise CandidateError(f"the command printed {found}")


def _value(file: EvaluatorFile, name: str, value: str) -> str:
    """A variable's value; `$NAME` is that of another one, so that secrets need not stand in the file."""
    if not value.startswith("$"):
        return value
    found = os.environ.get(value[1:])
    if found is None:
        raise EvaluatorError(f"{file.file}: env.{name} = {value}: no such variable is set")
    return found
