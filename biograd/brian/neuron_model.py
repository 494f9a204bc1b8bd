"""A population's Brian2 equations, checked once, and the groups of neurons that they make.

The noise ``xi`` of stochastic equations is drawn outside and set in every step, because all copies
of an example must receive the same: with ``xi = z / sqrt(dt)``, ``z`` normal, the Euler step is
that of Euler and Maruyama.  A constant that is learned becomes a value of each neuron.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from biograd.brian.explanations import explained, no_collection
from biograd.brian.import_brian2 import import_brian2
from biograd.brian.language import check_texts
from biograd.brian.neuron_checks import (
    NOISE,
    SCHEDULE,
    Checks,
    check_names,
    check_noise,
    check_schedule_preference,
)
from biograd.brian.quantities import distribution, quantity
from biograd.errors import CapabilityError, RecipeError, brief, nearest
from biograd.randomness import generator
from biograd.recipes import PopulationRecipe, construct

Array = NDArray[np.float64]
WIDEST, LONGEST_REFRACTORY = 1e9, 1e6
"""Ratio of the bounds of a learned constant; duration in seconds."""
POTENTIAL_SCALE = 0.02
"""In volts: from rest to threshold, about."""


@dataclasses.dataclass(frozen=True)
class Regular:
    """Statements that run in every step.

    Attributes:
        when: slot of Brian2's schedule, before the threshold.
        order: within the slot.
    """

    code: str
    when: str
    order: int


@dataclasses.dataclass(frozen=True)
class Details:
    """What a population has beside its recipe.

    Attributes:
        ports: its input variables; empty: that of the recipe alone.
        initial: name of a variable to its value in SI units, ``[units]`` or one for all.
        regular: statements beside those of the recipe.
        found: whether the equations are those of a group that exists: what does nothing stays.
        stream: what tells its random numbers from those of other populations.
        records: variables that are passed on beside the recipe's output.
    """

    ports: tuple[str, ...] = ()
    initial: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    regular: tuple[Regular, ...] = ()
    found: bool = False
    stream: str = ""
    records: tuple[str, ...] = ()


class NeuronModel:
    """The equations of a population.

    Args:
        recipe: equations, threshold, reset and constants.
        dt_ms: length of a time step in milliseconds.
        where: what the population is called in messages.
        constants: of the namespace, as they are, beside those of the recipe.
        details: what else there is.

    Attributes:
        ports: the variables that receive a current; one that names none goes to the first.
        impulses: those to which it is added, not set.
        guarded: those of them that receive nothing while a neuron is refractory.
        noises: names that stand for ``xi``, ``xi_1``, ... in the equations.
        trainable: initial value in SI units of each constant that is learned, with its bounds.

    Raises:
        RecipeError: the equations do not hold together; the message is Brian2's, with what it is
            about.
    """

    def __init__(
        self,
        recipe: PopulationRecipe,
        dt_ms: float,
        where: str = "population",
        constants: Mapping[str, Any] | None = None,
        details: Details | None = None,
    ) -> None:
        construct(PopulationRecipe, dataclasses.asdict(recipe), where)  # types and ranges
        self.recipe, self.dt_ms, self.where = recipe, dt_ms, where
        self.constants, self.details = dict(constants or {}), details or Details()
        self.ports = self.details.ports or (recipe.input,)
        self.namespace = self.constants | {
            name: quantity(value, f"{where}.namespace.{name}")
            for name, value in recipe.namespace.items()
        }
        self._brian2 = import_brian2()
        check_names(recipe, where)
        if not self.details.found:  # of a network that exists, its own schedule was looked at
            check_schedule_preference(where)
        check_texts(recipe, where, self.constants, [one.code for one in self.details.regular])
        self.equations = self._equations()
        self.impulses = tuple(name for name in self.ports if name in self.equations.diff_eq_names)
        checks = Checks(recipe, where, self.equations, self.ports)
        checks.sound()
        self.spiking = bool(recipe.threshold)
        self.sample = sample = self.group(1, numpy=True)
        """One neuron, from which the compiled statements can be read."""
        self.prepare(self._brian2.Network(sample))
        regular = [one.code for one in self.details.regular]
        for output in self.outputs:
            checks.check_output(output, [recipe.update, recipe.reset, *regular])
        self.guarded = tuple(
            name
            for name in self.impulses
            if recipe.refractory and sample.variables[name].conditional_write is not None
        )
        checks.check_surrogate_scale([sample.variables[name].dim for name in self._compared()])
        checks.effective(self.details.found)
        self.scales = {port: self._scale(port) for port in self.ports}
        """What a current of 1 is at each port, in SI units."""

    def group(self, neurons: int, numpy: bool = False) -> Any:
        """Return a Brian2 group of neurons of this model, at their initial values.

        Args:
            neurons: number of them.
            numpy: run without compiled code.
        """
        b2, recipe = self._brian2, self.recipe
        clock = b2.Clock(dt=self.dt_ms * b2.ms, name="biograd_clock")
        options: dict[str, Any] = {}
        if numpy:
            options["codeobj_class"] = b2.codegen.runtime.numpy_rt.NumpyCodeObject
        if recipe.refractory:
            options["refractory"] = self._refractory()
        if recipe.method or self.noises:
            options["method"] = recipe.method or "euler"
        with self._explained():
            group = b2.NeuronGroup(
                neurons,
                self.equations,
                threshold=recipe.threshold or None,
                reset=recipe.reset if recipe.threshold else None,
                namespace=self._held(),
                clock=clock,
                # no number of its own: it stands in the generated code, and simulations of any
                # size share one compilation
                name="biograd_population",
                **options,
            )
            if recipe.update:
                group.run_regularly(
                    recipe.update,
                    clock=clock,
                    when="groups",
                    order=1,
                    **({"codeobj_class": options["codeobj_class"]} if numpy else {}),
                )
            for one in self.details.regular:
                group.run_regularly(
                    one.code,
                    clock=clock,
                    when=one.when,
                    order=one.order,
                    **({"codeobj_class": options["codeobj_class"]} if numpy else {}),
                )
        self._initialise(group)
        return group

    def prepare(self, network: Any) -> None:
        """Let Brian2 check units and make the code of a network of this model's groups."""
        network.schedule = list(SCHEDULE)
        with self._explained(), no_collection():
            network.run(0 * self._brian2.ms, namespace={})

    @property
    def surrogate_scale(self) -> float:
        """The distance to the threshold, in SI units, that the surrogate derivative counts as 1."""
        b2, given = self._brian2, self.recipe.surrogate_scale
        if given != "":
            return float(np.asarray(quantity(given, f"{self.where}.surrogate_scale")))
        for name in self._compared():
            dimensions = self.sample.variables[name].dim
            if dimensions is b2.volt.dim:
                return POTENTIAL_SCALE
            if dimensions.is_dimensionless:
                return 1.0
        raise CapabilityError(
            f"{self.where}.surrogate_scale: threshold {self.recipe.threshold!r} compares neither "
            "potentials nor plain numbers: say which distance counts, as in '5*mV'"
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """What is passed on: "spikes", or variables."""
        return self.recipe.output, *self.details.records

    def noise(self, name: str) -> str:
        """Return what stands for ``xi``, or ``xi_1`` and the like, in Brian2's equations."""
        return NOISE + name.removeprefix("xi")

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a copy in another process be made from the recipe: Brian2's objects stay here."""
        arguments = (self.recipe, self.dt_ms, self.where, self.constants, self.details)
        return NeuronModel, arguments

    def __deepcopy__(self, _memo: object) -> NeuronModel:
        """Return the model itself: it never changes."""
        return self

    def _equations(self) -> Any:
        recipe, b2 = self.recipe, self._brian2
        if not recipe.equations:
            raise RecipeError(f"{self.where}.equations: missing")
        self.noises = tuple(sorted(set(re.findall(r"\bxi(?:_\w+)?\b", recipe.equations))))
        if self.noises and recipe.method not in ("", "euler"):
            raise RecipeError(
                f"{self.where}.method = {recipe.method!r}: noise xi is drawn in steps of 'euler', "
                "so that all copies of an example receive the same"
            )
        with self._explained():
            check_noise(recipe, self.where)
        text = recipe.equations
        for name in self.noises:
            text = re.sub(rf"\b{name}\b", self.noise(name), text)
        self.trainable = {name: self._bounds(name, ends) for name, ends in recipe.trainable.items()}
        with self._explained():
            equations = b2.Equations(text)
            for name in self.noises:
                equations += b2.Equations(f"{self.noise(name)} : second**-0.5")
            for name in self.trainable:
                unit = b2.get_unit(b2.get_dimensions(self.namespace[name]))
                equations += b2.Equations(f"{name} : {unit!r} (constant)")
        return equations

    def _bounds(self, name: str, ends: tuple[float, ...]) -> tuple[float, float, float]:
        where = f"{self.where}.trainable.{name}"
        if name not in self.namespace:
            raise RecipeError(f"{where}: not in the namespace: {nearest(name, self.namespace)}")
        if len(ends) != 2 or not ends[0] < 1 < ends[1]:
            raise RecipeError(
                f"{where} = {list(ends)}: two factors are needed, one below 1 and one above"
            )
        if ends[1] / ends[0] > WIDEST:
            raise RecipeError(f"{where} = {list(ends)}: at most a factor of {WIDEST:g} apart")
        initial = float(np.asarray(self.namespace[name]))
        if not initial:
            raise RecipeError(f"{where}: zero stays zero, whatever its factor")
        return initial, ends[0], ends[1]

    def _held(self) -> dict[str, Any]:
        """Return the constants that are not learned."""
        return {name: v for name, v in self.namespace.items() if name not in self.trainable}

    def _refractory(self) -> Any:
        """Return a duration, or the text of a condition."""
        where, given = f"{self.where}.refractory", self.recipe.refractory
        try:
            value = quantity(given, where)
        except RecipeError:
            return given
        if not self._brian2.have_same_dimensions(value, self._brian2.second):
            raise RecipeError(
                f"{where} = {given!r}: must be a duration like '2*ms', or a condition"
            )
        if not 0 <= float(value) < LONGEST_REFRACTORY:
            raise RecipeError(f"{where} = {given!r}: must be from 0 to {LONGEST_REFRACTORY:g} s")
        return value

    @property
    def port(self) -> str:
        """The variable that receives a current which names none."""
        return self.ports[0]

    def _scale(self, port: str) -> float:
        where = f"{self.where}.scale.{port}"
        value = self._fitting(self.recipe.scale.get(port, 1.0), port, where)
        if not float(value) > 0:
            raise RecipeError(f"{where} = {self.recipe.scale[port]!r}: must be above zero")
        return float(value)

    def _fitting(self, given: str | float, name: str, where: str) -> Any:
        """Return a quantity as a number in SI units; a text must have a variable's dimensions."""
        b2, dimensions = self._brian2, self.equations[name].dim
        value = quantity(given, where)
        if isinstance(given, str) and not b2.have_same_dimensions(value, dimensions):
            plain = dimensions.is_dimensionless
            asked = "a plain number" if plain else f"in {b2.get_unit(dimensions)!r}"
            raise RecipeError(f"{where} = {given!r}: {name} is {asked}")
        return np.asarray(value)

    def _compared(self) -> list[str]:
        """Return the variables that stand in the threshold."""
        names = re.findall(r"\w+", self.recipe.threshold)
        return [n for n in names if n in self.sample.variables and n != "not_refractory"]

    def _initialise(self, group: Any) -> None:
        for name, (value, *_) in self.trainable.items():
            group.variables[name].get_value()[:] = value
        for name, given in self.recipe.initial.items():
            where = f"{self.where}.initial.{name}"
            known = self.equations.diff_eq_names | self.equations.parameter_names
            if name not in known or name.startswith(NOISE):
                raise RecipeError(f"{where}: no such variable: {nearest(name, known)}")
            if isinstance(given, (str, float, int)) and not distribution(given, where):
                group.variables[name].get_value()[:] = self._fitting(given, name, where)
            elif group.variables[name].scalar:
                raise RecipeError(f"{where}: {name} is shared by all neurons: give one value")

    def initial(self, units: int) -> dict[str, Array]:
        """Return where variables begin that differ between neurons, ``[units]``, in SI units.

        Raises:
            RecipeError: another number of values.
        """
        found = dict(self.details.initial)
        for name, given in self.recipe.initial.items():
            where = f"{self.where}.initial.{name}"
            drawn = distribution(given, where)
            if drawn:
                found[name] = self._drawn(drawn, name, where, units)
            elif not isinstance(given, (str, float, int)):
                if len(given) != units:
                    raise RecipeError(f"{where}: {len(given)} values for {units} neurons")
                found[name] = np.array([float(self._fitting(v, name, where)) for v in given])
        return found

    def _drawn(self, drawn: tuple[str, str, str], name: str, where: str, units: int) -> Array:
        """Return values ``[units]`` of a distribution: the same in every run, row and copy."""
        kind, *texts = drawn
        first, second = (float(self._fitting(text, name, where)) for text in texts)
        if second < (first if kind == "uniform" else 0):
            asked = "low is above high" if kind == "uniform" else "the deviation is below zero"
            raise RecipeError(f"{where} = '{kind}({', '.join(texts)})': {asked}")
        stream = generator(0, "initial", self.details.stream or self.where, name)
        if kind == "uniform":
            share = torch.rand(units, generator=stream, dtype=torch.float64)
            return first + (second - first) * share.numpy()
        scores = torch.randn(units, generator=stream, dtype=torch.float64)
        return first + second * scores.numpy()

    def _explained(self) -> AbstractContextManager[None]:
        recipe = self.recipe
        others = ("threshold", "reset", "refractory", "method", "update")
        given = [f"{key} {brief(getattr(recipe, key))}" for key in others if getattr(recipe, key)]
        return explained(f"{self.where}.equations", "; ".join([brief(recipe.equations), *given]))
