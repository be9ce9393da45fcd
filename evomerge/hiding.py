"""Secrets in texts: what others may read has `***` in their place. One way, for messages, notes, events, reports."""

from __future__ import annotations

import re

# Names of what stands behind a URL's `?` (SQLAlchemy, libpq, PyMySQL, hubs): any with one of these in it.
_NAME = re.compile(r"pass|secret|token|pwd", re.IGNORECASE)
# What a user's name does not hold.
_USER = r"[^\s:/@\"'=,;(){}\[\]<>?&]"
# `user:` of `user:secret@`, with a scheme before it or none; with none no path may follow, as in /opt/a:/opt/b@3. Each
# run of a name's signs is tried once, from its beginning, or a long text would take its length squared.
_BEFORE = re.compile(rf"(?<!{_USER})(?:(?:[A-Za-z][\w+.-]*:/+){_USER}*|{_USER}+(?!:/)):(?=.)", re.DOTALL)
# A word up to its last `@`, where spaces and quotes end words, and where the text is one.
_WORD, _TEXT = re.compile(r"(?<![^\s\"'])[^\s\"']*@"), re.compile(r"\A.*@", re.DOTALL)
# Parts behind `?`, `&` and `;`, and libpq's `password=...`.
_PART = (
    rf"([?&;][^\s=&;\"']{{0,40}}(?:{_NAME.pattern})[^\s=&;\"']{{0,40}}="
    r"|(?<![\w-])(?:ssl|pg)?(?:password|passwd|pwd)=)"
)
_WORD_PART = re.compile(rf"{_PART}[^\s&;\"']+?(?=[:,]*(?:[\s&;\"']|\Z))", re.IGNORECASE)
_TEXT_PART = re.compile(rf"{_PART}[^&]+", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a part of a URL with this name (`password`, `sslpassword`, `access_token`, ...) is one to hide."""
    return _NAME.search(name) is not None


def hidden(text: str, whole: bool = False) -> str:
    """A text with its secrets hidden; what was hidden before stays as it is.

    Hidden are the secret of `user:secret@`, with a scheme before it or none, up to the last `@` of the word (who types
    a password as it is may have `@` and `/` in it), and parts named password, token and the like behind `?`, `&` or
    `;`, or as in libpq's `password=...`. Rather too much than too little: `http://host:80/model@main` loses its path.

    Args:
        whole: The text is one URL, whose spaces and quotes are its own; else they end it.

    >>> hidden('storage postgresql://u:sesame@h/d?sslpassword=open: no server answers')
    'storage postgresql://u:***@h/d?sslpassword=***: no server answers'
    """
    if "@" in text:
        text = (_TEXT if whole else _WORD).sub(_without_secret, text)
    return (_TEXT_PART if whole else _WORD_PART).sub(r"\1***", text) if "=" in text else text


def _without_secret(word: re.Match[str]) -> str:
    """A word that ends in `@`: what stands between `user:` and that, hidden."""
    before = _BEFORE.search(word[0][:-1])
    return word[0] if before is None else f"{word[0][: before.end()]}***@"
