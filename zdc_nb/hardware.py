"""What machine this is: its device, processor, memory, precision and clock."""

from __future__ import annotations

import ctypes
import functools
import gc
import math
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil
import torch

__all__ = [
    "OtherLoad",
    "choose_device",
    "cpu_model",
    "free_mb",
    "has_bfloat16",
    "peak_mb",
    "peak_memory_mb",
    "time_call",
    "timing_warning",
    "wait",
]


def choose_device(name: str) -> torch.device:
    """The device of ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device: cuda was asked for, but torch finds no CUDA device")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@functools.cache
def has_bfloat16(device: str) -> bool:
    """Whether a device ("cpu" or "cuda") of this machine has instructions for bfloat16 products."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # older versions of torch do not tell
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(can.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def cpu_model() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine()


def wait(device: str) -> None:
    """Wait until the device has done its work; a CPU always has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def time_call(call: Callable[[], object], device: str) -> float:
    """Seconds that a call takes, its work on the device included."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def peak_memory_mb() -> float:
    """Peak memory of this process since its start (MB = 1e6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


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


class OtherLoad:
    """How busy other processes keep this machine while the block runs.

    Attributes
    ----------
    cores
        cores that they used on average, known when the block has ended; None where the system does
        not tell.
    """

    def __init__(self) -> None:
        self.cores: float | None = None

    def __enter__(self) -> Self:
        self._began, self._all, self._ours = time.monotonic(), _busy_seconds(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.monotonic() - self._began
        everyone = _busy_seconds()
        if seconds > 0 and everyone is not None and self._all is not None:
            others = everyone - self._all - (time.process_time() - self._ours)
            self.cores = max(0.0, others / seconds)


def _busy_seconds() -> float | None:
    """Seconds that all cores together have worked since the machine started."""
    try:
        times = psutil.cpu_times()._asdict()
    except (OSError, RuntimeError, AttributeError):
        return None
    # a guest's time is in that of its user already
    idle = {"idle", "iowait", "guest", "guest_nice"}
    return float(sum(value for name, value in times.items() if name not in idle))


MOST_OTHERS, MOST_SPREAD = 0.25, 0.2
"""Cores of other processes, and spread of the runs, from which timings are not to be trusted."""


def timing_warning(spread: float, others: float | None) -> str | None:
    """A sentence that warns of timings taken on a busy machine; None where they can be trusted.

    Parameters
    ----------
    spread
        largest distance between the quartiles of the timed runs, as a share of their median.
    others
        most cores that other processes used meanwhile; None where it is not known.
    """
    found = []
    if others is not None and others > MOST_OTHERS:
        found.append(f"other processes used up to {others:.1f} cores")
    if spread > MOST_SPREAD:
        found.append(f"the quartiles of the runs lie up to {spread:.0%} of the median apart")
    if not found:
        return None
    return f"**Timings taken on a busy machine**: {' and '.join(found)}. Do not trust single times."
