"""Who holds something: this process, or another that may have died."""

from __future__ import annotations

import getpass
import os
import socket
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process, told from others of its machine and from later ones of its number.

    Attributes:
        host: Name of the machine, for people.
        machine: What identifies the machine, its boot and the space of process numbers (containers have their own).
        pid: Its number there.
        process: When it started, in the machine's own ticks; "" where that cannot be known.
    """

    host: str
    machine: str
    pid: int
    process: str

    @property
    def dead(self) -> bool:
        """Whether it surely runs no more: only of this machine's processes is that known."""
        if self.machine != _machine():
            return False
        return _started(self.pid) != self.process if self.process else not _exists(self.pid)


def this_process() -> Process:
    """The one that asks."""
    return Process(socket.gethostname()[:255], _machine(), os.getpid(), _started(os.getpid()))


def user() -> str:
    """Whose process it is, for people."""
    try:
        return getpass.getuser()[:255]
    except (OSError, KeyError):  # a container's account without a name
        return str(os.getuid())


@cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return f"{socket.gethostname()} {uuid.getnode():x}"[:255]


def _started(pid: int) -> str:
    """Field 22 of /proc/PID/stat, behind the command's name, which may have spaces in it; "" where there is none.

    A process that has ended and waits for its parent has ended.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
