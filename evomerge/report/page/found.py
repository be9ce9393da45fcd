"""What was found, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from evomerge.comparison import Difference
from evomerge.errors import SpaceError
from evomerge.report.page.blocks import Block, Section, Text
from evomerge.report.path import path_text
from evomerge.report.table import looks, number, probability, shared_items, shrinkage, signed, span, verdict
from evomerge.score import State, cost
from evomerge.space import SpaceConfig
from evomerge.study.outcome import Measured, Outcome
from evomerge.study.record import Record

RUNNING = "This search is still running"
INTERRUPTED = "This search was interrupted"


def found(record: Record) -> Section:
    """The section."""
    return Section("found", "What was found", tuple(_blocks(record)))


def _blocks(record: Record) -> Iterator[Block]:
    outcome = record.outcome
    if record.phase in ("running", "interrupted"):
        yield Text(_standing(record), "warning")
    if outcome is None:
        yield from _without_winner(record)
        return
    yield Text(answer(outcome), "lead")
    yield Text(verdict(outcome))
    yield from (Text(line) for line in _compared(outcome))
    yield from (Text(line) for line in shrinkage(outcome))
    yield from (Text(line, "warning") for line in shared_items(outcome))
    if outcome.looks > 1:
        yield Text(looks(outcome), "warning")
    yield from _limits(record)
    if (start := _start(record)) is not None:
        yield Text(f"The winner is {start}, which was tried before anything was searched for: nothing found beats it.")
    if record.path is not None:
        yield Text(f"The winner is a path over layers: {path_text(record.path, record.names)}.")


def _standing(record: Record) -> str:
    """How far a search is that has not come to its end."""
    count = len(record.ended)
    far = f"{count:,} candidate{' has' if count == 1 else 's have'} ended"
    underway = sum(t.state is State.RUNNING for t in record.trials)
    if record.phase == "running":
        words = f"{RUNNING} ({record.driver}): {far}, {underway:,} under way."
    else:
        words = f"{INTERRUPTED}: {far}. The same evomerge search command goes on where it was."
    if record.outcome is not None:
        words += f" What follows is about the winner chosen {record.since:,} candidates ago." if record.since else ""
    elif not record.won:
        words += " There is no winner yet: nothing here was measured on held-out items."
    return words


def _without_winner(record: Record) -> Iterator[Block]:
    best = record.best
    if best is None or best.value is None:
        failed = sum(t.state is State.FAIL for t in record.ended)
        why = f"; {failed:,} of {len(record.ended):,} failed" if failed else ""
        yield Text(f"No candidate is complete yet{why}.", "lead")
        return
    if record.won:
        yield Text(
            f"Candidate {best.number} was chosen, with {number(best.value)} on the search items. It is one stage "
            "of several: the test items are for the last stage's winner.",
            "lead",
        )
    else:
        words = f"The best so far is candidate {best.number}, with {number(best.value)} on the search items."
        yield Text(words, "lead")
    if record.lines:
        beaten = [n for n, (_, s) in record.lines.items() if best.value > s.value]
        scores = ", ".join(f"{n} {number(s.value)}" for n, (_, s) in record.lines.items())
        words = "all of them" if len(beaten) == len(record.lines) else ", ".join(beaten) or "none of them"
        yield Text(
            f"On the same items: {scores}. It is above {words} there, which proves nothing yet: it was chosen by these "
            "items."
        )


def answer(outcome: Outcome) -> str:
    """In one or two sentences: what the winner scores, and whether that is better than what there was before."""
    test = outcome.winner.interval
    words = f"Candidate {outcome.best.number} scores {number(test.mean)}"
    words += f" ({span(test)})" if test.low is not None else ""
    words += f" on {test.items:,} held-out items" if test.items else " on the held-out items"
    sources = [(m, d) for m, d in _pairs(outcome) if m.role == "source"]
    if not sources:
        return f"{words}."
    best, difference = max(sources, key=lambda pair: pair[0].test.value)
    if difference.proven and difference.mean > 0:
        return f"{words}, {_by(difference)} more than the best source, {best.name}: better beyond chance."
    if difference.proven:
        return f"{words}. It is worse than the best source, {best.name}, {_by(difference)}: use that one."
    other = "It may be no better" if difference.mean > 0 else "It is no better"
    than = f"the best source, {best.name} ({number(best.test.value)})"
    return f"{words}. {other} than {than}: {_by(difference)}, which may be chance."


def _by(difference: Difference) -> str:
    words = signed(difference)
    return f"{words} ({span(difference, sign=True)})" if difference.low is not None else words


def _start(record: Record) -> str | None:
    """What the winner is, in words, where it is what everybody tries first."""
    from evomerge.space.starts import start_of

    if not isinstance(record.config, SpaceConfig) or not isinstance(record.num_layers, int) or record.best is None:
        return None
    with suppress(SpaceError):
        start = start_of(record.config.bind(record.num_layers).starts(), record.best.params)
        return start.words if start is not None else None
    return None


def _compared(outcome: Outcome) -> Iterator[str]:
    """Against the best source, the base and the uniform merge: scores and paired differences."""
    pairs = _pairs(outcome)
    sources = sorted((p for p in pairs if p[0].role == "source"), key=lambda p: -p[0].test.value)
    chosen = [("the best source", p) for p in sources[:1]]
    chosen += [("the base", p) for p in pairs if p[0].role == "base"]
    chosen += [("the uniform merge", p) for p in pairs if p[0].role == "uniform"]
    chosen += [("the control", p) for p in pairs if p[0].role == "control"]
    parts = []
    for what, (measured, d) in chosen:
        name = f" {measured.name}" if measured.role in ("source", "control") else ""
        p = f", p {probability(d.holm)}".replace("p <", "p < ") if d.holm is not None else ""
        parts.append(f"{what}{name} ({number(measured.test.value)}) by {_by(d)}{p}")
    if parts:
        yield f"Item by item it differs from {'; from '.join(parts)}."


def _pairs(outcome: Outcome) -> list[tuple[Measured, Difference]]:
    return [(m, d) for m, d in zip(outcome.measured, outcome.differences, strict=True) if d is not None]


def _limits(record: Record) -> Iterator[Block]:
    from evomerge.study.goals import shown

    outcome = record.outcome
    assert outcome is not None
    for limit in outcome.aims.limits.get("test", ()):
        try:
            value = shown(limit.of, outcome.winner.test, outcome.best.attributes)
        except (KeyError, AssertionError):  # not measured there
            continue
        missed = limit.missed(value)
        words = "It does not keep the constraint" if missed else "It keeps the constraint"
        yield Text(f"{words} {limit.words}: {number(value)} on the test items.", "warning" if missed else "plain")


def about(record: Record) -> str:
    """One line below the title: what was searched, for how much."""
    sources = [s.name for s in record.config.sources] if record.config is not None else []
    sampler = record.fingerprint.get("sampler", {}).get("name", "")
    tasks = [t.name for t in record.evaluator.tasks if t.weight] if record.evaluator is not None else []
    parts = [
        f"Sources: {', '.join(sources)}" if sources else "",
        f"scored by {', '.join(tasks)}" if tasks else "",
        f"sampler {sampler}" if sampler else "",
        f"seed {record.fingerprint.get('seed', 0)}",
        f"{len(record.ended):,} candidates for {cost(record.ended):.4g} of budget",
    ]
    return "; ".join(p for p in parts if p) + "."
