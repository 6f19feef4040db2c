"""How often particles send light: counted by a loop, kept for files, learned and calibrated."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss, roc_auc_score

from tests.projects import ROOT
from zdc_nb.data.events import Trials
from zdc_nb.data.root import write_root
from zdc_nb.data.simulation import simulate, simulate_counted
from zdc_nb.detector import ZN
from zdc_nb.evaluation.signal import (
    calibration_error,
    reliability_table,
    signal_figure,
    signal_findings,
    signal_scores,
)
from zdc_nb.params import PathParams, load_study
from zdc_nb.study.dataset import study_events, study_trials

SMOKE = load_study(ROOT / "params" / "smoke.yaml")


def test_trials_count_every_simulation_of_every_particle():
    events, trials = simulate_counted(800, 5, 10, seed=3)
    # the same simulation with nothing dropped
    every = simulate(5 * 64 * 60, 5, 0, seed=3)[: trials.simulated.sum()]
    assert len(every) == trials.simulated.sum()
    assert (trials.simulated == 5).all()
    counts: dict[bytes, list[int]] = {}
    for row, photons in zip(every.features, every.photon_sum, strict=True):
        counts.setdefault(row.tobytes(), []).append(int(photons >= 10))
    for row, simulated, lit in zip(trials.features, trials.simulated, trials.lit, strict=True):
        assert len(counts[row.tobytes()]) == simulated
        assert sum(counts[row.tobytes()]) == lit
    assert len(counts) == len(trials)
    assert trials.lit.sum() >= len(events)
    assert (trials.lit == 0).any()
    np.testing.assert_array_equal(simulate(800, 5, 10, seed=3).features, events.features)


def test_joined_trials_add_up_and_find_their_events():
    events, trials = simulate_counted(300, 3, 10, seed=4)
    both = Trials.join([trials, trials[:50]])
    assert len(both) == len(trials)
    assert both.simulated.sum() == 3 * (len(trials) + 50)
    row = trials.find(events)
    assert (row >= 0).all()
    np.testing.assert_array_equal(trials.features[row], events.features)
    other = simulate(50, 3, 10, seed=5)
    assert (trials.find(other) == -1).all()


def own_study(tmp_path, **data):
    return SMOKE.model_copy(
        update={
            "data": SMOKE.data.model_copy(update=data),
            "paths": PathParams(artifacts=str(tmp_path / "a"), reports=str(tmp_path / "r")),
        }
    )


def test_a_simulated_study_keeps_its_trials(tmp_path):
    study = own_study(tmp_path)
    parts = study_trials(study, "all")
    assert parts is not None
    rows = [{row.tobytes() for row in part.features} for part in parts]
    assert not (rows[0] & rows[1])
    assert not (rows[0] & rows[2])
    assert not (rows[1] & rows[2])
    events = study_events(study)
    found = np.sum([part.find(events) >= 0 for part in parts], axis=0)
    assert (found == 1).all()
    # lost, they are made again, and the events stay what they are
    kept = study.artifacts / "data.root"
    before = kept.stat().st_mtime_ns
    (study.artifacts / "trials.npz").unlink()
    again = study_trials(study, "all")
    assert again is not None
    np.testing.assert_array_equal(again[0].lit, parts[0].lit)
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(("least", "known"), [(0, True), (1, False)])
def test_files_have_trials_where_they_hold_empty_responses(tmp_path, least, known):
    events = simulate(3000, 5, least, seed=6)
    path = tmp_path / "data.root"
    write_root([events], path)
    study = own_study(tmp_path, file=str(path), strict=True, test_repeats=None)
    parts = study_trials(study, "all")
    assert (parts is not None) == known
    if parts is not None:
        assert sum(part.simulated.sum() for part in parts) == len(events)
        lit = int((events.photon_sum >= study.data.min_photons).sum())
        assert sum(part.lit.sum() for part in parts) == lit


def made_up(bias=0.0):
    rng = np.random.default_rng(1)
    p = rng.beta(0.5, 0.7, 2000)
    simulated = rng.integers(1, 20, 2000)
    lit = rng.binomial(simulated, np.clip(p + bias, 0, 1))
    pdg = np.where(rng.random(2000) < 0.5, 2112, 22).astype(np.int32)
    return p, Trials(pdg, np.zeros((2000, 9)), simulated, lit)


def test_scores_are_those_of_scikit_learn_on_single_simulations():
    p, trials = made_up()
    scores = signal_scores(p, trials, ZN.codes).set_index("group")
    label = np.concatenate(
        [np.repeat([1, 0], [k, n - k]) for k, n in zip(trials.lit, trials.simulated, strict=True)]
    )
    predicted = np.repeat(p, trials.simulated)
    assert scores.auc["all"] == pytest.approx(roc_auc_score(label, predicted), rel=1e-9)
    assert scores.nats["all"] == pytest.approx(log_loss(label, predicted), rel=1e-9)
    table = reliability_table(p, trials)
    observed, mean = calibration_curve(label, predicted, n_bins=15)
    np.testing.assert_allclose(table["observed"], observed, rtol=1e-9)
    np.testing.assert_allclose(table["predicted"], mean, rtol=1e-9)
    assert set(scores.index) == {"all", "n", "others"}


def test_the_calibration_error_sees_a_bias():
    assert calibration_error(reliability_table(*made_up())) < 0.01
    assert 0.06 < calibration_error(reliability_table(*made_up(0.1))) < 0.11


def test_figure_and_findings_say_what_is_off():
    p, trials = made_up(0.1)
    text = signal_findings("all", signal_scores(p, trials, ZN.codes))
    assert "expected calibration error is 0." in text
    assert "Farthest off" in text
    titles = [axis.get_title() for axis in signal_figure(p, trials, "x").axes]
    assert titles == ["Calibration", "ROC", "What is said of which"]


def test_trials_of_responses_are_those_of_a_loop():
    events = simulate(200, 4, 0, seed=8)
    lit = events.photon_sum >= 10
    trials = Trials.count(events.pdg, events.features, lit)
    for row, simulated, count in zip(trials.features, trials.simulated, trials.lit, strict=True):
        mine = (events.features == row).all(axis=1)
        assert (mine.sum(), lit[mine].sum()) == (simulated, count)
