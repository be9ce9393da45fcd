"""A model becomes a Score: by lm-eval's tasks, a Python function or a command, on one split of the items."""

from evomerge.evaluation.config import EVALUATORS, SPLITS, EvaluatorConfig, Split
from evomerge.evaluation.evaluator import Evaluator, SavedEvaluator, leaves_models, open_evaluator, saves_models
from evomerge.evaluation.file import EvaluatorFile, evaluator_for, load_evaluator

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
