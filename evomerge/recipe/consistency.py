"""What a recipe says that does not go together, or does nothing: seen in a recipe, and in a file that is none yet.

A file with a misspelt key or a wrong value is no recipe, but what else is wrong with it is worth telling at once. So
everything here reads plain data as well as models, and passes over what is not as it should be: that has a message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.config import Key, Problem
from evomerge.errors import choose
from evomerge.methods import IGNORED_PARAMETERS, METHODS
from evomerge.recipe.reference import WORDS, flat
from evomerge.recipe.values import scalars, value_problem


def inconsistencies(recipe: Any) -> Iterator[Problem]:
    """Each problem of a recipe that lies in no single key: its place, the value there, and what is wrong."""
    given = [k for k in ("models", "slices", "modules") if _get(recipe, k)]
    if len(given) != 1:
        yield (), None, f'expected exactly one of "models", "slices" and "modules", got {given or "none"}'
    if _get(recipe, "tokenizer_source") and _get(recipe, "tokenizer"):
        yield (), None, '"tokenizer_source" and "tokenizer" cannot both be given'
    name = _get(recipe, "merge_method")
    method = METHODS.get(name) if isinstance(name, str) else None
    if method is not None:
        yield from _parameter_problems(recipe)
        bases = [_get(holder, "base_model") for _, holder in _holders(recipe)]
        if method.base == "required" and all(base is None for base in bases):
            yield (), None, f'merge_method "{method.name}" needs a base_model'
    yield from _empty_slices(recipe)
    yield from _unknown_contents(recipe)


def ignored(recipe: Any) -> Iterator[str]:
    """Parameters that stand where they do nothing, in words. mergekit takes them there too: no error."""
    method = METHODS[_get(recipe, "merge_method")]
    for key, holder in _holders(recipe):
        if not _is_source(key):
            continue
        for name in _mapping(_get(holder, "parameters")):
            parameter = method.parameter(name)
            if parameter is not None and not parameter.per_source:
                yield (
                    f'{_dotted(key)}.parameters: "{name}" has no effect for one source ("{_get(holder, "model")}"): '
                    f"{method.name} has one {name} for all; give it under the recipe's or the slice's parameters"
                )


def unlike_mergekit(recipe: Any) -> Iterator[str]:
    """What a recipe of mergekit's builds in another way here, in words; nothing of recipes that were written by us."""
    if "evomerge" in recipe.model_fields_set:
        return
    if METHODS[recipe.merge_method].random:
        name = recipe.merge_method
        yield f"{name}: random masks follow from seed, model and tensor (mergekit: from torch's generator)"
    for key, holder in _holders(recipe):
        for name, setting in _mapping(_get(holder, "parameters")).items():
            entries = setting if isinstance(setting, list) and any(_get(e, "value") for e in setting) else [setting]
            for entry in entries:
                value = entry if isinstance(entry, list) else _get(entry, "value")
                everywhere = isinstance(entry, list) or _get(entry, "filter") in (None, "*")
                if isinstance(value, list) and everywhere and value[0] != value[-1]:
                    where = ".".join(filter(None, (_dotted(key) if key else "", "parameters", name)))
                    yield (
                        f"{where}: final norm and output head get the last value of the gradient, {value[-1]:g} "
                        f"(mergekit: the first, {value[0]:g})"
                    )
                    return


def filters(recipe: Any) -> list[str]:
    """Parts of tensors' names that values are given for, in order of first mention; not "*", which fits every name."""
    settings = [s for _, holder in _holders(recipe) for s in _mapping(_get(holder, "parameters")).values()]
    entries = [e for s in settings for e in (s if isinstance(s, list) else [s])]
    return list(dict.fromkeys(f for e in entries if (f := _get(e, "filter")) not in (None, "*")))


def merged_models(recipe: Any) -> list[str]:
    """The models that are merged, in order of first mention, the base last (as mergekit adds it)."""
    holders = [holder for _, holder in _holders(recipe)]
    named = [_reference(_get(holder, key)) for key in ("model", "base_model") for holder in holders]
    return list(dict.fromkeys(r for r in named if r))


def stack_ends(recipe: Any) -> tuple[str, str] | None:
    """Of a stack, whose slices have one source each: the models that give the embeddings, and norm and head."""
    pieces = [
        [source for _, source in _listed(place, piece, "sources")] for place, piece in _listed((), recipe, "slices")
    ]
    bases = [_get(holder, "base_model") for _, holder in _holders(recipe)]
    if not pieces or any(len(sources) != 1 for sources in pieces) or any(base is not None for base in bases):
        return None
    first, last = (_reference(_get(sources[0], "model")) for sources in (pieces[0], pieces[-1]))
    return (first, last) if first and last else None


def tokenizer_model(recipe: Any) -> list[str]:
    """The model whose tokenizer is asked for by its name, if there is one."""
    source = _reference(_get(recipe, "tokenizer_source") or _get(_get(recipe, "tokenizer"), "source"))
    return [source] if source and source not in WORDS else []


def _parameter_problems(recipe: Any) -> Iterator[Problem]:
    """Unknown parameter names, and values of the wrong kind or out of range."""
    method = METHODS[_get(recipe, "merge_method")]
    known = [p.name for p in method.parameters]
    for key, holder in _holders(recipe):
        for name, setting in _mapping(_get(holder, "parameters")).items():
            place = (*key, "parameters", name)
            parameter = method.parameter(str(name))
            if parameter is not None:
                for value in scalars(setting):
                    problem = value_problem(parameter, value)
                    if problem:
                        yield place, value, problem
            elif name not in (*IGNORED_PARAMETERS, *method.ignored):
                text = f'merge_method "{method.name}" has no parameter "{name}"; {choose(str(name), known)}'
                yield place, setting, text


def _empty_slices(recipe: Any) -> Iterator[Problem]:
    """Slices of no layers where they mean nothing: all they do is to give a path its embeddings, or norm and head."""
    for key, holder in _parts(recipe):
        pieces = [list(_listed(place, piece, "sources")) for place, piece in _listed(key, holder, "slices")]
        # Where only some of a slice's sources are without layers, their number differs, which has its message.
        empty = [sources[0][0] if sources and all(_is_empty(s) for _, s in sources) else None for sources in pieces]
        texts: list[str | None]
        if all(empty):
            texts = ["the path is empty: expected at least one layer"]
        else:
            texts = [_misplaced(recipe, number, pieces) for number in range(len(pieces))]
        for place, text in zip(empty, texts, strict=False):
            if place and text:
                yield (*place, "layer_range"), [0, 0], text


def _misplaced(recipe: Any, number: int, pieces: list[list[tuple[Key, Any]]]) -> str | None:
    """Why a slice may not have a source without layers, if so."""
    if _get(recipe, "merge_method") != "passthrough":
        return "expected [first, end] with first < end; only passthrough takes slices of no layers"
    if len(pieces[number]) > 1:
        return f"a slice of no layers names one source, got {len(pieces[number])}"
    if number not in (0, len(pieces) - 1):
        return "a slice of no layers gives the embeddings, or norm and head: expected it to be the first or the last"
    return None


def _is_empty(source: Any) -> bool:
    layers = _get(source, "layer_range")
    return isinstance(layers, list | tuple) and list(layers) == [0, 0]


def _unknown_contents(recipe: Any) -> Iterator[Problem]:
    """Content hashes of models that the recipe does not name: one that is misspelt would check nothing."""
    extras = _get(recipe, "evomerge")
    if not _mapping(_get(extras, "sources")):
        return
    into = _reference(_get(extras, "into"))
    named = [*merged_models(recipe), *tokenizer_model(recipe), *([into] if into else [])]
    folders = [f for f in _mapping(_get(extras, "statistics")).values() if isinstance(f, str)]
    for reference, digest in _mapping(_get(extras, "sources")).items():
        if reference not in named and reference not in folders:
            text = f'the recipe names no model "{reference}"; {choose(str(reference), [*named, *folders])}'
            yield ("evomerge", "sources", reference), digest, text


def _holders(recipe: Any) -> Iterator[tuple[Key, Any]]:
    """Everything in a recipe that may have parameters, with its place: itself, modules, slices and sources."""
    for key, holder in _parts(recipe):
        yield key, holder
        yield from _listed(key, holder, "models")
        for place, piece in _listed(key, holder, "slices"):
            yield place, piece
            yield from _listed(place, piece, "sources")


def _parts(recipe: Any) -> Iterator[tuple[Key, Any]]:
    """What may have models or slices, with its place: the recipe and its modules."""
    yield (), recipe
    yield from ((("modules", name), module) for name, module in _mapping(_get(recipe, "modules")).items())


def _listed(key: Key, holder: Any, name: str) -> Iterator[tuple[Key, Any]]:
    entries = _get(holder, name)
    if isinstance(entries, list | tuple):
        yield from (((*key, name, i), entry) for i, entry in enumerate(entries))


def _is_source(key: Key) -> bool:
    return len(key) > 1 and key[-2] in ("models", "sources")


def _get(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _reference(value: Any) -> str | None:
    """A reference in its short form, or None where it is none."""
    try:
        value = flat(value)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))
