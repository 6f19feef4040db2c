"""The two ways through an autoregressive block: its fast pass, and the exact inversion.

Everything is (dimensions, samples) here, see :mod:`zdc_nb.flows.made`. The output layer of the network
and the splines that it parametrises go together, panel by panel: the parameters of a panel are
still in the cache when its splines are evaluated, they are kept only if somebody needs them, and
their gradients exist a panel at a time (in full only for parameters that another pass is matched
with).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from zdc_nb.flows.made import Made, RoundedCopy, TriangularLinear, add_product, multiply_into
from zdc_nb.flows.splines import Panel, evaluate_splines, fill_gradients, solve_panel

__all__ = ["ParameterTarget", "forward_pass", "invert"]


@dataclass(frozen=True)
class ParameterTarget:
    """Spline parameters to be matched with those of a pass.

    Attributes
    ----------
    parameters
        (D, 3K - 1, M).
    first
        the pass's first sample is compared with sample ``first`` of these. If these come from a
        pass with more samples, the others are left alone.
    samples
        how many samples are compared.
    """

    parameters: Tensor
    first: int
    samples: int


@dataclass(frozen=True)
class _Setting:
    layer: TriangularLinear
    rounded_context: RoundedCopy
    outputs_per_dim: int
    bound: float
    inverse: bool
    keep: bool
    first: int
    samples: int

    def dims(self, rows: slice) -> slice:
        return slice(rows.start // self.outputs_per_dim, rows.stop // self.outputs_per_dim)


def forward_pass(
    network: Made,
    inputs: Tensor,
    context: Tensor,
    bound: float,
    *,
    inverse: bool,
    keep: bool = False,
    match: ParameterTarget | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """``outputs = S(inputs; network(inputs, context))``, where S is the spline or its inverse.

    Parameters
    ----------
    inputs
        (D, R * N); sample i belongs to condition i modulo N.
    context
        (N, C) conditions.
    inverse
        whether S is the inverse spline.
    keep
        return the spline parameters.
    match
        compare the parameters of the first samples with others.

    Returns
    -------
    outputs, log_derivative
        (D, R * N) and (R * N,).
    parameters
        (D, 3K - 1, R * N), with ``keep``.
    distance
        (M,) mean squared difference between the parameters of the first M samples and ``match``.
    """
    hidden = network.hidden_units(inputs, context)
    units = network.context_units(context)
    extra, extra_weight = (None, None) if units is None else units
    setting = _Setting(
        network.last,
        network.rounded_context,
        network.outputs_per_dim,
        bound,
        inverse,
        keep,
        0 if match is None else match.first,
        0 if match is None else match.samples,
    )
    outputs, logs, parameters, distance = _OutputLayerAndSpline.apply(  # type: ignore[no-untyped-call]
        hidden,
        inputs.contiguous(),
        network.last.weight,
        network.last.bias,
        extra,
        extra_weight,
        None if match is None else match.parameters,
        setting,
        torch.is_grad_enabled(),
    )
    return (
        outputs,
        logs.sum(0),
        parameters if keep else None,
        None if match is None else distance,
    )


class _OutputLayerAndSpline(torch.autograd.Function):
    """Keeps the parameters of all samples for the backward pass, if there will be one."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        extra: Tensor | None,
        extra_weight: Tensor | None,
        target: Tensor | None,
        setting: _Setting,
        with_gradients: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        del weight  # the layer has it, also in other precisions
        per_dim, samples = setting.outputs_per_dim, inputs.shape[1]
        differentiate = with_gradients and any(ctx.needs_input_grad)
        whole = differentiate or setting.keep
        dims = len(inputs) if whole else max(p.shape[0] for p in setting.layer.panels) // per_dim
        parameters = inputs.new_empty(dims, per_dim, samples)
        outputs, logs = torch.empty_like(inputs), torch.empty_like(inputs)
        distance = inputs.new_zeros(setting.samples)
        shift = bias[:, None]
        factor = torch.empty(0)
        if extra is not None and extra_weight is not None:
            extra = extra.to(hidden.dtype)
            factor = setting.rounded_context(extra_weight, hidden.dtype)
        for panel, matrix, seen in setting.layer.products(hidden):
            here = setting.dims(panel.rows)
            part = parameters[here] if whole else parameters[: here.stop - here.start]
            flat = part.flatten(0, 1)
            # not ``addmm``, which writes the broadcast bias to memory first
            multiply_into(flat, matrix, seen)
            of_conditions = samples if extra is None else extra.shape[1]
            repeats = flat.view(len(flat), samples // max(of_conditions, 1), of_conditions)
            if extra is not None:
                common = factor[panel.rows] @ extra
                repeats += (common + shift[panel.rows])[:, None]
            else:
                flat += shift[panel.rows]
            evaluate_splines(
                inputs[here], part, setting.bound, setting.inverse, outputs[here], logs[here]
            )
            if target is not None:
                difference = _difference(part, target, here, setting)
                distance += difference.square_().sum((0, 1))
        distance /= len(inputs) * per_dim
        if differentiate:
            ctx.save_for_backward(
                hidden, inputs, outputs, parameters, bias, extra, extra_weight, target
            )
        ctx.setting = setting
        ctx.set_materialize_grads(False)
        if not setting.keep:
            # what lies in the buffer is of no use to anybody, and must not be kept alive
            parameters = inputs.new_empty(0)
        return outputs, logs, parameters, distance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any,
        grad_outputs: Tensor | None,
        grad_logs: Tensor | None,
        grad_kept: Tensor | None,
        grad_distance: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        hidden, inputs, outputs, parameters, bias, extra, extra_weight, target = ctx.saved_tensors
        setting: _Setting = ctx.setting
        want = dict(
            zip(
                ("hidden", "inputs", "weight", "bias", "extra", "extra_weight", "target"),
                ctx.needs_input_grad,
                strict=False,
            )
        )
        zero = torch.zeros_like(inputs)
        grad_outputs = zero if grad_outputs is None else grad_outputs.contiguous()
        grad_logs = zero if grad_logs is None else grad_logs.contiguous()
        pull = None
        if target is not None and grad_distance is not None:
            pull = grad_distance * (2 / (len(inputs) * setting.outputs_per_dim))

        def empty(
            like: Tensor | None, wanted: str, dtype: torch.dtype | None = None
        ) -> Tensor | None:
            return (
                torch.empty_like(like, dtype=dtype) if like is not None and want[wanted] else None
            )

        layer, per_dim, samples = setting.layer, setting.outputs_per_dim, inputs.shape[1]
        # sums over panels are in full precision
        grad_hidden = torch.zeros_like(hidden, dtype=inputs.dtype) if want["hidden"] else None
        grad_inputs = torch.empty_like(inputs)
        grad_weight = empty(layer.weight, "weight")
        grad_bias = empty(bias, "bias")
        grad_extra = torch.zeros_like(extra, dtype=inputs.dtype) if want["extra"] else None
        grad_extra_weight = empty(extra_weight, "extra_weight")
        if extra is not None:
            extra_weight = setting.rounded_context(extra_weight, hidden.dtype)
        grad_target = torch.zeros_like(target) if want["target"] and pull is not None else None
        buffer = torch.empty(
            max(p.shape[0] for p in layer.panels), samples, dtype=inputs.dtype, device=inputs.device
        )
        for panel, matrix, seen in layer.products(hidden):
            here = setting.dims(panel.rows)
            grad = buffer[: panel.shape[0]]
            by_dim = grad.unflatten(0, (-1, per_dim))
            fill_gradients(
                inputs[here],
                outputs[here],
                parameters[here],
                setting.bound,
                setting.inverse,
                grad_outputs[here],
                grad_logs[here],
                grad_inputs[here],
                by_dim,
            )
            if grad_kept is not None:
                by_dim += grad_kept[here]
            if pull is not None:
                difference = _difference(parameters[here], target, here, setting).mul_(pull)
                by_dim[..., : setting.samples] += difference
                if grad_target is not None:
                    mine = slice(setting.first, setting.first + setting.samples)
                    torch.neg(difference, out=grad_target[here][..., mine])
            if grad_bias is not None:
                torch.sum(grad, 1, out=grad_bias[panel.rows])
            rounded = grad.to(hidden.dtype)
            if grad_weight is not None:
                multiply_into(panel.of(grad_weight), rounded, seen.T)
            if grad_hidden is not None:
                add_product(grad_hidden[: panel.columns], matrix.T, rounded)
            if extra is not None:
                _add_context_gradients(
                    extra, extra_weight[panel.rows], rounded, grad_extra,
                    None if grad_extra_weight is None else grad_extra_weight[panel.rows],
                )  # fmt: skip
        if grad_weight is not None:
            layer.mask_edges(grad_weight)
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            grad_inputs,
            grad_weight,
            grad_bias,
            grad_extra,
            grad_extra_weight,
            grad_target,
            None,
            None,
        )


def _add_context_gradients(
    extra: Tensor,
    weight: Tensor,
    grad: Tensor,
    grad_extra: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    """What a panel's gradients (rows, R * N) mean for the context network's end."""
    # not ``sum``, which is slow along so short an axis
    shared = functools.reduce(torch.add, grad.split(max(extra.shape[1], 1), dim=1))
    if grad_weight is not None:
        multiply_into(grad_weight, shared, extra.T)
    if grad_extra is not None:
        add_product(grad_extra, weight.T, shared)


def _difference(part: Tensor, target: Tensor, here: slice, setting: _Setting) -> Tensor:
    """Parameters of a panel, (T, 3K - 1, M), less those that they are to match."""
    return (
        part[..., : setting.samples]
        - target[here][..., setting.first : setting.first + setting.samples]
    )


@torch.no_grad()
def invert(
    network: Made, outputs: Tensor, context: Tensor, bound: float, *, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Find the inputs of which :func:`forward_pass` makes ``outputs``; exact to rounding.

    A hidden unit of degree g depends on the first g dimensions only and is final as soon as they
    are known, so each unit is needed once, and the whole inversion costs the arithmetic of one
    pass. Before a panel of dimensions, one matrix product a layer brings in all that lies before
    it; inside it a compiled kernel goes dimension by dimension, independently for each sample.
    The products are those of the unrounded weights, always: where ``precision`` lets the fast pass
    round, that pass is inverted to as much as it was rounded.

    Parameters
    ----------
    outputs
        (D, N).
    context
        (N, C).
    inverse
        whether the *forward pass* applies the inverse spline.

    Returns
    -------
    inputs, log_derivative
        (D, N), and (N,) of the inversion.
    """
    samples = outputs.shape[1]
    # whole vectors only; at least as wide as any processor's
    padding = -samples % 16
    y = functional.pad(outputs, (0, padding)).contiguous()
    condition = functional.pad(context.T, (0, padding))
    per_dim, width = network.outputs_per_dim, y.shape[1]
    layers = network.hidden_layers
    first, last = network.first, network.last
    x, logs = torch.empty_like(y), torch.empty_like(y)
    standard = torch.cat([condition, torch.empty_like(y)])
    hidden = y.new_empty(len(layers), len(network.degrees), width)
    extra = network.context_units(context)
    extra_units = None if extra is None else functional.pad(extra[0], (0, padding))
    # a GPU keeps the panel's units in registers, which hold fewer
    panel = network.panel if y.device.type == "cpu" else math.gcd(network.panel, 32)
    for start in range(0, network.dim, panel):
        stop = min(start + panel, network.dim)
        done, final = (int(i) for i in np.searchsorted(network.degrees, (start, stop)))
        new, known = slice(done, final), network.context + start
        sums = y.new_empty(len(layers), final - done, width)
        blocks = y.new_empty(max(len(layers) - 1, 1), final - done, final - done)
        inside = first.weight.new_empty(final - done, stop - start)
        if done < final:
            torch.mm(first.part(new, known), standard[:known], out=sums[0])
            sums[0] += first.bias[new, None]
            inside = first.part(new, known + stop - start)[:, known:]
            # the last unit may see fewer than all dimensions of the panel
            inside = functional.pad(inside, (0, stop - start - inside.shape[1])).contiguous()
            for i, layer in enumerate(layers[1:]):
                weights = layer.part(new, final)
                torch.mm(weights[:, :done], hidden[i, :done], out=sums[i + 1])
                sums[i + 1] += layer.bias[new, None]
                blocks[i] = weights[:, done:]
        rows = slice(start * per_dim, stop * per_dim)
        weights = last.part(rows, final)
        base = torch.mm(weights[:, :done], hidden[-1, :done]).add_(last.bias[rows, None])
        if extra is not None and extra_units is not None:
            base.addmm_(extra[1][rows], extra_units)
        here = slice(start, stop)
        activations = torch.empty_like(sums)
        panel_here = Panel(
            sums,
            base.view(stop - start, per_dim, width),
            y[here],
            inside,
            blocks,
            weights[:, done:],
            torch.from_numpy(
                np.searchsorted(network.degrees[new], np.arange(start, stop), side="right")
            ),
            network.location[here],
            network.scale[here],
            x[here],
            logs[here],
            activations,
        )
        solve_panel(panel_here, bound, not inverse)
        hidden[:, new] = activations
        standard[known : network.context + stop] = (
            x[here] - network.location[here, None]
        ) / network.scale[here, None]
    return x[:, :samples], logs[:, :samples].sum(0)
