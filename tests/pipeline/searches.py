"""One small search, as its tests ask for it."""

BUDGET = 20


def asked(evaluator, out):
    """The search that these tests run, cut off and run again."""
    return ["search", "--evaluator", str(evaluator), "--budget", str(BUDGET), "--study", "s", "--out", str(out)]
