"""What is logged is read back by TensorBoard itself, and from the files that W&B syncs."""

import importlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from zdc_nb.params import Study, load_study
from zdc_nb.training.tracking import TrackingError, log_metrics, open_tracker

ROOT = Path(__file__).parents[1]
STAGE = "student/all/bs+ch"


def make_study(folder: Path, tracking: str = "tensorboard") -> Study:
    """The smoke study, its results below ``folder``."""
    study = load_study(ROOT / "params" / "smoke.yaml")
    paths = study.paths.model_copy(update={"reports": str(folder / "reports")})
    return study.model_copy(update={"paths": paths, "tracking": tracking})


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_study(tmp_path)


def curves(study: Study, stage: str = STAGE) -> dict[str, list[tuple[int, float]]]:
    """Points (step, value) of every tag, as TensorBoard would show them."""
    events = EventAccumulator(str(study.reports / "tensorboard" / stage))
    events.Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def age(study: Study) -> None:
    """Let what there is have been begun earlier: TensorBoard orders files by the second."""
    for path in (study.reports / "tensorboard" / STAGE).iterdir():
        path.rename(re.sub(r"tfevents\.\d+", "tfevents.1700000000", str(path)))


def test_terms_come_back_as_they_were_logged(study: Study) -> None:
    with open_tracker(study, STAGE) as tracker:
        for step in (4, 8):
            tracker.log(step, "train", {"loss": 4 / step, "channel": 2.0 * step})
            tracker.log(step, "validation", {"loss": 12 / step})
    with open_tracker(study, "teacher/sigma+") as tracker:
        tracker.log(1, "train", {"loss": 7.0})
    found = curves(study)
    assert set(found) == {"loss/train", "channel/train", "loss/validation"}
    assert found["loss/train"] == [(4, 1.0), (8, 0.5)]
    assert found["channel/train"] == [(4, 8.0), (8, 16.0)]
    assert found["loss/validation"] == [(4, 3.0), (8, 1.5)]
    assert curves(study, "teacher/sigma+") == {"loss/train": [(1, 7.0)]}


def test_resumed_training_shows_no_point_twice(study: Study) -> None:
    with open_tracker(study, STAGE) as tracker:
        for step in (10, 20, 30):
            tracker.log(step, "train", {"loss": float(step)})
    age(study)
    # the last checkpoint was that of step 20: steps up to it are not logged again
    with open_tracker(study, STAGE, resume_step=20) as tracker:
        for step in (25, 30, 40):
            tracker.log(step, "train", {"loss": 100.0 + step})
    expected = [(10, 10.0), (20, 20.0), (25, 125.0), (30, 130.0), (40, 140.0)]
    assert curves(study)["loss/train"] == expected


def test_fresh_training_removes_its_own_earlier_curve_only(study: Study) -> None:
    for stage in (STAGE, "student/all/bs"):
        with open_tracker(study, stage) as tracker:
            tracker.log(1000, "train", {"loss": 1.0})
    with open_tracker(study, STAGE) as tracker:
        tracker.log(1, "train", {"loss": 2.0})
    assert curves(study) == {"loss/train": [(1, 2.0)]}
    assert curves(study, "student/all/bs") == {"loss/train": [(1000, 1.0)]}


def test_metrics_stand_beside_the_curve_and_replace_earlier_ones(study: Study) -> None:
    with open_tracker(study, STAGE) as tracker:
        tracker.log(10, "train", {"loss": 1.0})
    log_metrics(study, STAGE, {"WS": 9.0, "MAE_c": 8.0})
    log_metrics(study, STAGE, {"WS": 3.5, "MAE_c": 4.5})
    expected = {"metrics/WS": [(0, 3.5)], "metrics/MAE_c": [(0, 4.5)]}
    assert curves(study) == {"loss/train": [(10, 1.0)], **expected}


@pytest.mark.parametrize("stage", ["", "../teacher", "/etc", "teacher/", "teacher/a:b", "a\\b"])
def test_stage_that_is_no_folder_is_refused(study: Study, stage: str) -> None:
    with pytest.raises(ValueError, match="stage: expected"):
        open_tracker(study, stage)
    assert not study.reports.exists()


KILLED = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "tests")!r})
from test_tracking import STAGE, make_study, open_tracker
tracker = open_tracker(make_study(Path(sys.argv[1])), STAGE)
tracker.log(10, "train", {{"loss": 1.0}})
tracker.log(20, "train", {{"loss": 2.0}})
os.kill(os.getpid(), signal.SIGKILL)
"""


def run(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=arguments[0] if isinstance(arguments[0], Path) else None,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_training_that_is_killed_loses_nothing_and_half_an_event_does_no_harm(
    study: Study, tmp_path: Path
) -> None:
    assert run(KILLED, tmp_path).returncode == -signal.SIGKILL
    assert curves(study)["loss/train"] == [(10, 1.0), (20, 2.0)]
    (path,) = (study.reports / "tensorboard" / STAGE).iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    age(study)
    with open_tracker(study, STAGE, resume_step=10) as tracker:
        tracker.log(20, "train", {"loss": 3.0})
    assert curves(study)["loss/train"] == [(10, 1.0), (20, 3.0)]


# --- Weights & Biases ---------------------------------------------------------------------------

TRACKED = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "tests")!r})
from test_tracking import STAGE, make_study, open_tracker, log_metrics
study = make_study(Path(sys.argv[1]), "wandb")
with open_tracker(study, STAGE) as tracker:
    tracker.log(5, "train", {{"loss": 1.25}})
    tracker.log(5, "validation", {{"loss": 2.5}})
    tracker.log(10, "train", {{"loss": 0.75}})
with open_tracker(study, STAGE, resume_step=10) as tracker:
    tracker.log(15, "train", {{"loss": 0.5}})
log_metrics(study, STAGE, {{"WS": 3.25}})
"""


needs_wandb = pytest.mark.skipif(
    find_spec("wandb") is None, reason="needs wandb, which `make test-all` installs"
)


@pytest.fixture
def unreachable() -> tuple[socket.socket, dict[str, str]]:
    """A server that answers nobody, and the environment that leads all of W&B to it."""
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    url = f"http://127.0.0.1:{server.getsockname()[1]}"
    names = ("WANDB_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    return server, dict.fromkeys(names, url)


def offline_records(path: Path) -> list[Any]:
    """Records of an offline run: W&B writes protocol buffers as a log of LevelDB's format."""
    # its protocol is made when it is imported, by the installed version of protobuf
    protocol: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    raw = path.read_bytes()
    assert raw[:4] == b":W&B"
    found, position, record = [], 7, b""
    while position + 7 <= len(raw):
        left = 32768 - position % 32768
        if left < 7:  # the rest of a block that has no room for another header
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", raw[position : position + 7])
        record += raw[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in {1, 4}:  # a whole one, or its last part
            found.append(protocol.Record.FromString(record))
            record = b""
    return found


@needs_wandb
def test_wandb_works_offline_without_network_login_or_stray_files(
    tmp_path: Path, unreachable: tuple[socket.socket, dict[str, str]]
) -> None:
    server, environment = unreachable
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    done = run(TRACKED, work, WANDB_MODE="offline", HOME=str(home), **environment)
    with server:
        assert done.returncode == 0, done.stderr
        with pytest.raises(BlockingIOError):  # nobody came
            server.accept()
    study = make_study(work, "wandb")
    assert list(home.rglob("*")) == []
    files = [path for path in work.rglob("*") if path.is_file()]
    outside = [path for path in files if study.reports not in path.parents]
    assert outside == []
    # TensorBoard has the same
    assert curves(study)["loss/train"] == [(5, 1.25), (10, 0.75), (15, 0.5)]
    assert curves(study)["metrics/WS"] == [(0, 3.25)]

    files = sorted((study.reports / "wandb" / STAGE).glob("wandb/offline-run-*/*.wandb"))
    assert {path.name for path in files} == {"run-smoke.student.all.bs+ch.wandb"}
    runs: list[tuple[str, str, str]] = []
    points: dict[tuple[int, str], float] = {}
    summary: dict[str, float] = {}
    config: dict[str, Any] = {}
    for record in [record for path in files for record in offline_records(path)]:
        what = record.WhichOneof("record_type")
        if what == "run":
            runs.append((record.run.project, record.run.run_group, record.run.run_id))
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif what == "history":
            items = {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
                for item in record.history.item
            }
            points |= {
                (items["_step"], tag): value
                for tag, value in items.items()
                if not tag.startswith("_")
            }
        elif what == "summary":
            items = record.summary.update
            summary |= {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items}
    assert set(runs) == {("zdc-flows", "smoke", "smoke.student.all.bs+ch")}
    assert points == {
        (5, "loss/train"): 1.25,
        (5, "loss/validation"): 2.5,
        (10, "loss/train"): 0.75,
        (15, "loss/train"): 0.5,
    }
    assert summary["metrics/WS"] == 3.25
    assert config["flow"] == study.flow.model_dump(mode="json")


@needs_wandb
def test_wandb_without_a_key_says_what_to_do(
    tmp_path: Path, unreachable: tuple[socket.socket, dict[str, str]]
) -> None:
    server, environment = unreachable
    with server:
        done = run(TRACKED, tmp_path, WANDB_MODE="online", HOME=str(tmp_path), **environment)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("zdc_nb.training.tracking.TrackingError: ")
    for way in ("wandb login", "WANDB_API_KEY", "WANDB_MODE=offline", "tracking: tensorboard"):
        assert way in message


def test_wandb_that_is_not_installed_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(TrackingError, match=r'not installed: run `pip install .*"\.\[wandb\]"`'),
        open_tracker(make_study(tmp_path, "wandb"), STAGE),
    ):
        pass


def test_wandb_is_not_imported_where_it_is_not_asked_for(tmp_path: Path) -> None:
    code = TRACKED.replace('"wandb")', '"tensorboard")') + "\nassert 'wandb' not in sys.modules"
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
