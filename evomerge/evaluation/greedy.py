"""Exact match of greedy generation, read off one forward pass.

The right answer is the draft, as in speculative decoding. A pass over prompt and answer (teacher forcing) gives the
token that the model holds likeliest at every place. As long as these are the draft's, they are what greedy generation
writes; so is the first one that is not. What it wrote up to there nearly always decides the item: it stopped after the
right answer, or it left it. The rare rest is generated (an answer that is spelt with other tokens, or stopped by a
string of several tokens that is not the first in `until`). So results are those of generation, up to the rounding by
which a batch padded on the right differs from one padded on the left with a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evomerge.errors import EvaluatorError
from evomerge.evaluation.obstacles import settings_that_change_greedy


@dataclass(frozen=True)
class Draft:
    """One item.

    Attributes:
        prompt: Token ids that generation begins with.
        tokens: Ids that it would write if it answered right: the answer and what ends it; at least one.
        answer: The right answer.
    """

    prompt: list[int]
    tokens: list[int]
    answer: str


class Drafts:
    """The items of a `generate_until` task, ready for any candidate with the model that `lm` wraps.

    Args:
        requests: lm-eval's requests, one per item, all with the same generation options.
        answers: The right answer of each.
        delimiter: What lm-eval puts between prompt and answer (the task's `target_delimiter`).
        lm: lm-eval's wrapper of a transformers model (`HFLM`).
        where: What messages begin with.

    Attributes:
        length: Tokens that prompt and answer may have together, which is what the prompts are cut to.

    Raises:
        EvaluatorError: the model's own settings change greedy decoding, or a prompt leaves no room or is empty.
    """

    def __init__(self, requests: Sequence[Any], answers: Sequence[str], delimiter: str, lm: Any, where: str) -> None:
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        options = normalize_gen_kwargs(requests[0].args[1], lm.max_gen_toks)
        self._requests = list(requests)
        self._lm = lm
        self._where = where
        self.length = int(lm.max_length)
        self._room = int(options["max_gen_toks"])
        eos = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
        self._until = [stop for stop in handle_stop_sequences(options["until"], eos=eos) if stop]
        self._ends = self._ending_tokens()
        if self._room < 1 or self._room >= self.length:
            raise EvaluatorError(f"{where}: max_gen_toks = {self._room}: expected 1 to {self.length - 1}")
        pairs = zip(requests, answers, strict=True)
        self.drafts = [self._draft(request.args[0], answer, delimiter) for request, answer in pairs]
        empty = next((r.doc_id for r, d in zip(requests, self.drafts, strict=True) if not d.prompt), None)
        if empty is not None:
            raise EvaluatorError(f"{where}: the prompt of item {empty} has no token")
        # By the places asked for: the blocks of a race come again and again.
        self._batches: dict[tuple[int, ...], list[tuple[list[int], torch.Tensor]]] = {}

    def results(self, only: tuple[int, ...] | None = None) -> list[float]:
        """1.0 for each item that greedy generation with the model as it is now answers right, else 0.0.

        Args:
            only: Places of the items to look at; default all.
        """
        self._ends = self._ending_tokens()
        asked = tuple(range(len(self.drafts))) if only is None else only
        if asked not in self._batches:
            self._batches[asked] = list(self._batched(asked))
        found: dict[int, bool | None] = dict.fromkeys(asked)
        for places, batch in self._batches[asked]:
            likeliest = self._lm._model_call(batch.to(self._lm.device)).argmax(-1).cpu()
            for place, row in zip(places, likeliest.tolist(), strict=True):
                draft = self.drafts[place]
                start = len(draft.prompt) - 1
                found[place] = self._right(_written(draft.tokens, row[start:]), draft.answer)
        left = [place for place, right in found.items() if right is None]
        if left:
            texts = self._lm.generate_until([self._requests[place] for place in left], disable_tqdm=True)
            for place, text in zip(left, texts, strict=True):
                found[place] = text == self.drafts[place].answer
        return [float(bool(right)) for right in found.values()]

    def _ending_tokens(self) -> set[int]:
        """Ids after which transformers generates no more. A live model may have other settings with every path."""
        settings = self._lm.model.generation_config
        changed = settings_that_change_greedy(vars(settings))
        if changed:
            raise EvaluatorError(
                f"{self._where}: the model's own generation settings have {', '.join(changed)}: expected none"
            )
        ids = settings.eos_token_id
        return set(ids if isinstance(ids, list) else [ids])

    def _batched(self, asked: Sequence[int]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Places and token ids (rows padded on the right) of each batch, the longest first: memory runs out at once."""
        rows = {place: self.drafts[place].prompt + self.drafts[place].tokens[:-1] for place in asked}
        order = sorted(rows, key=lambda place: (-len(rows[place]), rows[place]))
        size = int(self._lm.batch_size)
        for start in range(0, len(order), size):
            places = order[start : start + size]
            width = len(rows[places[0]])
            yield places, torch.tensor([rows[p] + [0] * (width - len(rows[p])) for p in places])

    def _draft(self, context: str, answer: str, delimiter: str) -> Draft:
        lm = self._lm
        ids, _ = lm.tok_batch_encode([context], left_truncate_len=self.length - self._room)
        spelt: list[list[int]] = []
        for tokens in self._spellings(context, answer, delimiter):
            spelt.append(tokens)
            if self._right(tokens, answer):
                return Draft(ids[0].tolist(), tokens, answer)
        # None reads back as the answer (it is longer than what may be generated, has characters that the tokenizer
        # lacks): any serves, for what the model writes is read, not what was hoped for.
        return Draft(ids[0].tolist(), spelt[0], answer)

    def _spellings(self, context: str, answer: str, delimiter: str) -> Iterator[list[int]]:
        """Ids of answer and stop string, at most as many as are generated: after the prompt, then by themselves."""
        lm = self._lm
        stop = self._until[0] if self._until else ""
        prompt = lm.tok_encode(context)
        for between in dict.fromkeys((delimiter, "")):
            whole = lm.tok_encode(context + between + answer + stop)
            if len(whole) > len(prompt) and whole[: len(prompt)] == prompt:
                yield whole[len(prompt) :][: self._room]
        alone = [lm.tok_encode(text, add_special_tokens=False) for text in (answer, stop) if text]
        yield [i for ids in alone for i in ids][: self._room] or [lm.eot_token_id]

    def _right(self, written: list[int], answer: str) -> bool | None:
        """Whether what generation began with is a right answer; None: it could still become one.

        The text is cut at stop strings as lm-eval cuts it.
        """
        from lm_eval.models.utils import postprocess_generated_text

        end = next((i + 1 for i, token in enumerate(written) if token in self._ends), None)
        text = self._lm.tok_decode(written[:end])
        if end is not None or len(written) >= self._room or any(stop in text for stop in self._until):
            return bool(postprocess_generated_text(text, stop=self._until, think_end_token=None) == answer)
        text = text.rstrip("\ufffd")  # of bytes that are not a whole character yet
        if answer.startswith(text):
            return None
        rest = text.removeprefix(answer)
        return None if rest != text and any(stop.startswith(rest) for stop in self._until) else False


def _written(draft: list[int], likeliest: list[int]) -> list[int]:
    """What greedy generation begins with: the draft as far as it is the likeliest, and one more token."""
    same = next((i for i, (a, b) in enumerate(zip(draft, likeliest, strict=False)) if a != b), len(draft))
    return likeliest[: same + 1] if same < len(draft) else draft
