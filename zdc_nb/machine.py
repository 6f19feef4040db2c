"""What the machine can do, and the clock and scales that the benchmark measures with."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zdc_nb import __version__
from zdc_nb.bench_params import BenchParams
from zdc_nb.records import cpu_model
from zdc_nb.training import choose_device

__all__ = ["Machine", "ProductClock", "free_mb", "measure_machine", "peak_mb", "time_call"]


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


def time_call(call: Callable[[], object], device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def peak_mb(call: Callable[[], object], device: str) -> float | None:
    """Peak memory (MB) of a call above what was there before; None where the system hides it."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    try:
        # freed memory that the allocator keeps would be used again unseen
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before_kb = _resident_kb("VmRSS")
        call()
        return max(0.0, (_resident_kb("VmHWM") - before_kb) * 1024 / 1e6)
    except (OSError, AttributeError, StopIteration):
        call()
        return None


def _resident_kb(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def free_mb(device: str) -> float:
    """Memory that may be used (MB); infinite where the system does not say."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info()[0] / 1e6
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    return math.inf


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
        _wait(self.device)
        start = time.perf_counter()
        result = call()
        _wait(self.device)
        self.seconds += time.perf_counter() - start
        return result


_PRODUCT = re.compile(r"::_?(addmm|mm|bmm|baddbmm|addmv|mv)(_|_activation)?(\.|$)|linear")
