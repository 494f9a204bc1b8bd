"""Recipes of models and datasets, damaged as text and as tables, and words of ``--set``."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from .harness import Target, said
from .mutators import TEXTS, damaged_bytes, damaged_json, places

MODELS = {
    "ann": 6, "spiking": 6, "ann_recurrent": 2, "spiking_recurrent": 2, "local_mixer": 2,
    "event_driven": 2, "brian2": 1, "circuit": 1,
}  # fmt: skip
"""Models by how often they are damaged; those of Brian2 take seconds."""
DATASETS = {"digits": 4, "yin_yang": 2}
SIZES = ["dataset.training_examples=16", "dataset.test_examples=10"]
NUMBERS = [
    "0",
    "-1",
    "1e-300",
    "1e300",
    "nan",
    "inf",
    "2147483648",
    "9" * 30,
    "9" * 5000,
    "0x" + "f" * 9000,
]
DEEP = ["[" * 3000, "[" * 70 + "]" * 70, "{a=" * 80 + "1" + "}" * 80, "a." * 200 + "b=1"]
WORDS = [
    *NUMBERS,
    *DEEP,
    "",
    "true",
    "[]",
    "{}",
    "[1,2]",
    "'a'",
    '"\\u0000"',
    "1979-05-27",
    *TEXTS[:-1],
]


def prepare(folder: Path) -> None:
    """Write the shipped recipes, and import what takes long."""
    import brian2  # noqa: F401
    import snntorch  # noqa: F401

    import biograd.experiment  # noqa: F401
    from biograd.recipes import names, shipped

    for kind in ("models", "datasets"):
        (folder / kind).mkdir()
        for name in names(kind):  # type: ignore[arg-type]
            text = (shipped(kind) / f"{name}.toml").read_text()  # type: ignore[arg-type]
            (folder / kind / f"{name}.toml").write_text(text)


def _drawn(stream: Random, weights: dict[str, int], folder: Path) -> str:
    known = {name: weight for name, weight in weights.items() if (folder / f"{name}.toml").exists()}
    return stream.choices(list(known), list(known.values()))[0]


def mutate(stream: Random, folder: Path) -> str:
    """Damage a model, a dataset or an assignment."""
    model = folder / "models" / f"{_drawn(stream, MODELS, folder / 'models')}.toml"
    dataset = folder / "datasets" / f"{_drawn(stream, DATASETS, folder / 'datasets')}.toml"
    assignments, kind = list(SIZES), stream.choice(["model", "model", "dataset", "set", "set"])
    if kind == "set":
        prefix, path = stream.choice([("", model), ("", model), ("dataset.", dataset)])
        how = _assignment(stream, tomllib.loads(path.read_text()))
        assignments.append(prefix + how)
    else:
        how = _file(stream, model if kind == "model" else dataset)
    words = ["--model", str(model), "--dataset", str(dataset)]
    for each in assignments:
        words += ["--set", each]
    train = stream.random() < 0.125
    (folder / "words.json").write_text(json.dumps({"words": words, "train": train}))
    return f"{kind} {model.stem} {dataset.stem} {how[:80]!r}"


def _file(stream: Random, path: Path) -> str:
    if stream.random() < 0.3:
        data, how = damaged_bytes(stream, path.read_bytes())
    elif stream.random() < 0.1:
        how = stream.choice(DEEP)
        data = b"deep = " + how.encode() + b"\n" + path.read_bytes()
    else:
        table, how = damaged_json(stream, tomllib.loads(path.read_text()))
        data = written(table if isinstance(table, dict) else {"all": table}).encode(
            "utf-8", "replace"
        )
    path.write_bytes(data)
    return how


def _assignment(stream: Random, table: dict[str, Any]) -> str:
    keys = [".".join(map(str, path)) for path in places(table)] + KEYS
    key = stream.choice([*keys, *keys, stream.choice(TEXTS[1:-1]), "", ".", "a..b", "network"])
    return f"{key}{stream.choice(['=', '=', '=', ''])}{stream.choice(WORDS)}"


KEYS = [
    "network.hidden", "network.gain", "network.dropout", "network.normalisation", "neuron.kind",
    "neuron.threshold", "neuron.time_constant_ms", "neuron.slope", "encoding.kind", "encoding.gain",
    "encoding.dt_ms", "encoding.duration_ms", "training.learning_rate", "training.batch_size",
    "training.weight_decay", "training.momentum", "training.optimiser", "training.loss",
    "training.probe", "training.passes", "training.seconds", "estimator", "estimators.weak.copies",
    "estimators.weak.sigma", "decorrelation.rule", "decorrelation.rate", "local.loss",
]  # fmt: skip


def written(value: Any) -> str:
    """Return a table as TOML, as far as it can be."""
    return "\n".join(
        f"{_key(key)} = {_value(item)}" for key, item in value.items() if item is not None
    )


def _key(key: Any) -> str:
    return json.dumps(str(key), ensure_ascii=True).replace("\\ud800", "?")


def _value(value: Any) -> str:
    if isinstance(value, dict):
        items = (f"{_key(key)} = {_value(item)}" for key, item in value.items() if item is not None)
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value if item is not None) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return {"inf": "inf", "-inf": "-inf"}.get(str(value), "nan")
    return _key(value) if isinstance(value, str) else repr(value)


def main(words: Sequence[str]) -> int:
    """Read what a mutant says and build its network; train one of eight."""
    from biograd.__main__ import main as console

    folder, out = words
    found = json.loads((Path(folder) / "words.json").read_text())
    given = ["--epochs", "1", "--offline", "-q", "-o", f"{out}/x.h5", *found["words"]]
    return console(["train", *given]) if found["train"] else said(lambda: _build(found["words"]))


def _build(words: Sequence[str]) -> None:
    from biograd import networks
    from biograd.configuration import TrainingRequest, configure
    from biograd.engine import attach

    _, model, _, dataset, *rest = words
    request = TrainingRequest(model, dataset, epochs=1, offline=True, assignments=tuple(rest[1::2]))
    configuration = configure(request)
    data = configuration.read()
    network = networks.build(configuration.recipe, data.shape, 2, timed=False)
    attach(network, configuration.estimator).detach()


TARGET = Target(prepare, mutate, (("{folder}", "{out}"),), main=main)
