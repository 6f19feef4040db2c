"""From particles to photons: the same whatever the batch, one safe file, clear errors, three formats."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import ks_2samp

import zdc_nb
from tests.projects import ROOT
from zdc_nb.cli import main
from zdc_nb.data.events import FEATURES, Conditions, split_by_response
from zdc_nb.data.particles import count_particles, particles_of, read_particles
from zdc_nb.data.readers import read_events
from zdc_nb.data.root import write_root
from zdc_nb.data.simulation import simulate_counted
from zdc_nb.data.validation import EventFileError
from zdc_nb.detector import ZN
from zdc_nb.generator.generator import Domain, Generator, ParticleError
from zdc_nb.generator.random_numbers import uniforms_from_seed
from zdc_nb.params import load_study
from zdc_nb.training.trainers import (
    distil_student,
    train_photon_sum,
    train_signal,
    train_splitting,
    train_teacher,
)

SMOKE = load_study(ROOT / "params" / "smoke.yaml")


def made(surrogate, parts, trials):
    photon_sum, _ = train_photon_sum(parts.train, parts.validation, SMOKE, "all")
    signal, _ = train_signal(trials, trials, SMOKE, "all", ZN)
    domain = Domain.of(trials.features, surrogate.scaler.mean[1:4], ZN)
    surrogate.flow.eval().requires_grad_(False)
    return Generator(surrogate, photon_sum, signal, domain)


@pytest.fixture(scope="module")
def learned():
    events, trials = simulate_counted(700, 4, 10, seed=1)
    return split_by_response(events, (0.7, 0.1, 0.2), seed=1), trials


@pytest.fixture(scope="module")
def generator(learned):
    parts, trials = learned
    splitting, _ = train_splitting(parts.train, parts.validation, SMOKE, "all")
    return made(splitting, parts, trials)


@pytest.fixture(scope="module")
def particles(learned):
    parts, _ = learned
    return pd.DataFrame(parts.test.features, columns=FEATURES)


# --- Random numbers -----------------------------------------------------------------------------


def test_random_numbers_are_those_of_the_response():
    every = uniforms_from_seed(7, 0, 50, 13)
    for start, rows in ((0, 1), (3, 20), (49, 1)):
        np.testing.assert_array_equal(uniforms_from_seed(7, start, rows, 13), every[start:][:rows])
    assert not (uniforms_from_seed(8, 0, 50, 13) == every).any(axis=1).all()
    wide = uniforms_from_seed(1, 0, 400, 1000)
    assert (wide > 0).all()
    assert (wide < 1).all()
    assert len(np.unique(wide)) > 0.9999 * wide.size
    assert abs(np.corrcoef(wide[:-1].ravel(), wide[1:].ravel())[0, 1]) < 0.01
    assert ks_2samp(wide.ravel(), np.linspace(0, 1, 100_001)).pvalue > 1e-4


# --- Sampling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 31, 64, 1000])
def test_responses_are_the_same_whatever_the_batch(generator, particles, batch):
    expected = generator.sample(particles, seed=5)
    assert expected.shape == (len(particles), 44, 44)
    assert expected.dtype == np.uint16
    np.testing.assert_array_equal(generator.sample(particles, seed=5, batch=batch), expected)
    # a generator is asked about more: the first ones stay what they are
    more = pd.concat([particles, particles[:3]], ignore_index=True)
    first = generator.sample(more, seed=5, batch=batch)[: len(particles) // 32 * 32]
    np.testing.assert_array_equal(first, expected[: len(first)])
    assert not np.array_equal(generator.sample(particles, seed=6), expected)


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_teacher_and_student_generate_too(learned, particles, which, tmp_path):
    parts, trials = learned
    flow, _ = train_teacher(parts.train, parts.validation, SMOKE, "all")
    if which == "student":
        flow, _ = distil_student(flow, parts.train, parts.validation, SMOKE, "all", "bs")
    generator = made(flow, parts, trials)
    some = particles[:40]
    drawn = generator.sample(some, seed=1)
    uniform = uniforms_from_seed(1, 0, 40, 3 + generator.latents)
    sums = generator.photon_sums(some.to_numpy(), uniform[:, :3])
    if SMOKE.preprocessing.coordinates == "splits":
        np.testing.assert_array_equal(drawn.sum(axis=(1, 2)), sums)
    path = tmp_path / "g.safetensors"
    generator.save(path)
    np.testing.assert_array_equal(Generator.load(path).sample(some, seed=1), drawn)
    # of products of another size the last bit may differ, and so a photon
    alike = (generator.sample(some, seed=1, batch=32) == drawn).mean(axis=(1, 2))
    assert alike.min() > 0.98


def test_each_step_is_what_its_model_says(generator, particles):
    features = np.repeat(particles.to_numpy()[:1], 4000, axis=0)
    uniform = np.random.default_rng(1).random((4000, 3))
    sums = generator.photon_sums(features, uniform)
    p = generator.signal.probability(features[:1], ZN)[0]
    assert abs((sums > 0).mean() - p) < 4 * np.sqrt(p * (1 - p) / 4000) + 1e-9
    distribution = generator.photon_sum.distribution(features, ZN)
    torch.manual_seed(1)
    assert ks_2samp(sums[sums > 0], distribution.sample().numpy()).pvalue > 1e-4
    drawn = generator.from_uniform(
        features[:200], np.hstack([uniform[:200], np.full((200, generator.latents), 0.5)])
    )
    np.testing.assert_array_equal(drawn.sum(axis=(1, 2)), sums[:200])


def test_events_frames_and_structured_arrays_are_the_same_particles(generator, learned):
    test = learned[0].test[:20]
    frame = pd.DataFrame(test.features, columns=FEATURES)
    shuffled = frame[[*FEATURES[::-1]]].assign(pdg=test.pdg, other="text")
    structured = frame.to_records(index=False)
    for other in (test, shuffled, structured):
        np.testing.assert_array_equal(generator.sample(other, 1), generator.sample(frame, 1))
    assert generator.sample(frame[:0], 1).shape == (0, 44, 44)


def test_a_vertex_of_o2_only_moves_the_light(generator, particles):
    shifted = particles.assign(vx=particles.vx + 1e-4, vz=particles.vz + 0.3)
    drawn, moved = generator.sample(particles, seed=1), generator.sample(shifted, seed=1)
    assert abs(drawn.sum() / moved.sum() - 1) < 0.05


def test_what_flows_are_told_is_enough_as_conditions(generator, learned):
    test = learned[0].test[:30]
    asked = Conditions(test.features, test.photon_sum)
    flow = generator.surrogate
    np.testing.assert_array_equal(flow.generate(asked, 1, 16), flow.generate(test, 1, 16))


# --- Errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.rename(columns={"energy": "Energy"}), "column 'energy'; is it 'Energy'"),
        (lambda p: p.drop(columns="vz"), "expected a column 'vz'"),
        (lambda p: p.assign(px="a"), "row 0 .*a number in column px, found 'a'"),
        (
            lambda p: p.assign(mass=p.mass / 1000),
            "found mass .*is the mass in GeV|found mass 0.9395",
        ),
        (lambda p: p.assign(energy=np.nan), "row 0 .*finite features, found energy nan"),
        (lambda p: p.assign(charge=3.0), r"row 0 .*a species that was learned.*found \("),
        (lambda p: p.assign(pdg=1.5), "row 0 .*a PDG code, found 1.5"),
        (
            lambda p: p.assign(pz=1e-3 * p.pz, energy=_energy(p, 1e-3)),
            "row 0 .*(energy from|px / pz)",
        ),
        (lambda p: p.assign(pz=100 * p.pz, energy=_energy(p, 100)), "row 0 .*an energy from"),
    ],
)
def test_wrong_particles_are_refused_by_name(generator, particles, change, message):
    with pytest.raises((EventFileError, ParticleError), match=message):
        generator.sample(change(particles), 1)


def _energy(p, factor):
    return np.sqrt(p.px**2 + p.py**2 + (factor * p.pz) ** 2 + (1e-3 * p.mass) ** 2)


def test_an_array_without_names_is_refused(generator):
    with pytest.raises(EventFileError, match="columns with names"):
        generator.sample(np.zeros((3, 9)), 1)


# --- The file -----------------------------------------------------------------------------------


def test_one_file_holds_everything_and_nothing_is_unpickled(generator, particles, tmp_path):
    path = tmp_path / "generator.safetensors"
    generator.save(path)
    loaded = zdc_nb.Generator.load(path)
    assert loaded.domain == generator.domain
    np.testing.assert_array_equal(loaded.sample(particles, 3), generator.sample(particles, 3))
    assert [p.name for p in tmp_path.iterdir()] == ["generator.safetensors"]
    whole = path.read_bytes()
    for content, message in (
        (whole[: len(whole) // 2], "not a generator"),
        (b"\x80\x04\x95pickle", "not a generator"),
    ):
        path.write_bytes(content)
        with pytest.raises(ParticleError, match=message):
            Generator.load(path)
    with pytest.raises(FileNotFoundError):
        Generator.load(tmp_path / "none.safetensors")
    save_file({"x": torch.zeros(1)}, path, {"generator": json.dumps({"version": 99})})
    with pytest.raises(ParticleError, match="version 99, this program reads 1"):
        Generator.load(path)


def test_the_file_keeps_the_detector(generator, tmp_path):
    other = replace(ZN, name="ZN, moved", distance=100.0, offset=(0.02, -0.01))
    path = tmp_path / "generator.safetensors"
    replace(generator, detector=other).save(path)
    loaded = Generator.load(path)
    assert loaded.detector == other
    assert loaded.detector != ZN


# --- The command --------------------------------------------------------------------------------


def write(particles, pdg, path, light=None):
    if path.suffix == ".csv":
        particles.assign(pdg=pdg).to_csv(path, index=False)
    elif path.suffix == ".npz":
        np.savez_compressed(path, particles.assign(pdg=pdg).to_numpy())
    else:
        write_root([light], path)


@pytest.mark.parametrize("suffix", ["csv", "npz", "root"])
def test_the_command_writes_what_the_generator_draws(
    generator, learned, tmp_path, suffix, capsys, monkeypatch
):
    test = learned[0].test
    frame = pd.DataFrame(test.features, columns=FEATURES)
    model, source = tmp_path / "g.safetensors", tmp_path / f"particles.{suffix}"
    out = tmp_path / "responses.root"
    generator.save(model)
    write(frame, test.pdg, source, test)
    # several parts, none of the size of a batch
    monkeypatch.setattr("zdc_nb.data.particles.ROWS", 50)
    monkeypatch.setattr("zdc_nb.cli._ROWS", 40)
    assert count_particles(source) == len(test)
    assert sum(map(len, read_particles(source))) == len(test)
    names = ["--model", str(model), "--particles", str(source), "--out", str(out), "--seed", "9"]
    assert main(["generate", *names, "--batch", "32"]) == 0
    assert f"{len(test)} responses" in capsys.readouterr().out
    written = read_events(out)
    np.testing.assert_array_equal(written.responses, generator.sample(frame, 9))
    np.testing.assert_array_equal(written.features, test.features)
    np.testing.assert_array_equal(written.pdg, test.pdg)
    before = out.read_bytes()
    assert main(["generate", *names[:-2], "--seed", "9", "--model", str(source)]) == 2
    assert "not a generator" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_the_command_refuses_in_one_line(generator, particles, tmp_path, capsys):
    model, source = tmp_path / "g.safetensors", tmp_path / "p.csv"
    generator.save(model)
    bad = particles.copy()
    bad.loc[17, "mass"] = 5.0
    bad.to_csv(source, index=False)
    given = ["generate", "--model", str(model), "--particles", str(source), "--out"]
    assert main([*given, str(tmp_path / "r.root")]) == 2
    said = capsys.readouterr().err
    assert "p.csv" in said
    assert "row 17" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "r.root").exists()
    assert main([*given, str(tmp_path / "r.csv")]) == 2
    assert "expected a .root file" in capsys.readouterr().err
    source.write_text(particles[:0].to_csv(index=False), encoding="utf-8")
    assert main([*given, str(tmp_path / "r.root")]) == 2
    assert "holds no particles" in capsys.readouterr().err
    lines = particles.to_csv(index=False).splitlines()
    lines[60] = lines[60].replace(lines[60].split(",")[0], "many")
    source.write_text("\n".join(lines), encoding="utf-8")
    assert main([*given, str(tmp_path / "r.root")]) == 2
    assert "row 59 (counted from 0): expected a number in column energy, found 'many'" in (
        capsys.readouterr().err
    )
    source.write_text("", encoding="utf-8")
    assert main([*given, str(tmp_path / "r.root")]) == 2
    assert "p.csv" in capsys.readouterr().err
    assert (
        main(["generate", "--model", str(model), "--particles", "x.parquet", "--out", "r.root"])
        == 2
    )
    with pytest.raises(SystemExit):
        main([*given, "r.root", "--seed", "-1"])
    with pytest.raises(SystemExit) as done:
        main(["generate", "--help"])
    assert done.value.code == 0
    assert "--particles" in capsys.readouterr().out


def test_the_command_exports_for_o2(generator, tmp_path, capsys):
    model, folder = tmp_path / "g.safetensors", tmp_path / "o2"
    generator.save(model)
    assert main(["export-onnx", "--model", str(model), "--out", str(folder)]) == 0
    names = {"neutron.onnx", "classifier.onnx", "neutron_scales.txt", "classifier_scales.txt"}
    assert {path.name for path in folder.iterdir()} == names | {"settings.txt"}
    said = capsys.readouterr().out
    assert all(name in said for name in names)
    assert main(["export-onnx", "--model", str(tmp_path), "--out", str(folder)]) == 2
    assert "zdc-nb: " in capsys.readouterr().err


def test_particles_without_codes_get_their_nearest_species(particles):
    events = particles_of(particles)
    neutrons = (particles.mass.sub(939.565).abs() < 0.01) & (particles.charge == 0)
    assert neutrons.any()
    assert (events.pdg[neutrons] == 2112).all()
    np.testing.assert_array_equal(events.features, particles[[*FEATURES]].to_numpy())
