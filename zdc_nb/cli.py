"""The command ``zdc-nb``: from a file of particles to a file of responses or of their sums by event, and
export for O2."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from zdc_nb.data.events import Events
from zdc_nb.params import ParameterError, UserError

if TYPE_CHECKING:
    from zdc_nb.data.particles import Collisions
    from zdc_nb.generator.generator import Generator

__all__ = ["main"]

_ROWS = 4096
"""Responses written at once."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 2 after one line that says what is wrong."""
    given = _parser().parse_args(arguments)
    try:
        given.run(given)
    except (UserError, OSError) as error:
        print(f"zdc-nb: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zdc-nb", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    generate = commands.add_parser(
        "generate",
        help="draw a response for each particle of a file",
        description="Draw a response for each particle of a file, any number of them. The file of "
        "responses is a ROOT file of this project's format, a row for each particle in the same order; "
        "a particle that sends no light has a row without photons. With --events it is a table of sums of "
        "all particles of an event on each side, as CSV or ROOT.",
    )
    generate.add_argument("--model", type=Path, required=True, help="generator, .safetensors")
    generate.add_argument(
        "--particles",
        type=Path,
        required=True,
        help=".csv or .root with columns energy, px, py, pz (GeV), vx, vy, vz (m), mass (MeV), charge "
        "(e) and optionally pdg (without it, mass and charge tell the species that is written beside a "
        "response); or .npz of one array of these in the order energy, vx, vy, vz, px, py, "
        "pz, mass, charge",
    )
    generate.add_argument(
        "--out",
        type=Path,
        required=True,
        help="responses, .root; with --events sums, .csv or .root",
    )
    generate.add_argument(
        "--events",
        action="store_true",
        help="add up the responses of each event, which the column event of the particles tells (of "
        ".npz the 11th, after the PDG code), and write a row for each event and side (A: pz > 0, C: "
        "pz < 0): particles, photons, channels, centre and asymmetries. Particles that the generator has "
        "not learned are left out and counted",
    )
    generate.add_argument("--seed", type=_seed, default=1, help="default: %(default)s")
    generate.add_argument(
        "--batch", type=_batch, default=512, help="drawn at once; default: %(default)s"
    )
    generate.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    generate.set_defaults(run=_generate)

    export = commands.add_parser(
        "export-onnx",
        help="write what o2-sim loads",
        description="Write the ONNX models of the neutron ZDC that ALICE's o2-sim loads, their files "
        "of scales and the settings to copy. The generator has to be one of the neutron ZDC.",
    )
    export.add_argument("--model", type=Path, required=True, help="generator, .safetensors")
    export.add_argument("--out", type=Path, required=True, help="folder")
    export.add_argument(
        "--images",
        choices=("face", "dump"),
        default="face",
        help="how responses lie that were learned from: face, row 0 at the top as seen from the "
        "interaction point (the open simulation), or dump, rows are O2's x and columns its y (O2's "
        "text files, the published data); default: %(default)s",
    )
    export.set_defaults(run=_export)
    return parser


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text}")
    return number


def _seed(text: str) -> int:
    return _whole(text, 0)


def _batch(text: str) -> int:
    return _whole(text, 1)


def _generate(given: argparse.Namespace) -> None:
    # slow to import, and --help needs none of it
    from zdc_nb.data.particles import count_particles, read_particles  # noqa: PLC0415
    from zdc_nb.data.root import write_root  # noqa: PLC0415
    from zdc_nb.generator.generator import Generator  # noqa: PLC0415
    from zdc_nb.generator.surrogate import DivergenceError  # noqa: PLC0415
    from zdc_nb.hardware import choose_device  # noqa: PLC0415

    suffixes = (".csv", ".root") if given.events else (".root",)
    if given.out.suffix not in suffixes:
        _refuse(f"--out: expected a {' or '.join(suffixes)} file, got {given.out}")
    if given.out.resolve() == given.particles.resolve():
        _refuse(f"--out: {given.out} is the file of particles")
    try:
        choose_device(given.device)
    except RuntimeError as error:
        _refuse(f"--device: {error}")
    generator = Generator.load(given.model, given.device)
    total = count_particles(given.particles)
    if given.events:
        try:
            _sum_events(given, generator, total)
        except DivergenceError as error:
            _refuse(f"{given.model}: {error}")
        return
    particles = read_particles(given.particles, generator.detector)
    drawn = generator.sample_parts(particles, given.seed, given.batch, total, str(given.particles))
    written = 0

    def events() -> Iterator[Events]:
        nonlocal written
        for some, responses in drawn:
            written += len(some)
            yield Events.from_arrays(
                some.pdg, some.features, responses, some.particle, generator.detector
            )

    try:
        write_root(_together(events()), given.out)
    except DivergenceError as error:
        _refuse(f"{given.model}: {error}")
    print(f"{given.out}: {written} responses")


def _sum_events(given: argparse.Namespace, generator: Generator, total: int) -> None:
    # slow to import
    from zdc_nb.data.particles import read_collisions  # noqa: PLC0415
    from zdc_nb.evaluation.collisions import collision_sums, write_sums  # noqa: PLC0415
    from zdc_nb.generator.collisions import answer_collisions, unanswered  # noqa: PLC0415

    reasons: Counter[str] = Counter()

    def counted() -> Iterator[Collisions]:
        for part in read_collisions(given.particles, generator.detector):
            reasons.update(unanswered(generator, part.particles).tolist())
            yield part

    answers = answer_collisions(generator, counted(), given.seed, given.batch, total)
    sums = collision_sums(answers, generator.detector)
    write_sums(sums, given.out)
    answered = reasons.pop("", 0)
    print(f"{given.out}: {sums['event'].nunique()} events, {answered} particles")
    if reasons:
        by_reason = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        print(
            f"left out: {reasons.total()} particles that the generator does not answer ({by_reason})"
        )


def _together(parts: Iterable[Events]) -> Iterator[Events]:
    """Parts of some thousand responses, which a file takes faster than many small ones."""
    waiting: list[Events] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= _ROWS:
            yield Events.join(waiting)
            waiting = []
    if waiting:
        yield Events.join(waiting)


def _export(given: argparse.Namespace) -> None:
    # slow to import
    from zdc_nb.generator.generator import Generator  # noqa: PLC0415
    from zdc_nb.generator.onnx_export import export_onnx  # noqa: PLC0415

    generator = Generator.load(given.model)
    for path in export_onnx(generator, given.out, given.images):
        print(path)


def _refuse(message: str) -> NoReturn:
    raise ParameterError(message)
