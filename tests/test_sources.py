"""Which files a study's names stand for, and which of them belong together."""

from pathlib import Path

import numpy as np
import pytest

from zdc_nb.data.events import Events
from zdc_nb.data.readers import find_files, read_events
from zdc_nb.data.root import write_root
from zdc_nb.data.simulation import simulate
from zdc_nb.data.validation import EventFileError


@pytest.fixture(scope="module")
def events() -> Events:
    return simulate(40, 5, 0, seed=3)


def write_pair(folder: Path, events: Events, particles: str, responses: str) -> None:
    for name, array in ((particles, events.features), (responses, events.responses)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(folder / name, np.column_stack([array, events.pdg]) if array.ndim == 2 else array)


def test_names_and_patterns_are_found_in_order(tmp_path: Path) -> None:
    for name in ("b1.root", "b10.root", "b2.root", "a.root", "deep/er/c.root"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_files("a.root", tmp_path) == ["a.root"]
    assert find_files("b*.root", tmp_path) == ["b1.root", "b10.root", "b2.root"]
    assert find_files(["b?.root", "a.root"], tmp_path) == ["b1.root", "b2.root", "a.root"]
    assert find_files("**/c.root", tmp_path) == ["deep/er/c.root"]
    assert find_files(str(tmp_path / "a*"), Path("/")) == [str(tmp_path / "a.root")]
    with pytest.raises(EventFileError, match=r"x\*\.root: no file in .* matches"):
        find_files(["a.root", "x*.root"], tmp_path)
    with pytest.raises(FileNotFoundError, match=r"x\.root: no such file"):
        find_files("x.root", tmp_path)
    with pytest.raises(EventFileError, match=r"b1\.root: this file is named twice"):
        find_files(["b1.root", "b*.root"], tmp_path)


@pytest.mark.parametrize("other", ["./d/a.root", "d/../d/*.root", "{}/d/a.root", "link.root"])
def test_a_file_that_is_named_twice_is_told_however_it_is_spelt(tmp_path: Path, other: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.root").touch()
    (tmp_path / "link.root").symlink_to(tmp_path / "d" / "a.root")
    other = other.format(tmp_path)
    assert len(find_files(other, tmp_path)) == 1
    with pytest.raises(EventFileError, match=r"named twice, also as d/a\.root"):
        find_files(["d/a.root", other], tmp_path)


def test_a_name_that_a_file_has_is_that_file(events: Events, tmp_path: Path) -> None:
    names = ["a[1].root", "b *.root", "$(touch pwned).root", "; rm -rf c.root", "'q\".root"]
    for name in names:
        write_root([events], tmp_path / name)
    (tmp_path / "a1.root").touch()
    assert find_files(names, tmp_path) == names
    for name in names:
        assert len(read_events(tmp_path / name)) == len(events)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "a1.root"])


def test_several_root_files_are_read_one_after_the_other(events: Events, tmp_path: Path) -> None:
    paths = [tmp_path / f"{k}.root" for k in range(3)]
    for k, path in enumerate(paths):
        write_root([events[k::3]], path)
    read = read_events(paths)
    expected = events[np.concatenate([np.arange(k, 40, 3) for k in range(3)])]
    np.testing.assert_array_equal(read.responses, expected.responses)
    np.testing.assert_array_equal(read.particle, expected.particle)


@pytest.mark.parametrize(
    "pairs",
    [
        [("a_particles.npz", "a_responses.npz"), ("b_particles.npz", "b_responses.npz")],
        [("particles/1.npz", "responses/1.npz"), ("particles/2.npz", "responses/2.npz")],
        [("1/particles.npz", "1/responses.npz"), ("2/particles.npz", "2/responses.npz")],
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_npz_files_are_paired_by_their_names(
    events: Events, tmp_path: Path, pairs: list[tuple[str, str]], turned: bool
) -> None:
    folder = tmp_path / "of particles"
    for part, pair in zip((events[:25], events[25:]), pairs, strict=True):
        write_pair(folder, part, *pair)
    names = [first for first, _ in pairs] + [second for _, second in reversed(pairs)]
    paths = [folder / name for name in (reversed(names) if turned else names)]
    order = np.r_[25:40, 0:25] if turned else np.arange(40)
    read = read_events(paths)
    np.testing.assert_array_equal(read.features, events[order].features)
    np.testing.assert_array_equal(read.responses, events[order].responses)


def test_two_files_of_other_names_are_taken_in_order(events: Events, tmp_path: Path) -> None:
    write_pair(tmp_path, events, "x.npz", "y.npz")
    read = read_events([tmp_path / "x.npz", tmp_path / "y.npz"])
    np.testing.assert_array_equal(read.responses, events.responses)
    with pytest.raises(EventFileError, match=r"y\.npz: expected rows of 9, 10 or 11 numbers"):
        read_events([tmp_path / "y.npz", tmp_path / "x.npz"])


def test_texts_are_told_apart_by_the_header(tmp_path: Path) -> None:
    line = "22,5,0,0,0,0,0,5,0"
    header = "Detector,Pdg,Energy,Vx,Vy,Vz,Px,Py,Pz,PhotonSum"
    (tmp_path / "b.txt").write_text(f"{header}\nN,{line}\nP,{line}\n")
    (tmp_path / "a.txt").write_text(("0 " * 44 + "\n") * 44)
    for names in (["a.txt", "b.txt"], ["b.txt", "a.txt"]):
        assert read_events([tmp_path / name for name in names]).pdg.tolist() == [22]


@pytest.mark.parametrize("names", [["a.txt", "b.txt"], ["a.npz", "b.npz"], ["a.root"]])
def test_folders_in_place_of_files_are_told(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    with pytest.raises(EventFileError, match=r"[ab]\.(txt|npz|root): "):
        read_events([tmp_path / name for name in names])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.txt"], "expected files of one format"),
        (["a.npz"], "expected files of one format"),
        (["a.csv"], "expected files of one format"),
        (["a.root", "b.npz", "c.npz"], "expected files of one format"),
        (["a.npz", "b.txt"], "expected files of one format"),
        (["a_particles.npz", "a_responses.npz", "c.npz"], r"c\.npz: belongs to none"),
        (["a_particles.npz", "b_responses.npz", "b_particles.npz"], r"a_particles\.npz: belongs"),
        (["a.npz", "b.npz", "c.npz", "d.npz"], r"a\.npz: belongs to none"),
        ([], "expected files of one format"),
    ],
)
def test_files_that_do_not_go_together_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(EventFileError, match=message):
        read_events(names)
