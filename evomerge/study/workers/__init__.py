"""Workers on Ray, or in this process. The only importer of Ray."""

from evomerge.study.workers.cluster import Cluster, Growth, Node, Shares, shares
from evomerge.study.workers.joined import JoinedPool
from evomerge.study.workers.pools import LocalPool, Pool, RayPool
from evomerge.study.workers.tasks import LocalTasks, RayTasks

__all__ = [
    "Cluster",
    "Growth",
    "JoinedPool",
    "LocalPool",
    "LocalTasks",
    "Node",
    "Pool",
    "RayPool",
    "RayTasks",
    "Shares",
    "shares",
]
