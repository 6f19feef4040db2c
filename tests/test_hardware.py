"""What the machine is, and whether something else keeps it busy."""

import subprocess
import sys
import time

import pytest
import torch

from zdc_nb.hardware import OtherLoad, choose_device, timing_warning


def test_work_of_other_processes_is_seen_and_ones_own_is_not() -> None:
    def burn(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sum(range(1000))

    with OtherLoad() as alone:
        burn(1.0)
    program = "import sys\nprint('ready', flush=True)\nwhile True: sum(range(1000))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            with OtherLoad() as beside:
                time.sleep(1.0)
        finally:
            other.kill()
    assert alone.cores is not None
    assert beside.cores is not None
    # the tests' own machine may be busy, too, so nothing is said of the first alone
    assert alone.cores >= 0
    assert beside.cores > 0.3


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
