"""This project timed beside nflows and stock Pyro, in one process and with equal weights.

Every contender runs the same cases on the same inputs with the same number of threads, and the
contenders of a case take turns, so that what else the machine does falls on all alike.

nflows and Pyro invert a flow in D passes through the whole network. Of these some are timed, and
the median pass stands for each of the D: such records carry ``extrapolated_from``. Their sampling
of a teacher and their density of a student are the same loop, which is timed once for both. The
engine ``plain`` of this project inverts in D passes too; timed is the network in each of them.
"""

from __future__ import annotations

import copy
import gc
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numba
import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from zdc_nb import __version__
from zdc_nb.bench.cases import CASES, FEWEST_RUNS, LOOPS, BenchParams, Case, useful_flop
from zdc_nb.bench.libraries import Contender, Inputs, Ours, all_contenders, make_inputs
from zdc_nb.detector import ZN
from zdc_nb.hardware import OtherLoad, choose_device, cpu_model, free_mb, peak_mb, time_call

__all__ = ["RECORD", "Benchmark", "Machine", "run_benchmark"]

# timed in the same turns, to be compared with each other
_TOGETHER: tuple[tuple[Case, ...], ...] = (
    ("density",),
    ("train_step",),
    ("distil_step",),
    ("teacher_sample", "student_sample", "student_likelihood"),
)
_CHECKED_SAMPLES = 4
_PRODUCT_RUNS = 15

# --- The machine --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What the machine can do, measured: the best of several runs.

    Rates of large matrix products (GFLOP/s) by torch in float32 and bfloat16, and by numpy in
    float32 (None on a GPU); bandwidth (GB/s) of ``a = b + s * c`` on long vectors, two read and one
    written.
    """

    description: str
    device: str
    threads: int
    float32_gflops: float
    bfloat16_gflops: float
    numpy_gflops: float | None
    bandwidth_gbs: float

    @property
    def has_bfloat16(self) -> bool:
        """Whether bfloat16 is faster than float32 here, rather than emulated."""
        return self.bfloat16_gflops > 1.2 * self.float32_gflops


def _measure_machine(params: BenchParams) -> Machine:
    device = choose_device(params.device)
    n, length = params.product_size, params.copy_mb * 10**6 // 4

    def best(call: Callable[[], object]) -> float:
        call()
        return min(time_call(call, device.type) for _ in range(7))

    def gflops(matmul: Callable[..., Any], a: Any, b: Any) -> float:
        return 2 * n**3 / 1e9 / best(partial(matmul, a, b, out=matmul(a, b)))

    factors = torch.randn(2, n, n, device=device)
    a, b, c = torch.ones(3, length, device=device)
    gpu = f"{torch.cuda.get_device_name()}, " if device.type == "cuda" else ""
    return Machine(
        description=f"{gpu}{cpu_model()}, {os.cpu_count()} CPU cores, {platform.system()}, "
        f"Python {platform.python_version()}, torch {version('torch')}, zdc-nb {__version__}",
        device=device.type,
        threads=torch.get_num_threads(),
        float32_gflops=gflops(torch.mm, *factors),
        bfloat16_gflops=gflops(torch.mm, *factors.bfloat16()),
        numpy_gflops=gflops(np.matmul, *factors.numpy()) if device.type == "cpu" else None,
        bandwidth_gbs=3 * 4 * length / 1e9 / best(lambda: torch.add(b, c, alpha=3.0, out=a)),
    )


class _ProductClock(TorchDispatchMode):
    """Adds up the time in matrix products while it is entered."""

    # torch's profiler tells the same, but writes to the standard error
    products = re.compile(r"::_?(addmm|mm|bmm|baddbmm|addmv|mv)(_|_activation)?(\.|$)|linear")

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.seconds = device, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results: list[Any] = []
        call = partial(func, *args, **(kwargs or {}))
        if not self.products.search(func.name()):
            return call()
        self.seconds += time_call(lambda: results.append(call()), self.device)
        return results[0]


def _measure_products(dim: int, hidden: int, batch: int, params: BenchParams) -> dict[str, Any]:
    """What the matrix products inside our density pass reach, beside a plain large product.

    They take turns, and medians count. ``useful_gflops`` counts multiplications and additions with
    weights that the masks allow, by the time in matrix products alone (GFLOP/s); ``plain_gflops``
    is of a large product without any mask (GFLOP/s), ``share_of_pass`` the part of the density pass
    spent in matrix products. Where torch made none, the first and the last are None.
    """
    device = choose_device(params.device).type
    ours = Ours(dim, hidden, params, "fused", "float32", device)
    call = ours.prepare("density", make_inputs(dim, batch, params, device))
    flop = batch * useful_flop("density", [mask for _, _, mask in ours.layers])
    n = params.product_size
    a, b, out = torch.ones(3, n, n, device=device)
    call()
    times = []
    for _ in range(_PRODUCT_RUNS):
        plain = time_call(lambda: torch.mm(a, b, out=out), device)
        with _ProductClock(device) as clock:
            call()
        times.append((plain, clock.seconds, time_call(call, device)))
    plain, inside, whole = map(float, np.median(times, axis=0))
    return {
        "dim": dim,
        "hidden": hidden,
        "batch": batch,
        "useful_gflops": flop / inside / 1e9 if inside else None,
        "plain_gflops": 2 * n**3 / plain / 1e9,
        "share_of_pass": inside / whole if inside else None,
    }


# --- The run ------------------------------------------------------------------------------------

_LEFT_OUT = ["case", "contender", "dtype", "dim", "hidden", "batch", "reason"]
RECORD = ["case", "contender", "device", "dtype", "dim", "hidden", "batch", "ms_per_sample"]
RECORD += ["runs", "peak_mb", "extrapolated_from", "spread", "others"]
"""The columns of a record, see :class:`Benchmark`."""


@dataclass
class Benchmark:
    """All results of one run; every table has the columns of the network, dim and hidden.

    Attributes
    ----------
    machine, products
        what the machine can do, and what the matrix products of our density pass make of it.
    records
        a row for each contender in each case at each batch size, with device, dtype (of the matrix
        products) and

        - ms_per_sample: median over the runs, divided by the batch size (ms);
        - runs: timed runs; where ``extrapolated_from`` is set, the passes timed;
        - peak_mb: peak memory of a first run above what was resident before (MB): everything but
          weights, masks and inputs; of an inversion in D passes, one of them;
        - extrapolated_from: how many of the D passes of an inversion were timed; empty where the
          whole ran;
        - spread: distance between the quartiles of the runs, as a share of their median;
        - others: cores that other processes used meanwhile.

        Memory and others are empty where the system does not tell.
    left_out
        contenders that did not run in a case, and the reason.
    checks
        whether a contender computes what ours does: log_density is the largest difference of the
        teacher's log-density to that of ours in float32, relative to it; inversion that between
        data and what comes back from the latent space, by the contender's own inversion; empty
        where its D passes would take too long.
    work
        what each case needs: flop (useful operations a sample) and weights (that the masks allow).
    """

    machine: Machine
    products: dict[str, Any]
    records: pd.DataFrame
    left_out: pd.DataFrame
    checks: pd.DataFrame
    work: pd.DataFrame


def run_benchmark(params: BenchParams, progress: bool = False) -> Benchmark:
    """Run all cases, with a bar if asked for; ``ImportError`` where a peer is not installed."""
    # torch and the compiled splines on equally many threads
    threads = min(torch.get_num_threads(), numba.get_num_threads())
    torch.set_num_threads(threads)
    numba.set_num_threads(threads)
    machine = _measure_machine(params)
    device, bfloat16 = machine.device, machine.has_bfloat16
    # compiled before anything is timed
    small = make_inputs(ZN.dim, 2, params, device)
    for contender in all_contenders(ZN.dim, 8, params, device, bfloat16):
        for case in filter(contender.runs, CASES):
            contender.prepare(case, small)()
    dim, hidden, batches = params.grid()[-1]
    nearest = min(batches, key=lambda batch: abs(batch - params.growth_batch))
    products = _measure_products(dim, hidden, nearest, params)
    total = sum(len(_TOGETHER) * len(sizes) for _, _, sizes in params.grid())
    bar = tqdm(total=total, desc="benchmark", file=sys.stdout, disable=not progress, mininterval=10)
    records, left_out, checks, work = [], [], [], []
    # each measurement of memory collects what is unreachable: only what is made from here on
    gc.freeze()
    for dim, hidden, batches in params.grid():
        network = {"dim": dim, "hidden": hidden}
        contenders = list(all_contenders(dim, hidden, params, device, bfloat16))
        assert isinstance(contenders[0], Ours)
        masks = [mask for _, _, mask in contenders[0].layers]
        weights = sum(int(mask.sum()) for mask in masks)
        for case in CASES:
            flop = useful_flop(case, masks)
            work.append({"case": case, **network, "flop": flop, "weights": weights})
        checks += [network | check for check in _check(contenders, params, device)]
        for cases in _TOGETHER:
            turns = _Turns(cases, contenders, params, device)
            for batch in batches:
                records += [network | record for record in turns.at(batch)]
                bar.update()
            left_out += [network | left for left in turns.left_out]
        # before the next network is made
        del contenders, turns, masks
    bar.close()
    gc.unfreeze()
    again = asdict(_measure_machine(params))
    rates = {key: value for key, value in asdict(machine).items() if isinstance(value, float)}
    return Benchmark(
        replace(machine, **{key: max(rate, again[key]) for key, rate in rates.items()}),
        products,
        pd.DataFrame(records, columns=RECORD).astype({"extrapolated_from": "Int64"}),
        pd.DataFrame(left_out, columns=_LEFT_OUT),
        pd.DataFrame(checks),
        pd.DataFrame(work),
    )


@torch.no_grad()
def _check(
    contenders: Sequence[Contender], params: BenchParams, device: str
) -> list[dict[str, Any]]:
    dim = contenders[0].dim
    x, _, condition = make_inputs(dim, _CHECKED_SAMPLES, params, device)
    expected = contenders[0].log_prob(x, condition).float()
    checks = []
    for contender in contenders:
        density = contender.log_prob(x, condition).float()
        seconds = time_call(partial(contender.log_prob, x, condition), device)
        inversion = None
        if not contender.is_loop("teacher_sample") or dim * seconds < params.longest / 3:
            back = contender.from_latent(contender.to_latent(x, condition), condition)
            inversion = float((back - x).abs().max())
        largest = float(((density - expected) / expected).abs().max())
        names = {"contender": contender.name, "dtype": contender.dtype}
        checks.append({**names, "log_density": largest, "inversion": inversion})
    return checks


@dataclass
class _Job:
    """One contender in one case at one batch size, ready to be timed so many times."""

    case: Case
    contender: Contender
    call: Callable[[], object]
    calls: int
    peak_mb: float | None = None
    times: list[float] = field(default_factory=list)


@dataclass
class _Turns:
    """Cases of one network that are timed in the same turns."""

    cases: tuple[Case, ...]
    contenders: Sequence[Contender]
    params: BenchParams
    device: str
    left_out: list[dict[str, Any]] = field(default_factory=list)
    # batch size, seconds and memory of each contender in each case so far
    seen: dict[Any, list[tuple[int, float, float | None]]] = field(default_factory=dict)

    def at(self, batch: int) -> list[dict[str, Any]]:
        """Records of every contender at a batch size; those of smaller ones must be there."""
        inputs = make_inputs(self.contenders[0].dim, batch, self.params, self.device)
        jobs = []
        for case in self.cases:
            for contender in self.contenders:
                again = case == LOOPS[1] and contender.is_loop(case)
                if contender.runs(case) and not again:
                    jobs += self._ready(case, contender, inputs)
        with OtherLoad() as load:
            _take_turns(jobs, self.device)
        everywhere = {"device": self.device, "others": load.cores}
        records = [everywhere | _record(job, batch) for job in jobs]
        loops = [record for record in records if record["extrapolated_from"] is not None]
        return records + [record | {"case": LOOPS[1]} for record in loops]

    def _ready(self, case: Case, contender: Contender, inputs: Inputs) -> list[_Job]:
        """The job, warmed up and with its memory measured; none where it is left out."""
        batch, params = len(inputs.x), self.params
        loop = contender.is_loop(case)
        fewest = min(params.passes, contender.dim) if loop else FEWEST_RUNS
        before = self.seen.setdefault((case, contender), [])
        # a copy for the memory and the warm-up run, too
        seconds = (fewest + 2) * _extended([(n, time) for n, time, _ in before], batch)
        needed = _extended([(n, peak) for n, _, peak in before if peak is not None], batch)
        free = free_mb(self.device)
        too_long = seconds > 1.2 * params.longest
        if not too_long and needed <= 0.7 * free:
            # a copy that is fresh: with what it keeps from one call to the next yet to be made
            peak = peak_mb(copy.deepcopy(contender).prepare(case, inputs), self.device)
            call = contender.prepare(case, inputs)
            warm = time_call(call, self.device)
            if warm < 0.5 * params.longest / fewest:
                warm = min(warm, time_call(call, self.device))
            before.append((batch, warm, peak))
            seconds = fewest * warm
            too_long = seconds > 1.5 * params.longest
            if not too_long:
                calls = max(fewest, min(params.runs, int(params.seconds / warm)))
                return [_Job(case, contender, call, calls, peak)]
        reason = f"it would need some {needed / 1000:.0f} GB of the {free / 1000:.0f} free"
        if too_long:
            reason = f"{fewest} {'passes' if loop else 'runs'} would take some {seconds:.0f} s"
        left = {"contender": contender.name, "dtype": contender.dtype, "batch": batch}
        self.left_out += [
            {"case": also, **left, "reason": reason} for also in (LOOPS if loop else (case,))
        ]
        return []


def _extended(points: Sequence[tuple[int, float]], batch: int) -> float:
    """The straight line through the last two points, at another batch size; 0 without any."""
    if len(points) < 2:
        return points[0][1] if points else 0.0
    (n0, value0), (n, value) = points[-2:]
    return max(value, value + (value - value0) / (n - n0) * (batch - n))


def _take_turns(jobs: Sequence[_Job], device: str) -> None:
    turns = max((job.calls for job in jobs), default=0)
    for turn in range(turns):
        for job in jobs:
            # spread evenly, so that all see the same machine
            if (turn + 1) * job.calls // turns > turn * job.calls // turns:
                job.times.append(time_call(job.call, device))


def _record(job: _Job, batch: int) -> dict[str, Any]:
    low, median, high = map(float, np.quantile(job.times, (0.25, 0.5, 0.75)))
    loop = job.contender.is_loop(job.case)
    passes = job.contender.dim if loop else 1
    return {
        "case": job.case,
        "contender": job.contender.name,
        "dtype": job.contender.dtype,
        "batch": batch,
        "ms_per_sample": 1000 * median * passes / batch,
        "runs": len(job.times),
        "peak_mb": job.peak_mb,
        "extrapolated_from": len(job.times) if loop else None,
        "spread": (high - low) / median,
    }
