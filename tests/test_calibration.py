"""The open simulation against the published facts, and the table that says so."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from particle import Particle

from zdc_nb.data import figures as figures_data
from zdc_nb.data.calibration import (
    UNITS,
    calibration_findings,
    calibration_sample,
    calibration_table,
    example_table,
    published_facts,
)
from zdc_nb.data.events import FEATURES, Events
from zdc_nb.data.simulation import simulate
from zdc_nb.detector.observables import diversity
from zdc_nb.params import load_study

ROOT = Path(__file__).parents[1]
FACTS = ROOT / "zdc_nb" / "data" / "published" / "zn_marginals.json"
ORDER_STATISTICS = ("least", "largest", "median", "lower quartile", "upper quartile")
COLUMNS = [
    "set",
    "quantity",
    "unit",
    "published",
    "simulated",
    "measure",
    "value",
    "tolerance",
    "within",
]


@pytest.fixture(scope="module")
def sample() -> Events:
    return calibration_sample(load_study(ROOT / "params" / "small.yaml"))


@pytest.fixture(scope="module")
def table(sample: Events) -> pd.DataFrame:
    return calibration_table(sample[sample.photon_sum >= 10], sample)


@pytest.fixture(scope="module")
def events() -> Events:
    return simulate(1500, 20, 10, seed=4)


def numbers(value: Any) -> Iterator[float]:
    """Every number in a nested piece of JSON."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    else:
        yield float(value)


def row(table: pd.DataFrame, block: str, quantity: str) -> Any:
    (found,) = table[(table["set"] == block) & (table["quantity"] == quantity)].itertuples()
    return found


def test_every_published_figure_has_a_row(table: pd.DataFrame) -> None:
    facts = json.loads(FACTS.read_text("utf-8"))
    assert facts == published_facts()
    unfiltered = facts["neutron_responses_unfiltered_511810"]
    filtered = facts["neutron_responses_filtered_for_training"]
    paper = facts["paper_2512.20346"]
    expected = {
        "unfiltered": sorted(numbers(unfiltered)),
        "filtered": sorted(
            [paper["species"], *numbers(paper["fraction_by_species"]), *numbers(filtered)]
        ),
    }
    for block, figures in expected.items():
        assert sorted(table.loc[table["set"] == block, "published"]) == figures
    assert list(table.columns) == COLUMNS
    assert not table.duplicated(["set", "quantity"]).any()
    assert table["within"].dtype == bool
    assert np.isfinite(table[["published", "simulated", "value"]]).all(axis=None)


def test_what_is_simulated_is_the_statistic_that_is_named(
    table: pd.DataFrame, sample: Events
) -> None:
    """By pandas, which has its own quantiles and spreads."""
    frame = pd.DataFrame(sample.features, columns=FEATURES)
    light = pd.Series([int(response.sum(dtype=int)) for response in sample.responses])
    bright = frame[light >= 10]
    described = light[light > 0].describe()
    name = "photon sum of responses with light"
    expected = {
        ("unfiltered", f"{name}, lower quartile"): described["25%"],
        ("unfiltered", f"{name}, median"): described["50%"],
        ("unfiltered", f"{name}, upper quartile"): described["75%"],
        ("unfiltered", f"{name}, mean"): described["mean"],
        ("unfiltered", "photon sum, largest"): described["max"],
        ("unfiltered", "brightest fibre"): max(int(r.max()) for r in sample.responses),
        ("unfiltered", "fibres without light, fraction"): (sample.responses == 0).mean(),
        ("unfiltered", "energy, median"): frame["energy"].median(),
        ("unfiltered", "energy, least"): frame["energy"].min(),
        ("unfiltered", "pz, spread"): frame["pz"].std(ddof=0),
        ("unfiltered", "mass, upper quartile"): frame["mass"].quantile(0.75),
        ("unfiltered", "charge, mean"): frame["charge"].mean(),
        ("filtered", "px, mean"): bright["px"].mean(),
        ("filtered", "vz, spread"): bright["vz"].std(ddof=0),
        ("filtered", "mass, spread"): bright["mass"].std(ddof=0),
        ("filtered", "species"): len(set(sample.pdg[light >= 10])),
        ("filtered", "fraction of lambda"): (sample.pdg[light >= 10] == 3122).mean(),
    }
    for (block, quantity), value in expected.items():
        assert row(table, block, quantity).simulated == pytest.approx(value), quantity


def test_the_simulation_is_within_tolerance_of_every_published_figure(
    table: pd.DataFrame,
) -> None:
    assert table.loc[~table["within"], ["set", "quantity", "published", "simulated"]].empty
    assert calibration_findings(table) == "50 of 50 published figures are met within tolerance."


@pytest.mark.parametrize("seed", [1, 2])
def test_that_does_not_hang_on_one_seed(seed: int) -> None:
    study = load_study(ROOT / "params" / "small.yaml").model_copy(update={"seed": seed})
    sample = calibration_sample(study)
    assert calibration_table(sample[sample.photon_sum >= 10], sample)["within"].mean() >= 0.96


@pytest.mark.parametrize("factor", [1.0, 1.17, 0.8, 1.45, 2.0])
def test_tolerances_are_the_announced_ones(sample: Events, factor: float) -> None:
    """The verdict from the numbers of the table alone, written out anew, for distorted events."""
    light = np.rint(factor * sample.responses).astype(np.uint16)
    changed = Events.from_arrays(sample.pdg, factor * sample.features, light, sample.particle)
    table = calibration_table(changed[changed.photon_sum >= 10], changed)
    assert table["within"].all() == (factor == 1)
    spreads = published_facts()["neutron_responses_filtered_for_training"]["stds"]
    for line in table.itertuples():
        quantity, ours, theirs = str(line.quantity), float(line.simulated), float(line.published)  # type: ignore[arg-type]
        feature, _, kind = quantity.partition(", ")
        if theirs == 0 or quantity == "species":
            good = ours == theirs
        elif "without light" in quantity:
            good = abs((1 - ours) / (1 - theirs) - 1) <= 0.2
        elif kind in ORDER_STATISTICS or quantity == "brightest fibre":
            good = max(ours / theirs, theirs / ours) <= 1.5
        elif line.set == "filtered" and kind == "mean" and abs(theirs) < 0.2 * spreads[feature]:
            good = abs(ours - theirs) <= 0.2 * spreads[feature]
        else:
            good = abs(ours / theirs - 1) <= 0.2
        assert line.within == good, quantity


@pytest.mark.parametrize(
    ("column", "factor", "quantity"),
    [
        ("energy", 1.5, "energy, mean"),
        ("vz", 0.5, "vz, spread"),
        ("px", 2.0, "px, spread"),
        ("mass", 0.001, "mass, mean"),
        ("charge", -1.0, "charge, mean"),
    ],
)
def test_events_that_are_off_are_marked_and_told(
    sample: Events, column: str, factor: float, quantity: str
) -> None:
    features = sample.features.copy()
    features[:, FEATURES.index(column)] *= factor
    changed = Events.from_arrays(sample.pdg, features, sample.responses, sample.particle)
    table = calibration_table(changed[sample.photon_sum >= 10])
    line = row(table, "filtered", quantity)
    assert not line.within
    text = calibration_findings(table)
    assert f"- {quantity} (filtered): published {line.published:.4g}" in text
    assert "background-color" in figures_data.styled_calibration(table).to_html()


def test_brighter_responses_are_noticed(sample: Events) -> None:
    lit = Events.from_arrays(
        sample.pdg, sample.features, (2 * sample.responses).astype(np.uint16), sample.particle
    )
    table = calibration_table(lit[lit.photon_sum >= 10], lit)
    wrong = set(table.loc[~table["within"], "quantity"])
    assert {"brightest fibre", "photon sum, largest"} <= wrong
    assert "photon sum of responses with light, mean" in wrong


def test_ones_own_events_are_held_against_the_filtered_figures_only(events: Events) -> None:
    table = calibration_table(events)
    assert set(table["set"]) == {"filtered"}
    assert len(table) == 1 + 4 + 18


def test_events_that_cannot_be_compared_are_refused(events: Events) -> None:
    with pytest.raises(ValueError, match="at least one filtered response"):
        calibration_table(events[:0])
    dark = Events.from_arrays(
        events.pdg, events.features, np.zeros_like(events.responses), events.particle
    )
    with pytest.raises(ValueError, match="light in at least one"):
        calibration_table(events, dark)


def test_units_are_the_published_ones(table: pd.DataFrame) -> None:
    assert list(UNITS) == list(FEATURES)
    comment = published_facts()["comment"]
    for text in ("momenta GeV", "positions m", "masses MeV", "charge e"):
        assert text in comment
    assert row(table, "filtered", "mass, mean").unit == "MeV"
    assert row(table, "filtered", "vx, spread").unit == "m"
    assert row(table, "filtered", "pz, mean").unit == "GeV"


def test_published_single_responses_are_in_the_simulated_range() -> None:
    examples = example_table(seed=1)
    published = published_facts()["example_rows"]
    assert examples["published"].tolist() == [e["zn_photons"] for e in published]
    inside = (examples["low"] <= examples["published"]) & (
        examples["published"] <= examples["high"]
    )
    np.testing.assert_array_equal(examples["within"], inside)
    # of ten central 90% ranges fewer than seven fail to hold with a chance of about 1%
    assert inside.sum() >= 7
    # a range that holds everything would say nothing
    neutron = examples[examples["pdg"] == 2112].iloc[0]
    assert neutron["high"] < 0.6 * neutron["energy"]
    pd.testing.assert_frame_equal(examples, example_table(seed=1))


# --- Tables and figures of the events


def test_the_species_table_counts_by_hand(events: Events) -> None:
    table = figures_data.species_table(events).set_index("pdg")
    assert table["responses"].is_monotonic_decreasing
    assert table["responses"].sum() == len(events)
    assert table["fraction"].sum() == pytest.approx(1)
    assert table["published"].dropna().to_dict() == {
        pdg: share
        for pdg, share in {2112: 0.23, 3122: 0.03, 310: 0.02, 3222: 0.005}.items()
        if pdg in table.index
    }
    for pdg in table.index:
        mine = events[events.pdg == pdg]
        line = table.loc[pdg]
        assert line["name"] == Particle.from_pdgid(int(pdg)).name
        assert line["responses"] == len(mine)
        assert line["particles"] == len(np.unique(mine.particle))
        assert line["photons_median"] == np.median(mine.photon_sum)
        _, counts = np.unique(mine.particle, return_counts=True)
        f_div = diversity(mine.responses, mine.particle)[counts > 1]
        if len(f_div):
            assert line["f_div_median"] == pytest.approx(np.median(f_div))
        else:
            assert np.isnan(line["f_div_median"])


def test_unknown_species_have_no_name_but_a_row(events: Events) -> None:
    some = events[:40]
    unknown = Events.from_arrays(
        np.zeros_like(some.pdg), some.features, some.responses, some.particle
    )
    (line,) = figures_data.species_table(unknown).itertuples()
    assert (line.name, line.responses) == ("unknown", 40)
    (legend,) = figures_data.spectra_figure(unknown).legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["all species", "PDG 0"]


def test_group_table_matches_the_groups(events: Events) -> None:
    groups = figures_data.group_table(events)
    assert groups["responses"].sum() == len(events)
    largest = groups.iloc[groups["f_div"].argmax()]
    label = np.unique(events.particle)[groups["f_div"].argmax()]
    light = events.responses[events.particle == label].astype(float)
    assert len(light) == largest["responses"]
    by_hand = sum(light[:, i, j].std() for i in range(44) for j in range(44))
    assert largest["f_div"] == pytest.approx(by_hand)


def test_spectra_hold_every_response_once(events: Events) -> None:
    for axis in figures_data.spectra_figure(events).axes:
        total, *parts = [patch.get_xy() for patch in axis.patches]  # type: ignore[attr-defined]
        # a step outline visits every bin's height twice
        heights = [outline[1:-1:2, 1].sum() for outline in (total, *parts)]
        assert heights[0] == len(events)
        assert sum(heights[1:]) == len(events)


def test_repeats_are_of_one_particle_and_go_from_dim_to_bright(events: Events) -> None:
    figure = figures_data.repeats_figure(events[np.isin(events.pdg, [22, 2112, 2212])], 4)
    faces = [axis for axis in figure.axes if axis.images]
    assert len(faces) == 2 * 4
    for k, pdg in enumerate((22, 2112)):
        shown = [np.ma.filled(axis.images[0].get_array(), 0) for axis in faces[4 * k : 4 * k + 4]]  # type: ignore[arg-type]
        sums = [int(face.sum()) for face in shown]
        assert sums == sorted(sums)
        owners = [
            set(events.particle[(events.responses == face).all(axis=(1, 2)) & (events.pdg == pdg)])
            for face in shown
        ]
        assert len(set.intersection(*owners)) == 1


def test_the_gallery_shows_what_was_chosen_with_its_photons(events: Events) -> None:
    figure = figures_data.gallery_figure(events, [5, 90, 700, 3, 1])
    faces = [axis for axis in figure.axes if axis.images]
    for axis, k in zip(faces, [5, 90, 700, 3, 1], strict=True):
        assert f"{events.photon_sum[k]} photons" in axis.get_title()
        shown = np.ma.filled(axis.images[0].get_array(), 0)  # type: ignore[arg-type]
        np.testing.assert_array_equal(shown, events.responses[k])


def test_events_without_repeats_or_known_species_have_figures_too(events: Events) -> None:
    _, first = np.unique(events.particle, return_index=True)
    single = events[first]
    lone = Events.from_arrays(
        np.zeros_like(single.pdg), single.features, single.responses, single.particle
    )
    figure = figures_data.repeats_figure(lone, 4)
    assert sum(bool(axis.images) for axis in figure.axes) == 1
    groups = figures_data.group_table(lone)
    assert (groups["responses"] == 1).all()
    assert (groups["f_div"] == 0).all()
    for figure in (figures_data.groups_figure(groups), figures_data.diversity_figure(groups)):
        FigureCanvasAgg(figure).draw()
    assert figures_data.species_table(lone)["f_div_median"].isna().all()


def test_figures_of_groups_and_light_count_all(events: Events, sample: Events) -> None:
    groups = figures_data.group_table(events)
    (axis,) = figures_data.groups_figure(groups).axes
    assert sum(bar.get_height() for bar in axis.patches) == len(groups)  # type: ignore[attr-defined]
    (axis,) = figures_data.light_figure(sample, 10).axes
    heights, edges, _ = axis.patches[0].get_data()  # type: ignore[attr-defined]
    assert (heights * np.diff(np.log(edges))).sum() == pytest.approx((sample.photon_sum > 0).sum())
    repeated = groups[groups["responses"] > 1]
    (axis,) = figures_data.diversity_figure(groups).axes
    assert len(axis.get_yticks()) == repeated["pdg"].nunique()
