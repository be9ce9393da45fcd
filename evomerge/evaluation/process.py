"""Runs a command of the user's own: no shell, a process group of its own, a limit in time, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge import hiding
from evomerge.errors import CandidateError
from evomerge.evaluation.keeper import Keeper

# What a command may print; scores of a million items are less.
MOST_BYTES = 64 << 20
# How much of what it said on stderr stands in a reason.
TAIL = 400
# Names of variables that are not for others to see, and of those that belong to this Python and not to another one.
_SECRET = re.compile(
    r"RAY_AUTH_.*|(.*_)?(TOKENS?|SECRETS?|PASSWORDS?|PASSWD|CREDENTIALS?|COOKIE)(_.*)?|.*(API|ACCESS|PRIVATE)_?KEY.*",
    re.IGNORECASE,
)
_OWN = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONEXECUTABLE", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


@dataclass(frozen=True)
class Ended:
    """A command that ended by itself.

    Attributes:
        code: Its exit status; negative: the signal that ended it.
        out: What it printed on stdout.
        tail: The end of what it printed on stderr, on one line.
    """

    code: int
    out: str
    tail: str


def environment(own: Mapping[str, str], base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables that a command sees: this process's without its secrets and its Python's, and what is added.

    Args:
        own: What is added or replaced.
        base: Default: this process's.
    """
    found = dict(os.environ if base is None else base)
    kept = {k: v for k, v in found.items() if k not in _OWN and not _SECRET.fullmatch(k) and not _is_secret_url(v)}
    return {**kept, **own}


def _is_secret_url(value: str) -> bool:
    return "://" in value and hiding.hidden(value) != value


def run(
    command: Sequence[str], env: Mapping[str, str], cwd: Path, folder: Path, timeout: float | None, keeper: Keeper,
    hidden: Iterable[str] = (),
) -> Ended:  # fmt: skip
    """Run a command to its end.

    Args:
        folder: Where what it prints is kept while it runs.
        timeout: Seconds that it may take; None: as long as it likes.
        hidden: What must not be shown of what it prints.

    Raises:
        CandidateError: it cannot be started, takes longer, or prints without an end.
    """
    out, err = folder / "stdout", folder / "stderr"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        try:
            process = subprocess.Popen(
                list(command), env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                start_new_session=True,
            )  # fmt: skip
        except OSError as e:
            raise CandidateError(f"the command {command[0]} cannot be started ({e.strerror or e})") from None
    with keeper.group(process.pid):
        try:
            stopped = _waited(process, timeout, (out, err))
        finally:
            # Also what it left running: servers, children that it did not wait for.
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = _tail(err, hidden)
    if stopped is not None:
        raise CandidateError(f"the command {stopped}{said and f'; its stderr ends: {said}'}")
    return Ended(process.returncode, out.read_text(encoding="utf-8", errors="replace"), said)


def _waited(process: subprocess.Popen[bytes], timeout: float | None, files: Iterable[Path]) -> str | None:
    """Wait for the end; else why it is not waited for any longer."""
    began = time.monotonic()
    while True:
        left = 1.0 if timeout is None else min(1.0, timeout - (time.monotonic() - began))
        if left <= 0:
            return f"took longer than its timeout of {timeout:g} s"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(left)
        if any(file.stat().st_size > MOST_BYTES for file in files):
            return f"printed more than {MOST_BYTES:,} bytes"
        if process.returncode is not None:
            return None


def _tail(file: Path, hidden: Iterable[str]) -> str:
    """The end of a file on one line."""
    with file.open("rb") as f:
        f.seek(max(0, file.stat().st_size - 8 * TAIL))
        text = " ".join(f.read().decode("utf-8", "replace").split())
    for secret in hidden:
        text = text.replace(secret, "***")
    return hiding.hidden(text)[-TAIL:]
