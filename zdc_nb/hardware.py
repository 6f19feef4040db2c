"""What machine this is: its device, processor, memory, precision and clock, and who else uses it."""

from __future__ import annotations

import ctypes
import functools
import gc
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import psutil

# torch takes a second to import, and not everyone who asks of the machine needs it
if TYPE_CHECKING:
    import torch

__all__ = [
    "OtherLoad",
    "choose_device",
    "cpu_model",
    "free_mb",
    "has_bfloat16",
    "peak_mb",
    "peak_memory_mb",
    "relative_spread",
    "time_call",
    "timing_warning",
    "wait",
]


def choose_device(name: str) -> torch.device:
    """The device of ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``."""
    import torch  # noqa: PLC0415

    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device: cuda was asked for, but torch finds no CUDA device")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@functools.cache
def has_bfloat16(device: str) -> bool:
    """Whether a device ("cpu" or "cuda") of this machine has instructions for bfloat16 products."""
    import torch  # noqa: PLC0415

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # older versions of torch do not tell
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(can.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def cpu_model() -> str:
    """Name of the processor, as far as the system tells."""
    with suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text("utf-8"))
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def wait(device: str) -> None:
    """Wait until the device has done its work; a CPU always has."""
    if device.startswith("cuda"):
        import torch  # noqa: PLC0415

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
    if device.startswith("cuda"):
        import torch  # noqa: PLC0415

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    try:
        # freed memory that the allocator keeps would be used again unseen
        ctypes.CDLL(None).malloc_trim(0)
        # from here on the kernel notes the highest anew
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (OSError, AttributeError):
        call()
        return None
    before = psutil.Process().memory_info().rss
    call()
    highest = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    return max(0.0, (int(highest[1]) * 1024 - before) / 1e6) if highest else None


def free_mb(device: str) -> float:
    """Memory that may be used (MB)."""
    if device.startswith("cuda"):
        import torch  # noqa: PLC0415

        return torch.cuda.mem_get_info()[0] / 1e6
    return float(psutil.virtual_memory().available) / 1e6


SHORTEST = 0.2
"""Seconds over which load can be told: the system counts it in hundredths."""


class OtherLoad:
    """How busy other processes keep this machine while the block runs.

    What this process and its children use is not counted. Seen are the cores on which this process
    may run; in a container these have other containers' work, too, as it slows this one alike.

    Attributes
    ----------
    cores
        cores that they used on average, known when the block has ended; None where the system does
        not tell, or the block was shorter than :data:`SHORTEST`.
    """

    def __init__(self) -> None:
        self.cores: float | None = None

    def __enter__(self) -> Self:
        self._before = time.monotonic(), _busy_seconds(), _own_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        after = time.monotonic(), _busy_seconds(), _own_seconds()
        seconds, everyone, own = (now - then for now, then in zip(after, self._before, strict=True))
        # some sandboxes show counters that stand still
        if seconds >= SHORTEST and everyone > 0:
            self.cores = max(0.0, (everyone - own) / seconds)


def _busy_seconds() -> float:
    """Seconds that these cores have worked since the machine started; 0 where it hides them."""
    try:
        cores = psutil.cpu_times(percpu=True)
        mine = psutil.Process().cpu_affinity()
        # where cores are renumbered, the numbers of the affinity are others
        if max(mine) < len(cores):
            cores = [cores[number] for number in mine]
    except (OSError, RuntimeError, AttributeError, psutil.Error):
        with suppress(OSError, RuntimeError, AttributeError):
            return _work(psutil.cpu_times())
        return 0.0
    return sum(map(_work, cores))


def _work(times: Any) -> float:
    # a guest's time is in that of its user already
    idle = {"idle", "iowait", "guest", "guest_nice"}
    return float(sum(value for name, value in times._asdict().items() if name not in idle))


def _own_seconds() -> float:
    """Seconds of processor time of this process and of its children, gone ones included."""
    seconds = 0.0
    this = psutil.Process()
    for process in [this, *this.children(recursive=True)]:
        with suppress(psutil.Error):
            times = process.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def relative_spread(times: Sequence[float]) -> float:
    """The distance between the quartiles of some times over their median."""
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75))
    return float((high - low) / median)


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
