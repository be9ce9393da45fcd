"""Searches without the seconds that their imports take: a process that has imported everything forks one for each.

    python -m tests.faults.nursery

Reads lines of JSON, `{"args": [...], "after": SECONDS or null, "log": FILE}`: runs the command line in a fork, ends it
by SIGKILL after that time, and answers with a line, `{"code": ..., "seconds": ...}` (code -9: it was killed).
"""

import importlib
import json
import os
import select
import signal
import sys
import time

MODULES = (
    "alembic.command", "cma", "datasets", "matplotlib.backends.backend_agg", "optuna.importance", "optuna_dashboard",
    "pandas", "psycopg", "pyarrow.parquet", "rich.console", "safetensors.torch", "scipy.stats", "sklearn.ensemble",
    "sqlalchemy.dialects.postgresql.psycopg", "transformers.models.llama.modeling_llama",
    "evomerge.evaluation.function", "evomerge.merging.engine", "evomerge.merging.live", "evomerge.pipeline",
    "evomerge.report.outputs", "evomerge.report.table", "evomerge.study.builder",
)  # fmt: skip


def child(args, log):
    from evomerge.cli import main

    with open(log, "a") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
    code = 1
    try:
        code = main(args)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(args, after, log):
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        child(args, log)
    watch = os.pidfd_open(pid)
    ended, _, _ = select.select([watch], [], [], after)
    os.close(watch)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - began}


if __name__ == "__main__":
    for name in MODULES:
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)
