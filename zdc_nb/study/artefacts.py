"""The artefacts that stages hand to each other, and what each was made with.

They lie below ``study.artifacts``::

    data.root                              the events, simulated or read from files
    trials.npz                             how often each particle was lit and how often dark
    models/<subset>/<model>.safetensors    a trained teacher or student
    history/<subset>/<model>.csv           its loss terms: epoch, step, split, term, value
    evaluation/<subset>/<model>.csv        its metrics: subset, model, metric, run, value
    samples/<subset>/<model>.npz           its first generation of the test split (responses)
    observed/<subset>/<model>.npz          channels, centre and radius of all its generations
    counterpart/<subset>/<model>.npz       the same of the test part that is simulated beside the
                                           study's own, and its first generation (responses)
    generator/<subset>/<model>.safetensors a generator: this flow with the models of the photon sum
                                           and of whether there is light
    checkpoints/<subset>/<model>.*         of a training that is not done yet

where model is ``teacher``, the name of a setup or variant, ``splitting``, ``photon_sum``, ``signal`` or
``baselines``; evaluated with the photon sum drawn, too, it ends in ``+N``, and that of a training of
another seed than 1 in ``-seed2``. Beside each lies ``<name>.json``
with its SHA-256 and its provenance: the parameters that it depends on, the data's identity, and the
checksums of the models that it came from (``data.root`` and checkpoints have theirs inside). The
sidecar is written last: an artefact without it, or whose bytes it does not describe, is not whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zdc_nb.params import DRAWN, Study, Subset, UserError, flow_of_today
from zdc_nb.storage import checksum, write_atomically, write_text
from zdc_nb.study.stages import TABLE, Stage, values_of

__all__ = [
    "COUNTERPART_PARTICLES",
    "LEAST_REPEATS",
    "Artefact",
    "ArtefactError",
    "MissingArtefactError",
    "artefacts_of",
    "differences",
    "is_current",
    "kind_of",
    "trained_models",
]

_SUFFIX = {
    "models": "safetensors",
    "history": "csv",
    "evaluation": "csv",
    "samples": "npz",
    "observed": "npz",
    "counterpart": "npz",
    "generator": "safetensors",
}

COUNTERPART_PARTICLES = 100
"""About so many are simulated for the counterpart of a study's test part."""

LEAST_REPEATS = 10
"""Each as often as the study's own test particles, but so often at least."""

_GENERATOR_FORMAT = 1
"""Raised when generators are kept otherwise, so that those of before are made again."""

_OF_A_TEST_PART = ("evaluation", "samples", "observed", "counterpart")
"""Kinds that are made by generating a test part."""


class ArtefactError(UserError, ValueError):
    """An artefact is damaged, or was made with other parameters or data; the message names it."""


class MissingArtefactError(UserError, FileNotFoundError):
    """An artefact is not there; the message says which and what makes it."""


def trained_models(study: Study) -> tuple[str, ...]:
    """The models that a study trains for each subset."""
    return study.trained_models


def kind_of(model: str) -> str:
    """The kind of stage that makes a model: its own name, or ``student``."""
    model = model.removesuffix(DRAWN)
    alone = ("teacher", "splitting", "photon_sum", "signal", "baselines")
    return model if model in alone else "student"


@dataclass(frozen=True)
class Artefact:
    """One file: ``kind`` is a folder of the top of this module; ``seed`` is of the training."""

    study: Study
    kind: str
    subset: Subset
    model: str
    seed: int = 1

    @property
    def stem(self) -> str:
        """Its name without suffix."""
        return self.model if self.seed == 1 else f"{self.model}-seed{self.seed}"

    @property
    def path(self) -> Path:
        """Where it is, or will be."""
        name = f"{self.stem}.{_SUFFIX[self.kind]}"
        return self.study.artifacts / self.kind / self.subset / name

    @property
    def sidecar(self) -> Path:
        """Where its checksum and provenance are."""
        return self.path.with_name(self.path.name + ".json")

    @property
    def provenance(self) -> dict[str, Any]:
        """All that it depends on now, as JSON has it.

        Raises as :meth:`described` where a model that it comes from is not there.
        """
        kind, flow = kind_of(self.model), self.model.removesuffix(DRAWN)
        setup = flow if kind == "student" else None
        values = values_of(self.study, kind, self.subset, setup, self.seed)
        if kind == "student":
            values["trained_teacher"] = self._checksum_of("teacher")
        if kind != "baselines" and self.kind in _OF_A_TEST_PART:
            needed = {"runs", "classifier_runs", "batch"}
            values["evaluation"] = self.study.evaluation.model_dump(include=needed)
            values["trained_model"] = self._checksum_of(flow)
        if flow != self.model or self.kind == "generator":
            values["trained_photon_sum"] = self._checksum_of("photon_sum")
        if self.kind == "generator":
            values["format"] = _GENERATOR_FORMAT
            values["trained_model"] = self._checksum_of(flow)
            values["trained_signal"] = self.study.signal and self._checksum_of("signal")
        if self.kind == "counterpart":
            values["counterpart"] = [COUNTERPART_PARTICLES, LEAST_REPEATS]
        found: dict[str, Any] = json.loads(json.dumps(values))  # as JSON gives it back: no tuples
        return found

    def _checksum_of(self, model: str) -> str:
        """Of a trained model of the same subset and seed."""
        return str(self.of("models", model).described()["sha256"])

    def of(self, kind: str, model: str | None = None) -> Artefact:
        """Another artefact of the same subset and seed, and of the same model if not told otherwise."""
        return Artefact(self.study, kind, self.subset, model or self.model, self.seed)

    @contextmanager
    def write(self, **facts: float) -> Iterator[Path]:
        """A temporary path that becomes the artefact if the block succeeds; then its sidecar.

        ``facts`` are numbers to be kept there, that nothing depends on.
        """
        provenance = self.provenance
        with write_atomically(self.path) as temporary:
            yield temporary
            # of the bytes that were written, before another process can write the same artefact
            description = {
                "bytes": temporary.stat().st_size,
                "sha256": checksum(temporary),
                "made_with": provenance,
                "facts": facts,
            }
        write_text(json.dumps(description, indent=1), self.sidecar)

    def described(self) -> dict[str, Any]:
        """Its sidecar: ``bytes``, ``sha256`` and ``made_with``.

        Raises
        ------
        MissingArtefactError
            naming the artefact and what makes it.
        ArtefactError
            where the sidecar is missing or cannot be read.
        """
        if not self.path.is_file():
            raise MissingArtefactError(f"{self.path} is missing: {self._how_to_make()}")
        try:
            content = json.loads(self.sidecar.read_text("utf-8"))
            return {key: content[key] for key in ("bytes", "sha256", "made_with")}
        except FileNotFoundError as error:
            raise ArtefactError(
                f"{self.path}: not whole, {self.sidecar.name} with its checksum is missing; "
                "run the study to make it again"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ArtefactError(
                f"{self.sidecar}: expected the checksum of {self.path.name}"
            ) from error

    def fact(self, name: str) -> float | None:
        """A number that was kept with the artefact; None where there is none."""
        content = json.loads(self.sidecar.read_text("utf-8"))
        value = content.get("facts", {}).get(name)
        return None if value is None else float(value)

    def changes(self) -> list[str]:
        """Dotted names of what differs between its provenance and what the study has now.

        Raises as :meth:`described`.
        """
        return list(differences(_today(self.described()["made_with"]), self.provenance))

    def check(self) -> Path:
        """Its path, once it is known to be whole and of this study's parameters and data.

        Raises
        ------
        MissingArtefactError, ArtefactError
            naming it, and what is wrong.
        """
        known, changed = self.described(), self.changes()
        if changed:
            raise ArtefactError(
                f"{self.path}: was made with other parameters or data than this study has now "
                f"({', '.join(changed)}); {self._how_to_make()}"
            )
        if self.path.stat().st_size != known["bytes"] or checksum(self.path) != known["sha256"]:
            raise ArtefactError(
                f"{self.path}: damaged, its bytes are not those of the checksum in "
                f"{self.sidecar.name}; delete it and run the study to make it again"
            )
        return self.path

    def _how_to_make(self) -> str:
        alone = {row.name: row.notebook for row in TABLE.values()}
        if self.kind == "generator":
            notebook, keys = alone["generator"], f"-p subset {self.subset}"
        elif self.model == "baselines":
            notebook, keys = "07_baselines", f"-p subset {self.subset}"
        elif self.kind in _OF_A_TEST_PART:
            notebook = "14_new_particles" if self.kind == "counterpart" else "08_evaluation"
            keys = f"-p subset {self.subset}"
        elif self.model in alone:
            notebook, keys = alone[self.model], f"-p subset {self.subset}"
        else:
            notebook = "03_student_distillation"
            keys = f"-p subset {self.subset} -p setup {self.model}"
        if self.seed != 1 and self.kind in ("models", "history"):
            keys += f" -p seed {self.seed}"
        file = f"params/{self.study.name}.yaml"
        return (
            f"run `make study STUDY={file}`, or this stage alone with `papermill "
            f"notebooks/{notebook}.ipynb out.ipynb -p study {file} {keys}` (or wherever your "
            "study file is)"
        )


def artefacts_of(stage: Stage) -> list[Artefact]:
    """What a stage leaves, but for ``data.root``, which describes itself."""
    subset = stage.subset
    if subset is None or not stage.row.artefacts:
        return []
    if stage.row.artefacts == ("counterpart",) and stage.study.data.file is not None:
        return []  # files cannot be simulated again
    models = {
        "teacher": ("teacher",),
        "student": (str(stage.setup),),
        "splitting": ("splitting",),
        "photon_sum": ("photon_sum",),
        "signal": ("signal",),
        "baselines": ("baselines",),
        "evaluation": trained_models(stage.study),
        "new_particles": trained_models(stage.study),
        "generator": (stage.study.generator_model,),
    }[stage.row.name]
    kinds = stage.row.artefacts
    seeds = (
        (1,)
        if "baselines" in models
        else stage.study.seeds
        if stage.seed is None
        else (stage.seed,)
    )
    if stage.row.name == "generator":
        seeds = stage.study.seeds[:1]
    found = [
        Artefact(stage.study, kind, subset, model, seed)
        for seed in seeds
        for model in models
        for kind in kinds
    ]
    if stage.row.name == "evaluation":
        found += [
            Artefact(stage.study, kind, subset, model, seed)
            for seed in seeds
            for model in stage.study.end_to_end_models
            for kind in ("evaluation", "observed")
        ]
    return found


def is_current(stage: Stage) -> bool:
    """Whether the artefacts of a stage are there, and of what the study has now.

    Bytes are not read for that: a damaged artefact is found by who loads it.
    """
    if "data" in stage.row.artefacts:
        return (stage.study.artifacts / "data.root").is_file()
    try:
        return not any(artefact.changes() for artefact in artefacts_of(stage))
    except UserError:
        return False


def _today(made_with: Any) -> Any:
    """A provenance of before a parameter was renamed or split in two, as it is called today."""
    if not isinstance(made_with, dict) or not isinstance(made_with.get("flow"), dict):
        return made_with
    today = made_with | {"flow": flow_of_today(made_with["flow"])}
    student = today.get("student")
    if isinstance(student, dict):
        start = "teacher" if today["flow"].get("initialise") == "data" else "scratch"
        today["student"] = {"start": start, "channel_unit": "share"} | student
    return today


def differences(theirs: object, mine: object, where: str = "") -> Iterator[str]:
    """Dotted names of my values that are not theirs; what only they have is of no use to me."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for key in sorted(mine):
            yield from differences(theirs.get(key), mine[key], f"{where}.{key}".lstrip("."))
    elif theirs != mine:
        yield where or "all"
