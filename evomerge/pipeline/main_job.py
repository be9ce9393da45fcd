"""The main job, `evomerge search`: over one space, or in the two stages of a hybrid."""

from __future__ import annotations

from evomerge.pipeline.hybrid import run_hybrid
from evomerge.pipeline.one_space import run
from evomerge.pipeline.options import Asked, Options
from evomerge.pipeline.plan import Plan
from evomerge.space import HybridConfig
from evomerge.study.full import full_disks_stop
from evomerge.study.outcome import Outcome
from evomerge.study.stopping import Stop
from evomerge.study.watcher import Silent, Watcher


def search(options: Options, watcher: Watcher | None = None, stop: Stop | None = None) -> Outcome:
    """Run or resume a search, to the exported winner and its held-out evidence.

    Args:
        stop: By which it can be asked to end; default: never.

    Raises:
        InputError: what was given is wrong; nothing was started.
        EvoMergeError: every candidate failed, a source cannot be scored or has changed, or a disk is full.
        Interrupted: it was asked to end.
    """
    watcher, stop = watcher or Silent(), stop or Stop()
    watcher.say("checking space, evaluator and sources")
    asked = Asked.by(options)
    for change in asked.changes:
        watcher.say(f"{options.file}: {change}")
    plan = None if isinstance(asked.config, HybridConfig) else Plan(options, asked)
    out, storage = asked.places(options)
    with full_disks_stop(storage, out):
        return run_hybrid(options, asked, watcher, stop) if plan is None else run(plan, watcher, stop)
