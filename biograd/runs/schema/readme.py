"""The text that a run file carries, for a reader who has nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import h5py

from biograd.runs.layout import VERSION, LayerInfo

TEXT = """\
This file is one training of a neural network, written by biograd {version} (format biograd-run
{format}). It is plain HDF5 (gzip, shuffle): h5py, h5dump, HDFView, MATLAB, Octave, Julia and
xarray read it without biograd. Every data set has long_name, units and description, and named axes.
Texts at the root (/config, /environment, /summary, ...) are JSON in ASCII.

WHAT IT HOLDS
{groups}

LAYERS
{layers}

AXES
snapshot  a look at the network during training; its coordinate is the training step
probe     one of the stimuli of /probe, the same at every snapshot; coordinate: row of the split
unit      a recorded unit of a layer
time      a step of a trial, ms

TIME
{time}

A RASTER IN PYTHON
    import h5py
    f = h5py.File("run.h5")
    s, t = f["spikes/LAYER"], f["trials"]
    k = 0                                     # a row of /trials
    a, b = s["trial_ptr"][k], s["trial_ptr"][k + 1]
    time = s["timestamps"][a:b] - t["start_ms"][k]   # ms from the start of the trial
    unit = s["node_ids"][a:b]

A LEARNING CURVE
    e = f["scalars/epoch"]                    # e["step"][:], e["test_accuracy"][:], ...
    xarray.open_dataset("run.h5", group="layers/LAYER", engine="h5netcdf")

WITH BIOGRAD
    run = biograd.load("run.h5"); run.spikes("LAYER").trial(0); run.activity("LAYER")[-1]
    run.weights("PARAMETER")[0]; run.outputs()[-1]; biograd validate run.h5

UNITS
Seconds of model time are s, steps of a trial dt_ms (an attribute of the layer). Weights, rates of
rate layers and losses have no dimension ("1"). NaN is missing.

TO CITE
biograd {version}, with the attributes run_id and config_sha256 of this file; the training rule is
"{rule}", the data are "{dataset}".
"""
TRIALS = """\
Each row of /trials is one stimulus shown to the network at one snapshot, from rest. The trials are
laid one behind the other with gaps only so that SONATA readers get one list of spikes: THEY ARE NOT
ONE RECORDING. Rates, intervals between spikes and correlations mean nothing across them: cut the
spikes by /trials/start_ms and stop_ms, or by trial_ptr."""
STILL = "Nothing in this run has spikes: activity is one number a unit and stimulus."


def readme(output: h5py.File, layers: Mapping[str, LayerInfo]) -> str:
    """Return the text for a file that holds everything else."""
    said = output.attrs
    text = TEXT.format(
        version=said.get("biograd_version", ""),
        format=VERSION,
        groups="\n".join(f"/{name}" for name in sorted(output)),
        layers="\n".join(_layer(*pair) for pair in layers.items()) or "none",
        time=TRIALS if "trials" in output else STILL,
        rule=said.get("rule", ""),
        dataset=said.get("dataset", ""),
    )
    return text


def _layer(name: str, layer: LayerInfo) -> str:
    time = f", {layer.n_steps} steps of {layer.dt_ms} ms" if layer.kind == "spiking" else ""
    return f"{name}: {layer.kind}, {len(layer.units)} of {layer.n_units} units{time}"
