"""The same as the command line's main commands, for Python: what `import evomerge` exports, loaded when asked for."""

from evomerge.api.calls import evaluate, fuse, merge, search
from evomerge.api.study import Study

__all__ = ["Study", "evaluate", "fuse", "merge", "search"]
