"""Decorrelation: every synaptic layer sees its input through a matrix that learns by itself.

``x' = R (x - mean)``, then ``W x' + b``.  ``R`` starts as the identity, receives no gradient, is
updated by one of the rules (``decorrelation_rules``) from the clean rows of each training step and
stays as it is in evaluation.  It is orthogonal to the estimator.

Where a dense layer's input has few rows, they are multiplied by ``R``, and the update takes them as
they are.  Elsewhere the matrix is folded into the weights, ``W R``: the cost does not depend on the
number of rows (copies x examples x time steps), it is the same for dense and convolutional layers,
whose input is the patch, and spikes stay spikes.  Without gradients the product is kept until the
weight or the matrix changes, so that inference costs what it costs without the transform.  In
layers with a time axis ``x`` is the mean input over the trial, which is what frozen noise and a
mean readout see, and what every substrate can observe.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from biograd import ranks
from biograd.contracts import Substrate
from biograd.contracts.plan import module_key
from biograd.contracts.precision import computing, unmixed
from biograd.decorrelation.input_transform import InputTransform, uncover
from biograd.decorrelation.rules import RULES, Moments
from biograd.errors import CapabilityError, nearest
from biograd.ranks import parallel
from biograd.recipes import (
    DecorrelationRecipe,
    Fraction,
    Positive,
    Range,
    construct,
    validate,
)
from biograd.substrate.network import Network

ACTED_ON = (nn.Linear, nn.Conv1d, nn.Conv2d)
ONLY = "only Linear, Conv1d and Conv2d can be decorrelated"
MOST_PASSES = 64
"""Inputs of so many passes are kept for an update; without updates, older ones are dropped."""


class Decorrelation(nn.Module):
    """The decorrelating matrices of a network and their update.

    Args:
        rule: one of ``RULES``.
        rate: ``eta``; or one for each layer name, others keep their matrix as it is.
        kappa: between decorrelation (0) and unit variance (1); for the rule of this name alone.
        sample: share of the clean rows used in each update, at least two rows.
        centre: subtract a running mean of the input (momentum 0.1).
    """

    def __init__(
        self,
        rule: Annotated[str, RULES] = "kappa",
        rate: Positive | Mapping[str, Positive] = 1e-3,
        kappa: Fraction = 0.5,
        sample: Annotated[float, Range(0, 1, above=True)] = 1.0,
        centre: bool = False,
    ) -> None:
        validate(Decorrelation, locals())
        super().__init__()
        self.rule, self.rate, self.kappa = rule, rate, kappa
        self.sample, self.centre = sample, centre
        self.matrices = nn.ParameterDict()
        self.means = nn.ParameterDict()
        self.layers: dict[str, nn.Module] = {}
        self.energy: dict[str, Tensor] = {}
        """Mean squared off-diagonal over mean squared diagonal of ``C`` at the last update, for
        each layer; the mean over the groups of a convolution."""
        self.passed_over = ""
        """The layers that it does not act on, in words."""
        self.only: frozenset[str] | None = None
        """The layers whose matrices learn; None: all."""
        self._passes: deque[dict[str, list[_Received]]] = deque(maxlen=MOST_PASSES)
        self._substrate: Substrate | None = None
        self._temporal: set[str] = set()
        self._handles: list[Any] = []

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """Return the settings that the rule does not read, each with the reason."""
        rule = given["rule"]
        return {"kappa": f"with rule = {rule!r}"} if rule in {*RULES.own} - {"kappa"} else {}

    def attach(self, substrate: Substrate, stream: torch.Generator) -> None:
        """Put an identity matrix before every dense layer and convolution of the sites.

        Layers of other kinds keep their input as it is; ``passed_over`` names them.

        Raises:
            CapabilityError: no layer is of these kinds, a convolution's padding is not of zeros,
                or a rate is for a layer that does not exist or is of another kind.
        """
        module = substrate.module
        layers = {n: module.get_submodule(n) for site in substrate.sites for n in site.modules}
        fit = {name: layer for name, layer in layers.items() if isinstance(layer, ACTED_ON)}
        others = [f"{n} ({type(layer).__name__})" for n, layer in layers.items() if n not in fit]
        for name in self.rate if isinstance(self.rate, Mapping) else ():
            if name in layers and name not in fit:
                raise CapabilityError(f"decorrelation.rate: {name}: {ONLY}: take it out")
            if name not in fit:
                raise CapabilityError(
                    f"decorrelation.rate: no layer {name!r}: {nearest(name, fit)}"
                )
        if not fit:
            raise CapabilityError(f"decorrelation cannot act on {', '.join(others)}: {ONLY}")
        if others and not isinstance(self.rate, Mapping):
            self.passed_over = f"no decorrelation of the input of {', '.join(others)}: {ONLY}"
        self.stream = stream
        self._substrate = substrate
        timed = isinstance(substrate.module, Network) and substrate.module.steps > 1
        self._temporal = {
            layer for site in substrate.sites if timed or any(site.time) for layer in site.modules
        }
        for name, layer in fit.items():
            if not isinstance(layer, nn.Linear) and (
                layer.padding_mode != "zeros" or isinstance(layer.padding, str)
            ):
                raise CapabilityError(f"decorrelation: {name} needs zero padding given in numbers")
            self._add(name, layer)

    def _add(self, name: str, layer: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
        groups = 1 if isinstance(layer, nn.Linear) else layer.groups
        size, weight, key = layer.weight[0].numel(), layer.weight, module_key(name)
        eye = torch.eye(size, dtype=computing(weight.dtype), device=weight.device)
        self.matrices[key] = nn.Parameter(eye.repeat(groups, 1, 1), requires_grad=False)
        zero = torch.zeros(groups, size, dtype=eye.dtype, device=weight.device)
        self.means[key] = nn.Parameter(zero, requires_grad=False)
        self.layers[name] = layer
        hook = InputTransform(self, name)
        self._handles.append(layer.register_forward_pre_hook(hook))
        self._handles.append(layer.register_forward_hook(uncover, always_call=True))

    def detach(self) -> None:
        """Take the matrices away from the layers; ``fold`` first to keep their effect."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.layers, self._substrate = [], {}, None
        self._passes.clear()

    @torch.no_grad()
    def fold(self) -> None:
        """Write ``W R`` (and the centring) into the layers; the matrices become the identity.

        Raises:
            CapabilityError: the input is centred, and a layer has no bias to take the shift; or
                two layers share one weight behind different matrices.
        """
        owners: dict[int, str] = {}
        for name, layer in self.layers.items():
            _, bias = self.effective(name, layer)
            owner = owners.setdefault(id(layer._parameters["weight"]), name)
            if owner != name:
                raise CapabilityError(f"cannot fold into {name}: it shares its weight with {owner}")
            if bias is not None and layer.bias is None:
                raise CapabilityError(f"cannot fold a centred input into {name}: it has no bias")
        for name, layer in self.layers.items():
            weight, bias = self.effective(name, layer)
            layer.get_parameter("weight").copy_(weight)
            if bias is not None:
                layer.get_parameter("bias").copy_(bias)
            matrix = self.matrices[module_key(name)]
            matrix.copy_(torch.eye(matrix.shape[-1]).expand_as(matrix))
            self.means[module_key(name)].zero_()

    def effective(
        self, name: str, layer: nn.Module, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``W R`` and ``b - W R mean``; ``weight`` stands in for the layer's own."""
        weight = layer._parameters["weight"] if weight is None else weight
        bias = layer._parameters["bias"]
        assert weight is not None
        kind = computing(weight.dtype)
        key = module_key(name)
        matrix, mean = self.matrices[key].to(kind), self.means[key].to(kind)
        grouped = weight.to(kind).reshape(len(matrix), -1, matrix.shape[-1])
        with unmixed(weight.device):
            folded = grouped @ matrix
            if self.centre:
                shift = (folded @ mean.unsqueeze(-1)).flatten().to(weight.dtype)
                bias = -shift if bias is None else bias - shift
        return folded.to(weight.dtype).view_as(weight), bias

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep no inputs meanwhile."""
        kept, self._substrate = self._substrate, None
        try:
            yield
        finally:
            self._substrate = kept

    def begin(self) -> None:
        """Start a clean pass; several passes before an update count as one larger batch."""
        self._passes.append({})

    def moved(self, name: str, inputs: Tensor) -> Tensor:
        """Return ``R (x - mean)`` for the rows of a dense layer's input."""
        key = module_key(name)
        matrix, kind = self.matrices[key][0], computing(inputs.dtype)
        with unmixed(inputs.device):
            rows = inputs.to(kind)
            rows = rows - self.means[key][0].to(kind) if self.centre else rows
            return functional.linear(rows, matrix.to(kind)).to(inputs.dtype)

    def watches(self, name: str) -> bool:
        """Return whether an input that a layer receives now is one for the next update."""
        learns = self.only is None or name in self.only
        recording = self._substrate is not None and self._substrate.recording
        return learns and recording and self.layers[name].training

    def shares(self, name: str) -> bool:
        """Return whether the update can take the rows that the layer received as they are."""
        whole = self.sample >= 1 and not self.centre and name not in self._temporal
        return whole and ranks.size() == 1 and self.watches(name)

    def observe(self, name: str, inputs: Tensor, outputs: Tensor | None = None) -> None:
        """Keep a clean input of a layer for the next update, and what became of it, if known."""
        if not self.watches(name):
            return
        if not self._passes:
            self.begin()
        known = outputs.detach() if outputs is not None and self.shares(name) else None
        self._passes[-1].setdefault(name, []).append(_Received(inputs.detach(), known))

    @torch.no_grad()
    def update(self, pace: float = 1.0) -> None:
        """Apply the rule, its rate times ``pace``, with the inputs since the last update."""
        names = dict.fromkeys(name for inputs in self._passes for name in inputs)
        for name in names:
            rate = self.rate if isinstance(self.rate, (int, float)) else self.rate.get(name, 0.0)
            passes = [seen[name] for seen in self._passes if name in seen]
            matrices, means = self.matrices[module_key(name)], self.means[module_key(name)]
            whole = all(len(visits) == 1 for visits in passes)  # several are averaged
            seen = [visit.outputs if whole else None for visits in passes for visit in visits]
            known = _together(seen, matrices)
            visits = [self._rows(name, [seen.inputs for seen in visits]) for visits in passes]
            rows = _joined(visits, 1).to(matrices.dtype)
            places = zip(matrices, means, rows, strict=True)
            energies = [self._update(*place, rate * pace, known) for place in places]
            self.energy[name] = torch.stack(energies).mean()
        self._passes.clear()

    def forget(self) -> None:
        """Drop the inputs kept for the next update."""
        self._passes.clear()

    def _rows(self, name: str, visits: list[Tensor]) -> Tensor:
        """Return a sample of input rows ``[groups, rows, size]``, patches for a convolution."""
        layer = self.layers[name]
        if isinstance(layer, nn.Linear):
            if name in self._temporal or len(visits) > 1:  # a loop calls it once a step
                means = [visit.mean(1) if visit.dim() > 2 else visit for visit in visits]
                visits = [torch.stack(means).mean(0)]
            visits = [parallel.gather(visit) for visit in visits]
            rows = _joined([visit.reshape(-1, visit.shape[-1]) for visit in visits])
            return self._sample(rows)[None]
        images = self._sample(torch.cat([parallel.gather(visit) for visit in visits]))
        return _patches(layer, images)

    def _sample(self, rows: Tensor) -> Tensor:
        if self.sample >= 1:
            return rows
        count = max(2, round(self.sample * len(rows)))
        device = self.stream.device
        chosen = torch.randperm(len(rows), generator=self.stream, device=device)[:count]
        return rows[chosen.to(rows.device)]

    def _update(
        self, matrix: Tensor, mean: Tensor, rows: Tensor, rate: float, known: Tensor | None
    ) -> Tensor:
        """Apply the rule to one group of a layer; return the energy that it found.

        Args:
            known: the rows times the matrix, if a pass has computed them.
        """
        if self.centre:
            mean.lerp_(rows.mean(0), 0.1)
            rows = rows - mean
        moments = Moments(rows, rows @ matrix.T if known is None else known, matrix, self.kappa)
        energy = moments.energy()
        changed = RULES[self.rule](moments, rate)
        if changed is not matrix:
            matrix.copy_(changed)
        return energy

    def extra_repr(self) -> str:
        """Return the settings for ``print``."""
        return f"rule={self.rule}, rate={self.rate}, kappa={self.kappa}, sample={self.sample}"


def make(recipe: DecorrelationRecipe, where: object) -> Decorrelation | None:
    """Return the decorrelation of a recipe; None if it is off.

    Raises:
        RecipeError: no such rule.
    """
    table = dataclasses.asdict(recipe)
    return None if recipe.rule == "off" else construct(Decorrelation, table, where, "decorrelation")


class _Received(NamedTuple):
    """An input that a layer received, and its rows times the matrix, if they were computed."""

    inputs: Tensor
    outputs: Tensor | None


def _joined(parts: list[Tensor], axis: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _together(outputs: list[Tensor | None], like: Tensor) -> Tensor | None:
    """Return the rows of all visits, ``[n, d]``; None: some are missing, or in other precision."""
    known = [one.reshape(-1, one.shape[-1]) for one in outputs if one is not None]
    if len(known) < len(outputs) or any(one.dtype != like.dtype for one in known):
        return None
    return _joined(known)


def _patches(layer: nn.Module, images: Tensor) -> Tensor:
    """Return the patches that a convolution sees, ``[groups, rows, C_in/groups prod(kernel)]``."""
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    padding = layer.padding
    assert not isinstance(padding, str)
    geometry: list[tuple[int, ...]] = [layer.kernel_size, layer.dilation, padding, layer.stride]
    if isinstance(layer, nn.Conv1d):
        images = images.unsqueeze(2)
        fill = (1, 1, 0, 1)
        geometry = [(one, *pair) for one, pair in zip(fill, geometry, strict=True)]
    columns = functional.unfold(images, *geometry)
    size = layer.weight[0].numel()
    grouped = columns.view(len(images), layer.groups, size, -1)
    return grouped.permute(1, 0, 3, 2).reshape(layer.groups, -1, size)
