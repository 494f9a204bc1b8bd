"""NIR files: a network written as one, a network made from one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from biograd import disk
from biograd.checking import Positive, validate
from biograd.circuit.circuit import Circuit
from biograd.disk.hdf5_streams import steady
from biograd.errors import RecipeError, brief, fitting
from biograd.interchange.build import Choices, build, step_length
from biograd.interchange.graph_checks import check_file
from biograd.interchange.nodes import Subtract, graph, library
from biograd.interchange.parse import Parser
from biograd.interchange.parts import notes_of
from biograd.interchange.weighing import Read
from biograd.recipes import EncodingRecipe
from biograd.runs.reader import Run
from biograd.simulators.population import Simulator

SHAPES = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError)
"""What comes of arrays that do not fit together."""
SUBTRACTS = ("loop", "node")
READS = ("mean", "sum", "last", "steps")
RESETS = {"value": False, "subtract": True}


def to_nir(
    network: nn.Module | Run, subtract: Subtract = "loop", own: Mapping[str, Any] | None = None
) -> Any:
    """Return a network, or the network of a run as it was at its end, as a ``nir.NIRGraph``.

    ``own`` is what ``biograd.trained`` takes beside the run: network, data, loss, reset.

    See ``export_nir``.
    """
    if subtract not in SUBTRACTS:
        raise RecipeError(f"subtract = {subtract!r}: take 'loop' or 'node'")
    library()  # what is missing is said before anything is computed
    if not isinstance(network, Run):
        return graph(network, subtract)
    from biograd.calls import trained

    made, engine = trained(network, **(own or {}))
    try:
        return graph(made, subtract)
    finally:
        engine.detach()


def export_nir(
    network: nn.Module | Run,
    path: str | os.PathLike[str],
    *,
    subtract: Subtract = "loop",
    force: bool = False,
    own: Mapping[str, Any] | None = None,
) -> Path:
    """Write a spiking network or a circuit as a NIR file.

    Populations become LIF, IF, CubaLIF, LI, CubaLI and I nodes, layers Affine, Linear, Scale,
    Conv2d, SumPool2d and AvgPool2d, delays Delay; decorrelation is folded into the weights, masks
    are noted.  The readout becomes Affine and LI; the graph's metadata say what of its course is
    the output: "mean", "sum" or "last" of the trial, or all "steps".  Times are in seconds.  What a
    step is stands in ``biograd.interchange.nir_neuron``: in it, a spike is a current of 1, and what
    leads back arrives one step later, without a Delay.  Encoding, surrogates, dropout and the
    length of a step are noted in the metadata.

    Args:
        network: of ``biograd.build``, or a run.
        path: of the file.
        subtract: how neurons are written whose spikes take the threshold from the potential, since
            a NIR node resets to a value.  "loop": as an integrator (LI), a Threshold and a Scale
            by which a spike inhibits its neuron one step later: exact.  "node": as a LIF node that
            resets to 0, which is the same in continuous time, where a potential never passes its
            threshold, and not in steps; its metadata say ``reset = "subtract"``.
        force: replace the file.
        own: of a run, what ``biograd.trained`` takes beside it: network, data, loss, reset.

    Raises:
        CapabilityError: NIR has no node for a part; the message names it.
        MissingExtraError: ``nir`` is not installed.
        RecipeError: the file exists and ``force`` is not set.
        OutputError: the file cannot be written.
    """
    target = Path(path)
    disk.check_target(target, force)
    made = to_nir(network, subtract, own)
    with disk.writing(target, "export again"), steady(target) as stream:
        library().write(stream, made)
    return target


def import_nir(
    source: Any,
    dt_ms: Positive | None = None,
    duration_ms: Positive | None = None,
    *,
    encoding: EncodingRecipe | None = None,
    substrate: Simulator | None = None,
    reset: str | None = None,
    read: Read | None = None,
) -> Circuit:
    """Return the network of a NIR file or graph; every rule can train it.

    Nodes whose equations are those of ``Leaky`` or ``LeakyIntegrator`` become these, others a
    ``NirNeuron`` (``biograd.interchange.nir_neuron``), with constants of each neuron's own.  NIR is
    continuous in time; in a step everything is solved exactly for what is constant in it.  What the
    file of ``export_nir`` notes need not be given.  Constants that were learned are fixed, which a
    warning says by node; sparse connections, and one-to-one ones with a bias, come as ``Masked``.

    Args:
        source: path of the file, or a ``nir.NIRGraph``.
        dt_ms: length of a step in milliseconds.
        duration_ms: length of a trial.
        encoding: how a datum becomes what flows in; without one that is noted, data are courses
            ``[steps, units]``.
        substrate: who simulates it: "torch", the default, "snntorch" or "brian2".
        reset: what a spike does in the steps of LIF, IF and CubaLIF nodes: "value" puts the
            potential to ``v_reset``, "subtract" takes ``v_threshold - v_reset`` from it.
        read: what of the output's course is the network's output: "mean" over the trial, "sum" or
            "last", or all "steps"; by default the sum of spikes, the mean of potentials.

    Raises:
        CapabilityError: a node, or a way to connect nodes, that biograd does not know, by name.
        MissingExtraError: ``nir`` is not installed.
        RecipeError: the file cannot be read, shapes do not fit, or a choice is missing.
    """
    validate(import_nir, {"dt_ms": dt_ms, "duration_ms": duration_ms, "substrate": substrate})
    if encoding is not None and not isinstance(encoding, EncodingRecipe):
        raise RecipeError(f"encoding = {encoding!r}: must be an EncodingRecipe")
    if reset not in (None, *RESETS):
        raise RecipeError(f"reset = {reset!r}: take 'value' or 'subtract'")
    if read not in (None, *READS):
        raise RecipeError(f"read = {read!r}: take 'mean', 'sum', 'last' or 'steps'")
    made, where = _graph(source)
    choices = Choices(dt_ms, duration_ms, encoding, substrate)
    step = step_length(notes_of(made), choices)
    subtracts = None if reset is None else RESETS[reset]
    try:
        with fitting(f"{where}: the network is too large", "the graph's shapes, or duration_ms"):
            return build(Parser(made, step, subtracts, read), choices, where)
    except SHAPES as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise RecipeError(f"{where}: its parts do not fit together: {brief(said)}") from error


def _graph(source: Any) -> tuple[Any, str]:
    """Return a graph, and what it is called in messages."""
    nir = library()
    if isinstance(source, nir.NIRGraph):
        return source, "graph"
    if not isinstance(source, (str, os.PathLike)):
        raise RecipeError(f"{type(source).__name__}: give a nir.NIRGraph or the path of a file")
    try:
        # biograd has checks of its own, and older files do not pass those of nir
        check_file(Path(source))
        made = nir.read(Path(source), type_check=False)
    except RecipeError:
        raise
    except Exception as error:  # nir builds its nodes of whatever the file holds
        said = " ".join(str(error).split()) or type(error).__name__
        raise RecipeError(f"{source}: cannot be read as a NIR file: {said}") from error
    return made, str(source)
