"""The first sentences of a report, against tables made by hand."""

import re

import pandas as pd
import pytest

from zdc_nb.evaluation import summary_table, verdict
from zdc_nb.evaluation.verdict import FLOOR

NONE = pd.DataFrame(columns=["subset", "model", "metric", "low", "high", "trainings"])


def models(**values: dict[str, tuple[float, float]]) -> pd.DataFrame:
    """Of each metric by model the values on n and on all."""
    rows = [
        (subset, model.replace("__", "+"), metric, mean)
        for metric, found in values.items()
        for model, pair in found.items()
        for subset, mean in zip(("n", "all"), pair, strict=True)
    ]
    return pd.DataFrame(rows, columns=["subset", "model", "metric", "mean"])


SOME = models(
    AUC={
        FLOOR: (0.58, 0.62),
        "teacher": (0.99, 0.98),
        "bs": (0.97, 0.99),
        "splitting": (0.65, 0.63),
    },
    MAE_cw={FLOOR: (6.0, 5.0), "teacher": (7.7, 7.0), "bs": (9.0, 5.0), "splitting": (6.6, 5.5)},
    megabytes={"teacher": (96.0, 96.0), "splitting": (2.1, 2.1)},
)


def comparison(trainings: int, **found: tuple[float, float]) -> pd.DataFrame:
    rows = [
        (subset, model.replace("_", "+"), metric, low, high, trainings)
        for model, pair in found.items()
        for subset, (low, high) in zip(("n", "all"), (pair, (-1.0, 1.0)), strict=True)
        for metric in ("MAE_cw", "WS")
    ]
    return pd.DataFrame(rows, columns=["subset", "model", "metric", "low", "high", "trainings"])


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.)\s+(?=[A-Z*])", text)


def test_it_names_the_nearest_and_the_farthest_beside_the_floor() -> None:
    first, second = sentences(verdict(SOME, NONE))
    assert "an AUC of 0.630 to 0.650 on those of `splitting`" in first
    # in the mean over the data sets: bs has 0.97 and 0.99, the teacher 0.99 and 0.98
    assert "of 0.980 to 0.990 on those of `teacher`, the farthest" in first
    assert "(new simulations, scaled, have 0.580 to 0.620; 0.5 finds none, 1 all)" in first
    assert "`splitting` in the channels (MAE_cw) is 1.10 times theirs" in first
    assert second == "No setup with physics in its loss stands beside `bs` here."


def test_without_classifiers_the_channels_judge() -> None:
    (first, _) = sentences(verdict(SOME[SOME["metric"] != "AUC"], NONE))
    assert first.startswith("**Nearest to simulation is `splitting` with a MAE_cw of 5.5 to 6.6 ")
    assert "the farthest `teacher` with 7 to 7.7" in first


def test_without_a_floor_nothing_is_judged() -> None:
    first, _ = sentences(verdict(SOME[SOME["model"] != FLOOR], NONE))
    assert first == "No model can be held against new simulations of its particles on these data."


@pytest.mark.parametrize(
    ("trainings", "says"), [(1, "once, which says nothing of another training"), (3, "3 times")]
)
def test_what_the_physics_brought_counts_only_what_is_shown(trainings: int, says: str) -> None:
    compared = comparison(
        trainings,
        bs_ch=(-9.0, -1.0),
        bs_div=(2.0, 8.0),
        bs_ch_div=(-1.0, 5.0),
        teacher=(-9.0, -8.0),
    )
    _, second = sentences(verdict(SOME, compared))
    assert "better than that of `bs` on n (`bs+ch`), worse on n (`bs+div`)" in second
    assert "neither is shown in 4 of 6 pairs" in second
    assert says in second


def test_what_the_physics_brought_is_not_told_where_nobody_knows() -> None:
    assert "not known yet: `09_ablations`" in verdict(SOME, None)
    compared = comparison(1, bs_ch=(-9.0, -1.0))
    single = compared[compared["metric"] == "WS"]
    assert "cannot be told by particle" in verdict(SOME, single)
    others = compared.assign(model="ch1000")
    assert "No setup with physics" in verdict(SOME, others)


def test_the_small_table_is_that_of_one_data_set() -> None:
    table = summary_table(SOME, "all")
    assert [*table.index] == [FLOOR, "teacher", "bs", "splitting"]
    assert [*table.columns] == ["AUC", "MAE_cw", "MB", "what it is"]
    assert table.loc["teacher", "AUC"] == "0.980"
    assert table.loc[FLOOR, "MAE_cw"] == "5"
    assert str(table.loc["splitting", "MAE_cw"]).startswith("5.5 (1.10 ")
    assert [*table["MB"]] == ["", "96", "", "2.1"]
    assert summary_table(SOME, "n").loc["bs", "AUC"] == "0.970"
    assert len(summary_table(SOME, "lambda")) == 0
