"""What models, baselines and data sets are called where people read them: one name a thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pandas as pd
from pandas.io.formats.style import Styler

from zdc_nb.data.symbols import symbol
from zdc_nb.params import DRAWN

__all__ = ["SIMULATED", "TERMS", "name_of", "with_names"]

SIMULATED = "simulated (test)"
"""The responses that all others are compared with."""

TERMS = {
    "loss": "what was minimised",
    "end_data": "ends, data loop",
    "blocks_data": "blocks between, data loop",
    "made_data": "spline parameters, data loop",
    "end_latent": "ends, latent loop",
    "blocks_latent": "blocks between, latent loop",
    "made_latent": "spline parameters, latent loop",
    "channel": "channel loss",
    "centre": "centre loss",
}
"""The terms of a student's loss."""

_NAMES = {
    "test": SIMULATED,
    "reference": "new simulations",
    "reference+sum": "new simulations, scaled",
    "copied": "training responses, scaled",
}

_SHOWN: dict[str, Callable[[Any], str]] = {
    "subset": lambda name: symbol(str(name)),
    "group": lambda name: symbol(str(name)),
    "model": lambda name: name_of(str(name)),
    "term": lambda name: TERMS.get(str(name), str(name)),
}
"""How the values of a column, or of a level of an index, of this name are shown."""

_TITLES = {"subset": "data set", "group": "species"}


def name_of(model: str) -> str:
    """What a model or baseline is called in figures and tables; a trained model as in its study."""
    if model.endswith(DRAWN):
        return name_of(model.removesuffix(DRAWN)) + DRAWN
    return _NAMES.get(model, model)


def with_names(table: pd.DataFrame | Styler) -> Styler:
    """A table as it is shown: printed names for the keys of data sets, species and models.

    Its data, its index and its columns keep their keys. Comes after any other ``format``, which
    would take the names away.
    """
    styler = table.style if isinstance(table, pd.DataFrame) else table
    data: pd.DataFrame = styler.data  # type: ignore[attr-defined]
    for column in data.columns:
        if column in _SHOWN:
            styler.format(_SHOWN[column], subset=[column], escape="html")
    sides: tuple[tuple[Literal["index", "columns"], pd.Index[Any]], ...] = (
        ("index", data.index),
        ("columns", data.columns),
    )
    for axis, labels in sides:
        for level, name in enumerate(labels.names):
            shown = _SHOWN.get(str(name), _title if axis == "columns" and name is None else None)
            if shown is not None:
                styler.format_index(shown, axis=axis, level=level, escape="html")
        styler.format_index_names(_title, axis=axis)
    return styler


def _title(key: object) -> str:
    return _TITLES.get(str(key), "" if key is None else str(key))
