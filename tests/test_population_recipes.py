"""Populations as recipes: what Brian2 says against one is one line that names the equations."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import biograd
from biograd.__main__ import main
from biograd.brian.import_brian2 import import_brian2, one_line
from biograd.brian.layer import Brian2Layer
from biograd.brian.neuron_model import NeuronModel
from biograd.brian.quantities import quantity
from biograd.calls import trained
from biograd.errors import RecipeError
from biograd.recipes import PopulationRecipe, load_model, names
from biograd.runs.reader import open_run

GOOD: dict[str, Any] = {
    "equations": "dv/dt = (I - v) / tau : 1\nI : 1",
    "threshold": "v > 1",
    "reset": "v = 0",
    "method": "exact",
    "namespace": {"tau": "10*ms"},
}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no equations": ({"equations": ""}, r"population\.equations: missing"),
    "no such input": (
        {"input": "J"},
        r"population\.input = 'J': the equations have no such variable: \(known: I, v\)",
    ),
    "constant input": (
        {"equations": "dv/dt = (I - v) / tau : 1\nI : 1 (constant)"},
        r"population\.input = 'I': constant or shared",
    ),
    "wrong units": (
        {"equations": "dv/dt = I - v : 1\nI : 1"},
        r"'I - v' does not have the expected unit hertz \(unit is 1\) \(in: dv/dt = I - v : 1; I",
    ),
    "units of a constant": (
        {"namespace": {"tau": "3*mV"}},
        r"does not have the expected unit hertz .*\(in: dv/dt",
    ),
    "units of the threshold": (
        {"threshold": "v > 1*mV"},
        r"Comparison of expressions with different units.*'v' has unit \(1\)",
    ),
    "unknown function": (
        {"equations": "dv/dt = (I - foo(v)) / tau : 1\nI : 1"},
        r"equations: 'foo\(v\)' calls no known function: did you mean 'floor'\?",
    ),
    "unknown constant": (
        {"equations": "dv/dt = (I - v) / taus : 1\nI : 1"},
        r'The identifier "taus" could not be resolved',
    ),
    "no equation": ({"equations": "dv/dt = (I - v) / tau 1\nI : 1"}, r"population\.equations: "),
    "no threshold": (
        {"threshold": "", "reset": ""},
        r"population\.threshold: missing: without spikes, name the variable",
    ),
    "no such output": (
        {"output": "u"},
        r"population\.output = 'u': no such variable: \(known: spikes, v\)",
    ),
    "reset of what is not there": (
        {"reset": "v = 0; w += 1"},
        r"population\.reset = 'v = 0; w \+= 1': no variable 'w': \(known: I, v\)",
    ),
    "no such method": ({"method": "eulr"}, r"method = 'eulr': did you mean 'euler'\?"),
    "a method that does not fit": (
        {"equations": "dv/dt = (I - v**3) / tau : 1\nI : 1"},
        r"population\.equations: ",
    ),
    "noise and a method of higher order": (
        {"equations": "dv/dt = (I - v) / tau + xi / tau**0.5 : 1\nI : 1", "method": "heun"},
        r"method = 'heun': noise xi is drawn in steps of 'euler'",
    ),
    "random numbers": (
        {"equations": "dv/dt = (I + rand() - v) / tau : 1\nI : 1", "method": "euler"},
        r"population\.equations: rand\(\) draws anew for every copy",
    ),
    "refractory in volts": (
        {"refractory": "5*mV"},
        r"'5\*mV': must be a duration like '2\*ms'",
    ),
    "refractory backwards": ({"refractory": "-2*ms"}, r"must be from 0 to 1e\+06 s"),
    "refractory as a number": ({"refractory": 2}, r"refractory = 2: must be text"),
    "the number of a neuron": (
        {"equations": "dv/dt = (I - v * i) / tau : 1\nI : 1"},
        r"equations: 'i' counts the neurons of all examples",
    ),
    "a quantity as an object": ({"namespace": {"tau": object()}}, r"namespace\.tau = .* text"),
    "an infinite constant": ({"namespace": {"tau": "1e400*ms"}}, r"tau = '1e400\*ms': must be fin"),
    "a reserved name": ({"namespace": {"tau": "1*ms", "mV": 2.0}}, r"namespace\.mV: no name for"),
    "no positive scale": (
        {"surrogate_scale": -1.0},
        r"scale = -1\.0: must be above zero",
    ),
    "a scale in another unit": ({"surrogate_scale": "5*mV"}, r"in the unit of what the threshold"),
    "the input as output": ({"output": "I"}, r"output = 'I': no such variable: \(known: spikes, v"),
    "bounds far apart": ({"trainable": {"tau": (1e-25, 1e25)}}, r"at most a factor of 1e\+09"),
    "bounds without end": (
        {"trainable": {"tau": (1e-200, 1e200)}},
        r"trainable\.tau = 1e\+200: must be 1e\+30 at most",
    ),
    "a very long reset": (
        {"reset": "q = 1" + "; q = 1" * 900},
        r"reset = 'q = 1; q = 1.*…': no var",
    ),
    "no such unit": (
        {"namespace": {"tau": "3*mss"}},
        r"namespace\.tau = '3\*mss': Brian2 has no unit 'mss': did you mean 'ms'\?",
    ),
    "initial value in another unit": (
        {"initial": {"v": "-70*mV"}},
        r"initial\.v = '-70\*mV': v is a plain number",
    ),
    "initial value of nothing": (
        {"initial": {"u": 1.0}},
        r"initial\.u: no such variable: \(known: I, v\)",
    ),
    "learned constant that is not there": (
        {"trainable": {"tua": (0.5, 2.0)}},
        r"trainable\.tua: not in the namespace: did you mean 'tau'\?",
    ),
    "a constant that nothing uses": (
        {"namespace": {"tau": "10*ms", "tua": "5*ms"}},
        r"namespace\.tua: nothing uses it: take it out, or see how it is spelt",
    ),
    "a constant of a comment": (
        {"equations": GOOD["equations"] + "  # k", "namespace": {"tau": "10*ms", "k": 1.0}},
        r"namespace\.k: nothing uses it",
    ),
    "a constant behind a variable": (
        {"namespace": {"tau": "10*ms", "v": 1.0}},
        r"namespace\.v: the equations have a variable of that name",
    ),
    "a scale of no input": ({"scale": {"v": 2.0}}, r"scale\.v: no current flows into it: .*I\)"),
    "an update of nothing": (
        {"update": "v *= 0.5\nzz = 3"},
        r"update: 'zz = 3' assigns no variable of the equations: \(known: I, v\)",
    ),
    "a whole number as input": (
        {"equations": "dv/dt = -v / tau : 1\nI : integer"},
        r"input = 'I': integer, it cannot carry a current: write 'I : 1'",
    ),
    "a truth as input": ({"equations": "dv/dt = -v / tau : 1\nI : boolean"}, "'I': boolean, it"),
    "an initial current": ({"initial": {"I": 1.0}}, r"initial\.I: the current sets it in every"),
    "an initial value of what is learned": (
        {"initial": {"tau": "5*ms"}, "trainable": {"tau": (0.5, 2.0)}},
        r"initial\.tau: it is learned, from its namespace value on",
    ),
    "a reset without a threshold": ({"threshold": "", "output": "v"}, r"reset: there is no thresh"),
    "never refractory": (
        {"threshold": "", "reset": "", "output": "v", "refractory": "2*ms"},
        r"refractory: there is no threshold",
    ),
    "a distance to no threshold": (
        {"threshold": "", "reset": "", "output": "v", "surrogate_scale": 2.0},
        r"surrogate_scale: there is no threshold",
    ),
    "a surrogate without spikes": (
        {"output": "v", "surrogate_scale": 2.0},
        r"surrogate_scale: the output is 'v', no spikes",
    ),
    "a method for nothing": (
        {"equations": "v : 1\nI : 1", "namespace": {}},
        r"method: there is no differential equation",
    ),
    "an output that stands still": (
        {"equations": GOOD["equations"] + "\nx : 1", "output": "x"},
        r"output = 'x': nothing changes it",
    ),
    "noise by the state": (
        {"equations": "dv/dt = (I - v) / tau + v * xi / tau**0.5 : 1\nI : 1", "method": "euler"},
        r"equations: the factor of noise xi changes in time, for which steps of 'euler' are not",
    ),
    "a method of GSL": ({"method": "gsl_rkck"}, r"method = 'gsl_rkck': its steps are GSL's own"),
    "a formula of a thousand terms": (
        {"threshold": "v > 1" + " + 0" * 3000},
        r"threshold: a formula is too long: give parts of it names, in lines like",
    ),
    "bounds on one side": (
        {"trainable": {"tau": (1.5, 2.0)}},
        r"trainable\.tau = \[1\.5, 2\.0\]: two factors are needed, one below 1 and one above",
    ),
}


@pytest.fixture(autouse=True)
def no_compiler() -> None:
    import_brian2().prefs.codegen.target = "numpy"


def test_the_population_that_the_others_spoil_is_good() -> None:
    assert NeuronModel(PopulationRecipe(**GOOD), 1.0).port == "I"


@pytest.mark.parametrize("name", BAD)
def test_a_bad_population_is_one_line(name: str) -> None:
    changes, words = BAD[name]
    with pytest.raises(RecipeError, match=words) as caught:
        NeuronModel(PopulationRecipe(**GOOD | changes), 1.0)
    assert "\n" not in str(caught.value)


def test_what_is_only_used_on_the_way_is_not_idle() -> None:
    recipe = PopulationRecipe(**GOOD | {"update": "half = 0.5 * k * v\nv = half"})
    recipe = dataclasses.replace(recipe, namespace={"tau": "10*ms", "k": 2.0})
    assert NeuronModel(recipe, 1.0).namespace["k"] == 2.0


@pytest.mark.parametrize(
    "name", [name for name in names("models") if load_model(name).network.substrate == "brian2"]
)
def test_shipped_models_hold_nothing_that_does_nothing(name: str) -> None:
    assert biograd.build(load_model(name, "digits"), (1, 8, 8), 10).simulator == "brian2"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("population.units=4", r"population\.units: .* network\.hidden, which says how many"),
        (
            "neuron.resistance=8.0",
            r"neuron\.resistance: has no effect on neurons of",
        ),
        ("neuron.reset=zero", r"neuron\.reset: .* neurons of \[population\]: write it there"),
        ("network.activation=tanh", r"network\.activation: .* spiking"),
    ],
)
def test_settings_of_other_neurons_are_refused(key: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        biograd.build(load_model("brian2_adaptive", "digits", None, [key]), (1, 8, 8), 10)
    assert "\n" not in str(caught.value)
    other = ["neuron.slope=5.0", "neuron.surrogate=gaussian", "neuron.readout=rate"]
    assert biograd.build(load_model("brian2_adaptive", "digits", None, other), (1, 8, 8), 10)


LEARNING = """
namespace = { tau = "10*ms", k = 20.0, w = "0.1*mV" }
trainable = { tau = [0.2, 5.0], k = [0.5, 2.0] }

[training]"""


def test_inspect_shows_learned_constants_in_their_units(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = tmp_path / "learning.toml", tmp_path / "a.h5"
    equations = "dv/dt = (k * I - v + w / mV) / tau : 1"
    text = SILENT.replace("dv/dt = (I - v) / (10 * ms) : 1", equations).replace("100", "1")
    model.write_text(LEARNING.join(text.split("[training]", 1)))
    few = ["--set", "dataset.training_examples=64", "--set", "training.learning_rate=0.1"]
    arguments = ["train", "--model", str(model), "--estimator", "backprop", "-q", *few]
    assert main([*arguments, "--out", str(path)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(path), "--json"]) == 0
    k, tau = sorted(json.loads(capsys.readouterr().out)["constants"], key=lambda c: c["constant"])
    with open_run(path) as run:
        network, engine = trained(run)
    engine.detach()
    values = {name: v.detach() for name, v in network.blocks[0].activity.constants().items()}
    assert (tau["population"], tau["unit"], k["unit"]) == ("blocks.0.activity", "ms", "")
    assert tau["mean"] == pytest.approx(1000 * float(values["tau"].mean()), rel=1e-6)
    assert tau["mean"] != pytest.approx(10.0, rel=1e-3)
    assert (k["lowest"], k["highest"]) == pytest.approx(
        (float(values["k"].min()), float(values["k"].max())), rel=1e-6
    )
    assert main(["inspect", str(path)]) == 0
    assert f"blocks.0.activity.tau  mean {tau['mean']:.4g} ms" in capsys.readouterr().out


# What Brian2 says ---------------------------------------------------------------------------------


def test_what_brian2_warns_of_is_one_line_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    logger = import_brian2().get_logger("brian2.somewhere")
    monkeypatch.setattr(import_brian2().BrianLogger.console_handler, "stream", terminal)
    for _ in range(2):
        with one_line("population.equations"):
            logger.warn("order of\n  statements", "order")
            logger.warn("two meanings\nof a name", "resolution_conflict")
            logger.info("a method was chosen")
    own = [one.getMessage() for one in caplog.records if one.name.startswith("biograd")]
    assert own == ["population.equations: Brian2 says: order of statements"]
    assert not terminal.getvalue()
    logger.warn("to a user of Brian2")  # who hears it as ever
    assert "to a user of Brian2" in terminal.getvalue()


# Where a trial begins -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([0.1, 0.2], r"initial\.v: 2 values for 3 neurons"),
        ([], r"initial\.v: 0 values for 3 neurons"),
        ([0.1, "0.2", "3*mV"], r"initial\.v = '3\*mV': v is a plain number"),
        (["__import__('os')"] * 3, "write a quantity like"),
        ("uniform(0)", r"write 'uniform\(low, high\)' or 'normal\(mean, deviation\)'"),
        ("uniform(1, 0)", "low is above high"),
        ("normal(0, -1)", "the deviation is below zero"),
        ("uniform(0, 1*mV)", r"initial\.v = '1\*mV': v is a plain number"),
        ("uniform(0, open('x'))", r"write a quantity like"),
        ("gamma(1, 2)", "write a quantity like"),
        ({"a": 1}, "initial.v = "),
    ],
)
def test_initial_values_that_are_none(given: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        Brian2Layer(PopulationRecipe(**GOOD | {"initial": {"v": given}}), 3, 5, 1.0)
    assert "\n" not in str(caught.value)


def test_a_shared_variable_has_one_initial_value() -> None:
    shared = {"equations": GOOD["equations"] + "\nx : 1 (shared)", "initial": {"x": [1.0, 2.0]}}
    with pytest.raises(RecipeError, match=r"initial\.x: x is shared by all neurons"):
        Brian2Layer(PopulationRecipe(**GOOD | shared), 2, 5, 1.0)


BEGUN = """
[network]
substrate = "brian2"
kind = "spiking"
hidden = [5, 5]

[population]
equations = '''
dv/dt = (I - v) / (10 * ms) : 1
u : volt
w : 1
I : 1
'''
threshold = "v > 1"

[population.initial]
v = "uniform(0.2, 0.6)"
u = "normal(-65*mV, 3*mV)"
w = [1, 2, "3", 4.0, "10*ms/(2*ms)"]
"""


def test_initial_values_of_a_file_are_those_of_every_row_and_run(tmp_path: Path) -> None:
    model = tmp_path / "begun.toml"
    model.write_text(BEGUN)
    networks = [biograd.build(model, 6, 3) for _ in range(2)]
    first, second = (block.activity for block in networks[0].blocks)
    values = {name: view.copy() for name, view in first.simulation(4).values.items()}
    assert (values["w"] == [1, 2, 3, 4, 5]).all() and values["v"].shape == (4, 5)
    assert (values["v"] == values["v"][0]).all() and len(set(values["v"][0])) == 5
    assert (values["v"] == networks[1].blocks[0].activity.simulation(4).values["v"]).all()
    assert (values["v"] != second.simulation(4).values["v"]).all()  # each has draws of its own
    first(torch.rand(4, 1, 5))
    first.simulation(4).begin()  # every trial begins there
    assert all((first.simulation(4).values[n] == values[n]).all() for n in ("u", "v", "w"))


def test_initial_values_have_the_distribution_that_is_written() -> None:
    drawn = {"v": "uniform(0.2, 0.6)", "u": " normal ( -65*mV , 3*mV ) "}
    recipe = PopulationRecipe(**GOOD | {"initial": drawn})
    recipe = dataclasses.replace(recipe, equations=recipe.equations + "\nu : volt")
    found = NeuronModel(recipe, 1.0).initial(4000)
    assert 0.2 <= found["v"].min() < 0.201 and 0.599 < found["v"].max() <= 0.6
    assert abs(found["v"].mean() - 0.4) < 0.006
    assert abs(found["u"].mean() + 0.065) < 2e-4 and abs(found["u"].std() - 0.003) < 1e-4


@pytest.mark.parametrize(
    ("text", "value"),
    [("10*ms", 0.01), ("-70*mV", -0.07), ("2/(5*ms)", 400.0), ("3", 3.0), (0.5, 0.5), ("2**3", 8)],
)
def test_quantities(text: Any, value: float) -> None:
    assert float(quantity(text, "here")) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ms.__class__",
        "__import__('os').system('true')",
        "[ms]",
        "lambda: 1",
        "10*ms + 1*mV",
        "1/0",
        "10**10**10",
        "ms if 1 else mV",
        "True",
        "'a'",
        "(" * 150 + ")" * 150,
        "1" * 500,
        "1j",
        "f'{ms}'",
    ],
)
def test_what_is_no_quantity_is_refused_and_not_evaluated(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^here = ") as caught:
        quantity(text, "here")
    assert "\n" not in str(caught.value)


SILENT = """
[network]
substrate = "brian2"
kind = "spiking"
hidden = [5]

[population]
equations = '''
dv/dt = (I - v) / (10 * ms) : 1
I : 1
'''
threshold = "v > 100"
reset = "v = 0"

[training]
epochs = 1
"""


def test_a_network_that_never_spikes_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "silent.toml"
    model.write_text(SILENT)
    arguments = ["train", "--model", str(model), "--estimator", "frozen_hidden", "-q"]
    assert main([*arguments, "--out", str(tmp_path / "a.h5")]) == 0
    line = "silent units    blocks.0.activity 100.0 %: raise network.gain or encoding.gain, or"
    assert line in capsys.readouterr().out
    assert main([*arguments, "--out", str(tmp_path / "b.h5"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["silent"] == {"blocks.0.activity": 1.0}
