"""A model becomes a Score: by lm-eval's tasks, a Python function or a command, on one split of the items."""

from evomerge.evaluation.config import (
    EVALUATORS,
    SPLITS,
    EvaluatorConfig,
    EvaluatorFile,
    Split,
    evaluator_for,
    load_evaluator,
)
from evomerge.evaluation.evaluator import Evaluator, SavedEvaluator, leaves_models, open_evaluator, saves_models

__all__ = [
    "EVALUATORS",
    "SPLITS",
    "Evaluator",
    "EvaluatorConfig",
    "EvaluatorFile",
    "SavedEvaluator",
    "Split",
    "evaluator_for",
    "leaves_models",
    "load_evaluator",
    "open_evaluator",
    "saves_models",
]
