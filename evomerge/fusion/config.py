"""`kind: fuse`: what is fused into what, from which text and how, as a file says it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from evomerge.config import Frozen, Key, load_yaml, validate
from evomerge.errors import InputError
from evomerge.fusion.preference_config import PreferenceConfig
from evomerge.space.source import RESERVED, Model, Source, repeated, unique_names

Loss = Literal["ce", "kl", "alm", "uld"]
# Losses that need what the sources say in the target's own vocabulary.
MAPPED: tuple[Loss, ...] = ("ce", "kl")
# What the target as it was before is called, beside the sources; and what results are.
TARGET = "target"
RESULTS = (TARGET, "fused", "merged", "sft", "dpo")
# What the published losses weigh the text with: FuseLLM and FuseChat have .9.
CLM_WEIGHT = 0.5


class FusionError(InputError):
    """A fusion's file is wrong, or what it names does not go together."""


class CorpusConfig(Frozen):
    """The text that the target learns from, and that every source says what it thinks of.

    Attributes:
        path: A .jsonl file, each line an object with "text" or "messages"; a folder that `datasets` saved, or one of
            .jsonl or .parquet files; `zoo:chains`. Relative to the file that names it.
        split: Which split, where the folder has several.
        text, messages, domain: Names of the columns.
        held_out: Share of the documents of each domain, chosen by a hash of what they say, that is kept to measure bits
            per byte and to stop by; or a file or folder of them.
        max_length: Tokens of a document at most, by the tokenizer that makes most of it, special ones included. Longer
            texts are cut, at a place that is one for every tokenizer; of longer conversations the last messages are
            left out. Default: what all models can take, at most 2048.
        documents: The first so many of the corpus alone.
    """

    path: str
    split: str | None = None
    text: str = "text"
    messages: str = "messages"
    domain: str = "domain"
    held_out: float | str = 0.05
    max_length: int | None = Field(default=None, ge=16)
    documents: int | None = Field(default=None, ge=2)

    @field_validator("held_out")
    @classmethod
    def _share(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError("expected a share between 0 and 1, or a file of documents")
        return value


class TeacherConfig(Frozen):
    """The pass of every source over the corpus.

    Attributes:
        folder: Where the passes are kept, for fusions of the same text and sources to share; default: with the rest.
            Relative to the fusion's file.
        top_k: How many of the likeliest next tokens are kept at each position.
        batch_tokens: Tokens in one pass at most, padding included.
        shard_tokens: About how many tokens lie in one file; what is lost when a pass is cut off.
        dtype: Type to compute in; "auto": float32 on a CPU, else the checkpoint's own.
    """

    folder: str | None = None
    top_k: int = Field(default=10, ge=1, le=256)
    batch_tokens: int = Field(default=16384, ge=1)
    shard_tokens: int = Field(default=262144, ge=1, le=4_194_304)
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"


class AlignmentConfig(Frozen):
    """How positions and vocabularies of two models are brought together.

    Attributes:
        aligner: "bytes": the same bytes read; "dynamic": the published time warping over token strings.
        order: Of "dynamic": which step goes first where two cost the same, and which matches count; as FuseLLM or
            FuseChat publish it.
        vocabulary: Which of the target's tokens stands for one of a source's. "exact": the one of the same bytes;
            "edit_distance": else the nearest (MinED); "statistics": the one that it is most often matched with in the
            corpus.
        score: Of "statistics": "frequency", or "published", the formula of FuseChat's code, in which frequent pairs
            lose.
    """

    aligner: Literal["bytes", "dynamic"] = "bytes"
    order: Literal["fusellm", "fusechat"] = "fusellm"
    vocabulary: Literal["exact", "edit_distance", "statistics"] = "statistics"
    score: Literal["frequency", "published"] = "frequency"


class FunctionConfig(Frozen):
    """How what several sources say becomes one distribution.

    Attributes:
        mode: "joint": one target from all sources; "pairwise": one target from each source, all of one architecture, to
            be merged (FuseChat).
        function: "min_ce": what the source says that expects the text best; "avg_ce": the average, weighted by
            exp(-CE).
        per: What the sources are compared over: each "token", "sequence" (document) or "block" (documents side by side
            up to `block_tokens`, as FuseLLM packs them).
        block_tokens: Of "block": tokens of one; FuseLLM has 2048.
        compare: "bytes": nats per byte of text, which is fair to every tokenizer; "tokens": nats per token of their
            own, and averages weighted by softmax(exp(-CE)), as published.
        include_target: Whether the target, as it is before, is one of the sources.
    """

    mode: Literal["joint", "pairwise"] = "joint"
    function: Literal["min_ce", "avg_ce"] = "min_ce"
    per: Literal["token", "sequence", "block"] = "sequence"
    block_tokens: int = Field(default=2048, ge=1)
    compare: Literal["bytes", "tokens"] = "bytes"
    include_target: bool = True


class LoraConfig(Frozen):
    """Train a low-rank adapter and merge it into the target at the end; names as in PEFT.

    Attributes:
        r: Rank of the adapter.
        lora_alpha: The adapter is scaled by lora_alpha / r.
        lora_dropout: Share of the adapter's inputs that is dropped in training.
        target_modules: Names of the linear layers that get one; "all-linear": all of them but the head.
    """

    r: int = Field(default=16, ge=1)
    lora_alpha: int = Field(default=32, ge=1)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] | str = "all-linear"


class TrainingConfig(Frozen):
    """How the target learns. Names are those of transformers' TrainingArguments where it has them.

    Attributes:
        loss: What is learned from the sources beside the text. "ce", "kl": cross-entropy with, or divergence from, the
            fused distribution; "alm": likelihoods of the same bytes (approximate likelihood matching); "uld": sorted
            probabilities (universal logit distillation). The last two need no vocabulary map.
        clm_weight: lambda of the loss lambda * CLM + (1 - lambda) * what is learned from the sources.
        renormalize: Of "ce" and "kl": whether what is kept of a source's distribution is brought to a sum of one, as
            published; else what it leaves is the probability of all other tokens together.
        alm_temperature: Of "alm": likelihoods are compared to the power of 1 / this.
        num_train_epochs: Passes over the corpus.
        max_steps: Instead of num_train_epochs: so many updates.
        per_device_train_batch_size: Documents of one process in one pass.
        gradient_accumulation_steps: Passes whose gradients make one update.
        gradient_checkpointing: Less memory for activations, about a third more time.
        learning_rate: Largest learning rate of AdamW.
        lr_scheduler_type: How it falls: transformers' names (cosine, linear, constant, ...).
        warmup_steps: Updates until it is reached; below 1: a share of all of them.
        weight_decay: AdamW's weight decay.
        adam_beta1, adam_beta2: AdamW's decays of the mean of gradients, and of that of their squares.
        max_grad_norm: Gradients of a larger norm are scaled down to it.
        bf16: Whether passes compute in bfloat16; "auto": on GPUs that have it.
        dtype: Of the weights while they are trained; bf16 computes in that type whatever this is.
        evaluations: How often bits per byte are measured, and a checkpoint is kept, in a run.
        early_stopping_patience: Stop after so many measurements without a better one; None: never. The best checkpoint
            is taken in any case.
        lora: Train an adapter instead of all weights.
        processes: Processes that train one target together, by accelerate's launcher.
        arguments: More of transformers' TrainingArguments, by their own names.
    """

    loss: Loss = "ce"
    clm_weight: float = Field(default=CLM_WEIGHT, ge=0, le=1)
    renormalize: bool = False
    alm_temperature: float = Field(default=100.0, gt=0)
    num_train_epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    per_device_train_batch_size: int = Field(default=16, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    gradient_checkpointing: bool = False
    learning_rate: float = Field(default=1e-5, gt=0)
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = Field(default=0.01, ge=0)
    weight_decay: float = Field(default=0.1, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    bf16: bool | Literal["auto"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    evaluations: int = Field(default=10, ge=1)
    early_stopping_patience: int | None = Field(default=3, ge=1)
    lora: LoraConfig | None = None
    processes: int = Field(default=1, ge=1)
    arguments: dict[str, Any] = Field(default_factory=dict)


class SearchConfig(Frozen):
    """What `evomerge search` is to do with the targets; its options by their own names.

    Attributes:
        space: A search space's file or preset, over the targets; its models are replaced.
        evaluator: Default: the fusion's.
        budget: Candidates, or a time ("30m").
        sampler: Optimizer by name; auto: the space's default.
        population: Candidates per generation; default: the sampler's.
        sigma: First step size, as a share of each range: small, for targets of one pivot lie close together.
        restarts: What follows where the sampler has converged; default: its own.
        objectives: What it is after, instead of the evaluator's objectives (`--objective`).
        warm_start: Output folder of a search over targets of the same names to begin from; relative to the file.
        patience: Stop where the cost of so many candidates brought no better one; default: never.
        fidelity: `race`: candidates stop early where they cannot matter; `full`: each on all items; `auto`: race
            where items allow it.
        estimates: Of candidates that stopped: `auto`: an item-response model's where better; `plain`: by difference.
        controls: Whether each task vector alone, and random search, are searched at equal budget.
        starts: Which merges are tried first: SCE, VaRM, and VaRM's weights by place; where the space has not the
            method, the weights nearest to it.
    """

    space: str = "fused"
    evaluator: str | None = None
    budget: str | int = 100
    sampler: str = "auto"
    population: int | None = Field(default=None, ge=1)
    sigma: float | None = Field(default=0.05, gt=0)
    restarts: Literal["none", "ipop", "bipop"] | None = None
    objectives: list[str] = []
    warm_start: str | None = None
    patience: int | None = Field(default=None, ge=1)
    fidelity: Literal["auto", "full", "race"] = "auto"
    estimates: Literal["auto", "plain"] = "auto"
    controls: bool = False
    starts: list[Literal["sce", "varm", "layerwise"]] = ["sce", "varm", "layerwise"]


class ThenConfig(Frozen):
    """What follows.

    Attributes:
        search: A search over the targets; `then: search` alone takes every default.
    """

    search: SearchConfig


class FusionConfig(Frozen):
    """A fusion as a file gives it.

    Attributes:
        kind: Says that the file is a fusion.
        name: What the fusion is called; default: the file's name.
        target: The model that learns: results have its architecture, tokenizer and chat template. FuseChat's pivot.
        sources: Models of any architecture and tokenizer, which it learns from.
        corpus: The text to learn from; a path alone stands for {path: PATH}.
        teachers: How sources read the corpus, and what is kept of it.
        alignment: How other tokenizers' positions and tokens are brought to the target's.
        fusion: How several sources become one teacher.
        training: How the target learns.
        evaluator: Measures models, sources and results, beside bits per byte; a file or preset, as for a search.
        then: What follows; `search` over the targets of a pairwise fusion.
        preferences: Instead of learning from distributions: from answers (FuseChat-3.0).
        seed: Seed of the order of documents, of dropout and of sampled answers.
        out_dtype: Type that results are saved in; default: the target's own.
        trust_remote_code: Whether models may bring Python code that is run. Leave it off for what is not yours.
    """

    kind: Literal["fuse"]
    name: str = ""
    target: Model
    sources: tuple[Source, ...] = Field(min_length=1)
    corpus: CorpusConfig
    teachers: TeacherConfig = TeacherConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    fusion: FunctionConfig = FunctionConfig()
    training: TrainingConfig = TrainingConfig()
    evaluator: str | None = None
    then: ThenConfig | None = None
    preferences: PreferenceConfig | None = None
    seed: int = Field(default=0, ge=0, lt=2**31)
    out_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    trust_remote_code: bool = False

    @field_validator("corpus", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("sources", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value

    @field_validator("then", mode="before")
    @classmethod
    def _search(cls, value: Any) -> Any:
        if value == "search":
            return {"search": {}}
        return value

    @field_validator("sources")
    @classmethod
    def _named(cls, value: tuple[Source, ...]) -> tuple[Source, ...]:
        return unique_names(value, (*RESERVED, *RESULTS))

    @model_validator(mode="after")
    def _consistent(self) -> FusionConfig:
        for _, text in self._problems():
            raise ValueError(text)
        return self

    def _problems(self) -> Iterator[tuple[Key, str]]:
        yield from self._idle()
        yield from ((key, f"sources.{key[-1]} {text}") for key, text in repeated(self.sources))
        if self.preferences is not None:
            for key in ("alignment", "fusion", "training", "then"):
                if key in self.model_fields_set:
                    yield (key,), f'"{key}" is for learning from distributions; with preferences leave it out'
        if self.then is not None:
            if self.fusion.mode != "pairwise":
                yield ("then",), "then: search needs several targets to merge: set fusion: {mode: pairwise}"
            elif len(self.sources) < 2:
                yield (
                    ("sources",),
                    f"then: search needs at least 2 sources, one for each target; got {len(self.sources)}",
                )
            if self.then.search.evaluator is None and self.evaluator is None:
                yield ("then",), "then: search needs an evaluator: what makes a merge good?"

    def _idle(self) -> Iterator[tuple[Key, str]]:
        """Keys that are set and would do nothing."""
        alignment, function, training = self.alignment, self.fusion, self.training
        mapped = training.loss in MAPPED
        for section, key, works, where in (
            ("alignment", "order", alignment.aligner == "dynamic", "aligner: dynamic"),
            ("alignment", "score", alignment.vocabulary == "statistics", "vocabulary: statistics"),
            ("alignment", "vocabulary", mapped or alignment.aligner == "dynamic", f"loss: {' or '.join(MAPPED)}"),
            ("fusion", "block_tokens", function.per == "block", "per: block"),
            ("training", "alm_temperature", training.loss == "alm", "loss: alm"),
            ("training", "renormalize", mapped, f"loss: {' or '.join(MAPPED)}"),
        ):
            if key in getattr(self, section).model_fields_set and not works:
                yield (section, key), f"{section}.{key} is for {where}; leave it out"
        if training.clm_weight == 1:
            # `teachers.folder` says where passes would lie: files that differ in the weight alone may share it.
            told = {
                "alignment": alignment.model_fields_set,
                "fusion": function.model_fields_set - {"mode"},
                "teachers": self.teachers.model_fields_set & {"top_k"},
                "training": training.model_fields_set & {"loss", "alm_temperature", "renormalize"},
            }
            idle = [f"{section}.{key}" for section, keys in told.items() for key in sorted(keys)]
            if idle:
                yield (
                    ("training", "clm_weight"),
                    f"training.clm_weight = 1: nothing is learned from the sources; leave out {', '.join(idle)}",
                )
        if training.loss == "alm" and alignment.aligner != "bytes":
            yield (
                ("alignment", "aligner"),
                f'alignment.aligner = "{alignment.aligner}": training.loss = "alm" compares likelihoods of the same '
                "bytes, and what this one matches need not be the same; expected aligner: bytes",
            )
        given = training.model_fields_set
        if {"max_steps", "num_train_epochs"} <= given and training.max_steps is not None:
            yield ("training", "num_train_epochs"), "training.max_steps and training.num_train_epochs: give one of them"
        patience = training.early_stopping_patience
        if "early_stopping_patience" in given and patience is not None and patience >= training.evaluations:
            yield (
                ("training", "early_stopping_patience"),
                f"training.early_stopping_patience = {patience} never stops anything: there are {training.evaluations} "
                "evaluations",
            )
        preferences = self.preferences
        if preferences is not None:
            for key in ("top_k", "folder"):
                if key in self.teachers.model_fields_set:
                    yield ("teachers", key), f"teachers.{key} is for learning from distributions; leave it out"
            if "beta" in preferences.sft.model_fields_set:
                yield ("preferences", "sft"), "preferences.sft.beta is for dpo; leave it out"

    @property
    def names(self) -> tuple[str, ...]:
        """Short names of the sources."""
        return tuple(s.name for s in self.sources)


def load_fusion(path: Path | str) -> FusionConfig:
    """Read a fusion's file.

    Raises:
        FusionError: every problem of the file, one line each.
    """
    data = load_yaml(path, FusionError)
    kind = data.data.get("kind") if isinstance(data.data, dict) else None
    if kind in ("parameter", "dataflow", "hybrid"):
        raise FusionError(f'{path}: kind = "{kind}": is a search space, not a fusion: evomerge search {path}')
    config = validate(FusionConfig, data, FusionError)
    return config if config.name else config.model_copy(update={"name": Path(path).stem})
