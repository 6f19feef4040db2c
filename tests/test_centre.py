"""How far showers are from where they should be, and how far they spread: against loops."""

import numpy as np
import pytest

from zdc_nb.data.expected import expected_centre
from zdc_nb.data.simulation import simulate
from zdc_nb.detector import ZN, shower_centre
from zdc_nb.evaluation.centre import centre_groups, centre_table
from zdc_nb.evaluation.metrics import Observed, observe
from zdc_nb.evaluation.names import SIMULATED

EVENTS = simulate(1500, 6, 10, 3, abundance={2212: 2.0, 3122: 6.0})


def test_every_response_is_in_one_group() -> None:
    groups = centre_groups(EVENTS)
    assert (np.sum([*groups.values()], axis=0) == 1).all()
    assert all(chosen.sum() > 20 for chosen in groups.values())
    lambdas = EVENTS.pdg == 3122
    assert (groups["decays"] & lambdas).sum() > 20
    assert not (groups["arrives"] & (EVENTS.pdg == 2212)).any()
    # near the edge is within a tenth of the face
    centre = expected_centre(EVENTS.pdg, EVENTS.features, ZN).centre
    from_edge = np.minimum(centre + 0.5, 43.5 - centre).min(1)
    assert from_edge[groups["at the edge"]].max() <= 4.4 < from_edge[groups["arrives"]].min() + 0.1


def test_distance_and_spread_equal_a_loop_over_particles() -> None:
    responses = EVENTS.responses
    moved, shrunk = np.roll(responses, 3, axis=2), np.repeat(responses[:1], len(EVENTS), axis=0)
    models = {
        name: {1: Observed.stack([observe(values, ZN)] * 2)}
        for name, values in (("bs", moved), ("still", shrunk))
    }
    table = centre_table(EVENTS, models)
    groups = centre_groups(EVENTS)
    expected = expected_centre(EVENTS.pdg, EVENTS.features, ZN)
    for name, values in ((SIMULATED, responses), ("bs", moved), ("still", shrunk)):
        centre = shower_centre(values, ZN)
        for group, chosen in groups.items():
            distance, spread, n = 0.0, 0.0, 0
            for particle in np.unique(EVENTS.particle[chosen]):
                own = np.flatnonzero(EVENTS.particle == particle)
                mean = centre[own].mean(0)
                n += len(own)
                for k in own:
                    spread += ((centre[k] - mean) ** 2).sum()
                    distance += ((mean - expected.centre[k]) ** 2).sum()
            (row,) = table[(table["group"] == group) & (table["model"] == name)].to_dict("records")
            assert row["spread"] == pytest.approx(np.sqrt(spread / n), abs=1e-9)
            if group == "no weight":
                assert np.isnan(row["distance"])
            else:
                assert row["distance"] == pytest.approx(np.sqrt(distance / n))
            assert row["particles"] == len(np.unique(EVENTS.particle[chosen]))
    table = table.set_index(["group", "model"])
    assert table.xs("still", level="model")["spread"].max() < 1e-9
    assert (table.xs("bs", level="model")["centre MAE"] > 0).all()
    assert table.xs("bs", level="model")["change"].isna().all()
    errors = table["centre MAE"].unstack("model")
    changes = 100 * (errors["still"] / errors["bs"] - 1)
    np.testing.assert_allclose(table.xs("still", level="model")["change"], changes[[*groups]])
