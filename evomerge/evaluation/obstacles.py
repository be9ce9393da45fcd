"""What tasks must not ask for: where greedy likelihood would not be exact match of greedy generation, and where answers
cannot be held to a language."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

METRIC = "exact_match"
# Options of lm-eval that say where a generation ends, or are for sampling, which greedy decoding does not look at.
_HARMLESS = {"until", "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"}
_HARMLESS |= {"do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p"}
# transformers' options by which `generate` writes other tokens than the likeliest; the value of each that does nothing,
# where it is not empty.
_SHAPING: Mapping[str, float | None] = {
    "num_beams": 1,
    "repetition_penalty": 1,
    "encoder_repetition_penalty": 1,
    "guidance_scale": 1,
    "no_repeat_ngram_size": None,
    "min_length": None,
    "min_new_tokens": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
    "stop_strings": None,
    "token_healing": None,
    "max_time": None,
}


def settings_that_change_greedy(settings: Mapping[str, Any]) -> list[str]:
    """`NAME = VALUE` of each setting of transformers' generation that makes it write other tokens than the likeliest.

    `settings` may hold others: they are not looked at.
    """
    return [f"{k} = {settings[k]}" for k, off in _SHAPING.items() if settings.get(k) and settings[k] != off]


def right_answer(task: Any, doc: Any) -> Any:
    """The right answer of an item as lm-eval compares it: text, or a list where there are several."""
    target = task.doc_to_target(doc)
    if task.config.doc_to_choice is not None:
        target = task.doc_to_choice(doc)[target]
    return target if isinstance(target, list) else str(target)


def obstacles(task: Any, metric: str, chosen: str, docs: Iterable[Any]) -> Iterator[str]:
    """Why a task cannot be scored by its greedy likelihood, a line each; none: it can.

    Args:
        task: lm-eval's task.
        metric: The metric that counts.
        chosen: Name of the filter that counts.
        docs: The items that would be scored.
    """
    from lm_eval.api.task import ConfigurableTask

    kind = task.get_config("output_type") or task.OUTPUT_TYPE
    if kind != "generate_until":
        yield f"the task is {kind}; expected generate_until"
        return
    ours = all(getattr(type(task), n, None) is getattr(ConfigurableTask, n) for n in _METHODS)
    if not ours or task.config.process_results is not None:
        yield f"the task scores answers by code of its own; expected lm-eval's {METRIC}"
        return
    if metric != METRIC:
        yield f'metric "{metric}": expected {METRIC}'
    yield from _other_texts(task)
    yield from _filters(task, chosen)
    yield from _generation(task)
    if any(isinstance(right_answer(task, doc), list) for doc in docs):
        yield "items have several right answers; expected one"


_METHODS = ("process_results", "construct_requests", "build_all_requests", "apply_filters")


def _other_texts(task: Any) -> Iterator[str]:
    """Options of the metric by which other texts than the answer count as right."""
    for entry in task.config.metric_list or ():
        if callable(entry["metric"]):
            if entry["metric"].__name__ == METRIC:
                yield f"{METRIC} is a function of the task's own; expected lm-eval's"
        elif entry["metric"] == METRIC:
            names = [k for k in entry if k not in ("metric", "aggregation", "higher_is_better", "hf_evaluate")]
            named = ", ".join(n for n in names if entry[n])
            if named:
                yield f"{METRIC} with {named} takes other texts for right too; expected none of its options"


def _filters(task: Any, chosen: str) -> Iterator[str]:
    used = next((f["filter"] for f in task.config.filter_list or () if f["name"] == chosen), None)
    if used is None:
        return
    names = [f["function"] if isinstance(f["function"], str) else "a function" for f in used]
    if set(names) != {"take_first"}:
        yield (
            f'filter "{chosen}" ({", ".join(names)}) changes what is compared; '
            "expected lm-eval's default, take_first alone, which leaves an answer as it was generated"
        )


def _generation(task: Any) -> Iterator[str]:
    from lm_eval.models.utils import normalize_gen_kwargs

    options = dict(task.config.generation_kwargs or {})
    if normalize_gen_kwargs(options)["do_sample"]:
        given = ", ".join(f"{k}: {options[k]}" for k in ("do_sample", "temperature") if k in options)
        yield f"generation_kwargs sample ({given}); expected do_sample: false"
    known = _HARMLESS | _SHAPING.keys()
    yield from (f"generation_kwargs set {s}; expected greedy decoding" for s in settings_that_change_greedy(options))
    unknown = [k for k in options if k not in known]
    if unknown:
        yield f"generation_kwargs set {', '.join(unknown)}; expected until, max_gen_toks and do_sample alone"


def language_obstacles(task: Any, metric: str, higher: bool) -> Iterator[str]:
    """Why an answer of a task cannot count only where it is in a language, a line each; none: it can.

    Args:
        metric: The metric that counts; of an answer in another language it becomes 0, which must be the least.
        higher: Whether it is better when higher.
    """
    kind = task.get_config("output_type") or task.OUTPUT_TYPE
    if kind != "generate_until":
        yield f"the task is {kind}; expected generate_until, for only there is an answer"
        return
    if getattr(task.aggregation()[metric], "__name__", "") != "mean":
        yield f'metric "{metric}" is no mean over items; expected one that is'
    if not higher:
        yield f'metric "{metric}" is better when lower; expected one that is 0 at the least'
    repeats = task.get_config("repeats") or 1
    if repeats > 1:
        yield f"repeats = {repeats}; expected one answer for each item"
