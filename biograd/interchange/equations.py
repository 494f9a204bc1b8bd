"""Brian2 equations that are those of a NIR node: found by algebra, not by their looks.

The equation of the potential must be linear in it and in the input, its coefficients constant::

    dv/dt = a v + b I + c    is    tau = -1/a,  r = -b/a,  v_leak = -c/a     (a < 0)
                                   r = b                                     (a = c = 0)

and Brian2 must solve it exactly for a current that is constant in a step.  The threshold must be
``v > constant``, the reset ``v = constant`` or ``v -= constant``.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from biograd.brian.import_brian2 import import_brian2
from biograd.brian.layer import Brian2Layer
from biograd.errors import CapabilityError
from biograd.interchange.nir_neuron import SAME, Array, NirNeuron, in_milliseconds

EXACT = ("", "exact", "linear")
"""Methods that solve a linear equation exactly."""
INTEGRATING = (*EXACT, "euler", "rk2", "rk4")
"""Methods that solve an equation exactly whose right side does not depend on the potential."""


def of_equations(layer: Brian2Layer) -> NirNeuron:
    """Return the population that Brian2 equations describe.

    Raises:
        CapabilityError: NIR has no node for them; the message says what is in the way.
    """
    return _Algebra(layer).cell()


class _Algebra:
    """The equations of a population as formulas of its potential and its input."""

    def __init__(self, layer: Brian2Layer) -> None:
        import sympy

        self.layer, self.model, self.recipe = layer, layer.model, layer.model.recipe
        self.where, self.sympy = layer.model.where, sympy
        self.port = layer.model.port
        self.known = self._known()

    def refuse(self, what: str) -> CapabilityError:
        return CapabilityError(f"{self.where}: NIR cannot express {what}")

    def cell(self) -> NirNeuron:
        """Return the population."""
        self._check()
        found, beta = self._linear(), 1.0
        if found.time_constant_ms is not None:
            beta = np.exp(-self.model.dt_ms / found.time_constant_ms)
        threshold, put, taken = self._spike(beta)
        self._check_start(found.rest)
        return dataclasses.replace(found, threshold=threshold, reset=put, taken=taken)

    def _check(self) -> None:
        """Refuse what is beside the equations, by name."""
        model, recipe = self.model, self.recipe
        if recipe.refractory:
            raise self.refuse(f"refractoriness (refractory = {recipe.refractory!r})")
        if model.noises:
            raise self.refuse(f"noise ({', '.join(model.noises)})")
        if len(model.ports) > 1:
            raise self.refuse(f"several input variables ({', '.join(model.ports)})")
        if model.impulses:
            raise self.refuse(
                f"input = {self.port!r}, a variable that impulses change; a node takes a current"
            )
        if recipe.update or model.details.regular:
            raise self.refuse("statements that run in every step (update)")
        if recipe.output not in ("spikes", self._potential()):
            raise self.refuse(f"output = {recipe.output!r}; a node passes on spikes or a potential")
        if model.spiking and recipe.output != "spikes":
            raise self.refuse(f"a threshold where output = {recipe.output!r} is passed on")

    def _potential(self) -> str:
        """Return the name of the potential."""
        names = sorted(self.model.equations.diff_eq_names)
        if len(names) != 1:
            listed = ", ".join(names) or "none"
            raise self.refuse(f"{len(names)} differential equations ({listed}); a node has one")
        return names[0]

    def _linear(self) -> NirNeuron:
        """Return the population of one differential equation."""
        v, current = self.symbol(self._potential()), self.symbol(self.port)
        pairs = dict(self.model.equations.get_substituted_expressions(self.model.sample.variables))
        text = pairs[self._potential()].code
        right = self.sympy.expand(self.parse(text))
        a, b = self.sympy.diff(right, v), self.sympy.diff(right, current)
        rest = self.sympy.expand(right - a * v - b * current)
        if any({v, current} & part.free_symbols for part in (a, b, rest)):
            raise self.refuse(f"the equation d{v}/dt = {text}, which is not linear")
        slope, drive, offset = (self.number(part, text) for part in (a, b, rest))
        drive = drive * self.model.scales[self.port]
        if not slope.any() and not offset.any():
            self._check_method(INTEGRATING)
            return NirNeuron(resistance=drive)
        if (slope >= 0).any():
            raise self.refuse(f"the equation d{v}/dt = {text}, which does not decay")
        self._check_method(EXACT)
        return NirNeuron(
            time_constant_ms=in_milliseconds(-1 / slope),
            resistance=-drive / slope,
            rest=-offset / slope + 0.0,
        )

    def _check_method(self, exact: tuple[str, ...]) -> None:
        if self.recipe.method not in exact:
            raise self.refuse(
                f"method = {self.recipe.method!r}, only the exact solution: take method = 'exact'"
            )

    def _spike(self, beta: Array | float) -> tuple[Array | None, Array | None, Array | None]:
        """Return threshold, where a spike puts the potential, and what it takes from it later."""
        if not self.model.spiking:
            return None, None, None
        text, v = self.recipe.threshold, self.symbol(self._potential())
        relation = self.parse(text)
        if not isinstance(relation, (self.sympy.StrictGreaterThan, self.sympy.StrictLessThan)):
            raise self.refuse(f"threshold = {text!r}; a node spikes at {v} > constant")
        above = relation.gts - relation.lts
        factor = self.sympy.diff(above, v)
        free = factor.free_symbols | (above - factor * v).expand().free_symbols
        if v in free or self.symbol(self.port) in free or factor == 0:
            raise self.refuse(f"threshold = {text!r}; a node spikes at {v} > constant")
        rise = self.number(factor, text)
        if (rise <= 0).any():
            raise self.refuse(f"threshold = {text!r}; a node spikes at {v} > constant")
        threshold = -self.number((above - factor * v).expand(), text) / rise
        put, taken = self._reset(v)
        return threshold, put, None if taken is None else taken * beta

    def _reset(self, v: Any) -> tuple[Array | None, Array | None]:
        """Return where a spike puts the potential, or what it takes from it at once."""
        text = self.recipe.reset.strip()
        if not text:
            return None, None
        found = re.fullmatch(rf"{v}\s*([-+]?)=(?!=)\s*([^;\n]+)", text)
        if found is None:
            raise self.refuse(f"reset = {text!r}; a node resets its potential and nothing else")
        becomes = self.parse(found[2])
        if found[1]:
            becomes = v + becomes if found[1] == "+" else v - becomes
        if v not in becomes.free_symbols:
            return self.number(becomes, text), None
        less = self.sympy.expand(v - becomes)
        if v in less.free_symbols:
            raise self.refuse(f"reset = {text!r}; a node resets to a constant, or by one")
        return None, self.number(less, text)

    def _check_start(self, rest: Any) -> None:
        """Refuse a population that does not begin at rest."""
        name = self._potential()
        begins, rest = self._initial(name), np.ravel(rest)
        scale = abs(rest).max() if rest.any() else 1.0
        if (abs(begins - rest) > SAME * scale).any():
            raise self.refuse(
                f"a potential that begins at {begins.flat[0]:g}, only one at rest: set "
                f"initial.{name} to {rest.flat[0]:g}"
            )

    # Numbers

    def symbol(self, name: str) -> Any:
        return self.sympy.Symbol(name, real=True)

    def parse(self, text: str) -> Any:
        """Return a formula; Brian2 reads it."""
        import_brian2()
        from brian2.parsing.sympytools import str_to_sympy

        return str_to_sympy(text)

    def _initial(self, name: str) -> Array:
        """Return where a variable begins, ``[units]``."""
        own = self.model.initial(self.layer.units)
        if name in own:
            return np.broadcast_to(own[name], (self.layer.units,)) * 1.0
        value = float(self.model.sample.variables[name].get_value()[0])
        return np.full(self.layer.units, value)

    def _known(self) -> dict[str, Array]:
        """Return the value of every constant, ``[units]`` or one for all, in SI units."""
        b2, found = import_brian2(), {}
        for name, unit in b2.core.namespace.DEFAULT_UNITS.items():
            found[name] = np.array(float(np.asarray(unit)))
        for name, constant in b2.core.namespace.DEFAULT_CONSTANTS.items():
            found[name] = np.array(float(constant.value))
        for name in self.model.equations.parameter_names - {self.port}:
            found[name] = self._initial(name)
        for name, value in self.model.namespace.items():
            found[name] = np.array(float(np.asarray(value)))
        learned = self.layer.constants()
        return found | {n: v.detach().cpu().double().numpy() for n, v in learned.items()}

    def number(self, formula: Any, text: str) -> Array:
        """Return the value of a formula of constants, ``[units]``."""
        names = sorted(symbol.name for symbol in formula.free_symbols)
        for name in names:
            if name not in self.known:
                raise self.refuse(f"{text!r}: {name!r} is not a constant")
        if formula.atoms(self.sympy.core.function.AppliedUndef):
            raise self.refuse(f"{text!r}: it calls a function of Brian2")
        columns = [np.broadcast_to(self.known[name], (self.layer.units,)) for name in names]
        if not columns:
            return np.full(self.layer.units, float(self.sympy.N(formula, 17)))
        rows, places = np.unique(np.stack(columns, 1), axis=0, return_inverse=True)
        found = [
            formula.xreplace(
                {
                    self.symbol(n): self.sympy.Float(float(value))
                    for n, value in zip(names, row, strict=True)
                }
            )
            for row in rows
        ]
        return np.array([float(self.sympy.N(value, 17)) for value in found])[places.ravel()]
