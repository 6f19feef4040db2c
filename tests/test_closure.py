"""Closure: numbers against loops, pulls of nothing, planted faults, and what the sentences say."""

import re

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from tests.event_sets import small_detector
from zdc_nb.data.events import Events, Split, impact_point
from zdc_nb.detector import ZN, Detector, channel_sums, containment_radius, shower_centre
from zdc_nb.evaluation.closure import (
    EVERYTHING,
    FEWEST_PARTICLES,
    Closure,
    Floor,
    beyond_chance,
    bins_of,
    closure_floor,
    closure_of,
    closure_summary,
    compare_correlations,
    compare_means,
    measure,
)
from zdc_nb.evaluation.closure_conclusions import closure_findings, summary_sentences
from zdc_nb.evaluation.closure_figures import (
    correlations_figure,
    means_figure,
    overview_figure,
    pulls_figure,
    tails_figure,
)
from zdc_nb.evaluation.figures import closure_figure
from zdc_nb.evaluation.metrics import Observed, observe

PARTICLES, REPEATS = 60, 8


def draw(
    seed: int, repeats: int = REPEATS, shape: tuple[int, int] = ZN.shape, spread: float = 3.0
) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    """Showers of particles that each have their own light and place; both vary from shot to shot."""
    rng = np.random.default_rng(seed)
    particle = np.repeat(np.arange(PARTICLES), repeats)
    responses = np.zeros((len(particle), *shape), np.uint16)
    for k, label in enumerate(particle):
        own = np.random.default_rng(int(label))
        light = 15 * 3 ** (label % 4)
        middle = own.uniform(0.3, 0.7, 2) * shape + rng.normal(0, spread, 2)
        place = rng.normal(middle, own.uniform(2, 4), (light, 2))
        row, column = np.clip(np.rint(place), 0, np.array(shape) - 1).astype(int).T
        np.add.at(responses[k], (row, column), 1)
    return particle, responses


def as_events(
    particle: NDArray[np.int64], responses: NDArray[np.uint16], detector: Detector = ZN
) -> Events:
    """With species, energies and directions that depend on the particle."""
    own = np.random.default_rng(9)
    features = np.zeros((PARTICLES, 9))
    features[:, 0] = own.uniform(20, 2000, PARTICLES)
    features[:, 4] = own.uniform(-0.6, 0.6, PARTICLES)
    features[:, 6] = 1000
    pdg = np.array([2112, 3122, 310, 22], np.int32)[np.arange(PARTICLES) // 15]
    return Events.from_arrays(
        pdg[particle], features[particle], responses, particle, detector=detector
    )


@pytest.fixture(scope="module")
def test_part() -> Events:
    return as_events(*draw(1))


@pytest.fixture(scope="module")
def again() -> NDArray[np.uint16]:
    """Another simulation of the same particles."""
    return draw(2)[1]


@pytest.fixture(scope="module")
def floor(test_part: Events) -> Floor:
    return Floor(np.ones(len(test_part), bool), draw(3)[1])


# --- numbers ------------------------------------------------------------------------------------


def test_quantities_are_those_of_a_loop(test_part: Events, again: NDArray[np.uint16]) -> None:
    found = measure(again, test_part)
    asked, centres = test_part.photon_sum, shower_centre(again, ZN)
    radii = containment_radius(again, ZN)
    for k in range(0, len(test_part), 37):
        response = again[k]
        row = found.iloc[k]
        assert row["photons"] == pytest.approx(response.sum() / asked[k])
        assert row["lit fibres"] == (response > 0).sum()
        for name, mask in zip(ZN.channels, ZN.masks, strict=True):
            assert row[f"share of {name}"] == pytest.approx(response[mask].sum() / response.sum())
        assert [row["centre row"], row["centre column"]] == pytest.approx(centres[k])
        same = test_part.particle == test_part.particle[k]
        # over a particle the mean of what is told of each response is the sample variance
        expected = centres[same].var(axis=0, ddof=1).sum()
        assert found.loc[same, "variance of centre"].mean() == pytest.approx(expected)
        expected = radii[same].var(ddof=1)
        assert found.loc[same, "variance of radius"].mean() == pytest.approx(expected)


def test_several_generations_are_averaged(test_part: Events) -> None:
    runs = [draw(seed)[1] for seed in (4, 5)]
    seen = [observe(run, ZN) for run in runs]
    observed = Observed(*(np.stack(parts) for parts in zip(*seen, strict=True)))
    both = measure(runs[0], test_part, observed)
    each = [measure(run, test_part) for run in runs]
    for name in both.columns.drop(["photons", "lit fibres"]):
        np.testing.assert_allclose(both[name], (each[0][name] + each[1][name]) / 2)
    pd.testing.assert_series_equal(both["photons"], each[0]["photons"])


def test_a_dark_response_is_no_error(test_part: Events) -> None:
    found = measure(np.zeros_like(test_part.responses), test_part)
    assert (found["photons"] == 0).all()
    assert (found["share of common"] == 0.5).all()
    assert np.isfinite(found.to_numpy()).all()


def test_means_and_uncertainties_are_those_of_a_loop(
    test_part: Events, again: NDArray[np.uint16]
) -> None:
    before, after = measure(test_part.responses, test_part), measure(again, test_part)
    bins = bins_of(test_part)
    table = compare_means(test_part.particle, before, after, bins)
    assert {*table["by"]} == {EVERYTHING, "species", "energy", "photon sum", "edge"}
    for row in table.iloc[::17].to_dict("records"):
        chosen = np.flatnonzero(bins[row["by"]] == row["bin"])
        values = [frame[row["quantity"]].to_numpy()[chosen] for frame in (before, after)]
        off = values[1] - values[0]
        assert row["simulated"] == pytest.approx(values[0].mean())
        assert row["generated"] == pytest.approx(values[1].mean())
        assert row["difference"] == pytest.approx(off.mean())
        sums: dict[int, float] = {}
        for k, response in enumerate(chosen):
            label = int(test_part.particle[response])
            sums[label] = sums.get(label, 0.0) + off[k] - off.mean()
        squares = sum(value**2 for value in sums.values())
        variance = len(sums) / (len(sums) - 1) * squares / len(off) ** 2
        assert row["uncertainty"] == pytest.approx(np.sqrt(variance), abs=1e-12)
        assert row["responses"] == len(off)
        assert row["particles"] == len(sums) >= FEWEST_PARTICLES


def test_bins_hold_what_their_names_say(test_part: Events) -> None:
    bins = bins_of(test_part)
    x, y = impact_point(test_part.features, ZN).T
    for k in range(0, len(test_part), 29):
        low, high = re.findall(r"\d+", bins["photon sum"].astype(str)[k] + " 99999")[:2]
        assert int(low) <= test_part.photon_sum[k] < int(high)
        depth = min(ZN.face[1] / 2 - abs(x[k]), ZN.face[0] / 2 - abs(y[k]))
        assert bins["edge"][k].startswith("inside" if depth > 0 else "outside")
    assert set(bins["species"]) == {"n", "lambda", "k0s", "others"}
    # a particle without a direction has no impact point
    still = as_events(test_part.particle, test_part.responses)
    still.features[:, 4:7] = 0
    assert bins_of(still)["edge"].isna().all()


def test_correlations_are_those_of_a_loop() -> None:
    particle, simulated = draw(6, shape=(7, 5), repeats=3)
    generated = draw(7, shape=(7, 5), repeats=3)[1]
    table = compare_correlations(particle, simulated, generated)
    for row in table.iloc[::3].to_dict("records"):
        down, right = {"along a row": (0, 1), "along a column": (1, 0), "on a diagonal": (1, 1)}[
            row["direction"]
        ]
        down, right = down * row["distance"], right * row["distance"]
        assert row["parity"] == ("other" if (down + right) % 2 else "same")
        for name, responses in (("simulated", simulated), ("generated", generated)):
            each = []
            for label in range(PARTICLES):
                own = responses[particle == label].astype(float)
                product = square = 0.0
                for image in own - own.mean(axis=0):
                    for i in range(7 - down):
                        for j in range(5 - right):
                            a, b = image[i, j], image[i + down, j + right]
                            product += a * b
                            square += (a * a + b * b) / 2
                each.append(product / square)
            assert row[name] == pytest.approx(np.mean(each), abs=1e-5)


def test_independent_fibres_have_no_correlation_and_doubled_ones_a_full_one() -> None:
    rng = np.random.default_rng(0)
    particle = np.repeat(np.arange(40), 10)
    alone = rng.poisson(5, (400, 12, 12)).astype(np.uint16)
    doubled = np.repeat(alone[:, :, ::2], 2, axis=2)
    table = compare_correlations(particle, alone, doubled).set_index(["direction", "distance"])
    assert (table["simulated"].abs() < 0.05).all()
    # of neighbours in a row every second pair is the same fibre
    assert table["generated"]["along a row", 1] == pytest.approx(6 / 11, abs=0.02)
    assert abs(table["generated"]["along a column", 1]) < 0.03
    assert table["pull"]["along a row", 1] > 20


# --- pulls of nothing ---------------------------------------------------------------------------


def test_pulls_of_simulated_against_simulated_have_unit_spread() -> None:
    pulls: dict[str, list[float]] = {"means": [], "tails": [], "correlations": []}
    for seed in range(6):
        part, other = as_events(*draw(100 + seed)), draw(200 + seed)[1]
        closure = closure_of(part, other)
        # the photon sums of these showers are the same
        means = closure.means[closure.means["quantity"] != "photons"]
        pulls["means"] += [*means["pull"]]
        common = closure.tails["simulated"] > 0.02
        pulls["tails"] += [*closure.tails.loc[common, "pull"]]
        pulls["correlations"] += [*closure.correlations["pull"]]
    for kind, values in pulls.items():
        assert np.std(values) == pytest.approx(1.0, abs=0.15), kind
        assert abs(np.mean(values)) < 0.15, kind


def test_nothing_is_named_where_nothing_is_wrong(test_part: Events, floor: Floor) -> None:
    for seed in (2, 31, 32):
        text = closure_findings(closure_of(test_part, draw(seed)[1], floor=floor), "m", "all")
        assert "No failure was found" in text
        assert "Not told from simulation" in text
        summary = closure_summary(test_part, {"m": (draw(seed)[1], None)}, floor)
        (sentence,) = summary_sentences(summary.assign(subset="all"))
        assert "not told from simulation on any data set" in sentence


# --- planted faults -----------------------------------------------------------------------------


def failures(text: str) -> list[str]:
    """The groups that are named, in their order."""
    lines = [line for line in text.splitlines() if "(pull" in line or "(always" in line]
    return [re.findall(r"\*\*(.*?)\*\*", line)[0] for line in lines]


def test_photons_lost_at_low_sums_are_named_first(
    test_part: Events, again: NDArray[np.uint16], floor: Floor
) -> None:
    rng = np.random.default_rng(5)
    lost = again.copy()
    few = test_part.photon_sum < 30
    lost[few] = rng.binomial(lost[few], 0.6)
    closure = closure_of(test_part, lost, floor=floor)
    text = closure_findings(closure, "m", "all")
    given = lost[few].sum(axis=(1, 2)) / test_part.photon_sum[few]
    assert f"gives {given.mean():.0%} of the photons asked for at 10 to 30 photons (pull -" in text
    assert "new simulations 100%" in text
    assert failures(text)[0] == "Photons"
    assert "Radius" not in failures(text)
    summary = closure_summary(test_part, {"m": (lost, None)}, floor).assign(subset="all")
    (sentence,) = summary_sentences(summary)
    assert f"gives {given.mean():.0%} of the photons asked for at 10 to 30 photons" in sentence
    # and where no floor is there, it says so
    alone = closure_findings(closure_of(test_part, lost), "m", "all")
    assert failures(alone)[0] == "Photons"
    assert "**No floor**" in alone


def test_a_variance_that_is_lost_is_named(test_part: Events, floor: Floor) -> None:
    fixed = draw(2, spread=0.0)[1]
    closure = closure_of(test_part, fixed, floor=floor)
    text = closure_findings(closure, "m", "all")
    row = closure.means.query("by == @EVERYTHING and quantity == 'variance of centre'").iloc[0]
    assert row["generated"] < 0.2 * row["simulated"]
    assert "keeps" in text
    assert "of the variance of the centre" in text
    assert "Variance of centre" in failures(text)
    assert "Photons" not in failures(text)


def test_a_second_bump_in_the_radius_is_named(
    test_part: Events, again: NDArray[np.uint16], floor: Floor
) -> None:
    rng = np.random.default_rng(3)
    wide = again.copy()
    for k in np.flatnonzero(rng.random(len(wide)) < 0.1):
        wide[k] = 0
        photons = test_part.photon_sum[k]
        angle = rng.uniform(0, 2 * np.pi, photons)
        place = 21.5 + 17 * np.stack([np.sin(angle), np.cos(angle)])
        np.add.at(wide[k], tuple(np.rint(place).astype(int)), 1)
    closure = closure_of(test_part, wide, floor=floor)
    assert "Spectrum of radius" in failures(closure_findings(closure, "m", "all"))
    worst = beyond_chance(closure.tails).iloc[0]
    assert worst["quantity"] == "radius"
    bump = closure.tails[
        (closure.tails["quantity"] == "radius") & np.isfinite(closure.tails["high"])
    ]
    found = bump.loc[bump["difference"].idxmax()]
    assert 14 <= found["low"] <= 18
    assert found["difference"] == pytest.approx(0.07, abs=0.03)


def test_a_floor_that_is_off_to_the_other_side_excuses_nothing() -> None:
    row = {"difference": 1.0, "uncertainty": 0.01, "pull": 100.0, "scale": 2.0, "particles": 50}
    table = pd.DataFrame([row | {"floor_difference": off} for off in (-1.5, 0.3, 1.5, np.nan)])
    found = beyond_chance(table)
    assert sorted(found.index) == [0, 1, 3]
    assert found["excess"].to_dict() == pytest.approx({0: 0.49, 1: 0.34, 3: 0.49})


# --- data of all sorts --------------------------------------------------------------------------


def test_without_repeats_variances_and_correlations_are_left_out_and_it_says_so() -> None:
    part, other = as_events(*draw(1, repeats=1)), draw(2, repeats=1)[1]
    closure = closure_of(part, other)
    assert not closure.means["quantity"].str.startswith("variance").any()
    assert closure.correlations.empty
    text = closure_findings(closure, "m", "all")
    assert text.count("**Not compared**") == 2
    assert "nan" not in text
    draw_all(closure)


def test_too_few_particles_are_said_to_be_too_few(test_part: Events) -> None:
    few = test_part[test_part.particle < FEWEST_PARTICLES - 1]
    closure = closure_of(few, few.responses)
    assert closure.means.empty
    assert "too few particles to compare any means" in closure_findings(closure, "m", "all")
    tails_figure(closure, "m").draw_without_rendering()
    correlations_figure(closure, "m").draw_without_rendering()
    assert closure_summary(few, {"m": (few.responses, None)}).empty


def test_another_detector() -> None:
    detector = small_detector()
    part = as_events(*draw(1, shape=detector.shape), detector=detector)
    other = draw(2, shape=detector.shape)[1]
    closure = closure_of(part, other, floor=Floor(part.particle > 5, other[part.particle > 5]))
    shares = {f"share of {name}" for name in detector.channels}
    assert shares <= set(closure.means["quantity"])
    light = channel_sums(other, detector)
    np.testing.assert_array_equal(closure.values["generated"]["3"][0], light[:, 3])
    # the floor is compared with the responses that it answers
    row = closure.means.query("by == @EVERYTHING and quantity == 'lit fibres'").iloc[0]
    answered = part.particle > 5
    lit = [np.count_nonzero(each[answered], axis=(1, 2)).mean() for each in (part.responses, other)]
    assert row["floor"] == pytest.approx(lit[1])
    assert row["floor_difference"] == pytest.approx(lit[1] - lit[0])
    draw_all(closure)


def test_a_response_too_few_is_refused(test_part: Events, again: NDArray[np.uint16]) -> None:
    with pytest.raises(ValueError, match=r"expected 480 responses, .* got 479"):
        closure_of(test_part, again[1:])


def test_the_floor_is_that_of_the_baselines(test_part: Events) -> None:
    reserved = as_events(*draw(8))
    reserved = reserved[reserved.particle != 7]
    found = closure_floor(Split(test_part, test_part, test_part, reserved), seed=4)
    assert found is not None
    assert found.answered.tolist() == (test_part.particle != 7).tolist()
    sums = found.responses.sum(axis=(1, 2))
    np.testing.assert_array_equal(sums, test_part.photon_sum[found.answered])
    nobody = reserved[reserved.particle > PARTICLES]
    assert closure_floor(Split(test_part, test_part, test_part, nobody), seed=4) is None


def draw_all(closure: Closure) -> None:
    for figure in (pulls_figure, means_figure, tails_figure, correlations_figure):
        figure(closure, "m").draw_without_rendering()


def test_figures_show_the_tables(
    test_part: Events, again: NDArray[np.uint16], floor: Floor
) -> None:
    closure = closure_of(test_part, again, floor=floor)
    images = [axis.images[0] for axis in pulls_figure(closure, "m").axes if axis.images]
    for image, column in zip(images, ("pull", "floor_pull"), strict=True):
        shown = np.sort(np.asarray(image.get_array()).ravel())
        expected = np.sort(np.clip(closure.means[column], -8, 8))
        np.testing.assert_allclose(shown[np.isfinite(shown)], expected)
    parts = [
        closure_summary(test_part, {"teacher": (again, None), "m": (again, None)}, floor).assign(
            subset=subset
        )
        for subset in ("n", "all")
    ]
    summary = pd.concat(parts, ignore_index=True)
    overview_figure(summary, "m").draw_without_rendering()
    figure = closure_figure(summary)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0] == "photons given of those asked for,\n10 to 30 photons"
    row = summary.query("model == 'm' and quantity == 'radius' and by == @EVERYTHING").iloc[0]
    (radius,) = (axis for axis in figure.axes if axis.get_title() == "radius")
    heights = [y for line in radius.containers for y in line[0].get_ydata()]
    assert row["generated"] / row["simulated"] == pytest.approx(heights[0])
