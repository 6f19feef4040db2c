"""One particle, simulated and generated: what is aimed hits, pictures follow, nothing is changed."""

import base64
import hashlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser import NO_BROWSER, find_browser, open_browser
from tests.projects import ROOT, THREADS, new_project, papermill, run, write_study
from zdc_nb.data.events import impact_point
from zdc_nb.data.simulation import aim, decay_length, model_of
from zdc_nb.data.symbols import symbol
from zdc_nb.data.validation import EventFileError
from zdc_nb.detector import ZN
from zdc_nb.params import ParameterError, Study, UserError, load_study
from zdc_nb.study import stages_of
from zdc_nb.study.artefacts import MissingArtefactError
from zdc_nb.study.dataset import kept_events
from zdc_nb.study.explorer.controls import (
    LevelControls,
    ResponseControls,
    has_frontend,
    show_levels,
)
from zdc_nb.study.explorer.explorer import Explorer, choose_study, fate, finished_studies
from zdc_nb.study.explorer.figures import Batch, ResponsesPicture
from zdc_nb.study.lab import advice, more_options
from zdc_nb.study.status import complete_mark

PNG = b"\x89PNG\r\n"


@pytest.fixture
def explorer(smoke: Study) -> Explorer:
    return Explorer(smoke)


def changed(study: Study, **values: object) -> Study:
    return study.model_copy(update=values)


# --- particles ---


SPECIES = model_of(ZN).primaries.species


@pytest.mark.parametrize("kind", SPECIES, ids=lambda kind: symbol(kind.pdg))
def test_a_particle_hits_where_it_is_aimed(kind: Any) -> None:
    for energy in (10.0, 900.0, 7000.0):
        for point in ((0.0, 0.0), (0.005, -0.01), (-0.035, 0.035)):
            particle = aim(kind.pdg, energy, point)
            assert impact_point(particle.features, ZN)[0] == pytest.approx(point, abs=2e-5)
            e, *_, px, py, pz, mass, charge = particle.features[0]
            assert e == energy
            assert px**2 + py**2 + pz**2 + (mass / 1e3) ** 2 == pytest.approx(energy**2, rel=1e-6)
            known = next(k for k in SPECIES if k.pdg == kind.pdg)
            assert particle.pdg.tolist() == [known.pdg]
            assert charge == round(charge)
    with pytest.raises(ValueError, match="expected an energy above"):
        aim(3334, 1.0, (0.0, 0.0))


def test_showers_stand_where_particles_are_aimed(explorer: Explorer) -> None:
    for x, y in ((0.0, 0.0), (12.0, -20.0), (-25.0, 8.0)):
        explorer.particle = explorer.aim("γ", 2000.0, x, y)  # noqa: RUF001
        view = explorer.view()
        expected = [21.5 - y / 1.6, 21.5 + x / 1.6]
        assert explorer.particle.aimed == pytest.approx(expected, abs=0.02)
        assert np.median(view.simulated.centre, axis=0) == pytest.approx(expected, abs=1.0)
        assert len(view.simulated.responses) == 64


def test_what_decays_and_what_is_charged_is_said(explorer: Explorer) -> None:
    lambdas = explorer.aim("lambda", 2500.0, 0.0, 0.0)
    # 7.89 cm of c tau, times 2500 GeV over 1.116 GeV
    assert decay_length(3122, 2500.0) == pytest.approx(0.0789 * 2500 / 1.1157, rel=0.01)
    assert (
        fate(lambdas) == "It decays after 176 m on average: 53% reach the face as they were aimed."
    )
    assert fate(explorer.aim("n", 2500.0, 0, 0)) == "It flies straight to the face."
    assert "the dipole (58 to 68 m) sweeps it away" in fate(explorer.aim("p", 2500.0, 0, 0))
    assert "the others decay before" in fate(explorer.aim("Σ⁺", 2500.0, 0, 0))
    assert explorer.aim("3222", 2500.0, 0, 0).pdg == 3222


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("pi", 100.0, 0, 0), "species: expected one of .*, got 'pi'"),
        (("n", 9.0, 0, 0), "energy: expected 10 to 7000 GeV, got 9"),
        (("n", float("nan"), 0, 0), "energy: expected 10 to 7000 GeV, got nan"),
        (("n", 100.0, 36.0, 0), "x: expected -35.2 to 35.2 mm, a point of the face, got 36"),
        (("n", 100.0, 0, -36.0), "y: expected -35.2 to 35.2 mm"),
    ],
)
def test_what_cannot_be_aimed_is_told(explorer: Explorer, values: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        explorer.aim(*values)
    with pytest.raises(ParameterError, match="row: expected 0 to 159, got 160"):
        explorer.row(160)
    with pytest.raises(ParameterError, match=r"model: 'sb' is not in study 'smoke'"):
        explorer.check_model("sb")


# --- what is shown ---


def test_the_same_seed_gives_the_same_picture(smoke: Study) -> None:
    one, two = Explorer(smoke), Explorer(smoke)
    # what was drawn before does not matter
    two.particle = two.aim("n", 5000.0, -20.0, 10.0)
    two.picture()
    for name in ("splitting", "teacher", "bs+ch, n"):
        pictures = []
        for each in (one, two):
            each.particle = each.aim("n", 1500.0, 5.0, 5.0)
            each.model = each.check_model(name)
            pictures.append(each.picture())
        assert pictures[0] == pictures[1]
        assert pictures[0].startswith(PNG)
        one.seed = 2
        assert one.picture() != pictures[0]
        one.seed = 1
        one.particle = one.aim("n", 1600.0, 5.0, 5.0)
        assert one.picture() != pictures[0]


def test_photon_sums_are_drawn_copied_or_set_by_hand(explorer: Explorer) -> None:
    view = explorer.view()
    assert explorer.sums == "drawn"
    assert len(np.unique(view.generated.photon_sum)) > 10
    explorer.sums = "simulated"
    view = explorer.view()
    assert view.generated.photon_sum.tolist() == view.simulated.photon_sum.tolist()
    explorer.sums, explorer.photons = "by hand", 777
    view = explorer.view()
    assert view.generated.photon_sum.tolist() == [777] * 64
    assert "set by hand: 777" in view.lines[2]
    explorer.photons = 0
    with pytest.raises(ParameterError, match="photons: expected 1 to 65535, got 0"):
        explorer.view()


def test_a_study_without_photon_sums_or_splitting_flow_shows_what_it_has(
    smoke: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    study = changed(smoke, photon_sum=None, signal=None, splitting=None)
    explorer = Explorer(study)
    assert "splitting, all species" not in explorer.models
    assert explorer.sums == "simulated"
    view = explorer.view()
    assert len(view.generated.responses) == explorer.responses
    assert "signal model" not in " ".join(view.lines)
    explorer.sums = "drawn"
    with pytest.raises(ParameterError, match="has no photon-sum model of 'all'"):
        explorer.view()
    with pytest.raises(UserError, match=r"has no splitting flow: .*make study STUDY="):
        explorer.split_response()
    # controls offer what there is, and say what there is not
    panel = ResponseControls(explorer := Explorer(study))
    assert [value for _, value in panel.sums.options] == ["simulated", "by hand"]
    levels = LevelControls(explorer)
    assert levels.png == b""
    assert "has no splitting flow" in levels.said.value
    # and so does a notebook that is run without them
    show_levels(explorer)
    assert "has no splitting flow" in capsys.readouterr().out


def test_a_model_is_not_asked_about_what_it_has_not_learned(explorer: Explorer) -> None:
    explorer.model = explorer.check_model("bs, n")
    explorer.particle = explorer.aim("Λ", 2500.0, 0.0, 0.0)
    view = explorer.view()
    assert view.refused == "It has not learned from Λ, so it is not asked."
    assert len(view.generated.responses) == 0
    assert len(view.simulated.responses) == explorer.responses
    assert explorer.draw(view).startswith(PNG)
    # a neutron, but of an energy below all that it has seen
    lowest = explorer.split("n").train.features[:, 0].min()
    explorer.particle = explorer.aim("n", max(10.0, 0.5 * lowest), 0.0, 0.0)
    assert "expected an energy from" in explorer.view().refused


def test_particles_that_seldom_send_light_are_given_up(explorer: Explorer) -> None:
    explorer.particle = explorer.aim("γ", 10.0, 35.0, 35.0)  # noqa: RUF001
    responses, tried = explorer.simulate(64)
    assert len(responses) < 64
    assert tried == 8 * 64
    assert (responses.sum(axis=(1, 2)) >= 10).all()
    explorer.particle = explorer.aim("n", 2500.0, 0.0, 0.0)
    responses, tried = explorer.simulate(64)
    assert len(responses) == 64
    assert 64 <= tried < 90


def test_a_test_response_gives_its_particle(explorer: Explorer) -> None:
    explorer.particle = explorer.row(7)
    assert explorer.particle.features.tolist() == explorer.rows.features[7].tolist()
    view = explorer.view()
    assert "(test response 7)" in view.lines[0]
    assert view.simulated.name == "simulated"
    label = explorer.rows.particle[7]
    recorded = explorer.recorded(64)
    assert len(recorded) == min(64, (explorer.rows.particle == label).sum())


def test_a_response_is_split_down_to_its_fibres(explorer: Explorer) -> None:
    response = explorer.split_response()
    assert (response == explorer.view().generated.responses[0]).all()
    pictures = [explorer.levels_picture(response, level) for level in range(13)]
    assert len({*pictures}) == 13
    with pytest.raises(UserError, match="level: expected 0 to 12, got 13"):
        explorer.levels_picture(response, 13)
    # seen beside another model, it is the flow's own
    explorer.model = explorer.check_model("teacher")
    assert (explorer.split_response(explorer.view()).shape) == ZN.shape
    assert explorer.model == "teacher, all species"


def test_scales_hold_what_is_bright_and_empty_batches_are_drawn() -> None:
    picture = ResponsesPicture(ZN, 10)
    dark = Batch.of("dark", np.empty((0, 44, 44), np.uint16), ZN)
    bright = Batch.of("bright", np.full((3, 44, 44), 33, np.uint16), ZN)
    aimed = np.array([21.5, 21.5])
    one = picture.draw((dark, bright), aimed, ["title"])
    two = picture.draw((bright, dark), aimed, ["title"])
    assert one != two
    assert picture.draw((dark, bright), aimed, ["title"]) == one


def test_pictures_follow_a_slider(explorer: Explorer) -> None:
    # processor time: other work on the machine does not count
    for name in ("splitting", "teacher", "bs"):
        explorer.model, seconds = explorer.check_model(name), []
        for energy in np.geomspace(1000.0, 2500.0, 8):
            explorer.particle = explorer.aim("n", float(energy), 5.0, 5.0)
            view = explorer.view()
            begun = time.process_time()
            explorer.generate(explorer.model, view.generated.photon_sum)
            explorer.draw(view)
            seconds.append(time.process_time() - begun)
        assert np.median(seconds) < 0.2, name


# --- controls ---


def test_controls_are_followed(explorer: Explorer) -> None:
    panel = ResponseControls(explorer)
    levels = LevelControls(explorer)
    assert not has_frontend()
    seen = {panel.png}
    deep = levels.png
    for control, value in (
        (panel.energy, 3000.0),
        (panel.x, -10.0),
        (panel.y, 12.0),
        (panel.species, "Λ"),
        (panel.sums, "by hand"),
        (panel.photons, 2000.0),
        (panel.model, "bs, all species"),
        (panel.seed, 5),
        (panel.source, "row"),
        (panel.row, 11),
    ):
        control.value = value
        assert panel.png not in seen
        seen.add(panel.png)
    assert explorer.particle.row == 11
    # the right end of a logarithmic slider, which is rounded
    panel.source.value = "aim"
    panel.energy.value = 10**panel.energy.max
    assert explorer.particle.energy == 7000.0
    assert "energy: expected" not in panel.said.value
    panel.source.value = "row"
    assert (explorer.photons, explorer.model, explorer.seed) == (2000, "bs, all species", 5)
    # the levels are of the particle that was chosen last
    assert levels.png != deep
    before = levels.png
    levels.level.value = 9
    assert levels.png != before
    assert all(png.startswith(PNG) for png in (*seen, deep, before))


# --- which study ---


def test_the_best_finished_study_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(new_project(tmp_path))
    assert finished_studies() == []
    write_study(tmp_path, "mine", {})
    for name in ("smoke", "mine", "small"):
        study = load_study(f"params/{name}.yaml")
        pages = study.reports / "html"
        pages.mkdir(parents=True)
        for stage in stages_of(study):
            (pages / f"{stage.name}.html").touch()
        complete_mark(study).write_text(study.model_dump_json(), "utf-8")
    assert [study.name for study in finished_studies()] == ["small", "mine", "smoke"]
    assert choose_study(None).name == "small"
    assert "params/mine.yaml, params/smoke.yaml" in capsys.readouterr().out
    assert choose_study("params/smoke.yaml").name == "smoke"
    # of other parameters than now, it is not finished
    write_study(tmp_path, "mine", {"seed": 1})
    assert [study.name for study in finished_studies()] == ["small", "smoke"]
    with pytest.raises(MissingArtefactError) as error:
        Explorer(choose_study(None))
    assert "study 'small' has no trained model yet" in str(error.value)
    assert "run `make study STUDY=params/small.yaml`" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_data_of_a_study_are_not_made_by_who_looks(own_copy: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(own_copy)
    study = load_study("params/smoke.yaml")
    other = changed(study, data=study.data.model_copy(update={"responses": 2999}))
    with pytest.raises(EventFileError, match="made with other parameters"):
        kept_events(other)
    data = study.artifacts / "data.root"
    data.unlink()
    with pytest.raises(EventFileError, match=r"missing: run `make study STUDY=params/smoke\.yaml`"):
        kept_events(study)
    assert not data.exists()


def test_models_that_are_missing_are_named_and_the_others_shown(
    own_copy: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(own_copy)
    study = load_study("params/smoke.yaml")
    (study.artifacts / "models" / "all" / "splitting.safetensors").unlink()
    explorer = Explorer(study)
    assert next(iter(explorer.models)) == "teacher, all species"
    assert len(explorer.left_out) == 1
    assert "splitting.safetensors is missing" in explorer.left_out[0]
    # the flow of another data set splits, where it has learned from the particle
    assert explorer.splitting == "splitting, n"
    assert explorer.split_response().shape == ZN.shape


# --- the notebook ---


def fingerprints(folder: Path) -> dict[str, tuple[int, str]]:
    """Time and checksum of every file."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for name in ("artifacts", "reports", "params", "notebooks")
        for path in (folder / name).rglob("*")
        if path.is_file()
    }


def outputs_of(path: Path) -> list[Any]:
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells for output in cell.get("outputs", [])]


def test_the_notebook_shows_pictures_and_changes_nothing(finished: Path, tmp_path: Path) -> None:
    before = fingerprints(finished)
    out = tmp_path / "out.ipynb"
    command = ("papermill", "notebooks/00_explorer.ipynb", str(out))
    particle = ("-p", "species", "Λ", "-p", "energy", "1800", "-p", "x", "-4", "-p", "model", "bs")
    done = run(finished, *command, *particle)
    assert done.returncode == 0, done.stdout + done.stderr
    assert fingerprints(finished) == before
    outputs = outputs_of(out)
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 2
    assert all(base64.b64decode(png).startswith(PNG) for png in pictures)
    printed = "".join(o.text for o in outputs if o.output_type == "stream")
    assert "Study smoke: 12 trained models, 160 test responses" in printed
    assert "These numbers mean nothing. Too few test responses" in printed
    # no widget in the place of a picture
    told = [o.metadata["image/png"]["alt"] for o in outputs if "image/png" in o.get("data", {})]
    assert "Λ of 1800 GeV, aimed at x = -4.0 mm, y = 5.0 mm" in told[0]
    assert "Generated by bs, trained on all species." in told[0]
    text = out.read_text("utf-8")
    assert "jupyter.widget" not in text
    assert "children=" not in text
    table = next(o.data["text/html"] for o in outputs if "text/html" in o.get("data", {}))
    for name in (
        "splitting, all species",
        "teacher, all species",
        "bs, all species",
        "draw",
        "total",
    ):
        assert name in table
    page = tmp_path / "out.html"
    done = run(tmp_path, "nbconvert", "--to", "html", str(out), "--output", str(page))
    assert done.returncode == 0, done.stderr
    assert page.read_text("utf-8").count("<img ") == 2


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (("stduy", "params/smoke.yaml"), "ParameterError: stduy: .* did you mean 'study'"),
        (("study", "params/none.yaml"), "ParameterError: params/none.yaml: no such study file"),
        (("study", "params/small.yaml"), "MissingArtefactError: study 'small' has no trained"),
        (("energy", "1"), "ParameterError: energy: expected 10 to 7000 GeV, got 1"),
    ],
)
def test_errors_of_the_notebook_are_one_line(
    finished: Path, tmp_path: Path, parameters: tuple[str, str], message: str
) -> None:
    out = tmp_path / "out.ipynb"
    done = run(finished, "papermill", "notebooks/00_explorer.ipynb", str(out), "-p", *parameters)
    assert done.returncode != 0
    (error,) = [output for output in outputs_of(out) if output.output_type == "error"]
    assert len(error.traceback) == 1
    assert re.match(message, error.traceback[0])
    assert not (finished / "artifacts" / "small").exists()


@pytest.mark.slow
def test_without_a_study_smoke_is_run_first(tmp_path: Path) -> None:
    project = new_project(tmp_path / "project")
    tiny = {
        "subsets": ["all"],
        "setups": ["bs"],
        "data": {"responses": 1500, "max_responses": {"all": 200}},
        "flow": {"hidden": 16, "context_hidden": [16]},
        "teacher": {"epochs": 1},
        "student": {"epochs": 1},
        "evaluation": {"runs": 2, "figure_particles": 1},
        "speed": {"subset": "all", "setup": "bs", "batches": [1, 4], "runs": 1},
    }
    write_study(project, "smoke", tiny)
    done = papermill(project, "00_explorer", "smoke")
    assert "has no trained model yet" in done.stderr
    command = ("papermill", "notebooks/00_explorer.ipynb", "out.ipynb")
    done = run(project, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = "".join(
        output.text for output in outputs_of(project / "out.ipynb") if "text" in output
    )
    assert "No study is finished yet: running params/smoke.yaml" in printed
    assert "(100%) done" in printed
    assert "Study smoke: 3 trained models" in printed


# --- make lab ---


def test_who_cannot_see_the_window_is_told_what_to_type() -> None:
    screen, ssh = {"DISPLAY": ":0"}, {"DISPLAY": ":0", "SSH_CONNECTION": "a 1 b 22"}
    assert advice([], screen, "linux", False, "box") == []
    assert more_options([], screen, "linux") == []
    assert more_options([], {}, "linux") == ["--no-browser"]
    assert more_options([], {}, "darwin") == []
    assert more_options(["--no-browser"], {}, "linux") == []
    root = advice([], screen, "linux", True, "box")
    assert root[-1] == '  make lab LAB="--allow-root --no-browser --port 8888"'
    assert advice(["--allow-root"], screen, "linux", True, "box") == []
    assert advice(["--ServerApp.allow_root=True"], screen, "linux", True, "box") == []
    for options in (["--port", "9000"], ["--port=9000"], ["--ServerApp.port=9000"]):
        for environment in (ssh, {}):
            lines = advice(options, environment, "linux", False, "box")
            assert "  ssh -L 9000:localhost:9000 box" in lines


def make_lab(project: Path, lab: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``make lab`` with a ``jupyter`` that only tells its words, a line each."""
    tools = project.parent / "tools"
    tools.mkdir(exist_ok=True)
    words = '#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done\n'
    python = f'#!/bin/sh\ncase "$2" in ipykernel) ;; *) exec "{sys.executable}" "$@";; esac\n'
    for name, content in (("jupyter", words), ("python", python)):
        (tools / name).write_text(content, "utf-8")
        (tools / name).chmod(0o755)
    # of a make that runs these tests nothing
    outside = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    command = ["make", f"--file={ROOT / 'Makefile'}", "--old-file=.venv/.installed", "lab"]
    return subprocess.run(
        [*command, f"BIN={tools}", f"LAB={lab}"],
        cwd=project,
        env=outside | {"DISPLAY": ":0", "SSH_CONNECTION": ""} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_lab_hands_on_its_options_as_words(tmp_path: Path) -> None:
    project = new_project(tmp_path / "a project")
    (project / ".venv").mkdir()
    done = make_lab(project, "--allow-root --port 8888 *.y $(touch run) `touch run` ; touch run")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert f"<--ServerApp.root_dir={project}>" in words
    assert "<--LabApp.default_url=/lab/tree/notebooks/00_explorer.ipynb>" in words
    start = words.index("<--allow-root>")
    asked = "--allow-root --port 8888 *.y $(touch run) `touch run` ; touch run"
    assert words[start:] == [f"<{word}>" for word in asked.split()]
    assert not list(project.rglob("run"))
    done = make_lab(project, "$(shell touch run)--allow-root")
    assert "<$(shell>" in done.stdout
    assert not list(project.rglob("run"))
    if os.geteuid() == 0:
        done = make_lab(project, "")
        assert done.returncode != 0
        assert 'make lab LAB="--allow-root --no-browser --port 8888"' in done.stderr
        assert "<lab>" not in done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def jupyter_lab(project: Path, own: Path) -> Iterator[str]:
    """JupyterLab in a project, without any settings of this user; the address of the explorer."""
    port, token = free_port(), "of-this-test"
    own.mkdir()
    folders = ["JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"]
    folders += ["JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR"]
    environment = os.environ | THREADS | {name: str(own / name) for name in folders}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    command += [f"--ServerApp.root_dir={project}", "--LabApp.news_url=None"]
    log = own / "log"
    with (
        log.open("w", encoding="utf-8") as printed,
        subprocess.Popen(
            command, cwd=project, env=environment, stdout=printed, stderr=subprocess.STDOUT
        ) as server,
    ):
        try:
            deadline = time.monotonic() + 90
            while True:
                assert server.poll() is None, log.read_text("utf-8")
                assert time.monotonic() < deadline, log.read_text("utf-8")
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.2)
            page = "lab/tree/notebooks/00_explorer.ipynb"
            yield f"http://localhost:{port}/{page}?token={token}"
        finally:
            server.terminate()
            server.wait(timeout=30)


def wait_for(driver: Chrome, css: str, seconds: float = 120) -> WebElement:
    """The first element that a CSS selector finds, as soon as there is one."""
    return WebDriverWait(driver, seconds).until(lambda d: d.find_element(By.CSS_SELECTOR, css))


@pytest.mark.skipif(find_browser() is None, reason=NO_BROWSER)
def test_in_jupyterlab_the_picture_follows_the_energy(own_copy: Path, tmp_path: Path) -> None:
    before = fingerprints(own_copy)
    # tall, since JupyterLab leaves out cells that are not in sight
    with (
        jupyter_lab(own_copy, tmp_path / "own") as address,
        open_browser(width=1400, height=3200) as driver,
    ):
        driver.get(address)
        wait_for(driver, ".jp-Notebook .jp-CodeCell")
        # what runs before the kernel is connected is lost; the status line tells
        WebDriverWait(driver, 120).until(
            lambda d: "| Idle" in d.find_element(By.ID, "jp-bottom-panel").text
        )
        driver.find_element(By.XPATH, "//div[text()='Run']").click()
        wait_for(driver, "li[data-command='runmenu:run-all']").click()
        # the last cell's table
        wait_for(driver, ".jp-RenderedHTMLCommon table", 300)
        images = driver.find_elements(By.CSS_SELECTOR, "img.widget-image")
        assert len(images) == 2
        sources = [image.get_attribute("src") for image in images]
        assert all(image.size["width"] > 700 for image in images)
        handles = driver.find_elements(By.CSS_SELECTOR, ".widget-slider .noUi-handle")
        handle = next(handle for handle in handles if handle.is_displayed())
        handle.send_keys(Keys.ARROW_RIGHT)
        # the picture, and the levels of the same particle
        WebDriverWait(driver, 60).until(
            lambda d: all(
                image.get_attribute("src") != source
                for image, source in zip(
                    d.find_elements(By.CSS_SELECTOR, "img.widget-image"), sources, strict=True
                )
            )
        )
        driver.save_screenshot(str(tmp_path / "lab.png"))
        wrong = driver.find_elements(
            By.CSS_SELECTOR, "[data-mime-type*='error'], .jp-RenderedText pre.error"
        )
        assert wrong == []
    after = fingerprints(own_copy)
    inside = {name for name in before if not name.startswith("notebooks/")}
    assert {name: after.get(name) for name in inside} == {name: before[name] for name in inside}
    assert {name for name in after if not name.startswith("notebooks/")} == inside
