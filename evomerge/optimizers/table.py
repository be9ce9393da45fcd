"""The one table of optimizers. It loads nothing: the command line's help is made of it."""

from __future__ import annotations

from dataclasses import dataclass

AUTO = "auto"
# What follows a run that has converged (see `evomerge.optimizers.restarts`).
NONE, IPOP, BIPOP = "none", "ipop", "bipop"
RESTARTS = (NONE, IPOP, BIPOP)


@dataclass(frozen=True)
class Entry:
    """One optimizer: where its class is (loaded when it is made), and what it can take.

    Attributes:
        cls: `module:class`.
        categorical: Whether it takes categorical parameters.
        least: Smallest population that its update can use.
        several: Whether it takes several objectives.
        restarts: Whether it starts again where it has converged.
        starts: Whether its first candidate is the start anyway.
        tasks: Least and largest number of tasks that count for which it is made; None: any number.
        whole: Whether it needs each candidate's behaviour (see `Optimizer.whole`).
        batches: Whether it must be told whole generations, so that it cannot be asynchronous.
        warm: Whether it begins from a distribution around another search's best.
        updates: Whether it learns from whole generations even where it is asynchronous: from as many as came together.
    """

    cls: str
    categorical: bool
    least: int
    summary: str
    several: bool = False
    restarts: bool = False
    starts: bool = False
    tasks: tuple[int, int] | None = None
    whole: bool = False
    batches: bool = False
    warm: bool = False
    updates: bool = False


_PYRIBS = "evomerge.optimizers.quality_diversity"
_OPTUNA = "evomerge.optimizers.optuna_samplers"
OPTIMIZERS: dict[str, Entry] = {
    "cma": Entry("evomerge.optimizers.cma_es:CmaEs", False, 4, "CMA-ES (pycma): floats and integers",
                 restarts=True, warm=True, updates=True),
    "catcma": Entry("evomerge.optimizers.catcma:CatCma", True, 4, "CatCMA with margin (cmaes): categories too",
                    restarts=True, warm=True, updates=True),
    "thompson": Entry("evomerge.optimizers.thompson:Thompson", False, 1,
                      "Thompson sampling on a Gaussian process", warm=True),
    "evolution": Entry("evomerge.optimizers.evolution:Evolution", True, 2, "mutations by type: paths",
                       several=True, starts=True),
    "tpe": Entry(f"{_OPTUNA}:Tpe", True, 1, "tree-structured Parzen estimator (Optuna)", several=True, starts=True),
    "gp": Entry(f"{_OPTUNA}:Gp", True, 1, "Gaussian process, for few candidates (Optuna)", several=True, starts=True),
    "nsga2": Entry(f"{_OPTUNA}:Nsga2", True, 2, "NSGA-II: several objectives (Optuna)", several=True, starts=True),
    "nsga3": Entry(f"{_OPTUNA}:Nsga3", True, 2, "NSGA-III: three or more (Optuna)", several=True, starts=True),
    "random": Entry(f"{_OPTUNA}:Random", True, 1, "uniform random search (Optuna)", several=True),
    "map-elites": Entry(f"{_PYRIBS}:MapElites", True, 1, "the best of each mix of 2 to 4 tasks' values (pyribs)",
                        tasks=(2, 4), whole=True),
    "cma-me": Entry(f"{_PYRIBS}:CmaMe", False, 4, "the same by several CMA-ES (pyribs): no categories",
                    tasks=(2, 4), whole=True, batches=True),
    "m2n2": Entry("evomerge.optimizers.m2n2:M2N2", True, 1, "competition for items, mates that complement each other",
                  whole=True),
}  # fmt: skip
