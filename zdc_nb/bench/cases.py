"""The parameters of the benchmark, and the cases that it times.

One YAML file (``params/bench.yaml``), read with :func:`load_bench`; as in a study, no key has a
default, and what is unknown is refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from zdc_nb.params import load_parameters, project_root

__all__ = ["CASES", "FEWEST_RUNS", "LOOPS", "BenchParams", "Case", "ContenderName", "load_bench"]

Case = Literal[
    "density", "train_step", "distil_step", "teacher_sample", "student_sample", "student_likelihood"
]
ContenderName = Literal["ours", "ours-reference", "nflows", "pyro"]

CASES: dict[Case, str] = {
    "density": "log-density of data under the teacher",
    "train_step": "one step of training the teacher: density, gradient, Adam",
    "distil_step": "one step of distilling the teacher into the student",
    "teacher_sample": "samples of the teacher",
    "student_sample": "samples of the student",
    "student_likelihood": "log-density of data under the student",
}
"""What is timed, and what each case is."""

# where a contender inverts in D passes, both cases are the same loop: it is timed once
LOOPS: tuple[Case, Case] = ("teacher_sample", "student_likelihood")
"""The cases that invert a flow."""

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
    blocks: Annotated[int, Field(ge=0)]
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
