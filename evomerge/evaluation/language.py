"""A constraint on answers: one counts only where it is in the language asked for (Evolutionary Model Merge, arXiv
2403.13187: otherwise a search for Japanese mathematics ends with a model that answers in English).

The identifier is py3langid, whose model ships with it. It is asked among the languages with an ISO 639-1 code: it also
knows closer relatives (Wu and Cantonese beside Chinese), which would share the probability among them. An answer is in
the language where its probability is above 0.5, the paper's threshold. Numbers and symbols are left out before, for
they are of no language; where no letter is left, as in "#### 1,200", the answer is in no language and does not count:
to answer by a bare number would be a way around the constraint. Nor does one of a few letters count that may be of
several languages ("OK", "El total es 8"): ask for answers of a sentence or more.
"""

from __future__ import annotations

import functools
import unicodedata
from importlib.metadata import version
from typing import Any

from evomerge.errors import EvaluatorError

THRESHOLD = 0.5
LIBRARY = "py3langid"


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    # One of our own, because the library's shared one is anybody's to restrict; its probabilities are off by default.
    made = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    made.set_languages([code for code in made.labels if len(code) == 2])
    return made


def check_language(code: str, where: str) -> None:
    """Refuse a language that the identifier does not know.

    Raises:
        EvaluatorError: with the nearest one that it knows.
    """
    known = sorted(_identifier().labels)
    if code not in known:
        # `choose` finds none near to "jp", "Japanese" or "ja-JP".
        begun = code[:2].lower()
        near = [begun] if begun in known else [c for c in known if c[0] == begun[:1]]
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise EvaluatorError(
            f'{where}: language = "{code}": expected an ISO 639-1 code that {LIBRARY} knows; {meant}'
            f"Valid: {', '.join(known)}"
        )


def probability(text: str, language: str) -> float:
    """Probability, from 0 to 1, that a text is in a language (ISO 639-1); 0 for one without letters."""
    words = _words(text)
    if not any(c.isalpha() for c in words):
        return 0.0
    return float(dict(_identifier().rank(words))[language])


def in_language(text: str, language: str) -> bool:
    """Whether a text counts as being in a language."""
    return probability(text, language) > THRESHOLD


def identifier_version() -> str:
    """What a result depends on beside the text."""
    return f"{LIBRARY} {version(LIBRARY)}, above {THRESHOLD}"


def _words(text: str) -> str:
    """A text without numbers, symbols and control characters (categories N, S and C of Unicode)."""
    plain = unicodedata.normalize("NFKC", text)
    return " ".join("".join(" " if unicodedata.category(c)[0] in "NSC" else c for c in plain).split())
