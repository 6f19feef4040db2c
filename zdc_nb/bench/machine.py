"""What the machine can do, and the clock and scales that the benchmark measures with."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zdc_nb import __version__
from zdc_nb.bench.cases import BenchParams
from zdc_nb.hardware import choose_device, cpu_model, time_call, wait

__all__ = ["Machine", "ProductClock", "measure_machine"]


@dataclass(frozen=True)
class Machine:
    """What the machine can do, measured: the best of several runs.

    Attributes
    ----------
    float32_gflops, bfloat16_gflops, numpy_gflops
        rate of large matrix products (GFLOP/s) by torch in float32 and bfloat16, and by numpy in
        float32 (None on a GPU).
    bandwidth_gbs
        of ``a = b + s * c`` on long vectors (GB/s), two read and one written.
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


def measure_machine(params: BenchParams) -> Machine:
    """Rates of matrix products and memory, on the device and with the threads of the benchmark."""
    device = choose_device(params.device)
    n = params.product_size

    def rate(dtype: torch.dtype) -> float:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        out = torch.empty(n, n, device=device, dtype=dtype)
        return 2 * n**3 / 1e9 / _best(lambda: torch.mm(a, b, out=out), str(device))

    def numpy_rate() -> float:
        a, b = np.random.default_rng(0).standard_normal((2, n, n), np.float32)
        return 2 * n**3 / 1e9 / _best(lambda: a @ b, "cpu")

    length = params.copy_mb * 10**6 // 4
    a, b, c = (torch.ones(length, device=device) for _ in range(3))
    triad = _best(lambda: torch.add(b, c, alpha=3.0, out=a), str(device))
    return Machine(
        description=_describe(device),
        device=device.type,
        threads=torch.get_num_threads(),
        float32_gflops=rate(torch.float32),
        bfloat16_gflops=rate(torch.bfloat16),
        numpy_gflops=numpy_rate() if device.type == "cpu" else None,
        bandwidth_gbs=3 * 4 * length / 1e9 / triad,
    )


def _best(call: Callable[[], object], device: str, runs: int = 7) -> float:
    call()
    return min(time_call(call, device) for _ in range(runs))


def _describe(device: torch.device) -> str:
    gpu = f"{torch.cuda.get_device_name()}, " if device.type == "cuda" else ""
    return (
        f"{gpu}{cpu_model()}, {os.cpu_count()} CPU cores, {platform.system()}, "
        f"Python {platform.python_version()}, torch {version('torch')}, zdc-nb {__version__}"
    )


class ProductClock(TorchDispatchMode):
    """Adds up the time in matrix products while it is entered."""

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.seconds = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        def call() -> Any:
            return func(*args, **(kwargs or {}))

        if not _PRODUCT.search(func.name()):
            return call()
        wait(self.device)
        start = time.perf_counter()
        result = call()
        wait(self.device)
        self.seconds += time.perf_counter() - start
        return result


_PRODUCT = re.compile(r"::_?(addmm|mm|bmm|baddbmm|addmv|mv)(_|_activation)?(\.|$)|linear")
