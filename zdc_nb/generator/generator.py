"""From particles to responses: everything that a trained study knows, in one object and one file.

A particle sends light or not (signal), then so many photons (photon sum), which land in the fibres of
the detector (a flow). All randomness of a response is that of :func:`~zdc_nb.generator.random_numbers.uniforms_from_seed` of its own, drawn by its
place in the sequence of particles: a response is the same however many are drawn at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from zdc_nb.data.events import FEATURES, Conditions, Events, from_vertex
from zdc_nb.data.particles import particles_of
from zdc_nb.detector import ZN, Detector
from zdc_nb.generator.particle_models import (
    GROUP,
    PhotonSumModel,
    SignalModel,
    build_particle_model,
    describe_particle_model,
)
from zdc_nb.generator.random_numbers import uniforms_from_seed
from zdc_nb.generator.surrogate import (
    Surrogate,
    build_surrogate,
    describe_surrogate,
    surrogate_tensors,
)
from zdc_nb.params import UserError
from zdc_nb.storage import save_tensors, write_atomically

__all__ = ["OWN_NUMBERS", "Domain", "Generator", "ParticleError"]

_VERSION = 1
"""Of the file; raised when a reader of before would misread it."""

OWN_NUMBERS = 3
"""Random numbers of a response before those of the flow: light or not, and two of its photon sum."""

_HOLE = 0.02
"""Of the largest slope that was learned: where the least is above, nothing near the beam was learned."""

_MARGIN = 0.05
"""Of the range of what was learned, by which a particle may lie beyond it."""


class ParticleError(UserError, ValueError):
    """A particle is none that the generator has learned; the message says what was expected."""


@dataclass(frozen=True)
class Domain:
    """What a generator has learned from.

    Attributes
    ----------
    kinds
        mass (MeV) and charge (e) of the species.
    energy
        least and largest energy, GeV.
    slope
        largest abs(px / pz) or abs(py / pz) of a straight line from the mean vertex.
    least_slope
        the least; 0 where particles along the beam were learned, too.
    sides
        signs of the pz that were learned.
    """

    kinds: tuple[tuple[float, float], ...]
    energy: tuple[float, float]
    slope: float
    least_slope: float = 0.0
    sides: tuple[int, ...] = (-1, 1)

    @classmethod
    def of(
        cls, particles: NDArray[np.float64], vertex: NDArray[np.float64], detector: Detector
    ) -> Domain:
        """Of the particles that were learned from, features (N, 9); ``vertex`` (3,) is their mean."""
        features = from_vertex(particles, vertex, detector)
        energy = features[:, FEATURES.index("energy")]
        kinds = np.unique(features[:, [FEATURES.index("mass"), FEATURES.index("charge")]], axis=0)
        slopes = _slopes(features)
        least = float(slopes.min())
        return cls(
            tuple((float(mass), float(charge)) for mass, charge in kinds),
            (float(energy.min()), float(energy.max())),
            float(slopes.max()),
            # by chance the least slope of particles from all over the face is not quite 0
            least if least > _HOLE * slopes.max() else 0.0,
            tuple(int(sign) for sign in np.unique(np.sign(features[:, FEATURES.index("pz")]))),
        )

    @property
    def energies(self) -> tuple[float, float]:
        """GeV, least and largest energy that is answered: somewhat more than was learned."""
        return self.energy[0] * (1 - _MARGIN), self.energy[1] * (1 + _MARGIN)

    @property
    def largest_slope(self) -> float:
        """The same of the slopes."""
        return self.slope * (1 + _MARGIN)

    @property
    def smallest_slope(self) -> float:
        """The least that is answered, likewise."""
        return self.least_slope * (1 - _MARGIN)

    def known(self, features: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(N,) whether particles, features (N, 9), are of what was learned."""
        known: NDArray[np.bool_] = np.all([good for good, _, _ in self._checks(features)], axis=0)
        return known

    def faults(self, features: NDArray[np.float64]) -> NDArray[np.str_]:
        """(N,) what of particles, features (N, 9), was not learned; an empty text where all was.

        ``species``, ``energy`` or ``direction``, the first of these.
        """
        good = [good for good, _, _ in self._checks(features)]
        return np.select([~one for one in good], ["species", "energy", "direction"], "")

    def check(self, features: NDArray[np.float64], name: str = "particles", start: int = 0) -> None:
        """Raise :class:`ParticleError` for the first particle, features (N, 9), that is not known."""
        for good, expected, found in self._checks(features):
            if not good.all():
                k = int((~good).argmax())
                raise ParticleError(
                    f"{name}: row {start + k} (counted from 0): expected {expected}, found {found(k)}"
                )

    def _checks(
        self, features: NDArray[np.float64]
    ) -> list[tuple[NDArray[np.bool_], str, Callable[[int], str]]]:
        """Which particles are good, what is expected of them, and what one has instead."""
        mass, charge, energy = (
            features[:, FEATURES.index(k)] for k in ("mass", "charge", "energy")
        )
        kinds = np.array(self.kinds)
        near = np.abs(mass[:, None] - kinds[:, 0]) <= 1e-3 * kinds[:, 0] + 0.1
        (low, high), least, most = self.energies, self.smallest_slope, self.largest_slope
        slopes, pz = _slopes(features), features[:, FEATURES.index("pz")]
        range_of = f"within {most:.3g} of 0" if least == 0 else f"from {least:.3g} to {most:.3g}"
        side = "" if len(self.sides) > 1 else f", pz {'above' if self.sides[0] > 0 else 'below'} 0"
        return [
            (
                (near & (charge[:, None] == kinds[:, 1])).any(1),
                "a species that was learned: mass (MeV) and charge (e) of one of "
                + ", ".join(f"({m:.6g}, {c:g})" for m, c in self.kinds),
                lambda k: f"({mass[k]:.6g}, {charge[k]:g})",
            ),
            (
                (energy >= low) & (energy <= high),
                f"an energy from {low:.4g} to {high:.4g} GeV",
                lambda k: f"{energy[k]:.6g}",
            ),
            (
                (slopes >= least) & (slopes <= most) & np.isin(np.sign(pz), self.sides),
                f"px / pz and py / pz {range_of}{side}: a particle that flies forwards",
                lambda k: f"{slopes[k]:.3g}" + (f" and pz {pz[k]:.4g}" if side else ""),
            ),
        ]


def _slopes(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) the larger slope of each particle."""
    px, py, pz = (features[:, FEATURES.index(name)] for name in ("px", "py", "pz"))
    return np.maximum(np.abs(px), np.abs(py)) / np.maximum(np.abs(pz), 1e-6)


@dataclass(frozen=True)
class Generator:
    """Responses of a detector to particles.

    Attributes
    ----------
    surrogate
        the flow: a teacher, a student or a splitting flow.
    photon_sum, signal
        what the particle alone tells; without ``signal`` every particle sends light.
    domain
        what was learned from.
    detector
        what responds.

    Examples
    --------
    .. code-block:: python

        generator = zdc_nb.Generator.load("generator.safetensors")
        particles = pandas.read_csv("particles.csv")  # energy, vx, ..., mass, charge
        responses = generator.sample(particles, seed=1)  # (N, rows, columns) photons
    """

    surrogate: Surrogate
    photon_sum: PhotonSumModel
    signal: SignalModel | None
    domain: Domain
    detector: Detector = ZN

    # --- sampling ---

    @property
    def latents(self) -> int:
        """Random numbers that the flow needs for a response."""
        return self.surrogate.latents

    @property
    def vertex(self) -> NDArray[np.float64]:
        """(3,) m, the mean vertex of what the flow has learned from."""
        return self.surrogate.scaler.vertex(self.detector)

    def sample(
        self,
        particles: pd.DataFrame | NDArray[Any] | Events,
        seed: int,
        batch: int = 256,
        progress: bool = False,
    ) -> NDArray[np.uint16]:
        """(N, R, K) photons, one response for each of N particles.

        Parameters
        ----------
        particles
            a frame or a structured array with the columns of :data:`zdc_nb.data.events.FEATURES`
            (GeV, m, MeV, e), or events, whose particles are taken.
        seed
            any non-negative integer. The same seed and particles give the same responses on a
            machine, whatever ``batch`` is: of a splitting flow on a CPU exactly, else but for rounding.
        batch
            responses that are drawn at once.
        progress
            show a bar after ten seconds.

        Raises
        ------
        EventFileError, ParticleError
            naming column or row of a particle and what was expected.
        DivergenceError
            where a flow that was not trained to the end draws what is not finite.
        """
        events = particles
        if not isinstance(events, Events):
            events = particles_of(events, self.detector)
        parts = [*self.sample_parts([events], seed, batch, len(events) if progress else None)]
        empty = np.empty((0, *self.detector.shape), np.uint16)
        return np.concatenate([empty, *(responses for _, responses in parts)])

    def sample_parts(
        self,
        parts: Iterable[Events],
        seed: int,
        batch: int = 256,
        total: int | None = None,
        name: str = "particles",
    ) -> Iterator[tuple[Events, NDArray[np.uint16]]]:
        """The same, particles and responses of a batch at a time, for any number of particles.

        With ``total``, the number of all particles, a bar is shown.
        """
        # whole groups, so that a product has the same size wherever a batch ends
        batch = -(-batch // GROUP) * GROUP
        start = 0
        with tqdm(
            total=total,
            desc="generate",
            unit=" responses",
            file=sys.stdout,
            disable=total is None,
            delay=10,
        ) as bar:
            for events in _in_batches(parts, batch):
                self.domain.check(self._moved(events.features), name, start)
                uniform = uniforms_from_seed(seed, start, len(events), OWN_NUMBERS + self.latents)
                yield events, self.from_uniform(events.features, uniform)
                start += len(events)
                bar.update(len(events))

    def _moved(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        return from_vertex(features, self.vertex, self.detector)

    def faults(self, features: NDArray[np.float64]) -> NDArray[np.str_]:
        """(N,) why particles, features (N, 9), are refused, as :meth:`Domain.faults`."""
        return self.domain.faults(self._moved(features))

    def photon_sums(
        self, features: NDArray[np.float64], uniform: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """(N,) photons of particles, features (N, 9), from random numbers (N, 3); 0 without light."""
        moved = self._moved(features)
        photon_sum = self.photon_sum.distribution(moved, self.detector).from_uniform(
            torch.from_numpy(uniform[:, 1]), torch.from_numpy(uniform[:, 2])
        )
        sums: NDArray[np.int64] = photon_sum.numpy()
        if self.signal is not None:
            sums[uniform[:, 0] >= self.signal.probability(moved, self.detector)] = 0
        return sums

    def from_uniform(
        self, features: NDArray[np.float64], uniform: NDArray[np.float64]
    ) -> NDArray[np.uint16]:
        """(N, R, K) photons of particles, features (N, 9), from random numbers (N, 3 + L).

        The first says whether there is light, two more give the photon sum, and L the flow's latents,
        see :attr:`latents`. Particles are not checked.
        """
        sums = self.photon_sums(features, uniform[:, :OWN_NUMBERS])
        lit = np.flatnonzero(sums)
        responses = np.zeros((len(features), *self.detector.shape), np.uint16)
        if len(lit):
            # all of a batch, so that those that send no light do not move others between groups
            asked = Conditions(self._moved(features), np.maximum(sums, 1), self.detector)
            drawn = self.surrogate.from_uniform(asked, uniform[:, OWN_NUMBERS:])
            responses[lit] = drawn[lit]
        return responses

    # --- the file ---

    def save(self, path: Path) -> None:
        """Write it atomically as one file (safetensors): weights, and a description as JSON."""
        with write_atomically(path) as temporary:
            self.write(temporary)

    def write(self, path: Path) -> None:
        """The same, not atomically."""
        models: dict[str, PhotonSumModel | SignalModel] = {"photon_sum": self.photon_sum}
        if self.signal is not None:
            models["signal"] = self.signal
        tensors = {f"surrogate.{k}": v for k, v in surrogate_tensors(self.surrogate).items()}
        description: dict[str, Any] = {
            "version": _VERSION,
            "detector": _described(self.detector),
            "domain": asdict(self.domain),
            "surrogate": describe_surrogate(self.surrogate),
        }
        for name, model in models.items():
            description[name] = describe_particle_model(model)
            tensors |= {f"{name}.{k}": v for k, v in model.tensors.items()}
        tensors["detector.masks"] = torch.from_numpy(self.detector.masks.astype(np.uint8))
        save_tensors(tensors, {"generator": json.dumps(description)}, path)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Self:
        """Read a file of :meth:`save`.

        Raises
        ------
        ParticleError
            naming a file that is none, or that a newer version has written.
        """
        try:
            with safe_open(path, framework="pt") as file:
                known = json.loads((file.metadata() or {})["generator"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if known["version"] > _VERSION:
                raise ValueError(f"version {known['version']}, this program reads {_VERSION}")

            def of(part: str) -> dict[str, torch.Tensor]:
                return {
                    name.removeprefix(f"{part}."): value
                    for name, value in tensors.items()
                    if name.startswith(f"{part}.")
                }

            surrogate = build_surrogate(known["surrogate"], of("surrogate"), torch.device("cpu"))
            detector = _detector_of(known["detector"], tensors["detector.masks"].numpy())
            photon_sum = build_particle_model(known["photon_sum"], of("photon_sum"))
            signal = None
            if "signal" in known:
                signal = build_particle_model(known["signal"], of("signal"))
            domain = Domain(
                tuple((mass, charge) for mass, charge in known["domain"]["kinds"]),
                (known["domain"]["energy"][0], known["domain"]["energy"][1]),
                known["domain"]["slope"],
                known["domain"].get("least_slope", 0.0),
                tuple(known["domain"].get("sides", (-1, 1))),
            )
        except FileNotFoundError:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ParticleError(f"{path}: not a generator of this project ({error})") from error
        if not isinstance(photon_sum, PhotonSumModel) or isinstance(signal, PhotonSumModel):
            raise ParticleError(f"{path}: not a generator of this project (its networks)")
        # outside of what is told of the file: a device may not be there
        surrogate = replace(surrogate, flow=surrogate.flow.to(device))
        return cls(surrogate, photon_sum, signal, domain, detector)


def _described(detector: Detector) -> dict[str, Any]:
    """All of a detector but its masks, as JSON has it."""
    names = ("name", "shape", "pitch", "distance", "offset", "channels")
    more = ("deflection", "conditions", "species", "title", "sides")
    return {name: getattr(detector, name) for name in (*names, *more)}


def _detector_of(known: dict[str, Any], masks: NDArray[np.uint8]) -> Detector:
    shape = (int(known["shape"][0]), int(known["shape"][1]))
    rest: dict[str, Any] = {"channels": tuple(known["channels"]), "masks": masks.astype(np.bool_)}
    if "crossing_offset" in known:  # of files that were written when there was the ZN alone
        known = {key: value for key, value in known.items() if key != "crossing_offset"} | {
            "offset": (0.0, known["crossing_offset"])
        }
    else:
        rest["conditions"] = tuple((name, scale) for name, scale in known["conditions"])
        rest["species"] = tuple(known["species"])
    if "sides" in known:
        rest["sides"] = tuple(known["sides"])
    rest["offset"] = (float(known["offset"][0]), float(known["offset"][1]))
    return Detector(**known | {"shape": shape} | rest)


def _in_batches(parts: Iterable[Events], batch: int) -> Iterator[Events]:
    """The particles of all parts, ``batch`` at a time, the last fewer."""
    rest: Events | None = None
    for part in parts:
        together = Events.join([rest, part]) if rest is not None and len(rest) else part
        whole = len(together) // batch * batch
        for start in range(0, whole, batch):
            yield together[start : start + batch]
        rest = together[whole:]
    if rest is not None and len(rest):
        yield rest
