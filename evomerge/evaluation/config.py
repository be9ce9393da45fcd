"""The evaluator's YAML as a frozen model. Loads neither torch nor lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from evomerge.config import Frozen
from evomerge.errors import choose
from evomerge.evaluation.goals import SCORE, Constraint, measured, named_twice
from evomerge.evaluation.placeholders import PLACEHOLDERS, named

Split = Literal["search", "select", "test"]
SPLITS: tuple[Split, ...] = ("search", "select", "test")
# The one table of evaluators: kind -> module:class. A kind's own keys are fields of EvaluatorConfig.
EVALUATORS: dict[str, str] = {
    "lm_eval": "evomerge.evaluation.harness:HarnessEvaluator",
    "python": "evomerge.evaluation.function:FunctionEvaluator",
    "command": "evomerge.evaluation.command:CommandEvaluator",
}


class TaskConfig(Frozen):
    """One task that counts towards the score, or (weight 0) is measured on select and test only.

    Attributes:
        name: A task, group or tag of lm-eval; for `kind: python`, the name that the function's results carry.
        metric: As lm-eval writes it: "exact_match", or "exact_match,FILTER". Default: the task's first metric.
        weight: Share in the score.
        higher_is_better: Default: as lm-eval has it (python: true).
        greedy_likelihood: For a generate_until task of lm-eval that is scored by exact_match against one right answer:
            on the search split, one forward pass over prompt and answer says whether greedy generation would give it.
            The results are generation's, for a fraction of the time; select and test generate all the same.
        language: For a generate_until task of lm-eval: ISO 639-1 code of the language that an answer must be in to
            count; see `evaluation.language`.
    """

    name: str
    metric: str | None = None
    weight: float = Field(default=1.0, ge=0)
    higher_is_better: bool | None = None
    greedy_likelihood: bool = False
    language: str | None = None

    @model_validator(mode="after")
    def _answered(self) -> TaskConfig:
        if self.language is not None and self.greedy_likelihood:
            raise ValueError(
                f'task "{self.name}": language needs the answers, and greedy_likelihood generates none; leave one out'
            )
        return self


class SplitConfig(Frozen):
    """One split: the share of the items that falls into it, and how many of those are used per task.

    Attributes:
        share: Share of all items; what the three leave is used by none.
        items: Exactly so many of each task; one that has fewer is refused.
        limit: At most so many of each task.
    """

    share: float = Field(gt=0, lt=1)
    items: int | None = Field(default=None, ge=1)
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_number(self) -> SplitConfig:
        if self.items is not None and self.limit is not None:
            raise ValueError("items (exactly so many) and limit (at most so many) exclude each other; give one")
        return self


class Splits(Frozen):
    """How items are divided, by a hash of their content: an item's split never depends on the other items.

    Attributes:
        search: Items that candidates are scored on while the search runs.
        select: Items on which the best few are scored again, to choose the winner.
        test: Items that measure winner, base and sources at the end, once.
    """

    search: SplitConfig = SplitConfig(share=0.3)
    select: SplitConfig = SplitConfig(share=0.2)
    test: SplitConfig = SplitConfig(share=0.5)

    @model_validator(mode="after")
    def _whole(self) -> Splits:
        total = self.search.share + self.select.share + self.test.share
        if total > 1 + 1e-9:
            raise ValueError(f"the shares of search, select and test add up to {total:g}, more than 1")
        return self

    def of(self, split: Split) -> SplitConfig:
        """The split of that name."""
        config: SplitConfig = getattr(self, split)
        return config


class ModelArgs(Frozen):
    """lm-eval's `--model_args` of hf-multimodal, by its names; those left out are lm-eval's own.

    Attributes:
        image_string: What stands for a picture in the model's prompts ("<start_of_image>" of gemma3); default: the
            token that its configuration names.
        image_token_id: The same as the id of a token.
        interleave: With a chat template, whether pictures stand where the text has them, or all before it.
        max_images: Pictures of an item at most; further ones are left out.
        convert_img_format: Whether pictures are made RGB.
        image_width: Points that every picture is resized to.
        image_height: The same of its height; with one of the two alone the shape stays.
        image_max_side: Points that the longer side is resized to.
    """

    image_string: str | None = None
    image_token_id: int | None = Field(default=None, ge=1)
    interleave: bool | None = None
    max_images: int | None = Field(default=None, ge=1)
    convert_img_format: bool | None = None
    image_width: int | None = Field(default=None, ge=1)
    image_height: int | None = Field(default=None, ge=1)
    image_max_side: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> ModelArgs:
        if self.image_max_side and (self.image_width or self.image_height):
            raise ValueError("image_max_side is another way to say image_width and image_height; give one")
        if self.image_string and self.image_token_id:
            raise ValueError("image_string and image_token_id say the same; give one")
        return self

    @property
    def given(self) -> dict[str, Any]:
        """Those that are said."""
        return self.model_dump(exclude_none=True)


class EvaluatorConfig(Frozen):
    """An evaluator: what scores a model. lm-eval's options have lm-eval's own names.

    Attributes:
        kind: What scores: `lm_eval` (its tasks), `python` (a function) or `command` (a program in any environment).
        tasks: What is measured: names, or mappings of the keys of a task.
        split_seed: Another number divides the items into search, select and test anew. Studies to be compared share
            it.
        splits: Which share of the items is searched on, which chooses the winner, which measures it.
        include_path: Folder of task YAMLs, relative to this file (lm-eval's `--include_path`).
        num_fewshot: lm-eval's: examples put before each question; default: the task's.
        gen_kwargs: lm-eval's: options of generation, such as {max_gen_toks: 256}; default: the task's.
        apply_chat_template: lm-eval's: format prompts by the tokenizer's chat template; any text counts as true.
        fewshot_as_multiturn: lm-eval's: with apply_chat_template, examples are turns of the conversation.
        system_instruction: lm-eval's: text of the system's turn.
        batch_size: Items scored side by side; "auto": as many as memory holds on a GPU, one size that suits a CPU
            else.
        max_batch_size: The most that batch_size: "auto" may choose.
        max_length: Tokens of prompt and answer at most; default: what the model takes.
        add_bos_token: lm-eval's: whether prompts begin with the tokenizer's first token; default: as the tokenizer
            does.
        model_args: lm-eval's: options of models that are shown pictures, for tasks that have some.
        seed: Seed of few-shot examples and of sampling, the same for every candidate.
        device: Where candidates are scored ("cpu", "cuda"); default: the worker's GPU where it has one.
        dtype: Compute dtype of the evaluated model; "auto": float32 on CPU, else the checkpoint's.
        confirm_run_unsafe_code: Whether tasks that run generated code may do so.
        trust_remote_code: Whether datasets and models may bring Python code that is run. Leave it off for what is
            not yours.
        function: For `kind: python`: `file.py:function`, relative to this file.
        command: For `kind: command`: the program and its arguments; see `evaluation.command`.
        env: For `kind: command`: variables for it; `$NAME` as a value is that of another variable.
        scratch: For `kind: command`: folder in which candidates are saved for a moment; default: the memory disk, else
            where temporary files go.
        items: For `kind: python` and `command`: JSONL file of items to be scored, relative to this file.
        images: For `kind: python` with items: the items' keys that name a picture (or a list of them), relative to the
            file of the items. The function gets the pictures instead of the names.
        timeout: Seconds that one candidate may take to be built and scored (each block of a race by itself); of a
            command, that it may run.
        objectives: What the search is after: "score", tasks, "depth" (of paths), TASK.length. Where tasks are named and
            the score is not, it is the mean of those tasks.
        constraints: What a model must keep to be chosen.
    """

    kind: str = "lm_eval"
    tasks: list[TaskConfig] = Field(min_length=1)
    split_seed: int = 0
    splits: Splits = Splits()
    include_path: str | None = None
    num_fewshot: int | None = Field(default=None, ge=0)
    gen_kwargs: dict[str, Any] | None = None
    apply_chat_template: bool | str = False
    fewshot_as_multiturn: bool = False
    system_instruction: str | None = None
    batch_size: int | Literal["auto"] = "auto"
    max_batch_size: int = Field(default=64, ge=1)
    max_length: int | None = Field(default=None, ge=1)
    add_bos_token: bool | None = None
    model_args: ModelArgs | None = None
    seed: int = 1234
    device: str | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    confirm_run_unsafe_code: bool = False
    trust_remote_code: bool = False
    function: str | None = None
    command: list[str] | None = None
    env: dict[str, str] = {}
    scratch: str | None = None
    items: str | None = None
    images: list[str] = []
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    objectives: list[str] = Field(default=[SCORE], min_length=1)
    constraints: list[Constraint] = []

    @field_validator("kind", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value not in EVALUATORS:
            raise ValueError(f"unknown kind of evaluator; {choose(str(value), list(EVALUATORS))}")
        return value

    @field_validator("tasks", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """A task may be written as its bare name."""
        return [{"name": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value

    @field_validator("command", mode="before")
    @classmethod
    def _arguments(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError('expected a list of arguments (no shell reads it): [python, score.py, "{model}"]')
        numbers = (int, float)
        return [str(v) if isinstance(v, numbers) and not isinstance(v, bool) else v for v in value] if isinstance(
            value, list
        ) else value

    @field_validator("objectives", mode="before")
    @classmethod
    def _one_objective(cls, value: Any) -> Any:
        """A single one may be written without a list."""
        return [value] if isinstance(value, str) else value

    @field_validator("images", mode="before")
    @classmethod
    def _one_image(cls, value: Any) -> Any:
        """A single key may be written without a list."""
        return [value] if isinstance(value, str) else value

    @field_validator("batch_size")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError('expected a number of 1 or more, or "auto"')
        return value

    @model_validator(mode="after")
    def _consistent(self) -> EvaluatorConfig:
        names = [t.name for t in self.tasks]
        if twice := named_twice(names):
            raise ValueError(f"tasks named twice: {', '.join(twice)}")
        if found := named_twice(self.objectives):
            raise ValueError(f"objectives named twice: {', '.join(found)}")
        if not any(t.weight for t in self.tasks):
            raise ValueError("every task has weight 0: nothing to search for")
        read = [t for t in self.tasks if t.greedy_likelihood]
        if read and self.kind != "lm_eval":
            raise ValueError(f'task "{read[0].name}": greedy_likelihood belongs to kind "lm_eval"')
        idle = [t.name for t in read if not self.searched(t)]
        if idle:
            raise ValueError(
                f'task "{idle[0]}": greedy_likelihood is for the search, which a task of weight 0 is not in'
            )
        for name, measure in map(measured, self.named):
            if measure and any(t.name == name for t in read):
                raise ValueError(
                    f'task "{name}": greedy_likelihood generates no answers, whose {measure} {name}.{measure} is'
                )
        asked = [t.name for t in self.tasks if t.language is not None]
        if asked and self.kind != "lm_eval":
            raise ValueError(
                f'task "{asked[0]}": language belongs to kind "lm_eval"; a function can look itself'
            )
        if self.kind == "python" and (self.function is None or ":" not in self.function):
            raise ValueError('kind "python" needs function: file.py:function')
        if self.kind != "python" and self.function:
            raise ValueError('"function" belongs to kind "python"')
        if self.items and self.kind not in ("python", "command"):
            raise ValueError('"items" belongs to the kinds "python" and "command"')
        if self.images and (self.kind != "python" or not self.items):
            raise ValueError('"images" belongs to kind "python" with items: FILE.jsonl, whose keys it names')
        if self.model_args is not None and self.kind != "lm_eval":
            raise ValueError('"model_args" belongs to kind "lm_eval"; a function and a command do as they like')
        self._check_command()
        return self

    def _check_command(self) -> None:
        """Raise ValueError where the keys of `kind: command` do not go together."""
        if self.kind != "command":
            for key in ("command", "env", "scratch"):
                if getattr(self, key):
                    raise ValueError(f'"{key}" belongs to kind "command"')
            return
        if not self.command:
            raise ValueError('kind "command" needs command: [program, argument, ..., "{model}"]')
        if not self.command[0] or named(self.command[0]):
            raise ValueError(f'command: "{self.command[0]}": expected a program')
        found = [name for argument in self.command for name in named(argument)]
        for name in found:
            if name not in PLACEHOLDERS:
                choice = choose(name, PLACEHOLDERS)
                raise ValueError(f'command: unknown "{{{name}}}"; {choice} (for a word in braces {{{{{name}}}}})')
        if "model" not in found:
            raise ValueError('command: no argument has "{model}", the folder of the candidate')
        if ("items" in found) != (self.items is not None):
            what = "items: FILE.jsonl, which is missing" if "items" in found else "it, and no argument has it"
            raise ValueError(f'command: "{{items}}" is the file of the items to be scored and needs {what}')

    @property
    def named(self) -> list[str]:
        """What objectives and constraints are about."""
        return list(dict.fromkeys([*self.objectives, *(c.of for c in self.constraints)]))

    @property
    def killed_after(self) -> float | None:
        """Seconds after which a worker is to be killed that has not scored its candidate; a command has its own end."""
        return None if self.kind == "command" else self.timeout

    def searched(self, task: TaskConfig, name: str | None = None) -> bool:
        """Whether a task is run on the search items: it counts, or an objective or a constraint needs it.

        Args:
            name: Of a group, which of its tasks.
        """
        return bool(task.weight) or any(measured(n)[0] == (name or task.name) for n in self.named)

    def measures(self, task: str) -> list[str]:
        """What is measured of a task's answers beside its metric."""
        return [m for n, m in map(measured, self.named) if m and n == task]

    def aimed(self, objectives: Sequence[str]) -> EvaluatorConfig:
        """The same after other objectives; tasks that it names without the score make up the score.

        Those of weight 0 get weight 1, those not named weight 0.
        """
        tasks = self.tasks
        names = {t.name for t in tasks if t.name in objectives}
        if names and SCORE not in objectives:
            tasks = [t.model_copy(update={"weight": (t.weight or 1.0) * (t.name in names)}) for t in tasks]
        return self.model_copy(update={"tasks": tasks, "objectives": list(objectives)})
