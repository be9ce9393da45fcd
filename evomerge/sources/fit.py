"""Whether models can be merged tensor by tensor, told from their configurations and headers alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from evomerge.errors import SourceError
from evomerge.sources.denoisers import differing_denoisers, differing_latents
from evomerge.sources.layout import TEXT, Place
from evomerge.sources.noise import differing_noise
from evomerge.sources.settings import differing_settings
from evomerge.sources.source import HEADS, Source

# What must agree in the language models' configurations, by any of its names.
_WIDTH = ("hidden_size", "n_embd", "d_model")
_GEOMETRY = (
    _WIDTH,
    ("intermediate_size", "n_inner", "ffn_dim"),
    ("num_attention_heads", "n_head"),
    ("num_key_value_heads", "num_kv_heads"),
    ("head_dim",),
    ("num_local_experts", "num_experts", "n_routed_experts"),
)
# What would help.
_KIND = "models of different architecture are fused first: evomerge fuse, docs/fusion.md"
_INNER = "a vision-language model takes text models of its language model's own architecture"
_APART = "`into` names the one whose encoder stays, and merges their language models alone"
_SHAPE = "models of different shape are fused first: evomerge fuse, docs/fusion.md"
_VOCABULARY = "a tokenizer in the recipe reconciles vocabularies: tokenizer_source: union, base, or one of the models"
_LAYERS = "use `slices:` with layer_range to choose which layers are paired"
_HEAD = "save it with one: tie_word_embeddings: false and a copy of the embedding as lm_head.weight"
_ALIKE = "use models saved alike"
_NOISE = "models that were taught another noise say another thing, and no average of them says either"
_MEANING = "weights of equal shape then mean different things"
_ONE_CONFIG = "a path has one config.json for all of its layers"
# More than that about one source says nothing new.
_SHOWN = 12

# What does not fit, and what would help.
Mismatch = tuple[str, str]


@dataclass(frozen=True)
class _Pair:
    """Two models, and what of them is compared.

    Attributes:
        modules: Those that are merged.
        layers: Whether layers are paired one to one.
        vocabulary: Whether the vocabularies must agree.
        outside: Whether what stands before and after the layers is used of both.
    """

    first: Source
    other: Source
    modules: Sequence[str]
    layers: bool = True
    vocabulary: bool = True
    outside: bool = True


def check_fit(
    sources: Mapping[str, Source] | Sequence[Source],
    *,
    layers: bool = True,
    vocabulary: bool = True,
    modules: Collection[str] | None = None,
    ends: Collection[Source] | None = None,
) -> None:
    """Check that models can be merged tensor by tensor.

    Args:
        layers: Whether layers are paired one to one, so that their number must agree (False: slices choose them).
        vocabulary: Whether the vocabularies must agree (False: the recipe's tokenizer reconciles them).
        modules: Those that are merged; None takes every module that all of the sources have.
        ends: In a stack, the models whose tensors before and after the layers are taken: their vocabularies alone
            must agree. None: every model's are.

    Raises:
        SourceError: every mismatch with the first model (of a stack's ends), in one message, a line for each model.
    """
    models = _models(sources, ends)
    shared = [m for m in models[0].layout.stacks if all(m in s.layout.stacks for s in models)] if models else []
    merged = [m for m in shared if modules is None or m in modules]
    found: dict[Source, list[Mismatch]] = {}
    for other in models[1:]:
        outside = ends is None or other in ends
        found[other] = _mismatches(_Pair(models[0], other, merged, layers, vocabulary and outside, outside))
    _tell(models, found)


def check_path_fit(sources: Mapping[str, Source] | Sequence[Source], *, ends: Collection[Source] = ()) -> None:
    """Check that layers of models can follow each other on one path, which has one config.json.

    Beside the shapes, everything must agree that the configurations say of all layers alike (rotary embeddings, norms'
    epsilon, activation, ...). The number of layers and what is listed layer by layer may differ.

    Args:
        ends: The models that may give a path its embeddings, or norm and head: their vocabularies must agree too.

    Raises:
        SourceError: everything that differs from the first model (of the ends), in one message, a line for each model.
    """
    models = _models(sources, ends)
    found: dict[Source, list[Mismatch]] = {}
    for other in models[1:]:
        outside = other in ends
        pair = _Pair(models[0], other, [TEXT], layers=False, vocabulary=outside, outside=outside)
        found[other] = _mismatches(pair)
        if not any(help_ in (_KIND, _INNER, _APART) for _, help_ in found[other]):
            compared = {key for keys in _GEOMETRY for key in keys}
            found[other] += [(what, _ONE_CONFIG) for what in differing_settings(models[0], other, compared)]
    _tell(models, found)


def _models(sources: Mapping[str, Source] | Sequence[Source], ends: Collection[Source] | None) -> list[Source]:
    """The models in order, the ends of a stack before the rest, so that they are compared with one of them."""
    models = list(sources.values()) if isinstance(sources, Mapping) else list(sources)
    return models if ends is None else sorted(models, key=lambda model: model not in ends)


def _tell(models: Sequence[Source], found: Mapping[Source, Sequence[Mismatch]]) -> None:
    problems = [
        f'"{other.reference}" does not fit "{models[0].reference}": {_told(mismatches)}'
        for other, mismatches in found.items()
        if mismatches
    ]
    if problems:
        between = " " if len(problems) == 1 else "\n  "
        raise SourceError("the sources do not fit each other:" + between + between.join(problems))


def _told(mismatches: Sequence[Mismatch]) -> str:
    """In words: those that one thing would help together."""
    helped: dict[str, list[str]] = {}
    for what, help_ in mismatches[:_SHOWN]:
        helped.setdefault(help_, []).append(what)
    told = [f"{', '.join(whats)} ({help_})" for help_, whats in helped.items()]
    if len(mismatches) > _SHOWN:
        told.append(f"and {len(mismatches) - _SHOWN} more of the kind")
    return "; ".join(told)


def _mismatches(pair: _Pair) -> list[Mismatch]:
    """What keeps the other model from being merged with the first."""
    kinds = _kinds(pair.first, pair.other, pair.modules)
    if kinds:
        # Nothing else would say more: another architecture has other tensors all over.
        return [(kinds, _instead(pair))]
    found = list(_configured(pair))
    # Another width changes the shape of every tensor.
    wide = any(what.partition(" ")[0] in _WIDTH for what, _ in found)
    return found + list(_tensors(pair, shapes=not wide))


def _instead(pair: _Pair) -> str:
    """What helps where architectures differ: no fusion makes a language model one of another architecture's VLM."""
    if not (pair.first.composite or pair.other.composite):
        return _KIND
    both = pair.first.composite and pair.other.composite
    return _APART if both and any(m != TEXT for m in pair.modules) else _INNER


def _kinds(first: Source, other: Source, modules: Sequence[str]) -> str | None:
    """How the architectures of what is merged differ, told by the first key that both have and that differs."""
    if first.diffusion is not None or other.diffusion is not None:
        same = first.architecture == other.architecture
        return None if same else f"architecture {other.architecture} against {first.architecture}"
    if not (first.composite or other.composite) or any(m != TEXT for m in modules):
        named = [next(iter(s.config.get("architectures") or ()), None) for s in (first, other)]
        types = [s.config.get("model_type") for s in (first, other)]
        for words, (a, b) in (("architecture", named), ("model_type", types)):
            if a and b and a != b:
                return f"{words} {b} against {a}"
        return None
    a, b = (s.text_config.get("model_type") or s.config.get("model_type") for s in (first, other))
    # A language model goes by its own name inside a composite one: qwen2_vl_text is a qwen2, glm4v_text a glm4.
    if not (a and b) or a == b or _inner(f"{a}", f"{b}") or _inner(f"{b}", f"{a}"):
        return None
    return f"architecture {b} against {a}"


def _inner(name: str, plain: str) -> bool:
    """Whether a type is another's inside a model that sees: the plain one with "_..." or "v_..." after it."""
    rest = name.removeprefix(plain)
    return rest != name and rest.startswith(("_", "v_"))


def _configured(pair: _Pair) -> Iterator[Mismatch]:
    """Mismatches of the configurations."""
    first, other = pair.first, pair.other
    if first.diffusion is not None and other.diffusion is not None:
        yield from ((what, _NOISE) for what in differing_noise(first.diffusion.noise, other.diffusion.noise))
        yield from ((what, _MEANING) for what in differing_denoisers(first.config, other.config))
        yield from ((what, _MEANING) for what in differing_latents(first.diffusion.latents, other.diffusion.latents))
    for keys in _GEOMETRY if first.diffusion is None else ():
        named = ([(k, s.text_config[k]) for k in keys if s.text_config.get(k) is not None] for s in (first, other))
        a, b = (found[0] if found else None for found in named)
        if a and b and a[1] != b[1]:
            yield f"{b[0]} {b[1]} against {a[1]}", _SHAPE
    sizes = [s.text_config.get("vocab_size") for s in (first, other)]
    if pair.vocabulary and None not in sizes and sizes[0] != sizes[1]:
        yield f"vocab_size {sizes[1]} against {sizes[0]}", _VOCABULARY
    if pair.layers and first.num_layers != other.num_layers:
        yield f"{other.num_layers} layers against {first.num_layers}", _LAYERS


def _tensors(pair: _Pair, *, shapes: bool) -> Iterator[Mismatch]:
    """Mismatches of the tensors, all layers' tensors of one kind together."""
    first, other, modules = pair.first, pair.other, pair.modules
    a, b = (_kept(s, pair) for s in (first, other))
    heads = [any(place.bare in HEADS for place in kept) for kept in (a, b)]
    if heads[0] != heads[1]:
        tied = (first, other)[heads.index(False)]
        yield f'"{tied.reference}" has no output head of its own, its embedding is tied to it', _HEAD
    # Where the configurations name two vocabularies, or the recipe reconciles them, other numbers of rows are no news.
    rows_matter = pair.vocabulary and first.text_config.get("vocab_size") == other.text_config.get("vocab_size")
    differing: dict[str, list[str]] = {}
    for place, shape in a.items() if shapes else ():
        got = b.get(place, shape)
        if got != shape and not (place.by_token and got[1:] == shape[1:] and not rows_matter):
            words = f'" has shape {list(got)} against {list(shape)}'
            differing.setdefault(f"{place.bare}{words}", []).append(f'tensor "{other.layout.named(place)}{words}')
    for lines in differing.values():
        yield lines[0] + _more(lines), _SHAPE
    for side, have, lack, whose in (("lacks", a, b, first), ("has the extra", b, a, other)):
        names: dict[str, list[str]] = {}
        depth = {m: min(s.layout.layers_of(m) for s in (first, other)) for m in modules}
        for place in have:
            # Layers that only the deeper one has were told already; so was a head.
            told = place.bare in HEADS or (place.layer is not None and place.layer >= depth[place.module])
            if place not in lack and not told:
                names.setdefault(place.bare, []).append(f'{side} tensor "{whose.layout.named(place)}"')
        for lines in names.values():
            yield lines[0] + _more(lines), _ALIKE


def _kept(source: Source, pair: _Pair) -> dict[Place, tuple[int, ...]]:
    """Shapes by place; where layers are not paired, all layers of a model count as its first one."""
    found: dict[Place, tuple[int, ...]] = {}
    for name, info in source.merged_tensors.items():
        place = source.layout.places[name]
        if info.is_float and place.module in pair.modules and (pair.outside or place.layer is not None):
            if not pair.layers and place.layer is not None:
                place = Place(place.module, 0, place.bare)
            found.setdefault(place, info.shape)
    return found


def _more(lines: Sequence[str]) -> str:
    return f" and {len(lines) - 1} more of its kind" if len(lines) > 1 else ""
