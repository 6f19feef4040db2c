"""What the machine is, and whether something else keeps it busy."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from zdc_nb import hardware
from zdc_nb.hardware import OtherLoad, choose_device, peak_mb, relative_spread, timing_warning

BURN = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: sum(range(1000))"
SPAWN = f"""
import subprocess, sys
quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
print(subprocess.Popen([sys.executable, "-c", {BURN!r}], **quiet).pid)
"""


@pytest.fixture
def stranger() -> Iterator[None]:
    """A busy process that is no child of this one: its parent has ended."""
    done = subprocess.run([sys.executable, "-c", SPAWN], capture_output=True, check=True)
    yield
    os.kill(int(done.stdout), signal.SIGKILL)


@pytest.mark.usefixtures("stranger")
def test_work_of_other_processes_is_seen() -> None:
    with OtherLoad() as beside:
        time.sleep(1.0)
    assert beside.cores is not None
    assert beside.cores > 0.3


def test_the_work_of_a_child_is_ones_own_while_it_lives_and_after() -> None:
    before, asked = hardware._own_seconds(), time.process_time()
    with subprocess.Popen([sys.executable, "-c", BURN]) as child:
        time.sleep(1.0)
        alive = hardware._own_seconds() - before
        child.kill()
    after = hardware._own_seconds() - before
    # what this process itself did meanwhile is next to nothing
    assert time.process_time() - asked < 0.2
    assert alive > 0.3
    assert after > alive - 0.05


def test_the_load_of_others_is_that_of_all_without_ones_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everyone, own, clock = iter([50.0, 53.0]), iter([7.0, 8.5]), iter([0.0, 2.0])
    monkeypatch.setattr(hardware, "_busy_seconds", lambda: next(everyone))
    monkeypatch.setattr(hardware, "_own_seconds", lambda: next(own))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with OtherLoad() as others:
        pass
    assert others.cores == pytest.approx((3.0 - 1.5) / 2.0)


@pytest.mark.parametrize(("end", "busy"), [(0.1, 51.0), (2.0, 50.0)])
def test_load_is_not_known_of_a_short_block_or_from_counters_that_stand_still(
    monkeypatch: pytest.MonkeyPatch, end: float, busy: float
) -> None:
    everyone, clock = iter([50.0, busy]), iter([0.0, end])
    monkeypatch.setattr(hardware, "_busy_seconds", lambda: next(everyone))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with OtherLoad() as others:
        pass
    assert others.cores is None


def test_spread_is_the_distance_of_the_quartiles_over_the_median() -> None:
    # of 1, 2, 3, 4, 5: quartiles 2 and 4, median 3
    assert relative_spread([5.0, 1.0, 3.0, 2.0, 4.0]) == pytest.approx(2 / 3)
    assert relative_spread([7.0]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems hide it")
def test_peak_memory_of_a_call_is_that_of_the_call() -> None:
    before = peak_mb(lambda: torch.ones(1), "cpu")
    found = peak_mb(lambda: torch.ones(20_000_000).add(1), "cpu")
    assert before is not None
    assert found is not None
    # two arrays of 80 MB at once
    assert found - before == pytest.approx(160, rel=0.1)


def test_asking_of_the_machine_does_not_import_torch() -> None:
    program = "import sys, zdc_nb.hardware as h; h.cpu_model(); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("spread", "others", "said"),
    [
        (0.1, 0.1, []),
        (0.1, None, []),
        (0.5, 0.0, ["50% of the median"]),
        (0.0, 1.7, ["1.7 cores"]),
        (0.5, 1.7, ["1.7 cores", "50% of the median"]),
    ],
)
def test_timings_of_a_busy_machine_are_warned_of(
    spread: float, others: float | None, said: list[str]
) -> None:
    warning = timing_warning(spread, others)
    assert (warning is None) == (not said)
    assert all(words in (warning or "") for words in said)


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="finds no CUDA device"):
            choose_device("cuda")
