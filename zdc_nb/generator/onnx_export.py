r"""A generator of the ZN as ONNX files that ALICE's O2 loads in its fast simulation of the ZDC.

O2 asks a classifier whether a particle sends light, and a model for its response: ten normal numbers
and the particle, scaled, to the logarithms of the light in each fibre. What it takes for granted is
nowhere checked, so it is written down here, and every point has a test.

- A particle is energy (GeV), vertex (cm), momentum (GeV), mass (MeV) and charge in thirds of e, as
  ROOT counts it; a scales file has means and scales in these units. The graph goes back to the units
  of :data:`zdc_nb.data.events.FEATURES`.
- O2 smears the vertex by thousands of times what it varies by in most training data. The particle is
  moved to the mean vertex of those, on a line that arrives at the same spot
  (:func:`zdc_nb.data.events.from_vertex`).
- The classifier answers 1 or 0 as a float: whether the probability of light is above a threshold.
  Whether there is light is drawn in the model, so that rates are right and not just majorities.
- A particle beyond what was learned (:class:`zdc_nb.generator.generator.Domain`) has no light.
- O2 takes ``(int)expm1(y)`` photons, which for y = log1p(k) in float32 is k - 1 now and then. The model
  answers log((1 + k) (1 + 2 10^-6)), which comes back as k for all counts that fit.
- All that is random comes of the ten normal numbers: :mod:`zdc_nb.generator.random_numbers`.

Orientation
-----------
O2 counts column x and row y of a hit, from pixel ``Nx * y + x``. It reads hits with the fibres
(x + y) even as the common channel, and the others in quadrants: 1 and 2 where y is low, 1 and 3 where x
is low. In full simulation, common are the even ones on side C (pz < 0) only; on side A they are the
odd ones, and the quadrants are turned by 180 degrees. So that channels have the light that they have in
full simulation, an image [x][y] is transposed for side C, and for side A turned by 180 degrees, its
neighbouring columns swapped in pairs, and transposed.

How a generator's responses lie in x and y depends on what it was trained on, see
:func:`pixel_fibres`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import spox.opset.ai.onnx.v17 as op
from numpy.typing import NDArray
from spox import Tensor, Var, argument, build

from zdc_nb.data.events import FEATURES
from zdc_nb.detector import ZN, Detector
from zdc_nb.flows.maf_iaf import Student, Teacher
from zdc_nb.flows.particle_nets import LARGEST_SUM, LEAST_SCALE
from zdc_nb.flows.splitting import SplittingFlow
from zdc_nb.generator.encoding import (
    LARGEST_SLOPE,
    PLACE_GRID,
    PLACE_REACH,
    edge_reaches,
)
from zdc_nb.generator.generator import OWN_NUMBERS, Domain, Generator
from zdc_nb.generator.onnx_flows import (
    draw_states,
    draw_uniforms,
    integers,
    numbers,
    perceptron,
    photons_of_fibres,
    photons_of_splits,
    sample_splitting,
    sample_student,
)
from zdc_nb.generator.particle_models import PhotonSumModel, SignalModel
from zdc_nb.generator.random_numbers import NORMALS
from zdc_nb.params import PreprocessingParams, UserError
from zdc_nb.storage import write_atomically, write_text

__all__ = ["ExportError", "Images", "export_onnx", "pixel_fibres", "scales_of", "why_not"]

Images = Literal["face", "dump"]

OPSET = 17
"""ONNX Runtime knows it since version 1.12; O2 comes with 1.22."""

_IR_VERSION = 8
"""The file format that came with this opset."""

O2_UNITS = np.array([1, 0.01, 0.01, 0.01, 1, 1, 1, 1, 1 / 3])
"""One of O2's units of each feature, in those of ours."""

SURPLUS = 2e-6
"""Relative, by which one more than a count is raised before its logarithm is rounded to float32."""

_LARGEST_MEGABYTES = 1900


class ExportError(UserError, ValueError):
    """A generator that cannot be exported; the message says why."""


def export_onnx(
    generator: Generator,
    folder: Path,
    images: Images = "face",
    threshold: float = 0.005,
) -> list[Path]:
    """Write a generator as O2 reads it, each file atomically.

    Parameters
    ----------
    generator
        of a splitting flow or a student.
    folder
        gets ``neutron.onnx``, ``classifier.onnx``, a file of scales for each, and ``settings.txt``
        with what to tell O2.
    images
        how responses lie, see :func:`pixel_fibres`.
    threshold
        the classifier answers 1 for particles that are more likely than this to send light.

    Returns
    -------
    the files.

    Raises
    ------
    ExportError
        of another detector than the ZN, see :func:`why_not`, of a teacher, which needs a pass for
        each fibre, and of a student of 2 GB.
    """
    check_exportable(generator)
    models = {
        "neutron": neutron_model(generator, images),
        "classifier": classifier_model(generator, threshold, images),
    }
    # written last: where it is, the files beside it belong together
    settings = folder / "settings.txt"
    settings.unlink(missing_ok=True)
    paths = []
    for name, model in models.items():
        path, scales = folder / f"{name}.onnx", folder / f"{name}_scales.txt"
        with write_atomically(path) as temporary:
            temporary.write_bytes(model.SerializeToString(deterministic=True))
        write_text(scales_text(scales_of(generator)), scales)
        paths += [path, scales]
    write_text(_SETTINGS, settings)
    return [*paths, settings]


_SETTINGS = """\
# For o2-sim --configKeyValues, in one line; run it in this folder, or write the way to it before
# the names of the files. Without the last, particles are transported in full as well, and hits
# count twice.
ZDCSimParam.useZDCFastSim=true;\
ZDCSimParam.ZDCFastSimClassifierPath=classifier.onnx;\
ZDCSimParam.ZDCFastSimClassifierScales=classifier_scales.txt;\
ZDCSimParam.ZDCFastSimModelPathNeutron=neutron.onnx;\
ZDCSimParam.ZDCFastSimModelScalesNeutron=neutron_scales.txt;\
SimCutParams.maxAbsZTracking=1200
"""


def why_not(detector: Detector) -> str | None:
    """Why O2 cannot load a generator of a detector, which it takes to be the ZN; None where it can.

    The graphs know straight flights, the nine features as conditions and a face that is moved along y
    alone, and O2 reads pixels and channels as those of the ZN.
    """
    nine = tuple((name, "standard") for name in FEATURES)
    faults = [
        (detector.shape != ZN.shape, "{} x {} fibres".format(*detector.shape)),
        (not np.array_equal(detector.masks, ZN.masks), "other channels"),
        (detector.offset[0] != 0, "a face that stands aside along x"),
        (bool(detector.deflection), "charged particles that are bent"),
        (detector.conditions != nine, "other conditions than the nine features, standardised"),
    ]
    found = [text for wrong, text in faults if wrong]
    if not found:
        return None
    return (
        "O2 reads the exported models as those of the ZN: expected {} x {} fibres, its channels and "
        "its conditions, got the {}, which has {}"
    ).format(*ZN.shape, detector.name, ", ".join(found))


def check_exportable(generator: Generator) -> None:
    """Raise :class:`ExportError` for another detector than O2's, and a flow whose sampling is no graph."""
    if refusal := why_not(generator.detector):
        raise ExportError(refusal)
    if isinstance(generator.surrogate.flow, Teacher):
        raise ExportError(
            "expected the generator of a splitting flow or a student, got that of a teacher, whose "
            "every fibre takes a pass through the network"
        )
    size = generator.surrogate.megabytes
    if size > _LARGEST_MEGABYTES:
        raise ExportError(
            f"expected a flow of at most {_LARGEST_MEGABYTES} MB, as much as one file of ONNX holds, "
            f"got one of {size:.0f} MB"
        )


# --- Scales ------------------------------------------------------------------------------------


def scales_of(generator: Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(9,) means and scales of the features in O2's units, those of what the flow learned from."""
    scaler = generator.surrogate.scaler
    mean, std = scaler.mean[: len(FEATURES)], scaler.std[: len(FEATURES)]
    return (mean / O2_UNITS).astype(np.float32), (std / O2_UNITS).astype(np.float32)


def scales_text(scales: tuple[NDArray[np.float32], NDArray[np.float32]]) -> str:
    """The file that O2 reads them from."""
    means, widths = ("".join(f"{value:.9g}\n" for value in part) for part in scales)
    return f"#means\n{means}\n#scales\n{widths}"


# --- Particles, in double precision as in Python ---------------------------------------------------


def _real(value: Any) -> Var:
    """A float64 constant."""
    return op.const(np.asarray(value, np.float64))


def _single(x: Var) -> Var:
    return op.cast(x, to=np.float32)


class _Particle:
    """What is known of particles, in our units, from the mean vertex: (N, 1) float64 each."""

    def __init__(self, generator: Generator, scaled: Var, images: Images) -> None:
        means, widths = (part.astype(np.float64) * O2_UNITS for part in scales_of(generator))
        vertex = generator.vertex
        features = op.add(op.mul(op.cast(scaled, to=np.float64), _real(widths)), _real(means))
        sizes = integers([1] * len(FEATURES))
        self.energy, vx, vy, _, px, py, self.pz, self.mass, self.charge = op.split(
            features, sizes, outputs_count=len(FEATURES), axis=1
        )
        if images == "face":
            # in ALICE's frame x is to the left when looking to side A, in a face always to the right
            facing = op.where(op.greater(self.pz, _real(0.0)), _real(-1.0), _real(1.0))
            vx, px = op.mul(vx, facing), op.mul(px, facing)
        distance = generator.detector.distance
        along = op.abs(self.pz)

        def moved(momentum: Var, position: Var, mean: float) -> Var:
            offset = op.sub(position, _real(mean))
            return op.add(momentum, op.div(op.mul(offset, along), _real(distance)))

        self.px, self.py = moved(px, vx, vertex[0]), moved(py, vy, vertex[1])
        along = op.max([along, _real(1e-6)])
        self.slope_x, self.slope_y = op.div(self.px, along), op.div(self.py, along)
        # from the origin to where they arrive
        flight = [mean / distance for mean in vertex]
        self.arrival_x = op.add(self.slope_x, _real(flight[0]))
        self.arrival_y = op.add(self.slope_y, _real(flight[1]))
        self.log_energy = op.log(op.add(self.energy, _real(1.0)))
        self.side = op.sign(self.pz)
        self.vertex, self.detector = vertex, generator.detector

    def features(self) -> Var:
        """(N, 9), moved to the mean vertex."""
        # a row of it for each particle
        vertex = op.add(op.mul(self.energy, _real(np.zeros((1, 3)))), _real(self.vertex[None]))
        momentum = [self.px, self.py, self.pz]
        return op.concat([self.energy, vertex, *momentum, self.mass, self.charge], axis=1)

    def impact(self) -> tuple[Var, Var]:
        """x and y of :func:`zdc_nb.data.events.impact_point`, (N, 1) m."""
        x, y = (op.mul(s, _real(self.detector.distance)) for s in (self.arrival_x, self.arrival_y))
        return x, op.sub(y, _real(self.detector.offset[1]))

    @cached_property
    def own(self) -> Var:
        """(N, 10) of :meth:`zdc_nb.generator.encoding.ConditionScaler.particle`."""
        momentum = [self.px, self.py, self.pz]
        first = [self.energy, self.log_energy, *momentum, self.mass, self.charge]
        return op.concat([*first, self.side, self.arrival_y, self.arrival_x], axis=1)

    @cached_property
    def places(self) -> Var:
        """(N, G + 4) functions of the impact point, as there."""
        across: list[Var] = []
        edges: list[Var] = []
        x, y = self.impact()
        for at, side in zip((y, x), self.detector.face, strict=True):
            near = op.clip(at, _real(-4 * side), _real(4 * side))
            knots = np.linspace(-PLACE_REACH / 2, PLACE_REACH / 2, PLACE_GRID) * side
            across.append(_bumps(near, knots))
            inside = op.sub(_real(side / 2), op.abs(near))
            for reach in edge_reaches(self.detector):
                edges.append(op.div(inside, op.add(op.abs(inside), _real(reach))))
        rows, columns = (op.unsqueeze(part, integers([2 - k])) for k, part in enumerate(across))
        grid = op.reshape(op.mul(rows, columns), integers([-1, PLACE_GRID**2]))
        return op.concat([grid, *edges], axis=1)

    def known(self, domain: Domain) -> Var:
        """(N, 1) bool: whether they are of what was learned."""
        (low, high), most = domain.energies, domain.largest_slope
        steepest = op.max([op.abs(self.slope_x), op.abs(self.slope_y)])
        kinds = np.array(domain.kinds)
        near = op.less_or_equal(
            op.abs(op.sub(self.mass, _real(kinds[None, :, 0]))),
            _real(1e-3 * kinds[None, :, 0] + 0.1),
        )
        # a third of e, in float32, is none quite
        alike = op.less(op.abs(op.sub(self.charge, _real(kinds[None, :, 1]))), _real(0.1))
        either = op.cast(op.and_(near, alike), to=np.float32)
        checks = [
            op.greater(op.reduce_sum(either, integers([1])), numbers(0.5)),
            op.less_or_equal(steepest, _real(most)),
            op.greater_or_equal(self.energy, _real(low)),
            op.less_or_equal(self.energy, _real(high)),
        ]
        if domain.least_slope > 0:
            checks.append(op.greater_or_equal(steepest, _real(domain.smallest_slope)))
        if len(domain.sides) == 1:
            checks.append(op.greater(op.mul(self.pz, _real(float(domain.sides[0]))), _real(0.0)))
        found = checks[0]
        for check in checks[1:]:
            found = op.and_(found, check)
        return found


def _particle_context(model: PhotonSumModel | SignalModel, particle: _Particle) -> Var:
    """(N, C) float32 of :meth:`zdc_nb.generator.encoding.ConditionScaler.particle`."""
    own, count = particle.own, 10
    mean, std = model.scaler.mean[:count], model.scaler.std[:count]
    scaled = _single(op.div(op.sub(own, _real(mean)), _real(std)))
    most = np.full(count, np.finfo(np.float32).max, np.float32)
    most[-2:] = LARGEST_SLOPE
    scaled = op.max([op.min([scaled, op.const(most[None])]), op.const(-most[None])])
    return op.concat([scaled, _single(particle.places)], axis=1)


def _light_probability(signal: SignalModel, particle: _Particle) -> Var:
    """(N, 1) float64."""
    logit = perceptron(_particle_context(signal, particle), signal.network.layers)
    return op.sigmoid(op.cast(logit, to=np.float64))


def _draw_sum(model: PhotonSumModel, particle: _Particle, component: Var, place: Var) -> Var:
    """(N, 1) float64 whole numbers of :meth:`zdc_nb.flows.particle_nets.PhotonSum.from_uniform`."""
    network = model.network
    raw = perceptron(_particle_context(model, particle), network.layers)
    logits, centres, raw_scales = op.split(
        op.cast(raw, to=np.float64),
        integers([network.components] * 3),
        outputs_count=3,
        axis=1,
    )
    scales = op.add(op.log(op.add(op.exp(raw_scales), _real(1.0))), _real(LEAST_SCALE))
    least = op.div(op.sub(centres, _real(np.log(network.least))), scales)
    above = op.mul(op.softmax(logits, axis=1), op.sigmoid(least))
    reached = op.cumsum(above, integers(1))
    wanted = op.mul(component, op.reduce_sum(above, integers([1])))
    passed = op.cast(op.less_or_equal(reached, wanted), to=np.int64)
    k = op.min([op.reduce_sum(passed, integers([1])), integers(network.components - 1)])
    centre, scale, edge = (op.gather_elements(x, k, axis=1) for x in (centres, scales, least))
    below = op.sigmoid(op.neg(edge))
    u = op.add(below, op.mul(op.sub(_real(1.0), below), place))
    u = op.min([u, _real(1 - 2.0**-53)])
    logit = op.log(op.div(u, op.sub(_real(1.0), u)))
    logarithm = op.min([op.add(centre, op.mul(scale, logit)), _real(12.0)])
    return op.clip(op.floor(op.exp(logarithm)), _real(network.least), _real(LARGEST_SUM))


def _flow_context(generator: Generator, particle: _Particle, total: Var) -> Var:
    """(N, C + 2) float32 of :meth:`zdc_nb.generator.encoding.ConditionScaler.context`."""
    scaler = generator.surrogate.scaler
    log_total = op.log(op.add(total, _real(1.0)))
    more = [total, log_total, particle.log_energy, particle.side]
    more += [particle.slope_y, particle.slope_x]
    raw = op.concat([particle.features(), *more], axis=1)
    return _single(op.div(op.sub(raw, _real(scaler.mean)), _real(scaler.std)))


def _conditions(
    generator: Generator, params: PreprocessingParams, particle: _Particle, total: Var
) -> Var:
    """(N, C) float32 of :meth:`zdc_nb.generator.encoding.ConditionScaler.__call__`."""
    detector, scaler = generator.detector, generator.surrogate.scaler
    columns = [particle.features(), total]
    if params.conditions == "impact":
        columns += [op.log(op.add(total, _real(1.0))), particle.log_energy]
        across = []
        at_x, at_y = particle.impact()
        for at, side in ((at_x, detector.face[1]), (at_y, detector.face[0])):
            knots = np.linspace(-side / 2, side / 2, params.impact_grid)
            across.append(_bumps(op.clip(at, _real(-4 * side), _real(4 * side)), knots))
        rows, row = op.unsqueeze(across[1], integers([2])), op.unsqueeze(across[0], integers([1]))
        columns.append(op.reshape(op.mul(rows, row), integers([-1, params.impact_grid**2])))
    raw = op.concat(columns, axis=1)
    return _single(op.div(op.sub(raw, _real(scaler.mean)), _real(scaler.std)))


def _bumps(at: Var, knots: NDArray[np.float64]) -> Var:
    """(N, G) Gaussian radial basis functions, as wide as the knots (G,) are apart, at (N, 1)."""
    away = op.div(op.sub(at, _real(knots[None])), _real(knots[1] - knots[0]))
    return op.exp(op.mul(op.mul(away, away), _real(-0.5)))


# --- Images ------------------------------------------------------------------------------------


def pixel_fibres(shape: tuple[int, int], images: Images) -> NDArray[np.int64]:
    """(2, Ny, Nx): the fibre, row * columns + column, that is O2's pixel (x, y) on sides C and A.

    Parameters
    ----------
    shape
        rows and columns of a response.
    images
        how responses lie. ``face``: as :class:`zdc_nb.detector.Detector` says and as the open
        simulation makes them, row 0 at the top and column 0 at the left as seen from the interaction
        point; y points up, and x to the right as seen when looking to side C, to the left when looking to
        side A. Particles are then taken to have x to the right, too, on both sides: on side A vx and px
        change their signs on the way in. ``dump``: rows are O2's x and columns its y, as O2's text files and the published
        data sets list them.

    Examples
    --------
    On side C a face is upside down, on side A its rows are swapped in pairs; here of the first column:

    >>> pixel_fibres((4, 4), "face")[:, :, 0].tolist()
    [[12, 8, 4, 0], [4, 0, 12, 8]]
    """
    fibres = np.arange(shape[0] * shape[1]).reshape(shape)
    if images == "face":
        side_c, side_a = fibres[::-1].T, fibres[::-1, ::-1].T
    elif images == "dump":
        side_c = side_a = fibres
    else:
        raise ExportError(f"images: expected face or dump, got {images!r}")
    if side_a.shape[1] % 4:
        # neighbours of two quadrants would be swapped
        raise ExportError(f"shape: expected rows y in multiples of four, got {side_a.shape[1]}")
    swapped = side_a[::-1, ::-1][:, np.arange(side_a.shape[1]) ^ 1]
    return np.stack([side_c.T, swapped.T])


def as_logarithms(light: Var) -> Var:
    """What O2 turns back into photons, of one more than their numbers."""
    return op.log(op.mul(light, numbers(1 + SURPLUS)))


def _image(light: Var, fibre_boxes: NDArray[np.int64], pz: Var, pixels: NDArray[np.int64]) -> Var:
    """(N, Ny, Nx) of one more than the photons (N, boxes); ``pixels`` are of :func:`pixel_fibres`."""
    side = op.cast(op.greater(op.reshape(pz, integers([-1])), _real(0.0)), to=np.int64)
    boxes = op.gather(integers(fibre_boxes[pixels].reshape(2, -1)), side)
    flat = as_logarithms(op.gather_elements(light, boxes, axis=1))
    return op.reshape(flat, integers([-1, *pixels.shape[1:]]))


# --- The two models ----------------------------------------------------------------------------


def neutron_model(generator: Generator, images: Images) -> onnx.ModelProto:
    """Normal numbers (N, 10) and scaled particles (N, 9) to images (N, Ny, Nx), all float32."""
    latents = generator.surrogate.latents
    pixels = pixel_fibres(generator.detector.shape, images)

    def graph(noise: Var, scaled: Var) -> Var:
        particle = _Particle(generator, scaled, images)
        uniform = draw_uniforms(draw_states(noise), OWN_NUMBERS + latents)
        own, rest = op.split(uniform, integers([OWN_NUMBERS, latents]), outputs_count=2, axis=1)
        is_lit, component, place = op.split(
            op.cast(own, to=np.float64), integers([1, 1, 1]), outputs_count=3, axis=1
        )
        lit = particle.known(generator.domain)
        if generator.signal is not None:
            lit = op.and_(lit, op.less(is_lit, _light_probability(generator.signal, particle)))
        total = _draw_sum(generator.photon_sum, particle, component, place)
        total = op.where(lit, total, _real(0.0))
        light, fibres = _draw_light(generator, particle, total, rest)
        return _image(light, fibres, particle.pz, pixels)

    text = (
        "Ten normal numbers and a particle, scaled, to log((1 + photons) (1 + 2e-6)) of each pixel "
        f"(row y, column x) of the {generator.detector.name}, laid as O2 reads them; trained on "
        f"images as of a {images}."
    )
    return _model(graph, {"noise": NORMALS, "particle": len(FEATURES)}, "pixels", text)


def _draw_light(
    generator: Generator, particle: _Particle, total: Var, uniform: Var
) -> tuple[Var, NDArray[np.int64]]:
    """One more than the photons (N, boxes), and which box is each fibre, (D,)."""
    flow, params = generator.surrogate.flow, generator.surrogate.preprocessing
    if isinstance(flow, SplittingFlow):
        context = _flow_context(generator, particle, total)
        return sample_splitting(flow, context, _single(total), uniform), flow.tree.fibre + 1
    assert isinstance(flow, Student)
    assert params is not None
    x = sample_student(flow, _conditions(generator, params, particle, total), uniform)
    if params.coordinates == "splits":
        light = photons_of_splits(x, total, generator.detector.shape)
    else:
        light = photons_of_fibres(x, total, params)
    return light, np.arange(generator.detector.dim)


def classifier_model(
    generator: Generator, threshold: float, images: Images = "face"
) -> onnx.ModelProto:
    """Scaled particles (N, 9) to (N, 1), 1 or 0, all float32."""

    def graph(scaled: Var) -> Var:
        particle = _Particle(generator, scaled, images)
        likely = particle.known(generator.domain)
        if generator.signal is not None:
            probability = _light_probability(generator.signal, particle)
            likely = op.and_(likely, op.greater(probability, _real(threshold)))
        return op.cast(likely, to=np.float32)

    text = (
        f"A particle, scaled, to 1 where it sends light to the {generator.detector.name} with a "
        f"probability above {threshold:g}, else 0."
    )
    return _model(graph, {"particle": len(FEATURES)}, "signal", text)


def _model(
    graph: Callable[..., Var], inputs: dict[str, int], output: str, text: str
) -> onnx.ModelProto:
    arguments = {
        name: argument(Tensor(np.float32, ("batch", size))) for name, size in inputs.items()
    }
    model = build(arguments, {output: graph(*arguments.values())})
    # all operators are those of this opset, though none came as late as it
    (opset,) = model.opset_import
    opset.version, model.ir_version = OPSET, _IR_VERSION
    model.producer_name, model.doc_string = "zdc_nb", text
    onnx.checker.check_model(model, full_check=True)
    return model
