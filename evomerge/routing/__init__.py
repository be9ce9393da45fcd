"""Data-flow space: paths over the layers of resident models, run live without copying a weight."""

from evomerge.routing.passes import LayerCounts
from evomerge.routing.router import Router

__all__ = ["LayerCounts", "Router"]
