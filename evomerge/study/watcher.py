"""What a search tells whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from evomerge.score import Trial
from evomerge.study.budget import Budget


class Watcher(Protocol):
    """Is told what happens, to show it."""

    def say(self, text: str) -> None:
        """What is done now, or a fact worth a line."""

    def begin(self, name: str, budget: Budget, lines: Mapping[str, float], spent: float) -> None:
        """A search (the main one, or a control) begins, or goes on after `spent` seconds.

        `lines` are the values of base, sources and uniform merge on the same items.
        """

    def finished(self, trial: Trial, replayed: bool) -> None:
        """A candidate ended, or one of an earlier run was read again."""


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def begin(self, name: str, budget: Budget, lines: Mapping[str, float], spent: float) -> None:
        """Nothing."""

    def finished(self, trial: Trial, replayed: bool) -> None:
        """Nothing."""
