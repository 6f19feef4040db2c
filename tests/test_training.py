"""Training, distillation and trained models, on a small grid of the real thing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from zdc_nb.data.events import Split, split_by_response
from zdc_nb.data.expected import expected_centre, learned_offset
from zdc_nb.data.simulation import simulate
from zdc_nb.detector import ZN, Detector, channel_sums, load_detector, shower_centre
from zdc_nb.flows.initialise import start_from_teacher
from zdc_nb.flows.maf_iaf import Student, Teacher
from zdc_nb.generator.encoding import (
    centre_in_flow,
    channel_fractions,
    channels_and_centre,
    encode_responses,
    flow_dim,
)
from zdc_nb.generator.surrogate import DivergenceError, load_surrogate, save_surrogate
from zdc_nb.hardware import choose_device
from zdc_nb.params import SETUPS, PreprocessingParams, Study, derive_seed, load_study
from zdc_nb.storage import save_tensors
from zdc_nb.training import (
    DISTILLATION_TERMS,
    combined_loss,
    distil_student,
    distillation_step,
    distillation_terms,
    likelihood_step,
    loop,
    train_teacher,
)
from zdc_nb.training import trainers as training
from zdc_nb.training.losses import CENTRE, Aim

SMOKE = load_study(Path(__file__).parents[1] / "params" / "smoke.yaml")


def tiny(**changes: dict[str, Any]) -> Study:
    """The smoke study, smaller still."""
    updates: dict[str, dict[str, Any]] = {
        "flow": {"hidden": 8, "context_hidden": [16]},
        "teacher": {"epochs": 2, "batch": 16},
        "student": {"epochs": 2, "batch": 16},
    }
    for section, values in changes.items():
        updates[section] = updates.get(section, {}) | values
    sections = {k: getattr(SMOKE, k).model_copy(update=v) for k, v in updates.items()}
    return SMOKE.model_copy(update={"device": "cpu", "setups": [*SETUPS], **sections})


def shares_of(x: torch.Tensor) -> torch.Tensor:
    return channel_fractions(x, SMOKE.preprocessing, ZN)


@pytest.fixture(scope="module")
def parts() -> Split:
    return split_by_response(simulate(150, 10, 10, 3), (0.7, 0.1, 0.2), 1)


@pytest.fixture(scope="module")
def taught(parts):
    return train_teacher(parts[0], parts[1], tiny(), "all")


def test_training_lowers_the_validation_loss_and_returns_what_it_validated(parts, taught):
    surrogate, history = taught
    validation = history[(history.split == "validation") & (history.term == "loss")]
    assert list(validation.epoch) == [1, 2]
    assert validation.value.iloc[-1] < validation.value.iloc[0]
    # with the noise that training validates with
    generator = torch.Generator().manual_seed(derive_seed(SMOKE.seed, "teacher", "all") + 1)
    losses = []
    counts = torch.from_numpy(parts[1].responses.astype(np.int32))
    for rows in torch.arange(len(counts)).split(16):
        x, _ = encode_responses(counts[rows], SMOKE.preprocessing, ZN, generator)
        with torch.no_grad():
            log_prob = surrogate.flow.log_prob(x, surrogate.conditions(parts[1])[rows])
        losses.append(-log_prob / ZN.dim)
    assert float(torch.cat(losses).mean()) == pytest.approx(validation.value.min(), abs=1e-5)


def test_the_best_epoch_is_kept_even_if_it_is_not_the_last():
    flow = Teacher(4, 2, tiny().flow, seed=1)
    script = iter([3.0, 1.0, 2.0])
    seen = []

    def validate(_pause: object) -> dict[str, torch.Tensor]:
        seen.append({name: value.clone() for name, value in flow.state_dict().items()})
        return {"loss": torch.tensor(next(script))}

    def loss(indices: torch.Tensor, _: torch.Generator) -> dict[str, torch.Tensor]:
        x, context = torch.ones(len(indices), 4), torch.ones(len(indices), 2)
        return {"loss": -flow.log_prob(x, context).mean()}

    fit = loop.Fit(flow, tiny().teacher, 3, 20, "test", 0, checkpoint=None)
    fit.run(loss, validate, progress=False, track=None)
    assert len(seen) == 3
    for name, value in flow.state_dict().items():
        assert torch.equal(value, seen[1][name])
    assert not torch.equal(flow.networks[0].last.bias, seen[2]["blocks.0.nn.last.bias"])


def test_the_same_seed_gives_the_same_numbers(parts, taught):
    again, history = train_teacher(parts[0], parts[1], tiny(), "all")
    assert history.equals(taught[1])
    first, second = (s.generate(parts[2], seed=5, batch=8) for s in (taught[0], again))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, again.generate(parts[2], seed=6, batch=8))


@torch.no_grad()
def test_a_sample_that_is_not_finite_is_refused(parts, tmp_path, taught):
    save_surrogate(taught[0], tmp_path / "broken.safetensors")
    broken = load_surrogate(tmp_path / "broken.safetensors", torch.device("cpu"))
    assert isinstance(broken.flow, Teacher)
    broken.flow.networks[0].last.bias[3] = torch.nan
    with pytest.raises(DivergenceError, match="not finite"):
        broken.generate(parts[2], seed=1, batch=7)


def test_generated_responses_are_aligned_with_their_photon_sums(parts, taught):
    generated = taught[0].generate(parts[2], seed=1, batch=7)
    assert generated.shape == parts[2].responses.shape
    assert (generated.sum((1, 2), dtype=np.int64) <= parts[2].photon_sum).all()


def test_channel_fractions_are_those_of_the_photons(parts):
    counts = parts[0].responses
    x, _ = encode_responses(
        torch.from_numpy(counts.astype(np.int32)),
        SMOKE.preprocessing.model_copy(update={"noise": 1e-9}),
        ZN,
        torch.Generator().manual_seed(0),
    )
    expected = channel_sums(counts, ZN) / counts.sum((1, 2))[:, None]
    # alpha lifts each dark fibre by a millionth
    np.testing.assert_allclose(shares_of(x).numpy(), expected, atol=3e-3)


@torch.no_grad()
def test_distillation_terms_equal_a_loop_over_samples(taught):
    teacher = taught[0].flow
    torch.manual_seed(4)
    student = Student(ZN.dim, teacher.context, tiny().flow, seed=0).eval()
    start_from_teacher(student, teacher, everything=False)
    x, z = torch.randn(3, ZN.dim) - 7, torch.randn(3, ZN.dim)
    condition = torch.randn(3, teacher.context)
    terms = distillation_terms(teacher, student, x, z, condition, shares_of)
    assert tuple(terms) == DISTILLATION_TERMS
    for n in range(3):
        one = slice(n, n + 1)
        there = teacher.trace(x[one], condition[one], keep=True)
        back = student.trace(there.latent, condition[one], keep=True)
        drawn = student.trace(z[one], condition[one], keep=True)
        again = teacher.trace(drawn.data, condition[one], keep=True)
        expected = {
            "end_data": ((back.data - x[one]) ** 2).mean(),
            "blocks_data": ((back.ends[1] - there.ends[1]) ** 2).mean(),
            "made_data": sum(
                ((q - p) ** 2).mean()
                for q, p in zip(back.parameters, there.parameters, strict=True)
            )
            / 2,
            "end_latent": ((again.latent - z[one]) ** 2).mean(),
            "blocks_latent": ((again.ends[1] - drawn.ends[1]) ** 2).mean(),
            "made_latent": sum(
                ((q - p) ** 2).mean()
                for q, p in zip(drawn.parameters, again.parameters, strict=True)
            )
            / 2,
            "channel": ((shares_of(back.data) - shares_of(x[one])) ** 2).sum(),
        }
        for name, value in expected.items():
            assert float(terms[name][n]) == pytest.approx(float(value), rel=1e-3, abs=1e-7)
            assert name == "channel" or float(value) > 0


@torch.no_grad()
def test_a_perfect_copy_has_no_loss():
    # constant spline parameters, the same on both sides: the student is the teacher's inverse
    teacher = Teacher(ZN.dim, 4, tiny().flow, seed=1).eval()
    student = Student(ZN.dim, 4, tiny().flow, seed=0).eval()
    for parameter in teacher.parameters():
        parameter.data.zero_()
    start_from_teacher(student, teacher, everything=True)
    x, z, c = torch.randn(4, ZN.dim), torch.randn(4, ZN.dim), torch.randn(4, 4)
    for term in distillation_terms(teacher, student, x, z, c, shares_of).values():
        assert float(term.max()) < 1e-8


def test_combined_loss_equals_a_loop_over_samples():
    terms = {
        name: torch.rand(6, generator=torch.Generator().manual_seed(i))
        for i, name in enumerate(DISTILLATION_TERMS)
    }
    weights = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0, 0.1])
    expected = 0.0
    for n in range(6):
        squares = sum(float(terms[name][n]) for name in DISTILLATION_TERMS if name != "channel")
        expected += float(weights[n]) * (squares + 7 * float(terms["channel"][n])) / 6
    assert float(combined_loss(terms, weights, 7.0)) == pytest.approx(expected, rel=1e-5)


def test_diversity_weights_reach_the_samples_they_belong_to(parts, taught, monkeypatch):
    # one sample alone counts: the loss of a batch with all samples is its share
    study = tiny(student={"epochs": 1, "batch": len(parts[0]), "learning_rate": 1e-9})
    _, even = distil_student(taught[0], parts[0], parts[1], study, "all", "bs")
    half = np.arange(len(parts[0])) % 2
    losses = []
    for chosen in (half, 1 - half):
        monkeypatch.setattr(training, "diversity_weights", lambda *_, w=chosen: w.astype(float))
        _, history = distil_student(taught[0], parts[0], parts[1], study, "all", "bs+div")
        losses.append(history[(history.term == "loss") & (history.split == "train")].value.item())
    whole = even[(even.term == "loss") & (even.split == "train")].value.item()
    assert sum(losses) == pytest.approx(whole, rel=1e-4)
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("setup", SETUPS)
def test_each_setup_minimises_its_own_sum(parts, taught, setup):
    centre = {"centre_weight": 20.0, "centre_offset": "given"} if "ctr" in setup else {}
    study = tiny(student={"epochs": 1} | centre)
    teacher = taught[0]
    before = {k: v.clone() for k, v in teacher.flow.state_dict().items()}
    surrogate, history = distil_student(teacher, parts[0], parts[1], study, "all", setup)
    assert isinstance(surrogate.flow, Student)
    rows = history[history.split == "validation"].set_index("term").value
    base = sum(rows[name] for name in DISTILLATION_TERMS if name != "channel")
    channel = study.student.channel_weight * rows["channel"] if "ch" in setup else 0
    assert (CENTRE in rows) == ("ctr" in setup)
    channel += 20.0 * rows.get(CENTRE, 0.0)
    assert rows["loss"] == pytest.approx(base + channel, rel=1e-4)
    trained = history[history.split == "train"].set_index("term").value
    total = sum(trained[name] for name in DISTILLATION_TERMS if name != "channel")
    total += study.student.channel_weight * trained["channel"] if "ch" in setup else 0
    total += 20.0 * trained.get(CENTRE, 0.0)
    # weights of mean 1 change the sum, but only with diversity
    assert (trained["loss"] == pytest.approx(total, rel=1e-4)) != ("div" in setup)
    for name, value in teacher.flow.state_dict().items():
        assert torch.equal(value, before[name]), "the teacher must stay frozen"


SPLITS = SMOKE.preprocessing.model_copy(
    update={"coordinates": "splits", "noise": None, "alpha": None, "denoise": None}
)
FOCAL, ZP = load_detector("focal_h"), load_detector("zp")
COORDINATES = [(SMOKE.preprocessing, ZN), (SPLITS, ZN), (SPLITS, FOCAL)]


@pytest.mark.parametrize(("params", "detector"), COORDINATES)
def test_the_centre_is_that_of_the_photons_on_average_over_the_noise(
    params: PreprocessingParams, detector: Detector
) -> None:
    events = simulate(12, 1, 300, 4, detector=detector)
    counts = torch.from_numpy(events.responses.astype(np.int32))
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(400):
        x, _ = encode_responses(counts, params, detector, generator)
        seen = channels_and_centre(x, params, detector)
        torch.testing.assert_close(seen[:, :-2], channel_fractions(x, params, detector))
        found.append(seen[:, -2:].numpy())
    true = shower_centre(events.responses, detector)
    expected = centre_in_flow(true, events.photon_sum, params, detector)
    np.testing.assert_allclose(np.mean(found, 0), expected, atol=0.1)
    # with the noise of fibres it is another place
    moved = np.abs(expected - true).max()
    assert moved > 1 if params.coordinates == "fibres" else moved == 0


@pytest.mark.parametrize(("params", "detector"), [*COORDINATES, (SPLITS, ZP)])
def test_the_gradient_of_the_centre_is_that_of_finite_differences(
    params: PreprocessingParams, detector: Detector
) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (2, flow_dim(params, detector))
    x = (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    aim = torch.tensor([[3.0, 30.0], [20.0, 11.0]], dtype=torch.float64)
    weight = torch.tensor([0.3, 1.0], dtype=torch.float64)

    def loss(x: torch.Tensor) -> torch.Tensor:
        centre = channels_and_centre(x, params, detector)[:, -2:]
        return (weight * ((centre - aim) / max(detector.shape)).square().sum(1)).sum()

    (gradient,) = torch.autograd.grad(loss(x), x)
    direction = torch.randn(shape, generator=generator, dtype=torch.float64)
    some = [(0, 0), (1, 1), (0, shape[1] // 2), (1, shape[1] - 1)]
    ways = [direction, *(torch.zeros(shape, dtype=torch.float64) for _ in some)]
    for way, place in zip(ways[1:], some, strict=True):
        way[place] = 1.0
    for way in ways:
        up, down = (loss(x.detach() + s * way) for s in (1e-5, -1e-5))
        slope = float((up - down) / 2e-5)
        assert float((gradient * way).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-10)
    assert float(gradient.abs().max()) > 0


@torch.no_grad()
def test_the_centre_term_is_the_weighted_squared_distance_in_sides_of_the_face(taught):
    teacher = taught[0].flow
    torch.manual_seed(4)
    student = Student(ZN.dim, teacher.context, tiny().flow, seed=0).eval()
    start_from_teacher(student, teacher, everything=False)
    x, z = torch.randn(3, ZN.dim) - 7, torch.randn(3, ZN.dim)
    condition = torch.randn(3, teacher.context)
    aim = Aim(
        torch.tensor([[3.0, 5.0], [40.0, 2.0], [9.0, 9.0]]), torch.tensor([0.5, 0.0, 1.0]), 44
    )

    def seen_by(x: torch.Tensor) -> torch.Tensor:
        return channels_and_centre(x, SMOKE.preprocessing, ZN)

    terms = distillation_terms(teacher, student, x, z, condition, seen_by, aim)
    assert tuple(terms) == (*DISTILLATION_TERMS, CENTRE)
    for n in range(3):
        one = slice(n, n + 1)
        there = teacher.trace(x[one], condition[one], keep=True)
        back = student.trace(there.latent, condition[one], keep=True)
        light = torch.sigmoid(back.data[0]).double().reshape(44, 44)
        row = float(sum(i * light[i].sum() for i in range(44)) / light.sum())
        column = float(sum(j * light[:, j].sum() for j in range(44)) / light.sum())
        far = (row - float(aim.centre[n, 0])) ** 2 + (column - float(aim.centre[n, 1])) ** 2
        assert float(terms[CENTRE][n]) == pytest.approx(
            float(aim.weight[n]) * far / 44**2, rel=1e-4
        )
    without = distillation_terms(teacher, student, x, z, condition, shares_of)
    for name, term in without.items():
        torch.testing.assert_close(terms[name], term)


def test_a_student_learns_with_the_centre_and_the_weight_of_each_particle(
    parts, taught, monkeypatch
):
    seen = {}

    def keep(centre, photon_sum, params, detector):
        seen[len(centre)] = centre
        return centre_in_flow(centre, photon_sum, params, detector)

    monkeypatch.setattr(training, "centre_in_flow", keep)
    centre = {"centre_weight": 20.0, "centre_offset": "learned", "epochs": 1}
    distil_student(taught[0], parts[0], parts[1], tiny(student=centre), "all", "bs+ctr")
    offset = learned_offset(parts[0])
    assert offset != (0.0, 0.0)
    for part in parts[:2]:
        expected = expected_centre(part.pdg, part.features, ZN, offset).centre
        np.testing.assert_array_equal(seen[len(part)], expected)


def test_without_the_centre_loss_nothing_of_it_is_computed(parts, taught, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("nobody asked for it")

    for name in ("expected_centre", "learned_offset", "centre_in_flow", "channels_and_centre"):
        monkeypatch.setattr(training, name, refuse)
    # also where other setups of the study have it
    centre = {"centre_weight": 20.0, "centre_offset": "given"}
    results = []
    for study in (tiny(student={"epochs": 1}), tiny(student={"epochs": 1} | centre)):
        student, history = distil_student(taught[0], parts[0], parts[1], study, "all", "bs+ch+div")
        results.append((student.flow.state_dict(), history))
    assert results[0][1].equals(results[1][1])
    assert tuple(results[0][1]["term"].unique()) == ("loss", *DISTILLATION_TERMS)
    for name, value in results[0][0].items():
        assert torch.equal(value, results[1][0][name])
    # and the sum is added up in the same order as ever
    generator = torch.Generator().manual_seed(1)
    terms = {name: torch.rand(64, generator=generator) for name in DISTILLATION_TERMS}
    weights = torch.rand(64, generator=generator)
    squares = torch.stack([terms[name] for name in DISTILLATION_TERMS[:-1]]).sum(0)
    before = (weights * (squares + 30.0 * terms["channel"])).mean()
    assert torch.equal(combined_loss(terms, weights, 30.0), before)


def test_distillation_brings_the_student_closer(parts, taught):
    study = tiny(student={"epochs": 4}, flow={"initialise": "random"})
    _, history = distil_student(taught[0], parts[0], parts[1], study, "all", "bs")
    losses = history[(history.term == "loss") & (history.split == "validation")].value
    assert losses.iloc[-1] < 0.8 * losses.iloc[0]


def test_a_diverging_training_says_where(parts):
    study = tiny(teacher={"learning_rate": 1e18, "gradient_clip": 1e30, "epochs": 5})
    with pytest.raises(DivergenceError, match=r"teacher all: the term '.*' became .* at step \d+"):
        train_teacher(parts[0], parts[1], study, "all")


def test_learning_rate_is_halved_after_the_epochs_that_the_paper_names():
    params = SMOKE.teacher.model_copy(update={"schedule": "halve", "halve_after": [15, 40, 70]})
    factor = loop.learning_rate_factor(params, epochs=100, steps_per_epoch=7)
    by_epoch = {epoch: factor((epoch - 1) * 7) for epoch in (1, 15, 16, 40, 41, 70, 71, 100)}
    assert by_epoch == {1: 1, 15: 1, 16: 0.5, 40: 0.5, 41: 0.25, 70: 0.25, 71: 0.125, 100: 0.125}


def test_cosine_schedule_warms_up_and_ends_at_zero():
    factor = loop.learning_rate_factor(SMOKE.teacher, epochs=10, steps_per_epoch=20)
    values = [factor(step) for step in range(201)]
    assert values[0] < 0.1
    assert max(values) > 0.95
    assert values[200] == pytest.approx(0, abs=1e-9)


def test_trained_models_come_back_whole(tmp_path, parts, taught):
    path = tmp_path / "teacher.safetensors"
    save_surrogate(taught[0], path)
    loaded = load_surrogate(path, torch.device("cpu"))
    first, second = (s.generate(parts[2], seed=5, batch=8) for s in (taught[0], loaded))
    assert np.array_equal(first, second)
    assert loaded.architecture == tiny().flow


def test_a_model_that_was_saved_with_the_names_of_before_is_read(tmp_path, taught):
    path = tmp_path / "teacher.safetensors"
    save_surrogate(taught[0], path)
    with safe_open(path, framework="pt") as file:
        description = json.loads(file.metadata()["description"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    flow = description["flow"]
    flow["blocks"], flow["engine"] = flow.pop("hidden_layers"), "reference"
    save_tensors(tensors, {"description": json.dumps(description)}, path)
    loaded = load_surrogate(path, torch.device("cpu"))
    assert loaded.architecture == taught[0].architecture.model_copy(update={"engine": "plain"})


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_is_no_model_is_named(tmp_path, content):
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"teacher\.safetensors: not a trained model"):
        load_surrogate(path, torch.device("cpu"))


def test_a_step_lowers_the_same_loss_with_both_engines(parts, taught):
    student, _ = distil_student(taught[0], parts[0], parts[1], tiny(), "all", "bs")
    losses = []
    for engine in ("fused", "plain"):
        teacher = taught[0].with_engine(engine)
        assert teacher.architecture.engine == engine
        taught_step = likelihood_step(taught[0].with_engine(engine), parts[2], 1)
        copied_step = distillation_step(teacher, student.with_engine(engine), parts[2], 1)
        losses.append([float(step(20)) for step in (taught_step, taught_step, copied_step)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    trained = taught[0].with_engine("fused")
    likelihood_step(trained, parts[2], 1)(20)
    before, after = taught[0].flow.state_dict(), trained.flow.state_dict()
    assert not torch.equal(before["blocks.0.nn.last.bias"], after["blocks.0.nn.last.bias"])
    with pytest.raises(TypeError, match="a teacher"):
        likelihood_step(student, parts[2], 1)
    with pytest.raises(TypeError, match="a teacher and a student"):
        distillation_step(student, student, parts[2], 1)


def test_a_student_cannot_be_distilled_from_a_student(parts, taught):
    student, _ = distil_student(
        taught[0], parts[0], parts[1], tiny(student={"epochs": 1}), "all", "bs"
    )
    with pytest.raises(TypeError, match="expected a teacher"):
        distil_student(student, parts[0], parts[1], tiny(), "all", "bs")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_everything_runs_on_cuda(parts):
    study = tiny(student={"epochs": 1}).model_copy(update={"device": "cuda"})
    teacher, _ = train_teacher(parts[0], parts[1], study, "all")
    student, _ = distil_student(teacher, parts[0], parts[1], study, "all", "bs+ch+div")
    for surrogate in (teacher, student):
        generated = surrogate.generate(parts[2], seed=1, batch=16)
        assert (generated.sum((1, 2), dtype=np.int64) <= parts[2].photon_sum).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_asking_for_a_missing_device_is_an_error():
    with pytest.raises(RuntimeError, match="device: cuda"):
        choose_device("cuda")
