"""What a recipe, or a chain of them, would do, in numbers and in words: `evomerge check RECIPE`. Loads no torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.cli.output import about
from evomerge.errors import InputError

if TYPE_CHECKING:
    from evomerge.merging.chain import OpenChain, PlannedStep
    from evomerge.merging.plan import Plan
    from evomerge.sources import Source

# Kinds of tensors that are listed for a group of them, and groups that are listed.
_KINDS, _GROUPS = 7, 40


def forecast(file: Path) -> tuple[dict[str, Any], str]:
    """Plan a recipe file to the end: plain data, and the same in words.

    Raises:
        InputError: every problem of the file, of its models and of what is to be done with them, one line each.
    """
    from evomerge.merging.chain import OpenChain, peak_disk
    from evomerge.merging.memory import peak_bytes
    from evomerge.merging.outline import weights_bytes
    from evomerge.recipe import load_chain

    try:
        chain = load_chain(file)
    except InputError as e:
        lines = str(e).splitlines()
        # What is no reference at all is told with the file already.
        lines += [more for more in dict.fromkeys(_models_too(file)) if not any(line.endswith(more) for line in lines)]
        raise type(e)("\n".join(lines)) from None
    opened = OpenChain.open(chain, root=file.parent)
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="evomerge-") as scratch:
        try:
            with about(file):
                planned = opened.plan(Path(scratch))
            steps = [_step(step) for step in planned]
        except InputError as e:
            problems.append(str(e))
    problems += _other_contents(opened, download=not problems)
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    final = planned[-1].plan
    facts: dict[str, Any] = {
        "method": chain.final.merge_method,
        "models": chain.references(),
        "plan": steps[-1],
        "steps": steps[:-1],
        "unused": list(chain.unused),
        "ignored": chain.ignored(),
        "unlike_mergekit": chain.unlike_mergekit(),
        "bytes_read": sum(step["bytes_read"] for step in steps),
        "bytes_written": sum(step["bytes_written"] for step in steps),
        "output_bytes": weights_bytes(final),
        "memory_bytes": max(peak_bytes(step.plan) for step in planned),
        "disk_bytes": peak_disk(planned),
    }
    return facts, "\n".join(_words(facts))


def _other_contents(opened: OpenChain, *, download: bool) -> list[str]:
    """Models that are not those the recipe was made with, where it says which they were: they are read for it.

    Args:
        download: Whether those that are on the hub alone are downloaded; else nothing is said of them.
    """
    from evomerge.sources import differing, fetch, hash_sources

    expected = {r: digest for step in opened.chain.steps for r, digest in step.recipe.evomerge.sources.items()}
    named = {r: s for r, s in opened.sources.items() if r in expected and (download or not s.absent)}
    fetch(named.values())
    return differing(hash_sources(named), expected)


def _models_too(file: Path) -> list[str]:
    """What is wrong with the models of a file that is no recipe, as far as it says which they are."""
    from evomerge.config import parse_documents, read_text
    from evomerge.merging.tokens import check_template
    from evomerge.merging.unopened import misfits
    from evomerge.recipe import ModelReference, merged_models, tokenizer_model
    from evomerge.sources import open_sources

    try:
        documents = [d.data for d in parse_documents(read_text(file), str(file)) if isinstance(d.data, dict)]
    except InputError:
        return []
    made = [str(data.get("name")) for data in documents if data.get("name") is not None]
    asked = {r: "tokenizer_source: " for data in documents for r in tokenizer_model(data)}
    merged = [r for data in documents for r in merged_models(data)]
    lines: list[str] = []

    def noted(check: Callable[[], object]) -> None:
        try:
            check()
        except InputError as e:
            lines.extend(str(e).splitlines())

    def outside(reference: str) -> bool:
        try:
            return ModelReference.parse(reference).path not in made
        except InputError:
            return True  # open_sources() says what is wrong with it

    named = {r: words for r, words in asked.items() if r not in merged}
    noted(lambda: open_sources(filter(outside, [*merged, *named]), file.parent, named, weights=False))
    for data in documents:
        lines += misfits(data, made, file.parent)
        template = data.get("chat_template")
        if isinstance(template, str):
            noted(partial(check_template, template))
    return lines


def _step(step: PlannedStep) -> dict[str, Any]:
    plan = step.plan
    return {
        **({"name": step.step.name} if step.step.name is not None else {}),
        **plan.summary(),
        "tokenizer": _tokenizer(plan),
        "chat_template": _chat_template(plan),
        "adapters": [_adapter(plan.sources[r]) for r in plan.recipe.references() if plan.sources[r].adapter],
        "statistics": [
            {"model": model, "folder": s.folder, "kind": s.kind, **{k: s.facts.get(k) for k in ("samples", "tokens")}}
            for model, s in plan.statistics.items()
        ],
        "idle_filters": _idle_filters(plan),
    }


def _idle_filters(plan: Plan) -> list[str]:
    """Filters that are in no tensor's name, as a misspelt one is: what they were to apply to has other values."""
    from evomerge.recipe import filters

    names = {t.name for t in plan.tensors} | {i.tensor for t in plan.tensors for i in t.inputs}
    return [f for f in filters(plan.recipe) if not any(f in name for name in names)]


def _tokenizer(plan: Plan) -> dict[str, Any]:
    """Whose tokenizer the merge has, and how many tokens and rows where the recipe asks for one."""
    merged = plan.vocabulary
    if merged is None:
        return {"of": plan.tokenizer, "changed": False}
    own = merged.own.get(plan.tokenizer)
    return {
        "of": plan.tokenizer,
        "asked": merged.settings.source,
        "changed": merged.changed,
        "tokens": len(merged.vocabulary.ids),
        "new": len(merged.vocabulary.ids) - len(own.ids) if own else 0,
        "rows": merged.size,
    }


def _chat_template(plan: Plan) -> dict[str, Any]:
    """Where the chat template comes from, and its text; None where there is none."""
    from evomerge.merging.tokens import chat_template
    from evomerge.merging.tokens.template import AUTO, names, template_of

    asked = plan.recipe.chat_template
    text = template_of(plan.recipe, plan.sources)
    if text is None:
        text = chat_template(plan.sources[plan.tokenizer].path)
        return {"from": plan.tokenizer if text is not None else None, "text": text}
    return {"from": asked if asked in (AUTO, *names()) else "the recipe", "text": text}


def _adapter(source: Source) -> dict[str, Any]:
    adapter = source.adapter
    assert adapter is not None
    return {
        "adapter": adapter.reference,
        "model": adapter.model.reference,
        "ranks": sorted({update.rank for update in adapter.updates.values()}),
        "tensors": len(adapter.updates),
        "replaced": len(adapter.replaced),
    }


def _words(facts: Mapping[str, Any]) -> Iterator[str]:
    from evomerge.merging.memory import in_words

    steps: Sequence[Mapping[str, Any]] = [*facts["steps"], facts["plan"]]
    for step in steps:
        if len(steps) > 1:
            yield f'\nstep "{step["name"]}"' if step.get("name") and step is not steps[-1] else "\nthe final recipe"
        yield from _step_words(step)
    if len(steps) > 1:
        yield "\naltogether"
    yield f"reads {in_words(facts['bytes_read'])}, writes {in_words(facts['bytes_written'])}"
    yield f"weights on disk: {in_words(facts['output_bytes'])}"
    if len(steps) > 1:
        yield f"room needed meanwhile: {in_words(facts['disk_bytes'])}"
    yield f"memory beyond mapped files: at most {in_words(facts['memory_bytes'])}"
    for name in facts["unused"]:
        yield f'not built: "{name}", which no other recipe uses'
    for line in facts["ignored"]:
        yield f"ignored: {line}"
    for line in facts["unlike_mergekit"]:
        yield f"unlike mergekit: {line}"


def _step_words(step: Mapping[str, Any]) -> Iterator[str]:
    counted = f"{step['tensors']:,} tensors, {step['parameters']:,} parameters"
    if step["layers"]:
        yield f"{step['method']}: {step['layers']} layers, {counted}; configuration of {step['configuration_of']}"
        yield _tokenizer_words(step["tokenizer"])
        template = step["chat_template"]
        yield f"chat template: {template['from'] or 'none'}"
    else:  # of a diffusion model
        yield f"{step['method']}: {counted}; everything beside the denoiser of {step['configuration_of']}"
    for adapter in step["adapters"]:
        ranks = " and ".join(map(str, adapter["ranks"])) or "none"
        own = f", {_counted(adapter['replaced'], 'tensor')} of its own" if adapter["replaced"] else ""
        changed = _counted(adapter["tensors"], "tensor")
        yield f"adapter {adapter['adapter']} on {adapter['model']}: rank {ranks}, changes {changed}{own}"
    for s in step["statistics"]:
        text = f"{_counted(s['samples'], 'document')}, {_counted(s['tokens'], 'token')}"
        yield f"{s['kind']} statistics of {s['model']}: {s['folder']} ({text})"
    for name in step["idle_filters"]:
        yield f'filter "{name}": in the name of no tensor'
    for group in step["groups"][:_GROUPS]:
        yield f"  {group['words']}"
        yield f"    {_counted(group['tensors'], 'tensor')}, {group['elements']:,} parameters: {_kinds(group)}"
    if len(step["groups"]) > _GROUPS:
        yield f"  and {len(step['groups']) - _GROUPS} more groups (--json lists them)"


def _tokenizer_words(tokenizer: Mapping[str, Any]) -> str:
    if "asked" not in tokenizer:
        return f"tokenizer: of {tokenizer['of']}"
    new = f", {tokenizer['new']:,} of them new to it" if tokenizer["new"] > 0 else ""
    return (
        f"tokenizer: {tokenizer['asked']}, on that of {tokenizer['of']}: {tokenizer['tokens']:,} tokens{new}; "
        f"{tokenizer['rows']:,} rows of embeddings"
    )


def _kinds(group: Mapping[str, Any]) -> str:
    kinds = [kind.removesuffix(".weight") for kind in group["kinds"]]
    more = f" and {_counted(len(kinds) - _KINDS, 'more kind')}" if len(kinds) > _KINDS else ""
    return f"{', '.join(kinds[:_KINDS])}{more}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
