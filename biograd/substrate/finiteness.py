"""Values that are not finite are refused where they enter.

No comparison lets NaN pass: ``NaN > threshold`` is False, so that a spiking network turns a lost
weight into a silent unit and its loss stays finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from biograd.contracts import Trace
from biograd.errors import BiogradError, CapabilityError

START = (
    "lower the initial weights (network.gain), the input (encoding.gain) or the rule's noise "
    "(sigma), or see whether the data are finite"
)
LATER = (
    "lower the learning rate (training.learning_rate) or that of decorrelation (decorrelation.rate)"
)


Places = list[tuple[dict[str, Any], str]]
"""Where parameters and constants lie: a module's dictionary and the name in it."""


def outside(network: nn.Module, layers: Iterable[nn.Module]) -> Places:
    """Return where a network keeps values that no current of its sites' layers shows."""
    inside = {id(part) for layer in layers for part in layer.modules()}
    others = [part for part in network.modules() if id(part) not in inside]
    kinds = [kind for part in others for kind in (part._parameters, part._buffers)]
    found = [(d, name, v) for d in kinds for name, v in d.items() if v is not None]
    return [(d, name) for d, name, v in found if not nn.parameter.is_lazy(v)]


def check_given(network: nn.Module, places: Places, inputs: Tensor, step: int) -> None:
    """Refuse inputs, parameters and constants of a network that are not finite.

    Args:
        places: of the values that are looked at.
        step: number of the step, from 0.

    Raises:
        BiogradError: with the example, or the parameter.
    """
    for kind, name in places:
        values = kind.get(name)
        if values is not None and values.is_floating_point() and not _numbers(values):
            check_parameters(network, step)
    if inputs.is_floating_point() and not _finite(inputs):
        raise BiogradError(f"step {step + 1}: {_rows('input', inputs)}")


def check_parameters(network: nn.Module, step: int) -> None:
    """Refuse a network whose parameters are not finite, or whose constants are NaN.

    Raises:
        BiogradError: with the parameter's name.
    """
    for name, values in _tensors(network).items():
        wrong = ~values.isfinite() if values.requires_grad else values.isnan()
        if wrong.any():
            raise BiogradError(
                f"step {step + 1}: {name}: {int(wrong.sum())} of {values.numel()} values are not "
                f"finite: {_why(step)}"
            )


@contextmanager
def parameters_first(network: nn.Module, step: int) -> Iterator[None]:
    """Name a parameter that is not finite in place of what a pass found wrong by it."""
    try:
        yield
    except CapabilityError:
        raise
    except BiogradError:
        check_parameters(network, step)
        raise


def check_found(
    network: nn.Module, traces: Sequence[Trace], powers: Mapping[str, float], step: int
) -> None:
    """Refuse currents, losses and slopes that are not finite.

    Args:
        powers: name of a site to the size of its currents.

    Raises:
        BiogradError: with the parameter, the site, or the target that the fault comes from.
    """
    wrong = [name for name, power in powers.items() if not math.isfinite(power)]
    found = [v for t in traces for v in (t.losses, *t.means.values(), *t.local_slopes.values())]
    found += [trace.slopes for trace in traces if trace.slopes is not None]
    if not wrong and all(map(_finite, found)):
        return
    check_parameters(network, step)
    why = _why(step)
    if wrong:
        raise BiogradError(
            f"step {step + 1}: the current of {wrong[0]}, or its square, is not finite: {why}"
        )
    for trace in traces[:1]:
        if trace.targets.is_floating_point() and not _finite(trace.targets):
            raise BiogradError(
                f"step {step + 1}: the loss is not finite: {_rows('target', trace.targets)}"
            )
    when = f"at step {step + 1}" if step else "before the first update"
    raise BiogradError(f"the loss is not finite {when}: {why}")


def _why(step: int) -> str:
    return LATER if step else START


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the real parameters and buffers of a module, by name."""
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: v for name, v in named if v.is_floating_point() and not nn.parameter.is_lazy(v)}


def _finite(values: Tensor) -> bool:
    """Return whether all values are finite: first by their sum, which sees NaN and infinity."""
    total = float(values.detach().sum(dtype=torch.float32 if values.itemsize < 4 else None))
    return math.isfinite(total) or bool(values.isfinite().all())


def _numbers(values: Tensor) -> bool:
    """Return whether no value is NaN, and of what is learned none infinite."""
    if _finite(values):
        return True
    return not values.requires_grad and not bool(values.isnan().any())


def _rows(noun: str, values: Tensor) -> str:
    rows = (~values.isfinite()).reshape(len(values), -1).any(1).nonzero().flatten()
    return (
        f"the {noun} of example {int(rows[0])} of the batch ({len(rows)} of {len(values)}) is not "
        "finite: see whether the data are"
    )
