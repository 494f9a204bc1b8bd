"""What Brian2 simulates, in words: equations, conditions and values with their units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from biograd.brian.import_brian2 import import_brian2
from biograd.brian.neuron_model import NeuronModel

TEXTS = ("equations", "threshold", "reset", "refractory", "update", "output")


def described(model: NeuronModel, units: int, surrogate: str, slope: float) -> dict[str, Any]:
    """Return a population's equations and all values that they use, as JSON values.

    Namespaces and initial values are texts with units, one for all neurons or a list.
    """
    recipe = model.recipe
    found: dict[str, Any] = {key: getattr(recipe, key) for key in TEXTS}
    found["run_regularly"] = [f"{one.code} (in {one.when!r})" for one in model.details.regular]
    found["records"] = list(model.details.records)
    found["method"] = recipe.method or ("euler" if model.noises else "Brian2's choice")
    found["input"] = list(model.ports)
    found["namespace"] = {name: written(value) for name, value in model.namespace.items()}
    found["trainable"] = {name: list(ends) for name, ends in recipe.trainable.items()}
    found["scale"] = {port: _values(model, port, scale) for port, scale in model.scales.items()}
    begin = {name: values for name, values in model.initial(units).items() if name in _known(model)}
    found["initial"] = dict(recipe.initial)
    found["initial"] |= {name: _values(model, name, values) for name, values in begin.items()}
    found |= {"dt_ms": model.dt_ms, "surrogate": surrogate, "slope": slope}
    return {key: value for key, value in found.items() if value not in ("", [], {})}


def _known(model: NeuronModel) -> frozenset[str]:
    return frozenset(model.equations.diff_eq_names | model.equations.parameter_names)


def _values(model: NeuronModel, name: str, values: Any) -> Any:
    """Return values of a variable, given in SI units."""
    dimensions = model.equations[name].dim
    return written(import_brian2().Quantity(np.asarray(values, float), dim=dimensions))


def written(value: Any) -> Any:
    """Return a quantity as text, several as a list; of another object its kind.

    >>> written(import_brian2().Quantity([0.02, 0.02])), written(5.0)
    ('0.02', '5.0')
    """
    if not isinstance(value, (int, float, np.ndarray, np.generic)):
        return f"({type(value).__name__})"
    b2 = import_brian2()
    numbers, dimensions = np.asarray(value), b2.get_dimensions(value)
    unit = "" if dimensions.is_dimensionless else f"*{b2.get_unit(dimensions)!r}"
    texts = [f"{number!r}{unit}" for number in np.unique(numbers).tolist()]
    if len(texts) == 1:
        return texts[0]
    return [f"{number!r}{unit}" for number in numbers.ravel().tolist()]


def objects(network: Any) -> Mapping[str, Any]:
    """Return what the objects of a ``brian2.Network`` say of themselves, by name.

    Equations, thresholds, resets and what synapses do; monitors have nothing to say.
    """
    found: dict[str, Any] = {}
    for part in sorted(network.objects, key=lambda part: str(part.name)):
        own: dict[str, Any] = {"class": type(part).__name__}
        for key in ("equations", "events", "event_codes"):
            value = getattr(part, key, None)
            if value is not None and len(value):
                own[key] = str(value) if key == "equations" else dict(value)
        pathways = getattr(part, "_pathways", ())
        own |= {f"on_{one.prepost}_{one.objname}": one.code for one in pathways}
        namespace = getattr(part, "namespace", None) or {}
        own["namespace"] = {name: written(value) for name, value in namespace.items()}
        found[part.name] = {key: value for key, value in own.items() if value}
    return found
