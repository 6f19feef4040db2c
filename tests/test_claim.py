"""Students against the weight of their channel loss: what is said follows from the numbers."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from zdc_nb.data.figures import description_of
from zdc_nb.evaluation.claim import claim_figure, claim_findings, claim_rest
from zdc_nb.params import ParameterError, load_study
from zdc_nb.study.claim import _weight, claim_pictures, load_claim

METRICS = {"WS": 5.0, "MAE_cw": 20.0, "centre MAE": 2.0, "radius MAE": 3.0}


def rows_of(
    model: str, weight: float | None, changes: dict[str, tuple[float, float, float]], **keys: Any
) -> list[dict[str, Any]]:
    """A row for each metric: change, low and high in per cent, nothing where not given."""
    rows = []
    for metric, level in METRICS.items():
        change, low, high = changes.get(metric, (0.0, -5.0, 5.0))
        value = level * (1 + change / 100)
        against = {"change": change, "change_low": low, "change_high": high, "improvement": 0.5}
        rows.append(
            {
                "study": "fibres",
                "loss": "channel",
                "subset": "lambda",
                "model": model,
                "metric": metric,
                "value": value,
                "low": 0.9 * value,
                "high": 1.1 * value,
                "trainings": 3,
                "baseline": "scratch",
                **(against if model != "scratch" else {}),
                "start": "scratch",
                "weight": weight,
                **keys,
            }
        )
    return rows


def table_of(*parts: list[dict[str, Any]]) -> pd.DataFrame:
    plain = rows_of("scratch", 0.0, {})
    teacher = rows_of("teacher", None, {}, start="")
    floor = rows_of("reference+sum", None, {}, start="")
    return pd.DataFrame([row for part in (plain, teacher, floor, *parts) for row in part])


HELPS = {"MAE_cw": (-20.0, -30.0, -10.0)}
COSTS = {"radius MAE": (40.0, 20.0, 60.0)}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (HELPS, "to be larger, on lambda; at the price of a larger one on none; not shown on none"),
        (
            HELPS | COSTS,
            "to be larger, on none; at the price of a larger one on lambda; not shown on none",
        ),
        (COSTS, "to be larger, on none; at the price of a larger one on none; not shown on lambda"),
        ({"MAE_cw": (-20.0, -50.0, 1.0)}, "on none; not shown on lambda"),
    ],
)
def test_the_verdict_follows_from_the_intervals(
    changes: dict[str, tuple[float, float, float]], expected: str
) -> None:
    table = table_of(rows_of("scratch_ch1", 1.0, {}), rows_of("scratch_ch30", 30.0, changes))
    found = claim_findings(table)
    [verdict] = [sentence for sentence in found if "Does a channel loss" in sentence]
    assert expected in verdict
    assert "2 changes of MAE_cw" in found[-1]
    assert "about 0.1 of them" in found[-1]


def test_the_best_weight_is_named_with_what_it_costs() -> None:
    table = table_of(
        rows_of("scratch_ch1", 1.0, {"MAE_cw": (30.0, 10.0, 50.0)}),
        rows_of("scratch_ch30", 30.0, HELPS | COSTS),
    )
    first = claim_findings(table)[0]
    assert "smallest MAE_cw is at weight 30, 20.0 to 16.0 photons (-20% [-30, -10])" in first
    assert "radius MAE +40% [+20, +60]" in first
    assert "Shown worse in MAE_cw: weights 1." in first


def test_of_the_centre_loss_the_centre_is_told_and_the_channels_are_its_price() -> None:
    better = {"centre MAE": (-50.0, -60.0, -40.0)}
    costs = {"MAE_cw": (30.0, 10.0, 50.0)}
    for changes, verdict in (
        (better, "to be larger, on lambda; at the price of a larger one on none"),
        (better | costs, "to be larger, on none; at the price of a larger one on lambda"),
        (better | COSTS, "to be larger, on none; at the price of a larger one on lambda"),
        (costs, "on none; at the price of a larger one on none; not shown on lambda"),
    ):
        table = table_of(rows_of("scratch_ctr10", 10.0, changes)).assign(loss="centre")
        found = claim_findings(table)
        assert "Does a centre loss of any weight give a smaller centre MAE?" in found[-2]
        assert "errors of channels and radius that are not shown" in found[-2]
        assert verdict in found[-2]
    assert "smallest centre MAE is at weight 10, 2.00 to 2.00 fibres" in found[0]
    assert "MAE_cw +30% [+10, +50]" in found[0]
    labels = {axis.get_xlabel() for axis in claim_figure(table, "centre MAE").axes}
    assert labels == {"weight of the centre loss (0: without)"}


def test_the_weight_told_is_that_of_the_loss_where_nothing_else_differs() -> None:
    study = load_study("params/claim_ctr_focal.yaml")
    without = {"teacher": "bs"}
    centre = {name: _weight(study, name, without, "centre") for name in study.students}
    assert centre == {
        "bs": 0.0,
        "ctr1": 1.0,
        "ctr10": 10.0,
        "ctr100": 100.0,
        "ch": None,
        "ch_ctr10": None,
    }
    channel = {name: _weight(study, name, without, "channel") for name in study.students}
    assert channel == {
        "bs": 0.0,
        "ctr1": None,
        "ctr10": None,
        "ctr100": None,
        "ch": 30.0,
        "ch_ctr10": None,
    }


def test_a_single_training_is_called_one() -> None:
    table = table_of(rows_of("scratch_ch30", 30.0, HELPS)).assign(trainings=1)
    assert "One training says nothing" in claim_findings(table)[-1]


def test_every_other_student_has_a_row_in_the_table_of_changes() -> None:
    table = table_of(rows_of("scratch_div", None, HELPS), rows_of("scratch_ch30", 30.0, {}))
    rest = claim_rest(table)
    assert rest["model"].tolist() == ["scratch_div", "scratch_ch30"]
    assert rest["MAE_cw"].tolist() == ["-20.0 [-30.0, -10.0]", "+0.0 [-5.0, +5.0]"]
    # more than the weight tells it from the student without physics
    assert not any("scratch_div" in sentence for sentence in claim_findings(table))
    assert claim_rest(pd.DataFrame()).empty


def test_the_figure_has_a_panel_for_each_data_set_of_each_study() -> None:
    lines = table_of(rows_of("scratch_ch1", 1.0, {}), rows_of("scratch_ch1000", 1000.0, HELPS))
    table = pd.concat([lines, lines.assign(study="splits"), lines.assign(subset="all")])
    figure = claim_figure(table, "MAE_cw")
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == [
        "Λ, fibres, 3 trainings of each",
        "Λ, splits, 3 trainings of each",
        "all species, fibres, 3 trainings of each",
    ]
    labels = [[label.get_text() for label in axis.get_xticklabels()] for axis in figure.axes]
    assert labels == [["0", "1", "1000"]] * 3


def test_a_row_without_its_first_panel_keeps_its_axis() -> None:
    lines = table_of(rows_of("scratch_ch1", 1.0, {}), rows_of("scratch_ch1000", 1000.0, HELPS))
    both = lines.assign(study="splits")
    table = pd.concat([lines, both, both.assign(subset="all")])
    axes = claim_figure(table, "MAE_cw").axes
    for axis in (axes[0], axes[2]):
        assert axis.get_ylabel() == "MAE_cw (photons)"
        assert axis.yaxis.get_tick_params()["labelleft"]


def test_data_sets_of_a_study_each_stand_in_one_row() -> None:
    lines = table_of(rows_of("scratch_ch1", 1.0, {}), rows_of("scratch_ch1000", 1000.0, HELPS))
    table = pd.concat([lines, lines.assign(study="splits", subset="all")])
    axes = claim_figure(table, "MAE_cw").axes
    assert [axis.get_subplotspec().rowspan.start for axis in axes] == [0, 0]  # type: ignore[union-attr]
    for axis in axes:
        assert axis.get_ylabel() == "MAE_cw (photons)"
        assert axis.yaxis.get_tick_params()["labelleft"]
        # nobody began as its teacher
        assert axis.get_legend_handles_labels()[1][-1] == "students, begun from scratch"


def test_a_bad_claim_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "claim.yaml"
    file.write_text(
        yaml.safe_dump(
            {"reports": "reports", "loss": "channel", "studies": ["params/small.yaml"], "open": []}
        )
    )
    with pytest.raises(ParameterError, match=r"claim\.yaml: studies: expected .*, got \["):
        load_claim(file)
    file.write_text(
        yaml.safe_dump(
            {"reports": "reports", "loss": "channel", "studies": {"fibres": []}, "open": []}
        )
    )
    with pytest.raises(ParameterError, match=r"claim\.yaml: studies"):
        load_claim(file)


@pytest.mark.parametrize(
    ("loss", "files"),
    [
        ("channel", ["claim", "claim_centre", "claim_radius"]),
        ("centre", ["claim_centre", "claim", "claim_radius"]),
    ],
)
def test_the_first_picture_is_of_what_the_loss_is_for(
    loss: str, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"reports": "reports", "loss": loss, "studies": {"a": ["a.yaml"]}, "open": []}
    Path("mine.yaml").write_text(yaml.safe_dump(content), "utf-8")
    claim = load_claim("mine.yaml")
    table = table_of(rows_of("ch30", 30.0, HELPS)).assign(loss=loss)
    pictures = claim_pictures(claim, table)
    written = [claim.folder / f"{name}.png" for name in files]
    assert [picture.data for picture in pictures] == [path.read_bytes() for path in written]
    for number, path in enumerate(written):
        text = description_of(path)
        assert f"by the weight of their {loss} loss" in text
        assert ("price" in text) == (number > 0)
