"""A generator exported for O2, against what torch draws and against the rules of O2."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from spox import Tensor, argument, build

from tests.o2_port import (
    O2Port,
    build_port,
    full_sector,
    hits_sector,
    new_session,
    read_scales,
    run_port,
    sector_sums,
)
from zdc_nb.data.events import FEATURES, Events, from_vertex
from zdc_nb.detector import ZN, channel_sums
from zdc_nb.flows.maf_iaf import Student, Teacher
from zdc_nb.flows.particle_nets import PhotonSumNetwork, SignalNetwork
from zdc_nb.flows.splitting import SplittingFlow
from zdc_nb.generator.encoding import ConditionScaler, flow_dim
from zdc_nb.generator.generator import Domain, Generator, ParticleError
from zdc_nb.generator.onnx_export import (
    ExportError,
    Images,
    as_logarithms,
    classifier_model,
    export_onnx,
    pixel_fibres,
    scales_of,
)
from zdc_nb.generator.onnx_flows import sample_splitting
from zdc_nb.generator.particle_models import PhotonSumModel, SignalModel
from zdc_nb.generator.random_numbers import uniforms_from_normals
from zdc_nb.generator.surrogate import Surrogate
from zdc_nb.params import FlowParams, PreprocessingParams, SplittingFlowParams

SPREAD = 1e-6
"""m, by which vertices vary in the data that is learned from."""

UNITS = np.array([1, 100, 100, 100, 1, 1, 1, 1, 3])
"""Of ours in O2's: GeV, cm, GeV, MeV and thirds of e."""

NEUTRON, SIGMA = (939.56542, 0.0), (1189.37, 1.0)


def some_particles(count: int, seed: int, vertex: float = SPREAD) -> NDArray[np.float64]:
    """Features (N, 9) of neutrons and sigmas on both sides, in our units."""
    rng = np.random.default_rng(seed)
    kinds = np.array([NEUTRON, SIGMA])[rng.integers(0, 2, count)]
    momentum = rng.normal(0, 0.4, (count, 3))
    momentum[:, 2] = rng.choice([-1.0, 1.0], count) * rng.uniform(1000, 1500, count)
    energy = np.sqrt((momentum**2).sum(1) + (1e-3 * kinds[:, 0]) ** 2)
    mean = np.array([2e-4, -1e-4, 1e-3])
    return np.column_stack([energy, mean + rng.normal(0, vertex, (count, 3)), momentum, kinds])


def in_o2_units(features: NDArray[np.float64]) -> NDArray[np.float32]:
    """GeV, cm, GeV, MeV and thirds of e, as O2 has them."""
    raw: NDArray[np.float32] = (features * UNITS).astype(np.float32)
    return raw


def in_our_units(
    given: NDArray[np.float32], means: NDArray[np.float32], scales: NDArray[np.float32]
) -> NDArray[np.float64]:
    """What is left of raw features after O2 has scaled them in float32."""
    scaled = ((given - means) / scales).astype(np.float64)
    raw = scaled * scales.astype(np.float64) + means.astype(np.float64)
    features: NDArray[np.float64] = raw / UNITS
    return features


def facing(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """From ALICE's frame, x to the left when looking to side A, to x to the right of every face."""
    seen = features.copy()
    side_a = features[:, FEATURES.index("pz")] > 0
    for name in ("vx", "px"):
        seen[side_a, FEATURES.index(name)] *= -1
    return seen


def make_flow(hidden: int = 16, context: int = 16, spread: float = 0.15) -> SplittingFlow:
    """Random weights that make showers of some 40 lit fibres, most of them near one place."""
    params = SplittingFlowParams(
        window=5,
        bins=8,
        bound=10.0,
        hidden=hidden,
        hidden_layers=2,
        context_hidden=[hidden, hidden],
        coarse_nodes=127,
    )
    torch.manual_seed(4)
    flow = SplittingFlow(ZN.shape, context, params).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
        flow.last.weight += spread * torch.randn(flow.last.weight.shape, generator=generator)
        flow.last.bias[-1] = -0.6
    return flow.requires_grad_(False)


@cache
def training_events() -> Events:
    """What scalers are fitted to."""
    features = some_particles(1500, 1)
    rng = np.random.default_rng(2)
    photon_sum = np.exp(rng.normal(4, 0.7, len(features))).astype(np.uint16) + 10
    responses = np.zeros((len(features), *ZN.shape), np.uint16)
    responses[:, 20, 20] = photon_sum
    pdg = np.where(features[:, 8] == 0, 2112, 3222).astype(np.int32)
    return Events.from_arrays(pdg, features, responses)


def make_generator(hidden: int = 16) -> Generator:
    """A generator whose networks are random, but of the kind and size of trained ones."""
    events = training_events()
    features, photon_sum = events.features, events.photon_sum
    scaler = ConditionScaler.fit_context(events)
    flow = make_flow(hidden)
    particle = ConditionScaler.fit_particle(features, ZN)
    count = len(particle.mean)
    torch.manual_seed(5)
    sums = PhotonSumNetwork(count, [16, 16], 3, least=10)
    sums.start_from(torch.from_numpy(photon_sum.astype(np.float32)))
    signal = SignalNetwork(count, [16])
    with torch.no_grad():
        for network in (sums, signal):
            last = network.layers[-1]
            assert isinstance(last, torch.nn.Linear)
            torch.nn.init.normal_(last.weight, std=0.3 if network is sums else 2.4)
    for network in (sums, signal):
        network.eval().requires_grad_(False)
    return Generator(
        Surrogate(flow, flow.params, scaler, None),
        PhotonSumModel(sums, [16, 16], particle),
        SignalModel(signal, [16], particle),
        Domain.of(features, scaler.mean[1:4], ZN),
    )


@pytest.fixture(scope="session")
def generator() -> Generator:
    return make_generator()


@pytest.fixture(scope="session")
def folder(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    export_onnx(generator, folder)
    return folder


@pytest.fixture(scope="session")
def port(folder: Path) -> O2Port:
    return O2Port(folder, 44, 44)


class Asked:
    """Particles as O2 asks about them, and what torch makes of the same."""

    def __init__(self, generator: Generator, folder: Path, count: int, seed: int, vertex: float):
        self.raw = in_o2_units(some_particles(count, seed, vertex))
        self.noise = np.random.default_rng(seed).standard_normal((count, 10)).astype(np.float32)
        means, scales = read_scales(folder / "neutron_scales.txt")
        self.scaled = (self.raw - means) / scales
        self.features = facing(in_our_units(self.raw, means, scales))
        self.uniform = uniforms_from_normals(self.noise, 3 + generator.latents)
        self.expected = generator.from_uniform(self.features, self.uniform.astype(np.float64))


def seen_pixels(responses: NDArray[Any], features: NDArray[np.float64]) -> NDArray[Any]:
    """(N, Ny, Nx) photons of each pixel that responses (N, R, K) should become."""
    pixels = pixel_fibres(ZN.shape, "face")
    flat = responses.reshape(len(responses), -1)
    side = (features[:, FEATURES.index("pz")] > 0).astype(int)
    return np.stack([row[pixels[k]] for row, k in zip(flat, side, strict=True)])


def photons_of(pixels: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.expm1(pixels).astype(np.int64)


def run_model(folder: Path, asked: Asked) -> NDArray[np.int64]:
    """(N, Ny, Nx) photons, all responses at once."""
    session = new_session(folder / "neutron.onnx")
    (pixels,) = session.run(None, {"noise": asked.noise, "particle": asked.scaled})
    return photons_of(pixels)


def in_channels(hits: NDArray[np.int64], side_a: bool) -> list[int]:
    """Photons of hits in the channels of a face, common first, by the rule of O2's hits."""
    common, *sectors = sector_sums(hits)
    # top left, top right, bottom left, bottom right; on side C y is low at the bottom
    return [common, *(sectors if side_a else sectors[2:] + sectors[:2])]


# --- The same as torch -----------------------------------------------------------------------------


def test_responses_are_those_of_torch(generator: Generator, folder: Path) -> None:
    asked = Asked(generator, folder, 600, 11, vertex=1e-4)
    session = new_session(folder / "neutron.onnx")
    (pixels,) = session.run(None, {"noise": asked.noise, "particle": asked.scaled})
    assert pixels.dtype == np.float32
    assert pixels.shape == (600, 44, 44)
    expected = seen_pixels(asked.expected, asked.features)
    equal = (photons_of(pixels) == expected).all(axis=(1, 2))
    assert equal.mean() >= 0.999
    # all that can happen does
    sums = asked.expected.sum(axis=(1, 2), dtype=np.int64)
    assert (sums == 0).sum() > 50
    assert (sums > 0).sum() > 50
    assert 20 < (asked.expected > 0).sum() / (sums > 0).sum() < 80


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bound": 2.0},  # most random numbers are beyond it
        {"coarse_nodes": 5},  # in the middle of a level
        {"coarse_nodes": 1000},
        {"hidden_layers": 0},
        {"window": 1, "bins": 2},
        {"context_hidden": [5, 6]},
    ],
    ids=str,
)
def test_splitting_flows_of_all_kinds(changes: dict[str, Any]) -> None:
    known: dict[str, Any] = {"window": 3, "bins": 4, "bound": 10.0, "hidden": 8, "hidden_layers": 2}
    known |= {"context_hidden": [8], "coarse_nodes": 7} | changes
    params = SplittingFlowParams.model_validate(known)
    torch.manual_seed(7)
    flow = SplittingFlow((6, 5), 6, params).eval().requires_grad_(False)
    for weight in flow.parameters():
        weight.add_(torch.randn(weight.shape), alpha=0.3)
    context = torch.randn(1500, 6)
    context[:, 3:5] *= 4
    context[:, 5] = torch.randint(0, 60, (1500,))
    uniform = torch.rand(1500, 29)
    inputs = [argument(Tensor(np.float32, ("N", size))) for size in (5, 1, 29)]
    names = ("context", "total", "uniform")
    graph = {"boxes": sample_splitting(flow, *inputs)}
    model = build(dict(zip(names, inputs, strict=True)), graph)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    values = (context[:, :5].numpy(), context[:, 5:].numpy(), uniform.numpy())
    (boxes,) = session.run(None, dict(zip(names, values, strict=True)))
    photons = boxes[:, flow.tree.fibre + 1] - 1
    expected = flow.from_uniform(uniform, context, compiled=False).numpy()
    assert (photons.sum(1) == expected.sum(1)).all()
    assert (photons == expected).all(axis=1).mean() >= 0.999


@pytest.mark.parametrize("language", ["python", "c++"])
def test_hits_in_o2_are_the_responses(
    language: str, generator: Generator, folder: Path, port: O2Port, tmp_path: Path
) -> None:
    asked = Asked(generator, folder, 40, 12, vertex=1e-4)
    if language == "c++":
        program = build_port(tmp_path)
        if isinstance(program, str):
            pytest.skip(program)
        lit, hits = run_port(program, folder, 44, 44, asked.raw, asked.noise)
    else:
        pairs = [*zip(asked.raw, asked.noise, strict=True)]
        lit = np.array([port.sends_light(raw) for raw, _ in pairs])
        hits = np.stack([port.hits(raw, noise) for raw, noise in pairs])
    sums = channel_sums(asked.expected, ZN)
    for k, light in enumerate(asked.expected):
        side_a = bool(asked.features[k, 6] > 0)
        assert in_channels(hits[k], side_a) == sums[k].tolist()
        # on side C y is upside down, on side A neighbouring rows are swapped
        expected = light[np.arange(44) ^ 1] if side_a else light[::-1]
        assert (hits[k] == expected.T).all()
    assert generator.signal is not None
    moved = from_vertex(asked.features, generator.vertex, ZN)
    assert (lit == (generator.signal.probability(moved, ZN) > 0.005)).all()


def test_distributions_are_those_of_the_generator(generator: Generator, folder: Path) -> None:
    """Other random numbers altogether, at one particle that sends light."""
    count = 1500
    asked = Asked(generator, folder, 1, 14, vertex=SPREAD)
    alone = replace(generator, signal=None)
    export_onnx(alone, folder / "alone")
    session = new_session(folder / "alone" / "neutron.onnx")
    noise = np.random.default_rng(15).standard_normal((count, 10)).astype(np.float32)
    given = {"noise": noise, "particle": np.repeat(asked.scaled, count, axis=0)}
    drawn = photons_of(session.run(None, given)[0]).reshape(count, -1)
    rng = np.random.default_rng(16)
    uniform = rng.uniform(2e-7, 1 - 2e-7, (count, 3 + generator.latents))
    expected = alone.from_uniform(np.repeat(asked.features, count, axis=0), uniform)
    expected = expected.reshape(count, -1).astype(np.int64)
    for measure in (
        lambda x: x.sum(1),
        lambda x: (x > 0).sum(1),
        lambda x: x.max(1),
    ):
        assert stats.ks_2samp(measure(drawn), measure(expected)).pvalue > 1e-3
    # place by place: one particle's mean response
    pixels = pixel_fibres(ZN.shape, "face")[int(asked.features[0, 6] > 0)].reshape(-1)
    expected = expected[:, pixels]
    both = expected.mean(0) + drawn.mean(0) > 0.2
    spread = np.sqrt((expected.var(0) + drawn.var(0)) / count)
    pulls = (drawn.mean(0) - expected.mean(0))[both] / spread[both]
    assert both.sum() > 20
    assert np.abs(pulls).max() < 5
    assert abs(pulls.mean()) < 5 / math.sqrt(both.sum())


def test_light_comes_as_often_as_it_should(generator: Generator, folder: Path) -> None:
    assert generator.signal is not None
    asked = Asked(generator, folder, 1500, 17, vertex=SPREAD)
    session = new_session(folder / "neutron.onnx")
    given = {"noise": asked.noise, "particle": asked.scaled}
    lit: NDArray[np.bool_] = np.asarray(photons_of(session.run(None, given)[0]).any(axis=(1, 2)))
    rate = generator.signal.probability(from_vertex(asked.features, generator.vertex, ZN), ZN)
    assert (lit == (asked.uniform[:, 0] < rate)).mean() > 0.999
    for part in (rate < 0.3, rate > 0.6, rate >= 0):
        spread = math.sqrt((rate * (1 - rate))[part].sum())
        assert abs(lit[part].sum() - rate[part].sum()) < 4 * spread


# --- The traps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["neutron", "classifier"])
def test_graphs_are_plain(name: str, folder: Path) -> None:
    model = onnx.load(folder / f"{name}.onnx")
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert model.ir_version <= 10
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    kinds = {node.op_type for node in model.graph.node}
    assert not {kind for kind in kinds if kind.startswith(("Random", "Multinomial", "Bernoulli"))}
    # O2 makes 1 of every size that is not a number
    shapes = [
        [size.dim_value for size in given.type.tensor_type.shape.dim] for given in model.graph.input
    ]
    assert shapes == ([[0, 10], [0, 9]] if name == "neutron" else [[0, 9]])
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert len(model.graph.output) == 1


def test_nothing_is_said_on_loading(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("neutron", "classifier"):
        new_session(folder / f"{name}.onnx")
    assert capfd.readouterr() == ("", "")


def test_every_normal_number_counts(generator: Generator, folder: Path) -> None:
    asked = Asked(replace(generator, signal=None), folder, 1, 18, vertex=SPREAD)
    noise = np.repeat(asked.noise, 11, axis=0)
    for k in range(10):
        noise[k + 1, k] = np.nextafter(noise[k + 1, k], np.float32(0))
    export_onnx(replace(generator, signal=None), folder / "lit")
    session = new_session(folder / "lit" / "neutron.onnx")
    given = {"noise": noise, "particle": np.repeat(asked.scaled, 11, axis=0)}
    photons = photons_of(session.run(None, given)[0]).reshape(11, -1)
    assert len(np.unique(photons, axis=0)) == 11


def test_every_feature_but_the_vertex_along_z_counts(generator: Generator, folder: Path) -> None:
    alone = replace(generator, signal=None)
    export_onnx(alone, folder / "lit")
    session = new_session(folder / "lit" / "neutron.onnx")
    rng = np.random.default_rng(19)
    # a neutral and a charged particle, whose kinds may differ in mass or charge alone
    particle = np.repeat(Asked(alone, folder, 1, 20, vertex=SPREAD).scaled, 10, axis=0)
    for k in range(9):
        particle[k + 1, k] += 0.05 if k > 3 or k == 0 else 5e2
    noise = np.repeat(rng.standard_normal((30, 1, 10)).astype(np.float32), 10, axis=1)
    given = {"noise": noise.reshape(-1, 10), "particle": np.tile(particle, (30, 1))}
    photons = photons_of(session.run(None, given)[0]).reshape(30, 10, -1)
    changed = np.any(photons != photons[:, :1], axis=(0, 2))
    assert changed.tolist() == [False, *(FEATURES[k] != "vz" for k in range(9))]


def test_scales_are_in_the_units_of_o2(generator: Generator, folder: Path) -> None:
    for name in ("neutron", "classifier"):
        text = (folder / f"{name}_scales.txt").read_bytes().decode()
        assert "\r" not in text
        lines = text.split("\n")
        assert (lines[0], lines[10], lines[11], lines[21:]) == ("#means", "", "#scales", [""])
        means, scales = read_scales(folder / f"{name}_scales.txt")
        scaler = generator.surrogate.scaler
        for found, ours in ((means, scaler.mean), (scales, scaler.std)):
            assert np.allclose(found, ours[:9] * UNITS, rtol=1e-7)
    # what does not vary is not divided by nothing
    assert (scales > 0).all()


def test_charge_is_in_thirds(port: O2Port) -> None:
    raw = in_o2_units(some_particles(40, 21))
    assert set(raw[:, 8].tolist()) == {0.0, 3.0}
    assert all(port.sends_light(row) for row in raw)
    # in units of e this is no species that was learned
    wrong = raw[raw[:, 8] == 3.0]
    wrong[:, 8] = 1.0
    assert not any(port.sends_light(row) for row in wrong)


def test_a_smeared_vertex_moves_the_impact_point_alone(generator: Generator, port: O2Port) -> None:
    """0.01 cm an axis, as O2 has it, is a hundred times what was learned."""
    features = some_particles(6, 22)
    features[:, 1:4] = generator.vertex
    rng = np.random.default_rng(23)
    noise = rng.standard_normal((6, 10)).astype(np.float32)
    same = features.copy()
    same[:, 1:4] += rng.normal(0, 1e-4, (6, 3))
    along = np.abs(same[:, 6]) / ZN.distance
    same[:, 4] -= (same[:, 1] - generator.vertex[0]) * along
    same[:, 5] -= (same[:, 2] - generator.vertex[1]) * along
    for one, other, numbers in zip(in_o2_units(features), in_o2_units(same), noise, strict=True):
        assert port.sends_light(one) == port.sends_light(other)
        # rounded in other places: a photon may go astray, no more
        a, b = port.hits(one, numbers), port.hits(other, numbers)
        assert np.abs(a - b).sum() <= 0.05 * a.sum()


def test_logarithms_come_back_as_counts() -> None:
    light = argument(Tensor(np.float32, ("N",)))
    model = build({"light": light}, {"y": as_logarithms(light)})
    session = onnxruntime.InferenceSession(model.SerializeToString())
    counts = np.arange(65536)
    (y,) = session.run(None, {"light": (counts + 1).astype(np.float32)})
    assert y.dtype == np.float32
    assert (np.expm1(y).astype(np.int64) == counts).all()
    # with some room for the expm1 of another library
    assert (np.expm1(y.astype(np.float64)) - counts > 3e-7 * (counts + 1)).all()
    assert (np.expm1(y.astype(np.float64)) - counts < 0.3).all()
    # what the trap is
    assert (np.expm1(np.log1p(counts.astype(np.float32))).astype(np.int64) != counts).any()


@pytest.mark.parametrize("shape", [(44, 44), (20, 36)])
def test_images_of_dumps_have_the_sectors_of_full_simulation(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(24).poisson(3.0, shape)  # [x][y]
    columns, rows = shape
    for side_a, pixels in enumerate(pixel_fibres(shape, "dump")):
        assert pixels.shape == (rows, columns)
        full = [0] * 5
        for (x, y), photons in np.ndenumerate(image):
            full[full_sector(x, y, columns, rows, bool(side_a))] += int(photons)
        assert sector_sums(image.reshape(-1)[pixels].T) == full


def test_faces_have_the_sectors_of_full_simulation() -> None:
    """Each fibre of a face, at its x and y, is read by one sector in full simulation and by hits."""
    pixels = pixel_fibres((44, 44), "face")
    for side_a in (False, True):
        of_fibre = np.empty(44 * 44, np.int64)
        for (y, x), fibre in np.ndenumerate(pixels[int(side_a)]):
            of_fibre[fibre] = hits_sector(x, y, 44, 44)
        for fibre, sector in enumerate(of_fibre):
            row, column = divmod(fibre, 44)
            # y points up; x to the right when looking to side C, to the left when looking to side A
            x, y = (43 - column if side_a else column), 43 - row
            assert sector == full_sector(x, y, 44, 44, side_a)
            assert (sector == 0) == ZN.masks[0, row, column]


def test_what_was_not_learned_sends_no_light(generator: Generator, port: O2Port) -> None:
    good = some_particles(1, 25)
    wrong = np.repeat(good, 6, axis=0)
    slope = generator.domain.slope * 1.06
    wrong[0, 4] = slope * wrong[0, 6]
    wrong[1, 5] = -slope * wrong[1, 6]
    wrong[2, 0] = generator.domain.energy[1] * 1.06
    wrong[3, 0] = generator.domain.energy[0] * 0.94
    wrong[4, 7] = 497.6
    wrong[5, 8] = -1.0
    rng = np.random.default_rng(26)
    noises = rng.standard_normal((20, 10)).astype(np.float32)
    (raw,) = in_o2_units(good)
    assert port.sends_light(raw)
    assert any(port.hits(raw, noise).any() for noise in noises)
    for raw in in_o2_units(wrong):
        assert not port.sends_light(raw)
        assert not any(port.hits(raw, noise).any() for noise in noises)


def test_generator_and_classifier_know_the_same_particles(
    generator: Generator, folder: Path, tmp_path: Path
) -> None:
    """Particles at and beyond the ends of what was learned."""
    features = some_particles(400, 30)
    rng = np.random.default_rng(31)
    low, high = generator.domain.energy
    features[:100, 0] = rng.choice([low, high], 100) * rng.uniform(0.9, 1.1, 100)
    axis = rng.choice([4, 5], 100)
    slope = generator.domain.slope * rng.uniform(0.9, 1.1, 100) * rng.choice([-1, 1], 100)
    features[np.arange(100, 200), axis] = slope * features[100:200, 6]
    features[200:300, 7] *= 1 + rng.uniform(-2e-3, 2e-3, 100)
    features[300:350, 8] = rng.choice([-1, 0, 1, 2], 50)
    means, scales = read_scales(folder / "classifier_scales.txt")
    raw = in_o2_units(features)
    export_onnx(replace(generator, signal=None), tmp_path)
    session = new_session(tmp_path / "classifier.onnx")
    (answers,) = session.run(None, {"particle": (raw - means) / scales})
    known = []
    moved = from_vertex(facing(in_our_units(raw, means, scales)), generator.vertex, ZN)
    # whole numbers of e again, which thirds in float32 are not
    moved[:, 8] = np.round(moved[:, 8])
    for row in moved:
        try:
            generator.domain.check(row[None])
        except ParticleError:
            known.append(False)
        else:
            known.append(True)
    assert ((answers[:, 0] == 1) == known).all()
    assert 100 < sum(known) < 300


def test_the_classifier_answers_one_or_nothing(
    generator: Generator, folder: Path, tmp_path: Path
) -> None:
    assert generator.signal is not None
    features = some_particles(200, 27)
    seen = from_vertex(facing(features), generator.vertex, ZN)
    rate = generator.signal.probability(seen, ZN)
    middle = float(np.median(rate))
    means, scales = read_scales(folder / "classifier_scales.txt")
    given = {"particle": (in_o2_units(features) - means) / scales}
    export_onnx(generator, tmp_path, threshold=middle)
    (answers,) = new_session(tmp_path / "classifier.onnx").run(None, given)
    assert answers.shape == (200, 1)
    assert answers.dtype == np.float32
    clear = np.abs(rate - middle) > 1e-3
    assert (answers[clear, 0] == (rate[clear] > middle)).all()
    export_onnx(replace(generator, signal=None), tmp_path)
    (answers,) = new_session(tmp_path / "classifier.onnx").run(None, given)
    assert (answers == 1.0).all()


# --- Files ------------------------------------------------------------------------------------------


def test_what_is_written(generator: Generator, folder: Path, tmp_path: Path) -> None:
    paths = export_onnx(generator, tmp_path / "new" / "folder")
    assert sorted(path.name for path in paths) == [
        "classifier.onnx",
        "classifier_scales.txt",
        "neutron.onnx",
        "neutron_scales.txt",
        "settings.txt",
    ]
    for path in paths:
        assert path.read_bytes() == (folder / path.name).read_bytes()
    settings = (folder / "settings.txt").read_text()
    for path in paths[:-1]:
        assert f"={path.name};" in settings
    assert "ZDCSimParam.useZDCFastSim=true" in settings
    assert "SimCutParams.maxAbsZTracking=1200" in settings


def test_what_cannot_be_exported(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExportError, match="images: expected face or dump, got 'upside'"):
        export_onnx(generator, tmp_path, images="upside")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="expected rows y in multiples of four, got 30"):
        pixel_fibres((56, 30), "dump")
    teacher = replace(generator, surrogate=student_of("splits", Teacher))
    with pytest.raises(ExportError, match="got that of a teacher"):
        export_onnx(teacher, tmp_path)
    monkeypatch.setattr(Surrogate, "megabytes", 2000.0)
    with pytest.raises(ExportError, match=r"at most 1900 MB, .* got one of 2000 MB"):
        export_onnx(generator, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_size_that_is_used(tmp_path: Path) -> None:
    generator = make_generator(hidden=96)
    export_onnx(generator, tmp_path)
    assert (tmp_path / "neutron.onnx").stat().st_size < 6e6
    asked = Asked(generator, tmp_path, 400, 28, vertex=1e-4)
    equal = run_model(tmp_path, asked) == seen_pixels(asked.expected, asked.features)
    assert equal.all(axis=(1, 2)).mean() >= 0.995


# --- Students ---------------------------------------------------------------------------------------


def student_of(
    coordinates: str, kind: type[Student | Teacher] = Student, bound: float = 14.0
) -> Surrogate:
    """Random weights, of the size of ZN's responses."""
    splits = coordinates == "splits"
    params = PreprocessingParams(
        coordinates="splits" if splits else "fibres",
        noise=None if splits else 0.5,
        alpha=None if splits else 1e-6,
        conditions="impact" if splits else "paper",
        impact_grid=4,
        denoise=None if splits else "floor-rescale",
    )
    events = training_events()
    scaler = ConditionScaler.fit(events, params)
    architecture = FlowParams(
        transforms=2,
        bins=4,
        bound=bound,
        hidden=12,
        hidden_layers=1,
        dropout=0.1,
        context_hidden=[6] if splits else [],
        initialise="random",
        engine="fused",
        precision="float32",
    )
    torch.manual_seed(6)
    flow = kind(flow_dim(params, ZN), len(scaler.mean), architecture, seed=1).eval()
    with torch.no_grad():
        for name, weight in flow.named_parameters():
            uneven = name.endswith("last.bias") and "blocks.0" in name
            weight.add_(torch.randn(weight.shape), alpha=0.6 if uneven else 0.1)
    for network in flow.networks:
        for layer in (*network.hidden_layers, network.last):
            layer.apply_mask()
    return Surrogate(flow.requires_grad_(False), architecture, scaler, params)


@pytest.mark.parametrize(("coordinates", "bound"), [("splits", 14.0), ("fibres", 3.0)])
def test_students(coordinates: str, bound: float, generator: Generator, tmp_path: Path) -> None:
    student = replace(generator, surrogate=student_of(coordinates, bound=bound))
    export_onnx(student, tmp_path)
    asked = Asked(student, tmp_path, 300, 29, vertex=1e-4)
    photons = run_model(tmp_path, asked)
    expected = seen_pixels(asked.expected, asked.features).astype(np.int64)
    assert (expected.any(axis=(1, 2)) == photons.any(axis=(1, 2))).all()
    assert (photons == expected).all(axis=(1, 2)).mean() >= 0.98
    assert np.abs(photons - expected).sum() <= 1e-3 * expected.sum()


@pytest.mark.parametrize(("images", "on_side_a"), [("face", False), ("dump", True)])
def test_x_is_to_the_right_of_the_face_on_either_side(
    generator: Generator, images: Images, on_side_a: bool
) -> None:
    """A signal that sees only whether a particle arrives at the right: on side A, ALICE's left."""
    assert generator.signal is not None
    particle = generator.signal.scaler
    network = SignalNetwork(len(particle.mean), [])
    first = network.layers[0]
    assert isinstance(first, torch.nn.Linear)
    with torch.no_grad():
        first.weight.zero_()
        first.weight[0, 9] = 1000.0  # the slope along x
        first.bias.fill_(1000.0 * float(particle.mean[9] / particle.std[9]))
    seeing = replace(generator, signal=SignalModel(network, [], particle))
    features = some_particles(60, 3)
    px, pz = (features[:, FEATURES.index(name)] for name in ("px", "pz"))
    means, scales = scales_of(seeing)
    scaled = (in_o2_units(features) - means) / scales
    model = classifier_model(seeing, 0.5, images)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"particle": scaled})
    far = np.abs(px) > 0.1
    expected = np.where(pz > 0, (px > 0) == on_side_a, px > 0)
    np.testing.assert_array_equal(found[far, 0] == 1, expected[far])
