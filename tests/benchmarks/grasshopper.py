"""A neuron written in Brian2, fitted to the recorded spikes of a grasshopper's auditory receptor.

The neuron integrates a filtered sound, is reset at every recorded spike and carries two slower
traces of them; ``exp`` of a weighted sum is the expected number of spikes in a step of 1 ms.  Its
filter, time constants and weights learn by back-propagation from the first 6 s; the next 2 s say
when to stop; the last 2 s are looked at once: bits a spike (the gain in log likelihood over a
constant rate), and the coincidence factor (Kistler, Gerstner & van Hemmen 1997) of trains that
the fitted neuron makes by itself, in Brian2, hearing nothing but the sound.  Beside it Poisson
models: of the sound, and of sound and past spikes (generalised linear models).

    python tests/benchmarks/grasshopper.py --data-dir FOLDER     # 1 and 2: the two recordings

FOLDER holds ``grasshopper.npz`` (nitime's ``grasshopper_*.txt``; CRCNS ia-1, Rokem et al. 2006).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import PoissonRegressor
from torch import Tensor

import biograd
from biograd import tasks
from biograd.tasks import summed

Array = NDArray[np.float64]
DT_MS, LAGS, BURN_IN, ROW = 1.0, 20, 100, 1000
SPLITS = {"train": (0, 6000), "validation": (6000, 8000), "test": (8000, 10000)}
TASK = tasks.make("spike_train", 1, {"loss": "poisson", "dt_ms": DT_MS}, "grasshopper")
STEPS, RATE, EVERY = 150, 0.05, 10
TOLERANCE_MS, TRAINS = 2.0, 50
EQUATIONS = """
dv/dt = (I - (1 - s)*v - s*v_reset)/tau - s*(v - v_reset)/dt : 1
dh/dt = s/dt - (h + s)/tau_h : 1
da/dt = s/dt - (a + s)/tau_a : 1
I : 1
s : 1
"""
"""``s`` is 1 in the step behind a recorded spike: v starts anew, h and a jump."""
FREE = """
dv/dt = (sound(t) - v)/tau : 1
dh/dt = -h/tau_h : 1
da/dt = -a/tau_a : 1
u = bias + w_v*v + w_h*h + w_a*a : 1
"""


@dataclasses.dataclass(frozen=True)
class Recording:
    """Sound ``[T]`` in standard deviations, and spikes ``[T]``, in steps of 1 ms."""

    sound: Array
    spikes: Array

    @classmethod
    def read(cls, folder: Path, number: int) -> Recording:
        """Return a recording; the sound in dB, by mean and deviation of the training part."""
        with np.load(folder / "grasshopper.npz") as file:
            times, envelope = file[f"spike_us_{number}"], file[f"envelope_{number}"]
        level = 20 * np.log10(envelope.astype(float)).reshape(-1, 20).mean(1)
        own = level[slice(*SPLITS["train"])]
        spikes = np.bincount(times // 1000, minlength=len(level)).astype(float)
        return cls((level - own.mean()) / own.std(), spikes)

    def features(self) -> Array:
        """Return the sound of the last steps, and whether the neuron spiked in the one before."""
        lagged = [np.pad(self.sound, (lag, 0))[: len(self.sound)] for lag in range(LAGS)]
        return np.stack([*lagged, np.pad(self.spikes, (1, 0))[:-1]], 1)

    def rows(self, split: str) -> tuple[Tensor, Tensor]:
        """Return features and counts in rows of a second, each behind 100 ms without targets."""
        given, counts = (
            np.pad(v, ((BURN_IN, 0), (0, 0))) for v in (self.features(), self.spikes[:, None])
        )
        first, last = SPLITS[split]
        starts = range(first, last, ROW)
        inputs = np.stack([given[start : start + BURN_IN + ROW] for start in starts])
        targets = np.stack([counts[start : start + BURN_IN + ROW] for start in starts])
        targets[:, :BURN_IN] = np.nan
        return torch.from_numpy(inputs), torch.from_numpy(targets)


def neuron() -> Any:
    """Return the neuron as a user writes it, and the circuit that learns."""
    import brian2 as b2

    constants = {"tau": 5 * b2.ms, "tau_h": 3 * b2.ms, "tau_a": 50 * b2.ms, "v_reset": 0}
    cell = b2.NeuronGroup(
        1, EQUATIONS, method="euler", namespace=constants, name="cell", dt=DT_MS * b2.ms
    )
    learned = {name: [0.2, 5.0] for name in ("tau", "tau_h", "tau_a")}
    circuit = biograd.wrap(
        b2.Network(cell),
        [("cell", "I"), ("cell", "s")],
        [("cell", "v"), ("cell", "h"), ("cell", "a")],
        inputs=LAGS + 1,
        classes=1,
        readout="course",
        encoding={"kind": "given", "duration_ms": (BURN_IN + ROW) * DT_MS},
        populations={"cell": {"trainable": learned}},
    )
    with torch.no_grad():
        sound, spikes = (
            circuit.projections["stimulus_cell_I"],
            circuit.projections["stimulus_cell_s"],
        )
        spikes.weight.zero_()[0, LAGS] = 1.0  # s is what was recorded
        spikes.bias.zero_()
        sound.weight.fill_(0.1)
        circuit.readout.weight.copy_(torch.tensor([[1.0, -1.0, -0.1]]))
        circuit.readout.bias.fill_(-3.0)
    for parameter in spikes.parameters():
        parameter.requires_grad_(False)
    sound.weight.register_hook(lambda gradient: gradient * (torch.arange(LAGS + 1) < LAGS))
    sound.weight.data[0, LAGS] = 0.0
    return circuit


def bits(outputs: Tensor, targets: Tensor) -> float:
    """Return the gain in log likelihood over the mean rate of these rows, in bits a spike."""
    return TASK.figures(summed(TASK.metrics(outputs, targets)))["bits_per_spike"]


def fit(circuit: Any, recording: Recording, steps: int = STEPS) -> tuple[float, int]:
    """Train on the first part and keep the best step by the second; return its bits, the step."""
    inputs, targets = recording.rows("train")
    judged = recording.rows("validation")
    engine = biograd.attach(circuit, biograd.Backpropagation(), task=TASK)
    optimiser = torch.optim.Adam(engine.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    best, kept = (float("-inf"), 0), copy.deepcopy(circuit.state_dict())
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        engine(inputs, targets).backward()
        optimiser.step()
        schedule.step()
        if step % EVERY == 0 or step == steps:
            with torch.no_grad():
                found = bits(circuit(judged[0]), judged[1])
            if found > best[0]:
                best, kept = (found, step), copy.deepcopy(circuit.state_dict())
    engine.detach()
    circuit.load_state_dict(kept)
    return best


def free(circuit: Any, recording: Recording, split: str, trains: int = TRAINS) -> Array:
    """Return spikes ``[trains, T]`` of the fitted neuron in Brian2, from the sound alone."""
    import brian2 as b2

    first, last = SPLITS[split]
    given = torch.from_numpy(recording.features()[first - BURN_IN : last])
    with torch.no_grad():
        course = circuit.projections["stimulus_cell_I"](given)[:, 0].numpy()
        weights, bias = circuit.readout.weight[0].tolist(), float(circuit.readout.bias[0])
        times = {k: float(v[0]) * b2.second for k, v in circuit.layer("cell").constants().items()}
    names = {"sound": b2.TimedArray(course, dt=DT_MS * b2.ms), "bias": bias, **times}
    names |= dict(zip(("w_v", "w_h", "w_a"), weights, strict=True))
    cells = b2.NeuronGroup(
        trains,
        FREE,
        threshold="rand() < 1 - exp(-exp(u))",
        reset="v = 0; h += 1; a += 1",
        method="euler",
        namespace=names,
        dt=DT_MS * b2.ms,
    )
    monitor = b2.SpikeMonitor(cells)
    b2.seed(0)
    b2.Network(cells, monitor).run(len(course) * DT_MS * b2.ms)
    found = np.zeros((trains, len(course)))
    found[np.asarray(monitor.i), np.rint(monitor.t / (DT_MS * b2.ms)).astype(int)] = 1
    return found[:, BURN_IN:]


def coincidence(model: Array, data: Array, tolerance_ms: float = TOLERANCE_MS) -> float:
    """Return the coincidence factor of two trains of one length.

    ``(n - <n>) / ((N_data + N_model) / 2) / (1 - 2 f D)``: of n coincidences within D, with
    ``<n> = 2 f D N_data`` for a Poisson train of the model's rate f; 1: the same train, 0: chance.
    Every spike of the data takes part in one coincidence at most.
    """
    ours, theirs = np.flatnonzero(model) * DT_MS, np.flatnonzero(data) * DT_MS
    if not len(ours) or not len(theirs):
        return 0.0
    near = np.abs(theirs[:, None] - ours[None]).min(1) <= tolerance_ms
    # in steps, the window holds 2 D / dt + 1 of them
    chance = (2 * tolerance_ms / DT_MS + 1) * DT_MS * len(ours) / (len(data) * DT_MS)
    top = near.sum() - chance * len(theirs)
    return float(top / (0.5 * (len(ours) + len(theirs))) / (1 - chance))


def poisson(recording: Recording, history: int) -> tuple[float, Array]:
    """Return test bits of a generalised linear model, its penalty by validation, and its trains.

    Args:
        history: number of past steps whose spikes it sees; 0: of the sound alone.
    """
    own = recording.features()[:, :LAGS]
    past = [np.pad(recording.spikes, (lag, 0))[: len(own)] for lag in range(1, history + 1)]
    x, y = np.column_stack([own, *past]), recording.spikes
    parts = {name: slice(*ends) for name, ends in SPLITS.items()}

    def score(model: PoissonRegressor, part: slice) -> float:
        log = np.log(model.predict(x[part]))
        return bits(*(torch.from_numpy(v)[None, :, None] for v in (log, y[part])))

    fitted = [
        PoissonRegressor(alpha=alpha, max_iter=2000).fit(x[parts["train"]], y[parts["train"]])
        for alpha in (0.0001, 0.001, 0.01, 0.1)
    ]
    best = max(fitted, key=lambda model: score(model, parts["validation"]))
    return score(best, parts["test"]), _drawn(best, own, y, history, parts["test"])


def _drawn(model: Any, own: Array, spikes: Array, history: int, part: slice) -> Array:
    """Return trains of a linear model, each with its own past."""
    stream, begin = np.random.default_rng(0), part.start - BURN_IN
    past = np.zeros((TRAINS, history))
    found = []
    for step in range(begin, part.stop):
        drive = own[step] @ model.coef_[:LAGS] + past @ model.coef_[LAGS:] + model.intercept_
        fired = stream.random(TRAINS) < 1 - np.exp(-np.exp(np.broadcast_to(drive, TRAINS)))
        past = np.column_stack([fired, past[:, :-1]]) if history else past
        found.append(fired)
    return np.stack(found, 1).astype(float)[:, BURN_IN:]


def figures(folder: Path, number: int) -> dict[str, tuple[float, float]]:
    """Return bits a spike and coincidence factor of each model on the test part."""
    recording = Recording.read(folder, number)
    data = recording.spikes[slice(*SPLITS["test"])]

    def matching(trains: Array) -> float:
        return float(np.mean([coincidence(train, data) for train in trains]))

    circuit = neuron()
    judged, step = fit(circuit, recording)
    print(f"recording {number}: validation {judged:.3f} bits a spike at step {step}")
    inputs, targets = recording.rows("test")
    with torch.no_grad():
        own = bits(circuit(inputs), targets)
    print({k: f"{1000 * float(v[0]):.2f} ms" for k, v in circuit.layer("cell").constants().items()})
    found = {"Brian2 neuron": (own, matching(free(circuit, recording, "test")))}
    for name, history in (("Poisson, sound", 0), ("Poisson, sound and past spikes", 20)):
        gain, trains = poisson(recording, history)
        found[name] = (gain, matching(trains))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--numpy", action="store_true", help="run Brian2 without a compiler")
    options = parser.parse_args()
    if options.numpy:
        import brian2

        brian2.prefs.codegen.target = "numpy"
    found = {number: figures(options.data_dir, number) for number in (1, 2)}
    print("| model | 1: bits a spike | coincidence | 2: bits a spike | coincidence |")
    print("|---|---|---|---|---|")
    for name in found[1]:
        cells = [f"{value:.2f}" for number in (1, 2) for value in found[number][name]]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
