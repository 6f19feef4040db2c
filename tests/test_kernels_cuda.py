"""The Triton kernels against plain torch: on the GPU, or in Triton's interpreter without one.

The interpreter must be chosen before Triton is first imported, so it runs in a process of its own
(this file as a script), to which the tests send their arguments.
"""

import importlib.util
import io
import os
import platform
import re
import struct
import subprocess
import sys
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zdc_nb.flows import splines_triton as kernels_cuda
from zdc_nb.flows.splines import rational_quadratic_spline

BOUND = 14.0
UNWRITTEN = 7.5
DTYPES = [torch.float64, torch.float32]


def why_not() -> str:
    """Why the kernels cannot run here, if they cannot."""
    if not kernels_cuda.available():
        return "Triton is not installed"
    old = tuple(map(int, metadata.version("triton").split(".")[:2])) < (3, 7)
    new_numpy = tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4)
    if not torch.cuda.is_available() and old and new_numpy:
        return "no GPU, and the interpreter of Triton before 3.7 does not work with NumPy 2.4"
    return ""


needs_kernels = pytest.mark.skipif(bool(why_not()), reason=why_not() or "never")


# --- Where the kernels run ----------------------------------------------------------------------


def packed(arguments: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(arguments, buffer)  # strides and shared memory stay as they are
    return buffer.getvalue()


def unpacked(content: bytes, device: str = "cpu") -> Any:
    return torch.load(io.BytesIO(content), map_location=device)


def send(stream, content):
    stream.write(struct.pack("q", len(content)) + content)
    stream.flush()


def receive(stream):
    header = stream.read(8)
    return stream.read(*struct.unpack("q", header)) if header else None


def serve():
    """Answer each call with its arguments as the kernel left them."""
    torch.set_num_threads(1)
    while (content := receive(sys.stdin.buffer)) is not None:
        name, *arguments = unpacked(content)
        with np.errstate(all="ignore"):  # the tails' unused lanes overflow
            getattr(kernels_cuda, name)(*arguments)
        send(sys.stdout.buffer, packed(arguments))


@contextmanager
def interpreter():
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)]),
    }
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:

        def call(name, *arguments):
            send(process.stdin, packed([name, *arguments]))
            answer = receive(process.stdout)
            assert answer is not None, "the interpreter failed: see the captured output"
            return unpacked(answer)

        yield call


@pytest.fixture(scope="module")
def call():
    """``call(name, *arguments)`` gives the arguments back as the kernel left them."""
    if not torch.cuda.is_available():
        with interpreter() as interpreted:
            yield interpreted
        return

    def on_device(name, *arguments):
        arguments = unpacked(packed(list(arguments)), "cuda")
        getattr(kernels_cuda, name)(*arguments)
        return unpacked(packed(arguments))

    yield on_device


# --- Splines ------------------------------------------------------------------------------------


def case(
    rows: int, width: int, bins: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width, generator=generator, dtype=torch.float64) * 8
    parameters = torch.randn(rows, 3 * bins - 1, width, generator=generator, dtype=torch.float64)
    return values.to(dtype), parameters.to(dtype)


def expected(values, parameters, inverse, grad_images, grad_logs):
    """Images, logs and both gradients, in double precision."""
    leaves = values.double().requires_grad_(), parameters.double().requires_grad_()
    images, logs = rational_quadratic_spline(
        leaves[0], leaves[1], BOUND, inverse=inverse, engine="plain"
    )
    total = (images * grad_images.double() + logs * grad_logs.double()).sum()
    return images.detach(), logs.detach(), *torch.autograd.grad(total, leaves)


def evaluated(call, values, parameters, inverse):
    empty = torch.full_like(values, UNWRITTEN)
    *_, images, logs = call("evaluate", values, parameters, BOUND, inverse, empty, empty.clone())
    return images, logs


def differentiated(call, values, images, parameters, inverse, grads, target=None):
    target = torch.full_like(parameters, UNWRITTEN) if target is None else target
    *_, grad_values, grad_parameters = call(
        "differentiate", values, images, parameters, BOUND, inverse, *grads,
        torch.full_like(values, UNWRITTEN), target,
    )  # fmt: skip
    return grad_values, grad_parameters


def assert_near(ours: Tensor, exact: Tensor, precise: float, single: float) -> None:
    """Within ``precise``, or in single precision ``single``, relative to 1 + |exact|."""
    tolerance = precise if ours.dtype == torch.float64 else single
    torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance, equal_nan=True)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [2, 5, 8])
def test_values_and_gradients(call, bins, inverse, dtype):
    # more than a block, and not a multiple of one
    values, parameters = case(3, 150, bins, dtype)
    grads = case(2 * 3, 150, 2, dtype, seed=1)[0].split(3)
    exact = expected(values, parameters, inverse, *grads)
    images, logs = evaluated(call, values, parameters, inverse)
    assert (values.abs() > BOUND).any()
    assert_near(images, exact[0], 1e-11, 5e-4)
    assert_near(logs, exact[1], 1e-11, 5e-4)
    gradients = differentiated(call, values, images, parameters, inverse, grads)
    for ours, theirs in zip(gradients, exact[2:], strict=True):
        assert_near(ours, theirs, 1e-9, 3e-3)
        assert (ours.double() - theirs).norm() <= 1e-4 * theirs.norm()


@needs_kernels
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_half_the_size(call, dtype, inverse):
    values, parameters = case(2, 70, 8, torch.float32)
    parameters = parameters.to(dtype)
    grads = case(2 * 2, 70, 2, torch.float32, seed=1)[0].split(2)
    exact = expected(values, parameters, inverse, *grads)
    images, logs = evaluated(call, values, parameters, inverse)
    assert_near(images, exact[0], 0, 5e-4)
    assert_near(logs, exact[1], 0, 5e-4)
    # gradients in the place of parameters
    gradients = differentiated(call, values, images, parameters, inverse, grads, parameters)
    assert gradients[1].dtype == dtype
    for ours, theirs in zip(gradients, exact[2:], strict=True):
        assert (ours.double() - theirs).norm() <= 4e-3 * theirs.norm()


@needs_kernels
def test_gradients_may_replace_parameters(call):
    values, parameters = case(2, 140, 8)
    grads = case(2 * 2, 140, 2, seed=1)[0].split(2)
    images, _ = evaluated(call, values, parameters, inverse=False)
    apart = differentiated(call, values, images, parameters, False, grads)
    in_place = differentiated(call, values, images, parameters, False, grads, parameters)
    assert all(torch.equal(a, b) for a, b in zip(apart, in_place, strict=True))


@needs_kernels
@pytest.mark.parametrize("inverse", [False, True])
def test_tails_are_the_identity(call, inverse):
    values = torch.tensor([[-40.0, -14.001, 14.001, 1e30, torch.inf]])
    _, parameters = case(1, 5, 8, torch.float32)
    images, logs = evaluated(call, values, parameters, inverse)
    assert torch.equal(images, values)
    assert torch.equal(logs, torch.zeros_like(logs))
    grads = torch.full_like(values, 2.0), torch.full_like(values, 3.0)
    grad_values, grad_parameters = differentiated(call, values, images, parameters, inverse, grads)
    assert torch.equal(grad_values, grads[0])
    assert torch.equal(grad_parameters, torch.zeros_like(parameters))


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inverse", [False, True])
def test_knots_meet(call, inverse, dtype):
    bins = 5
    _, parameters = case(1, 1, bins)
    shares = 1e-3 + (1 - bins * 1e-3) * parameters[0, : 2 * bins, 0].view(2, bins).softmax(-1)
    knots = torch.nn.functional.pad(2 * BOUND * shares.cumsum(-1) - BOUND, (1, 0), value=-BOUND)
    knots[:, -1] = BOUND
    source, target = knots.flip(0) if inverse else knots
    # from both sides, and where the knots' rounding decides
    step = 1e-9 if dtype == torch.float64 else 1e-5
    values = torch.cat([source, source - step, source + step])[None].to(dtype)
    many = parameters.expand(1, -1, values.shape[1]).contiguous().to(dtype)
    images, logs = evaluated(call, values, many, inverse)
    assert_near(images[0], target.repeat(3), 1e-7, 2e-4)
    exact = expected(values, many, inverse, images, logs)
    inside = values.abs() <= BOUND
    assert_near(logs[inside], exact[1][inside], 1e-7, 2e-3)


@needs_kernels
def test_nan_stays(call):
    values, parameters = case(1, 40, 8, torch.float32)
    values[0, :3] = 0.5
    clean = evaluated(call, values, parameters, inverse=False)
    values[0, 0] = torch.nan
    parameters[0, 3, 1] = torch.nan  # a width
    parameters[0, 16:, 2] = torch.nan  # the derivatives
    for inverse in (False, True):
        images, logs = evaluated(call, values, parameters, inverse)
        grads = torch.ones_like(values), torch.ones_like(values)
        gradients = differentiated(call, values, images, parameters, inverse, grads)
        assert images[0, :3].isnan().all()
        assert logs[0, :3].isnan().all()
        assert gradients[0][0, :3].isnan().all()
        assert not any(t[..., 3:].isnan().any() for t in (images, logs, *gradients))
        if not inverse:
            assert torch.equal(images[0, 3:], clean[0][0, 3:])


@needs_kernels
@settings(deadline=None, max_examples=12)
@given(
    rows=st.integers(1, 3),
    width=st.integers(1, 40),
    bins=st.integers(2, 10),
    spread=st.floats(0, 4),
    seed=st.integers(0, 2**31),
)
def test_inverse_undoes_forward(call, rows, width, bins, spread, seed):
    values, parameters = case(rows, width, bins, seed=seed)
    parameters *= spread
    images, logs = evaluated(call, values, parameters, inverse=False)
    back, back_logs = evaluated(call, images, parameters, inverse=True)
    torch.testing.assert_close(back, values, rtol=0, atol=1e-7)
    torch.testing.assert_close(back_logs, -logs, rtol=0, atol=1e-5)
    exact, _ = rational_quadratic_spline(values, parameters, BOUND, engine="plain")
    torch.testing.assert_close(images, exact, rtol=0, atol=1e-9)


@needs_kernels
def test_nothing_to_do(call):
    for shape in ((0, 5), (3, 0)):
        values, parameters = case(*shape, 8)
        evaluated(call, values, parameters, inverse=False)
        differentiated(call, values, values, parameters, False, (values, values))


# --- Inversion of a panel -----------------------------------------------------------------------


def panel(layers, units, dims, samples, bins, inverse, dtype, seed=0):
    """Arguments of ``solve_panel`` but the last three; weights are parts of larger matrices."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, spread=1.0):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * spread).to(dtype)

    count, spread = 3 * bins - 1, 1 / max(units, 1) ** 0.5
    counts = torch.randint(0, units + 1, (dims,), generator=generator).sort()[0]
    counts[-1] = units
    return [
        normal(layers, units, samples),
        normal(dims, count, samples),
        normal(dims, samples, spread=6),
        normal(units, dims + 3)[:, 2 : dims + 2],
        [normal(units, units + 2, spread=spread)[:, :units] for _ in range(layers - 1)],
        normal(dims, count, units + 5, spread=spread)[:, :, 1 : units + 1],
        counts.to(torch.int32),
        normal(dims),
        normal(dims).abs() + 1,
        BOUND,
        inverse,
    ]


def solved(sums, base, outputs, first, blocks, last, counts, location, scale, bound, inverse):
    """What ``solve_panel`` fills, one unit after the other."""
    sums, hidden = sums.clone(), torch.full_like(sums, UNWRITTEN)
    inputs, logs = torch.empty_like(outputs), torch.empty_like(outputs)
    done = 0
    for t, final in enumerate(counts.tolist()):
        for layer in range(len(sums)):
            for u in range(done, final):
                total = sums[layer, u]
                if layer > 0:
                    total = total + blocks[layer - 1][u, :final] @ hidden[layer - 1, :final]
                hidden[layer, u] = total.relu()
        done = final
        parameters = base[t] + last[t, :, :final] @ hidden[-1, :final]
        x, log = rational_quadratic_spline(
            outputs[t : t + 1], parameters[None], bound, inverse=inverse, engine="plain"
        )
        inputs[t], logs[t] = x[0], log[0]
        sums[0, done:] += first[done:, t, None] * (inputs[t] - location[t]) / scale[t]
    return inputs, logs, hidden


def solve(call, arguments):
    empty = torch.full_like(arguments[2], UNWRITTEN)
    hidden = torch.full_like(arguments[0], UNWRITTEN)
    return call("solve_panel", *arguments, empty, empty.clone(), hidden)[-3:]


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("layers", "units", "dims", "samples", "bins", "inverse"),
    [
        (1, 0, 1, 5, 2, False),
        (1, 1, 3, 37, 8, True),
        (2, 9, 12, 37, 5, False),
        (2, 17, 16, 32, 8, True),
        (3, 40, 10, 33, 8, True),
        (1, 20, 64, 19, 8, False),
    ],
)
def test_panel(call, layers, units, dims, samples, bins, inverse, dtype):
    arguments = panel(layers, units, dims, samples, bins, inverse, dtype)
    exact = solved(*[
        [w.double() for w in a] if isinstance(a, list)
        else a.double() if isinstance(a, Tensor) and a.is_floating_point()
        else a
        for a in arguments
    ])  # fmt: skip
    for ours, theirs in zip(solve(call, arguments), exact, strict=True):
        assert_near(ours, theirs, 1e-9, 5e-3)
        # errors of one dimension move all that follow
        assert (ours.double() - theirs).norm() <= 1e-4 * theirs.norm() or dtype == torch.float64


@needs_kernels
def test_panel_leaves_later_units_alone(call):
    arguments = panel(2, 9, 6, 7, 5, False, torch.float64)
    arguments[6] = torch.tensor([0, 0, 2, 2, 5, 5], dtype=torch.int32)
    exact = solved(*arguments)
    ours = solve(call, arguments)
    assert (ours[2][:, 5:] == UNWRITTEN).all()
    for one, other in zip(ours, exact, strict=True):
        assert_near(one, other, 1e-9, 0)
    # activations in the place of pre-activations
    sums = arguments[0]
    *_, inputs, _, hidden = call(
        "solve_panel", *arguments, *torch.empty_like(exact[0])[None].repeat(2, 1, 1), sums
    )
    assert torch.equal(inputs, ours[0])
    assert torch.equal(hidden[:, :5], ours[2][:, :5])


@needs_kernels
def test_panel_reads_no_weights_of_units_to_come(call):
    arguments = panel(2, 9, 12, 20, 5, False, torch.float64)
    exact = solved(*arguments)
    first, (block,), last, counts = arguments[3:7]
    for t, final in enumerate(counts.tolist()):
        first[:final, t] = torch.nan
        last[t, :, final:] = torch.nan
    for u in range(9):
        block[u, int(counts[counts > u][0]) :] = torch.nan
    for ours, theirs in zip(solve(call, arguments), exact, strict=True):
        assert_near(ours, theirs, 1e-9, 0)


@needs_kernels
def test_panel_keeps_nan_where_it_belongs(call):
    arguments = panel(2, 9, 12, 20, 5, False, torch.float64)
    arguments[2][4, 3] = torch.nan
    exact = solved(*arguments)
    assert 0 < int(exact[0].isnan().sum()) <= 8
    for ours, theirs in zip(solve(call, arguments), exact, strict=True):
        assert_near(ours, theirs, 1e-9, 0)


# --- The rest -----------------------------------------------------------------------------------


def test_works_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location("bare", kernels_cuda.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not module.available()


def test_strided_arguments_are_refused():
    values, parameters = case(4, 6, 2)
    empty = torch.empty_like(values)
    with pytest.raises(ValueError, match="contiguous"):
        kernels_cuda.evaluate(values, parameters.mT.contiguous().mT, BOUND, False, empty, empty)
    arguments = panel(2, 4, 3, 5, 2, False, torch.float64)
    empty = torch.empty_like(arguments[2])
    for i, wrong in ((4, [arguments[4][0].contiguous().mT]), (4, []), (5, arguments[5].mT)):
        changed: list[Any] = [*arguments[:i], wrong, *arguments[i + 1 :], empty, empty, empty]
        with pytest.raises(ValueError, match="contiguous"):
            kernels_cuda.solve_panel(*changed)


@pytest.mark.skipif(not kernels_cuda.available(), reason="Triton is not installed")
@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1" or platform.machine() != "x86_64",
    reason="needs Triton's compiler",
)
@pytest.mark.parametrize("name", ["_evaluate_kernel", "_differentiate_kernel", "_solve_kernel"])
def test_compiles_for_a_gpu(name, monkeypatch, tmp_path):
    # the interpreter takes what the compiler does not; compiling needs no GPU
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.compiler import ASTSource, compile  # noqa: PLC0415

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(kernels_cuda, name)
    constants = {
        "BINS": 8, "BOUND": BOUND, "MIN": 1e-3, "INVERSE": True, "BLOCK": 128, "LAYERS": 2,
        "UNITS": 32, "ROWS": 32, "SAMPLES": 32, "PRECISION": "tf32x3",
    }  # fmt: skip
    integers = {"width", "samples", "dims", "units"}
    types: dict[str, Any] = {}
    for argument in kernel.arg_names:
        if argument in constants:
            types[argument] = "constexpr"
        elif argument in integers or argument.startswith(("first_", "last_")):
            types[argument] = "i32"
        else:
            types[argument] = "*fp32"
    if name == "_solve_kernel":
        types |= {"counts": "*i32", "blocks": ("*fp32",), "block_rows": ("i32",)}
    source = ASTSource(kernel, types, {k: v for k, v in constants.items() if k in types})
    compiled = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert re.search(r"\.target sm_90", compiled.asm["ptx"])


if __name__ == "__main__":
    serve()
