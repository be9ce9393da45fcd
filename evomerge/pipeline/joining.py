"""`evomerge search ... --join`: add this process's workers to a search that another process drives."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from evomerge.errors import StudyError
from evomerge.pipeline.hybrid import Stages, stage_elsewhere
from evomerge.pipeline.one_space import offer_of, pool_of
from evomerge.pipeline.options import Asked, Options
from evomerge.pipeline.plan import Plan
from evomerge.space import HybridConfig
from evomerge.study.database import shown
from evomerge.study.joining import Joined, Joining
from evomerge.study.leases import Driver, driver_of
from evomerge.study.stopping import Stop
from evomerge.study.store import Store, differences
from evomerge.study.watcher import Silent, Watcher


def join(options: Options, watcher: Watcher | None = None, stop: Stop | None = None) -> Joined:
    """Work for the driver of the study that these options mean, until it ends.

    Args:
        options: The same that the driver was given; how many workers, and where, is this process's own.
        stop: By which it can be asked to leave; default: never.

    Raises:
        InputError: nobody drives it, or this process has another space, evaluator or sources.
        EvoMergeError: the driver was lost.
        Interrupted: it was asked to leave.
    """
    watcher, stop = watcher or Silent(), stop or Stop()
    watcher.say("checking space, evaluator and sources")
    asked = Asked.by(options)
    if isinstance(asked.config, HybridConfig):
        return _both_stages(Stages(options, asked, writes=False), watcher, stop)
    plan = Plan(options, asked, writes=False)
    _check_driven(plan.storage, plan.name)
    return _join(plan, watcher, stop)


def _both_stages(stages: Stages, watcher: Watcher, stop: Stop) -> Joined:
    """Join a hybrid search in the stage in which it is, and in what follows."""
    _check_driven(stages.storage, stages.name)
    first, before = stages.first(), None
    if "winner" not in Store(stages.storage).open(first.name).notes():
        before = _join(first, watcher, stop)
    with tempfile.TemporaryDirectory(prefix="evomerge-") as folder:
        stage = stage_elsewhere(first, Path(folder) / "model")
        if stage is None:  # its driver has ended without one
            assert before is not None
            return before
        after = _join(stages.second(stage), watcher, stop)
    if before is None:
        return after
    return Joined(
        after.study, before.candidates + after.candidates, before.jobs + after.jobs, before.seconds + after.seconds
    )


def _check_driven(storage: str, name: str) -> None:
    """Raise where nobody drives a study."""
    driver = driver_of(Store(storage), name)
    if driver is None or driver.gone:
        was = f" (its last driver, {driver}, is gone)" if driver is not None else ""
        raise StudyError(
            f'--join: nobody drives study "{name}" in {shown(storage)}{was}; leave --join out to drive it'
        )


def _join(plan: Plan, watcher: Watcher, stop: Stop) -> Joined:
    """Work for the driver of one search until it ends."""
    store = Store(plan.storage, say=watcher.say)

    def check_settings() -> None:
        study = store.open(plan.name)
        plan.resume(study)
        different = differences(study.fingerprint, json.loads(json.dumps(plan.fingerprint(plan.space, plan.sampler))))
        if different:
            raise StudyError(f'--join: study "{plan.name}" was made with other settings: {"; ".join(different)}')

    def check(driver: Driver) -> None:
        check_settings()
        theirs, mine = (dict(o) for o in (driver.offer, offer_of(plan, pool)))
        for offer in theirs, mine:  # models go by their content, wherever they lie
            offer["contents"] = sorted(offer["contents"].values())
        if other := differences(theirs, mine):
            words = "; ".join(other)
            raise StudyError(f'--join: study "{plan.name}" is driven with what this process has not: {words}')

    if plan.name in store.names():  # before the workers are started; its driver may not have made it yet
        check_settings()
    references = {content: reference for reference, content in plan.contents.items()}
    pool = pool_of(plan, watcher, stop)
    try:
        with stop.orderly():
            return Joining(store, plan.name, pool, references, check, watcher.say).run()
    finally:
        pool.close()
