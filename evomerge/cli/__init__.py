"""The command line: one small file per command, registered in `evomerge.cli.commands.COMMANDS`.

Exit codes: 0 done, 2 the user's input is wrong (one message that names what and where), 130 interrupted (143: by
SIGTERM), 1 anything else. With `--json` stdout holds exactly one JSON value, the result or `{"error": ...}`;
everything else that would have been printed goes to stderr.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

from evomerge.cli.commands import parse
from evomerge.cli.output import emit_error
from evomerge.errors import EvoMergeError, Interrupted
from evomerge.hiding import hidden

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never raises for what a user can cause."""
    # Not list(argv): in this namespace `list` is the submodule of that command as soon as it has been imported.
    argv = [*(sys.argv[1:] if argv is None else argv)]
    as_json = "--json" in argv
    try:
        args = parse(argv)
        args.stdout = sys.stdout
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            return int(args.run(args))
    except EvoMergeError as e:
        emit_error(str(e), as_json)
        return e.exit_code
    except KeyboardInterrupt as e:
        emit_error(f"interrupted: {e}" if str(e) else "interrupted", as_json)
        return e.exit_code if isinstance(e, Interrupted) else INTERRUPTED
    except BrokenPipeError:
        # Whoever reads stdout (`evomerge zoo | head`) is gone. Python would complain once more when it flushes.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as e:  # argparse, after --help and --version
        return e.code if isinstance(e.code, int) else 1
    except Exception as e:  # a bug or the machine's trouble: say where, and keep --json's promise
        print(hidden(traceback.format_exc()), file=sys.stderr, end="")
        emit_error(f"{type(e).__name__}: {e}", as_json)
        return 1


__all__ = ["main"]
