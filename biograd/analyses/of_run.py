"""The analyses of what a run holds, by name: each returns named arrays, ``layer/quantity``.

Activity is read one snapshot at a time and spikes a block of trials at a time, so that a run may be
larger than the memory.  To add an analysis: write a function, and name it in ``ANALYSES``.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from biograd.analyses import decoding, dissimilarity, selectivity, similarity, spike_trains, weights
from biograd.checking import Count, Range, convert
from biograd.errors import RecipeError, RunFileError, nearest
from biograd.runs.reader import Run
from biograd.runs.views.recorded_spikes import Spikes

Array = NDArray[Any]
Named = dict[str, Array]

Milliseconds = Annotated[float, Range(0, 1e9)]
Several = Annotated[int, Range(2)]
TRIALS = 256
"""Trials whose spikes are held at once."""


def recorded_layers(run: Run, spiking: bool = False) -> list[str]:
    """Return the layers of a run whose activity, or whose spikes, it holds.

    Raises:
        RunFileError: there are none.
    """
    found = []
    for name, layer in run.layers.items():
        if spiking and layer.kind != "spiking":
            continue
        try:
            _ = run.spikes(name) if spiking else run.activity(name)
        except RunFileError:
            continue
        found.append(name)
    if not found or not len(run.snapshots.get("step", ())):
        what = "spikes of no layer" if spiking else "activity of no layer"
        raise RunFileError(f"{run.path}: holds the {what}")
    return found


def steps_of(run: Run) -> Array:
    """Return the training step of every snapshot, ``[snapshot]``.

    Raises:
        RunFileError: there is none.
    """
    found = run.snapshots.get("step", ())
    if not len(found):
        raise RunFileError(f"{run.path}: holds no snapshots")
    return np.asarray(found)


def spread(count: int, wanted: int) -> Array:
    """Return up to ``wanted`` of ``count`` indices, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(np.int64))


def stimuli(run: Run, most: int) -> tuple[Array, Array]:
    """Return indices of stimuli sorted by label, at most so many of even spacing, and labels."""
    probe = run.probe
    if probe is None:
        raise RunFileError(f"{run.path}: holds no stimuli")
    order = np.argsort(probe.label, kind="stable")
    order = order[spread(len(order), most)]
    return order, np.asarray(probe.label)[order]


def rates(run: Run) -> Named:
    """Return the mean activity of each unit, ``[snapshot, unit]``; of spikes in Hz."""
    found = {}
    for name in recorded_layers(run):
        layer, mean = run.layers[name], run.statistics(name)["mean"]
        hertz = layer.kind == "spiking" and layer.dt_ms
        found[f"{name}/{'rate_hz' if hertz else 'activity'}"] = (
            mean * 1000 / layer.dt_ms if hertz else mean
        )
    return found


def silence(run: Run) -> Named:
    """Return the share of the units that no stimulus made active, ``[snapshot]``."""
    return {
        f"{name}/silent": (run.statistics(name)["frac_active"] == 0).mean(1)
        for name in recorded_layers(run)
    }


def _by_snapshot(run: Run, function: Callable[[Array], Any]) -> Iterator[tuple[str, Array]]:
    """Yield each layer with what a function makes of its activity at every snapshot."""
    for name in recorded_layers(run):
        yield name, np.stack([np.asarray(function(values)) for values in run.activity(name)])


def sparseness(run: Run) -> Named:
    """Return the sparseness of units over stimuli and of stimuli over units."""
    found = {}
    for kind, axis in (("lifetime", 0), ("population", 1)):
        for name, values in _by_snapshot(run, lambda v, a=axis: selectivity.sparseness(v, a)):  # type: ignore[misc]
            found[f"{name}/{kind}"] = values
    return found


def blocks(spikes: Spikes) -> Iterator[tuple[Array, Array, Array, int]]:
    """Yield times in ms, positions of units, trials and number of trials, block by block."""
    for start in range(0, len(spikes.rows), TRIALS):
        part = spikes.part(start, start + TRIALS)
        raster = part.raster()
        yield (
            raster.time_ms,
            np.searchsorted(spikes.units, raster.unit),
            raster.trial,
            len(part.rows),
        )


def intervals(run: Run, snapshot: int = -1) -> Named:
    """Return ISI, CV, CV2 and LV of each unit at a snapshot; see ``IntervalSums``."""
    found: Named = {}
    for name in recorded_layers(run, spiking=True):
        spikes, total = run.spikes(name).snapshot(snapshot), None
        for times, units, trials, _ in blocks(spikes):
            sums = spike_trains.IntervalSums.of(times, units, trials, len(spikes.units))
            total = sums if total is None else total + sums
        if total is not None:
            found |= {f"{name}/{key}": values for key, values in total.statistics.items()}
    return found


def fano(run: Run, snapshot: int = -1) -> Named:
    """Return the Fano factor of each unit, over all trials and within labels."""
    found: Named = {}
    for name in recorded_layers(run, spiking=True):
        spikes = run.spikes(name).snapshot(snapshot)
        counted, labels = spikes.counts(), spikes.trials["label"]
        found[f"{name}/fano"] = spike_trains.fano(counted)
        found[f"{name}/fano_within"] = spike_trains.fano(counted, labels)
    return found


def psth(run: Run, snapshot: int = -1, bin_ms: Milliseconds = 0.0) -> Named:
    """Return mean rates after the onset, ``[label, unit, bin]``; a bin of 0: one step."""
    found: Named = {}
    for name in recorded_layers(run, spiking=True):
        spikes = run.spikes(name).snapshot(snapshot)
        known = np.unique(spikes.trials["label"])
        each = [spikes.select(label=int(label)).psth(bin_ms or None) for label in known]
        found[f"{name}/rate_hz"] = np.stack([one.rate_hz for one in each])
        found |= {f"{name}/label": known, f"{name}/start_ms": each[0].start_ms}
    return found


def correlations(run: Run, snapshot: int = -1) -> Named:
    """Return the correlations of units over stimuli, and those within labels."""
    found: Named = {}
    order, labels = stimuli(run, 2**20)
    for name in recorded_layers(run):
        values = run.activity(name)[snapshot][order]
        found[f"{name}/total"] = spike_trains.correlations(values)
        found[f"{name}/noise"] = spike_trains.noise_correlations(values, labels)
    return found


def tuning(run: Run, snapshot: int = -1) -> Named:
    """Return how units respond to labels; see ``TuningCurves``."""
    order, labels = stimuli(run, 2**20)
    found: Named = {}
    for name in recorded_layers(run):
        curves = selectivity.tuning(run.activity(name)[snapshot][order], labels)
        found |= {f"{name}/{key}": values for key, values in curves._asdict().items()}
    return found


def receptive_fields(run: Run, snapshot: int = -1) -> Named:
    """Return the mean stimulus that each unit responds to, ``[unit, ...]``."""
    probe = run.probe
    if probe is None or probe.input is None:
        raise RunFileError(f"{run.path}: holds no stimuli (they are stored up to 16 MiB)")
    return {
        f"{name}/field": selectivity.receptive_fields(run.activity(name)[snapshot], probe.input)
        for name in recorded_layers(run)
    }


def rdm(
    run: Run, snapshots: Count = 4, stimuli_most: Several = 200, distance: str = "correlation"
) -> Named:
    """Return dissimilarities of stimuli sorted by label, ``[snapshot, stimulus, stimulus]``."""
    order, labels = stimuli(run, stimuli_most)
    found: Named = {"label": labels, "probe": order}
    for name in recorded_layers(run):
        activity = run.activity(name)
        chosen = spread(len(activity), snapshots)
        found["snapshot"], found["step"] = chosen, activity.steps[chosen]
        found[f"{name}/rdm"] = np.stack(
            [dissimilarity.rdm(activity[int(s)][order], distance) for s in chosen]
        )
    return found


def rsa(run: Run, stimuli_most: Several = 200, method: str = "spearman") -> Named:
    """Return how alike dissimilarities and labels are, ``[snapshot]``, and layers at the end."""
    order, labels = stimuli(run, stimuli_most)
    ideal, found, last = dissimilarity.label_rdm(labels), {}, []
    for name in recorded_layers(run):
        made = [dissimilarity.rdm(values[order]) for values in run.activity(name)]
        last.append(made[-1])
        found[f"{name}/classes"] = np.array([dissimilarity.rsa(m, ideal, method) for m in made])
    pairs = [[dissimilarity.rsa(one, other, method) for other in last] for one in last]
    return found | {"layers": np.array(pairs)}


def cka(run: Run, snapshot: int = -1) -> Named:
    """Return debiased CKA of every two layers, and of each snapshot of a layer with its last."""
    names, found = recorded_layers(run), {}
    last = [run.activity(name)[snapshot] for name in names]
    for name, final in zip(names, last, strict=True):
        found[f"{name}/with_last"] = np.array(
            [similarity.cka(values, final) for values in run.activity(name)]
        )
    found["layers"] = np.array([[similarity.cka(one, other) for other in last] for one in last])
    return found


def dimensions(run: Run) -> Named:
    """Return participation ratio and effective rank of activity, ``[snapshot]``."""
    ratio = {
        f"{n}/participation_ratio": v for n, v in _by_snapshot(run, similarity.participation_ratio)
    }
    rank = {f"{n}/effective_rank": v for n, v in _by_snapshot(run, similarity.effective_rank)}
    return ratio | rank


def probes(
    run: Run,
    folds: Several = 5,
    shuffles: Annotated[int, Range(0, 10**6)] = 20,
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0,
    snapshots: Count = 8,
) -> Named:
    """Return what linear readers find of classes and inputs, with shuffled ones beside."""
    order, labels = stimuli(run, 2**20)
    probe = run.probe
    found: Named = {}
    how: dict[str, Any] = {"folds": folds, "shuffles": shuffles, "seed": seed}
    for name in recorded_layers(run):
        activity = run.activity(name)
        chosen = spread(len(activity), snapshots)
        found["snapshot"], found["step"] = chosen, activity.steps[chosen]
        each = [activity[int(s)][order] for s in chosen]
        told = [decoding.decode_classes(values, labels, **how) for values in each]
        found |= _stacked(f"{name}/classes", told)
        if probe is not None and probe.input is not None:
            seen = probe.input[order]
            read = [decoding.decode_inputs(values, seen, folds=folds, seed=seed) for values in each]
            found |= _stacked(f"{name}/inputs", read)
    return found


def _stacked(name: str, found: list[decoding.Decoded]) -> Named:
    fields = ("score", "shuffled")
    each = {f"{name}_{key}": np.stack([getattr(one, key) for one in found]) for key in fields}
    return each | {f"{name}_p": np.array([one.p for one in found])}


def gradients(run: Run) -> Named:
    """Return the measures of every layer's learning, ``[snapshot]`` each."""
    found = {f"{n}/{key}": v for n, table in run.learning.items() for key, v in table.items()}
    if not found:
        raise RunFileError(f"{run.path}: holds no gradients: train with training.probe=4")
    return found


def drift(run: Run) -> Named:
    """Return how far weights have gone, and their singular values, by snapshot."""
    found: Named = {}
    for name in run.params:
        course = np.asarray(run.weights(name), np.float64)
        found |= {f"{name}/{key}": values for key, values in weights.drift(course).items()}
        if course.ndim > 2:
            found[f"{name}/singular"] = weights.spectra(course)
    return found


ANALYSES: dict[str, Callable[..., Named]] = {
    "rates": rates,
    "silence": silence,
    "sparseness": sparseness,
    "intervals": intervals,
    "fano": fano,
    "psth": psth,
    "correlations": correlations,
    "tuning": tuning,
    "receptive_fields": receptive_fields,
    "rdm": rdm,
    "rsa": rsa,
    "cka": cka,
    "dimensions": dimensions,
    "probes": probes,
    "gradients": gradients,
    "drift": drift,
}
"""What ``biograd analyse RUN --what`` takes."""


def settings_of(name: str, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the settings of an analysis, those given in place of the defaults.

    Raises:
        RecipeError: there is no such analysis or setting, or it is of another type.
    """
    if name not in ANALYSES:
        raise RecipeError(f"analysis {name!r}: {nearest(name, ANALYSES)}")
    parameters = list(inspect.signature(ANALYSES[name]).parameters.values())[1:]
    hints = typing.get_type_hints(ANALYSES[name], include_extras=True)
    found = {parameter.name: parameter.default for parameter in parameters}
    for key, value in (given or {}).items():
        if key not in found:
            raise RecipeError(f"{name}: no setting {key!r}: {nearest(key, found)}")
        found[key] = convert(hints[key], value, "analyse", f"{name}.{key}")
    return found


def analyse(run: Run, name: str, **settings: Any) -> Named:
    """Return an analysis of a run by its name.

    Raises:
        RecipeError: there is no such analysis or setting.
        RunFileError: the run does not hold what it needs.
    """
    chosen = settings_of(name, settings)
    return ANALYSES[name](run, **chosen)
