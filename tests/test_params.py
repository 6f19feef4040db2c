"""A study file says everything and is refused by name where it does not."""

from pathlib import Path

import pytest
import yaml

from zdc_nb.params import ParameterError, derive_seed, load_study

SMOKE = Path(__file__).parents[1] / "params" / "smoke.yaml"


def changed(tmp_path: Path, *path: str, value: object = None, remove: bool = False) -> Path:
    """params/smoke.yaml with one entry changed."""
    content = yaml.safe_load(SMOKE.read_text())
    section = content
    for key in path[:-1]:
        section = section[key]
    if remove:
        del section[path[-1]]
    else:
        section[path[-1]] = value
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_the_study_is_named_after_its_file(tmp_path):
    assert load_study(changed(tmp_path, "seed", value=3)).name == "mine"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("flow", "hiden"), 64, "flow.hiden"),
        (("flow", "hidden"), "wide", "flow.hidden"),
        (("flow", "hidden"), 0, "flow.hidden"),
        (("flow", "hidden"), True, "flow.hidden"),
        (("subsets",), ["n", "proton"], "'proton'"),
        (("setups",), ["bs", "bs+chh"], "'bs+chh'"),
        (("subsets",), ["all", "all"], "each name once"),
        (("data", "fractions"), [0.7, 0.1, 0.1], "sum to 1"),
        (("data", "split"), [0.7, 0.1, 0.2], "expected one of by_particle, by_response, got"),
        (("data", "split"), "by_particle", "data.test_repeats: expected a number, the split is by"),
        (("data", "reserved"), 0.5, "data.reserved: expected null, the split by_response"),
        (("data", "test_repeats"), 100, "data.test_repeats: expected null, the split by_response"),
        (("data", "max_test_responses"), {"n": 5}, "data.max_test_responses: expected {}"),
        (
            ("data", "abundance"),
            {"n": 0.0},
            "data.abundance: expected for each name a number above 0",
        ),
        (("preprocessing", "coordinates"), "splits", "noise: expected null, the coordinates are"),
        (("preprocessing", "alpha"), None, "alpha: expected a value, the coordinates are fibres"),
        (("splitting", "flow", "window"), 4, "window: expected an odd number"),
        (("evaluation", "classifier_runs"), 9, "classifier_runs: expected at most"),
        (("collisions", "events"), 1, "collisions.events"),
        (("collisions", "list"), "p.csv", "collisions.list"),
        (
            ("data", "max_responses"),
            {"xi": 10},
            "data.max_responses: 'xi' is no data set of the detector zn; expected one of n, lambda",
        ),
        (
            ("teacher", "epochs"),
            "many",
            "0, or for each name a whole number above 0, got 'many'",
        ),
        (("teacher", "bach"), 3, "teacher.bach: no such key; did you mean batch?"),
        (("flow", "engine"), "fast", "flow.engine: expected one of fused, plain, got 'fast'"),
        (("flow", "engine"), "reference", "flow.engine: reference is called plain now"),
        (("flow", "blocks"), 2, "flow.blocks: is called hidden_layers now"),
        (("data", "strict"), "yes", "data.strict: expected true or false, got 'yes'"),
        (("data", "file"), 7, "data.file: expected a text, or a list, each a text, or null, got 7"),
        (
            ("data", "fractions"),
            [0.5, 0.5],
            "expected a list of 3, each a number above 0 and below 1",
        ),
        (("flow", "dropout"), 1.5, "expected a number of at least 0 and below 1, got 1.5"),
        (("flow",), 3, "flow: expected the keys transforms, bins"),
        (("teacher", "epochs"), {"n": 3}, "teacher.epochs: no entry for all"),
        (("teacher", "learning_rate"), float("nan"), "teacher.learning_rate"),
        (("preprocessing", "conditions"), "everything", "preprocessing.conditions"),
        (("preprocessing", "alpha"), 1e-7, "flow.bound: expected at least 16.1181"),
        (("flow", "bound"), 13.8, "preprocessing.alpha = 1e-06, got 13.8"),
        (("flow", "bins"), 1000, "flow.bins: expected fewer than 1000 bins"),
        (
            ("setups",),
            ["bs", "bs+ctr", "bs+ch+div"],
            "student.centre_weight: expected a number above 0, bs+ctr has the centre loss",
        ),
        (
            ("variants",),
            {"pull": {"setup": "bs+ch+ctr", "student": {}}},
            "variants.pull.student.centre_weight: expected a number above 0, pull has the centre",
        ),
        (
            ("variants",),
            {
                "pull": {
                    "setup": "bs",
                    "student": {"centre_weight": 3.0, "centre_offset": "given"},
                }
            },
            "variants.pull.student.centre_weight: expected null, the setup bs has no centre loss",
        ),
        (
            ("variants",),
            {"pull": {"setup": "bs+ctr", "student": {"centre_weight": 3.0}}},
            "variants: pull.student: centre_offset: expected given or learned, centre_weight is a n",
        ),
        (
            ("variants",),
            {
                "pull": {
                    "setup": "bs+ctr",
                    "student": {"centre_weight": -3.0, "centre_offset": "given"},
                }
            },
            "variants: pull.student: centre_weight: expected a number above 0, or null, got -3.0",
        ),
        (
            ("student", "centre_offset"),
            "given",
            "centre_offset: expected null, centre_weight is null",
        ),
        (
            ("student", "centre_offset"),
            "mine",
            "expected one of given, learned, or null, got 'mine'",
        ),
        (("student", "halve_after"), [15], "halve_after: expected [], the schedule cosine"),
        (("speed", "batches"), [1, 16, 1], "batches: expected each size once"),
        (("paths", "artifacts"), "", "paths.artifacts"),
        (("paths", "reports"), "", "paths.reports"),
        (("subsets",), ["n"], "speed.subset: 'all' is not among the subsets"),
        (("setups",), ["bs"], "speed.setup: 'bs+ch+div' is not among the setups"),
        (("name",), "other", "name"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path, path, value, said):
    file = changed(tmp_path, *path, value=value)
    with pytest.raises(ParameterError, match=r"mine\.yaml") as caught:
        load_study(file)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("speed", "subset"), "n"),
        (("speed", "setup"), "bs"),
        (("flow", "bins"), 999),
        # the least that holds a dark fibre is log(999999) = 13.81551...
        (("flow", "bound"), 13.8156),
        (("preprocessing", "alpha"), 0.1),
        (("teacher", "schedule"), "halve"),
        (("speed", "batches"), [4]),
        (("paths", "reports"), "elsewhere"),
    ],
)
def test_what_is_just_right_is_accepted(tmp_path, path, value):
    section = load_study(changed(tmp_path, *path, value=value)).model_dump()[path[0]]
    assert section[path[1]] == value


def test_the_centre_loss_needs_someone_who_has_it(tmp_path):
    content = yaml.safe_load(SMOKE.read_text())
    content["student"] |= {"centre_weight": 30.0, "centre_offset": "learned"}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(
        ParameterError, match=r"student\.centre_weight: expected null, no setup has"
    ):
        load_study(file)
    content["variants"] = {"pull": {"setup": "bs+ch+ctr+div", "student": {}}}
    file.write_text(yaml.safe_dump(content))
    assert load_study(file).student_of("pull")[1].centre_weight == 30
    content["variants"], content["setups"] = {}, [*content["setups"], "bs+ctr"]
    file.write_text(yaml.safe_dump(content))
    assert load_study(file).student_of("bs+ctr")[1].centre_offset == "learned"


def test_a_missing_key_is_named(tmp_path):
    with pytest.raises(
        ParameterError, match=r"flow\.bins: is missing; expected a whole number above 1"
    ):
        load_study(changed(tmp_path, "flow", "bins", remove=True))


def test_scientific_notation_without_a_point_is_a_number(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(SMOKE.read_text().replace("alpha: 1.0e-6", "alpha: 1e-6"))
    assert load_study(file).preprocessing.alpha == 1e-6


@pytest.mark.parametrize(
    "text", ["", "just words", "{", "seed: 1\nseed: 2\n", "a: !!python/none\n"]
)
def test_a_file_that_is_no_study_is_refused(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ParameterError, match=r"mine\.yaml"):
        load_study(file)


def test_a_missing_file_is_named():
    with pytest.raises(ParameterError, match="no such study file"):
        load_study("params/none.yaml")


def test_a_subset_or_setup_that_the_study_lacks_is_refused():
    study = load_study(SMOKE)
    with pytest.raises(ParameterError, match="'pi0'"):
        study.check_subset("pi0")
    with pytest.raises(ParameterError, match="'ch'"):
        study.check_student("ch")


def test_seeds_differ_by_label_and_repeat():
    assert derive_seed(1, "teacher", "n") == derive_seed(1, "teacher", "n")
    seeds = {derive_seed(s, *labels) for s in (1, 2) for labels in (("a",), ("b",), ("a", "b"))}
    assert len(seeds) == 6
