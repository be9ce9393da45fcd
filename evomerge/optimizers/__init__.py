"""Ask and tell on typed parameters."""

from evomerge.optimizers.protocol import Optimizer
from evomerge.optimizers.restarts import RESTARTS
from evomerge.optimizers.table import OPTIMIZERS, default_optimizer, make_optimizer, restarts_of

__all__ = ["OPTIMIZERS", "RESTARTS", "Optimizer", "default_optimizer", "make_optimizer", "restarts_of"]
