"""Asking a finished study about one particle: what is simulated, and what its models generate.

.. code-block:: python

    explorer = open_explorer(study=None)  # the best study that is finished
    explorer.particle = explorer.aim("Λ", energy=2500.0, x=5.0, y=-5.0)
    explorer.model = "splitting, all species"
    view = explorer.view()  # responses of both, and what is measured of them
    show_responses(explorer)  # in a notebook: a picture, and controls where there is JupyterLab

Nothing of a study is changed by looking at it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zdc_nb.data.events import FEATURES, Conditions, Events, Split, from_vertex, impact_point
from zdc_nb.data.simulation import (
    DECAYS,
    Particles,
    aim,
    decay_length,
    model_of,
    respond,
)
from zdc_nb.data.symbols import symbol
from zdc_nb.detector import Detector
from zdc_nb.evaluation import dataset_sizes, meaning_warning
from zdc_nb.evaluation.photon_sum import draw_sums
from zdc_nb.generator.generator import Domain, ParticleError
from zdc_nb.generator.particle_models import PhotonSumModel, SignalModel, load_particle_model
from zdc_nb.generator.surrogate import Surrogate, load_surrogate
from zdc_nb.hardware import choose_device, time_call
from zdc_nb.params import (
    PDG,
    ParameterError,
    Study,
    Subset,
    UserError,
    derive_seed,
    load_study,
    project_root,
)
from zdc_nb.study.artefacts import Artefact, MissingArtefactError, kind_of
from zdc_nb.study.dataset import kept_events, study_detector, study_split
from zdc_nb.study.explorer.figures import Batch, LevelsPicture, ResponsesPicture
from zdc_nb.study.session import check_parameters
from zdc_nb.study.status import is_complete

__all__ = [
    "LEAST_ENERGY",
    "SUMS",
    "Chosen",
    "Explorer",
    "View",
    "choose_study",
    "finished_studies",
    "open_explorer",
    "run_smoke",
]

SUMS = ("drawn", "simulated", "by hand")
"""Where the photon sums of generated responses come from: the study's photon-sum model, the simulated
responses beside them, or a number."""

LEAST_ENERGY = 10.0
"""GeV, of an aimed particle: below, hardly any sends as much light as is kept."""

RESPONSES = {"splitting": 64, "teacher": 16, "student": 32}
"""Responses of a batch: as many as follow a slider at once."""

_MOST_TRIES = 8
"""Times as many simulations as are shown, of a particle that seldom sends light."""

_BEST = ("paper", "full_size", "small")
"""Studies of this project, the best first; others come after them, and the smoke study last."""


# --- Which study --------------------------------------------------------------------------------


def finished_studies() -> list[Study]:
    """The studies of ``params`` that are done, the best first.

    Best is the largest of this project's, then others in the order of their names; last is smoke.
    """
    found = []
    for path in sorted((project_root() / "params").glob("*.yaml")):
        try:
            study = load_study(path)
        except ParameterError:  # no study, but what compares several
            continue
        if is_complete(study):
            found.append(study)

    def place(study: Study) -> tuple[int, str]:
        known = _BEST.index(study.name) if study.name in _BEST else len(_BEST)
        return (known if study.name != "smoke" else len(_BEST) + 1), study.name

    return sorted(found, key=place)


def choose_study(study: str | Path | None) -> Study:
    """The study of a file; of None, the best that is finished, or else smoke, which is run first."""
    if study is not None:
        return load_study(study)
    found = finished_studies()
    if not found:
        print("No study is finished yet: running params/smoke.yaml, which takes some minutes.")
        run_smoke()
        return load_study("params/smoke.yaml")
    others = ", ".join(f"params/{other.name}.yaml" for other in found[1:])
    if others:
        print(f"Finished, too (set `study` to choose one): {others}")
    return found[0]


def run_smoke() -> None:
    """Run the smoke study as ``make smoke`` does, and print how far it is.

    Raises :class:`~zdc_nb.params.UserError` where it fails.
    """
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--quiet", "host", "reason"]
    command += ["--config", "study=params/smoke.yaml"]
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=project_root(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            lines.append(line.rstrip())
            if re.match(r"Job \d+: |\d+ of \d+ steps ", line):
                print(line.rstrip(), flush=True)
    if run.returncode:
        ending = "\n".join(filter(None, lines[-8:]))
        raise UserError(f"params/smoke.yaml: the study failed; `make smoke` goes on\n{ending}")


def open_explorer(
    study: str | Path | None = None,
    model: str | None = None,
    species: str | int | None = None,
    energy: float | None = None,
    x: float | None = None,
    y: float | None = None,
) -> Explorer:
    """The explorer of a study, and a line that says which.

    Parameters
    ----------
    study
        its file; None: the best that is finished. Where none is, the smoke study is run.
    model
        a name of :attr:`Explorer.models`; None: the splitting flow, where there is one.
    species, energy, x, y
        of the particle at the start, see :meth:`Explorer.aim`; None: the first species of which
        something was learned, the median energy of its test responses, and a point near the middle of
        the face.

    Raises
    ------
    ParameterError, MissingArtefactError
        naming what the study does not have, and the command that makes it.
    """
    check_parameters({"study", "model", "species", "energy", "x", "y"})
    explorer = Explorer(choose_study(study))
    if model is not None:
        explorer.model = explorer.check_model(model)
    if explorer.species:  # nothing else can be aimed
        species = explorer.species[0] if species is None else species
        energy = explorer.usual_energy(species) if energy is None else energy
        usual = explorer.usual_point
        point = (usual[0] if x is None else x, usual[1] if y is None else y)
        explorer.particle = explorer.aim(species, energy, *point)
    name = explorer.study.name
    print(
        f"Study {name}: {len(explorer.models)} trained models, {len(explorer.rows)} test responses"
    )
    if explorer.left_out:
        more = f" and {len(explorer.left_out) - 1} more" if len(explorer.left_out) > 1 else ""
        print(f"Left out: {explorer.left_out[0]}{more}")
    if explorer.warning:
        print(explorer.warning)
    return explorer


# --- What is shown ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Chosen:
    """A particle that was chosen: PDG code, features (9,), the detector that it flies to and, of a
    test response, its row."""

    pdg: int
    features: NDArray[np.float64]
    detector: Detector
    row: int | None = None

    @property
    def energy(self) -> float:
        """GeV."""
        return float(self.features[FEATURES.index("energy")])

    @property
    def impact(self) -> NDArray[np.float64]:
        """(2,) m from the centre of the face, where a straight flight ends."""
        point: NDArray[np.float64] = impact_point(self.features[None], self.detector)[0]
        return point

    @property
    def aimed(self) -> NDArray[np.float64]:
        """(2,) the same as row and column, in fibres."""
        x, y = self.impact / self.detector.pitch
        row, column = self.detector.face_centre
        return np.array([row - y, column + x])


@dataclass(frozen=True, eq=False)
class View:
    """What there is to see of a particle.

    Attributes
    ----------
    particle, model
        what was chosen.
    simulated, generated
        responses with light; none generated where the model was not asked.
    lines
        what to know of it, in up to three lines; the first is a title.
    refused
        why the model was not asked; empty where it was.
    """

    particle: Chosen
    model: str
    simulated: Batch
    generated: Batch
    lines: tuple[str, ...]
    refused: str


class Explorer:
    """A study that is asked about one particle at a time.

    Attributes
    ----------
    study
        whose models are asked.
    models
        artefacts of all trained flows that are there and current, by a name: ``bs, all species``.
    left_out
        why others are not, a sentence each.
    particle, model, sums, photons, seed
        what is chosen now; ``photons`` counts where ``sums`` is ``by hand``.
    follower
        is called with each view that the controls show, if there is one.

    Raises
    ------
    MissingArtefactError
        where the study has no trained flow, naming the first that is missing.
    EventFileError
        where its data are missing.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.models: dict[str, Artefact] = {}
        self.left_out: list[str] = []
        for found in self._trainings():
            try:
                changed = found.changes()
            except UserError as error:
                self.left_out.append(str(error))
                continue
            if changed:
                self.left_out.append(f"{found.path}: made with other {', '.join(changed)}")
            else:
                self.models[_name_of(found)] = found
        if not self.models:
            make = f"run `make study STUDY=params/{study.name}.yaml`"
            why = self.left_out[0].partition(": ")[0]
            raise MissingArtefactError(
                f"study {study.name!r} has no trained model yet ({why} is missing or of other "
                f"parameters): {make}"
            )
        self._surrogates: dict[str, Surrogate] = {}
        self._splits: dict[Subset, Split] = {}
        self._domains: dict[str, Domain] = {}
        self._particle_models: dict[tuple[str, str], PhotonSumModel | SignalModel | None] = {}
        self.model = next(iter(self.models))
        self.seed = 1
        self.photons = 300
        self.follower: Callable[[View], None] | None = None
        self.sums = "drawn" if self.photon_sum_model is not None else "simulated"
        known = self.species_of(self.model)
        if known:
            self.particle = self.aim(known[0], self.usual_energy(known[0]), *self.usual_point)
        else:
            self.particle = self.row(0)

    def _trainings(self) -> Iterator[Artefact]:
        """Of all flows, the largest data set first, the splitting flow before the others."""
        names = sorted(self.study.trained_models, key=lambda name: name != "splitting")
        for subset in sorted(self.study.subsets, key=lambda subset: subset != "all"):
            for name in names:
                for seed in self.study.seeds:
                    yield Artefact(self.study, "models", subset, name, seed)

    def check_model(self, name: str) -> str:
        """Return a name of :attr:`models`; raise :class:`ParameterError` for another."""
        if name in self.models:
            return name
        # what it is called alone means that of the largest data set
        for known, found in self.models.items():
            if found.stem == name:
                return known
        raise ParameterError(
            f"model: {name!r} is not in study {self.study.name!r}; expected one of {[*self.models]}"
        )

    # --- particles ---

    @cached_property
    def detector(self) -> Detector:
        """What responds."""
        return study_detector(self.study)

    @cached_property
    def symbols(self) -> dict[int, str]:
        """The species of the simulation by their PDG codes, as they stand in a list to choose from."""
        simulation = self.detector.simulation
        species = [] if simulation is None else simulation.primaries.species
        return {kind.pdg: symbol(kind.pdg) for kind in species}

    @property
    def largest_energy(self) -> float:
        """GeV, of an aimed particle."""
        return model_of(self.detector).primaries.beam_energy

    @cached_property
    def events(self) -> Events:
        """All events of the study, as they are kept."""
        return kept_events(self.study)

    def split(self, subset: Subset) -> Split:
        """The parts of a data set."""
        if subset not in self._splits:
            self._splits[subset] = study_split(self.study, subset, self.events)
        return self._splits[subset]

    @property
    def rows(self) -> Events:
        """The test part that a row is chosen from: of the largest data set that models know."""
        return self.split(next(iter(self.models.values())).subset).test

    @cached_property
    def species(self) -> list[str]:
        """Symbols of the species that some model has learned from and that can be simulated."""
        return self._symbols({found.subset for found in self.models.values()})

    def species_of(self, model: str) -> list[str]:
        """The same of one model."""
        return self._symbols({self.models[model].subset})

    def _symbols(self, subsets: set[Subset]) -> list[str]:
        known = set().union(*({*self.split(s).train.pdg.tolist()} for s in subsets))
        order = [*self.detector.codes.values(), *self.symbols]
        return [self.symbols[pdg] for pdg in dict.fromkeys(order) if pdg in known & {*self.symbols}]

    def aim(self, species: str | int, energy: float, x: float, y: float) -> Chosen:
        """A particle that would hit the face at a point, if it flew straight on all the way.

        Parameters
        ----------
        species
            a symbol of :attr:`species`, a name such as ``lambda``, or a PDG code.
        energy
            GeV.
        x, y
            mm from the centre of the face, to the right and up.

        Raises
        ------
        ParameterError
            naming the value and what was expected.
        """
        pdg = self.code_of(species)
        least, most = LEAST_ENERGY, self.largest_energy
        if not least <= energy <= most:
            raise ParameterError(f"energy: expected {least:g} to {most:g} GeV, got {energy:g}")
        height, width = (1e3 * side for side in self.detector.face)
        for name, value, half in (("x", x, width / 2), ("y", y, height / 2)):
            if not abs(value) <= half:
                raise ParameterError(
                    f"{name}: expected {-half:.4g} to {half:.4g} mm, a point of the face, got {value:g}"
                )
        found = aim(pdg, energy, (x / 1e3, y / 1e3), self.detector)
        return Chosen(pdg, found.features[0], self.detector)

    @property
    def usual_point(self) -> tuple[float, float]:
        """mm, x and y of a point near the middle of the face, a seventh of the way to its edges."""
        height, width = (round(1e3 * side / 7) / 2 for side in self.detector.face)
        return width, height

    def usual_energy(self, species: str | int) -> float:
        """GeV, two digits: the median of test responses to a species, or of all, where there are none."""
        mine = self.rows.pdg == self.code_of(species)
        energies = self.rows.features[mine if mine.any() else ~mine, FEATURES.index("energy")]
        usual = float(f"{np.median(energies):.2g}")
        return min(max(usual, LEAST_ENERGY), self.largest_energy)

    def code_of(self, species: str | int) -> int:
        """The PDG code of a symbol, of a data set's name, or of a code; ``ParameterError`` if none."""
        by_name: dict[str, int] = {sign: pdg for pdg, sign in self.symbols.items()}
        by_name |= {name: pdg for name, pdg in PDG.items() if pdg in self.symbols}
        by_name |= {str(pdg): pdg for pdg in self.symbols}
        found = by_name.get(str(species))
        if found is None:
            raise ParameterError(f"species: expected one of {', '.join(by_name)}, got {species!r}")
        return found

    def row(self, number: int) -> Chosen:
        """The particle of a test response, counted from 0; ``ParameterError`` for none."""
        if not 0 <= number < len(self.rows):
            raise ParameterError(f"row: expected 0 to {len(self.rows) - 1}, got {number}")
        pdg = int(self.rows.pdg[number])
        return Chosen(pdg, self.rows.features[number], self.detector, number)

    # --- simulated ---

    def simulate(self, number: int) -> tuple[NDArray[np.uint16], int]:
        """Up to ``number`` responses with light to the particle, and how many were simulated for them.

        Light is what the study keeps. The same particle and seed give the same responses. Particles
        that are seldom seen are given up after eight times as many.
        """
        rng = np.random.default_rng(derive_seed(self.study.seed, "explorer", self.seed))
        particle = Particles(np.array([self.particle.pdg], np.int32), self.particle.features[None])
        kept, tried = np.empty((0, *self.detector.shape), np.uint16), 0
        while len(kept) < number and tried < _MOST_TRIES * number:
            responses = respond(rng, particle, number, self.detector)
            lit = np.flatnonzero(responses.sum(axis=(1, 2)) >= self.study.data.min_photons)
            lit = lit[: number - len(kept)]
            # of a chunk that is not needed whole, what comes after the last one was not looked at
            full = len(kept) + len(lit) == number
            tried += int(lit[-1]) + 1 if full else number
            kept = np.concatenate([kept, responses[lit]])
        return kept, tried

    def recorded(self, number: int) -> NDArray[np.uint16]:
        """Up to ``number`` test responses of the study's own data to the particle of a row."""
        label = self.rows.particle[self.particle.row]
        test = self.rows[self.rows.particle == label]
        return test[:number].responses

    # --- generated ---

    @property
    def subset(self) -> Subset:
        """The data set that the chosen model learned from."""
        return self.models[self.model].subset

    @property
    def surrogate(self) -> Surrogate:
        """The chosen model."""
        return self._surrogate(self.model)

    def _surrogate(self, model: str) -> Surrogate:
        if model not in self._surrogates:
            device = choose_device(self.study.device)
            self._surrogates[model] = load_surrogate(self.models[model].check(), device)
        return self._surrogates[model]

    @property
    def photon_sum_model(self) -> PhotonSumModel | None:
        """That of the chosen model's data set; None where the study has none."""
        model = self._particle_model("photon_sum")
        assert model is None or isinstance(model, PhotonSumModel)
        return model

    @property
    def signal_model(self) -> SignalModel | None:
        """The same, of whether there is light."""
        model = self._particle_model("signal")
        assert model is None or isinstance(model, SignalModel)
        return model

    def _particle_model(self, name: str) -> PhotonSumModel | SignalModel | None:
        key = (self.subset, name)
        if key not in self._particle_models:
            found = Artefact(self.study, "models", self.subset, name, self.study.seeds[0])
            model = None
            if getattr(self.study, name) is not None:
                try:
                    model = load_particle_model(found.check())
                except UserError as error:
                    self.left_out.append(str(error))
            self._particle_models[key] = model
        return self._particle_models[key]

    @property
    def splitting(self) -> str | None:
        """The splitting flow of the chosen model's data set, or another; None where there is none."""
        if kind_of(self.models[self.model].model) == "splitting":
            return self.model
        found = [name for name, one in self.models.items() if kind_of(one.model) == "splitting"]
        mine = [name for name in found if self.models[name].subset == self.subset]
        return next(iter([*mine, *found]), None)

    def _asked(self, model: str) -> NDArray[np.float64]:
        """(1, 9) the particle as a model is told of it: from the vertex that it knows."""
        vertex = self._surrogate(model).scaler.vertex(self.detector)
        return from_vertex(self.particle.features[None], vertex, self.detector)

    def refusal(self, model: str) -> str:
        """Why a model is not asked about the particle; empty where it is."""
        subset = self.models[model].subset
        train = self.split(subset).train
        if self.particle.pdg not in train.pdg:
            return f"It has not learned from {symbol(self.particle.pdg)}, so it is not asked."
        if model not in self._domains:
            vertex = self._surrogate(model).scaler.vertex(self.detector)
            self._domains[model] = Domain.of(train.features, vertex, self.detector)
        try:
            self._domains[model].check(self._asked(model))
        except ParticleError as error:
            return f"It is not asked: {str(error).partition('counted from 0): ')[2]}."
        return ""

    def photon_sums(self, number: int, simulated: NDArray[np.int64]) -> NDArray[np.int64]:
        """(``number``,) photons that generated responses shall have, as :attr:`sums` says.

        ``simulated`` are the photon sums of simulated responses; where these are asked for and there
        are none, so are none here. Raises :class:`ParameterError`.
        """
        if self.sums == "by hand":
            least, most = 1, int(np.iinfo(np.uint16).max)
            if not least <= self.photons <= most:
                raise ParameterError(f"photons: expected {least} to {most}, got {self.photons}")
            return np.full(number, self.photons)
        if self.sums == "simulated":
            return np.resize(simulated, number if len(simulated) else 0)
        model = self.photon_sum_model
        if model is None:
            raise ParameterError(
                f"sums: study {self.study.name!r} has no photon-sum model of {self.subset!r}: "
                "expected 'simulated' or 'by hand'"
            )
        distribution = model.distribution(
            np.repeat(self._asked(self.model), number, 0), self.detector
        )
        sums: NDArray[np.int64] = draw_sums(
            distribution, derive_seed(self.study.seed, "sums", self.seed)
        )[0]
        return sums

    def generate(self, model: str, sums: NDArray[np.int64]) -> NDArray[np.uint16]:
        """(N, R, K) responses of a model to the particle, of photon sums (N,).

        The same seed gives the same random numbers to every particle.
        """
        if len(sums) == 0:
            return np.empty((0, *self.detector.shape), np.uint16)
        asked = Conditions(np.repeat(self._asked(model), len(sums), 0), sums, self.detector)
        return self._surrogate(model).generate(asked, self.seed, len(sums))

    @property
    def responses(self) -> int:
        """Of a batch of the chosen model."""
        return RESPONSES[kind_of(self.models[self.model].model)]

    # --- shown ---

    @cached_property
    def warning(self) -> str:
        """That the study's numbers mean nothing, and why; empty where they do."""
        subset = next(iter(self.models.values())).subset
        sizes = dataset_sizes(subset, self.split(subset))
        table = pd.DataFrame(columns=["subset", "model", "metric", "mean"])
        found = meaning_warning(sizes, table)
        return found.replace("**", "").removeprefix("- ").partition("\n")[0]

    def view(self) -> View:
        """What is simulated and generated of the particle now."""
        number = self.responses
        particle = self.particle
        if self.study.data.file is not None and particle.row is not None:
            shown = self.recorded(number)
            of_study, light = "recorded", f"{len(shown)} recorded responses"
        elif particle.pdg in self.symbols:
            shown, tried = self.simulate(number)
            of_study, light = "simulated", self._light(len(shown), tried)
        else:
            shown, of_study = np.empty((0, *self.detector.shape), np.uint16), "simulated"
            light = "the open simulation does not have this species"
        simulated = Batch.of(of_study, shown, self.detector)
        refused = self.refusal(self.model)
        drawn = np.empty((0, *self.detector.shape), np.uint16)
        if not refused:
            sums = self.photon_sums(number, simulated.photon_sum)
            if len(sums) == 0:
                refused = "No simulated response has light to take the photon sum from."
            drawn = self.generate(self.model, sums)
        name = _short(self.models[self.model])
        generated = Batch.of(name, drawn, self.detector)
        lines = (self._title(particle), f"{fate(particle)} {light}", self._how(refused))
        return View(particle, self.model, simulated, generated, lines, refused)

    def _title(self, particle: Chosen) -> str:
        x, y = 1e3 * particle.impact
        where = f"aimed at x = {x:.1f} mm, y = {y:.1f} mm"
        of = "" if particle.row is None else f" (test response {particle.row})"
        vain = ", whose numbers mean nothing" if self.warning else ""
        return (
            f"{symbol(particle.pdg)} of {particle.energy:.0f} GeV, {where}{of}"
            f"; study {self.study.name}{vain}"
        )

    def _light(self, shown: int, tried: int) -> str:
        least = self.study.data.min_photons
        said = f"{shown} of {tried} simulations have {least} photons or more"
        model = self.signal_model
        if model is not None and not self.refusal(self.model):
            chance = float(model.probability(self._asked(self.model), self.detector)[0])
            said += f" ({shown / tried:.0%}; the signal model says {chance:.0%})"
        return said + "."

    def _how(self, refused: str) -> str:
        name = f"Generated by {_said(self.models[self.model])}. "
        if refused:
            return name + refused
        how = {
            "drawn": "Photon sums are drawn by the study's photon-sum model.",
            "simulated": "Photon sums are those of the simulated responses.",
            "by hand": f"Photon sums are set by hand: {self.photons}.",
        }
        return name + how[self.sums]

    @cached_property
    def _pictures(self) -> dict[int, ResponsesPicture]:
        return {}

    @cached_property
    def _level_pictures(self) -> dict[int, LevelsPicture]:
        return {}

    def picture(self, dpi: int = 72) -> bytes:
        """PNG of :meth:`view`."""
        return self.draw(self.view(), dpi)

    def draw(self, view: View, dpi: int = 72) -> bytes:
        """PNG of a view."""
        if dpi not in self._pictures:
            self._pictures[dpi] = ResponsesPicture(self.detector, self.study.data.min_photons, dpi)
        batches = view.simulated, view.generated
        return self._pictures[dpi].draw(batches, view.particle.aimed, view.lines)

    def split_response(self, view: View | None = None) -> NDArray[np.uint16]:
        """(R, K) one response of a splitting flow to the particle, to be looked at level by level.

        The first generated one of ``view``, if that is of the splitting flow, else of a view of its
        own. Raises :class:`~zdc_nb.params.UserError` where the study has no splitting flow, or that
        is not asked.
        """
        name = self.splitting
        if name is None:
            file = f"params/{self.study.name}.yaml"
            raise UserError(
                f"study {self.study.name!r} has no splitting flow: expected a section `splitting` "
                f"in {file}, and `make study STUDY={file}`"
            )
        if view is None or view.model != name:
            before = self.model
            try:
                self.model = name
                view = self.view()
            finally:
                self.model = before
        if view.refused:
            raise UserError(f"{name}: {view.refused}")
        first: NDArray[np.uint16] = view.generated.responses[0]
        return first

    def levels_picture(self, response: NDArray[np.uint16], level: int, dpi: int = 72) -> bytes:
        """PNG of a response (R, K) after so many cuts."""
        if dpi not in self._level_pictures:
            self._level_pictures[dpi] = LevelsPicture(self.detector, dpi)
        heading = (
            f"{self.levels_text(response)}; red: the next cuts, grey: the boxes that they leave"
        )
        return self._level_pictures[dpi].draw(response, level, heading)

    def levels_text(self, response: NDArray[np.uint16]) -> str:
        """What a picture of levels shows, in a sentence without its end."""
        name = "" if self.splitting is None else _said(self.models[self.splitting])
        particle = f"{symbol(self.particle.pdg)} of {self.particle.energy:.0f} GeV"
        return f"{name}: {particle}, {int(response.sum())} photons"

    def times(self, runs: int = 9) -> pd.DataFrame:
        """How long a view takes from the move of a slider to the picture, by kind of model: medians.

        Columns model, responses, simulate, generate and draw (ms, of ``runs`` energies, one after the
        other), and total: generate and draw. Models that have learned no species of the simulation
        are left out.
        """
        kept = self.model, self.particle
        first: dict[str, str] = {}
        for name, found in self.models.items():
            if self.species_of(name):
                first.setdefault(kind_of(found.model), name)
        rows = []
        try:
            for name in first.values():
                self.model = name
                rows.append(self._time(name, runs))
        finally:
            self.model, self.particle = kept
        columns = ["model", "responses", "simulate", "generate", "draw"]
        table = pd.DataFrame(rows, columns=columns)
        return table.assign(total=table["generate"] + table["draw"])

    def _time(self, name: str, runs: int) -> tuple[str, int, float, float, float]:
        device, seconds = choose_device(self.study.device).type, []
        # the first has the still part of the picture to draw
        species = self.species_of(name)[0]
        usual = self.usual_energy(species)
        for energy in np.geomspace(max(usual / 2.5, LEAST_ENERGY), usual, runs + 1):
            self.particle = self.aim(species, energy, *self.usual_point)
            view = self.view()
            sums = view.generated.photon_sum
            calls: list[Callable[[], object]] = [
                partial(self.simulate, self.responses),
                partial(self.generate, name, sums),
                partial(self.draw, view),
            ]
            seconds.append([time_call(call, device) for call in calls])
        simulate, generate, draw = 1e3 * np.median(seconds[1:], axis=0)
        return name, self.responses, float(simulate), float(generate), float(draw)


# --- Words --------------------------------------------------------------------------------------


def fate(particle: Chosen) -> str:
    """What becomes of a particle on its way, in a sentence."""
    charge = particle.features[FEATURES.index("charge")]
    detector = particle.detector
    decays = particle.pdg in DECAYS
    length = decay_length(particle.pdg, particle.energy) if decays else np.inf
    dipole = None if detector.simulation is None else detector.simulation.dipole
    bent = bool(charge) and dipole is not None
    swept = bent and detector.deflection is None
    end = dipole[0] if swept and dipole is not None else detector.distance
    left = float(np.exp(-end / length))
    magnet = f"the dipole ({dipole[0]:g} to {dipole[1]:g} m)" if dipole is not None else ""
    if swept and decays:
        return f"Charged: {left:.0%} reach {magnet} and are swept away, the others decay before."
    if swept:
        return f"Charged: {magnet} sweeps it away, stray light is left."
    if decays:
        return f"It decays after {length:.3g} m on average: {left:.0%} reach the face as they were aimed."
    if bent:
        return f"Charged: {magnet} bends it, which its aim takes into account."
    return "It flies straight to the face."


def _name_of(found: Artefact) -> str:
    """``bs, all species``; of another training than the first, ``bs-seed2, all species``."""
    return f"{found.stem}, {symbol(found.subset)}"


def _said(found: Artefact) -> str:
    """``bs, trained on n``."""
    return f"{_short(found)}, trained on {symbol(found.subset)}"


def _short(found: Artefact) -> str:
    return {"splitting": "splitting flow"}.get(found.stem, found.stem)
