"""The files of detectors/: read, refused, and what follows of them, against loops and formulas."""

import ast
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from bs4 import BeautifulSoup
from numpy.typing import NDArray
from scipy import stats

from tests.projects import ROOT
from zdc_nb.data.calibration import calibration_table, has_published
from zdc_nb.data.events import FEATURES, Events, impact_point
from zdc_nb.data.figures import light_figure, panels_of, species_table
from zdc_nb.data.o2_text import HEADER
from zdc_nb.data.readers import read_events
from zdc_nb.data.root import write_root
from zdc_nb.data.simulation import aim, draw_particles, respond, simulate
from zdc_nb.data.validation import EventFileError
from zdc_nb.detector import ZN, Detector, load_detector, shower_centre
from zdc_nb.flows.particle_nets import PhotonSumNetwork, SignalNetwork
from zdc_nb.flows.splitting import SplittingFlow
from zdc_nb.generator.encoding import ConditionScaler, edge_reaches, particle_conditions
from zdc_nb.generator.generator import Domain, Generator, ParticleError
from zdc_nb.generator.onnx_export import ExportError, export_onnx, why_not
from zdc_nb.generator.particle_models import PhotonSumModel, SignalModel
from zdc_nb.generator.surrogate import Surrogate
from zdc_nb.params import (
    PDG,
    ParameterError,
    PreprocessingParams,
    SplittingFlowParams,
    Study,
    load_study,
)
from zdc_nb.params.study import PathParams
from zdc_nb.study.dataset import data_identity
from zdc_nb.study.described import channels_in_words, described, in_words, nothing_published
from zdc_nb.study.report import build_index
from zdc_nb.study.stages import find_stage

FILES = sorted((ROOT / "detectors").glob("*.yaml"))
ZP, FOCAL = load_detector("zp"), load_detector("focal_h")
PAPER = PreprocessingParams(
    coordinates="splits",
    noise=None,
    alpha=None,
    conditions="paper",
    impact_grid=4,
    denoise=None,
)


def content_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "detectors" / f"{name}.yaml").read_text("utf-8"))
    return found


def written(content: dict[str, Any], folder: Path) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return str(path)


def features_of(rows: list[dict[str, float]]) -> NDArray[np.float64]:
    return np.array([[row.get(name, 0.0) for name in FEATURES] for row in rows])


# --- Files --------------------------------------------------------------------------------------


def test_the_files_are_there() -> None:
    assert {"zn", "zp", "focal_h"} <= {path.stem for path in FILES}


def in_channel(pattern: dict[str, Any], row: int, column: int, shape: tuple[int, int]) -> bool:
    """Whether a channel reads a fibre, said of one fibre at a time."""
    rows, columns = shape
    if (
        pattern.get("checkerboard")
        and ["even", "odd"][(row + column) % 2] != pattern["checkerboard"]
    ):
        return False
    if quadrant := pattern.get("quadrant"):
        here = (
            "top" if row < rows // 2 else "bottom",
            "left" if column < columns // 2 else "right",
        )
        if " ".join(here) != quadrant:
            return False
    if strip := pattern.get("strip"):
        number, count = strip
        # strips end where the number of columns that they share is used up
        if not (number - 1) / count <= column / columns < number / count:
            return False
    return True


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_a_file_loads_and_its_masks_are_those_of_a_loop(path: Path) -> None:
    content, detector = content_of(path.stem), load_detector(path.stem)
    rows, columns = content["shape"]
    assert detector.shape == (rows, columns)
    assert detector == load_detector(str(path))
    assert (detector.name, detector.title) == (content["label"], content["title"])
    assert detector.channels == tuple(content["channels"])
    for mask, pattern in zip(detector.masks, content["channels"].values(), strict=True):
        expected = [
            [in_channel(pattern, row, column, (rows, columns)) for column in range(columns)]
            for row in range(rows)
        ]
        np.testing.assert_array_equal(mask, expected)
    # what is read out twice, or not at all, would be a mistake in these
    assert (detector.masks.sum(axis=0) == 1).all()
    assert detector.codes == {name: PDG[name] for name in content["species"]}
    assert detector.conditions == tuple(content["conditions"].items())


def test_strips_of_a_face_that_they_do_not_divide(tmp_path: Path) -> None:
    content = content_of("zp") | {"shape": [3, 10]}
    content["channels"] = {str(k): {"strip": [k, 4]} for k in range(1, 5)}
    masks = load_detector(written(content, tmp_path)).masks
    assert (masks.sum(axis=0) == 1).all()
    for k in range(4):
        columns = [column for column in range(10) if k / 4 <= column / 10 < (k + 1) / 4]
        np.testing.assert_array_equal(masks[k, 0].nonzero()[0], columns)


def changed(content: dict[str, Any], keys: tuple[str, ...], value: object) -> None:
    *path, last = keys
    for key in path:
        content = content[key]
    content[last] = value


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("species",), ["p", "gluon"], r"species: 'gluon' is none; expected one of gamma, n, p"),
        (("species",), ["p", "p"], "species: expected each name once"),
        (("channels", "strip 1", "strip"), [5, 4], r"strip: expected \[k, n\] with 1 <= k <= n, got \[5, 4\]"),
        (("channels", "strip 1", "strip"), [0, 4], r"strip: expected \[k, n\] with 1 <= k <= n"),
        (("channels", "strip 1"), {"quadrant": "top lfet"}, r"channels\.strip 1\.quadrant: expected one of top left, .*, got 'top lfet'"),
        (("channels", "strip 1"), {"strips": [1, 4]}, r"channels\.strip 1\.strips: no such key; did you mean strip\?"),
        (("simulation", "hadronic", "depth"), 0.0, r"simulation\.hadronic\.depth: expected a number above 0, got 0.0"),
        (("simulation", "primaries", "species"), [{"pdg": 1, "abundance": -1.0, "energy": [1.0, 2.0], "slope": 1.0}], r"simulation\.primaries\.species\.0\.abundance: expected a number above 0, got -1.0"),
        (("simulation", "dipole"), None, "simulation.dipole: expected its extent, charged particles are bent"),
        (("simulation", "primaries", "eta"), [3.0, 5.0], "eta: expected either eta or largest_angle, and null"),
        (("simulation", "primaries", "largest_angle"), None, "eta: expected either eta or largest_angle"),
        (("conditions", "energy"), "cubic", r"conditions: expected for each of energy, .* one of standard, log, robust, got .*cubic"),
        (("conditions", "speed"), "log", "conditions: expected for each of energy, vx, .*, phi, cos_phi, sin_phi one of standard"),
        (("pitch",), -1.0, "pitch: expected a number above 0, got -1.0"),
        (("shape",), [0, 4], "shape: expected a list of 2, each a whole number above 0"),
        (("shape",), [300, 300], r"shape: expected at most 65536 fibres, got \[300, 300\]"),
        (("channels", "strip_1"), {"checkerboard": "odd"}, "channels: expected names that differ"),
        (("channels", "strip 1", "strip"), [4, 400], "channels.strip 1.strip: expected at most 56 strips"),
        (("conditions", "px"), "log", "conditions.px: expected standard or robust, it can be negative"),
        (("simulation", "dipole"), [68.0, 58.0], r"simulation.dipole: expected \[start, end\] with 0 <= start"),
        (("simulation", "dipole"), [158.0, 168.0], r"simulation.dipole: expected \[start, end\] with 0 <= start"),
        (("simulation", "hadronic", "core"), [-0.1, 0.2], "simulation.hadronic.core: expected a list of 2, each a number above 0"),
        (("simulation", "primaries", "vertex_spread"), [float("nan")] * 3, "simulation.primaries.vertex_spread: expected"),
        (("simulation", "primaries", "least_energy"), 8000.0, "least_energy: expected less than beam_energy"),
        (("simulation", "primaries", "species"), [{"pdg": 99999, "abundance": 1.0, "energy": [1.0, 2.0], "slope": 1.0}], "species: expected PDG codes of known particles, got 99999"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_the_key_and_what_was_expected(
    keys: tuple[str, ...], value: object, said: str, tmp_path: Path
) -> None:
    content = content_of("zp")
    changed(content, keys, value)
    with pytest.raises(ParameterError, match=said) as caught:
        load_detector(written(content, tmp_path))
    assert "mine.yaml" in str(caught.value)


def test_a_key_too_few_and_a_file_that_is_none(tmp_path: Path) -> None:
    content = content_of("zp")
    del content["deflection"]
    with pytest.raises(ParameterError, match="deflection"):
        load_detector(written(content, tmp_path))
    with pytest.raises(ParameterError, match=r"'zx' is none; expected one of .*zn.*zp"):
        load_detector("zx")


def test_the_zn_is_what_it_was() -> None:
    assert (ZN.shape, ZN.pitch, ZN.distance, ZN.offset) == ((44, 44), 0.0016, 112.5, (0.0, 0.011))
    assert ZN.deflection is None
    assert ZN.conditions == tuple((name, "standard") for name in FEATURES)
    assert ZN.codes == {"n": 2112, "lambda": 3122, "k0s": 310, "sigma+": 3222}
    assert ZN.channels == ("common", "top left", "top right", "bottom left", "bottom right")
    # what networks that were trained before are told, to the last bit
    assert edge_reaches(ZN) == (0.002, 0.01)


# --- Where particles arrive -----------------------------------------------------------------------


def test_impact_point_of_what_is_bent_is_that_of_the_formula() -> None:
    """x = vx + L px / |pz| + d q / |pz| - x0, y likewise without d."""
    particles = [
        {"vx": 1e-4, "vy": -2e-4, "px": 0.3, "py": -0.2, "pz": 2500.0, "charge": 1.0},
        {"vx": 0.0, "vy": 1e-4, "px": -0.5, "py": 0.1, "pz": -1800.0, "charge": -1.0},
        {"px": 0.4, "py": 0.7, "pz": 3000.0, "charge": 0.0},
    ]
    expected = [
        [1e-4 + 112.5 * 0.3 / 2500 + 609 / 2500 - 0.22, -2e-4 - 112.5 * 0.2 / 2500],
        [-112.5 * 0.5 / 1800 - 609 / 1800 - 0.22, 1e-4 + 112.5 * 0.1 / 1800],
        [112.5 * 0.4 / 3000 - 0.22, 112.5 * 0.7 / 3000],
    ]
    np.testing.assert_allclose(impact_point(features_of(particles), ZP), expected)
    # where they are swept away, or fly straight, charge changes nothing
    for detector in (ZN, FOCAL):
        neutral = features_of([particle | {"charge": 0.0} for particle in particles])
        points = impact_point(features_of(particles), detector)
        np.testing.assert_array_equal(points, impact_point(neutral, detector))


@pytest.mark.parametrize("momentum", [2300.0, 2600.0, 3000.0])
def test_simulated_protons_are_where_the_formula_says(momentum: float) -> None:
    x = 609 / momentum - 0.22
    proton = aim(2212, np.hypot(momentum, 0.938272), (x, 0.0), ZP)
    # that place asks for no transverse momentum
    assert abs(proton.features[0, FEATURES.index("px")]) < 1e-3
    responses = respond(np.random.default_rng(1), proton, 300, ZP)
    bright = responses[responses.sum(axis=(1, 2)) > 300]
    row, column = np.median(shower_centre(bright, ZP), axis=0)
    # the face ends, and with it a shower's tail: a fibre and a half of some fifty
    assert abs((column - 27.5) * ZP.pitch - x) < 1.5 * ZP.pitch
    assert abs(row - 14.5) < 1.0


# --- What flows are told --------------------------------------------------------------------------


def some_particles(count: int, detector: Detector) -> Events:
    rng = np.random.default_rng(4)
    momentum = rng.normal(0, 0.6, (count, 3))
    momentum[:, 2] = rng.choice([-1.0, 1.0], count) * rng.uniform(20, 400, count)
    energy = np.sqrt((momentum**2).sum(1) + 0.938272**2)
    features = np.column_stack(
        [energy, rng.normal(0, 1e-3, (count, 3)), momentum, np.full(count, 938.272), np.ones(count)]
    )
    responses = np.zeros((count, *detector.shape), np.uint16)
    responses[:, 10, 20] = rng.integers(10, 500, count)
    return Events.from_arrays(
        np.full(count, 2212, np.int32), features, responses, detector=detector
    )


def test_conditions_are_those_of_the_formulas() -> None:
    events = some_particles(500, FOCAL)
    energy, vz, px, py, pz, mass, charge = (
        events.features[:, FEATURES.index(name)]
        for name in ("energy", "vz", "px", "py", "pz", "mass", "charge")
    )
    theta = np.arccos(pz / np.sqrt(px**2 + py**2 + pz**2))
    expected = {
        "energy": np.log(1 + energy),
        "eta": -np.log(np.tan(theta / 2)),
        "cos_phi": px / np.sqrt(px**2 + py**2),
        "sin_phi": py / np.sqrt(px**2 + py**2),
        "pt": np.sqrt(px**2 + py**2),
        "vz": vz,
        "mass": mass,
        "charge": charge,
    }
    assert [name for name, _ in FOCAL.conditions] == [*expected]
    found = particle_conditions(events.features, FOCAL)
    np.testing.assert_allclose(found, np.column_stack([*expected.values()]), rtol=1e-8)
    angle = replace(FOCAL, conditions=(("phi", "standard"),))
    expected_angle = np.angle(px + 1j * py)[:, None]
    np.testing.assert_allclose(
        particle_conditions(events.features, angle), expected_angle, rtol=1e-8
    )


def test_conditions_are_scaled_as_the_file_says() -> None:
    events = some_particles(501, FOCAL)
    scaler = ConditionScaler.fit(events, PAPER)
    context = ConditionScaler.fit_context(events)
    raw = particle_conditions(events.features, FOCAL)
    for column, (name, scale) in enumerate(FOCAL.conditions):
        values = raw[:, column]
        if np.ptp(values) == 0:
            middle, width = values[0], 1.0
        elif scale == "robust":
            low, middle, high = (stats.scoreatpercentile(values, p) for p in (16, 50, 84))
            width = (high - low) / 2
        else:
            middle, width = np.mean(values), np.sqrt(np.mean((values - values.mean()) ** 2))
        for found in (scaler, context):
            assert found.mean[column] == pytest.approx(middle), name
            assert found.std[column] == pytest.approx(width), name
    told = scaler(events, PAPER).numpy()
    np.testing.assert_allclose(told[:, 0], stats.zscore(np.log1p(events.features[:, 0])), atol=1e-5)


def test_the_edge_is_seen_in_pitches() -> None:
    assert edge_reaches(ZP) == pytest.approx((0.005, 0.025))
    assert edge_reaches(FOCAL) == pytest.approx((0.03125, 0.15625))


# --- A generator ----------------------------------------------------------------------------------


def make_generator(detector: Detector) -> Generator:
    """Networks with random weights, of a detector."""
    events = some_particles(300, detector)
    context = ConditionScaler.fit_context(events)
    # each its own: a file shares nothing
    particle, other = (ConditionScaler.fit_particle(events.features, detector) for _ in range(2))
    params = SplittingFlowParams(
        window=3,
        bins=4,
        bound=8.0,
        hidden=8,
        hidden_layers=1,
        context_hidden=[8],
        coarse_nodes=15,
    )
    torch.manual_seed(2)
    flow = SplittingFlow(detector.shape, len(context.mean) + 1, params)
    sums = PhotonSumNetwork(len(particle.mean), [8], 2, least=10)
    sums.start_from(torch.from_numpy(events.photon_sum.astype(np.float32)))
    signal = SignalNetwork(len(particle.mean), [8])
    for network in (flow, sums, signal):
        network.eval().requires_grad_(False)
    return Generator(
        Surrogate(flow, params, context, None),
        PhotonSumModel(sums, [8], particle),
        SignalModel(signal, [8], other),
        Domain.of(events.features, context.mean[1:4], detector),
        detector,
    )


@pytest.mark.parametrize("detector", [ZP, replace(ZP, offset=(0.3, 0.02), pitch=0.003)])
def test_a_generator_of_it_is_saved_and_loaded(detector: Detector, tmp_path: Path) -> None:
    generator = make_generator(detector)
    generator.save(tmp_path / "generator.safetensors")
    loaded = Generator.load(tmp_path / "generator.safetensors")
    assert loaded.detector == detector
    assert (loaded.detector.title, loaded.detector.codes) == (detector.title, detector.codes)
    events = some_particles(300, detector)[:40]
    drawn = loaded.sample(events, seed=3)
    assert drawn.shape == (40, *detector.shape)
    assert drawn.any()
    np.testing.assert_array_equal(drawn, generator.sample(events, seed=3))


def test_o2_gets_the_zn_alone(tmp_path: Path) -> None:
    assert why_not(ZN) is None
    with pytest.raises(ExportError, match=r"got the ZP, which has 30 x 56 fibres, .* are bent$"):
        export_onnx(make_generator(ZP), tmp_path)
    assert not list(tmp_path.iterdir())
    cases = {
        "charged particles that are bent": {"deflection": 600.0},
        "a face that stands aside": {"offset": (0.1, 0.011)},
        "other channels": {"masks": ZN.masks[:, ::-1]},
        "other conditions": {"conditions": (("energy", "log"), *ZN.conditions[1:])},
    }
    for said, change in cases.items():
        assert f"which has {said}" in str(why_not(replace(ZN, **change)))  # type: ignore[arg-type]
    # a straight flight is one whether charged particles are swept away or not
    assert why_not(replace(ZN, deflection=0.0)) is None


def test_o2_writes_no_texts_of_others(tmp_path: Path) -> None:
    (tmp_path / "non_zero_examples.txt").write_text(f"{HEADER}\n", encoding="ascii")
    (tmp_path / "neutron_image.txt").write_text("0 " * 36, encoding="ascii")
    files = [tmp_path / name for name in ("non_zero_examples.txt", "neutron_image.txt")]
    with pytest.raises(EventFileError, match=r"of the ZN and the ZP, .* for the FoCal-H"):
        read_events(files, detector=FOCAL)


# --- What is said -----------------------------------------------------------------------------------


def of_detector(name: str) -> Study:
    study = load_study(ROOT / "params" / "smoke.yaml")
    return study.model_copy(update={"detector": name})


def test_a_detector_is_described_by_its_file() -> None:
    text = described(of_detector("zp"))
    assert "proton Zero Degree Calorimeter (ZP) of ALICE" in text
    for fact in (
        "30 x 56 fibres",
        "4 mm apart",
        "112.5 m",
        "1680 numbers",
        "609 q / p m",
        "5 channels",
    ):
        assert fact in text
    assert "not GEANT4" in text
    text = in_words(FOCAL)
    for fact in ("36 x 36 fibres", "25 mm", "7 m", "as straight as neutral", "4 channels", "K⁰ₛ"):
        assert fact in text
    assert "swept away" in in_words(ZN)
    assert "GEANT4" not in text


def test_channels_in_words() -> None:
    assert channels_in_words(ZN)["common"] == "every second fibre, as on a chess board"
    assert channels_in_words(ZN)["bottom left"] == "every second fibre of the bottom left quarter"
    assert channels_in_words(ZP)["strip 2"] == "every second fibre of columns 14 to 27"
    assert channels_in_words(FOCAL)["top right"] == "every fibre of the top right quarter"
    odd = np.zeros((3, *ZN.shape), np.bool_)
    odd[0] = True
    odd[1, 2:5, 7:9] = True
    odd[2, [1, 2, 7], [3, 3, 9]] = True
    words = channels_in_words(replace(ZN, channels=("all", "block", "some"), masks=odd))
    assert [*words.values()] == [
        "every fibre",
        "every fibre of rows 2 to 4 and columns 7 to 8",
        "3 fibres",
    ]


def test_published_numbers_are_those_of_the_zn() -> None:
    assert [has_published(detector) for detector in (ZN, ZP, FOCAL)] == [True, False, False]
    assert nothing_published(of_detector("zn")) == ""
    assert "`detectors/zp.yaml`" in nothing_published(of_detector("zp"))
    by_path = of_detector(str(ROOT / "detectors" / "zp.yaml"))
    assert nothing_published(by_path) == nothing_published(of_detector("zp"))
    assert "simulation" in nothing_published(by_path)
    files = by_path.data.model_copy(update={"file": "own.csv"})
    assert "simulation" not in nothing_published(by_path.model_copy(update={"data": files}))
    tables = {
        name: {path.name for path in find_stage(of_detector(name), "01_data_exploration").tables}
        for name in ("zn", "zp")
    }
    assert tables["zn"] - tables["zp"] == {"calibration.csv"}
    assert tables["zp"] == {"species.csv", "datasets.csv"}
    events = simulate(40, 4, 10, seed=2, detector=ZP)
    assert "published" not in species_table(events)
    with pytest.raises(ValueError, match="nothing is published about the ZP"):
        calibration_table(events)
    (axis,) = light_figure(events, 10).axes
    assert "published" not in axis.get_title() + " ".join(axis.get_legend_handles_labels()[1])


def test_the_index_page_is_about_the_detector(tmp_path: Path) -> None:
    pages = {}
    for name in ("zn", "focal_h"):
        paths = {"reports": str(tmp_path / name / "r"), "artifacts": str(tmp_path / name / "a")}
        study = of_detector(name).model_copy(update={"paths": PathParams(**paths)})
        page = BeautifulSoup(
            build_index(study, "params/smoke.yaml").read_text("utf-8"), "html.parser"
        )
        pages[name] = " ".join(page.get_text(" ").split())
    assert "Normalizing flows for the FoCal-H-like hadronic calorimeter" in pages["focal_h"]
    assert "36 x 36 fibres" in pages["focal_h"]
    assert "`detectors/focal_h.yaml`" in nothing_published(of_detector("focal_h"))
    assert pages["focal_h"].count("No results of generators are published for this detector") == 2
    assert "(energy, eta, cos_phi, sin_phi, pt, vz, mass, charge)" in pages["focal_h"]
    assert "(energy, vx, vy, vz, px, py, pz, mass, charge)" in pages["zn"]
    assert "read out in 4 channels" in pages["focal_h"]
    for words in ("neutron", "306 780", "160 ms", "44 x 44"):
        assert words in pages["zn"], words
        assert words not in pages["focal_h"], words


def test_panels_have_the_shape_of_the_face() -> None:
    assert panels_of((44, 44), 2, 4, 2.9, 3.1) == (2.9 * 4, 3.1 * 2)
    wide, high = panels_of((30, 56), 1, 1, 2.9, 3.1)
    assert (wide, high) == pytest.approx((2.9, 3.1 - 2.9 * (1 - 30 / 56)))
    assert panels_of((56, 30), 1, 1, 2.9, 3.1) == pytest.approx((2.9 * 30 / 56, 3.1))
    # labels need room
    assert panels_of((2, 100), 1, 1, 2.9, 3.1) == (2.9, 1.5)


def without_examples(source: str) -> str:
    """Lines but for doctests: prompts, continuations and what follows them."""
    kept, in_example = [], False
    for line in source.splitlines():
        text = line.strip()
        in_example = text.startswith((">>>", "...")) or (
            in_example and text != "" and '"""' not in text
        )
        if not in_example:
            kept.append(line)
    return "\n".join(kept)


def test_the_package_knows_no_size_of_a_face() -> None:
    package = ROOT / "zdc_nb"
    files = [path for path in package.rglob("*") if path.suffix in {".py", ".j2", ".js", ".css"}]
    assert len(files) > 100
    found = []
    for path in files:
        text = path.read_text("utf-8")
        if "five channel" in text.lower():
            found.append(f"{path.name}: five channels")
        if path.suffix != ".py" or "bench" in path.parts:
            continue
        # numbers of the code, and words of its texts
        numbers = {n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant)}
        found += [f"{path.name}: {n}" for n in (44, 1936) if any(n == v for v in numbers)]
        if words := re.findall(r"(?<![\d.,#\w])(?:44|1936)(?![\d.,\w])", without_examples(text)):
            found.append(f"{path.name}: {words}")
    pages = [path for path in files if path.suffix == ".j2"]
    found += [
        path.name for path in pages if re.search(r"\b(44|1936)\b|neutron", path.read_text("utf-8"))
    ]
    assert found == []


def test_notebooks_of_any_study_say_nothing_that_is_true_of_the_zn_only() -> None:
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if not "00" <= path.name[:2] <= "16":
            continue
        text = path.read_text("utf-8")
        for words in ("44 x 44 fibres", "1936", "five channels", "five *channels*", "neutron ZDC"):
            assert words not in text, (path.name, words)
        # each tells what its study is about
        assert "stage.about" in text or "described(explorer.study)" in text, path.name


def test_data_are_of_a_detector_and_those_of_the_zn_stay_what_they_are(tmp_path: Path) -> None:
    study = load_study(ROOT / "params" / "small.yaml")
    assert "detector" not in data_identity(study)  # as it was when there was no other

    def of(name: str) -> object:
        return data_identity(study.model_copy(update={"detector": name})).get("detector")

    text = (ROOT / "detectors" / "zn.yaml").read_text("utf-8")
    own = tmp_path / "own.yaml"
    own.write_text(
        text.replace("label: ZN", "label: mine").replace("per_collision: 12", "per_collision: 7")
    )
    assert of(str(own)) is None  # words, and what is of whole collisions, change no response
    found: set[object] = {None}
    for old, new in (
        ("pitch: 0.0016", "pitch: 0.0017"),
        ("catch: 0.012", "catch: 0.013"),
        ("vx: standard", "vx: robust"),
    ):
        assert old in text
        own.write_text(text.replace(old, new))
        os.utime(own, ns=(len(found), len(found)))  # two changes within a tick of the clock
        found.add(of(str(own)))
    found |= {of("zp"), of("focal_h")}
    assert len(found) == 6


def test_a_file_of_another_face_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "focal.root"
    write_root([some_particles(20, FOCAL)], path)
    assert read_events(path, detector=FOCAL).detector == FOCAL
    with pytest.raises(
        EventFileError, match=r"expected responses of the ZN, .* fibres, found those of 36 x 36"
    ):
        read_events(path)


def test_a_generator_knows_the_hole_and_the_side_that_it_learned() -> None:
    learned = draw_particles(
        np.random.default_rng(1), np.linspace(0, 1, 2000, endpoint=False), detector=FOCAL
    )
    domain = Domain.of(learned.features, np.zeros(3), FOCAL)
    assert domain.known(learned.features).all()
    along = aim(211, 100.0, (0.002, 0.0), FOCAL).features
    backwards = aim(211, 100.0, (0.2, 0.1), FOCAL).features
    assert domain.known(backwards).all()
    backwards[:, FEATURES.index("pz")] *= -1
    for particle in (along, backwards):
        assert domain.faults(particle).tolist() == ["direction"]
    with pytest.raises(ParticleError, match=r"pz above 0.*and pz -"):
        domain.check(backwards)
    both = draw_particles(np.random.default_rng(1), np.linspace(0, 1, 2000, endpoint=False))
    domain = Domain.of(both.features, np.zeros(3), ZN)
    assert (domain.least_slope, domain.sides) == (0.0, (-1, 1))


def test_electrons_shower_as_photons_do() -> None:
    light = {}
    for pdg in (11, 22, 211):
        particle = aim(pdg, 100.0, (0.1, 0.1), FOCAL)
        responses = respond(np.random.default_rng(1), particle, 200, FOCAL)
        light[pdg] = np.median(responses.sum(axis=(1, 2)))
    # what stands in front keeps electromagnetic showers back
    assert light[11] == light[22] == 0
    assert light[211] > 100


def test_a_detector_without_simulation_needs_files(tmp_path: Path) -> None:
    content = content_of("zp") | {"simulation": None}
    study = yaml.safe_load((ROOT / "params" / "zp-smoke.yaml").read_text("utf-8"))
    study["detector"] = written(content, tmp_path)
    path = tmp_path / "own.yaml"
    for change, said in (
        ({}, "data.file: expected files"),
        ({"file": "some.root"}, "collisions: expected null"),
    ):
        path.write_text(yaml.safe_dump(study | {"data": study["data"] | change}))
        with pytest.raises(ParameterError, match=said):
            load_study(path)


def test_a_channel_without_fibres_is_refused(tmp_path: Path) -> None:
    content = content_of("zp")
    content["channels"]["strip 1"] = {"strip": [1, 4], "quadrant": "top right"}
    with pytest.raises(ParameterError, match=r"channels\.strip 1: expected a pattern with fibres"):
        load_detector(written(content, tmp_path))
