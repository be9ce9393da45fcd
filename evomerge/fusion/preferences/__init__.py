"""Learning from answers instead of distributions: best answers by SFT, then pairs by DPO (FuseChat-3.0)."""

from evomerge.fusion.preferences.answers import Answered, answer, held_out_scores, score_answers
from evomerge.fusion.preferences.pairs import Pairs, choose_pairs, write_pairs
from evomerge.fusion.preferences.stages import Stage, check_stages, check_trl, run_stages

__all__ = [
    "Answered",
    "Pairs",
    "Stage",
    "answer",
    "check_stages",
    "check_trl",
    "choose_pairs",
    "held_out_scores",
    "run_stages",
    "score_answers",
    "write_pairs",
]
