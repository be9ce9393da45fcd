"""Text models among vision-language models: which of these candidates are, and how the text models are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from evomerge.errors import EvaluatorError, SpaceError
from evomerge.evaluation import Evaluator, EvaluatorFile
from evomerge.merging.modules import is_composite
from evomerge.merging.small_files import PROCESSORS
from evomerge.recipe import Extras, InputModel, Recipe
from evomerge.sources import Source
from evomerge.space import DataflowConfig, SpaceConfig
from evomerge.space.source import named_models

C = TypeVar("C", bound=SpaceConfig | DataflowConfig)


def seeing(config: C, sources: Mapping[str, Source]) -> C:
    """The space with the vision-language model named that candidates are, where some of its models are text models.

    Of merges it is the one that they are put into (`into`), of paths the one that gives the embeddings, and with them
    image encoder and projector. Where all of the models are of one kind nothing changes.

    Raises:
        SpaceError: a text model is named in its place.
    """
    named = [r for r in config.references() if r in sources]
    sighted = [r for r in named if is_composite(sources[r])]
    if isinstance(config, SpaceConfig):
        if config.into is not None and config.into not in sighted:
            raise SpaceError(f'into: "{config.into}" is a text model; {_expected(sighted)}')
        if config.into is not None or not sighted or len(sighted) == len(named):
            return config
        return config.model_copy(update={"into": sighted[0]})
    names = [s.name for s in config.sources if s.model in sighted]
    if not names or len(names) == len(config.sources):
        return config
    wrong = [name for name in config.embeddings or () if name not in names]
    if wrong:
        raise SpaceError(f'embeddings: "{wrong[0]}" is a text model; {_expected(names)}')
    return config if config.embeddings else config.model_copy(update={"embeddings": (names[0],)})


def inside(text: str, into: str, config: SpaceConfig | DataflowConfig) -> Recipe:
    """A text model as the language model of a vision-language model: what of it can be asked about pictures."""
    return Recipe(
        merge_method="passthrough", models=[InputModel(model=text)], dtype=config.dtype, out_dtype=config.out_dtype,
        tokenizer_source=config.tokenizer_source, evomerge=Extras(into=into),
    )  # fmt: skip


def words(config: SpaceConfig | DataflowConfig, live: str, sources: Mapping[str, Source]) -> list[str]:
    """What the user should know of text models among vision-language models, a line or none.

    Args:
        live: The model that candidates are.
    """
    if not is_composite(sources[live]):
        return []
    text = [sources[r].name for r in named_models(config.base_model, config.sources) if not is_composite(sources[r])]
    if not text:
        return []
    return [
        f"{sources[live].name} sees: a language model for it is searched for, made of its own and of text models "
        f"({', '.join(text)}); its image encoder and projector stay, and text models are measured as its language model"
    ]


def check_sees(evaluator: Evaluator, file: EvaluatorFile, model: Source) -> None:
    """Refuse an evaluator that shows pictures to a model that cannot be shown any: its processor is loaded for it.

    Args:
        file: What it was opened of.
        model: What candidates are.

    Raises:
        EvaluatorError: it has no processor, or one without the chat template that is to be applied.
        SourceError: it has one that cannot be loaded: a library is missing, or a file is wrong.
    """
    if not evaluator.sees:
        return
    if not any((model.path / name).is_file() for name in PROCESSORS):
        what = "has no processor" if is_composite(model) else "is a text model"
        raise EvaluatorError(
            f'{file.file}: shows pictures, and "{model.reference}" {what}; expected a vision-language model with the '
            f"files of its processor ({' or '.join(PROCESSORS[:2])})"
        )
    from evomerge.merging.live import load_processor

    processor = load_processor(model, trust_remote_code=file.config.trust_remote_code)
    if file.config.kind == "lm_eval" and file.config.apply_chat_template and not processor.chat_template:
        raise EvaluatorError(
            f'{file.file}: apply_chat_template: the processor of "{model.reference}" has no chat template (its '
            "tokenizer's is not asked); expected chat_template.jinja beside it, or apply_chat_template: false"
        )


def _expected(sighted: Sequence[str]) -> str:
    found = " or ".join(f'"{name}"' for name in sighted)
    return f"expected a vision-language model, as {found} is" if found else "expected a vision-language model"
