"""A fusion before it starts: its file read, every model, tokenizer, text and option checked, the cost worked out."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, SourceError
from evomerge.evaluation import open_evaluator
from evomerge.evaluation.overlaps import Overlaps, overlaps
from evomerge.fusion.config import MAPPED, TARGET, FusionError, load_fusion
from evomerge.fusion.corpus import check_split, locate
from evomerge.fusion.files import read_json_object, sha256, write_json
from evomerge.fusion.preferences.answers import load_score
from evomerge.fusion.preferences.stages import check_stages, check_trl
from evomerge.fusion.prepared import Prepared, prepare
from evomerge.fusion.tokenized import Reader
from evomerge.fusion.vocabulary import Vocabulary
from evomerge.pipeline.fusion_search import TargetSearch, evaluator_beside, key_named
from evomerge.sources import Source, open_sources
from evomerge.study import place
from evomerge.study.store import differing
from evomerge.study.workers import Cluster

RECORD = "fusion.json"
VERSION = 1
# Keys that change nothing of what comes out, or are looked at in another way (models by their content).
_LOOSE: dict[str, Any] = {"name": True, "sources": True, "target": True, "then": True, "teachers": {"folder": True}}
# The longest documents where the file says nothing.
LONGEST = 2048
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx")


@dataclass(frozen=True)
class FuseOptions:
    """What `evomerge fuse` takes.

    Attributes:
        file: The fusion's file.
        out: Folder of everything that it makes.
        cluster: Where its work runs; 0 workers: in this process.
    """

    file: Path
    out: Path
    cluster: Cluster = field(default_factory=Cluster)


class FusionPlan:
    """A fusion, checked as far as it can be before time is spent.

    Args:
        out: Its output folder, where it is known.

    Attributes:
        config: The file's content; its models by references that hold in any folder.
        sources: Every model, by name; the target as "target".
        readers: Their tokenizers.
        limit: Tokens of a document at most.
        search: The search over the targets that follows; None where none does.

    Raises:
        InputError: everything that is wrong.
    """

    def __init__(self, file: Path, out: Path | None = None) -> None:
        self.root = file.parent
        config = load_fusion(file)
        self.file = file
        with key_named(str(file)):
            held_out = [config.corpus.held_out] if isinstance(config.corpus.held_out, str) else []
            check_split(config.corpus, *(locate(path, self.root) for path in (config.corpus.path, *held_out)))
        models = [config.target, *(s.model for s in config.sources)]
        named = {config.target: f"{file}: target: ", **{s.model: f"{file}: sources: " for s in config.sources}}
        found = open_sources(models, root=self.root, named=named, weights=False)
        places = {r: s.full_reference for r, s in found.items()}
        self.config = config.model_copy(
            update={"target": places[config.target], "sources": tuple(s.at(places) for s in config.sources)}
        )
        by_name = {TARGET: found[config.target], **{s.name: found[s.model] for s in config.sources}}
        self.sources: dict[str, Source] = {n: replace(s, reference=s.full_reference) for n, s in by_name.items()}
        for name in self.results:
            if name in config.names:
                raise FusionError(
                    f'{file}: sources: "{name}" is what a result is called; give the source another name: '
                    f"{{model: ..., name: ...}}"
                )
        self.readers = self._readers()
        self.limit = self._limit()
        self._check_training()
        asked, key = config.evaluator, f"{file}: evaluator"
        self.evaluator = evaluator_beside(asked, self.root, key) if asked is not None else None
        # Opened now: unknown tasks and metrics are found before time is spent.
        own = (self.evaluator, open_evaluator(self.evaluator)) if self.evaluator is not None else None
        self._opened = None if own is None else own[1]
        self.search = (
            TargetSearch(file, self.config, self.sources[TARGET], self.results, own, out) if config.then else None
        )
        self.caches = self._caches()

    def _readers(self) -> dict[str, Reader]:
        from evomerge.merging.live import load_tokenizer

        found: dict[str, Reader] = {}
        problems = []
        for name, source in self.sources.items():
            try:
                tokenizer = load_tokenizer(source, trust_remote_code=self.config.trust_remote_code)
                rows = source.text_config.get("vocab_size")
                found[name] = Reader(
                    Vocabulary(tokenizer, f"{name} ({source.reference})"), name, rows if isinstance(rows, int) else None
                )
            except SourceError as e:
                problems.append(str(e))
        if problems:
            raise SourceError("\n".join(problems))
        return found

    def _limit(self) -> int:
        """Tokens of a document: what was asked for, which every model must take, or what all can."""
        room = {name: _positions(source) for name, source in self.sources.items()}
        least = min((r for r in room.values() if r is not None), default=LONGEST)
        asked = self.config.corpus.max_length
        if asked is None:
            return min(least, LONGEST)
        short = [f"{name} ({room[name]:,})" for name in room if (room[name] or asked) < asked]
        if short:
            raise FusionError(
                f"{self.file}: corpus.max_length = {asked:,}: more than the positions of {', '.join(short)}; "
                f"expected at most {least:,}"
            )
        return asked

    def _check_training(self) -> None:
        from evomerge.fusion.training.run import check_arguments, check_lora

        config = self.config
        if config.preferences is not None:
            check_trl()
            load_score(config.preferences, self.root, self.file)
            try:
                check_stages(config.preferences)
            except InputError as e:
                raise FusionError(f"{self.file}: {e}") from None
            for name, reader in self.readers.items():
                if not getattr(reader.vocabulary.tokenizer, "chat_template", None):
                    raise FusionError(f"{self.file}: {name} has no chat template, which answers to questions need")
        try:
            check_arguments(config.training)
            check_lora(config.training, self.sources[TARGET])
        except InputError as e:
            raise FusionError(f"{self.file}: {e}") from None
        if config.training.loss not in MAPPED and config.fusion.function != "min_ce":
            raise FusionError(
                f'{self.file}: training.loss = "{config.training.loss}" learns from one source at a time; '
                "set fusion.function: min_ce"
            )

    @property
    def learns(self) -> bool:
        """Whether anything is learned from the sources beside the text."""
        return self.config.training.clm_weight < 1

    @property
    def taught(self) -> dict[str, Source]:
        """The models that say something of the text."""
        if not self.learns:
            return {}
        own = self.config.fusion.include_target
        return {n: s for n, s in self.sources.items() if own or n != TARGET}

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the targets that are trained: one, or one for each source."""
        if self.config.preferences is not None:
            return ("sft", "dpo")
        if self.config.fusion.mode == "joint":
            return ("fused",)
        return tuple(f"{self.sources[TARGET].name}-{name}" for name in self.config.names)

    def definition(self) -> dict[str, Any]:
        """What decides what the file's evaluator measures."""
        assert self.evaluator is not None and self._opened is not None
        return {**self.evaluator.fingerprint(), "definition": dict(self._opened.definition())}

    def _caches(self) -> Path | None:
        """The folder of the passes that the file names."""
        folder = self.config.teachers.folder
        if folder is None:
            return None
        found = (self.root / folder).resolve()
        with key_named(f"{self.file}: teachers.folder"):
            place.check_stays(found)
        return found

    def record_corpus(self, out: Path, key: str) -> None:
        """Note which text the output folder's fusion is of.

        Raises:
            FusionError: it was another one.
        """
        there = read_json_object(out / RECORD) or self._fingerprint()
        if there.get("corpus") not in (None, key):
            raise FusionError(
                f"{out}: holds a fusion of another text: {self.config.corpus.path} has changed, or what is held out, "
                "or a tokenizer, or how this version of evomerge reads one; give another folder"
            )
        write_json(out / RECORD, {**there, "corpus": key})

    def record(self, out: Path) -> None:
        """Note in the output folder which fusion it belongs to.

        Raises:
            FusionError: it belongs to another one, with what differs.
        """
        mine = self._fingerprint()
        there = read_json_object(out / RECORD)
        if there is None:
            write_json(out / RECORD, mine)
            return
        different = [
            f"  {key.removeprefix('config.')}: {was!r} there, {now!r} now"
            for key, was, now in differing({k: v for k, v in there.items() if k != "corpus"}, mine)
        ]
        if different:
            raise FusionError(
                f"{out}: holds another fusion; give another folder, or undo what differs:\n" + "\n".join(different)
            )

    def _fingerprint(self) -> dict[str, Any]:
        config = self.config.model_dump(mode="json", exclude=_LOOSE)
        preferences = self.config.preferences
        score = preferences.score.rpartition(":")[0] if preferences is not None else ""
        return {
            "version": VERSION,
            "models": {name: s.content_hash() for name, s in self.sources.items()},
            "config": {**config, "limit": self.limit},
            **({"score": sha256(self.root / score)} if score else {}),
        }

    def prepare_out(self, out: Path) -> None:
        """Make the output folder, after checking that it can be written and holds nothing of somebody else's.

        Raises:
            InputError: it cannot, or does.
        """
        if (out / "study.db").exists() and not (out / RECORD).exists():
            raise InputError(f"{out}: holds a search; give another folder")
        folders = [f for s in self.sources.values() for f in s.folders]
        for folder in folders:
            if folder.resolve().is_relative_to(out.resolve()):
                raise InputError(f"{out}: holds the model {folder}; give another folder")
        if out.exists() and not out.is_dir():
            raise InputError(f"{out}: is a file, expected a folder to write to")
        foreign = sorted(f.name for f in out.iterdir() if f.name[0] != ".") if out.is_dir() else []
        if foreign and not (out / RECORD).exists():
            shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
            raise InputError(f"{out}: holds {shown} already, and no fusion wrote them; give another folder")
        try:
            place.prepare(out, place.default_storage(out), folders)
        except InputError as e:
            raise InputError(str(e).replace("--out", "OUT")) from None

    def count(self) -> tuple[Prepared, dict[str, int]]:
        """Read the whole corpus with every tokenizer: what would become of its documents (its files are gone), and how
        many tokens each makes.

        Raises:
            CorpusError: it is wrong, or leaves nothing.
        """
        with tempfile.TemporaryDirectory(prefix="evomerge-") as folder:
            found = prepare(
                self.config.corpus, self.root, self.readers, self.limit, self.config.teachers.shard_tokens, Path(folder)
            )
        return found, {name: found.tokens(name) for name in self.sources}

    def overlaps(self, corpus: Prepared) -> Overlaps | None:
        """Test items of the file's evaluator that stand in the text that is learned; None without an evaluator."""
        if self._opened is None:
            return None
        learned = ("\n".join(d.contents) for i in range(len(corpus.shards)) for d in corpus.documents(i))
        return overlaps({"test": self._opened.texts("test")}, {"the corpus": learned})

    def cost(self, workers: int | None, tokens: Mapping[str, int] | None = None) -> list[str]:
        """What the fusion will take, in words.

        Args:
            tokens: Of the text, for each model.
        """
        from evomerge.merging.memory import PROGRAM, in_words

        config = self.config
        target = self.sources[TARGET]
        weights = sum(s.bytes for n, s in self.sources.items())
        one = target.bytes
        count = len(self.results)
        steps = config.training
        preferences = config.preferences
        if preferences is not None:
            asked = [*config.names, *([TARGET] if preferences.include_target else [])]
            return [
                f"{preferences.samples} answers of up to {preferences.max_new_tokens:,} tokens to each question, of "
                f"{', '.join(asked)}; scored by {preferences.score}",
                f"{target.architecture}: SFT on the best answers to {preferences.sft_share:.0%} of the questions, then "
                "DPO on the best and the worst of one source to each of the others",
            ]
        what = f"{count} targets, one for each source" if config.fusion.mode == "pairwise" else "one target"
        lines = [
            f"{what}, of {target.architecture}, from {', '.join(config.names)}"
            + (" and itself" if config.fusion.include_target and self.learns else ""),
            f"loss: {steps.clm_weight:g} x text + {1 - steps.clm_weight:g} x {steps.loss}; alignment by "
            f"{config.alignment.aligner}, vocabulary by {config.alignment.vocabulary}"
            if self.learns
            else "loss: the text alone; nothing is learned from the sources, which are measured",
        ]
        if tokens and self.taught:
            positions = sum(tokens[name] for name in self.taught)
            # About what a position takes at k = 10, and in proportion.
            cache = positions * (6 + 4 * config.teachers.top_k)
            lines.append(
                f"passes over {positions:,} tokens in all, about {in_words(cache)} of caches"
                + (f"; {workers} worker{'s' if workers != 1 else ''}" if workers is not None else "")
            )
        # Weights, gradients and two moments, in the type of training.
        trained = 16 * _elements(target) if steps.lora is None else 4 * _elements(target)
        lines.append(
            f"reads {in_words(weights)}; about {in_words(PROGRAM + trained)} of memory for a training, without "
            f"activations; writes {in_words(one * count)} of checkpoints and, while it trains, up to "
            f"{in_words(3 * (12 * _elements(target) if steps.lora is None else one) * count)} more"
        )
        return lines


def _elements(source: Source) -> int:
    import math

    return sum(math.prod(t.shape) for t in source.merged_tensors.values())


def _positions(source: Source) -> int | None:
    for key in _POSITIONS:
        value = source.text_config.get(key)
        if isinstance(value, int) and value > 0:
            return value
    return None
