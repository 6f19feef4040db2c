"""The comparison with the committed table notices what it should."""

import numpy as np
import pandas as pd
import pytest

from tests.reference_table import assert_matches_reference, read_reference


def test_rounding_passes_and_the_order_of_rows_does_not_count() -> None:
    table = read_reference().iloc[::-1]
    assert_matches_reference(table)
    trained = ~table["model"].isin(["reference", "ignorant"])
    assert trained.sum() == 48
    table.loc[trained, "mean"] *= 1.0015
    assert_matches_reference(table)


@pytest.mark.parametrize(
    ("model", "column", "factor"),
    [
        ("teacher", "mean", 1.003),
        ("bs+ch", "mean", np.nan),
        ("bs", "std", 0.97),
        ("bs", "runs", 0.8),
        ("splitting", "mean", 1.3),
        ("splitting", "runs", 0.8),
        ("reference", "mean", 1 + 1e-6),
        ("ignorant", "std", 1.001),
    ],
)
def test_a_changed_number_is_named(model: str, column: str, factor: float) -> None:
    table = read_reference()
    row = (table["subset"] == "all") & (table["model"] == model) & (table["metric"] == "WS")
    assert row.sum() == 1
    table[column] = table[column].astype(float).where(~row, table[column] * factor)
    with pytest.raises(AssertionError, match=rf"^all {model.replace('+', '.')} WS: {column} \S+, "):
        assert_matches_reference(table)


def test_two_models_in_exchange_are_noticed() -> None:
    table = read_reference()
    table["model"] = table["model"].replace({"bs": "bs+ch", "bs+ch": "bs"})
    with pytest.raises(AssertionError, match="n bs WS: mean"):
        assert_matches_reference(table)


def test_missing_and_unexpected_rows_are_named() -> None:
    table = read_reference()
    named = r"\('all', 'teacher', 'WS'\)"
    row = (table["subset"] == "all") & (table["model"] == "teacher") & (table["metric"] == "WS")
    with pytest.raises(AssertionError, match=f"^missing: .{named}.$"):
        assert_matches_reference(table[~row])
    table.loc[row, "subset"] = "lambda"
    more = pd.concat([read_reference(), table[row]])
    with pytest.raises(AssertionError, match=r"^unexpected: .\('lambda', 'teacher', 'WS'\)"):
        assert_matches_reference(more)
