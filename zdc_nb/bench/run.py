"""This project timed beside nflows and stock Pyro, in one process and with equal weights.

Every contender runs the same cases on the same inputs with the same number of threads, and the
contenders of a case take turns, so that what else the machine does falls on all alike. Compared
are flows of one autoregressive transform, without a context network, at a condition of zeros.

nflows and Pyro invert a flow in D passes through the whole network. Of these some are timed, and
the median pass stands for each of the D: such records carry ``extrapolated_from``. Their sampling
of a teacher and their density of a student are the same loop, which is timed once for both. The
engine ``reference`` of this project inverts in D passes too; timed is the network in each of them.
"""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from zdc_nb.bench.cases import CASES, FEWEST_RUNS, LOOPS, BenchParams, Case, ContenderName
from zdc_nb.bench.contenders import (
    Contender,
    Inputs,
    Ours,
    all_contenders,
    make_inputs,
    useful_flop,
)
from zdc_nb.bench.libraries import dense_layers
from zdc_nb.bench.machine import Machine, ProductClock, measure_machine
from zdc_nb.detector import ZN
from zdc_nb.hardware import choose_device, free_mb, peak_mb, time_call

__all__ = [
    "Benchmark",
    "Check",
    "LeftOut",
    "Products",
    "Record",
    "measure_products",
    "run_benchmark",
]

# timed in the same turns, to be compared with each other
_TOGETHER: tuple[tuple[Case, ...], ...] = (
    ("density",),
    ("train_step",),
    ("distil_step",),
    ("teacher_sample", "student_sample", "student_likelihood"),
)
_CHECKED_SAMPLES = 4
_PRODUCT_RUNS = 15

# --- Results ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """One contender in one case.

    Attributes
    ----------
    case, contender, device, dtype
        what ran; ``dtype`` is that of the matrix products.
    dim, hidden, batch
        dimensions, width of the hidden layers, samples at once.
    ms_per_sample
        median over the runs, divided by the batch size (ms).
    runs
        timed runs; where ``extrapolated_from`` is set, the passes timed.
    peak_mb
        peak memory of a first run above what was resident before (MB): everything but weights,
        masks and inputs; of an inversion in D passes, one of them. None where it is not known.
    extrapolated_from
        how many of the ``dim`` passes of an inversion were timed; None where the whole ran.
    """

    case: Case
    contender: ContenderName
    device: str
    dtype: str
    dim: int
    hidden: int
    batch: int
    ms_per_sample: float
    runs: int
    peak_mb: float | None
    extrapolated_from: int | None


@dataclass(frozen=True)
class LeftOut:
    """A contender that did not run in a case, and why."""

    case: str
    contender: str
    dtype: str
    dim: int
    hidden: int
    batch: int
    reason: str


@dataclass(frozen=True)
class Check:
    """Whether a contender computes what ours does.

    Attributes
    ----------
    log_density
        largest difference of the teacher's log-density to that of ours in float32, relative to it.
    inversion
        largest difference between data and what comes back from the latent space, by the
        contender's own inversion. None where its D passes would take too long.
    """

    contender: str
    dtype: str
    dim: int
    hidden: int
    log_density: float
    inversion: float | None


@dataclass(frozen=True)
class Products:
    """The matrix products inside our density pass, beside a plain large product.

    Attributes
    ----------
    useful_gflops
        multiplications and additions with weights that the masks allow, by the time in matrix
        products alone (GFLOP/s). None where torch made none.
    plain_gflops
        of a large product without any mask, in turns with it (GFLOP/s).
    share_of_pass
        the part of the density pass spent in matrix products.
    """

    dim: int
    hidden: int
    batch: int
    useful_gflops: float | None
    plain_gflops: float
    share_of_pass: float | None


@dataclass
class Benchmark:
    """All results of one run."""

    machine: Machine
    products: Products
    records: list[Record] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    flop: dict[tuple[Case, int, int], int] = field(default_factory=dict)
    """Useful operations a sample, by case, dimension and width."""
    allowed: dict[tuple[int, int], int] = field(default_factory=dict)
    """Weights that the masks allow, by dimension and width."""


# --- The run ------------------------------------------------------------------------------------


def run_benchmark(params: BenchParams, progress: bool = False) -> Benchmark:
    """Run all cases.

    Parameters
    ----------
    params
        what to run.
    progress
        show a bar.

    Raises
    ------
    zdc_nb.bench.libraries.PeerError
        where a peer is not installed.
    """
    # torch and the compiled splines on equally many threads
    threads = min(torch.get_num_threads(), numba.get_num_threads())
    torch.set_num_threads(threads)
    numba.set_num_threads(threads)
    machine = measure_machine(params)
    dim, hidden, batches = params.grid()[-1]
    # compiled before anything is timed
    small = make_inputs(ZN.dim, 2, params, machine.device)
    for contender in all_contenders(ZN.dim, 8, params, machine):
        for case in CASES:
            call = contender.prepare(case, small)
            if call is not None:
                call()
    result = Benchmark(
        machine=machine,
        products=measure_products(
            dim, hidden, min(batches, key=lambda n: abs(n - params.growth_batch)), params
        ),
    )
    total = sum(len(_TOGETHER) * len(sizes) for _, _, sizes in params.grid())
    # each measurement of memory collects what is unreachable: only what is made from here on
    gc.freeze()
    bar = tqdm(total=total, desc="benchmark", file=sys.stdout, disable=not progress, mininterval=10)
    for dim, hidden, batches in params.grid():
        contenders = list(all_contenders(dim, hidden, params, machine))
        ours = contenders[0]
        assert isinstance(ours, Ours)
        layers = dense_layers(ours.teacher.networks[0])
        result.allowed[dim, hidden] = sum(int(layer.mask.sum()) for layer in layers)
        result.flop |= {(case, dim, hidden): useful_flop(case, layers) for case in CASES}
        result.checks += _check(dim, contenders, hidden, params, machine)
        for cases in _TOGETHER:
            _Group(dim, hidden, cases, contenders, params, machine, result).run(batches, bar)
        del contenders, ours, layers
    bar.close()
    gc.unfreeze()
    again = measure_machine(params)
    result.machine = replace(
        machine,
        float32_gflops=max(machine.float32_gflops, again.float32_gflops),
        bfloat16_gflops=max(machine.bfloat16_gflops, again.bfloat16_gflops),
        numpy_gflops=_larger(machine.numpy_gflops, again.numpy_gflops),
        bandwidth_gbs=max(machine.bandwidth_gbs, again.bandwidth_gbs),
    )
    return result


def _larger(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else max(a, b)


@torch.no_grad()
def _check(
    dim: int,
    contenders: Sequence[Contender],
    hidden: int,
    params: BenchParams,
    machine: Machine,
) -> list[Check]:
    inputs = make_inputs(dim, _CHECKED_SAMPLES, params, machine.device)
    expected: Tensor | None = None
    checks = []
    for contender in contenders:
        density = contender.density(inputs).float()
        expected = density if expected is None else expected
        seconds = time_call(lambda c=contender: c.density(inputs), machine.device)  # type: ignore[misc]
        affordable = not contender.is_loop("teacher_sample") or dim * seconds < params.longest / 3
        checks.append(
            Check(
                contender.name,
                contender.dtype,
                dim,
                hidden,
                float(((density - expected) / expected).abs().max()),
                float((contender.there_and_back(inputs) - inputs.x).abs().max())
                if affordable
                else None,
            )
        )
    return checks


@dataclass
class _Job:
    """One contender in one case at one batch size, ready to be timed."""

    case: Case
    contender: Contender
    call: Callable[[], object]
    passes: int
    peak_mb: float | None = None
    warm: float = 0.0
    times: list[float] = field(default_factory=list)
    calls: int = 0


@dataclass
class _Group:
    """Cases of one network that are timed in the same turns."""

    dim: int
    hidden: int
    cases: tuple[Case, ...]
    contenders: Sequence[Contender]
    params: BenchParams
    machine: Machine
    result: Benchmark
    seen: dict[tuple[str, ...], list[tuple[int, float, float | None]]] = field(default_factory=dict)

    def run(self, batches: Sequence[int], bar: tqdm[Any]) -> None:
        """Time every contender at every batch size, the small ones first."""
        # no contender has such a case: its channels are those of the whole detector
        if self.cases == ("distil_step",) and self.dim != ZN.dim:
            bar.update(len(batches))
            return
        for batch in batches:
            inputs = make_inputs(self.dim, batch, self.params, self.machine.device)
            jobs = []
            for case in self.cases:
                for contender in self.contenders:
                    if case != LOOPS[1] or not contender.is_loop(case):
                        jobs += self._ready(case, contender, inputs)
            self._take_turns(jobs)
            records = [self._record(job, batch) for job in jobs]
            self.result.records += records
            self.result.records += [
                replace(record, case=LOOPS[1])
                for record in records
                if record.extrapolated_from is not None
            ]
            bar.update()

    def _ready(self, case: Case, contender: Contender, inputs: Inputs) -> list[_Job]:
        """The job, warmed up and with its memory measured; none where it is left out."""
        batch, device = len(inputs.x), self.machine.device
        passes = self.dim if contender.is_loop(case) else 1
        reason = self._too_much(case, contender, batch, passes)
        if reason is None:
            # a copy that is fresh: with what it keeps from one call to the next yet to be made
            fresh = copy.deepcopy(contender)
            call = fresh.prepare(case, inputs)
            if call is None:
                return []
            peak = peak_mb(call, device)
            del fresh, call
            call = contender.prepare(case, inputs)
            assert call is not None
            warm = time_call(call, device)
            if warm < 0.5 * self.params.longest / self._fewest(passes):
                warm = min(warm, time_call(call, device))
            job = _Job(case, contender, call, passes, peak, warm)
            fewest = self._fewest(passes)
            self.seen.setdefault((case, contender.name, contender.dtype), []).append(
                (batch, warm, peak)
            )
            if fewest * warm <= 1.5 * self.params.longest:
                wanted = int(self.params.seconds / warm)
                job.calls = max(fewest, min(self.params.runs, wanted))
                return [job]
            reason = self._slow(fewest, fewest * warm, passes)
        for also in LOOPS if passes > 1 else (case,):
            self.result.left_out.append(
                LeftOut(also, contender.name, contender.dtype, self.dim, self.hidden, batch, reason)
            )
        return []

    def _fewest(self, passes: int) -> int:
        return min(self.params.passes, passes) if passes > 1 else FEWEST_RUNS

    def _slow(self, calls: int, seconds: float, passes: int) -> str:
        what = "passes" if passes > 1 else "runs"
        return f"{calls} {what} would take some {seconds:.0f} s"

    def _too_much(self, case: Case, contender: Contender, batch: int, passes: int) -> str | None:
        """Why this should not even be tried, from smaller batch sizes."""
        before = self.seen.get((case, contender.name, contender.dtype), [])
        if not before:
            return None
        fewest = self._fewest(passes)
        # a copy for the memory and the warm-up run, too
        seconds = (fewest + 2) * _extended([(n, t) for n, t, _ in before], batch)
        if seconds > 1.2 * self.params.longest:
            return self._slow(fewest, seconds, passes)
        peaks = [(n, peak) for n, _, peak in before if peak is not None]
        if peaks:
            needed, free = _extended(peaks, batch), free_mb(self.machine.device)
            if needed > 0.7 * free:
                return f"it would need some {needed / 1000:.0f} GB of the {free / 1000:.0f} free"
        return None

    def _take_turns(self, jobs: Sequence[_Job]) -> None:
        turns = max((job.calls for job in jobs), default=0)
        for turn in range(turns):
            for job in jobs:
                # spread evenly, so that all see the same machine
                if (turn + 1) * job.calls // turns > turn * job.calls // turns:
                    job.times.append(time_call(job.call, self.machine.device))

    def _record(self, job: _Job, batch: int) -> Record:
        median = float(np.median(job.times))
        return Record(
            case=job.case,
            contender=job.contender.name,
            device=self.machine.device,
            dtype=job.contender.dtype,
            dim=self.dim,
            hidden=self.hidden,
            batch=batch,
            ms_per_sample=1000 * median * job.passes / batch,
            runs=len(job.times),
            peak_mb=job.peak_mb,
            extrapolated_from=len(job.times) if job.passes > 1 else None,
        )


def _extended(points: Sequence[tuple[int, float]], batch: int) -> float:
    """The straight line through the last two points, at another batch size."""
    (n, value) = points[-1]
    if len(points) == 1:
        return value
    (n0, value0) = points[-2]
    return max(value, value + (value - value0) / (n - n0) * (batch - n))


def measure_products(dim: int, hidden: int, batch: int, params: BenchParams) -> Products:
    """What the matrix products of our density pass reach, in turns with a plain large product.

    The clock runs while torch executes one. Medians over the turns.
    """
    device = choose_device(params.device)
    ours = Ours(dim, hidden, params, "fused", "float32", device)
    inputs = make_inputs(dim, batch, params, str(device))
    call = ours.prepare("density", inputs)
    assert call is not None
    flop = batch * useful_flop("density", dense_layers(ours.teacher.networks[0]))
    n = params.product_size
    a, b, out = (torch.ones(n, n, device=device) for _ in range(3))
    call()
    plain, products, whole = [], [], []
    for _ in range(_PRODUCT_RUNS):
        plain.append(time_call(lambda: torch.mm(a, b, out=out), str(device)))
        with ProductClock(str(device)) as clock:
            call()
        products.append(clock.seconds)
        whole.append(time_call(call, str(device)))
    inside = float(np.median(products))
    return Products(
        dim=dim,
        hidden=hidden,
        batch=batch,
        useful_gflops=flop / inside / 1e9 if inside else None,
        plain_gflops=2 * n**3 / float(np.median(plain)) / 1e9,
        share_of_pass=inside / float(np.median(whole)) if inside else None,
    )
