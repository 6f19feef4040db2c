"""How far showers are from where they should be, and how far they spread: against loops."""

import numpy as np
import pytest

from zdc_nb.data.events import Events
from zdc_nb.data.expected import expected_centre
from zdc_nb.data.simulation import simulate
from zdc_nb.detector import ZN, load_detector, shower_centre
from zdc_nb.evaluation.centre import centre_groups, centre_table
from zdc_nb.evaluation.metrics import Observed, observe
from zdc_nb.evaluation.names import SIMULATED

EVENTS = simulate(1500, 6, 10, 3, abundance={2212: 2.0, 3122: 6.0})
# a face that is not square, at which protons arrive
BENT = simulate(1500, 6, 10, 3, abundance={3122: 20.0}, detector=load_detector("zp"))


@pytest.mark.parametrize("events", [EVENTS, BENT], ids=["zn", "zp"])
def test_every_response_is_in_one_group(events: Events) -> None:
    groups = centre_groups(events)
    assert (np.sum([*groups.values()], axis=0) == 1).all()
    assert all(chosen.sum() > 20 for chosen in groups.values())
    lambdas = events.pdg == 3122
    assert (groups["decays"] & lambdas).sum() > 20
    assert (groups["arrives"] & (events.pdg == 2212)).any() == (events.detector != ZN)
    # near the edge is within a tenth of the face's longer side
    detector = events.detector
    centre = expected_centre(events.pdg, events.features, detector).centre
    from_edge = np.minimum(centre + 0.5, np.array(detector.shape) - 0.5 - centre).min(1)
    near = 0.1 * max(detector.shape)
    assert from_edge[groups["at the edge"]].max() <= near
    assert from_edge[groups["arrives"]].min() > near - 0.1


@pytest.mark.parametrize("events", [EVENTS, BENT], ids=["zn", "zp"])
def test_distance_and_spread_equal_a_loop_over_particles(events: Events) -> None:
    responses, detector = events.responses, events.detector
    # those of other particles, and one and the same for all
    others, still = responses[::-1], np.repeat(responses[:1], len(events), axis=0)
    models = {
        name: {1: Observed.stack([observe(values, detector)] * 2)}
        for name, values in (("bs", others), ("still", still))
    }
    table = centre_table(events, models)
    groups = centre_groups(events)
    expected = expected_centre(events.pdg, events.features, detector)
    for name, values in ((SIMULATED, responses), ("bs", others), ("still", still)):
        centre = shower_centre(values, detector)
        for group, chosen in groups.items():
            distance, spread, n = 0.0, 0.0, 0
            for particle in np.unique(events.particle[chosen]):
                own = np.flatnonzero(events.particle == particle)
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
            assert row["particles"] == len(np.unique(events.particle[chosen]))
    table = table.set_index(["group", "model"])
    assert table.xs("still", level="model")["spread"].max() < 1e-9
    assert (table.xs("bs", level="model")["centre MAE"] > 0).all()
    assert table.xs("bs", level="model")["change"].isna().all()
    errors = table["centre MAE"].unstack("model")
    changes = 100 * (errors["still"] / errors["bs"] - 1)
    np.testing.assert_allclose(table.xs("still", level="model")["change"], changes[[*groups]])
