"""Racing: which candidates can no longer be among the best few, told from a part of the items.

All candidates see the same items in the same random order. For each pair a bet is placed, item after item, on one being
better than the other over *all* items; the capital of a bet that cannot be won on average rarely grows large (Ville's
inequality), whenever one looks. A candidate that belongs among the best `best` has at least as many others that are not
better as there are places below: so the mean of that many of its lowest capitals is such a capital too, and where it
reaches 1 / drop the candidate is dropped. Each of the best few, the best itself among them, is dropped with a
probability of at most `drop`, however often one looks and however the items are cut into blocks.

Betting on means of bounded values drawn without replacement: Waudby-Smith and Ramdas, "Estimating means of bounded
random variables by betting" (arXiv 2010.09686, sections 4.1 and 5). Means of such capitals: Vovk and Wang, "E-values:
calibration, combination and applications" (arXiv 1912.06116, section 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

# What each bet stakes, as shares of the most that can never be lost; the capital is the mean over them, so that neither
# small nor large differences need be known beforehand.
STAKES = np.array([0.1, 0.25, 0.5, 0.8])
# Logarithm of more capital than anybody asks for.
LARGE = 300.0
EDGE = 1e-9


class Race:
    """Candidates compared item by item, over items drawn without replacement in random order.

    Args:
        candidates: How many start.
        best: How many places there are.
        weights: What each item counts, in the order in which they are drawn, shape (items,); they add up to 1.
        drop: Largest probability that one of the best is dropped.
        rivals: Results, in that order, of others that compete for the places and are never dropped, shape (items,) or
            less where one of them stopped: what was won against it by then stays.

    Raises:
        ValueError: a result is not between 0 and 1, or results are not those of who is left.
    """

    def __init__(
        self,
        candidates: int,
        best: int,
        weights: Sequence[float] | Numbers,
        drop: float,
        rivals: Iterable[Numbers] = (),
    ) -> None:
        self._weights = np.asarray(weights, dtype=np.float64)
        # Not copied: without generations each candidate under way has a race of its own.
        self._rivals = list(rivals)
        self._below = candidates + len(self._rivals) - best
        self._drop = drop
        self.left = list(range(candidates))
        self._failed: list[int] = []
        self.seen = 0
        # Of the sum over items of weight * (other - own), times the number of items: what came so far.
        others = candidates + len(self._rivals)
        self._sums = np.zeros((candidates, others))
        self._capital = np.zeros((len(STAKES), candidates, others))  # logarithms

    def see(self, results: Mapping[int, Sequence[float] | Numbers]) -> list[int]:
        """Look at the next items.

        Args:
            results: Of each candidate that is left, its results on the items that come next.

        Returns:
            Candidates that are dropped, the least hopeful first.
        """
        if sorted(results) != self.left:
            raise ValueError(f"results of candidates {sorted(results)}, expected those that are left: {self.left}")
        if not self.left:
            return []
        came = np.array([results[c] for c in self.left], dtype=np.float64)
        end = self.seen + came.shape[1]
        if end > len(self._weights):
            raise ValueError(f"{end} results of {len(self._weights)} items")
        if not ((came >= 0) & (came <= 1)).all():
            raise ValueError("racing needs results from 0 to 1")
        beside = np.concatenate([came, self._rivals_on(self.seen, end)])
        columns = [*self.left, *range(self._sums.shape[0], self._sums.shape[1])]
        at = np.ix_(self.left, columns)
        sums, capital = self._sums[at], self._capital[:, at[0], at[1]]
        total = len(self._weights)
        bound = total * float(self._weights.max())
        for i in range(came.shape[1]):
            place = self.seen + i
            differences = total * self._weights[place] * (beside[None, :, i] - came[:, None, i])
            # The mean of what is left where over all items the other is exactly as good.
            mean = -sums / (total - place)
            room = bound + mean
            # With no room left the other can only be as good where it loses every item that is to come; with less than
            # none not even then.
            gain, tight = differences - mean, room <= EDGE
            sure = tight & ((room < -EDGE) | (gain > EDGE))
            share = np.where(tight, 0.0, gain / np.where(tight, 1.0, room))
            won = np.where(sure[None], np.inf, capital + np.log1p(STAKES[:, None, None] * share[None]))
            both = ~np.isnan(differences)
            capital = np.where(both[None], won, capital)
            sums = np.where(both, sums + differences, sums)
        self._sums[at], self._capital[:, at[0], at[1]] = sums, capital
        self.seen = end
        return self._dropped()

    def leave(self, candidate: int) -> None:
        """A candidate has failed: it is worse than all others, and one place below the best is its own."""
        self.left.remove(candidate)
        self._failed.append(candidate)
        self._below -= 1

    def _rivals_on(self, start: int, end: int) -> Numbers:
        """The rivals' results on some items, NaN where one has none."""
        found = np.full((len(self._rivals), end - start), np.nan)
        for row, results in zip(found, self._rivals, strict=True):
            had = results[start:end]
            row[: len(had)] = had
        return found

    def _dropped(self) -> list[int]:
        """Who is dropped stays a rival of the others, with what its bets had won."""
        if self._below < 1:
            return []
        evidence = self.evidence()
        out = [c for c in sorted(self.left, key=lambda c: (-evidence[c], c)) if evidence[c] >= 1 / self._drop]
        self.left = [c for c in self.left if c not in out]
        return out

    def evidence(self) -> dict[int, float]:
        """Of each candidate that is left: the capital won against its being among the best."""
        found = {}
        capital = np.exp(np.minimum(self._capital, LARGE)).mean(axis=0)
        for c in self.left:
            others = np.delete(capital[c], [c, *self._failed])
            found[c] = float(np.sort(others)[: self._below].mean())
        return found
