"""What every data set of a run is: a long name, units, one sentence, and names of its axes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from biograd.runs.layout import LayerInfo
from biograd.runs.schema.row_info import RowInfo


class Meaning(NamedTuple):
    """What the attributes of a data set say."""

    long_name: str
    units: str
    description: str


TEXT = "text"
SENTENCES: tuple[tuple[str, str, str, str], ...] = (
    (r"README", "how to read this file", TEXT, "layout, time base, examples, software"),
    (r"config", "configuration", TEXT, "JSON: what repeats the run"),
    (r"environment", "environment", TEXT, "JSON: versions and machine"),
    (r"hyperparameters", "hyperparameters", TEXT, "JSON: what another program logged"),
    (r"summary", "summary", TEXT, "JSON: what came out in the end"),
    (r"credit", "credit of parameters", TEXT, "JSON: shape and creditor of each parameter"),
    (r"code", "code of the user's own", TEXT, "JSON: text by part and file; never run"),
    (r"recording", "what was recorded", TEXT, "JSON: further data sets, classes, schedule"),
    (r"scalars/.*/step", "training step", "1", "number of updates so far"),
    (r"(scalars/.*|snapshots)/epoch", "epoch", "1", "passes through the training rows so far"),
    (r".*/wall_time", "wall-clock time", "s", "seconds since 1970-01-01 00:00 UTC"),
    (r"snapshots/step", "training step", "1", "step of the training after which was looked"),
    (r"probe/(index|probe)", "row of the split", "1", "row of each stimulus in its split"),
    (r"probe/label", "group of the stimulus", "1", "class, or group, of each stimulus"),
    (r"probe/split", "split", TEXT, "split that each stimulus is from"),
    (r"probe/input", "stimulus", "of the data", "the inputs that every snapshot shows"),
    (r"probe/target", "target", "of the data", "what the task asks for on each stimulus"),
    (r"probe/source_row", "row of the source", "1", "row in what the source gave"),
    (r".*/snapshot", "training step", "1", "step of the training after which was looked"),
    (r".*/(probe)", "stimulus", "1", "row of each stimulus in its split"),
    (r".*/unit", "unit", "1", "index of each recorded unit in its layer"),
    (r".*/label", "group of the stimulus", "1", "class, or group, of each stimulus"),
    (r".*/time", "time in the trial", "ms", "start of each step since that of the trial"),
    (r"layers/.*/stats/mean", "mean activity", "", "mean of the activity over the stimuli"),
    (r"layers/.*/stats/std", "spread of activity", "", "standard deviation over the stimuli"),
    (r"layers/.*/stats/frac_active", "active fraction", "1", "share of stimuli with activity > 0"),
    (r"layers/.*/stats/max", "largest activity", "", "maximum of the activity over the stimuli"),
    (r"layers/.*/activation", "activity", "", "output; of spiking layers mean spikes a step"),
    (r"layers/.*/potential", "membrane potential", "", "membrane potential after each step"),
    (r"layers/.*/synaptic_current", "synaptic current", "", "synaptic current after each step"),
    (r"layers/.*/adaptation", "adaptation", "", "adaptation variable after each step"),
    (r"layers/.*/credit", "credit", "", "what the rule delivers to each unit, as d loss/d output"),
    (r"weights/.*/value", "weights", "1", "values of the parameter"),
    (r"weights/.*/gradient", "gradient", "1", "the rule's gradient of the loss on the stimuli"),
    (r"outputs/value", "outputs", "1", "outputs of the network on the stimuli"),
    (r"spikes/.*/timestamps", "spike time", "ms", "in one raster of all trials, with gaps"),
    (r"spikes/.*/node_ids", "unit", "1", "unit of each spike"),
    (r"spikes/.*/trial_ids", "trial", "1", "row of /trials of each spike"),
    (r"spikes/.*/trial_ptr", "first spike of a trial", "1", "trial k has spikes [k] to [k + 1]"),
    (r"trials/start_ms", "start of the trial", "ms", "in the raster of all trials"),
    (r"trials/stop_ms", "end of the trial", "ms", "in the raster of all trials"),
    (r"trials/snapshot", "snapshot", "1", "row of /snapshots"),
    (r"trials/probe", "stimulus", "1", "row of /probe"),
    (r"trials/label", "group of the stimulus", "1", "class, or group, of the stimulus"),
    (r"params/.*/norm", "norm", "1", "Euclidean norm of the parameter"),
    (r"params/.*/update_norm", "way", "1", "Euclidean norm of the change since the last snapshot"),
    (r"params/.*/sparsity", "share of zeros", "1", "share of the entries that are 0"),
    (r"learning/.*/angle_deg", "angle", "deg", "between the estimate and the gradient"),
    (r"outputs/output", "output", "1", "number of the output: the class, where there are classes"),
    (r"weights/.*/to", "unit behind", "1", "index of the unit that receives"),
    (r"weights/.*/from", "unit before", "1", "index of the unit or channel that sends"),
    (r"weights/.*/kernel_.*", "place in the kernel", "1", "index along an axis of the kernel"),
    (r"probe/input_.*", "axis of the stimulus", "1", "index along an axis of a stimulus"),
    (r"probe/target_.*", "axis of the target", "1", "index along an axis of a target"),
    (r".*/(unit|output)_.*", "axis of the units", "1", "index along an axis of the units"),
    (r"trials/trial", "trial", "1", "row of /trials"),
    (r"spikes/.*/(spike|edge)", "count", "1", "an axis without coordinates"),
    (r"progress/(commit|field)", "index", "1", "row or column of the commits"),
    (r"learning/.*", "", "1", "measure of the layer's learning at the snapshots"),
    (r"scalars/.*", "", "1", "figure of this step or epoch; NaN: not measured"),
    (r"progress/commits", "commits", "1", "segment, step, rank and time in ns of every commit"),
    (r"checkpoints/.*/tensors", "checkpoint", "bytes", "the bytes of a safetensors file"),
    (r"checkpoints/.*/meta", "state of the training", TEXT, "JSON: what goes with the tensors"),
)
"""Pattern of the name, long name, units ("": those of the layer), description; the first holds."""

OWN = ("layers", "weights", "outputs", "params", "learning")
"""Groups whose data sets may be coordinates."""

GROUPS = {
    "scalars": "numbers of the training, one group a stream, one row a step or epoch",
    "probe": "the stimuli of all snapshots",
    "snapshots": "when the network was looked at",
    "layers": "what each layer did on the stimuli at the snapshots",
    "spikes": "spikes of each layer on the stimuli, in the layout of SONATA",
    "trials": "one presentation of one stimulus at one snapshot; each begins at rest: no recording "
    "goes on from one trial to the next",
    "params": "measures of each parameter at the snapshots",
    "weights": "values of each parameter at the snapshots",
    "outputs": "outputs of the network on the stimuli at the snapshots",
    "learning": "measures of the learning of each layer at the snapshots",
    "progress": "how the file was written",
    "checkpoints": "the state of the training, to go on from",
}
"""What the groups at the root hold."""


def meaning(name: str, layers: Mapping[str, LayerInfo], rows: Mapping[str, RowInfo]) -> Meaning:
    """Return what a data set is."""
    for pattern, long_name, units, description in SENTENCES:
        if re.fullmatch(pattern, name):
            own = long_name or name.rpartition("/")[2].replace("_", " ")
            return Meaning(own, units or _of_layer(name, layers, rows), description)
    return Meaning(name.rpartition("/")[2].replace("_", " "), "1", "of another program")


def _of_layer(name: str, layers: Mapping[str, LayerInfo], rows: Mapping[str, RowInfo]) -> str:
    if name in rows:
        return rows[name].units
    kind = layers[name.split("/")[1]].kind if name.split("/")[1] in layers else ""
    return {"rate": "1", "spiking": "spikes/step"}.get(kind, "unknown")


def units_of(name: str, layers: Mapping[str, LayerInfo], rows: Mapping[str, RowInfo]) -> str:
    """Return the text of the ``units`` attribute of a data set; "1": without a dimension."""
    return meaning(name, layers, rows).units


def axes(name: str, dimensions: int, rows: Mapping[str, RowInfo]) -> list[str]:
    """Return the names of the axes of a data set.

    >>> axes("layers/fc/activation", 3, {}), axes("trials/label", 1, {}), axes("probe/input", 3, {})
    (['snapshot', 'probe', 'unit'], ['trial'], ['probe', 'input_0', 'input_1'])
    """
    top, *rest = name.split("/")
    last = (rest or [top])[-1]
    if name in rows:
        found = ["snapshot", *rows[name].dims]
    elif dimensions == 1 and last in ("unit", "label", "time", "probe", "snapshot") and top in OWN:
        found = [{"label": "probe"}.get(last, last)]
    elif top == "layers":
        found = ["snapshot", "probe", "unit"] if last == "activation" else ["snapshot", "unit"]
    elif top == "spikes":
        found = ["edge" if last == "trial_ptr" else "spike"]
    elif top == "probe":
        found = ["probe", *(f"{last}_{axis}" for axis in range(dimensions - 1))]
    else:
        by_top = {
            "scalars": ["step"],
            "snapshots": ["step"],
            "trials": ["trial"],
            "progress": ["commit", "field"],
            "params": ["snapshot"],
            "learning": ["snapshot"],
        }
        found = by_top.get(top, [last])
    return [*found, *(f"axis_{k}" for k in range(len(found), dimensions))][:dimensions]
