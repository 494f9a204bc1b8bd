"""No key of a recipe is silent: it changes what is built or learned, or is refused by name."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import biograd
from biograd.circuit.unread import TAKES
from biograd.configuration import TrainingRequest, configure, without_effect
from biograd.contracts import ActivityBounds
from biograd.data import Arrays, Dataset
from biograd.encoding import ENCODINGS
from biograd.engine.settings import unread
from biograd.errors import RecipeError
from biograd.estimators import ESTIMATORS
from biograd.experiment import Experiment
from biograd.neurons import NEURONS
from biograd.recipes import (
    DecorrelationRecipe,
    EncodingRecipe,
    LocalRecipe,
    MixerRecipe,
    ModelRecipe,
    NetworkRecipe,
    ProjectionRecipe,
    TrainingRecipe,
    load_model,
)
from biograd.tasks import Classes

CIRCUIT = """
[network]
kind = "circuit"
[populations.a]
units = 16
[populations.b]
units = 16
[projections.to_a]
source = "input"
target = "a"
[projections.x]
source = "a"
target = "b"
kind = {kind!r}
{more}
[encoding]
duration_ms = 8.0
gain = 4.0
"""
TRIAL = "\n[encoding]\nduration_ms = 8.0\n"
NETWORKS = {
    "rate": "[network]\nkind = 'rate'\nhidden = [16, 6]\n",
    "rate, convolutions": "[network]\nkind = 'rate'\nchannels = [2]\npooling = 2\nhidden = [6]\n",
    "rate, recurrent": "[network]\nkind = 'rate'\nrecurrent = true\nhidden = [16, 6]\n" + TRIAL,
    "rate, none hidden": "[network]\nkind = 'rate'\nchannels = [2]\npooling = 2\nhidden = []\n",
    "spiking": "[network]\nkind = 'spiking'\nhidden = [16, 6]\n[neuron]\nresistance = 8.0\n"
    + TRIAL,
    "counts": "[network]\nkind='spiking'\nreadout='rate'\n[neuron]\nresistance=8.0\n" + TRIAL,
    "events": "[network]\nkind = 'spiking'\nhidden = [16]\n[neuron]\nkind = 'event_driven'\n"
    "resistance = 20.0\n" + TRIAL,
    "mixer": "[network]\nkind = 'local_mixer'\n[mixer]\nchannels = 8\n",
    "circuit": CIRCUIT.format(kind="dense", more=""),
}
OTHER: dict[str, Any] = {
    "network.kind": None, "network.substrate": None, "network.readout": "'first_spike'",
    "network.hidden": "[5, 4]", "network.channels": "[3]", "network.kernel": 5,
    "network.stride": 1, "network.pooling": 1, "network.pool": "'max'", "network.recurrent": "true",
    "network.residual": "true", "network.activation": "'tanh'", "network.normalisation": "'layer'",
    "network.label_inputs": "true", "network.dropout": 0.5, "network.gain": 2.5,
    "network.delays": "{ start_ms = 2.0, longest_ms = 4.0 }",
    "network.dtype": "'float64'", "network.readout_time_constant_ms": 3.0,
    "mixer.blocks": 2, "mixer.patches": 2, "mixer.channels": 12, "mixer.groups": 2,
    "encoding.kind": None, "encoding.dt_ms": 0.5, "encoding.duration_ms": 12.0,
    "encoding.gain": 1.7, "encoding.max_rate_hz": 700.0, "encoding.time_constant_ms": 2.5,
    "encoding.threshold": 0.35, "encoding.settings": None,
    "decorrelation.rule": "'kappa'", "decorrelation.rate": 0.05, "decorrelation.kappa": 0.9,
    "decorrelation.sample": 0.4, "decorrelation.centre": "true",
    "local.loss": "'cross_entropy'", "local.cells": "'group'", "local.groups": 2,
    "local.sites": "['blocks.0.synapse']", "local.beta": 0.2, "local.normalise": "true",
    "activity.weight": 3.0, "activity.lower": 0.4, "activity.upper": 0.3,
    "activity.per": "'layer'", "activity.sites": "['blocks.0.synapse']",
    "training.outside": None,
    "training.epochs": None, "training.passes": None, "training.seconds": None,
    "training.probe": None, "training.start_rate": 0.2, "training.batch_size": 3,
    "training.optimiser": "'sgd'",
    "training.learning_rate": 0.03, "training.momentum": 0.2, "training.weight_decay": 0.1,
    "training.schedule": "'cosine'", "training.warm_up": 0.5, "training.decay": 0.5,
    "training.milestones": "[0.01]", "training.clip": 1e-7, "training.accumulate": None,
    "training.optimiser_settings": None, "training.wait": None, "training.stop_after": None,
    "training.keep": None, "training.metrics": None, "training.precision": None,
    "training.loss": "'squared_error'",
}  # fmt: skip
"""Another value of every key; None: what it changes is seen elsewhere (budgets, measurements)."""
TABLES = {
    "network": NetworkRecipe,
    "mixer": MixerRecipe,
    "encoding": EncodingRecipe,
    "decorrelation": DecorrelationRecipe,
    "local": LocalRecipe,
    "activity": ActivityBounds,
    "training": TrainingRecipe,
}


@functools.cache
def data() -> Dataset:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.rand(12, 1, 4, 4, generator=draw)
    rows = Arrays(inputs, torch.arange(12) % 3)
    return Dataset("some", Classes(3), rows, test=rows)


@functools.cache
def result(path: Path, text: str, rule: str, *assignments: str) -> str:
    """Return a digest of what a recipe builds and of what three steps of it learn."""
    path = path / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.toml"
    path.write_text(text)
    request = TrainingRequest(
        str(path), estimator=rule, device="cpu", assignments=assignments, batch_size=None
    )
    made = Experiment(configure(request), data())
    total = hashlib.sha256(repr(made.network).encode())
    for record, _ in zip(made.trainer.steps(), range(3), strict=False):
        total.update(f"{record.loss}".encode())
    for name, value in made.network.state_dict().items():
        total.update(name.encode() + value.double().numpy().tobytes())
    made.network.eval()
    total.update(made.network(data().train.inputs.to(next(made.network.parameters()))).detach()
                 .double().numpy().tobytes())  # fmt: skip
    return total.hexdigest()


def silent(path: Path, text: str, rule: str, key: str, value: Any) -> str:
    """Return what is wrong with a key: "" if it acts, or is refused by its name."""
    if f"{key.rpartition('.')[2]} = {value}" in text:
        return ""
    try:
        changed = result(path, text, rule, f"{key}={value}")
    except RecipeError as error:
        name = key.rpartition(".")[2]
        return "" if name in str(error) else f"{key}: {error}"
    return "" if changed != result(path, text, rule) else f"{key} does nothing"


def test_every_key_is_tried() -> None:
    known = {f"{t}.{f.name}" for t, make in TABLES.items() for f in dataclasses.fields(make)}
    assert {*OTHER} == known
    assert {*TAKES} == {"rate", "spiking", "circuit", "local_mixer"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("table", TABLES)
def test_no_key_is_silent(place: Path, network: str, table: str) -> None:
    found = [
        silent(place, NETWORKS[network], "backprop", key, value)
        for key, value in OTHER.items()
        if key.startswith(f"{table}.") and value is not None
    ]
    # events have no steps: only what is recorded of them is binned
    exempt = "encoding.dt_ms does nothing" if network == "events" else ""
    assert not [text for text in found if text and text != exempt]


@pytest.mark.parametrize("kind", ["poisson", "latency", "rows", "delta", "current"])
def test_no_key_of_an_encoding_is_silent(place: Path, kind: str) -> None:
    text = NETWORKS["spiking"] + f"kind = {kind!r}\n"
    found = [
        silent(place, text, "backprop", key, value)
        for key, value in OTHER.items()
        if key.startswith("encoding.") and value is not None
    ]
    assert not [text for text in found if text]
    assert ENCODINGS[kind].reads is not None


SWITCHED = {
    "decorrelation": ["[decorrelation]\nrule = 'kappa'\n", "[decorrelation]\nrule = 'copi'\n"],
    "local": ["[local]\nloss = 'cross_entropy'\ngroups = 2\nnormalise = true\n",
              "[local]\nloss = 'predsim'\n",
              "[local]\nloss = 'fixed_readout'\n"],
    "training": ["[training]\noptimiser = 'sgd'\n", "[training]\noptimiser = 'adamw'\n"],
}  # fmt: skip


@pytest.mark.parametrize("table, more", [(t, m) for t, texts in SWITCHED.items() for m in texts])
def test_no_key_is_silent_beside_a_choice(place: Path, table: str, more: str) -> None:
    found = [
        silent(place, NETWORKS["rate"] + more, "backprop", key, value)
        for key, value in OTHER.items()
        if key.startswith(f"{table}.") and value is not None and str(value) not in more
    ]
    # the losses of groups have the exact gradient of their block's: only estimates differ
    assert not [text for text in found if text and text != "local.cells does nothing"]


PROJECTIONS: dict[str, Any] = {
    "kind": None, "source": None, "target": None, "variable": "'J'", "sign": "'inhibitory'",
    "density": 0.4, "channels": 4, "kernel": 1, "stride": 1, "padding": "'valid'",
    "pooling": 2, "pool": "'sum'", "delay_ms": 2.0, "bias": "false",
    "delays": "{ start_ms = 2.0, longest_ms = 4.0 }",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["dense", "masked", "sparse", "one_to_one", "skip"])
def test_no_key_of_a_projection_is_silent(place: Path, kind: str) -> None:
    assert {*PROJECTIONS} == {field.name for field in dataclasses.fields(ProjectionRecipe)}
    more = "density = 0.7\n" if kind in ("masked", "sparse") else ""
    text = CIRCUIT.format(kind=kind, more=more)
    if kind == "skip":
        text = text.replace("[encoding]", "[projections.y]\nsource='a'\ntarget='b'\n[encoding]")
    found = [
        silent(place, text, "backprop", f"projections.x.{key}", value)
        for key, value in PROJECTIONS.items()
        if value is not None and f"{key} =" not in more
    ]
    assert not [text for text in found if text]


RULES: dict[str, list[tuple[str, Any]]] = {
    "weak": [("ridge", 0.7), ("time_bin", 2), ("method", "'score'"), ("copies", 5)],
    "likelihood_ratio": [("baseline", "'none'"), ("time_bin", 2), ("shaping", "'rank'")],
    "forward_gradient_activity": [("auxiliary", 4), ("time_bin", 1), ("shared", "true")],
    "decoupling": [("stiffest", 200.0), ("growth", 1.5)],
    "synthetic_gradient": [("hidden", "[9]"), ("window", 2), ("conspiring", 0.5)],
    "backprop": [("window", 2)],
    "direct_feedback": [("through_time", "true"), ("shared", "true"), ("scale", 3.0)],
    "node_perturbation": [("time_bin", 3), ("activity", "'measured'")],
}


@pytest.mark.parametrize("network", ["rate", "rate, recurrent", "spiking"])
@pytest.mark.parametrize("rule", RULES)
def test_no_setting_of_a_rule_is_silent(place: Path, network: str, rule: str) -> None:
    if rule == "decoupling" and network == "spiking":
        pytest.skip("keeps no spikes")
    known = inspect.signature(ESTIMATORS[rule]).parameters
    found = [
        silent(place, NETWORKS[network], rule, f"estimators.{rule}.{key}", value)
        for key, value in RULES[rule]
    ]
    assert {key for key, _ in RULES[rule]} <= {*known}
    assert not [text for text in found if text]


def test_settings_beside_others_that_make_them_idle() -> None:
    for make, words in (
        (
            lambda: biograd.WeakGradient(method="score", ridge=0.5),
            "ridge = 0.5: has no effect with",
        ),
        (lambda: biograd.LikelihoodRatio(antithetic=True, baseline="none"), "baseline = 'none'"),
        (lambda: biograd.Decorrelation("copi", kappa=0.2), "kappa = 0.2: has no effect with rule"),
        (lambda: biograd.LocalLosses("cross_entropy", beta=0.5), "beta = 0.5: has no effect"),
        (lambda: biograd.Decoupling(stiffest=50.0), "stiffest = 50.0: has no effect with growth"),
    ):
        with pytest.raises(RecipeError, match=words):
            make()


def written(place: Path, text: str) -> str:
    path = place / "own.toml"
    path.write_text(text)
    return str(path)


def test_a_key_of_a_file_that_nothing_reads_is_refused_with_the_file(place: Path) -> None:
    path = written(place, "[training]\nmomentum = 0.9\n")  # its default, and given all the same
    with pytest.raises(RecipeError, match=r"own\.toml: training\.momentum: has no effect with"):
        configure(TrainingRequest(path))
    path = written(place, "[dataset.mnist.local]\nbeta = 0.5\n")
    with pytest.raises(RecipeError, match=r"own\.toml: dataset\.mnist: local\.beta: has no effect"):
        configure(TrainingRequest(path))  # whichever dataset is used


def test_what_is_asked_for_may_leave_keys_of_a_file_without_effect() -> None:
    recipe = configure(TrainingRequest("ann", assignments=("decorrelation.rule=off",))).recipe
    assert recipe.decorrelation == DecorrelationRecipe()
    spiking = configure(TrainingRequest("spiking", assignments=("network.kind=rate",))).recipe
    assert spiking.encoding == EncodingRecipe()
    assert not {key for key in unread(spiking) if key in ("network.hidden", "training.loss")}


def test_a_setting_of_another_rule_has_no_effect() -> None:
    asked = TrainingRequest(estimator="backprop", assignments=("estimators.weak.copies=5",))
    with pytest.raises(RecipeError, match="has no effect: the estimator is 'backprop'"):
        configure(asked)


def test_keys_of_the_network_have_no_effect_on_a_module_of_ones_own() -> None:
    own = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    with pytest.raises(RecipeError, match=r"network\.hidden: has no effect on a module of yours"):
        configure(TrainingRequest(own, assignments=("network.hidden=[4]",)))


def test_common_settings_need_an_effect_in_one_run() -> None:
    common = ("encoding.gain=0.5", "training.epochs=1")
    runs = [TrainingRequest(name, common=common) for name in ("ann", "spiking")]
    assert without_effect(runs) == {"encoding.gain=0.5": [0]}
    with pytest.raises(RecipeError, match=r"--set encoding\.gain=0\.5: has no effect in any"):
        without_effect(runs[:1])


def test_a_common_setting_of_one_rule_is_that_rules_alone() -> None:
    common = ("estimators.weak.copies=5",)
    runs = [TrainingRequest(estimator=name, common=common) for name in ("weak", "backprop")]
    assert without_effect(runs) == {}
    with pytest.raises(RecipeError, match=r"estimators\.weak\.copies=5: has no effect in any"):
        without_effect(runs[1:])


def test_objects_are_refused_what_they_do_not_read() -> None:
    recipe = ModelRecipe(encoding=EncodingRecipe(gain=3.0))
    with pytest.raises(RecipeError, match=r"encoding\.gain: has no effect on a network without"):
        biograd.build(recipe, 5, 3)
    with pytest.raises(RecipeError, match=r"network\.hidden = \[\]: give a layer"):
        biograd.build(ModelRecipe(network=NetworkRecipe(hidden=())), 5, 3)
    narrow = NetworkRecipe(hidden=(4,), residual=True)
    with pytest.raises(RecipeError, match=r"network\.residual: has no effect: no dense layer"):
        biograd.build(ModelRecipe(network=narrow), 5, 3)


@pytest.mark.parametrize("kind", sorted({*NEURONS} - {"event_driven"}))
def test_another_kind_of_neuron_leaves_out_what_it_has_not(kind: str) -> None:
    recipe = load_model("spiking", "", None, [f"neuron.kind={kind}"])
    assert recipe.neuron.kind == kind


@pytest.mark.parametrize(
    "key", ["epoch_rows=5", "workers=2", "timed=true", "split=[0.5, 0.2, 0.3]", "units=3",
            "steps=9", "time_unit=s", "keys={x='a'}", "paths={train='a'}", "settings={rows=3}"],
)  # fmt: skip
def test_a_key_that_a_source_does_not_read_is_refused(key: str) -> None:
    name = key.partition("=")[0]
    asked = TrainingRequest("ann", assignments=(f"dataset.{key}",), device="cpu")
    with pytest.raises(RecipeError, match=rf"{name}"):
        configure(asked).read()


def test_every_source_says_what_it_reads() -> None:
    from biograd.data import READS, SOURCES

    assert {*SOURCES.own} == {*READS, "python"}


def test_shares_of_splits_have_no_effect_on_data_with_splits() -> None:
    rows = (data().train.inputs, data().train.targets)
    own, split = {"train": rows, "test": rows}, ("dataset.split=[0.5, 0.2, 0.3]",)
    asked = TrainingRequest("ann", own=own, task="classes", assignments=split, device="cpu")
    with pytest.raises(RecipeError, match=r"split: has no effect beside splits of its own"):
        configure(asked).read(asked.own)
