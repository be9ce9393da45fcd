"""`evomerge search ... --join`: add this process's workers to a search that another process drives."""

from __future__ import annotations

import json

from evomerge.errors import InputError, StudyError
from evomerge.pipeline.one_space import offer_of, pool_of
from evomerge.pipeline.options import Asked, Options
from evomerge.pipeline.plan import Plan
from evomerge.space import HybridConfig
from evomerge.study.database import shown
from evomerge.study.joining import Joined, Joining
from evomerge.study.leases import Driver, driver_of
from evomerge.study.store import Store, differences
from evomerge.study.watcher import Silent, Watcher


def join(options: Options, watcher: Watcher | None = None) -> Joined:
    """Work for the driver of the study that these options mean, until it ends.

    Args:
        options: The same that the driver was given; how many workers, and where, is this process's own.

    Raises:
        InputError: nobody drives it, or this process has another space, evaluator or sources.
        EvoMergeError: the driver was lost.
    """
    watcher = watcher or Silent()
    watcher.say("checking space, evaluator and sources")
    asked = Asked.by(options)
    if isinstance(asked.config, HybridConfig):
        raise InputError(f"--join: {asked.config.name} is a hybrid space, whose searches take no joiners yet")
    plan = Plan(options, asked, writes=False)
    store = Store(plan.storage, say=watcher.say)
    driver = driver_of(store, plan.name)
    if driver is None or driver.gone:
        was = f" (its last driver, {driver}, is gone)" if driver is not None else ""
        raise StudyError(
            f'--join: nobody drives study "{plan.name}" in {shown(plan.storage)}{was}; leave --join out to drive it'
        )
    study = store.open(plan.name)
    plan.resume(study)
    different = differences(study.fingerprint, json.loads(json.dumps(plan.fingerprint(plan.space, plan.sampler))))
    if different:
        raise StudyError(f'--join: study "{plan.name}" was made with other settings: {"; ".join(different)}')
    pool = pool_of(plan, watcher)
    mine = offer_of(plan, pool)
    references = {content: reference for reference, content in plan.contents.items()}

    def check(driver: Driver) -> None:
        theirs = dict(driver.offer)
        # Models go by their content, wherever they lie.
        for offer in (found := {"stored": theirs, "given": dict(mine)}).values():
            offer["contents"] = sorted(offer["contents"].values())
        other = differences(found["stored"], found["given"])
        if other:
            words = "; ".join(other)
            raise StudyError(f'--join: study "{plan.name}" is driven with what this process has not: {words}')

    try:
        return Joining(store, plan.name, pool, references, check, watcher.say).run()
    finally:
        pool.close()
