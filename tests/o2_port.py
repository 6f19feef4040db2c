"""What ALICE's O2 does with the files of an export, written from its rules alone.

:class:`O2Port` loads the models as O2 does, one thread, and asks about one particle at a time. The
same in C++ is ``o2_port.cpp``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def hits_sector(x: int, y: int, columns: int, rows: int) -> int:
    """The sector that a hit counts in: 0 is common."""
    if (x + y) % 2 == 0:
        return 0
    return 1 + (x >= columns // 2) + 2 * (y >= rows // 2)


def full_sector(x: int, y: int, columns: int, rows: int, side_a: bool) -> int:
    """The sector that a fibre belongs to in full simulation."""
    if (x + y) % 2 == (1 if side_a else 0):
        return 0
    if side_a:
        x, y = columns - 1 - x, rows - 1 - y
    return 1 + (x >= columns // 2) + 2 * (y >= rows // 2)


def read_scales(path: Path) -> tuple[Floats, Floats]:
    """Means and scales of nine features."""
    lines = path.read_bytes().decode("ascii").split("\n")
    first, second = lines.index("#means"), lines.index("#scales")
    assert lines[second - 1] == ""
    means = np.array([float(line) for line in lines[first + 1 : second - 1]], np.float32)
    scales = np.array([float(line) for line in lines[second + 1 :] if line], np.float32)
    assert len(means) == len(scales) == 9
    return means, scales


def new_session(path: Path) -> Any:
    """A session as O2 has it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


class O2Port:
    """The classifier and the neutron model of a folder, and what O2 makes of their answers."""

    def __init__(self, folder: Path, columns: int, rows: int) -> None:
        self.shape = rows, columns
        self.classifier = new_session(folder / "classifier.onnx")
        self.model = new_session(folder / "neutron.onnx")
        self.scales = [
            read_scales(folder / f"{name}_scales.txt") for name in ("classifier", "neutron")
        ]

    @staticmethod
    def _ask(session: Any, values: list[Floats]) -> Any:
        given = session.get_inputs()
        assert len(given) == len(values)
        feed = {}
        for declared, value in zip(given, values, strict=True):
            # of a dynamic dimension O2 makes 1, and fills as many numbers as then fit
            shape = [size if isinstance(size, int) else 1 for size in declared.shape]
            assert int(np.prod(shape)) == value.size
            assert declared.type == "tensor(float)"
            feed[declared.name] = value.reshape(shape)
        return session.run([session.get_outputs()[0].name], feed)[0]

    def _scaled(self, which: int, particle: Floats) -> Floats:
        means, scales = self.scales[which]
        scaled: Floats = (particle.astype(np.float32) - means) / scales
        return scaled

    def sends_light(self, particle: Floats) -> bool:
        """The classifier's answer for a raw particle (9,)."""
        answer = self._ask(self.classifier, [self._scaled(0, particle)])
        return bool(np.round(answer.reshape(-1).view(np.float32)[0]) != 0)

    def pixels(self, particle: Floats, noise: Floats) -> Floats:
        """The numbers that the model gives for a raw particle (9,) and ten normal numbers."""
        answer = self._ask(self.model, [noise, self._scaled(1, particle)])
        raw: Floats = np.frombuffer(answer.tobytes(), np.float32)
        return raw

    def hits(self, particle: Floats, noise: Floats) -> NDArray[np.int64]:
        """(Nx, Ny) photons of each hit."""
        pixels = self.pixels(particle, noise)
        rows, columns = self.shape
        hits = np.zeros((columns, rows), np.int64)
        for y in range(rows):
            for x in range(columns):
                hits[x, y] = int(np.expm1(pixels[columns * y + x]))
        return hits


def sector_sums(hits: NDArray[np.int64]) -> list[int]:
    """Photons in common and the four sectors."""
    sums = [0] * 5
    for (x, y), photons in np.ndenumerate(hits):
        sums[hits_sector(x, y, *hits.shape)] += int(photons)
    return sums


# --- In C++ ------------------------------------------------------------------------------------


def build_port(folder: Path) -> Path | str:
    """The compiled program, or why there is none.

    Headers are looked for where a distribution has them and in the folder that the environment
    names as ONNXRUNTIME; the library there too, or in the Python package.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        return "no g++"
    own = [Path(os.environ["ONNXRUNTIME"])] if "ONNXRUNTIME" in os.environ else []
    places = [*(root / "include" for root in own), Path("/usr/include"), Path("/usr/local/include")]
    name = "onnxruntime_cxx_api.h"
    headers = [found for place in places for found in sorted(place.rglob(name))]
    if not headers:
        return f"no {name}; the environment may name a folder that has it as ONNXRUNTIME"
    package = Path(onnxruntime.__file__).parent / "capi"
    folders = [*(root / "lib" for root in own), Path("/usr/lib/x86_64-linux-gnu"), package]
    libraries = [f for place in folders for f in sorted(place.glob("libonnxruntime.so*"))]
    if not libraries:
        return "no libonnxruntime.so"
    # under the name that the program asks for when it is started
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(libraries[0])
    program = folder / "o2_port"
    subprocess.run(
        [
            *(compiler, "-O1", "-std=c++17", f"-I{headers[0].parent}"),
            *(str(Path(__file__).with_suffix(".cpp")), "-o", str(program)),
            *(f"-L{folder}", "-lonnxruntime", f"-Wl,-rpath,{folder}"),
        ],
        check=True,
    )
    return program


def run_port(
    program: Path, models: Path, columns: int, rows: int, particles: Floats, noise: Floats
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Answers of the classifier (N,) and hits (N, Nx, Ny), of all particles whatever it answered."""
    lines = [
        " ".join(f"{value:.9g}" for value in row)
        for row in np.concatenate([particles, noise], axis=1)
    ]
    done = subprocess.run(
        [str(program), str(models), str(columns), str(rows)],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    table = np.array([line.split() for line in done.stdout.splitlines()], np.int64)
    return table[:, 0] != 0, table[:, 1:].reshape(-1, columns, rows)
