"""Existing Brian2 networks as circuits: their neurons as they are, their synapses as weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from biograd import encoding as encodings
from biograd.brian.import_brian2 import import_brian2
from biograd.brian.neuron_checks import check_no_constants
from biograd.encoding import Encoding
from biograd.errors import CapabilityError, RecipeError
from biograd.neurons import Leaky, Spiking
from biograd.recipes import Count, EncodingRecipe, construct, validate
from biograd.wrapping.ends import Pair, read_ends
from biograd.wrapping.groups import read_group
from biograd.wrapping.scheduling import check_active, check_schedule
from biograd.wrapping.synapses import read_synapses
from biograd.wrapping.wired import Reading, Wiring
from biograd.wrapping.wrapped import WrappedCircuit


def wrap(
    network: Any,
    input: Pair | list[Pair],
    output: str | Pair | list[str | Pair],
    *,
    inputs: Count | Sequence[Count],
    classes: Count | None = None,
    encoding: EncodingRecipe | Encoding | Mapping[str, Any] | None = None,
    neuron: Spiking | None = None,
    stimulus: Literal["dense", "one_to_one", "direct"] = "dense",
    readout: str | None = None,
    readout_time_constant_ms: float = 20.0,
    populations: Mapping[str, Mapping[str, Any]] | None = None,
    namespace: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> WrappedCircuit:
    """Return a ``brian2.Network`` as a circuit that any rule can train; it stays as it is.

    Every ``NeuronGroup`` becomes a population with its equations, constants and values of now; a
    trial starts at time zero, nobody refractory and no spike under way.  Every ``Synapses`` with
    ``X_post += w`` becomes a projection whose weights start at the synapses' and which has their
    connections and delays, rounded as Brian2 does.  The data come in through a dense layer, and go
    out through a linear readout; both are drawn from ``seed``.  Or what comes out is the groups'
    own spikes and variables, side by side, ``[rows, steps, units]``; then every group is hidden.
    All is in float64, as in Brian2, and spikes at the same steps.  ``write_back`` of the circuit
    puts what was learned into the synapses.

    Weights are in units of ``scale``, a power of two for synapses: ``circuit.layer(group).model
    .scales[variable]`` times the weight is what a spike adds, in SI units.

    Args:
        network: groups, synapses, and monitors, which are left out.
        input: group and variable that receive the data: a parameter is set in every step, a
            variable with a differential equation is increased; or a list of them.  Or "spikes" of a
            ``PoissonGroup`` or ``SpikeGeneratorGroup``, which the encoded data replace.
        output: what is read: a group, of which the spikes are, or group and variable, seen behind
            the threshold and before the reset; or a list of them.
        inputs: number of features of a datum, or its shape; of a time course, of a step.
        classes: number of outputs of a linear readout; None: what is read is the outputs.
        encoding: of the data, a recipe or its keys; its steps are the network's.  The kind
            "given" takes time courses ``[rows, steps, features]``.
        neuron: of it, the surrogate at thresholds.
        stimulus: the layer that the data come through: "dense", "one_to_one" (a weight for each
            neuron, 1 at first), or "direct": they are the current themselves.
        readout: what of a course is read: one value of a trial (see ``biograd.Readout``), or
            outputs in every step, "course" as it is, "leaky" through a leaky integrator; None:
            "membrane" with ``classes``, else "course".
        readout_time_constant_ms: of the leaky integrator or the filter that reads.
        populations: by group, what its equations do not say: ``scale``, ``output``, ``trainable``,
            ``surrogate_scale`` (see ``PopulationRecipe``).
        namespace: constants beside those of the groups, as ``Network.run`` takes them.
        seed: of the weights that are drawn.

    Raises:
        CapabilityError: the network has something else, or what cannot be wrapped.
        RecipeError: a name that is not there, or a unit that is missing.
    """
    if not isinstance(network, import_brian2().Network):
        raise RecipeError(f"wrap: {type(network).__name__} is no brian2.Network")
    settings = {"inputs": inputs, "classes": classes, "stimulus": stimulus, "seed": seed}
    validate(wrap, settings)
    _check_kinds(encoding, neuron, populations, namespace)
    with _way_out():
        groups, synapses, sources = _parts(network)
        ends = read_ends(input, output, groups, sources)
        made = _encoding(encoding, inputs, groups)
        dt, known = made.dt_ms / 1000, dict(namespace or {})
        found = {name: read_group(group, dt, known) for name, group in groups.items()}
        ways = [way for one in synapses for way in read_synapses(one, dt, known)]
        wiring = Wiring(found, ways, ends, made, dict(populations or {}), stimulus)
        read = Reading(readout, classes, readout_time_constant_ms)
        return wiring.circuit(read, neuron or Leaky(), seed)


@contextmanager
def _way_out() -> Iterator[None]:
    """Let every refusal end with what takes any network as it is."""
    try:
        yield
    except RecipeError as error:
        raise type(error)(f"{error}; or take it whole: biograd.Brian2Box") from error


def _parts(network: Any) -> tuple[dict[str, Any], list[Any], dict[str, Any]]:
    """Return the groups of neurons, the synapses, and the groups that only spike."""
    b2 = import_brian2()
    check_schedule(network)
    groups, synapses, sources = {}, [], {}
    monitors = (b2.SpikeMonitor, b2.EventMonitor, b2.StateMonitor, b2.PopulationRateMonitor)
    for part in sorted(network.objects, key=lambda part: str(part.name)):  # Brian2 has a set
        if isinstance(part, b2.NeuronGroup) and not isinstance(part, b2.SpatialNeuron):
            groups[part.name] = part
        elif isinstance(part, (b2.PoissonGroup, b2.SpikeGeneratorGroup)):
            check_active(part, f"wrap: {part.name} ({type(part).__name__})")
            sources[part.name] = part
        elif not part.active:
            continue
        elif isinstance(part, b2.Synapses):
            synapses.append(part)
        elif not isinstance(part, monitors):
            raise CapabilityError(
                f"wrap: {part.name} ({type(part).__name__}) cannot be wrapped: take it out of the "
                "network"
            )
    return groups, synapses, sources


def _check_kinds(encoding: Any, neuron: Any, populations: Any, namespace: Any) -> None:
    table, settings = "a dict", populations if isinstance(populations, Mapping) else {}
    for name, given, kinds, asked in (
        ("encoding", encoding, (EncodingRecipe, Encoding, Mapping), "a dict or an EncodingRecipe"),
        ("neuron", neuron, (Spiking,), "a spiking neuron, as biograd.neurons.Leaky"),
        ("populations", populations, (Mapping,), table),
        *((f"populations.{key}", value, (Mapping,), table) for key, value in settings.items()),
        ("namespace", namespace, (Mapping,), table),
    ):
        if given is not None and not isinstance(given, kinds):
            raise RecipeError(f"wrap: {name} = {given!r}: must be {asked}")
    if neuron is not None:
        check_no_constants(neuron, "the groups")


def _encoding(
    given: EncodingRecipe | Encoding | Mapping[str, Any] | None,
    inputs: int | Sequence[int],
    groups: Mapping[str, Any],
) -> Encoding:
    if isinstance(given, Encoding):
        return given
    shape = tuple(inputs) if isinstance(inputs, Sequence) else (int(inputs),)
    if not isinstance(given, EncodingRecipe):
        step = 1000 * float(next(iter(groups.values())).clock.dt_)
        keys = {"dt_ms": round(step, 12), **(given or {})}
        given = construct(EncodingRecipe, keys, "wrap", "encoding")
    return encodings.build(given, shape)
