"""nflows and stock Pyro with this project's weights, to be run beside it.

Both are used as they are installed. Only the masks and weights of their networks are replaced by
ours, so that all compute the same function and differ in how. Three things stay different, and
:mod:`zdc_nb.bench.run` measures what they change:

- The derivative of a spline at both ends is 1 in nflows, 0.999 in Pyro and here.
- Theirs is the spline in the fast direction of an inverse autoregressive flow, too; our student
  applies the inverse spline there. The cost is comparable, the function is another one.
- nflows has no condition here (it would enter its network in another place than in Pyro's), and
  Pyro's is multiplied by the same weights as ours. The benchmark's condition is zero for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from zdc_nb.flows.made import Made
from zdc_nb.flows.maf_iaf import stock_transform

__all__ = ["Layer", "NflowsPeer", "PeerError", "PyroPeer", "dense_layers"]


class PeerError(RuntimeError):
    """A library to compare with is not installed."""


@dataclass(frozen=True)
class Layer:
    """One linear layer of a MADE in the layout of stock Pyro.

    Attributes
    ----------
    weight
        (outputs, inputs), zero where the mask forbids. The inputs of the first layer are the
        condition, then the dimensions; the outputs of the last are all dimensions of the first
        spline parameter, then those of the next.
    bias
        (outputs,).
    mask
        (outputs, inputs) bool, which weights are allowed.
    """

    weight: Tensor
    bias: Tensor
    mask: Tensor


@torch.no_grad()
def dense_layers(network: Made) -> list[Layer]:
    """The masked layers of a network, first to last; copies, in float32."""
    return [
        Layer(weight.to(torch.float32, copy=True), bias.to(torch.float32, copy=True), mask.bool())
        for weight, bias, mask in network.dense_weights()
    ]


class PyroPeer:
    """Stock Pyro: its autoregressive network, which multiplies by the mask in every pass.

    Parameters
    ----------
    layers
        those of :func:`dense_layers`.
    dim, context
        dimensions D of a response and C of a condition.
    bins, bound
        of the splines.
    """

    name = "pyro"

    def __init__(self, layers: list[Layer], dim: int, context: int, bins: int, bound: float):
        self.dim = dim
        weights = [(layer.weight, layer.bias, layer.mask.to(layer.weight)) for layer in layers]
        self.transform: Any = stock_transform(weights, dim, context, bins, bound)
        self.network: Any = self.transform.nn

    @property
    def module(self) -> nn.Module:
        """What holds the weights."""
        module: nn.Module = self.network
        return module

    def _base(self) -> Any:
        zero = torch.zeros(self.dim, device=next(self.network.parameters()).device)
        return dist.Normal(zero, torch.ones_like(zero)).to_event(1)

    def log_prob(self, x: Tensor, context: Tensor) -> Tensor:
        """(N,) log-density of the masked autoregressive flow at x (N, D), contexts (N, C)."""
        towards_data = [self.transform.condition(context).inv]
        return dist.TransformedDistribution(self._base(), towards_data).log_prob(x)  # type: ignore[no-any-return]

    def to_latent(self, x: Tensor, context: Tensor) -> Tensor:
        """(N, D) the fast pass."""
        return self.transform.condition(context)(x)  # type: ignore[no-any-return]

    def inversion_pass(self, z: Tensor, context: Tensor) -> Callable[[Tensor], Tensor]:
        """One of the D passes in which Pyro inverts the flow at z (N, D): the next iterate."""
        spline = self.transform.condition(context).spline

        def step(x: Tensor) -> Tensor:
            return spline.condition(x)._inverse(z)  # type: ignore[no-any-return]

        return step

    def sample_iaf(self, context: Tensor) -> Tensor:
        """(N, D) samples of the inverse autoregressive flow of the same network."""
        towards_data = [self.transform.condition(context)]
        flow: Any = dist.TransformedDistribution(self._base(), towards_data)
        return flow.sample((len(context),))  # type: ignore[no-any-return]


class NflowsPeer:
    """nflows: its masked autoregressive transform without residual blocks.

    Parameters
    ----------
    layers
        those of :func:`dense_layers`.
    dim, context, bins, bound
        as in :class:`PyroPeer`.

    Raises
    ------
    PeerError
        where nflows is not installed.
    """

    name = "nflows"

    def __init__(self, layers: list[Layer], dim: int, context: int, bins: int, bound: float):
        try:
            # needed by the benchmark alone, and so not a dependency of the study
            from nflows.distributions import StandardNormal  # noqa: PLC0415
            from nflows.flows import Flow  # noqa: PLC0415
            from nflows.transforms import (  # noqa: PLC0415
                InverseTransform,
                MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
            )
        except ImportError as error:
            raise PeerError(
                f"nflows is not installed ({error}): `make bench` does so, or leave it out of "
                "`peers` in the benchmark's parameters"
            ) from error
        self.dim = dim
        self.transform: Any = MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            features=dim,
            hidden_features=len(layers[0].bias),
            num_bins=bins,
            tails="linear",
            tail_bound=bound,
            num_blocks=len(layers) - 2,
            use_residual_blocks=False,
        )
        network = self.transform.autoregressive_net
        theirs = [network.initial_layer, *(block.linear for block in network.blocks)]
        for made, layer in zip([*theirs, network.final_layer], layers, strict=True):
            weight, bias, mask = layer.weight, layer.bias, layer.mask
            if made is network.initial_layer:
                weight, mask = weight[:, context:], mask[:, context:]
            if made is network.final_layer:
                # rows by dimension first, not by spline parameter
                weight, bias, mask = (
                    t.unflatten(0, (-1, dim)).transpose(0, 1).flatten(0, 1)
                    for t in (weight, bias, mask)
                )
            with torch.no_grad():
                made.weight.copy_(weight)
                made.bias.copy_(bias)
                made.mask.copy_(mask)
        self.transform.to(layers[0].weight.device)
        self.maf: Any = Flow(self.transform, StandardNormal([dim]))
        self.iaf: Any = Flow(InverseTransform(self.transform), StandardNormal([dim]))
        self.maf.to(layers[0].weight.device)
        self.iaf.to(layers[0].weight.device)

    @property
    def module(self) -> nn.Module:
        """What holds the weights."""
        module: nn.Module = self.transform
        return module

    def log_prob(self, x: Tensor, context: Tensor) -> Tensor:  # noqa: ARG002
        """(N,) log-density of the masked autoregressive flow at x (N, D)."""
        return self.maf.log_prob(x)  # type: ignore[no-any-return]

    def to_latent(self, x: Tensor, context: Tensor) -> Tensor:  # noqa: ARG002
        """(N, D) the fast pass."""
        return self.transform(x)[0]  # type: ignore[no-any-return]

    def inversion_pass(self, z: Tensor, context: Tensor) -> Callable[[Tensor], Tensor]:  # noqa: ARG002
        """One of the D passes in which nflows inverts the flow at z (N, D): the next iterate."""
        transform = self.transform

        def step(x: Tensor) -> Tensor:
            parameters = transform.autoregressive_net(x, None)
            return transform._elementwise_inverse(z, parameters)[0]  # type: ignore[no-any-return]

        return step

    def sample_iaf(self, context: Tensor) -> Tensor:
        """(N, D) samples of the inverse autoregressive flow of the same network."""
        return self.iaf.sample(len(context))  # type: ignore[no-any-return]
