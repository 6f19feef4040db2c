"""Does the physics in the loss help? Students of several studies against the weight of their loss."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from IPython.display import Image
from pydantic import BaseModel, ConfigDict, Field

from zdc_nb.data.figures import save_figure
from zdc_nb.evaluation import centre as centres
from zdc_nb.evaluation import intervals, paired_differences
from zdc_nb.evaluation.claim import MADE_FOR, claim_figure
from zdc_nb.params import ParameterError, Study, load_parameters, load_study, project_root
from zdc_nb.study.session import Session
from zdc_nb.study.stages import find_stage

__all__ = ["Claim", "centre_table", "claim_pictures", "claim_table", "load_claim", "open_table"]


class Claim(BaseModel):
    """What is compared, as read from one YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    reports: Annotated[str, Field(min_length=1)]
    loss: Literal["channel", "centre"] = Field(description="whose weight is told")
    studies: dict[
        str, Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    ] = Field(min_length=1, description="study files, by what they are called in the report")

    open: list[Annotated[str, Field(min_length=1)]] = Field(
        description="study files of what else may matter, told in a table of their own; []: none"
    )

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return project_root() / self.reports / self.name


def load_claim(path: str | Path) -> Claim:
    """Read and check a file of a claim, see :func:`zdc_nb.params.load_parameters`."""
    return load_parameters(path, Claim, "claim")


def claim_table(claim: Claim) -> pd.DataFrame:
    """The table of :mod:`zdc_nb.evaluation.claim`, of the studies of ``claim.studies``.

    Raises
    ------
    ParameterError
        naming a study without the setup ``bs``.
    MissingArtefactError
        naming what has not been run.
    """
    parts = [
        _of_study(load_study(file), label, claim.loss)
        for label, files in claim.studies.items()
        for file in files
    ]
    return pd.concat(parts, ignore_index=True)


def open_table(claim: Claim) -> pd.DataFrame:
    """As :func:`claim_table`, of the studies of ``claim.open``, called by their own names."""
    studies = [load_study(file) for file in claim.open]
    parts = [_of_study(study, study.name, claim.loss) for study in studies]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


_SHOWN = {
    "MAE_cw": ("claim", "Channel error"),
    "centre MAE": ("claim_centre", "Error of the mean shower centre"),
    "radius MAE": ("claim_radius", "Error of the shower radius"),
}
"""Metrics: their pictures' files, and what they are called there."""


def claim_pictures(claim: Claim, table: pd.DataFrame) -> list[Image]:
    """The figures of a :func:`claim_table`, written to ``claim.folder``: the loss's aim, then its price."""
    aim = MADE_FOR[claim.loss]
    pictures = []
    for metric in (aim, *(name for name in _SHOWN if name != aim)):
        file, what = _SHOWN[metric]
        text = (
            f"{what} of students on particles never seen, by the weight of their {claim.loss} loss, "
            "beside their teacher and new simulations. Less is better; bars are intervals."
        )
        if metric != aim:
            text += f" A curve that rises is a price of the {claim.loss} loss."
        figure = claim_figure(table, metric)
        pictures.append(save_figure(figure, claim.folder / f"{file}.png", text))
    return pictures


def centre_table(claim: Claim) -> pd.DataFrame:
    """The table of :func:`zdc_nb.evaluation.centre.centre_table`, of the studies of ``claim.studies``.

    First come the columns study and subset. Raises as :func:`claim_table`.
    """
    parts = []
    for label, files in claim.studies.items():
        for study in map(load_study, files):
            session = Session(find_stage(study, "09_ablations"), reads=True)
            for subset in study.subsets:
                models = {
                    name: {seed: session.observed(name, subset, seed) for seed in study.seeds}
                    for name in ("teacher", *study.students)
                }
                table = centres.centre_table(session.split(subset).test, models)
                table.insert(0, "study", label)
                table.insert(1, "subset", subset)
                parts.append(table)
    return pd.concat(parts, ignore_index=True)


def _of_study(study: Study, label: str, loss: Literal["channel", "centre"]) -> pd.DataFrame:
    if "bs" not in study.setups:
        raise ParameterError(f"setups: {study.name} has no 'bs' to compare with")
    session = Session(find_stage(study, "09_ablations"), reads=True)
    without = _without_physics(study)
    starts = {name: _start(study, name) for name in study.students}
    parts = []
    for subset in study.subsets:
        models = session.resampled(subset)
        found = intervals(models)
        changes = [
            paired_differences(
                {name: models[name] for name in starts if starts[name] == start}, baseline
            ).assign(baseline=baseline)
            for start, baseline in without.items()
        ]
        columns = {"low": "change_low", "high": "change_high"}
        against = pd.concat(changes).rename(columns=columns)
        new = ["baseline", "change", "change_low", "change_high", "improvement"]
        keys = ["model", "metric"]
        found = found.merge(against[[*keys, *new]], on=keys, how="left")
        floor = session.baselines(subset)
        floor = floor[floor["model"].eq("reference+sum") & floor["metric"].isin(found["metric"])]
        mean = floor.groupby(["model", "metric"], sort=False)["value"].mean().reset_index()
        found = pd.concat([found, mean], ignore_index=True)
        found.insert(0, "study", label)
        found.insert(1, "subset", subset)
        parts.append(found)
    table = pd.concat(parts, ignore_index=True)
    table["start"] = table["model"].map(starts).fillna("")
    weights = {name: _weight(study, name, without, loss) for name in study.students}
    table["weight"] = table["model"].map(weights).astype(float)
    table["loss"] = loss
    return table


def _start(study: Study, name: str) -> str:
    return study.student_of(name)[1].start


def _without_physics(study: Study) -> dict[str, str]:
    """By start, the first student of the setup ``bs``."""
    found: dict[str, str] = {}
    for name in study.students:
        if study.student_of(name)[0] == "bs":
            found.setdefault(_start(study, name), name)
    return found


def _weight(
    study: Study, name: str, without: dict[str, str], loss: Literal["channel", "centre"]
) -> float | None:
    """The weight of the loss, if nothing else tells the student from ``bs`` of the same start."""
    setup, params = study.student_of(name)
    if params.start not in without:
        return None
    if name == without[params.start]:
        return 0.0
    _, bare = study.student_of(without[params.start])
    keys, own = _OF_LOSS[loss]
    alike = params.model_copy(update={key: getattr(bare, key) for key in keys}) == bare
    return getattr(params, keys[0]) if setup == own and alike else None


_OF_LOSS = {
    "channel": (("channel_weight",), "bs+ch"),
    "centre": (("centre_weight", "centre_offset"), "bs+ctr"),
}
"""The keys of a loss in the section ``student``, its weight first, and the setup of it alone."""


def main() -> int:
    """Command line: print the study files that a file of a claim names, a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("claim", help="a file of a claim, such as params/claim.yaml")
    claim = load_claim(parser.parse_args().claim)
    for files in (*claim.studies.values(), claim.open):
        print("".join(f"{file}\n" for file in files), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
