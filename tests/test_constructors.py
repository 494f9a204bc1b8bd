"""What users construct from Python: a wrong value is refused by name when it is made."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from biograd import Site
from biograd.circuit.grids import Convolution, Pooling
from biograd.circuit.projections import Masked, OneToOne, Sparse
from biograd.circuit.readouts import LeakyReadout, Readout
from biograd.encoding import ENCODINGS
from biograd.errors import BiogradError
from biograd.neurons import NEURONS, Leaky
from biograd.simulators.population import Population
from biograd.tasks import TASKS

GOOD: dict[Callable[..., Any], dict[str, Any]] = {
    Readout: {"kind": "membrane", "steps": 4, "dt_ms": 1.0, "time_constant_ms": 20.0},
    LeakyReadout: {"dt_ms": 1.0, "time_constant_ms": 20.0},
    Masked: {"mask": torch.ones(3, 4), "bias": True, "sign": "both", "density": 0.5},
    Sparse: {"inputs": 4, "outputs": 3, "connections": 0.5, "bias": True, "sign": "both"},
    OneToOne: {"units": 4, "bias": False, "sign": "both"},
    Convolution: {"shape": (1, 5, 5), "channels": 2, "kernel": 3, "stride": 1, "padding": "same"},
    Pooling: {"shape": (1, 6, 6), "kernel": 2, "stride": 2, "kind": "average"},
    Population: {"neuron": Leaky(), "units": 4, "steps": 5, "dt_ms": 1.0, "simulator": "torch"},
    Site: {"name": "a", "modules": ("a",), "time": (True,), "activity": "b"},
}
WRONG: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, -1, -0.5, 0, 2.5, True, None, "", "nothing", b"x", 1j, [], {},
    (), (0,), (-1, 5, 5), (True, "x"), 10**40, object(), torch.zeros(0), torch.tensor(math.nan),
)  # fmt: skip
FITS: dict[tuple[str, str], Callable[[Any], bool]] = {
    ("Masked", "density"): lambda value: value is None,
    ("Pooling", "stride"): lambda value: value is None,
    ("Convolution", "padding"): lambda value: value == 0 and not isinstance(value, bool),
    ("Site", "name"): lambda value: isinstance(value, str),
    ("Site", "activity"): lambda value: value is None or isinstance(value, str),
    ("Readout", "dt_ms"): lambda value: value == 2.5,
    ("Readout", "time_constant_ms"): lambda value: value == 2.5,
    ("LeakyReadout", "dt_ms"): lambda value: value == 2.5,
    ("LeakyReadout", "time_constant_ms"): lambda value: value == 2.5,
    ("Population", "dt_ms"): lambda value: value == 2.5,
}
"""Values of ``WRONG`` that an argument may have; those of type bool otherwise ask for a bool."""


@pytest.mark.parametrize("make", GOOD, ids=lambda make: make.__name__)
def test_a_wrong_value_of_an_argument_is_refused_by_name(make: Callable[..., Any]) -> None:
    make(**GOOD[make])
    for key, good in GOOD[make].items():
        for wrong in WRONG:
            name = make.__name__
            fits = FITS.get((name, key), lambda value: False)
            if (isinstance(wrong, bool) and isinstance(good, bool)) or _fits(fits, wrong):
                make(**{**GOOD[make], key: wrong})
                continue
            with pytest.raises(BiogradError) as caught:
                make(**{**GOOD[make], key: wrong})
                pytest.fail(f"{name}({key}={wrong!r}) was taken")
            assert "\n" not in str(caught.value), (key, wrong)


def _fits(fits: Callable[[Any], bool], value: Any) -> bool:
    return not isinstance(value, torch.Tensor) and bool(fits(value))


KINDS = [*NEURONS.values(), *TASKS.values(), *(kind.Settings for kind in ENCODINGS.values())]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__qualname__)
def test_wrong_values_of_neurons_tasks_and_encodings_raise_nothing_else(kind: Any) -> None:
    """Which values fit differs from field to field; what does not is refused, never raw."""
    import dataclasses

    refused = 0
    for field in dataclasses.fields(kind):
        for wrong in WRONG:
            try:
                kind(**{field.name: wrong})
            except BiogradError as error:
                refused += 1
                assert "\n" not in str(error)
            except TypeError as error:  # other arguments are required
                assert "required" in str(error)
    assert refused or not dataclasses.fields(kind)
