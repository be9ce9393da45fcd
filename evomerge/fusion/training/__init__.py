"""A target learns from a text and from what sources say of it, by transformers' Trainer."""

from evomerge.fusion.training.run import Outcome, Run, train_all

__all__ = ["Outcome", "Run", "train_all"]
