"""A training that is stopped and goes on ends with the numbers of one that was not."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from zdc_nb.data.events import Split, split_by_response
from zdc_nb.data.simulation import simulate
from zdc_nb.generator.surrogate import Surrogate
from zdc_nb.params import Study, load_study
from zdc_nb.training.checkpoints import (
    Checkpoint,
    StopRequest,
    TrainingInterrupted,
    code_checksum,
)
from zdc_nb.training.trainers import distil_student, train_teacher

ROOT = Path(__file__).parents[1]
SMOKE = load_study(ROOT / "params" / "smoke.yaml")
Result = tuple[Surrogate, pd.DataFrame]


def tiny() -> Study:
    """With dropout, so that torch's own generator counts too."""
    changes: dict[str, dict[str, Any]] = {
        "flow": {"hidden": 8, "context_hidden": [8], "dropout": 0.1},
        "teacher": {"epochs": 3, "batch": 16},
        "student": {"epochs": 2, "batch": 16},
    }
    sections = {k: getattr(SMOKE, k).model_copy(update=v) for k, v in changes.items()}
    return SMOKE.model_copy(update={"device": "cpu", **sections})


@pytest.fixture(scope="module")
def parts() -> Split:
    return split_by_response(simulate(120, 10, 10, 3), (0.7, 0.1, 0.2), 1)


@pytest.fixture(scope="module")
def undisturbed(parts: Split) -> dict[str, Result]:
    teacher = train_teacher(parts[0], parts[1], tiny(), "all")
    student = distil_student(teacher[0], parts[0], parts[1], tiny(), "all", "bs+ch+div")
    return {"teacher": teacher, "student": student}


def assert_same(one: Result, other: Result) -> None:
    pd.testing.assert_frame_equal(one[1], other[1], check_exact=True)
    weights = other[0].flow.state_dict()
    for name, value in one[0].flow.state_dict().items():
        assert torch.equal(value, weights[name]), name


def send_after_steps(monkeypatch: pytest.MonkeyPatch, number: int, steps: set[int]) -> None:
    """This process gets a signal after each of these steps, counted over all trainings."""
    step, done = torch.optim.Adam.step, [0]

    def counted(optimizer: torch.optim.Adam, *arguments: Any) -> Any:
        result = step(optimizer, *arguments)
        done[0] += 1
        if done[0] in steps:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", counted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("model", ["teacher", "student"])
def test_stopped_again_and_again_it_ends_with_the_same_numbers(
    parts: Split,
    undisturbed: dict[str, Result],
    model: str,
    number: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the first step, in and at the end of an epoch (of 6), and the last but one
    last = 18 if model == "teacher" else 12
    send_after_steps(monkeypatch, number, {1, 2, 6, 9, last - 1})

    def attempt() -> Result:
        checkpoint = Checkpoint(tmp_path / "a.safetensors", "any", 1e9)
        if model == "teacher":
            return train_teacher(parts[0], parts[1], tiny(), "all", checkpoint=checkpoint)
        teacher = undisturbed["teacher"][0]
        return distil_student(
            teacher, parts[0], parts[1], tiny(), "all", "bs+ch+div", checkpoint=checkpoint
        )

    before = signal.getsignal(number)
    for step in (1, 2, 6, 9, last - 1):
        with pytest.raises(
            TrainingInterrupted, match=f"{number.name} after step {step} of {last}, saved"
        ):
            attempt()
        assert signal.getsignal(number) is before
    finished = attempt()
    assert_same(finished, undisturbed[model])
    assert finished[1].attrs["resumed_from_step"] == last - 1
    # and what is finished is not done again
    assert_same(attempt(), undisturbed[model])


def test_a_signal_during_validation_is_heard(
    parts: Split,
    undisturbed: dict[str, Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = Checkpoint(tmp_path / "a.safetensors", "any", 1e9)
    evaluate = torch.nn.Module.eval

    def interrupted(module: torch.nn.Module) -> torch.nn.Module:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(module)

    monkeypatch.setattr(torch.nn.Module, "eval", interrupted)
    with pytest.raises(TrainingInterrupted, match="after step 6"):
        train_teacher(parts[0], parts[1], tiny(), "all", checkpoint=checkpoint)
    monkeypatch.undo()
    again = train_teacher(parts[0], parts[1], tiny(), "all", checkpoint=checkpoint)
    assert_same(again, undisturbed["teacher"])


def test_checkpoints_come_at_intervals(
    parts: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def saved(seconds: float) -> list[int]:
        checkpoint, steps = Checkpoint(tmp_path / f"{seconds}.safetensors", "any", seconds), []
        save = checkpoint.save

        def noted(progress: Any, *rest: Any) -> None:
            steps.append(progress.step)
            save(progress, *rest)

        monkeypatch.setattr(checkpoint, "save", noted)
        train_teacher(parts[0], parts[1], tiny(), "all", checkpoint=checkpoint)
        return steps

    assert set(saved(0.0)) == set(range(1, 19))
    assert saved(1e9) == [18]


@pytest.mark.parametrize("damage", ["cut", "weight", "progress", "empty", "other", "code"])
def test_a_checkpoint_that_does_not_fit_is_named_and_not_used(
    parts: Split,
    undisturbed: dict[str, Result],
    damage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "a.safetensors"
    study = tiny().model_copy(update={"teacher": tiny().teacher.model_copy(update={"epochs": 1})})
    train_teacher(parts[0], parts[1], study, "all", checkpoint=Checkpoint(path, "any", 1e9))
    whole = path.read_bytes()
    made_with = "any"
    if damage == "cut":
        path.write_bytes(whole[:-1])
    elif damage == "weight":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "progress":
        assert b'step\\": 6' in whole
        path.write_bytes(whole.replace(b'step\\": 6', b'step\\": 5', 1))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other":
        made_with = "other"
    else:
        monkeypatch.setattr("zdc_nb.training.checkpoints.code_checksum", lambda _: "other code")
    checkpoint = Checkpoint(path, made_with, 1e9)
    result = train_teacher(parts[0], parts[1], tiny(), "all", checkpoint=checkpoint)
    assert "beginning anew" in (printed := capsys.readouterr().out)
    assert str(path) in printed
    assert_same(result, undisturbed["teacher"])


def test_only_the_main_thread_can_catch_signals() -> None:
    def enter() -> str | None:
        with StopRequest() as stop:
            return stop.signal

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(enter).result() is None


OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")
"""Runs a command that may mount what only it sees."""


def may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path({tests!r})))
import test_checkpoints as t
from zdc_nb.training.checkpoints import Checkpoint
from zdc_nb.data.events import split_by_response
from zdc_nb.data.simulation import simulate
from zdc_nb.storage import write_csv
from zdc_nb.generator.surrogate import save_surrogate
from zdc_nb.training.trainers import train_teacher
import resource
if {limit}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
parts = split_by_response(simulate(120, 10, 10, 3), (0.7, 0.1, 0.2), 1)
folder = Path({folder!r})
checkpoint = Checkpoint(folder / "a.safetensors", "any", 0.0)
print("training", flush=True)
surrogate, history = train_teacher(parts[0], parts[1], t.tiny(), "all", checkpoint=checkpoint)
save_surrogate(surrogate, folder / "model.safetensors")
write_csv(history, folder / "history.csv")
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a training in a process of its own, with a checkpoint after every step."""

    def start(limit: int = 0, before: str = "") -> subprocess.Popen[str]:
        code = PROGRAM.format(tests=str(Path(__file__).parent), folder=str(tmp_path), limit=limit)
        command = [sys.executable, "-c", code]
        if before:
            inside = f"{before}; {shlex.join(command)}; code=$?; ls -A {tmp_path}; exit $code"
            command = [*OWN_MOUNTS, "sh", "-c", inside]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )

    return start


@pytest.mark.slow
def test_killed_at_once_it_goes_on_from_its_last_checkpoint(
    program: Callable[..., subprocess.Popen[str]], undisturbed: dict[str, Result], tmp_path: Path
) -> None:
    for _ in range(3):
        process = program()
        assert process.stdout is not None
        assert process.stdout.readline() == "training\n"
        path, begun = tmp_path / "a.safetensors", time.monotonic()
        before = path.stat().st_mtime_ns if path.exists() else 0
        while not path.exists() or path.stat().st_mtime_ns == before:
            assert process.poll() is None
            assert time.monotonic() - begun < 60
        process.kill()
        process.communicate()
    output, errors = program().communicate()
    assert "going on from step" in output, errors
    history = pd.read_csv(tmp_path / "history.csv")
    pd.testing.assert_frame_equal(history, undisturbed["teacher"][1], check_exact=False, rtol=1e-12)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_checkpoint_before_it_stays(
    program: Callable[..., subprocess.Popen[str]],
    parts: Split,
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.safetensors"
    # no file may be larger than this, so that the checkpoint is refused halfway through
    limited = program(limit=100_000)
    _, errors = limited.communicate()
    assert limited.returncode == 1
    assert re.search("could not be written.*a.safetensors", errors)
    assert not list(tmp_path.iterdir())
    # once there is one, it outlives a full disk
    study = tiny().model_copy(update={"teacher": tiny().teacher.model_copy(update={"epochs": 1})})
    train_teacher(parts[0], parts[1], study, "all", checkpoint=Checkpoint(path, "any", 1e9))
    kept = path.read_bytes()
    limited = program(limit=100_000)
    limited.communicate()
    assert limited.returncode == 1
    assert path.read_bytes() == kept
    output, errors = program().communicate()
    assert "going on from step 6" in output, errors
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.skipif(not may_mount(), reason="this system lets users mount nothing")
def test_on_a_disk_that_is_really_full(
    program: Callable[..., subprocess.Popen[str]],
    parts: Split,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("size") / "a.safetensors"
    train_teacher(parts[0], parts[1], tiny(), "all", checkpoint=Checkpoint(path, "any", 1e9))
    # that of the end, which holds the best weights too; room for one, not for a second beside it
    kilobytes = path.stat().st_size * 11 // 10240
    full = program(before=f"mount -t tmpfs -o size={kilobytes}k none {tmp_path}")
    output, errors = full.communicate()
    assert full.returncode == 1
    assert "No space left on device" in errors
    assert output.split() == ["training", "a.safetensors"]


def test_a_checkpoint_depends_on_what_its_training_runs_and_on_no_text(tmp_path: Path) -> None:
    package = tmp_path / "zdc_nb"
    shutil.copytree(ROOT / "zdc_nb", package)
    before = code_checksum(package)

    def edited(name: str, old: str, new: str) -> str:
        path = package / name
        source = path.read_text("utf-8")
        assert old in source
        path.write_text(source.replace(old, new, 1), "utf-8")
        after = code_checksum(package)
        path.write_text(source, "utf-8")
        return after

    for name in ("study/report.py", "training/figures.py", "data/simulation.py"):
        assert edited(name, "import annotations", "import annotations; import os") == before
    assert edited("flows/made.py", '"""', '"""Another text. ') == before
    assert edited("training/loop.py", "import math", "import math  # a comment") == before
    for name in ("flows/made.py", "training/losses.py", "generator/encoding.py"):
        assert edited(name, "import annotations", "import annotations; import os") != before
