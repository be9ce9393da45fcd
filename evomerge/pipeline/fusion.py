"""Fusion, `evomerge fuse`: prepare the text, let every source read it, align, train, measure; then search, if asked.

Every step leaves files that say what they were made from, and is taken up where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.errors import EvoMergeError
from evomerge.fusion.config import MAPPED, TARGET, FusionError
from evomerge.fusion.counting import Told, vocabulary_maps
from evomerge.fusion.loading import computed_in
from evomerge.fusion.measure import Measuring, mean, measure
from evomerge.fusion.preference_config import PreferenceConfig
from evomerge.fusion.preferences import (
    Stage,
    answer,
    choose_pairs,
    held_out_scores,
    run_stages,
    score_answers,
    write_pairs,
)
from evomerge.fusion.preferences.answers import load_score
from evomerge.fusion.prepared import HELD_OUT, Prepared, prepare
from evomerge.fusion.targets import Job, Targets, make_targets
from evomerge.fusion.teachers.cache import Cache, CacheKey, Pass, fill, folder_of, open_cache
from evomerge.fusion.training import Outcome as Training
from evomerge.fusion.training import Run, train_all
from evomerge.fusion.workers import Silent, Watcher
from evomerge.pipeline.fused_starts import write_starts
from evomerge.pipeline.fusion_plan import FuseOptions, FusionPlan
from evomerge.pipeline.fusion_scores import score_all
from evomerge.pipeline.fusion_search import FOLDER
from evomerge.pipeline.main_job import search
from evomerge.score import Score
from evomerge.sources import Source, fetch, open_source
from evomerge.study import place
from evomerge.study.fused import Answers, Fused, Model
from evomerge.study.outcome import Outcome
from evomerge.study.stopping import Stop
from evomerge.study.watcher import Silent as SearchSilent
from evomerge.study.watcher import Watcher as SearchWatcher
from evomerge.study.workers import LocalTasks, RayTasks

Tasks = RayTasks | LocalTasks
# What share of what was learned a checkpoint's type may take without a word.
ROUNDING = 0.1


def fuse(
    options: FuseOptions, watcher: Watcher | None = None, searching: SearchWatcher | None = None,
    stop: Stop | None = None,
) -> Fused:  # fmt: skip
    """Run or resume a fusion, to the checkpoint and what was measured.

    Args:
        searching, stop: Of the search that may follow: who is told of it, by what it can be asked to end.

    Raises:
        InputError: what was given is wrong; nothing was started.
        EvoMergeError: a source's logits or the loss are not finite, or a process of the training failed.
    """
    watcher = watcher or Silent()
    watcher.say("checking models, corpus and options")
    options = replace(options, out=options.out.resolve())  # workers on other machines have other current folders
    plan = FusionPlan(options.file, options.out)
    plan.prepare_out(options.out)
    with place.held(options.out / place.LOCK, options.out):
        fetch(plan.sources.values())
        plan.record(options.out)
        return _Fusion(plan, options, watcher, searching or SearchSilent(), stop).run()


class _Fusion:
    """One fusion on its way."""

    def __init__(
        self, plan: FusionPlan, options: FuseOptions, watcher: Watcher, searching: SearchWatcher, stop: Stop | None
    ) -> None:
        self.plan, self.options, self.watcher, self.searching, self.stop = plan, options, watcher, searching, stop
        self.config, self.out = plan.config, options.out
        self.began = time.monotonic()

    def run(self) -> Fused:
        plan = self.plan
        corpus = self._prepared()
        tasks = self._tasks()
        if self.config.preferences is not None:
            try:
                return self._by_preferences(self.config.preferences, corpus, tasks)
            finally:
                tasks.close()
        try:
            caches = self._caches(corpus, tasks)
            targets = self._targets(corpus, caches, tasks)
            trainings = self._trained(corpus, targets, tasks)
            models = {name: open_source(str(self._model(name).resolve())) for name in plan.results}
            bits = self._measured({**plan.sources, **models}, corpus, tasks)
        finally:
            tasks.close()
        self._say_rounding(trainings, bits)
        scores = self._scores({**plan.sources, **models})
        found = [
            self._as_measured(n, TARGET if n == TARGET else "source", s, bits, scores) for n, s in plan.sources.items()
        ]
        found += [self._as_measured(n, "fused", s, bits, scores) for n, s in models.items()]
        model, outcome = self._model(plan.results[0]), None
        if self.config.then is not None:
            outcome = self._searched()
            model = outcome.model
            found.append(self._merged(corpus, outcome))
        elif self.config.fusion.mode == "pairwise":
            model = self.out / "models"
        positions = sum(c.positions for c in caches.values())
        return Fused(
            config=self.config, out=self.out, models=tuple(found), counts=corpus.counts,
            tokens=corpus.tokens(TARGET), held_out=len(corpus.held_out), targets=targets, trainings=trainings,
            cache_bytes=sum(c.size for c in caches.values()) / positions if positions else 0.0,
            seconds=time.monotonic() - self.began, model=model, search=outcome, overlaps=self._shared(),
        )  # fmt: skip

    def _by_preferences(self, config: PreferenceConfig, corpus: Prepared, tasks: Tasks) -> Fused:
        """FuseChat-3.0's route: answers of the sources, the best learned, then preferred."""
        plan, watcher, out = self.plan, self.watcher, self.out
        for line in plan.cost(tasks.size):
            watcher.say(line)
        score = load_score(config, plan.root, plan.file)
        files = [corpus.folder / s.name for s in corpus.shards]
        drawn: dict[str, Any] = {
            "workers": tasks, "watcher": watcher, "seed": self.config.seed, "dtype": self.config.teachers.dtype,
            "trust_remote_code": self.config.trust_remote_code,
        }  # fmt: skip
        answering = {n: s for n, s in plan.sources.items() if n != TARGET or config.include_target}
        documents = [d for i in range(len(corpus.shards)) for d in corpus.documents(i)]
        answers = answer(answering, files, corpus.key, config, out / "answers", **drawn)
        scored = score_answers(answers, documents, score, config.score)
        pairs = choose_pairs(scored, documents, config.sft_share, config.margin)
        sft, dpo = write_pairs(pairs, out / "preferences")
        watcher.say(
            f"{len(pairs.sft):,} best answers and {len(pairs.dpo):,} pairs, of "
            + ", ".join(f"{n} {c:,}" for n, c in pairs.taken.items())
        )
        if not pairs.sft or not pairs.dpo:
            raise EvoMergeError(f"{config.score}: leaves nothing to prefer: all answers to a question score alike")
        target, first = plan.sources[TARGET].full_reference, str((out / "models" / "sft").resolve())
        shared: dict[str, Any] = {
            "out_dtype": self.config.out_dtype, "max_length": plan.limit, "seed": self.config.seed,
            "trust_remote_code": self.config.trust_remote_code,
        }  # fmt: skip
        work = out / "training"
        stages = [
            Stage("sft", target, str(sft), config.sft, str(work / "sft"), first, **shared),
            Stage("dpo", first, str(dpo), config.dpo, str(work / "dpo"), str((out / "model").resolve()), **shared),
        ]
        run_stages(stages, tasks, watcher)
        models = {"sft": open_source(first), "dpo": open_source(stages[1].out)}
        everything = {**plan.sources, **models}
        bits = self._measured(everything, corpus, tasks)
        said = answer(everything, [corpus.folder / HELD_OUT], corpus.key, config, out / "answers", samples=1, **drawn)
        means = held_out_scores(score_answers(said, corpus.held_out, score, config.score))
        scores = self._scores(everything)
        found = [self._as_measured(n, _role(n, models), s, bits, scores) for n, s in everything.items()]
        return Fused(
            config=self.config, out=out, models=tuple(replace(m, answers=means[m.name]) for m in found),
            counts=corpus.counts, tokens=corpus.tokens(TARGET), held_out=len(corpus.held_out), targets={},
            trainings={}, cache_bytes=0.0, seconds=time.monotonic() - self.began, model=out / "model",
            answers=Answers(len(pairs.sft), len(pairs.dpo), pairs.taken), overlaps=self._shared(),
        )  # fmt: skip

    def _tasks(self) -> Tasks:
        """What the work runs on. Ray is not started where one process does it all."""
        cluster, processes = self.options.cluster, self.config.training.processes
        if cluster.workers == 0:
            device = _device()
            self._check_gpus(_gpus() if device == "cuda" else processes, "this process sees {n:g} GPU(s)")
            return LocalTasks(device)
        self.watcher.say("starting the workers")
        tasks = RayTasks(cluster, self.watcher.say)
        try:
            self._check_gpus(tasks.gpus or processes, "a worker has {n:g} (--gpus-per-worker " + f"{processes})")
        except FusionError:
            tasks.close()
            raise
        return tasks

    def _check_gpus(self, there: float, words: str) -> None:
        processes = self.config.training.processes
        if there < processes:
            raise FusionError(
                f"{self.plan.file}: training.processes = {processes}: each needs a GPU of its own; "
                + words.format(n=there)
            )

    def _prepared(self) -> Prepared:
        plan = self.plan
        corpus = prepare(
            self.config.corpus, plan.root, plan.readers, plan.limit, self.config.teachers.shard_tokens,
            self.out / "corpus", self.watcher.say, lambda key: self.plan.record_corpus(self.out, key),
        )  # fmt: skip
        for line in (*corpus.counts.lines(), *corpus.held_counts.lines("held-out documents")):
            self.watcher.say(line)
        pieces, held = corpus.counts.pieces, len(corpus.held_out)
        self.watcher.say(
            f"{pieces:,} documents to learn from, {corpus.tokens(TARGET):,} tokens of the target; {held:,} held out"
        )
        self.overlaps = plan.overlaps(corpus)
        for line in self.overlaps.lines() if self.overlaps is not None else ():
            self.watcher.say(f"overlap: {line}")
        return corpus

    def _shared(self) -> dict[str, Any] | None:
        return None if self.overlaps is None else self.overlaps.to_dict()

    def _caches(self, corpus: Prepared, tasks: Tasks) -> dict[str, Cache]:
        config, plan = self.config.teachers, self.plan
        root = plan.caches or self.out / "teachers"
        files = tuple(corpus.folder / s.name for s in corpus.shards)
        passes = {}
        for name, source in plan.taught.items():
            dtype = computed_in(source, config.dtype, tasks.device)
            key = CacheKey(source.content_hash(), corpus.key_for(plan.readers[name]), config.top_k, dtype)
            passes[name] = Pass(
                name,
                source,
                files,
                folder_of(root, name, key),
                config.top_k,
                config.batch_tokens,
                config.dtype,
                self.config.trust_remote_code,
            )
        for line in plan.cost(tasks.size, {n: corpus.tokens(n) for n in passes}):
            self.watcher.say(line)
        fill(passes, corpus, tasks, self.watcher)
        return {name: open_cache(p.folder, len(corpus.shards)) for name, p in passes.items()}

    def _targets(self, corpus: Prepared, caches: Mapping[str, Cache], tasks: Tasks) -> dict[str, Targets]:
        config, plan = self.config, self.plan
        trust = config.trust_remote_code
        target = Told(TARGET, plan.sources[TARGET], caches.get(TARGET), plan.readers[TARGET].vocabulary.key)
        sources = tuple(
            Told(n, plan.sources[n], caches[n], plan.readers[n].vocabulary.key) for n in config.names if n in caches
        )
        maps: dict[str, Any] = {}
        if sources and (config.training.loss in MAPPED or config.alignment.aligner == "dynamic"):
            maps = vocabulary_maps(
                target, sources, corpus, config.alignment, self.out / "maps", tasks, self.watcher,
                trust_remote_code=trust,
            )  # fmt: skip
        files = tuple(corpus.folder / s.name for s in corpus.shards)
        jobs = []
        for name, teacher in zip(plan.results, config.names, strict=False):
            own = sources if config.fusion.mode == "joint" else tuple(s for s in sources if s.name == teacher)
            jobs.append(
                Job(
                    name,
                    target,
                    own,
                    files,
                    config.alignment,
                    config.fusion,
                    config.training.loss,
                    {s.name: maps[s.name] for s in own if s.name in maps},
                    self.out / "targets" / name,
                    trust,
                )
            )
        found = make_targets(jobs, corpus, tasks, self.watcher)
        for name, made in zip(plan.results, found, strict=True):
            if plan.learns:
                parts = ", ".join(f"{n} {c / max(made.aligned, 1):.0%}" for n, c in made.taken.items())
                share = made.aligned / max(made.learned, 1)
                self.watcher.say(
                    f"{name}: {share:.0%} of {made.learned:,} tokens learn from what models say of them ({parts})"
                )
                for source in (n for n, c in made.taken.items() if not c and n != TARGET):
                    self.watcher.say(
                        f"{name}: no token learns from {source}: the others expect the text better everywhere "
                        "(see fusion.include_target and fusion.per)"
                    )
        return dict(zip(plan.results, found, strict=True))

    def _trained(self, corpus: Prepared, targets: Mapping[str, Targets], tasks: Tasks) -> dict[str, Training]:
        config = self.config
        target = self.plan.sources[TARGET]
        runs = [
            Run(
                name=name,
                target=target.full_reference,
                content=target.content_hash(),
                files=tuple(str(f) for f in made.files),
                hashes=tuple(made.hashes),
                held_out=str(corpus.folder / HELD_OUT),
                held_out_hash=corpus.held_out_hash,
                domains=corpus.domains,
                config=config.training,
                work=str(self.out / "training" / name),
                out=str(self._model(name)),
                out_dtype=config.out_dtype,
                seed=config.seed + number,
                trust_remote_code=config.trust_remote_code,
            )
            for number, (name, made) in enumerate(targets.items())
        ]
        done = train_all(runs, tasks, self.watcher)
        for t in done:
            last = int(t.history[-1]["step"])
            why = f"; stopped after {last:,}: no better since" if t.stopped == "patience" else ""
            self.watcher.say(f"{t.name}: step {t.step:,} of {t.steps:,} taken, the best on held-out documents{why}")
        return {outcome.name: outcome for outcome in done}

    def _model(self, name: str) -> Path:
        return self.out / "models" / name if self.config.fusion.mode == "pairwise" else self.out / "model"

    def _measured(self, models: Mapping[str, Source], corpus: Prepared, tasks: Tasks) -> dict[str, dict[str, float]]:
        config = self.config
        asked = Measuring(
            corpus.folder / HELD_OUT, corpus.held_out_hash, corpus.domains, config.teachers.batch_tokens,
            config.teachers.dtype, config.trust_remote_code,
        )  # fmt: skip
        return measure(models, asked, self.out / "measured.json", tasks, self.watcher)

    def _say_rounding(self, trainings: Mapping[str, Training], bits: Mapping[str, Mapping[str, float]]) -> None:
        """Tell where the type of the checkpoint takes much of what was learned."""
        before = bits[TARGET]["mean"]
        for name, t in trainings.items():
            learned, written = mean(list(t.bits_per_byte.values())), bits[name]["mean"]
            if before > learned and written - learned > ROUNDING * (before - learned):
                self.watcher.say(
                    f"{name}: rounding to its checkpoint's type takes {(written - learned) / (before - learned):.0%} "
                    f"of what was learned ({learned:.4f} bits per byte in training, {written:.4f} as written); set "
                    "out_dtype: float32"
                )

    def _scores(self, models: Mapping[str, Source]) -> dict[str, Score]:
        """Every model on the evaluator's test items, as `evomerge evaluate` does it."""
        file = self.plan.evaluator
        if file is None:
            return {}
        kept, cluster = self.out / "scores.json", self.options.cluster
        return score_all(models, file, self.plan.definition(), kept, cluster, self.watcher)

    def _as_measured(
        self, name: str, role: str, source: Source, bits: Mapping[str, Mapping[str, float]], scores: Mapping[str, Score]
    ) -> Model:
        reference = self.config.target if role == TARGET else source.full_reference
        return Model(name, role, reference, source.content_hash(), source.architecture, bits[name], scores.get(name))

    def _searched(self) -> Outcome:
        """The search over the targets."""
        asked = self.config.then
        assert asked is not None and self.plan.search is not None
        wanted = asked.search
        models = {name: str(self._model(name).resolve()) for name in self.plan.results}
        self.watcher.say(f"searching over {', '.join(models)}")
        options = self.plan.search.options(list(models.values()), self.options.cluster, self.out)
        starts = write_starts(options, wanted.starts, self.out / FOLDER / "starts")
        for name in wanted.starts:
            if name not in {f.stem for f in starts}:
                self.watcher.say(f"then.search.starts: {name}: no merge of the space {wanted.space}; left out")
        options = replace(options, enqueue=starts)
        return search(options, self.searching, self.stop)

    def _merged(self, corpus: Prepared, outcome: Outcome) -> Model:
        source = open_source(str(outcome.model.resolve()))
        # The driver of a cluster may be a machine without a GPU.
        tasks = self._tasks() if self.options.cluster.address else LocalTasks(_device())
        try:
            bits = self._measured({"merged": source}, corpus, tasks)
        finally:
            tasks.close()
        scores = self._scores({"merged": source})
        return self._as_measured("merged", "merged", source, bits, scores)


def _role(name: str, made: Mapping[str, Source]) -> str:
    return TARGET if name == TARGET else "fused" if name in made else "source"


def _device() -> str:
    return "cuda" if _gpus() else "cpu"


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
