"""Events as ROOT files: exact round trips, and everything that may be wrong with one."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.event_sets import assert_equal, physical
from zdc_nb.data import root as files_root
from zdc_nb.data.events import FEATURES, Events
from zdc_nb.data.readers import read_events
from zdc_nb.data.root import read_made_with, write_root
from zdc_nb.data.simulation import simulate
from zdc_nb.data.validation import EventFileError

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def events() -> Events:
    return simulate(300, 5, 0, seed=3)


def write_tree(path: Path, branches: dict[str, Any], tree: str = "zn") -> Path:
    with uproot.recreate(path) as file:
        file.mktree(
            tree,
            {
                k: v.type.content if isinstance(v, ak.Array) else v.dtype
                for k, v in branches.items()
            },
        ).extend(branches)
    return path


def branches_of(events: Events) -> dict[str, Any]:
    """What a ROOT file holds, made fibre by fibre and not as the package does it."""
    index: list[list[int]] = []
    photons: list[list[int]] = []
    for response in events.responses:
        lit = [(44 * i + j, int(response[i, j])) for i in range(44) for j in range(44)]
        index.append([fibre for fibre, light in lit if light])
        photons.append([light for _, light in lit if light])
    return {
        "pdg": events.pdg,
        **{name: events.features[:, k] for k, name in enumerate(FEATURES)},
        "photon_sum": np.array([sum(light) for light in photons]),
        "index": ak.values_astype(ak.Array(index), np.int32),
        "photons": ak.values_astype(ak.Array(photons), np.int32),
    }


def test_root_gives_back_exactly_what_was_written(events: Events, tmp_path: Path) -> None:
    assert (events.photon_sum == 0).any(), "empty responses have to survive too"
    write_root([events], tmp_path / "a.root")
    assert_equal(read_events(tmp_path / "a.root"), events)
    assert_equal(read_events(str(tmp_path / "a.root")), events)
    assert [path.name for path in tmp_path.iterdir()] == ["a.root"]


@settings(max_examples=15, deadline=None)
@given(
    lit=st.lists(
        st.dictionaries(st.integers(0, 1935), st.integers(1, 65535), max_size=8).filter(
            lambda fibres: sum(fibres.values()) <= 65535
        ),
        min_size=1,
        max_size=5,
    ),
    value=st.floats(0, 1e100),
)
def test_root_keeps_any_counts_and_any_finite_feature(
    lit: list[dict[int, int]], value: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    responses = np.zeros((len(lit), 1936), np.uint16)
    for row, fibres in zip(responses, lit, strict=True):
        row[list(fibres)] = list(fibres.values())
    events = Events.from_arrays(
        np.zeros(len(lit), np.int32),  # of an unknown particle any mass will do
        physical(np.zeros(len(lit)), np.full((len(lit), 9), value)),
        responses.reshape(-1, 44, 44),
    )
    path = tmp_path_factory.mktemp("any") / "a.root"
    write_root([events], path)
    assert_equal(read_events(path), events)


def test_the_tree_is_laid_out_as_documented(events: Events, tmp_path: Path) -> None:
    write_root([events], tmp_path / "a.root", lambda: "hello")
    expected = branches_of(events)
    with uproot.open(tmp_path / "a.root") as file:
        tree = file["zn"]
        assert {name for name in tree.keys() if not name.startswith("n")} == set(expected)  # noqa: SIM118
        for name, values in expected.items():
            assert ak.all(tree[name].array() == values), name
    assert read_made_with(tmp_path / "a.root") == "hello"


def test_a_tree_made_elsewhere_is_read(events: Events, tmp_path: Path) -> None:
    branches = branches_of(events)
    branches["photon_sum"] = branches["photon_sum"].astype(np.float64)
    branches["energy"] = branches["energy"].astype(np.float32)
    read = read_events(write_tree(tmp_path / "a.root", branches))
    np.testing.assert_array_equal(read.responses, events.responses)
    np.testing.assert_allclose(read.features, events.features, rtol=1e-6)


def test_baskets_are_joined_and_their_rows_counted_through(
    events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_root, "_ROWS", 7)
    write_root([events], tmp_path / "a.root")
    assert_equal(read_events(tmp_path / "a.root"), events)
    branches = branches_of(events[events.photon_sum > 100][:30])
    put("photons", 25, -1)(branches)
    path = write_tree(tmp_path / "b.root", branches)
    with pytest.raises(EventFileError, match=r"row 25 .*photon counts"):
        read_events(path)


def put(name: str, row: int, value: float) -> Change:
    """Change one number of a branch."""

    def change(branches: dict[str, Any]) -> None:
        if isinstance(branches[name], ak.Array):
            lists = ak.to_list(branches[name])
            lists[row][0] = value
            branches[name] = ak.values_astype(ak.Array(lists), np.int32)
        else:
            array = branches[name].astype(np.result_type(branches[name], type(value)))
            array[row] = value
            branches[name] = array

    return change


def lose_a_photon_list(branches: dict[str, Any]) -> None:
    lists = ak.to_list(branches["photons"])
    lists[1] = lists[1][:-1]
    branches["photons"] = ak.values_astype(ak.Array(lists), np.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("vz"), "lacks vz"),
        (lambda b: (b.pop("index"), b.pop("photon_sum")), "lacks photon_sum, index"),
        (put("energy", 2, np.nan), r"row 2 .*finite features"),
        (put("px", 1, np.inf), r"row 1 .*finite features"),
        (put("pdg", 1, 22.5), r"row 1 .*a PDG code"),
        (put("pdg", 1, np.nan), r"row 1 .*a PDG code"),
        (put("pdg", 1, 1e12), r"row 1 .*a PDG code"),
        (put("pdg", 1, 10), r"row 1 .*a PDG code that exists"),
        (put("index", 1, 1936), r"row 1 .*fibres from 0 to 1935"),
        (put("index", 1, -1), r"row 1 .*fibres from 0 to 1935"),
        (put("photons", 2, -3), r"row 2 .*photon counts from 0 to 65535"),
        # 65536 photons are none in 16 bits
        (put("photons", 2, 65536), r"row 2 .*photon counts from 0 to 65535"),
        (put("photon_sum", 0, 5), r"row 0 .*a photon sum equal to the response's"),
        (lose_a_photon_list, r"row 1 .*as many photons as lit fibres"),
        (lambda b: b.update(index=b["pdg"]), "'index': expected integers for each lit fibre"),
        (lambda b: b.update(mass=b["photons"]), "'mass': expected one number for each response"),
        (
            lambda b: b.update(photons=ak.values_astype(b["photons"], np.float64)),
            "'photons': expected integers for each lit fibre",
        ),
    ],
    ids=map(str, count()),
)
def test_a_fault_in_a_tree_is_told(
    events: Events, tmp_path: Path, change: Change, message: str
) -> None:
    bright = events[events.photon_sum > 100][:4]
    branches = branches_of(bright)
    change(branches)
    path = write_tree(tmp_path / "a.root", branches)
    with pytest.raises(EventFileError, match=message) as error:
        read_events(path)
    assert str(path) in str(error.value)


def test_a_fibre_named_twice_is_told(events: Events, tmp_path: Path) -> None:
    branches = branches_of(events[events.photon_sum > 100][:3])
    lists = ak.to_list(branches["index"])
    lists[2][1] = lists[2][0]
    branches["index"] = ak.values_astype(ak.Array(lists), np.int32)
    path = write_tree(tmp_path / "a.root", branches)
    with pytest.raises(EventFileError, match=r"row 2 .*each lit fibre once"):
        read_events(path)


def test_another_tree_or_an_empty_one_is_told(events: Events, tmp_path: Path) -> None:
    branches = branches_of(events[:3])
    other = write_tree(tmp_path / "other.root", branches, tree="zp")
    with pytest.raises(EventFileError, match=r"other\.root: no TTree 'zn', found \['zp'\]"):
        read_events(other)
    empty = tmp_path / "empty.root"
    write_root([events[:0]], empty)
    with pytest.raises(EventFileError, match=r"empty\.root: holds no responses"):
        read_events(empty)


def test_bytes_that_are_not_root_are_told(events: Events, tmp_path: Path) -> None:
    text = tmp_path / "text.root"
    text.write_text("not a ROOT file")
    nothing = tmp_path / "nothing.root"
    nothing.write_bytes(b"")
    folder = tmp_path / "folder.root"
    folder.mkdir()
    for path in (text, nothing, folder):
        with pytest.raises(EventFileError, match="not readable as a ROOT file"):
            read_events(path)
    with pytest.raises(FileNotFoundError):
        read_events(tmp_path / "missing.root")
    write_root([events], tmp_path / "whole.root")
    content = (tmp_path / "whole.root").read_bytes()
    for share in (0.2, 0.5, 0.9):
        cut = tmp_path / "cut.root"
        cut.write_bytes(content[: int(share * len(content))])
        with pytest.raises(EventFileError, match=r"cut\.root: not readable as a ROOT file"):
            read_events(cut)


def test_an_interrupted_write_leaves_nothing(
    events: Events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_root([events[:5]], tmp_path / "a.root")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ak, "unflatten", stop)
    with pytest.raises(KeyboardInterrupt):
        write_root([events], tmp_path / "a.root")
    assert len(read_events(tmp_path / "a.root")) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["a.root"]


def test_photons_of_a_tree_fit_in_16_bits_in_all(events: Events, tmp_path: Path) -> None:
    responses = np.zeros((3, 44, 44), np.uint16)
    responses[:, 3, 4] = 65535
    most = Events.from_arrays(events.pdg[:3], events.features[:3], responses.copy())
    write_root([most], tmp_path / "most.root")
    assert_equal(read_events(tmp_path / "most.root"), most)
    responses[1, 9, 9] = 1
    write_root([Events.from_arrays(most.pdg, most.features, responses)], tmp_path / "more.root")
    with pytest.raises(EventFileError, match=r"more\.root: row 1 .*at most 65535 photons in all"):
        read_events(tmp_path / "more.root")


@pytest.mark.parametrize("strict", [True, False])
def test_a_value_that_was_changed_afterwards_is_told(
    events: Events, tmp_path: Path, strict: bool
) -> None:
    """In a part that ROOT could not compress, and so does not check."""
    path = tmp_path / "a.root"
    write_root([events[:1]], path)
    content = path.read_bytes()
    energy = np.array(events.features[0, 0]).astype(">f8").tobytes()
    assert content.count(energy) == 1
    for other in (events.features[0, 0] + 1, np.nan):
        path.write_bytes(content.replace(energy, np.array(other).astype(">f8").tobytes()))
        with pytest.raises(EventFileError, match=r"a\.root: (its checksum|row 0)"):
            read_events(path, strict)


def test_bad_rows_are_left_out_where_asked(events: Events, tmp_path: Path) -> None:
    bright = events[events.photon_sum > 100][:6]
    branches = branches_of(bright)
    for change in (put("energy", 1, np.nan), put("photons", 2, -3), put("index", 4, 1936)):
        change(branches)
    read = read_events(write_tree(tmp_path / "a.root", branches), strict=False)
    np.testing.assert_array_equal(read.responses, bright[np.array([0, 3, 5])].responses)
    lose_a_photon_list(branches)
    read = read_events(write_tree(tmp_path / "b.root", branches), strict=False)
    np.testing.assert_array_equal(read.features, bright[np.array([0, 3, 5])].features)
