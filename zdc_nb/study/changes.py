"""What each change is worth: models of several studies in one table, and their pictures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from zdc_nb.evaluation import choose_examples, model_pivot, sample_figure
from zdc_nb.params import Study, Subset, load_parameters, load_study, project_root
from zdc_nb.study.artefacts import MissingArtefactError
from zdc_nb.study.session import Session
from zdc_nb.study.stages import find_stage

__all__ = [
    "Change",
    "Changes",
    "change_findings",
    "changes_samples",
    "changes_table",
    "load_changes",
]

Name = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Change(_Part):
    """One row: what was changed, and the model of a study that shows what it is worth."""

    change: Name
    study: Name
    model: Name


class Changes(_Part):
    """What is compared, as read from one YAML file."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    reports: Name
    subset: Subset
    rows: list[Change] = Field(min_length=1)

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return project_root() / self.reports / self.name

    @property
    def studies(self) -> list[str]:
        """The study files, each once, in the order of the rows."""
        return list(dict.fromkeys(row.study for row in self.rows))


def load_changes(path: str | Path) -> Changes:
    """Read and check a file of changes, see :func:`zdc_nb.params.load_parameters`."""
    return load_parameters(path, Changes, "changes")


def changes_table(changes: Changes) -> pd.DataFrame:
    """A row for each change, a column for each metric of ``models.csv`` (means).

    The first columns are change, study, split (of its data) and model. A metric that a model does
    not have is empty.

    Raises
    ------
    MissingArtefactError
        naming a study that has not been run, or a model that it has not.
    """
    rows = []
    for change in changes.rows:
        study = load_study(change.study)
        found = _models_of(study, change.study)
        key = (changes.subset, change.model)
        if key not in found.index:
            raise MissingArtefactError(
                f"{change.study}: has no model {change.model!r} on {changes.subset!r}"
            )
        start = {"change": change.change, "study": study.name, "split": study.data.split}
        values = {str(name): value for name, value in found.loc[[key]].iloc[0].items()}
        rows.append({**start, "model": change.model, **values})
    return pd.DataFrame(rows)


def _models_of(study: Study, file: str) -> pd.DataFrame:
    path = study.reports / "tables" / "models.csv"
    if not path.is_file():
        raise MissingArtefactError(f"{path} is missing: run `make study STUDY={file}`")
    return model_pivot(pd.read_csv(path))


def changes_samples(changes: Changes, count: int) -> Figure:
    """What the models of the first split draw for the same test particles, side by side.

    Of the studies that share the first one's test events (the same data, split alike), every
    trained model of the rows is a column.

    Raises as :meth:`Session.samples`.
    """
    columns: dict[str, NDArray[np.uint16]] = {}
    first, examples = None, np.empty(0, np.intp)
    for change in changes.rows:
        if "reference" in change.model:
            continue
        study = load_study(change.study)
        session = Session(find_stage(study, "08_evaluation", subset=changes.subset), reads=True)
        test = session.test_events
        if first is None:
            first, examples = test, choose_examples(test, count)
        if len(test) != len(first) or not np.array_equal(test.particle, first.particle):
            continue
        columns[f"{study.name}: {change.model}"] = session.samples(change.model)[examples]
    assert first is not None
    return sample_figure(first[examples], list(columns.values()), names=list(columns))


def change_findings(table: pd.DataFrame) -> list[str]:
    """Sentences on what each row brings against the row before it of the same split."""
    said = []
    trained = table[~table["model"].str.contains("reference")]
    for (_, before), (_, after) in zip(
        trained.iloc[:-1].iterrows(), trained.iloc[1:].iterrows(), strict=True
    ):
        if before["split"] != after["split"]:
            continue
        parts = [
            f"{name} {before[name]:.3g} to {after[name]:.3g}"
            for name in ("WS", "MAE_cw", "radius", "AUC")
            if name in table and pd.notna(before[name]) and pd.notna(after[name])
        ]
        said.append(f"**{after['change']}**, after *{before['change']}*: {', '.join(parts)}.")
    return said


def main() -> int:
    """Command line: print the study files that a file of changes names, a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("changes", help="a file of changes, such as params/changes.yaml")
    print(*load_changes(parser.parse_args().changes).studies, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
