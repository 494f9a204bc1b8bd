"""What networks and rules do today, frozen: weights, sites, refusals, losses, gradients, runs.

::

    python tests/golden.py record           # writes tests/golden/cells.json, runs.json, runs.tar.xz
    python tests/golden.py compare [--bits] [--runs] [NETWORK or RULE ...]

``compare`` says for every network and rule whether it is equal bit for bit, within ``TOLERANCE``,
or differs, and exits with 1 if one differs (``--bits``: if one is not equal bit for bit).  Bits are
those of one machine and one version of torch and numpy: elsewhere, only the tolerance means much.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import biograd
from biograd.estimators import ESTIMATORS, make

HERE = Path(__file__).parent / "golden"
NETWORKS = tuple(sorted(path.stem for path in (HERE / "networks").glob("*.toml")))
SHAPE, CLASSES, ROWS, STEPS = (1, 4, 4), 3, 12, 3
FIELDS = ("name", "modules", "time", "activity", "current", "block", "inner")
KEPT = (0, STEPS - 1)
"""Steps whose gradients are kept: synthesisers start at zero, so that the first shows little."""
HEADS = {"loss": "cross_entropy"}
MIXED = HEADS | {"cells": "patch_group", "groups": 2, "normalise": True}
LOCAL = {"ann_local": HEADS, "spiking_local": HEADS, "local_mixer": MIXED}
NOISE = {"copies": 5, "sigma": 0.2}
SETTINGS = {"weak": NOISE, "node_perturbation": NOISE, "weight_perturbation": {"copies": 5}}
OUTSIDE = {"ann_batch_norm": "freeze", "ann_channels": "freeze", "brian2_trainable": "freeze"}
"""What becomes of normalisations and learned constants that a rule does not reach."""
KEPT_RUNS = HERE / "runs.tar.xz"
RUN_NETWORKS = ("ann", "spiking", "ann_recurrent", "circuit")
RUN_RULES = ("backprop", "weak", "direct_feedback", "eprop")
RUN_SETTINGS = (
    *("network.dtype=float32", "decorrelation.rule=kappa", "decorrelation.rate=0.001"),
    *("training.batch_size=16", "training.learning_rate=0.01", "training.schedule=cosine"),
    "training.epochs=1",
)
TOLERANCE, FLOAT32, RUNS = 1e-6, 1e-5, 1e-3
"""Relative to the norm of a tensor; the runs and one network compute in float32."""
Summary = list[Any]
Cell = dict[str, Any]


def summary(values: Tensor) -> Summary:
    """Return digest, shape, norm, and the sum of the values weighted by fixed random numbers."""
    array = np.ascontiguousarray(values.detach().cpu().numpy())
    digest = hashlib.sha256(str(array.dtype).encode() + array.tobytes()).hexdigest()[:16]
    flat = array.astype(np.float64).ravel()
    weights = np.random.default_rng(0).standard_normal(flat.size)
    measures = (np.linalg.norm(flat), flat @ weights)
    return [digest, list(array.shape), *(float(f"{value:.10g}") for value in measures)]


def batch(network: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, targets and row numbers."""
    inputs = torch.from_numpy(np.random.default_rng(1).random((ROWS, *SHAPE)))
    index = torch.arange(ROWS)
    return inputs.to(next(network.parameters()).dtype), index % CLASSES, index


def described(network: nn.Module) -> Cell:
    """Return keys, initial weights and sites of a network."""
    sites = [[getattr(site, field) for field in FIELDS] for site in network.sites]  # type: ignore
    weights = {name: summary(value) for name, value in network.state_dict().items()}
    return {"sites": json.loads(json.dumps(sites)), "tensors": weights}


def trained(network: nn.Module, rule: str, name: str) -> Cell:
    """Return losses and gradients of a few steps of Adam, and the state that they lead to."""
    local = biograd.LocalLosses(**LOCAL[name]) if name in LOCAL else None
    rule_of = make(rule, SETTINGS.get(rule))
    outside: Any = OUTSIDE.get(name, "refuse")
    engine = biograd.attach(network, rule_of, local=local, seed=5, outside=outside)
    inputs, targets, index = batch(network)
    found: dict[str, Summary] = {}
    try:
        engine.prepare(inputs, targets)
        optimiser = torch.optim.Adam(engine.parameters(), 1e-2)
        names = {id(parameter): key for key, parameter in network.named_parameters()}
        for step in range(STEPS):
            result = engine(inputs, targets, index=index)
            result.backward()
            found[f"{step} losses"] = summary(result.losses)
            for number, parameter in enumerate(engine.parameters() if step in KEPT else ()):
                if parameter.grad is not None:
                    key = names.get(id(parameter), f"rule {number}")
                    found[f"{step} gradient {key}"] = summary(parameter.grad)
            optimiser.step()
            optimiser.zero_grad()
            engine.update()
    finally:
        engine.detach()
    parts = [value.flatten().double() for value in network.state_dict().values()]
    return {"passes": result.passes, "tensors": found | {"state": summary(torch.cat(parts))}}


def tried(name: str, rule: str = "", disturb: float = 0.0) -> Cell:
    """Return what a network does with a rule, or the reason why it is refused.

    ``disturb`` is added to one weight, by which a comparison shows that it can fail.
    """
    try:
        network = biograd.build(HERE / "networks" / f"{name}.toml", SHAPE, CLASSES, seed=3)
        with torch.no_grad():
            next(network.parameters()).view(-1)[0] += disturb
        return trained(network, rule, name) if rule else described(network)
    except Exception as error:  # an error of another kind is kept, too: it must stay as it is
        return {"refused": f"{type(error).__name__}: {error}"}


def table(names: Iterable[str], rules: Iterable[str]) -> Iterator[tuple[str, Cell]]:
    """Yield the cells of networks and rules, and those of the networks alone."""
    for name, rule in itertools.product(names, ("", *rules)):
        yield f"{name} / {rule}" if rule else name, tried(name, rule)


def continued(path: Path) -> Cell:
    """Return losses and parameters of a run that goes on from its checkpoint to its end."""
    try:
        with biograd.resume(path) as run:
            losses = run.scalars("train_step")["loss"]
            tensors, meta = run.checkpoint()
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    found = {"losses": summary(torch.as_tensor(np.asarray(losses)))}
    found |= {k: summary(v) for k, v in sorted(tensors.items()) if k.startswith("network.")}
    return {"step": meta["step"], "tensors": found}


def all_continued(names: Iterable[str] = ("*",)) -> Iterator[tuple[str, Cell]]:
    """Yield what becomes of copies of the kept runs whose names match."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(KEPT_RUNS) as archive:
        archive.extractall(folder, filter="data")
        for path in sorted(path for name in names for path in Path(folder).glob(f"{name}.h5")):
            yield path.name, continued(path)


def interrupted(name: str, rule: str, path: Path) -> None:
    """Write a run that ends after four of its ten steps; says nothing of the machine."""
    from biograd import experiment  # only today's version need be able to do this
    from biograd.progress import Progress

    experiment.environment = lambda _device: {}  # type: ignore[assignment]
    files = [str(HERE / "networks" / f"{name}.toml"), str(HERE / "digits.toml")]
    request = experiment.TrainingRequest(
        *files, rule, seed=1, device="cpu", assignments=RUN_SETTINGS
    )
    experiment.begin(experiment.configure(request), path, Progress(), force=True).run(until=4)


def drift(new: Cell, old: Cell) -> tuple[float, str]:
    """Return by how much two cells differ at most, relative to a norm, and where; 0: no bit."""
    if new.keys() != old.keys() or "refused" in old:
        said = [str(cell.get("refused", "runs")) for cell in (old, new)]
        return (0.0, "") if new == old else (math.inf, " -> ".join(said))
    for field in old.keys() - {"tensors"}:
        if new[field] != old[field]:
            return math.inf, f"{field}: {old[field]} -> {new[field]}"
    now, then = new["tensors"], old["tensors"]
    if list(now) != list(then):
        return math.inf, f"names: {sorted(set(now) ^ set(then)) or 'in another order'}"
    floor = 1e-6 * max((value[2] for value in then.values()), default=0.0)
    return max(((_gap(now[key], then[key], floor), key) for key in then), default=(0.0, ""))


def _gap(new: Summary, old: Summary, floor: float) -> float:
    if new == old or new[1] != old[1]:
        return 0.0 if new == old else math.inf
    gap = max(abs(new[2] - old[2]), abs(new[3] - old[3]))
    gap = math.inf if math.isnan(gap) else gap / max(old[2], floor, 1e-300)
    return max(gap, 1e-17)  # other bits are never no difference


def verdict(key: str, new: Cell, old: Cell) -> tuple[str, str]:
    """Return "bits", "close" or "DIFFERS" for a cell, and what there is to say of it."""
    gap, where = drift(new, old)
    if not gap:
        return "bits", "refused as before" if "refused" in old else ""
    allowed = RUNS if key.endswith(".h5") else FLOAT32 if "float32" in key else TOLERANCE
    return "close" if gap <= allowed else "DIFFERS", f"{gap:.1e} {where}"


def recorded() -> dict[str, Cell]:
    cells, runs = ((HERE / name).read_text() for name in ("cells.json", "runs.json"))
    return json.loads(cells) | json.loads(runs)


def quiet() -> None:
    """Let everything run on one thread, and Brian2 without a compiler."""
    import brian2

    torch.set_num_threads(1)
    brian2.prefs.codegen.target = "numpy"


def write(path: Path, cells: dict[str, Cell]) -> None:
    lines = [f"{json.dumps(key)}: {json.dumps(cell)}" for key, cell in cells.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def record() -> None:
    """Write what this version does."""
    write(HERE / "cells.json", dict(table(NETWORKS, ESTIMATORS)))
    with tempfile.TemporaryDirectory() as folder, tarfile.open(KEPT_RUNS, "w:xz") as archive:
        for name, rule in itertools.product(RUN_NETWORKS, RUN_RULES):
            path = Path(folder) / f"{name}-{rule}.h5"
            interrupted(name, rule, path)
            entry = tarfile.TarInfo(path.name)  # without the name of a user
            entry.size = path.stat().st_size
            archive.addfile(entry, path.open("rb"))
    write(HERE / "runs.json", dict(all_continued()))


def compare(words: Iterable[str] = (), bits: bool = False, runs: bool = False) -> bool:
    """Print how this version differs from the recorded one; return whether it does not."""
    words, old, counts = set(words), recorded(), dict.fromkeys(("bits", "close", "DIFFERS"), 0)
    names = [name for name in NETWORKS if name in words] or NETWORKS
    rules = [rule for rule in ESTIMATORS if rule in words] or list(ESTIMATORS)
    cells = [] if runs else [table(names, rules)]
    cells += [] if words else [all_continued()]
    for key, cell in itertools.chain(*cells):
        state, text = verdict(key, cell, old.get(key, {}))
        counts[state] += 1
        print(f"{key:50} {state:8} {text}")
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return not counts["DIFFERS"] and not (bits and counts["close"])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    quiet()
    command, *rest = sys.argv[1:] or [""]
    if command not in ("record", "compare"):
        sys.exit(__doc__)
    if command == "record":
        sys.exit(record())
    named = [word for word in rest if not word.startswith("--")]
    sys.exit(not compare(named, "--bits" in rest, "--runs" in rest))
