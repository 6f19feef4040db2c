"""Table 1 of the smoke study, as committed, and what may differ from it.

`tests/reference/smoke_table1.csv` is from before the package was divided into rooms. After a change
that is meant to change numbers, copy `reports/smoke/tables/table1.csv` there and say why.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from zdc_nb.params import SETUPS

__all__ = ["assert_matches_reference", "read_reference"]

REFERENCE = Path(__file__).with_name("reference") / "smoke_table1.csv"
KEYS = ["subset", "model", "metric"]

EXACT = 1e-9
"""Relative: baselines are whole photons, drawn by numpy and averaged in double precision."""

TRAINED = {"mean": 0.002, "std": 0.025}
"""Relative, for flows: processors round differently, and a photon is counted or not by the last bit.
Ten times what was measured between AVX-512 and no vector instructions at all: weights up to 0.005
apart after the training, means up to 0.0002, spreads of generations up to 0.0025."""


def read_reference() -> pd.DataFrame:
    """Columns subset, model, metric, mean, std (of generations; photons) and runs."""
    return pd.read_csv(REFERENCE)


def assert_matches_reference(table: pd.DataFrame) -> None:
    """Compare a Table 1 of ``params/smoke.yaml`` with the committed one.

    Raises
    ------
    AssertionError
        naming every row that is missing, not expected, or out of tolerance, with both values.
    """
    expected, found = (frame.set_index(KEYS).sort_index() for frame in (read_reference(), table))
    assert not (missing := expected.index.difference(found.index)).size, f"missing: {list(missing)}"
    assert not (extra := found.index.difference(expected.index)).size, f"unexpected: {list(extra)}"
    assert found.index.is_unique
    trained = expected.index.get_level_values("model").isin(["teacher", *SETUPS, "splitting"])
    wrong = [
        f"{' '.join(key)}: {column} {ours:.10g}, expected {theirs:.10g}"
        for column, tolerance in {**TRAINED, "runs": 0.0}.items()
        for key, ours, theirs, relative in zip(
            expected.index,
            found[column],
            expected[column],
            np.where(trained, tolerance, min(tolerance, EXACT)),
            strict=True,
        )
        # written so that nan is wrong
        if not abs(ours - theirs) <= relative * abs(theirs)
    ]
    assert not wrong, "\n".join(wrong)
