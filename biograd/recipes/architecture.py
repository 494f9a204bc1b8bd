"""Recipes of networks: their shape, their neurons, and what joins them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

from biograd.checking import Checked, Choice, Count, NotNegative, Positive, Range
from biograd.neurons import NEURONS, Neuron


@dataclasses.dataclass(frozen=True)
class DelayRecipe(Checked):
    """Delays of the synapses of a layer, beside that of a whole projection (``delay_ms``)."""

    per: Literal["projection", "axon", "synapse"] = "axon"
    """Who has a delay of its own."""
    start_ms: NotNegative | str | tuple[NotNegative, ...] = 0.0
    """One for all, a list (of synapses, target by target), or a draw that is the same in every
    run, ``"uniform(0, 20)"``; in steps fixed delays, drawn ones, are rounded."""
    longest_ms: Positive = 20.0
    """Delays are kept between zero and this."""
    learned: Literal["none", "linear", "gaussian", "rounded", "exact"] = "none"
    """``none``: they are fixed; ``linear``: by interpolation between two steps; ``gaussian``: by a
    Gaussian over all steps, which is narrowed; ``rounded``: whole steps, which rules that perturb
    parameters learn; ``exact``: of spike times in continuous time (event-driven neurons)."""
    width_ms: NotNegative = 0.0
    """Standard deviation of the Gaussian at first; zero: half of the longest delay."""
    narrowing: Annotated[float, Range(0, 1, above=True)] = 0.25
    """Share of the training in which the Gaussian is narrowed to .23 steps."""
    pace: Positive = 8.0
    """Steps (milliseconds of event-driven neurons) by which a delay moves where a weight moves by
    1."""


@dataclasses.dataclass(frozen=True)
class NetworkRecipe(Checked):
    """Who simulates, and the shape of what is simulated."""

    substrate: Literal["torch", "snntorch", "brian2"] = "torch"
    kind: Literal["rate", "spiking", "circuit", "local_mixer"] = "rate"
    hidden: tuple[Count, ...] = (30, 30)
    channels: tuple[Count, ...] = ()
    """Channels of convolutions before the dense layers."""
    kernel: Count = 3
    """Size of a convolution's kernel along each side; as much is padded as keeps the size."""
    stride: Count = 2
    """Of the convolutions."""
    pooling: Count = 1
    """Size of the windows by which the grid behind every convolution is reduced; 1: none."""
    pool: Literal["average", "max", "sum"] = "average"
    """What a window becomes."""
    recurrent: bool = False
    residual: bool = False
    """A skip past the neurons of every dense block whose width is that of its input."""
    activation: Literal["relu", "tanh", "sigmoid", "gelu"] = "relu"
    """Of rate units."""
    normalisation: Literal["none", "batch", "layer", "length"] = "none"
    """Of a block's current: over the batch (in time over batch and time, tdBN) or over the layer;
    ``length`` divides its activity by the root of its mean square (only without time)."""
    label_inputs: bool = False
    """One more input for each class in front of the data, neutral but for rules that show labels
    to the network (dense rate networks only)."""
    dropout: Annotated[float, Range(0, 0.95)] = 0.0
    delays: DelayRecipe | None = None
    """Of the dense layers in front of hidden neurons that spike."""
    gain: Positive = 1.0
    """Factor on the standard deviation of the initial hidden weights."""
    dtype: Literal["float32", "float64"] = "float32"
    readout: str = "membrane"
    """What is read of the last population of a spiking network: spikes through a leaky integrator
    (``membrane``), their number (``rate``), their number by an exponential filter
    (``filtered_rate``), how early the first comes (``first_spike``), or the mean of what is passed
    on (``potential``).  A task in time reads every step through a leaky integrator.  With
    ``counts`` there is no layer: the outputs are the units' own spikes, their number or course."""
    readout_time_constant_ms: Positive = 20.0


@dataclasses.dataclass(frozen=True)
class MixerRecipe(Checked):
    """The shape of a LocalMixer (``network.kind = "local_mixer"``)."""

    blocks: Count = 1
    patches: Count = 1
    """Patches on each side of the image."""
    channels: Count = 256
    groups: Count = 1
    """Groups of channels in the grouped layers."""


NeuronRecipe = Annotated[Neuron, Choice(NEURONS, "leaky")]
"""A table whose ``kind`` is one of ``NEURONS``; without one, a leaky integrate-and-fire neuron."""


@dataclasses.dataclass(frozen=True)
class PopulationRecipe(Checked):
    """A population given by Brian2 equations (``network.substrate = "brian2"``).

    Quantities are texts with Brian2's units, ``"10*ms"``, or plain numbers.
    """

    units: Annotated[int, Range(0)] = 0
    """Neurons of a population of a circuit; elsewhere ``network.hidden`` says it."""
    neuron: NeuronRecipe | None = None
    """Of a circuit's population; missing: that of ``[neuron]``."""
    normalisation: Literal["none", "batch", "layer"] = "none"
    """Of its current: over batch and time (tdBN), or over the layer (without equations)."""
    dropout: Annotated[float, Range(0, 0.95)] = 0.0
    """Of what it passes on (without equations)."""
    equations: str = ""
    """Brian2 equations; empty: the neurons are named."""
    threshold: str = ""
    """Condition of a spike; empty: the population has none."""
    reset: str = ""
    refractory: str = ""
    """A duration or a condition; empty: never refractory."""
    method: str = ""
    """Brian2's name of the numerical method; empty: Brian2 chooses."""
    update: str = ""
    """Statements that run in every step, before the threshold."""
    input: str = "I"
    """The variable that receives the current: a parameter is set in every step; a variable of a
    differential equation is increased, as a synapse does with ``v_post += w``."""
    scale: Mapping[str, str | float] = dataclasses.field(default_factory=dict)
    """What a current of 1 is, by input variable: ``{ I = "1*nA" }``; else 1 in SI units."""
    output: str = "spikes"
    """``spikes``, or a variable, whose time course is then what the population passes on."""
    namespace: Mapping[str, str | float] = dataclasses.field(default_factory=dict)
    initial: Mapping[str, str | float | tuple[str | float, ...]] = dataclasses.field(
        default_factory=dict
    )
    """Where a trial begins: one value for all neurons, a list with one for each, or a draw that is
    the same in every run, ``"uniform(-70*mV, -50*mV)"`` or ``"normal(-65*mV, 5*mV)"``."""
    trainable: Mapping[str, tuple[Positive, ...]] = dataclasses.field(default_factory=dict)
    """Constants of the namespace that are learned by every neuron, each with its bounds as factors:
    ``{ tau = [0.2, 5] }``."""
    surrogate_scale: str | float = ""
    """Distance to the threshold that counts as 1 in the surrogate derivative; empty: 1 without a
    dimension, 20 mV for a potential."""


@dataclasses.dataclass(frozen=True)
class ProjectionRecipe(Checked):
    """Synapses from the input or a population to a population of a circuit.

    What comes from a population that stands before its target acts in the same step, what comes
    from the target itself or from behind it in the next; onto a variable of a differential
    equation everything acts in the next step, as Brian2's own synapses do.
    """

    source: str
    """``input``, or the name of a population."""
    target: str
    variable: str = ""
    """The target's port or input variable; empty: its first."""
    kind: Literal["dense", "masked", "sparse", "convolution", "one_to_one", "skip"] = "dense"
    """``skip``: what the source passes on is added, as it is, behind the target's neurons."""
    sign: Literal["both", "excitatory", "inhibitory"] = "both"
    """Of the weights; other than ``both``: the sign stays, whatever is learned (not of a
    convolution)."""
    density: Annotated[float, Range(0, 1, above=True)] = 0.1
    """``masked``, ``sparse``: the share of connections that exist, drawn with the weights' seed;
    ``sparse`` stores those alone."""
    channels: Count = 8
    """``convolution``: of the target, whose units are its channels x height x width."""
    kernel: Count = 3
    stride: Count = 2
    padding: Literal["same", "valid"] | Annotated[int, Range(0)] = "same"
    pooling: Count = 1
    """Size of the windows by which the source's grid is reduced first; 1: none."""
    pool: Literal["average", "max", "sum"] = "average"
    delay_ms: NotNegative = 0.0
    """Beyond the step that every connection takes by its place."""
    delays: DelayRecipe | None = None
    """``dense``, ``masked``: what each synapse, axon or the projection adds to that."""
    bias: bool = True
