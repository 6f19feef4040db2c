"""Photon sums that are learned: better than chance, calibrated where they should be, told where not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from tests.projects import ROOT
from zdc_nb.data.events import Split, keep_aside, split_by_response
from zdc_nb.data.simulation import simulate
from zdc_nb.data.symbols import drawn_symbol
from zdc_nb.detector import ZN
from zdc_nb.evaluation.metrics import observe
from zdc_nb.evaluation.photon_sum import (
    calibration_curves,
    calibration_figure,
    channels_figure,
    draw_sums,
    light_table,
    photon_sum_findings,
    photon_sum_scores,
    quantile_figure,
    quantile_table,
    sum_spectrum_figure,
)
from zdc_nb.evaluation.tables import end_to_end_findings, end_to_end_table, in_order
from zdc_nb.flows.particle_nets import PhotonSum
from zdc_nb.generator.particle_models import (
    PhotonSumModel,
    load_particle_model,
    save_particle_model,
)
from zdc_nb.params import load_study
from zdc_nb.training.trainers import train_photon_sum

SMOKE = load_study(ROOT / "params" / "smoke.yaml")


@pytest.fixture(scope="module")
def parts():
    learned = split_by_response(simulate(6000, 3, 10, seed=1), (0.8, 0.1, 0.1), seed=1)
    test, reserved = keep_aside(simulate(1500, 30, 10, seed=2), 0.5, seed=3)
    return Split(learned.train, learned.validation, test, reserved)


def known(test, spread=0.2, shift=0.0):
    """One broad component for each response, about a number of its own."""
    centres = torch.from_numpy(np.log(test.features[:, 0] * 0.2 + 20))[:, None] + shift
    return PhotonSum(torch.zeros_like(centres), centres, torch.full_like(centres, spread), 10)


def test_training_learns_the_particle(parts, tmp_path):
    assert SMOKE.photon_sum is not None
    params = SMOKE.photon_sum.model_copy(
        update={"hidden": [64], "components": 6, "epochs": 12, "batch": 128}
    )
    study = SMOKE.model_copy(update={"photon_sum": params})
    model, history = train_photon_sum(parts.train, parts.validation, study, "all")
    again, _ = train_photon_sum(parts.train, parts.validation, study, "all")
    distribution = model.distribution(parts.test.features, ZN)
    scores = photon_sum_scores(parts, distribution, draw_sums(distribution, 1, 3)).set_index(
        "model"
    )
    assert scores.nats["drawn"] < scores.nats["ignorant"] - 0.2
    curves = calibration_curves(parts.test, distribution, 1)
    whole = curves[curves.group == "all"]
    assert (whole["share"] - whole["level"]).abs().max() < 0.1
    for one, other in zip(model.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (history["term"] == "loss").all()
    path = tmp_path / "photon_sum.safetensors"
    save_particle_model(model, path)
    kept = load_particle_model(path)
    assert isinstance(kept, PhotonSumModel)
    loaded = kept.distribution(parts.test.features[:50], ZN)
    assert torch.equal(loaded.centres, model.distribution(parts.test.features[:50], ZN).centres)
    # however many are asked about at once
    assert torch.equal(loaded.centres[:32], distribution.centres[:32])


def test_calibration_is_flat_for_the_truth_and_not_for_what_is_shifted(parts):
    test = parts.test
    truth = known(test)
    torch.manual_seed(1)
    sums = truth.sample().numpy()
    drawn = test[np.arange(len(test))]
    # the same particles with sums that the truth has drawn
    scaled = drawn.photons.copy().astype(np.int64)
    scaled.data[:] = 0
    scaled = scaled.tolil()
    scaled[:, 0] = np.minimum(sums, 65535)[:, None]
    events = type(test).from_arrays(
        test.pdg, test.features, scaled.tocsr().astype(np.uint16), test.particle
    )
    flat = calibration_curves(events, truth, 1)
    off = (flat["share"] - flat["level"]).abs()[flat["group"] == "all"]
    assert off.max() < 0.04
    wrong = calibration_curves(events, known(test, shift=0.3), 1)
    whole = wrong[wrong["group"] == "all"]
    # a model that says too much: more of the sums lie below its quantiles
    assert (whole["share"] > whole["level"]).all()
    assert (whole["share"] - whole["level"]).max() > 0.1


def test_quantiles_are_those_of_the_responses_of_a_bin(parts):
    test = parts.test
    table = quantile_table(test, test.photon_sum[None])
    np.testing.assert_allclose(table["simulated"], table["drawn"])
    sizes = table[table["level"] == 0.5].groupby("group")["responses"].sum()
    assert sizes.sum() == len(test)
    n = table[(table["group"] == "n") & (table["level"] == 0.5)]
    if len(n) == 1:
        assert n["simulated"].item() == np.quantile(test.photon_sum[test.pdg == 2112], 0.5)


def test_scores_and_sentences_tell_the_floor(parts):
    test, reserved = parts.test, parts.reserved
    split = Split(parts.train, parts.validation, test, reserved)
    distribution = known(test)
    drawn = draw_sums(distribution, 1, 2)
    scores = photon_sum_scores(split, distribution, drawn).set_index("model")
    expected = np.mean([wasserstein_distance(test.photon_sum, run) for run in drawn])
    assert scores.WS["drawn"] == pytest.approx(expected)
    text = photon_sum_findings(
        "all", scores.reset_index(), calibration_curves(test, distribution, 1)
    )
    assert "times what further simulations" in text or "reference" not in scores.index


def test_light_is_counted_over_all_simulations():
    from zdc_nb.data.simulation import simulate_counted  # noqa: PLC0415

    events, trials = simulate_counted(600, 4, 10, seed=5)
    drawn = np.zeros((2, len(trials)), np.int64)
    row = trials.find(events)
    np.add.at(drawn[0], row, events.photon_sum)
    table = light_table(trials, events, drawn).set_index("group")
    # the last particles have lit simulations that are not among the events
    whole = np.bincount(row, minlength=len(trials)) == trials.lit
    assert 0.8 < whole.mean() < 1
    kept = trials[whole]
    assert table.particles["all"] == len(kept)
    total = events.photon_sum[whole[row]].sum() / kept.simulated.sum()
    assert table.photons_simulated["all"] == pytest.approx(total)
    # two runs, the second dark; each particle was simulated four times
    assert table.photons_drawn["all"] == pytest.approx(drawn[:, whole].mean(0).mean())
    assert table.lit_simulated["all"] == pytest.approx(kept.lit.sum() / kept.simulated.sum())


def test_figures_show_what_is_compared(parts):
    test = parts.test
    distribution = known(test)
    drawn = draw_sums(distribution, 1, 2)
    curves = calibration_figure(calibration_curves(test, distribution, 1), "x").axes[0]
    assert "less the level" in curves.get_ylabel()
    assert len(curves.get_legend_handles_labels()[1]) >= 2
    panels = quantile_figure(quantile_table(test, drawn), "x").axes
    names = {drawn_symbol(name) for name in ("n", "lambda", "k0s", "sigma+", "others")}
    assert {axis.get_title() for axis in panels} <= names
    assert len(sum_spectrum_figure(test, drawn, "x").axes) == 2
    seen = observe(test.responses, ZN)
    both = type(seen)(*(np.stack([part, part]) for part in seen))
    figure = channels_figure(test, both, "x")
    assert [a.get_title() for a in figure.axes[:5]] == list(ZN.channels)
    # the same responses: the ratio is one
    points = figure.axes[5].lines[0].get_ydata()
    np.testing.assert_allclose(np.asarray(points), 1)


def test_end_to_end_stands_beside_what_is_given():
    import pandas as pd  # noqa: PLC0415

    columns = ["subset", "model", "metric", "run", "value"]
    models = (("bs", 2.0), ("reference", 3.0), ("reference+sum", 1.5))
    rows = [("n", name, "WS", run, value) for name, value in models for run in range(2)]
    given = pd.DataFrame(rows, columns=columns)
    drawn = pd.DataFrame([("n", "bs+N", "WS", run, 3.0) for run in range(2)], columns=columns)
    table = end_to_end_table(given, drawn)
    assert table.iloc[0].tolist() == ["n", "bs", "WS", 2.0, 3.0, 1.5, 3.0, 2.0]
    text = end_to_end_findings(table)
    assert "with 3, 1.50 times" in text
    assert "New simulations of the same particles have 3, 2.00 times" in text
    alone = end_to_end_table(given[given.model == "bs"], drawn)
    assert "New simulations" not in end_to_end_findings(alone)
    assert in_order(["splitting+N", "bs", "splitting", "bs+N", "other", "teacher"]) == [
        "teacher",
        "bs",
        "other",
        "splitting",
        "bs+N",
        "splitting+N",
    ]
