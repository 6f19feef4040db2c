"""The table of stages: what each is called, runs, needs, depends on and leaves.

A stage is what one notebook does for one data set (and setup). Snakemake's rules, the provenance
of artefacts, the records and the index page are read off :data:`TABLE`, and nowhere else is it said
again. A stage is named after its notebook: ``03_student_distillation-all-bs+ch``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from zdc_nb.params import ParameterError, Study, Subset, project_root
from zdc_nb.storage import checksum

__all__ = ["SECTIONS_BY_SUBSET", "TABLE", "Row", "Stage", "find_stage", "stages_of", "values_of"]

SECTIONS_BY_SUBSET = (
    ("data", "max_responses"),
    ("data", "max_test_responses"),
    ("teacher", "epochs"),
    ("student", "epochs"),
    ("splitting", "epochs"),
    ("photon_sum", "epochs"),
    ("signal", "epochs"),
)
"""Parameters that may be given for each subset: a stage depends on those of its own."""


@dataclass(frozen=True)
class Row:
    """One kind of stage.

    Attributes
    ----------
    name
        of the kind; Snakemake's rules have it.
    title
        what it does, for a line of progress.
    notebook
        that it runs, without suffix.
    keys
        papermill parameters that tell its stages apart: ``subset``, ``setup``, ``seed``, ``model``.
    needs
        kinds whose artefacts it reads.
    depends_on
        parameters that its numbers depend on, beside those of what it needs: a section, or
        ``section.key``.
    shows
        parameters that change what its notebook shows, but nothing that others read.
    artefacts
        kinds of files that it leaves among the artefacts, see :mod:`zdc_nb.study.artefacts`.
    tables
        that it leaves in the reports.
    published
        further ones, which hold its numbers against published ones: of a study of the ZN alone.
    on_gpu, alone
        whether it uses a GPU where there is one, and all cores.
    """

    name: str
    title: str
    notebook: str
    keys: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()
    shows: tuple[str, ...] = ()
    artefacts: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    on_gpu: bool = False
    alone: bool = False


TABLE: dict[str, Row] = {
    row.name: row
    for row in (
        Row(
            "data",
            "data and their exploration",
            "01_data_exploration",
            depends_on=("seed", "data"),
            shows=("subsets",),
            artefacts=("data",),
            tables=("species", "datasets"),
            published=("calibration",),
        ),
        Row(
            "teacher",
            "training of a teacher",
            "02_teacher_training",
            keys=("subset", "seed"),
            needs=("data",),
            depends_on=("preprocessing", "flow", "teacher"),
            shows=("evaluation.figure_particles",),
            artefacts=("models", "history"),
            on_gpu=True,
        ),
        Row(
            "student",
            "distillation of a student",
            "03_student_distillation",
            keys=("subset", "setup", "seed"),
            needs=("teacher",),
            depends_on=("student",),
            shows=("evaluation.figure_particles",),
            artefacts=("models", "history"),
            on_gpu=True,
        ),
        Row(
            "splitting",
            "training of a splitting flow",
            "04_splitting_flow",
            keys=("subset", "seed"),
            needs=("data",),
            depends_on=("splitting",),
            shows=("evaluation.figure_particles",),
            artefacts=("models", "history"),
            on_gpu=True,
        ),
        Row(
            "photon_sum",
            "training on photon sums",
            "05_photon_sum",
            keys=("subset", "seed"),
            needs=("data",),
            depends_on=("photon_sum",),
            shows=("evaluation.runs",),
            artefacts=("models", "history"),
        ),
        Row(
            "signal",
            "training on whether there is light",
            "06_signal",
            keys=("subset", "seed"),
            needs=("data",),
            depends_on=("signal",),
            artefacts=("models", "history"),
        ),
        Row(
            "baselines",
            "baselines, which need no training",
            "07_baselines",
            keys=("subset",),
            needs=("data",),
            depends_on=("evaluation.runs", "evaluation.classifier_runs"),
            artefacts=("evaluation",),
        ),
        Row(
            "evaluation",
            "evaluation of all models",
            "08_evaluation",
            keys=("subset",),
            needs=("baselines", "teacher", "student", "splitting", "photon_sum"),
            depends_on=("evaluation.runs", "evaluation.classifier_runs", "evaluation.batch"),
            shows=("evaluation.figure_particles", "setups", "variants", "seeds"),
            artefacts=("evaluation", "samples", "observed"),
            on_gpu=True,
        ),
        Row(
            "ablations",
            "ablations (Table 1)",
            "09_ablations",
            needs=("evaluation",),
            shows=("subsets", "setups", "variants", "seeds"),
            tables=(
                "table1",
                "baselines",
                "relative_changes",
                "comparison",
                "reference_left_out",
                "closure",
            ),
        ),
        Row(
            "shower_shapes",
            "shower shapes (Table 2)",
            "10_shower_shapes",
            needs=("evaluation",),
            shows=("subsets", "setups", "variants", "seeds", "evaluation.figure_particles"),
            tables=("table2",),
        ),
        Row(
            "speed",
            "speed, alone on all cores",
            "11_speed",
            needs=("teacher", "student", "splitting"),
            depends_on=("speed",),
            shows=("subsets", "setups", "variants", "seeds"),
            tables=("speed", "training_speed", "costs"),
            on_gpu=True,
            alone=True,
        ),
        Row(
            "models",
            "all models beside each other",
            "12_models",
            needs=("evaluation", "speed"),
            shows=("subsets", "setups", "variants", "seeds"),
            tables=("models",),
        ),
        Row(
            "closure",
            "where a model fails",
            "13_closure",
            keys=("model",),
            needs=("evaluation", "ablations"),
            shows=("subsets", "setups", "variants", "seeds"),
        ),
        Row(
            "new_particles",
            "new particles beside those learned from",
            "14_new_particles",
            keys=("subset",),
            needs=("evaluation",),
            shows=("setups", "variants", "seeds"),
            artefacts=("counterpart",),
            tables=("new_particles",),
            on_gpu=True,
        ),
        Row(
            "generator",
            "the generator, and its export",
            "15_generator",
            keys=("subset",),
            needs=("evaluation", "signal"),
            shows=("evaluation.figure_particles", "speed"),
            artefacts=("generator",),
            on_gpu=True,
            alone=True,
        ),
        Row(
            "collisions",
            "whole collisions",
            "16_collisions",
            keys=("subset",),
            needs=("generator",),
            depends_on=("collisions",),
            tables=("collisions", "collision_sums"),
            on_gpu=True,
        ),
    )
}
"""Every kind of stage, in the order in which they run."""


@dataclass(frozen=True)
class Stage:
    """One run of a notebook: a row of the table, for its data set, setup, training or model.

    ``subset``, ``setup`` (or the name of a variant), ``seed`` and ``model`` (any that is trained) are
    None where the row has no such key. The first training, of seed 1, is not named.
    """

    study: Study
    row: Row
    subset: Subset | None = None
    setup: str | None = None
    seed: int | None = None
    model: str | None = None

    @property
    def keys(self) -> dict[str, str]:
        """Its papermill parameters beside the study."""
        seed = None if self.seed in (None, 1) else str(self.seed)
        values = {
            "subset": self.subset,
            "setup": self.setup,
            "seed": seed,
            "model": self.model,
        }
        return {key: value for key in self.row.keys if (value := values[key]) is not None}

    @property
    def name(self) -> str:
        """Its notebook's name and its keys: ``02_teacher_training-all``, ``...-all-seed2``."""
        return "-".join((self.row.notebook, *self.suffixes))

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Its keys as they stand in names of files."""
        return tuple(f"seed{v}" if k == "seed" else v for k, v in self.keys.items())

    @cached_property
    def needs(self) -> list[Stage]:
        """The stages whose artefacts it reads, those that they need among them."""
        found: dict[str, Stage] = {}
        for kind in self.row.needs:
            for stage in _stages(self.study, TABLE[kind]):
                mine = self.subset in (None, stage.subset) or stage.subset is None
                if mine and (self.seed in (None, stage.seed) or stage.seed is None):
                    found |= {other.name: other for other in (*stage.needs, stage)}
        return list(found.values())

    @cached_property
    def values(self) -> dict[str, Any]:
        """The parameters that its numbers depend on, with the data's identity, as JSON has them."""
        return values_of(self.study, self.row.name, self.subset, self.setup, self.seed)

    @property
    def shown(self) -> dict[str, Any]:
        """:attr:`values`, and what else changes what its notebook shows."""
        return _merge(self.values, _parameters(self.study, self.row.shows, None))

    @property
    def source(self) -> Path:
        """The notebook that it runs."""
        return project_root() / "notebooks" / f"{self.row.notebook}.ipynb"

    @property
    def executed(self) -> Path:
        """The notebook as the grid has executed it."""
        return self.study.reports / "notebooks" / f"{self.name}.ipynb"

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What its executed notebook was made of: ``parameters`` and ``cells``, a checksum.

        Of the cells their sources count, not outputs or metadata: to open, run and save a notebook
        changes nothing.
        """
        # as JSON gives it back: no tuples
        parameters = json.loads(json.dumps(self.shown))
        return {"parameters": parameters, "cells": _checksum_of_cells(self.source)}

    @property
    def tables(self) -> list[Path]:
        """The tables that it leaves; of what is compared with published numbers of the ZN alone."""
        from zdc_nb.data.calibration import has_published  # noqa: PLC0415 - slow to import
        from zdc_nb.study.dataset import study_detector  # noqa: PLC0415 - likewise

        names = self.row.tables
        if self.row.published and has_published(study_detector(self.study)):
            names += self.row.published
        stems = ["-".join((name, *self.suffixes)) for name in names]
        return [self.study.reports / "tables" / f"{stem}.csv" for stem in stems]


def values_of(
    study: Study,
    kind: str,
    subset: Subset | None,
    setup: str | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """The parameters that a kind of stage, for one subset, depends on, and the data's identity.

    Those of what they need among them; of parameters by subset only that subset's; of a variant
    its own values of the section ``student``, and the setup that it is of. What belongs to the centre
    loss only where there is one. A training other than the first has its ``seed``.
    """
    from zdc_nb.study.dataset import (  # noqa: PLC0415 - slow to import
        data_identity,
        simulation_identity,
    )

    sections: list[str] = []
    todo = [kind]
    while todo:
        row = TABLE[todo.pop()]
        sections += row.depends_on
        todo += row.needs
    special: dict[str, Any] = {} if seed in (None, 1) else {"training": seed}
    if setup is not None and setup in study.variants:
        terms, student = study.student_of(setup)
        study = study.model_copy(update={"student": student})
        special["setup"] = terms
    values = _parameters(study, sections, subset) | special
    reads_centre = setup is None or "ctr" in study.student_of(setup)[0].split("+")
    if "student" in values and not (reads_centre and study.student.centre_weight):
        # only where it is read, so that what was trained without it stays what it is
        for key in ("centre_weight", "centre_offset"):
            values["student"].pop(key)
    # what the files hold, not how they are named
    values["data"].pop("file")
    if values.get("collisions"):
        values["collisions"] |= simulation_identity(study)
        if values["collisions"]["file"] is not None:
            values["collisions"]["file"] = checksum(project_root() / values["collisions"]["file"])
    return values | {"source": data_identity(study)}


def stages_of(study: Study) -> list[Stage]:
    """All stages of a study, in the order of the table; of a section that is null none."""
    return [stage for row in TABLE.values() for stage in _stages(study, row)]


_SECTIONS_OF = {
    "splitting": ("splitting",),
    "photon_sum": ("photon_sum",),
    "signal": ("signal",),
    "generator": ("photon_sum",),
    "collisions": ("photon_sum", "collisions"),
}
"""Rows that are left out where one of these sections of the study is null."""


_OF_ONE_SUBSET = ("signal", "generator", "collisions")
"""Rows with a stage for the data set of ``speed`` alone; by hand they run for any."""


def _stages(study: Study, row: Row) -> Iterator[Stage]:
    if any(getattr(study, section) is None for section in _SECTIONS_OF.get(row.name, ())):
        return
    subsets: Sequence[Subset | None] = study.subsets if "subset" in row.keys else (None,)
    if row.name in _OF_ONE_SUBSET:
        subsets = (study.speed.subset,)
    setups = study.students if "setup" in row.keys else (None,)
    seeds = study.seeds if "seed" in row.keys else (None,)
    models = study.trained_models if "model" in row.keys else (None,)
    for seed, subset, setup, model in product(seeds, subsets, setups, models):
        yield Stage(study, row, subset, setup, seed, model)


def find_stage(study: Study, notebook: str, **keys: str) -> Stage:
    """The stage that ``notebook`` runs with these keys; without a seed, the study's first.

    Raises
    ------
    ParameterError
        naming the notebook, key or value that the study does not have.
    """
    rows = {row.notebook: row for row in TABLE.values()}
    if notebook not in rows:
        raise ParameterError(f"stage: {notebook!r} is none; expected one of {', '.join(rows)}")
    row = rows[notebook]
    for key in keys:
        if key not in row.keys:
            near = difflib.get_close_matches(key, row.keys, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ParameterError(f"{key}: {notebook} has no such parameter{hint}")
    for key in row.keys:
        if key not in keys and key != "seed":
            raise ParameterError(f"{key}: {notebook} needs it")
    return Stage(
        study,
        row,
        study.check_subset(keys["subset"]) if "subset" in keys else None,
        study.check_student(keys["setup"]) if "setup" in keys else None,
        study.check_seed(keys.get("seed", study.seeds[0])) if "seed" in row.keys else None,
        study.check_model(keys["model"]) if "model" in keys else None,
    )


def _parameters(
    study: Study, wanted: tuple[str, ...] | list[str], subset: Subset | None
) -> dict[str, Any]:
    """These sections and keys of a study, of parameters by subset those of one, or of all."""
    everything = study.model_dump(mode="json")
    for section, key in SECTIONS_BY_SUBSET:
        if everything[section] is None:
            continue
        by_subset = everything[section][key]
        if isinstance(by_subset, dict):
            everything[section][key] = (
                {name: by_subset.get(name) for name in study.subsets}
                if subset is None
                else by_subset.get(subset)
            )
        elif subset is None and key == "epochs":
            # the same numbers, however they are written
            everything[section][key] = dict.fromkeys(study.subsets, by_subset)
    values: dict[str, Any] = {}
    for name in dict.fromkeys(wanted):
        section, _, key = name.partition(".")
        part = {section: {key: everything[section][key]} if key else everything[section]}
        values = _merge(values, part)
    return values


def _merge(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both, also where they hold parts of the same section."""
    merged = dict(one)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if both else value
    return merged


def _checksum_of_cells(notebook: Path) -> str | None:
    """SHA-256 of the kinds and sources of its cells; None where there is no such notebook."""
    try:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return None
    sources = [[cell["cell_type"], "".join(cell["source"])] for cell in cells]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()
