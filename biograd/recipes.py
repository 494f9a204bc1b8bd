"""Recipes: TOML files that become frozen dataclasses, or one line that says why they cannot.

A model recipe says what the data go through and how it learns, a dataset recipe what goes in.
Every key has a type, most a range; an unknown key, a wrong type or a value out of range is
refused with the file, the key and the nearest valid word.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import numbers
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from biograd.errors import RecipeError, nearest

Table = dict[str, Any]
Thing = TypeVar("Thing")


@dataclasses.dataclass(frozen=True)
class Range:
    """A closed interval that a number must lie in; ``above`` makes the lower end open."""

    low: float = float("-inf")
    high: float = float("inf")
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        left = f"> {self.low:g}" if self.above else f">= {self.low:g}"
        ends = [] if self.low == float("-inf") else [left]
        ends += [] if self.high == float("inf") else [f"<= {self.high:g}"]
        return " and ".join(ends)


Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(1)]


@dataclasses.dataclass(frozen=True)
class NetworkRecipe:
    """Who simulates, and the shape of what is simulated."""

    substrate: Literal["torch", "snntorch", "brian2"] = "torch"
    kind: Literal["rate", "spiking", "circuit", "local_mixer"] = "rate"
    hidden: tuple[Count, ...] = (30, 30)
    channels: tuple[Count, ...] = ()
    """Channels of 3x3 convolutions of stride 2 before the dense layers (rate networks only)."""
    recurrent: bool = False
    residual: bool = False
    """A skip past every dense block whose width is that of its input (rate networks only)."""
    activation: Literal["relu", "tanh", "sigmoid", "gelu"] = "relu"
    normalisation: Literal["none", "batch", "layer", "length"] = "none"
    """Of a block's current; ``length`` divides its activity by the root of its mean square."""
    label_inputs: bool = False
    """One more input for each class in front of the data, neutral but for rules that show labels
    to the network (dense rate networks only)."""
    dropout: Annotated[float, Range(0, 0.95)] = 0.0
    gain: Positive = 1.0
    """Factor on the standard deviation of the initial hidden weights."""
    dtype: Literal["float32", "float64"] = "float32"


@dataclasses.dataclass(frozen=True)
class MixerRecipe:
    """The shape of a LocalMixer (``network.kind = "local_mixer"``)."""

    blocks: Count = 1
    patches: Count = 1
    """Patches on each side of the image."""
    channels: Count = 256
    groups: Count = 1
    """Groups of channels in the grouped layers."""


@dataclasses.dataclass(frozen=True)
class NeuronRecipe:
    """A leaky integrate-and-fire population: tau dv/dt = R I - v, spike at v > threshold."""

    time_constant_ms: Positive = 10.0
    synaptic_time_constant_ms: NotNegative = 0.0
    """Zero: the current reaches the membrane unfiltered."""
    resistance: Positive = 1.0
    threshold: Positive = 1.0
    reset: Literal["zero", "subtract"] = "subtract"
    method: Literal["step", "event"] = "step"
    """``event``: spike times in continuous time with their exact derivatives (torch only)."""
    surrogate: Literal["fast_sigmoid", "arctan", "gaussian"] = "fast_sigmoid"
    slope: Positive = 10.0
    readout: Literal["membrane", "rate", "filtered_rate", "first_spike", "potential"] = "membrane"
    """What is read of the last population: spikes through a leaky integrator, their number, their
    number by an exponential filter, how early the first comes, or the mean of its output
    variable."""
    readout_time_constant_ms: Positive = 20.0


@dataclasses.dataclass(frozen=True)
class PopulationRecipe:
    """A population given by Brian2 equations (``network.substrate = "brian2"``).

    Quantities are texts with Brian2's units, ``"10*ms"``, or plain numbers.
    """

    units: Annotated[int, Range(0)] = 0
    """Neurons of a population of a circuit; elsewhere ``network.hidden`` says it."""
    equations: str = ""
    """Brian2 equations; empty: the integrate-and-fire neurons of ``[neuron]``."""
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
class ProjectionRecipe:
    """Synapses from the input or a population to a population of a circuit.

    What comes from a population that stands before its target acts in the same step, what comes
    from the target itself or from behind it in the next; onto a variable of a differential
    equation everything acts in the next step, as Brian2's own synapses do.
    """

    source: str
    """``input``, or the name of a population."""
    target: str
    variable: str = ""
    """The target's input variable; empty: its ``input``."""
    kind: Literal["dense", "masked", "convolution"] = "dense"
    sign: Literal["both", "excitatory", "inhibitory"] = "both"
    """Of the weights; other than ``both``: the sign stays, whatever is learned (not of a
    convolution)."""
    density: Annotated[float, Range(0, 1, above=True)] = 0.1
    """``masked``: the share of connections that exist, drawn with the weights' seed."""
    channels: Count = 8
    """``convolution``: of the target, whose units are its channels x height x width."""
    kernel: Count = 3
    stride: Count = 2
    delay_ms: NotNegative = 0.0
    """Beyond the step that every connection takes by its place."""
    bias: bool = True


@dataclasses.dataclass(frozen=True)
class EncodingRecipe:
    """How a datum becomes a current or a spike train; times in milliseconds."""

    kind: Literal["current", "poisson", "latency", "delta", "rows"] = "current"
    dt_ms: Positive = 1.0
    duration_ms: Positive = 20.0
    gain: Positive = 1.0
    """Current per unit of intensity (``current``, ``rows``)."""
    max_rate_hz: Positive = 200.0
    time_constant_ms: Positive = 5.0
    """``latency``: the time constant of the input's charging curve."""
    threshold: Positive = 0.1
    """``latency``, ``delta``: the intensity, or change of it, that counts."""


@dataclasses.dataclass(frozen=True)
class DecorrelationRecipe:
    """Decorrelation of every synaptic layer's input."""

    rule: Literal["off", "kappa", "copi", "scaled", "foldiak"] = "off"
    rate: Positive | Mapping[str, Positive] = 1e-3
    """One for all layers, or a table of one for each: ``{ "blocks.0.synapse" = 1e-3 }``."""
    kappa: Fraction = 0.5
    sample: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Share of the clean rows whose correlations are measured in each step."""
    centre: bool = False


@dataclasses.dataclass(frozen=True)
class LocalRecipe:
    """Local losses: every block is trained by a loss of its own activity."""

    loss: Literal["off", "cross_entropy", "predsim", "similarity", "fixed_readout"] = "off"
    cells: Literal["block", "patch", "group", "patch_group"] = "block"
    """What has a loss of its own: a block, or each of its patches, groups of channels, or both."""
    groups: Count = 1
    sites: Literal["ends", "all"] | tuple[str, ...] = "ends"
    beta: Fraction = 0.99
    """Weight of similarity beside prediction (``predsim``)."""
    normalise: bool = False
    """Layer-normalise each group of channels before the head."""


@dataclasses.dataclass(frozen=True)
class TrainingRecipe:
    """The optimiser and the budget."""

    epochs: Annotated[int, Range(0)] = 20
    passes: Count | None = None
    """Budget in forward passes, in place of ``epochs``: an example that goes once through the
    network in one copy counts one; backward passes do not count."""
    seconds: Positive | None = None
    """Budget in seconds of training steps, without evaluation and files, in place of ``epochs``;
    how many steps that is differs from run to run."""
    batch_size: Count = 32
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Positive = 1e-3
    momentum: Annotated[float, Range(0, 0.999)] = 0.9
    weight_decay: NotNegative = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"
    probe: Annotated[int, Range(0)] = 0
    """Draws, two at least, by which every snapshot measures the gradient estimate; 0: none."""

    def __post_init__(self) -> None:
        if self.passes is not None and self.seconds is not None:
            raise ValueError("passes and seconds are two budgets: give one of them")

    @property
    def budget(self) -> tuple[Literal["epochs", "passes", "seconds"], float]:
        """What ends the training: a unit, and how many of it."""
        if self.passes is not None:
            return "passes", self.passes
        return ("epochs", self.epochs) if self.seconds is None else ("seconds", self.seconds)


@dataclasses.dataclass(frozen=True)
class ModelRecipe:
    """A model file: the network, its neurons and encoding, and how it learns by default."""

    description: str = ""
    estimator: str = "backprop"
    network: NetworkRecipe = NetworkRecipe()
    mixer: MixerRecipe = MixerRecipe()
    neuron: NeuronRecipe = NeuronRecipe()
    population: PopulationRecipe = PopulationRecipe()
    populations: Mapping[str, PopulationRecipe] = dataclasses.field(default_factory=dict)
    """Of a circuit, by name, in the order in which a step runs through them; the readout listens
    to the last."""
    projections: Mapping[str, ProjectionRecipe] = dataclasses.field(default_factory=dict)
    encoding: EncodingRecipe = EncodingRecipe()
    decorrelation: DecorrelationRecipe = DecorrelationRecipe()
    local: LocalRecipe = LocalRecipe()
    training: TrainingRecipe = TrainingRecipe()
    estimators: Table = dataclasses.field(default_factory=dict)
    """Settings by estimator name: ``[estimators.weak] copies = 17``."""
    dataset: Table = dataclasses.field(default_factory=dict)
    """Overrides by dataset name: ``[dataset.mnist.network] hidden = [128, 128]``."""


@dataclasses.dataclass(frozen=True)
class DataFile:
    """One file of a dataset: its name and the SHA-256 digest of its bytes."""

    name: str
    sha256: str
    sha256_raw: str = ""
    """Digest of the decompressed content, by which an unpacked copy is known."""


@dataclasses.dataclass(frozen=True)
class DatasetRecipe:
    """A dataset file: where the data come from and what shape they have."""

    source: Literal["digits", "idx", "yin_yang", "random_manifolds"]
    description: str = ""
    licence: str = ""
    shape: tuple[Count, ...] = ()
    classes: Count = 10
    urls: tuple[str, ...] = ()
    """Folders that hold the files, the canonical one first, mirrors after it."""
    files: Table = dataclasses.field(default_factory=dict)
    """``idx``: train_images, train_labels, test_images, test_labels, each a :class:`DataFile`."""
    validation: Annotated[float, Range(0, 0.9)] = 0.0
    """Share of the training split held out; with it, the test split is not looked at."""
    training_examples: Annotated[int, Range(0)] = 0
    """Rows to learn from, every class in proportion; 0: all."""
    test_examples: Annotated[int, Range(0)] = 0
    """Rows to evaluate on, every class in proportion; 0: all."""
    settings: Table = dataclasses.field(default_factory=dict)
    """Arguments of a generated source (sizes, seeds)."""


def shipped(folder: Literal["models", "datasets", "cli"]) -> Path:
    """Return the folder of shipped recipes: in the installed package, else beside it."""
    package = Path(__file__).parent
    installed = package / "shipped" / folder
    return installed if installed.is_dir() else package.parent / folder


def names(folder: Literal["models", "datasets", "cli"]) -> list[str]:
    """Return the names of the shipped recipes of one kind, sorted."""
    return sorted(path.stem for path in shipped(folder).glob("*.toml"))


def read(name: str | Path, folder: Literal["models", "datasets", "cli"]) -> tuple[Table, Path]:
    """Return the table and path of a recipe, given a shipped name or a path to a TOML file.

    Raises:
        RecipeError: no such recipe, or the file is not TOML.
    """
    text = str(name)
    path = shipped(folder) / f"{text}.toml"
    if text not in names(folder):
        path = Path(text)
        endings = (".toml", ".json") if folder == "cli" else (".toml",)
        if path.suffix not in endings or not path.is_file():
            what = {"models": "model", "datasets": "dataset", "cli": "study"}[folder]
            raise RecipeError(f"no {what} {text!r}: {nearest(text, names(folder))}")
    try:
        text = path.read_text(encoding="utf-8")
        table: object = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, OSError) as error:  # what either reader raises is a ValueError
        kind = path.suffix[1:].upper()
        raise RecipeError(f"{path}: not readable as {kind}: {error}") from error
    if not isinstance(table, dict):
        raise RecipeError(f"{path}: must be a table")
    return table, path


def merge(base: Table, over: Mapping[str, Any]) -> Table:
    """Return ``base`` with ``over`` laid on it, table by table."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def override(table: Table, assignments: Iterable[str]) -> Table:
    """Return ``table`` with ``key.path=value`` assignments applied; values are read as TOML.

    >>> override({"training": {"epochs": 3}}, ["training.epochs=5", "estimator=weak"])
    {'training': {'epochs': 5}, 'estimator': 'weak'}

    Raises:
        RecipeError: an assignment is not of the form KEY=VALUE.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {assignment!r}: write KEY=VALUE, as in training.epochs=5")
        patch: Any = _value(text.strip())
        for part in reversed(key.strip().split(".")):
            patch = {part: patch}
        table = merge(table, patch)
    return table


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def construct(
    make: Callable[..., Thing], table: Mapping[str, Any], where: object, key: str = ""
) -> Thing:
    """Call ``make`` (a dataclass, or a class with an annotated ``__init__``) on a checked table.

    Args:
        where: the file or option that the table came from; it opens every message.
        key: dotted path of the table in that file.

    Raises:
        RecipeError: unknown or missing key, wrong type, value out of range.
    """
    hints = typing.get_type_hints(
        make if dataclasses.is_dataclass(make) else make.__init__,
        include_extras=True,
    )
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    prefix = f"{key}." if key else ""
    values = {}
    for name, value in table.items():
        if name not in parameters:
            raise RecipeError(f"{where}: unknown key {prefix}{name}: {nearest(name, parameters)}")
        values[name] = _convert(hints[name], value, where, prefix + name)
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in values:
            raise RecipeError(f"{where}: missing key {prefix}{name}")
    try:
        return make(**values)
    except ValueError as error:
        raise RecipeError(f"{where}: {prefix.rstrip('.') or 'recipe'}: {error}") from error


def validate(make: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Check the arguments of a class or a function by its annotations, as a recipe's keys are.

    Args:
        values: its ``locals()``, or some of them; what it does not annotate is ignored.

    Raises:
        RecipeError: wrong type or value out of range; the message opens with its name.
    """
    annotated = make.__init__ if isinstance(make, type) else make  # type: ignore[misc]
    hints = typing.get_type_hints(annotated, include_extras=True)
    for name, hint in hints.items():
        if name in values:
            _convert(hint, values[name], make.__name__, name)


def _convert(hint: Any, value: Any, where: object, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _convert(arguments[0], value, where, key)
        for limit in arguments[1:]:
            if isinstance(limit, Range) and value not in limit:
                raise RecipeError(f"{where}: {key} = {value}: must be {limit}")
        return value
    if origin is Literal:
        if value not in arguments:
            raise RecipeError(f"{where}: {key} = {value!r}: {nearest(value, map(str, arguments))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where, key)
    if origin in (tuple, Sequence):
        if not isinstance(value, (list, tuple)):
            raise RecipeError(f"{where}: {key} = {value!r}: must be a list")
        return tuple(_convert(arguments[0], item, where, key) for item in value)
    if origin is Mapping and isinstance(value, Mapping):
        return {k: _convert(arguments[1], v, where, f"{key}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return construct(hint, value, where, key)  # type: ignore[arg-type]
    return _convert_plain(origin or hint, value, where, key)


def _convert_union(arguments: tuple[Any, ...], value: Any, where: object, key: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    failure: RecipeError | None = None
    for option in arguments:
        if option is type(None):
            continue
        try:
            return _convert(option, value, where, key)
        except RecipeError as error:
            whole = isinstance(value, (Mapping, list, tuple))  # the last says what is wrong in it
            failure = error if whole else failure or error
    raise failure or RecipeError(f"{where}: {key} = {value!r} is not allowed")


_KINDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "dict": "a table",
    "Mapping": "a table",
}


def _convert_plain(kind: Any, value: Any, where: object, key: str) -> Any:
    if kind is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        value = int(value)  # NumPy's, too
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{where}: {key} = {value}: must be a finite number")
    mismatch = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
    if mismatch:
        name = _KINDS.get(kind.__name__, f"a table ({kind.__name__})")
        raise RecipeError(f"{where}: {key} = {value!r}: must be {name}")
    return value


def load_dataset(name: str | Path, assignments: Iterable[str] = ()) -> DatasetRecipe:
    """Return the dataset recipe ``name`` (shipped name or path); ``assignments`` override keys."""
    table, path = read(name, "datasets")
    return construct(DatasetRecipe, override(table, assignments), path)


def load_model(
    name: str | Path,
    dataset: str = "",
    over: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
) -> ModelRecipe:
    """Return the model recipe ``name`` (shipped name or path to a TOML file).

    Later wins: the file, its ``[dataset.<dataset>]`` table, ``over``, then ``assignments``.

    Raises:
        RecipeError: with the file, the key and the nearest valid word.
    """
    table, path = read(name, "models")
    _check_budget(table, path)
    for_dataset = _convert(Table, table.pop("dataset", {}), path, "dataset")
    for known, changes in for_dataset.items():  # all are checked, whichever is used
        _convert(Table, changes, path, f"dataset.{known}")
        construct(ModelRecipe, merge(table, changes), f"{path}: dataset.{known}")
    table = merge(table, for_dataset.get(dataset, {}))
    return construct(ModelRecipe, override(merge(table, over or {}), assignments), path)


def _check_budget(table: Table, path: Path) -> None:
    """Refuse a file that gives epochs and, in the same place, what takes the place of epochs."""
    training = table.get("training")
    given = training if isinstance(training, dict) else {}
    for other in ("passes", "seconds"):
        if other in given and "epochs" in given:
            raise RecipeError(f"{path}: training: epochs and {other} are two budgets: give one")
