"""Where workers run: Ray on this machine or a cluster that is named, and how its CPUs and GPUs are shared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from evomerge import arguments
from evomerge.errors import InputError

# A share of a GPU as a decimal fraction: 1 / 0.1 is to be 10.
_ROUNDING = 1e-6
# Workers for each CPU of this machine, above which it is said that they are many.
_CROWD = 2
# Kinds of machines that a message counts.
_KINDS = 6


@dataclass(frozen=True)
class Cluster:
    """Where the workers run.

    Attributes:
        address: Ray's address ("auto", "HOST:PORT", "ray://HOST:PORT"); None starts Ray on this machine.
        workers: How many; None: one per GPU, or per CPU where there is none.
        gpus_per_worker: GPU share of each worker; None: 1 where the cluster has GPUs, else 0.

    Raises:
        InputError: one of them is none of these.
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None

    def __post_init__(self) -> None:
        if self.address is not None:
            object.__setattr__(self, "address", arguments.text("address", self.address))
        if self.workers is not None:
            object.__setattr__(self, "workers", arguments.whole("workers", self.workers, 0, 10**6))
        if self.gpus_per_worker is not None:
            object.__setattr__(self, "gpus_per_worker", arguments.share("gpus_per_worker", self.gpus_per_worker))


@dataclass(frozen=True)
class Node:
    """What a machine of a cluster has for workers."""

    cpus: float
    gpus: float = 0.0

    def room(self, share: float) -> int:
        """How many workers with that share of a GPU fit on it (0: with a CPU each). A share below 1 is of one GPU."""
        if not share:
            return int(self.cpus)
        return int(self.gpus // share) if share >= 1 else int(self.gpus) * int(1 / share + _ROUNDING)


class Growth(Enum):
    """Whether machines may join while a search runs."""

    NONE = "Ray on this machine alone"
    UNKNOWN = "a cluster that was started by hand"
    AUTOSCALER = "an autoscaler starts machines for what waits"


@dataclass(frozen=True)
class Shares:
    """How many workers, and what each of them asks Ray for.

    Attributes:
        told: What the user should know: that workers will wait, and for what.
    """

    workers: int
    cpus: float
    gpus: float
    told: str | None = None


def shares(cluster: Cluster, nodes: Sequence[Node], growth: Growth) -> Shares:
    """Divide what a cluster has: a worker has all that it asks for on one machine.

    Args:
        nodes: The machines that are there now.

    Raises:
        InputError: more GPUs than there are, and nobody starts more; or the number of workers was left to a cluster
            that has nothing yet.
    """
    gpus = sum(n.gpus for n in nodes)
    share = cluster.gpus_per_worker if cluster.gpus_per_worker is not None else (1.0 if gpus else 0.0)
    room = sum(n.room(share) for n in nodes)
    where = "this machine" if growth is Growth.NONE else f"the cluster at {cluster.address or 'this job'}"
    if cluster.workers is None and growth is Growth.AUTOSCALER and room < 1:
        missing = f"no machine with {_gpus(share)}" if share else "no CPU for workers"
        raise InputError(
            f"--address {cluster.address or 'of this job'}: the cluster has {missing} yet, so the number of workers "
            "cannot be read from it; say what to ask for: --workers N, with --gpus-per-worker 1 where each needs a GPU"
        )
    workers = cluster.workers or max(1, room)
    lacking = (
        f"asked for {_counted(workers, 'worker')} with {_gpus(share) if share else '1 CPU'} each, and {where} has "
        f"{f'room for {room}' if room else 'none to give'}: {inventory(nodes)}"
    )
    if room >= workers:
        told = None
    elif growth is Growth.AUTOSCALER:
        told = f"{lacking}; the others wait for the machines that its autoscaler starts"
    elif share:
        most = max((n.gpus for n in nodes), default=0.0)
        whole = f"; no machine has {_gpus(share)} for one worker" if 0 < most < share <= gpus else ""
        raise InputError(f"--gpus-per-worker {share:g}: {lacking}{whole}")
    elif growth is Growth.NONE:
        told = None  # they share its CPUs; see `crowded`
    elif room:
        told = f"{lacking}; the others wait until CPUs are free"
    else:
        raise InputError(f"--workers: {lacking}")
    if share:
        return Shares(workers, 0.0, share, told)
    # More workers than CPUs share what this machine has; from a cluster each asks for a whole one, so that it grows.
    cpus = sum(n.cpus for n in nodes)
    return Shares(workers, min(1.0, cpus / workers) if growth is Growth.NONE else 1.0, 0.0, told)


def crowded(workers: int, cpus: int) -> str | None:
    """What to say of that many workers on this machine, where they are many."""
    if workers <= _CROWD * max(1, cpus):
        return None
    return (
        f"{workers} workers share this machine's {_counted(cpus, 'CPU')}, and each takes memory of its own: that is "
        f"for evaluators that wait for something else; else --workers {max(1, cpus)}"
    )


def inventory(nodes: Sequence[Node]) -> str:
    """What machines there are, in words."""
    kinds = Counter((n.gpus, n.cpus) for n in nodes)
    order = sorted(kinds, reverse=True)
    words = [
        f"{_counted(kinds[kind], 'machine')} with {_gpus(kind[0]) if kind[0] else 'no GPU'} and {kind[1]:g} CPUs"
        for kind in order[:_KINDS]
    ]
    more = [f"{len(order) - _KINDS} more kinds"] if len(order) > _KINDS else []
    return ", ".join([*words, *more]) or "it has no machine"


def _gpus(share: float) -> str:
    return f"{share:g} {'GPU' if share <= 1 else 'GPUs'}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
