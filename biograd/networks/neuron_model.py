"""A population's Brian2 equations, checked once, and the groups of neurons that they make.

The noise ``xi`` of stochastic equations is drawn outside and set in every step, because all copies
of an example must receive the same: with ``xi = z / sqrt(dt)``, ``z`` normal, the Euler step is
that of Euler and Maruyama.  A constant that is learned becomes a value of each neuron.
"""

from __future__ import annotations

import dataclasses
import gc
import keyword
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biograd.errors import CapabilityError, RecipeError, nearest
from biograd.networks.import_brian2 import import_brian2
from biograd.networks.quantities import quantity
from biograd.networks.spikes import Membrane
from biograd.recipes import PopulationRecipe, construct

Array = NDArray[np.float64]
NOISE = "biograd_noise"
"""What stands for ``xi`` in the equations that Brian2 receives."""
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
    """

    ports: tuple[str, ...] = ()
    initial: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    regular: tuple[Regular, ...] = ()


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
        self._check_names()
        self.equations = self._equations()
        self.impulses = tuple(name for name in self.ports if name in self.equations.diff_eq_names)
        for port in self.ports:
            self._check_port(port)
        self._check_method()
        self._check_draws()
        self._check_reset()
        self.spiking = bool(recipe.threshold)
        self.sample = sample = self.group(1, numpy=True)
        """One neuron, from which the compiled statements can be read."""
        self.prepare(self._brian2.Network(sample))
        self._check_output()
        self.guarded = tuple(
            name
            for name in self.impulses
            if recipe.refractory and sample.variables[name].conditional_write is not None
        )
        if recipe.surrogate_scale != "":
            self._check_surrogate_scale()
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
        with self._explained(), _no_collection():
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

    def _check_port(self, port: str) -> None:
        equations = self.equations
        own = port == self.recipe.input
        where = f"{self.where}.input = {port!r}" if own else f"{self.where}: variable {port!r}"
        free = equations.parameter_names - {"not_refractory", "lastspike", *self.trainable}
        free = {name for name in free if not name.startswith(NOISE)}
        known = free | equations.diff_eq_names
        if port not in known:
            raise RecipeError(
                f"{where}: the equations have no such variable: {nearest(port, known)}"
            )
        if {"constant", "shared"} & set(equations[port].flags):
            raise RecipeError(f"{where}: constant or shared, it cannot carry a current")

    def _scale(self, port: str) -> float:
        known = self.equations.diff_eq_names | self.equations.parameter_names
        for name in self.recipe.scale:
            if name not in known:
                raise RecipeError(
                    f"{self.where}.scale.{name}: no such variable: {nearest(name, known)}"
                )
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

    def _check_method(self) -> None:
        method = self.recipe.method
        known = self._brian2.StateUpdateMethod.stateupdaters
        if method and method not in known:
            raise RecipeError(f"{self.where}.method = {method!r}: {nearest(method, known)}")

    def _check_names(self) -> None:
        """Refuse constants whose names mean something else."""
        b2 = self._brian2
        namespaces = b2.core.namespace.DEFAULT_UNITS, b2.core.namespace.DEFAULT_FUNCTIONS
        reserved = {"t", "dt", "i", "N", "xi", "pi", "e", "inf", "lastspike", "not_refractory"}
        for name in self.recipe.namespace:
            taken = name in reserved or any(name in known for known in namespaces)
            if taken or not name.isidentifier() or keyword.iskeyword(name):
                raise RecipeError(f"{self.where}.namespace.{name}: no name for a constant")

    def _check_surrogate_scale(self) -> None:
        b2, given, where = self._brian2, self.recipe.surrogate_scale, self.where
        value = quantity(given, f"{where}.surrogate_scale")
        compared = [self.sample.variables[name].dim for name in self._compared()]
        fits = any(b2.have_same_dimensions(value, dim) for dim in compared) or not compared
        if not float(np.asarray(value)) > 0 or (isinstance(given, str) and not fits):
            raise RecipeError(
                f"{where}.surrogate_scale = {given!r}: must be above zero and in the unit of what "
                f"the threshold {brief(self.recipe.threshold)!r} compares"
            )

    def _compared(self) -> list[str]:
        """Return the variables that stand in the threshold."""
        names = re.findall(r"\w+", self.recipe.threshold)
        return [n for n in names if n in self.sample.variables and n != "not_refractory"]

    def _check_draws(self) -> None:
        """Refuse what would differ between the copies of an example."""
        recipe = self.recipe
        for key in ("equations", "threshold", "reset", "refractory", "update"):
            index = re.search(r"\b[iN]\b", getattr(recipe, key))
            if index:
                raise RecipeError(
                    f"{self.where}.{key}: {index[0]!r} counts the neurons of all examples, not of "
                    "one: give each neuron a value of its own"
                )
            found = re.search(r"\b(rand|randn|poisson)\s*\(", getattr(recipe, key))
            if found:
                raise RecipeError(
                    f"{self.where}.{key}: {found[1]}() draws anew for every copy of an example: "
                    "write the noise as xi, which all copies share"
                )

    def _check_reset(self) -> None:
        """Refuse a reset of a variable that is not there: Brian2 takes it for a temporary one."""
        known = self.equations.diff_eq_names | self.equations.parameter_names
        for name in re.findall(r"(?:^|[;\n])\s*(\w+)\s*[-+*/]?=(?!=)", self.recipe.reset):
            if name not in known and not name.startswith("_"):
                raise RecipeError(
                    f"{self.where}.reset = {brief(self.recipe.reset)!r}: no variable {name!r}: "
                    f"{nearest(name, known)}"
                )

    def _check_output(self) -> None:
        output = self.recipe.output
        if output == "spikes":
            if not self.spiking:
                raise RecipeError(
                    f"{self.where}.threshold: missing: without spikes, name the variable that the "
                    "population passes on as output"
                )
            return
        known = self.equations.diff_eq_names | self.equations.parameter_names
        if output not in known or output in set(self.ports) - self.equations.diff_eq_names:
            hint = nearest(output, {"spikes", *self.equations.diff_eq_names})
            raise RecipeError(f"{self.where}.output = {output!r}: no such variable: {hint}")

    def _initialise(self, group: Any) -> None:
        for name, (value, *_) in self.trainable.items():
            group.variables[name].get_value()[:] = value
        for name, given in self.recipe.initial.items():
            where = f"{self.where}.initial.{name}"
            known = self.equations.diff_eq_names | self.equations.parameter_names
            if name not in known or name.startswith(NOISE):
                raise RecipeError(f"{where}: no such variable: {nearest(name, known)}")
            group.variables[name].get_value()[:] = self._fitting(given, name, where)

    def _explained(self) -> _Explained:
        recipe = self.recipe
        others = ("threshold", "reset", "refractory", "method", "update")
        given = [f"{key} {brief(getattr(recipe, key))}" for key in others if getattr(recipe, key)]
        return _Explained(f"{self.where}.equations", "; ".join([brief(recipe.equations), *given]))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep what exists from garbage collection: Brian2 collects before a run, which takes longest.

    A user who has frozen objects keeps them so.
    """
    mine = not gc.get_freeze_count()
    if mine:
        gc.freeze()
    try:
        yield
    finally:
        if mine:
            gc.unfreeze()


WIDTH = 300


def brief(text: str) -> str:
    """Return the beginning of a text, in one line."""
    line = "; ".join(part.strip() for part in text.splitlines() if part.strip())
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


class _Explained:
    """Turns what Brian2 says about a model into one line with the equations."""

    def __init__(self, where: str, text: str) -> None:
        self.where, self.text = where, text

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if error is None or isinstance(error, (RecipeError, KeyboardInterrupt, MemoryError)):
            return
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        said = cause.args[0] if isinstance(cause, KeyError) and cause.args else cause
        message = " ".join(str(said).split()).rstrip(".")
        raise RecipeError(f"{self.where}: {brief(message)} (in: {self.text})") from error


def integrate_and_fire(membrane: Membrane) -> tuple[PopulationRecipe, dict[str, float]]:
    """Return the population, and its constants, of the step equation in ``networks.spikes``.

    Why its decay is written as a discrete step: it is the exact solution for a current that is
    constant in a step, and stays so behind a synaptic filter, where Brian2's own exact integration
    would let the filter move within the step.
    """
    filtered = "g = alpha * g + (1 - alpha) * I" if membrane.alpha else "g = I"
    recipe = PopulationRecipe(
        equations="v : 1\ng : 1\nI : 1",
        threshold="v > threshold",
        reset="v = 0" if membrane.reset == "zero" else "v -= threshold / beta",
        update=f"{filtered}\nv = beta * v + gain * g",
    )
    constants = {
        "threshold": membrane.threshold,
        "beta": membrane.beta,
        "alpha": membrane.alpha,
        "gain": membrane.gain,
    }
    return recipe, constants
