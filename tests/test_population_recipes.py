"""Populations as recipes: what Brian2 says against one is one line that names the equations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from biograd.__main__ import main
from biograd.errors import RecipeError
from biograd.networks.import_brian2 import import_brian2
from biograd.networks.neuron_model import NeuronModel
from biograd.networks.quantities import quantity
from biograd.recipes import PopulationRecipe

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
        r'The identifier "foo" could not be resolved \(in: dv/dt',
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
    "bounds without end": ({"trainable": {"tau": (1e-200, 1e200)}}, r"at most a factor of 1e\+09"),
    "a very long reset": ({"reset": "q = 1" + " + 1" * 9000}, r"reset = 'q = 1 \+ 1.*…': no var"),
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
