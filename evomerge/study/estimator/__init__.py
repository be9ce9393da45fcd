"""Full scores from few answers, by an item-response model of who answered which items right."""

from evomerge.study.estimator.ability import Prior, abilities
from evomerge.study.estimator.estimates import KINDS, means, paired, predicted
from evomerge.study.estimator.informative import anchors, informative
from evomerge.study.estimator.model import ItemResponse, fit
from evomerge.study.estimator.validation import Choice, compare

__all__ = [
    "KINDS", "Choice", "ItemResponse", "Prior", "abilities", "anchors", "compare", "fit", "informative", "means",
    "paired", "predicted",
]  # fmt: skip
