"""What some methods must know about a model beyond its weights: Fisher information, Gram matrices of layer inputs.

`evomerge statistics` collects them from a small text, once for each model; recipes name the folders under
`evomerge: statistics:`.
"""

from evomerge.merging.statistics.files import KINDS, Statistics, of_plan, open_statistics, tensors_of, unnamed

__all__ = ["KINDS", "Statistics", "of_plan", "open_statistics", "tensors_of", "unnamed"]
