"""The parameters of the benchmark, the cases that it times, and the work that each needs at least.

One YAML file (``params/bench.yaml``), read with :func:`load_bench`; as in a study, no key has a
default, and what is unknown is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from zdc_nb.params import SplittingFlowParams, load_parameters, project_root

__all__ = [
    "CASES",
    "CONTEXT",
    "FEWEST_RUNS",
    "LOOPS",
    "BenchParams",
    "Case",
    "ContenderName",
    "compulsory_bytes",
    "load_bench",
    "useful_flop",
]

Case = Literal[
    "density", "train_step", "distil_step", "teacher_sample", "student_sample", "student_likelihood"
]
ContenderName = Literal["ours", "ours-plain", "nflows", "pyro"]

CASES: dict[Case, str] = {
    "density": "log-density of data under the teacher",
    "train_step": "one step of training the teacher: density, gradient, Adam",
    "distil_step": "one step of distilling the teacher into the student",
    "teacher_sample": "samples of the teacher",
    "student_sample": "samples of the student",
    "student_likelihood": "log-density of data under the student",
}
"""What is timed, and what each case is."""

LOOPS: tuple[Case, Case] = ("teacher_sample", "student_likelihood")
"""The cases that invert a flow: in D passes, both are the same loop, which is timed once."""

CONTEXT = 1
"""Width of the condition, which is zero."""

FEWEST_RUNS = 3
"""Timed runs of a contender in a case, at least."""

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BenchParams(BaseModel):
    """What the benchmark runs, as read from one YAML file; no key has a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    seed: Annotated[int, Field(ge=0)]
    device: Literal["auto", "cpu", "cuda"]
    reports: Annotated[str, Field(min_length=1)]
    dims: list[Annotated[int, Field(gt=1)]] = Field(min_length=1)
    hiddens: list[Positive] = Field(min_length=1)
    batches: list[Positive] = Field(min_length=1)
    growth_batch: Positive = Field(description="batch size at which cost grows with D")
    bins: Annotated[int, Field(gt=1)]
    bound: PositiveFloat
    hidden_layers: Annotated[int, Field(ge=0)]
    splitting: SplittingFlowParams = Field(description="architecture of the splitting flow")
    evaluated: Positive = Field(description="responses of the evaluation that is timed")
    generations: Positive = Field(description="of the test part in that evaluation")
    peers: list[Literal["nflows", "pyro"]]
    passes: Positive = Field(description="timed of the D passes of a peer's inversion")
    runs: Annotated[int, Field(ge=FEWEST_RUNS)] = Field(description="most timed runs of each")
    seconds: PositiveFloat = Field(description="timed for each contender in each case")
    longest: PositiveFloat = Field(description="s, what would take longer is left out")
    product_size: Positive
    copy_mb: Positive

    @model_validator(mode="after")
    def _values_differ(self) -> BenchParams:
        for key in ("dims", "hiddens", "batches", "peers"):
            values = getattr(self, key)
            if len(set(values)) != len(values):
                raise ValueError(f"{key}: expected each value once, got {values}")
        if self.growth_batch not in self.batches:
            raise ValueError(f"growth_batch: {self.growth_batch} is not among the batches")
        return self

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return project_root() / self.reports / self.name

    def grid(self) -> list[tuple[int, int, list[int]]]:
        """Dimension, width and batch sizes of each network, the small ones first."""
        dims, widest = sorted(self.dims), max(self.hiddens)
        growth = [(dim, widest, [self.growth_batch]) for dim in dims[:-1]]
        return growth + [
            (dims[-1], hidden, sorted(self.batches)) for hidden in sorted(self.hiddens)
        ]


def load_bench(path: str | Path) -> BenchParams:
    """Read and check the benchmark's parameters, see :func:`zdc_nb.params.load_parameters`."""
    return load_parameters(path, BenchParams, "benchmark")


def useful_flop(case: Case, masks: Sequence[Tensor], context: int = CONTEXT) -> int:
    """Floating-point operations a sample that no implementation of the case can do without.

    A multiplication and an addition for each weight that the masks allow and each use of it: once
    in a pass (an exact inversion needs no more); in a training step again for the gradients of
    weights and inputs, the latter but for the first layer; in a distillation step for the teacher's
    pass, two passes of the student with their gradients, and the teacher's way back with the
    gradient of its inputs.

    Parameters
    ----------
    masks
        (outputs, inputs) of each layer, as in :meth:`zdc_nb.flows.made.Made.dense_weights`.
    context
        C, the first inputs of the first layer.
    """
    allowed = [int(mask.sum()) for mask in masks]
    once, first = 2 * sum(allowed), allowed[0]
    step = 3 * once - 2 * first
    if case == "train_step":
        return step
    if case == "distil_step":
        back = 2 * once - 2 * int(masks[0][:, :context].sum())
        return once + 2 * step + back
    return once


def compulsory_bytes(case: Case, allowed: int, dim: int, batch: int, size: int) -> int:
    """Bytes that a batch has to move between memory and processor at least.

    The ``allowed`` weights that the masks leave, of ``size`` bytes each, are read once a pass; a
    step of training reads them again for the gradient, writes the gradient, and reads and writes
    parameter and two moments in Adam (float32). Data are read and written once. What lies between
    layers is not counted: it may stay in a cache.
    """
    # of the weights, of the data, and how often the optimiser runs
    reads, copies, steps = {"train_step": (2, 1, 1), "distil_step": (5, 3, 1)}.get(case, (1, 1, 0))
    adam = 4 * allowed * (1 + 1 + 3 + 3)
    return reads * size * allowed + copies * 2 * 4 * batch * dim + steps * adam
