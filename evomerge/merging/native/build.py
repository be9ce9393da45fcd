"""Build and load the kernels: one shared library, compiled once for a machine and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from evomerge.cache import cache_folder

log = logging.getLogger(__name__)

SOURCE = Path(__file__).parent / "kernels.cpp"
# No contraction into fused multiply-adds and no reordering: results do not depend on the machine's vectors.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off", "-fno-math-errno",
         "-fno-trapping-math", "-fno-strict-aliasing")  # fmt: skip
# Wide vectors pay here: GCC and clang take half of AVX-512 on their own.
WIDE = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()
# Set to "0" to do without: every method runs on torch, slower and to the same bits.
SWITCH = "EVOMERGE_NATIVE"
TIMEOUT = 120


@cache
def library() -> ctypes.CDLL | None:
    """The loaded kernels; None where there is no C++ compiler (said once, as a warning) or they are switched off."""
    if os.environ.get(SWITCH) == "0":
        return None
    compiler = _compiler()
    if compiler is None:
        log.warning(
            "no C++ compiler found (c++, g++ or clang++; CXX names another): merging runs on torch alone, to the same "
            "result, several times slower"
        )
        return None
    try:
        return ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.SubprocessError) as e:
        detail = (getattr(e, "stderr", "") or str(e)).strip()[:500]
        log.warning("the merge kernels could not be built with %s, so merging runs on torch alone, slower: %s",
                    compiler, detail)  # fmt: skip
        return None


def _compiler() -> str | None:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def _built(compiler: str) -> Path:
    """The library's file, built where it is missing. Its name covers all that it depends on."""
    key = hashlib.sha256()
    for part in (SOURCE.read_bytes(), " ".join((*FLAGS, *WIDE)).encode(), compiler.encode(), _processor().encode()):
        key.update(part + b"\0")
    name = f"kernels-{key.hexdigest()[:24]}.so"
    for folder in (cache_folder() / "kernels", Path(tempfile.gettempdir()) / f"evomerge-{os.getuid()}" / "kernels"):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.stat().st_uid != os.getuid():
                continue  # somebody else's folder: what lies there is not ours to run
            return _in(folder, name, compiler)
        except OSError as e:
            last = e
    raise last


def _in(folder: Path, name: str, compiler: str) -> Path:
    if not (folder / name).is_file():
        # Beside it and renamed: processes that build at once do not see each other's half files.
        fd, temporary = tempfile.mkstemp(prefix=name, suffix=".part", dir=folder)
        os.close(fd)
        try:
            command = [compiler, *FLAGS, *WIDE, str(SOURCE), "-o", temporary]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT)
            os.replace(temporary, folder / name)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return folder / name


def _processor() -> str:
    """What -march=native sees: a cache folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kept = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
        return "\n".join(sorted(set(kept)))
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
