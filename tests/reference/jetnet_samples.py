"""What jetnet 0.2.5 says of seeded samples: how `tests/reference/jetnet.json` was made.

jetnet needs much that this project does not, so its numbers are kept instead. To make them again,
in an environment of its own that has jetnet 0.2.5 (numpy's generators give the same samples
everywhere)::

    python tests/reference/jetnet_samples.py

Of each pair of samples it keeps the Frechet distance and the squared MMD of all rows, which have no
random part, and `fpd` and `kpd` with their errors. These draw batches with replacement, and so
reach the value of the sample at hand, not that of infinitely many: samples are large.
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["REFERENCE", "samples"]

REFERENCE = Path(__file__).with_name("jetnet.json")

SMALL, LARGE = 400, 60_000


def samples(rows: int) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Pairs of samples (rows, 5), by name: correlated normals, shifted, stretched; long tails."""
    rng = np.random.default_rng(2211)
    mix = rng.normal(size=(5, 5)) / 2
    normal = rng.normal(size=(2, rows, 5)) @ mix
    other = rng.normal(size=(rows, 5)) @ mix
    tails = rng.standard_gamma(2.0, size=(2, rows, 5)) / 3
    return {
        "equal": (normal[0], normal[1]),
        "shifted": (normal[0], normal[1] + 0.2),
        "stretched": (normal[0], other * np.array([1.0, 1.3, 1.0, 0.8, 1.0])),
        "tails": (tails[0], tails[1] * 1.2),
    }


def main() -> None:
    """Write the reference; needs jetnet."""
    from jetnet import __version__  # type: ignore[import-not-found]  # noqa: PLC0415
    from jetnet.evaluation import fpd, kpd  # type: ignore[import-not-found]  # noqa: PLC0415
    from jetnet.evaluation.gen_metrics import (  # type: ignore[import-not-found]  # noqa: PLC0415
        _calculate_frechet_distance,
        _mmd_poly_quadratic_unbiased,
    )

    found: dict[str, dict[str, float | list[float]]] = {}
    for name, (x, y) in samples(SMALL).items():
        moments = [f(a) for a in (x, y) for f in (lambda a: a.mean(axis=0), lambda a: np.cov(a.T))]
        found[name] = {
            "frechet_distance": float(_calculate_frechet_distance(*moments)),
            "squared_mmd": float(_mmd_poly_quadratic_unbiased(x, y)),
        }
    for name, (x, y) in samples(LARGE).items():
        for metric, function in (("fpd", fpd), ("kpd", kpd)):
            value, error = function(x, y, normalise=False)
            found[name][metric] = [float(value), float(error)]
    content = {"jetnet": __version__, "samples": found}
    REFERENCE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
