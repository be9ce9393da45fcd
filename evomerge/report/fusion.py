"""A fusion as a table, as plain data, and as the cards of the checkpoints that it made."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from evomerge import __version__
from evomerge.comparison import interval
from evomerge.fusion.config import MAPPED, FusionConfig
from evomerge.publishing.front import front_matter, result
from evomerge.publishing.lineage import Lineage, lineage_of, model_name
from evomerge.publishing.sections import table_line
from evomerge.report.outputs import write_atomically, write_outputs
from evomerge.report.result import to_dict
from evomerge.report.table import verdict
from evomerge.score import Interval
from evomerge.study.fused import Fused, Model
from evomerge.study.outcome import Outcome

_MEAN = "mean"


def fusion_text(fused: Fused) -> str:
    """The table that the command prints."""
    domains = _domains(fused)
    scored = any(m.score is not None for m in fused.models)
    rows = _rows(fused, domains)
    head = rows[0]
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
    lines = [
        "held-out bits per byte (lower is better)"
        + (", the mean score of their answers (higher is better)" if fused.answers is not None else "")
        + (", and the evaluator's score (higher is better)" if scored else "")
    ]
    lines += ["  " + "  ".join(f"{c:<{w}}" for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    if fused.search is not None:
        lines.append(f"by the evaluator: {_verdict(fused.search)}")
    lines += [f"{fused.out}/: {_relative(fused.model, fused.out)}, README.md, result.json"]
    return "\n".join(lines)


def fusion_dict(fused: Fused) -> dict[str, Any]:
    """What result.json holds and `--json` prints."""
    return {
        "name": fused.config.name,
        "model": fused.model,
        "models": {
            m.name: {
                "role": m.role,
                "model": model_name(m.reference),
                "architecture": m.architecture,
                "sha256": m.content,
                "bits_per_byte": dict(m.bits_per_byte),
                **({"answers": m.answers} if m.answers is not None else {}),
                **({"score": interval(m.score).to_dict("score")} if m.score is not None else {}),
            }
            for m in fused.models
        },
        "corpus": {
            "documents": fused.counts.documents, "learned": fused.counts.pieces, "tokens": fused.tokens,
            "held_out": fused.held_out,
            **{
                kind: {k: n for k, (n, _) in getattr(fused.counts, kind).items()}
                for kind in ("left_out", "unwritable", "lossy")
            },
        },
        "bytes_per_position": round(fused.cache_bytes, 2),
        "trainings": {
            name: {
                "bits_per_byte": dict(t.bits_per_byte), "step": t.step, "steps": t.steps, "stopped": t.stopped,
                "seconds": round(t.seconds, 1), "history": [dict(line) for line in t.history],
                "aligned": fused.targets[name].aligned, "learned": fused.targets[name].learned,
                "taken": dict(fused.targets[name].taken),
            }
            for name, t in fused.trainings.items()
        },
        **(
            {"answers": {"best": fused.answers.best, "pairs": fused.answers.pairs, "taken": dict(fused.answers.taken)}}
            if fused.answers is not None
            else {}
        ),
        "seconds": round(fused.seconds, 1),
        **({"overlaps": dict(fused.overlaps)} if fused.overlaps is not None else {}),
        **({"search": to_dict(fused.search)} if fused.search is not None else {}),
    }  # fmt: skip


def write_fusion(fused: Fused) -> None:
    """Write a card into every checkpoint, and README.md and result.json of the whole; result.json last.

    Raises:
        EvoMergeError: the folder cannot be written.
    """
    made = [m for m in fused.models if m.role == "fused"]
    for m in made:
        _text(Path(m.reference) / "README.md", _card(fused, m, weights=True))
    if fused.search is not None:
        write_outputs(fused.search, fused.search.model.parent)
        # The search knows the targets alone; what these learned from is known here.
        _text(fused.search.model / "README.md", _card(fused, fused.models[-1], weights=True))
    several = len(made) > 1 and fused.search is None and fused.answers is None
    _text(fused.out / "README.md", _card(fused, None if several else fused.models[-1], weights=False))
    _text(fused.out / "result.json", json.dumps(_finite(fusion_dict(fused)), indent=2, ensure_ascii=False) + "\n")


def _card(fused: Fused, shown: Model | None, *, weights: bool) -> str:
    """A model card in the Hub's format: where the model comes from, what it was taught, and what it was measured to
    be.

    Args:
        shown: Which model; None: all that were made.
    """
    of = _lineage(fused)
    config = fused.config
    return f"""{_front(fused, shown, of)}
# {config.name}{f": {shown.name}" if len(fused.trainings) > 1 and weights and shown else ""}

{_made(fused, shown)}

## Measured

Bits per byte on {fused.held_out:,} held-out documents, lower is better; the same documents for every model, whatever
its tokenizer.{_score_words(fused)}

{_table(fused)}
{_search_words(fused)}
{of.section("a fusion", "its sources and of its text")}

## How it was made

{_how(fused, shown)}
Made by evomerge {__version__} (`evomerge fuse`), from this file:

```yaml
{_public(fused)}```
"""


def _front(fused: Fused, shown: Model | None, of: Lineage) -> str:
    merged = shown is not None and shown.role == "merged"
    target = next(m for m in fused.models if m.role == "target")
    named = {o.name: o.card.hub_id for o in of.origins}
    hub_id = named.get(model_name(target.reference))
    results = [
        result(domain, "bits_per_byte", value, f"{domain} (held-out documents)")
        for domain, value in (shown.bits_per_byte.items() if shown is not None else ())
        if domain != _MEAN
    ]
    return front_matter(
        of, name=fused.config.name, results=results, relation="merge" if merged else "finetune",
        base_model=[hub_id] if hub_id else [],
        tags=["evomerge", "knowledge-fusion", "distillation", *(["merge"] if merged else [])],
    )  # fmt: skip


def _made(fused: Fused, shown: Model | None) -> str:
    config = fused.config
    target = next(m for m in fused.models if m.role == "target")
    names = ", ".join(f"`{model_name(m.reference)}`" for m in fused.models if m.role == "source")
    if shown is None:
        return (
            f"One target from each of {names}, below `models/`: all of them `{model_name(target.reference)}` before, "
            "so that they can be merged though their sources could not (FuseChat)."
        )
    if shown.role == "merged":
        return (
            f"Merged from targets that each learned from one of {names}: all of them `{model_name(target.reference)}` "
            "before, so that models of different architecture and tokenizer could be merged (FuseChat)."
        )
    taken = fused.targets[shown.name].taken if shown.name in fused.targets else {}
    own = set(taken) or set(config.names)
    teachers = ", ".join(
        f"`{model_name(m.reference)}` ({m.architecture})" for m in fused.models if m.role == "source" and m.name in own
    )
    how = "knowledge fusion" if config.training.clm_weight < 1 else "training on text"
    if fused.answers is not None:
        how = "learning the best answers" + ("" if shown.name == "sft" else ", and to prefer them to the worst,")
    return f"`{model_name(target.reference)}` after {how} with {teachers}."


def _how(fused: Fused, shown: Model | None) -> str:
    lines = []
    for name, t in fused.trainings.items():
        if shown is not None and shown.role == "fused" and name != shown.name:
            continue
        made = fused.targets[name]
        share = made.aligned / max(made.learned, 1)
        parts = ", ".join(f"{n} {c / max(made.aligned, 1):.0%}" for n, c in made.taken.items())
        words = f"; {share:.0%} of its {made.learned:,} tokens learn from what models say of them ({parts})"
        learned = words if made.taken else ""
        lines.append(f"- {name}: step {t.step:,} of {t.steps:,} taken, the best on held-out documents{learned}")
    if fused.answers is not None:
        parts = ", ".join(f"{n} {c:,}" for n, c in fused.answers.taken.items())
        lines.append(f"- {fused.answers.best:,} best answers (SFT), {fused.answers.pairs:,} pairs (DPO), of {parts}")
    if fused.search is not None:
        best = fused.search.best
        lines.append(
            f"- the merge: candidate {best.number} of {len(fused.search.trials)}; `search/recipe.yaml` of the fusion "
            "rebuilds it"
        )
    lines.append(f"- {fused.counts.pieces:,} documents were learned from, {fused.held_out:,} held out")
    if fused.trainings:
        lines.append(f"- loss: {_loss(fused.config)}")
    lines += [f"- {line}" for line in fused.counts.lines(places=False)]
    return "\n".join(lines) + "\n"


def _loss(config: FusionConfig) -> str:
    """What was learned beside the text, defaults included."""
    training, function, alignment = config.training, config.fusion, config.alignment
    if training.clm_weight == 1:
        return "the text alone"
    mapped = f", vocabulary by {alignment.vocabulary}" if training.loss in MAPPED else ""
    return (
        f"{training.clm_weight:g} x text + {1 - training.clm_weight:g} x {training.loss}; {function.function} per "
        f"{function.per}; alignment by {alignment.aligner}{mapped}"
    )


def _public(fused: Fused) -> str:
    """The fusion's file with folders by their names alone: where they lie on somebody's disk is private."""
    config = fused.config
    data = config.model_dump(mode="json", exclude_unset=True)
    data["target"] = model_name(config.target)
    data["sources"] = [{"model": model_name(s.model), "name": s.name} for s in config.sources]
    data["corpus"]["path"] = _last(config.corpus.path)
    if isinstance(config.corpus.held_out, str):
        data["corpus"]["held_out"] = _last(config.corpus.held_out)
    data.get("teachers", {}).pop("folder", None)
    if config.evaluator is not None:
        data["evaluator"] = _last(config.evaluator)
    search = (data.get("then") or {}).get("search") or {}
    for key in ("space", "evaluator"):
        if search.get(key):
            search[key] = _last(search[key])
    if config.preferences is not None:
        data["preferences"]["score"] = _last(config.preferences.score)
    for section in (data.get("training"), *(data.get("preferences", {}).get(k) for k in ("sft", "dpo"))):
        arguments = (section or {}).get("arguments") or {}
        for key, value in arguments.items():
            if isinstance(value, str):
                arguments[key] = _last(value)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _last(path: str) -> str:
    return path if path.startswith("zoo:") else Path(path).name


def _table(fused: Fused) -> str:
    head, *rows = _rows(fused, _domains(fused))
    return "\n".join(
        [table_line(head), table_line(["---", "---", *["---:"] * (len(head) - 2)]), *map(table_line, rows)]
    )


def _rows(fused: Fused, domains: list[str]) -> list[list[str]]:
    """Heads, and the cells of each model."""
    scored = any(m.score is not None for m in fused.models)
    answered = any(m.answers is not None for m in fused.models)
    rows = [["model", "", *domains, *(["answers"] if answered else []), *(["score", "95 %"] if scored else [])]]
    for m in fused.models:
        cells = [m.name, _role(m), *(f"{m.bits_per_byte[d]:.4f}" if d in m.bits_per_byte else "" for d in domains)]
        if answered:
            cells.append(f"{m.answers:.4f}" if m.answers is not None else "")
        if scored:
            found = interval(m.score) if m.score is not None else None
            cells += [f"{found.mean:.4f}" if found else "", _span(found)]
        rows.append(cells)
    return rows


def _score_words(fused: Fused) -> str:
    words = ""
    if fused.answers is not None:
        words = " Answers: the mean score of one answer to each held-out question, higher is better."
    if fused.config.evaluator is None:
        return words
    return f"{words} The score is that of `{Path(fused.config.evaluator).stem}` on its test items, higher is better."


def _search_words(fused: Fused) -> str:
    if fused.search is None:
        return ""
    return f"\nBy the evaluator's test items, item by item: {_verdict(fused.search)}\n"


def _verdict(search: Outcome) -> str:
    """The search's own words; its base is the target as it was before."""
    words = verdict(search).replace("The best found", "The searched merge")
    return re.sub(r"(?<![\w.+-])base(?![\w+-])", "base (the target before)", words)


def _lineage(fused: Fused) -> Lineage:
    words = {"target": "the model that learned", "source": "a source"}
    models = [m for m in fused.models if m.role in words]
    roles = {m.reference: f"{words[m.role]}; {m.architecture}" for m in models}
    return lineage_of(roles, {m.reference: m.content for m in models}, "named")


def _role(m: Model) -> str:
    return {"target": "before", "source": "source", "fused": "fused", "merged": "searched merge"}[m.role]


def _domains(fused: Fused) -> list[str]:
    names = dict.fromkeys(d for m in fused.models for d in m.bits_per_byte if d != _MEAN)
    return [*names, _MEAN] if len(names) > 1 else [*names]


def _span(found: Interval | None) -> str:
    if found is None or found.low is None or found.high is None:
        return ""
    return f"{found.low:.4f} .. {found.high:.4f}"


def _relative(path: Path, folder: Path) -> str:
    return (
        f"{path.resolve().relative_to(folder.resolve())}/"
        if path.resolve().is_relative_to(folder.resolve())
        else str(path)
    )


def _text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda part: part.write_text(text, encoding="utf-8"))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
